"""How much memory is free, and whether an error says that there is none left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_SHARE_GPU = 0.8
"""The rest is for activations."""
_SHARE_CPU = 0.5
"""Others use the memory, too."""
_CGROUP = Path("/sys/fs/cgroup")
_RECLAIMABLE = ("inactive_file", "active_file")
_SAID = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def free_bytes(device: str) -> int:
    """Bytes that a cache on this device may take, by what is free now."""
    import torch

    if torch.device(device).type == "cuda":
        return int(_SHARE_GPU * torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(_SHARE_CPU * min(psutil.virtual_memory().available, _container_bytes()))


def _container_bytes() -> int:
    """What a container's limit leaves, which the machine's own figures do not show."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        # pages of files that were read: counted as used, given back as soon as they are wanted
        files = sum(int(n) for name, n in map(str.split, lines) if name in _RECLAIMABLE)
        return 2**62 if limit == "max" else max(0, int(limit) - used + files)
    except (OSError, ValueError):
        return 2**62


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def attempt(work: Callable[[], T]) -> tuple[T | None, str]:
    """What `work` gives; or None, and what the system said when memory ran out.

    Once this returns, nothing of the failed work is held: an error that is still being handled
    keeps the tensors of all frames that it went through.
    """
    try:
        return work(), ""
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).splitlines()
    release()
    return None, said[0] if said else "out of memory"


_hears: list[Callable[[str], None]] = []
_noted: dict[str, None] = {}


def note(line: str) -> None:
    """Tell people, once, that less memory than asked for must do."""
    if line not in _noted:
        _noted[line] = None
        for hear in _hears:
            hear(line)


def noted() -> list[str]:
    """What was told since the last time this was asked."""
    lines = list(_noted)
    _noted.clear()
    return lines


@contextmanager
def told(hear: Callable[[str], None]) -> Iterator[None]:
    """Let `hear` be told, for as long as the block runs."""
    _hears.append(hear)
    try:
        yield
    finally:
        _hears.remove(hear)


def release() -> None:
    """Give freed GPU memory back, so that larger blocks can be had."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
