"""A disk that is really full, and then read-only: a small file system of its own.

Only root can mount one. Elsewhere the errors are injected alone (`kills.REFUSALS`), and the report
says so.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from crash.attempt import FAILED, attempt, going
from crash.kills import Outcome, Redone, sound, tail
from crash.truth import Truth

_ROOM = 512
"""MB that suffice."""


def mountable(folder: Path) -> bool:
    """Whether a file system can be mounted here."""
    if os.geteuid() != 0:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _mount("-t", "tmpfs", "-o", "size=1m", "crash", str(folder))
    except (OSError, subprocess.CalledProcessError):
        return False
    _unmount(folder)
    return True


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


@contextmanager
def _mounted(folder: Path, kilobytes: int) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_mount():  # of a harness that was killed
        _unmount(folder)
    _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "crash", str(folder))
    try:
        yield folder
    finally:
        _unmount(folder)


def used(folder: Path) -> int:
    """Kilobytes that a folder's files take on a disk of 4 KB blocks."""
    sizes = (p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return sum(-(-size // 4096) * 4 for size in sizes)


def fill(
    truth: Truth, name: str, work: Path, rng: random.Random, say: Callable[[str], None], times: int
) -> Outcome:
    """Let the disk be full again and again, with more room each time, and then read-only."""
    found, redone, whole = Outcome(name), Redone(), used(truth.run)
    with _mounted(work / "disk", 64) as disk:
        run, log = disk / "run", work / "log"
        for room in sorted(rng.randint(64, whole) for _ in range(times)):
            _mount("-o", f"remount,size={room}k", str(disk))
            _expect(truth, found, redone, run, log, errno.ENOSPC, f"{room} KB")
            say(f"{name}: full in {found.fired[-1]['in'] if found.fired else '?'} at {room} KB")
        _mount("-o", f"remount,size={_ROOM}m,ro", str(disk))
        _expect(truth, found, redone, run, log, errno.EROFS, "mounted read-only")
        say(f"{name}: read-only")
        _mount("-o", "remount,rw", str(disk))
        _expect(truth, found, redone, run, log, 0, "with room")
        found.faults += redone.faults + sound(truth, run, log)
        shutil.rmtree(run)
    return found


def _expect(
    truth: Truth, found: Outcome, redone: Redone, run: Path, log: Path, number: int, at: str
) -> None:
    """Go on with the run, which ends with this error, or well where that is 0."""
    ended = attempt(going(truth.recipe, run), log)
    found.attempts += 1
    for event in ended.events:
        redone.sees(event)
    if not number:
        if ended.code:
            found.faults.append(f"{at}: it ended with {ended.code}: {tail(ended)}")
        return
    begun = [e["stage"] for e in ended.of("begins")]
    kind = {errno.ENOSPC: "full disk", errno.EROFS: "read-only disk"}[number]
    found.fired.append({"in": begun[-1] if begun else "start", "kind": kind, "at": at})
    if ended.code != FAILED or os.strerror(number) not in ended.said:
        found.faults.append(f"{kind}, {at}: it ended with {ended.code}: {tail(ended)}")
