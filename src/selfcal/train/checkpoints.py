"""Checkpoints that a training resumes from: TRL writes them, and here they get their digests.

TRL writes a folder of files one after the other, straight to their names. A kill, a full disk or a
bad block leaves one that looks whole, so that each gets a list of its files' digests (and of its
own) once they are on the disk, written last: a checkpoint without it, or that is no longer what it
says, is passed over. The two newest are kept, so that there is one to go back to, also while the
next is written.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

from selfcal.digests import read_signed, write_signed
from selfcal.errors import StoreError
from selfcal.files import is_plain
from selfcal.store import JSON, explained, file_digest

DIGESTS = "digests.json"
"""In a checkpoint's folder; its existence means that all others are on the disk."""
KEPT = 2


def seal(checkpoint: Path, carried: dict[str, JSON]) -> None:
    """Bring a checkpoint to the disk, and write down what it is.

    `carried`: what goes on with the training and is in none of its files.

    Raises:
        StoreError: the system refused.
    """
    (checkpoint / DIGESTS).unlink(missing_ok=True)
    own = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    with explained("sync", checkpoint):
        for path in [*own, *{path.parent for path in own}, checkpoint.parent]:
            _sync(path)
    files = {path.relative_to(checkpoint).as_posix(): _entry(path) for path in own}
    write_signed(checkpoint / DIGESTS, {"files": files, "carried": carried})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _entry(path: Path) -> dict[str, JSON]:
    return {"sha256": file_digest(path), "size": path.stat().st_size}


def whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is what was written.

    Its digests may come from a store: no name in them leads elsewhere, and files alone are read,
    as a device or a pipe may have no end.
    """
    try:
        if not (checkpoint / DIGESTS).is_file():
            return False
        said = _sealed(checkpoint)
        files = {checkpoint / name: entry for name, entry in said["files"].items()}
        if not all(map(is_plain, said["files"])) or not _can_carry(said["carried"]):
            return False
        # sizes first: they cost nothing, and a cut file need not be read
        sizes = all(p.is_file() and p.stat().st_size == e["size"] for p, e in files.items())
        return sizes and all(_entry(p) == entry for p, entry in files.items())
    except (StoreError, OSError, LookupError, TypeError, AttributeError, ValueError, OverflowError):
        return False


def carried_by(checkpoint: str | None) -> dict[str, Any]:
    """What was handed to `seal` with a checkpoint that is whole."""
    found: dict[str, Any] = _sealed(Path(checkpoint))["carried"] if checkpoint else {}
    return found


def _can_carry(found: Any) -> bool:
    """Whether this is what `watch` hands over: nothing, or all of it."""
    if not isinstance(found, dict):
        return False
    counts, metrics = [found.get("logged"), found.get("tokens")], found.get("metrics")
    return not found or (
        _numbers([found.get("loss"), *counts])
        and isinstance(metrics, dict)
        and all(isinstance(own, list) and _numbers(own) for own in metrics.values())
    )


def _numbers(values: list[Any]) -> bool:
    return all(isinstance(v, int | float) and math.isfinite(v) for v in values)


def _sealed(checkpoint: Path) -> dict[str, Any]:
    return read_signed(checkpoint / DIGESTS)


def checkpoints(trl: Path) -> list[Path]:
    """The checkpoints of a training, whole or not, from the newest to the oldest."""
    found = [p for p in trl.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d{1,15}", p.name)]
    return sorted(found, key=lambda p: step_of(str(p)), reverse=True)


def last_checkpoint(trl: Path) -> str | None:
    """TRL's newest checkpoint that is whole; those that are not are passed over, never loaded."""
    return next((str(p) for p in checkpoints(trl) if whole(p)), None)


def step_of(checkpoint: str | None) -> int:
    """The optimizer step of one of TRL's checkpoints; 0 without one."""
    return 0 if checkpoint is None else int(checkpoint.rpartition("-")[2])


def drop_after(trl: Path, step: int) -> None:
    """Delete the checkpoints of later steps: not whole, or of a training that went wrong.

    Raises:
        StoreError: the system refused.
    """
    _delete([p for p in checkpoints(trl) if step_of(str(p)) > step])


def drop_old(trl: Path, good: int) -> None:
    """Delete all but the newest two checkpoints, and the newest one up to the step `good`.

    Called once the newest is whole. Later steps than `good` may turn out to have gone wrong.

    Raises:
        StoreError: the system refused.
    """
    found = checkpoints(trl)
    safe = next((p for p in found if step_of(str(p)) <= good), None)
    _delete([p for p in found[KEPT:] if p != safe])


def _delete(unwanted: list[Path]) -> None:
    for path in unwanted:
        with explained("delete", path):
            (path / DIGESTS).unlink(missing_ok=True)  # what is deleted by half is not whole
            shutil.rmtree(path)
