"""What a machine has: memory, arithmetic, bandwidth and disk.

Figures of GPUs are their makers' data sheets': dense tensor throughput in 16 bits, without
sparsity.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from selfcal.errors import SelfcalError

GIB = 2**30


class MachineError(SelfcalError):
    """No such machine is known: the text names those that are."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One GPU, or a CPU with its memory."""

    name: str
    memory: int
    """Bytes."""
    flops: float = 0.0
    """Operations a second in 16 bits, at most; 0: not known, so no time is told."""
    bandwidth: float = 0.0
    """Bytes a second between its memory and its arithmetic."""
    here: bool = False
    """Whether it is this machine."""

    @property
    def gpu(self) -> bool:
        """Whether it is a GPU whose speed is known."""
        return self.flops > 0


# name: (GiB, Tflop/s, TB/s)
_SHEETS = {
    "rtx3090": (24, 71, 0.936),
    "rtx4090": (24, 165, 1.008),
    "rtx5090": (32, 210, 1.792),
    "l4": (24, 121, 0.300),
    "a10": (24, 125, 0.600),
    "l40s": (48, 362, 0.864),
    "a100-40": (40, 312, 1.555),
    "a100-80": (80, 312, 2.039),
    "h100": (80, 989, 3.350),
    "h200": (141, 989, 4.800),
    "b200": (180, 2250, 8.000),
}
GPUS = tuple(_SHEETS)


def machine(name: str | None = None) -> Machine:
    """A GPU by its name, or by default what this machine has.

    Raises:
        MachineError: no such GPU is known.
    """
    if name is None:
        return _here()
    key = name.lower().replace(" ", "").replace("_", "-")
    if key not in _SHEETS:
        raise MachineError(f"--gpu {name}: not known; take one of {', '.join(GPUS)}")
    return _from_sheet(key)


def disk_free(folder: Path) -> int:
    """Bytes free where a folder is, or would be made."""
    there = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
    return shutil.disk_usage(there).free


def _from_sheet(key: str, memory: int = 0) -> Machine:
    gib, tera, width = _SHEETS[key]
    return Machine(key, memory or gib * GIB, tera * 1e12, width * 1e12)


def _here() -> Machine:
    import psutil
    import torch

    if not torch.cuda.is_available():
        return Machine("CPU", int(psutil.virtual_memory().total), here=True)
    own = torch.cuda.get_device_properties(0)
    plain = own.name.lower().replace(" ", "").replace("-", "")
    alike = [k for k in _SHEETS if k.split("-")[0] in plain]
    if not alike:
        return Machine(own.name, int(own.total_memory), here=True)
    nearest = min(alike, key=lambda k: abs(_SHEETS[k][0] * GIB - own.total_memory))
    found = _from_sheet(nearest, int(own.total_memory))
    return Machine(own.name, found.memory, found.flops, found.bandwidth, here=True)
