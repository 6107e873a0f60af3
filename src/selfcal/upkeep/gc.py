"""What a run could do without: left over by kills, set aside, or of use to nothing unfinished.

Nothing is looked at through a link, and nothing outside of the run's own folder is touched. What is
taken from a finished stage is named in its manifest (`freed`) first, so that a run from which
something was taken is not taken for a damaged one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfcal.errors import StoreError
from selfcal.lock import RunLock, lock_holder
from selfcal.planning import Planned, locate, open_run
from selfcal.remote import place_of, reshape
from selfcal.store import MANIFEST, MARKER, MARKS, PARTIAL, explained


@dataclass(frozen=True)
class Item:
    """A file or folder that could go."""

    path: Path
    reason: str
    bytes: int
    """That its files have."""
    freed: int
    """That the disk gets back: what other runs share by hard links stays there."""


_REASONS = {
    "trl": "trainer state of a finished training",
    "serving": "adapter that was handed to a server",
}
_CHECKPOINT = "merged checkpoint that no open stage reads; to measure or export it trains it anew"


def find_items(run: Path, checkpoints: bool = False) -> list[Item]:
    """What could go; `checkpoints`: merged checkpoints before the last one, too.

    Raises:
        StoreError: the folder is no run, or it is in work.
    """
    planned = locate(open_run(run), run)
    if holder := lock_holder(run):
        raise StoreError(f"{run} is in use by {holder}: wait until it is done, or stop it")
    return _sized(list(_found(run, planned, checkpoints)))


def free(run: Path, checkpoints: bool = False) -> list[Item]:
    """Delete what `find_items` finds; gives it.

    Raises:
        StoreError: the folder is no run, it is in work, or the system refused.
    """
    place = place_of(run)
    with RunLock(run):
        reshape(run)  # who held the lease until now may have made a stage anew
        planned = locate(open_run(run), run)
        items = _sized(list(_found(run, planned, checkpoints)))
        for item in items:
            _note(item.path, planned)
            place.deletes(item.path)
            with explained("delete", item.path):
                if item.path.is_dir():
                    shutil.rmtree(item.path)
                else:
                    item.path.unlink()
    return items


def _found(run: Path, planned: Sequence[Planned], checkpoints: bool) -> Iterator[tuple[Path, str]]:
    taken = [*_set_aside(run, planned)]
    for p in planned:
        if p.folder.done and _own(run, p.folder.path):
            folders = [(p.folder.path / name, reason) for name, reason in _REASONS.items()]
            taken += [found for found in folders if _is_folder(found[0])]
    if checkpoints:
        taken += [(path, _CHECKPOINT) for path in _old_checkpoints(run, planned)]
    yield from taken
    for path in _leftovers(run):
        if not any(path.is_relative_to(folder) for folder, _ in taken):
            yield path, "half-written file of a process that was killed"


def _own(run: Path, path: Path) -> bool:
    """Whether a path is in the run's own folder, and not by a link."""
    return path.is_dir() and path.resolve() == run.resolve() / path.relative_to(run)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _set_aside(run: Path, planned: Sequence[Planned]) -> Iterator[tuple[Path, str]]:
    for p in planned:
        beside = p.folder.path.parent
        for path in sorted(beside.iterdir()) if _own(run, beside) else ():
            name = re.escape(p.folder.path.name)
            found = re.fullmatch(rf"{name}\.old-([0-9a-f]{{16}}|unknown)", path.name)
            if found and _is_folder(path) and (found[1] == "unknown" or _is_stage(path)):
                yield path, "work of other settings or on other inputs, or damaged; set aside"


def _is_stage(path: Path) -> bool:
    """Whether a folder has what says that a stage worked in it, be it damaged."""
    marks = [mark.name for mark in (path / MARKS).glob("*")]
    noted = any((path / name).is_file() for name in (MARKER, MANIFEST))
    return noted or any(re.fullmatch(r"\d{5,}(\.json)?", mark) for mark in marks)


def _old_checkpoints(run: Path, planned: Sequence[Planned]) -> Iterator[Path]:
    """Merged checkpoints of the policy that no unfinished stage reads, without the last one."""
    read = {name for p in planned if not p.folder.done for name in p.stage.inputs}
    made = [
        p
        for p in planned
        if p.stage.name.split("/")[0] != "judge" and _is_folder(p.folder.path / "checkpoint")
    ]
    for p in made[:-1]:
        if p.folder.done and p.stage.name not in read and _own(run, p.folder.path):
            yield p.folder.path / "checkpoint"


def _leftovers(run: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(run):  # follows no links
        for name in list(folders):
            if name.endswith(PARTIAL) and not (path := Path(root, name)).is_symlink():
                folders.remove(name)
                yield path
        for name in files:
            if name.endswith(PARTIAL) and not (path := Path(root, name)).is_symlink():
                yield path


def _sized(found: Sequence[tuple[Path, str]]) -> list[Item]:
    """With their sizes; a file that several runs share is freed when its last name goes."""
    links: Counter[tuple[int, int]] = Counter()
    items = []
    for path, reason in found:
        size = freed = 0
        for stat in _stats(path):
            size += stat.st_size
            links[stat.st_dev, stat.st_ino] += 1
            if links[stat.st_dev, stat.st_ino] == stat.st_nlink:
                freed += stat.st_size
        items.append(Item(path, reason, size, freed))
    return items


def _stats(path: Path) -> Iterator[os.stat_result]:
    with explained("read", path):
        if not path.is_dir():
            yield path.lstat()
        for root, _, files in os.walk(path):
            for name in files:
                yield Path(root, name).lstat()


def _note(path: Path, planned: Sequence[Planned]) -> None:
    """Let the manifest of the stage whose folder this is say that it is gone."""
    for p in planned:
        if path.parent == p.folder.path and p.folder.done:
            manifest = p.folder.manifest()
            files, gone = manifest["files"], manifest.setdefault("freed", {})
            own = [name for name in files if name.startswith(f"{path.name}/")]
            gone |= {name: files.pop(name) for name in own}
            p.folder.sign(manifest)
