"""How a training on another machine hands its files to the driver, and takes them up again.

Where all machines see the run by one path there is nothing to bring. On a store the ranks work in
the mirror of their machine: they fetch what the stage has kept so far, and in the end the first one
takes all files up, then an account of them with the stage's figures. The driver brings what the
account names. That account also says that the training is done when nobody else is left to say so,
and what its files were when they were handed over: a power cut or a disk may have changed them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from selfcal.accounts import entry_of, is_file_of, said
from selfcal.digests import list_files
from selfcal.errors import StoreError
from selfcal.executor.base import note
from selfcal.files import explained, sync
from selfcal.remote import mirror_of, place_of
from selfcal.remote.accounts import is_same_work, said_in
from selfcal.stage import Work
from selfcal.store import JSON, MANIFEST, MARKER, MARKS, write_signed

OUTCOME = "outcome.json"
_VISIBLE_S = 60
"""In which a file that another machine has written is to be seen here: network file systems keep
for a while what they know of a folder."""


def bring_own(work: Work) -> None:
    """Bring what a stage has kept so far to this machine; what is left here of other work goes.

    Raises:
        StoreError: the store cannot be reached.
    """
    mirror = mirror_of(work.run)
    if mirror is None:
        return
    # ranks of one machine have one mirror
    with FileLock(work.run.parent / f".{work.run.name}.ranks", thread_local=False):
        there = said_in(mirror.objects.read(mirror.files.key(work.out / MARKER)))
        if there and not is_same_work(work.folder, there):
            shutil.rmtree(work.out, ignore_errors=True)
        mirror.fetch(work.folder)


def hand_over(work: Work, found: Mapping[str, Any]) -> None:
    """Take up what a training has left; with its figures, if it is done: an account of all.

    Raises:
        StoreError: the store cannot be reached, or the system refused.
    """
    place = place_of(work.run)
    if "figures" not in found:
        place.saved([path for path in sorted(work.out.iterdir()) if path.is_file()])
        return
    accounts = (OUTCOME, MARKER, MANIFEST)
    names = [n for n in list_files(work.out) if n not in accounts and not n.startswith(f"{MARKS}/")]
    paths = [work.out / name for name in names]
    with explained("sync", work.out):
        for path in [*paths, *{file.parent for file in paths}]:
            sync(path)  # what libraries write need not be on the disk
    place.saved(paths)
    with explained("read", work.out):
        files: dict[str, JSON] = {name: entry_of(work.out / name) for name in names}
    own = {"fingerprint": work.folder.fingerprint, "figures": found["figures"], "files": files}
    write_signed(work.out / OUTCOME, own)
    place.saved([work.out / OUTCOME])


def handed_over(work: Work, done: bool = False) -> dict[str, Any] | None:
    """What a training on another machine has handed over, all its files here; None: nothing.

    Its account is deleted if a file is gone, or no longer what it was: the last steps are to be
    done again.

    `done`: whether it has said that it is, just now.

    Raises:
        StoreError: it is done just now, but its files are not to be had.
    """
    place_of(work.run).fetch(work.folder)
    path = work.out / OUTCOME
    if done and _missing(work, {OUTCOME: None}, _VISIBLE_S):
        raise _unseen(work, OUTCOME)
    account = said(path)
    if account.get("fingerprint") != work.folder.fingerprint or "figures" not in account:
        return None
    if (mirror := mirror_of(work.run)) is not None:
        for name, entry in account["files"].items():
            mirror.files.bring(mirror.files.key(work.out / name), entry)
    # what a store has is seen at once
    lost = _missing(work, account["files"], _VISIBLE_S if mirror is None else 0)
    if lost and done:
        raise _unseen(work, lost[0])
    with explained("delete", path):
        path.unlink()
    if lost:
        note(f"{work.out / lost[0]} is gone or damaged: the last steps of its training are redone")
        return None
    return {"figures": account["figures"]}


def _missing(
    work: Work, files: Mapping[str, Mapping[str, JSON] | None], patience: float
) -> list[str]:
    """Which files are not here after so many seconds, as their entries say they were written."""
    until, left = time.monotonic() + patience, list(files)
    while True:
        with explained("read", work.out):
            left = [n for n in left if not _is_here(work.out / n, files[n])]
        if not left or time.monotonic() >= until:
            return left
        time.sleep(0.5)


def _is_here(path: Path, entry: Mapping[str, JSON] | None) -> bool:
    return path.is_file() if entry is None else is_file_of(path, entry)


def _unseen(work: Work, name: str) -> StoreError:
    return StoreError(
        f"{work.out}: its training is done on another machine, but {name} is not to be seen here "
        "as it was written: all machines must see the run by the same path; put it on storage that "
        "they share, or on a remote store, then run the same command again: it resumes"
    )
