"""What a process takes of the machine, as the kernel tells (Linux, `/proc`)."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from contextlib import suppress
from pathlib import Path

_KIB = 1024


def rss(pid: int) -> int:
    """Resident bytes of a process."""
    return _status(pid, "VmRSS") * _KIB


def peak() -> int:
    """The most resident bytes of this process since `rest` was called."""
    return _status(os.getpid(), "VmHWM") * _KIB


def _status(pid: int, name: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def rest() -> None:
    """Give memory back that nothing uses, and count the peak from here."""
    import pyarrow as pa

    gc.collect()
    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):  # another libc keeps what it has
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def members(session: int) -> list[int]:
    """The processes of a session."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                # pid (name) state ppid pgrp session ...; a name may hold spaces and brackets
                fields = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
                if int(fields.rpartition(")")[2].split()[3]) == session:
                    found.append(int(entry.name))
    return found


def measured(pid: int, run: Path) -> dict[str, int] | None:
    """Memory, files, threads and processes of one that leads a session; None: it is over."""
    try:
        own = {
            "rss": rss(pid),
            "fds": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": _status(pid, "Threads"),
        }
    except OSError:
        return None
    others, theirs = [p for p in members(pid) if p != pid], 0
    for other in others:
        with suppress(OSError):
            theirs += rss(other)
    files = sum(len(names) for _, _, names in os.walk(run))
    return {**own, "children": len(others), "children_rss": theirs, "files": files}
