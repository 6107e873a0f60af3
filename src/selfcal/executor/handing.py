"""How a training on another machine hands its files to the driver, and takes them up again.

Where all machines see the run by one path there is nothing to bring. On a store the ranks work in
the mirror of their machine: they fetch what the stage has kept so far, and in the end the first one
takes all files up, then an account of them with the stage's figures. The driver brings what the
account names. That account also says that the training is done when nobody else is left to say so.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Mapping
from typing import Any

from filelock import FileLock

from selfcal.accounts import entry_of, said
from selfcal.digests import list_files
from selfcal.errors import StoreError
from selfcal.files import explained
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
    place.saved([work.out / name for name in names])
    with explained("read", work.out):
        files: dict[str, JSON] = {name: entry_of(work.out / name) for name in names}
    own = {"fingerprint": work.folder.fingerprint, "figures": found["figures"], "files": files}
    write_signed(work.out / OUTCOME, own)
    place.saved([work.out / OUTCOME])


def handed_over(work: Work, done: bool = False) -> dict[str, Any] | None:
    """What a training on another machine has handed over, all its files here; None: nothing yet.

    `done`: whether it has said that it is.

    Raises:
        StoreError: it is done, but its files are not to be had.
    """
    place_of(work.run).fetch(work.folder)
    path = work.out / OUTCOME
    if done:
        _insist(work, [OUTCOME])
    account = said(path)
    if account.get("fingerprint") != work.folder.fingerprint or "figures" not in account:
        return None
    if (mirror := mirror_of(work.run)) is not None:
        for name, entry in account["files"].items():
            mirror.files.bring(mirror.files.key(work.out / name), entry)
    _insist(work, account["files"])
    with explained("delete", path):
        path.unlink()
    return {"figures": account["figures"]}


def _insist(work: Work, names: Collection[str]) -> None:
    """See that these files are here."""
    until = time.monotonic() + _VISIBLE_S
    while missing := [name for name in names if not (work.out / name).is_file()]:
        if time.monotonic() > until:
            raise StoreError(
                f"{work.out}: its training is done on another machine, but {missing[0]} is not to "
                "be seen here: all machines must see the run by the same path; put it on storage "
                "that they share, or on a remote store, then run the same command again"
            )
        time.sleep(0.5)
