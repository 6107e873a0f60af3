"""The library that counts file system steps, and ends or refuses at the N-th (see `steps.c`).

It is compiled where the harness starts, and loaded before all others, so the command starts itself
once more with it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

KILL_BEFORE, KILL_HALFWAY, REFUSE = 1, 2, 3
told = -1
"""Descriptor that is told of the step at which this process ends."""
_SOURCE = Path(__file__).with_name("steps.c")


def compiler() -> str | None:
    """The C compiler of this machine."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def preload(folder: Path) -> None:
    """Make sure that the library is loaded: the process starts itself again with it."""
    if "LD_PRELOAD" in os.environ and hasattr(ctypes.CDLL(None), "steps_arm"):
        return
    built, cc = folder.absolute() / "steps.so", compiler()
    if cc is None:
        sys.exit("error: the crash harness needs a C compiler (such as gcc) on PATH")
    subprocess.run([cc, "-shared", "-fPIC", "-O1", "-o", built, _SOURCE], check=True)
    one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {**os.environ, **one, "LD_PRELOAD": str(built), "TOKENIZERS_PARALLELISM": "false"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def arm(folder: Path, at: int = 0, mode: int = 0, refusal: int = 0) -> None:
    """Count the steps below a folder from 1, and do what `mode` says at step `at`.

    Args:
        folder: whose steps count; absolute.
        at: the step.
        mode: `KILL_BEFORE`, `KILL_HALFWAY`, `REFUSE` (that step, and all later ones that write), or
            0, which counts alone.
        refusal: the errno of `REFUSE`.
    """
    where = os.fsencode(folder.resolve())
    ctypes.CDLL(None).steps_arm(where, ctypes.c_long(at), mode, refusal, told)


def taken() -> int:
    """The steps since `arm`."""
    count = ctypes.CDLL(None).steps_taken
    count.restype = ctypes.c_long
    return int(count())


def move_clock(seconds: int) -> None:
    """Let this process read another time; what the kernel writes beside files is not moved."""
    ctypes.CDLL(None).steps_move_clock(ctypes.c_long(seconds))
