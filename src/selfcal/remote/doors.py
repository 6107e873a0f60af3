"""From the address of a run to its folder on this machine, and back.

A mirror lies at `MIRRORS/DIGEST/work/NAME`, a copy for looking at `MIRRORS/DIGEST/look/NAME`, so
that who looks never gets in the way of who works, and one without content in `.../shape/NAME`.
`MIRRORS` is `$SELFCAL_MIRRORS`, or `selfcal/mirrors` in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from filelock import FileLock, Timeout

from selfcal.errors import StoreError
from selfcal.remote.accounts import RECIPE
from selfcal.remote.address import address, is_address
from selfcal.remote.copies import Part, make_shape, pull, refresh
from selfcal.remote.files import pulling
from selfcal.remote.mirror import Mirror
from selfcal.remote.objects import Objects
from selfcal.remote.place import Folder, Place
from selfcal.store import explained, read_json, write_json

NOTE = "mirror.json"
Use: TypeAlias = Literal["work", "look", "shape"]
_open: dict[Path, Mirror] = {}


def mirrors() -> Path:
    """The folder of all mirrors."""
    if given := os.environ.get("SELFCAL_MIRRORS"):
        return Path(given).absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "selfcal" / "mirrors"


def open_run_place(where: str, token: str = "") -> Place:
    """Open a run as another machine named it (`Place.where`); what a worker of a cluster calls.

    Of a run on a store, this machine's mirror has the recipe and the accounts of all stages
    (manifests, markers, marks) afterwards; `fetch` each stage before it is read. Stages of the run
    then get `Place.saved` by `executor.work_of`. With `token` (the driver's `Place.token`) the
    store is changed for only as long as its lease is the driver's.

    Raises:
        StoreError: there is no run, or the store cannot be reached.
    """
    if not is_address(where):
        return Folder(Path(where))
    run = working_folder(where)
    if not (run / RECIPE).is_file():
        raise StoreError(f"{where} is no run of selfcal: it has no {RECIPE}")
    if token and (mirror := mirror_of(run)) is not None:
        mirror.follow(token)
    return place_of(run)


def place_of(run: Path) -> Place:
    """The place of a run by its folder on this machine; there is one `Mirror` a folder."""
    return mirror_of(run) or Folder(run)


def mirror_of(run: Path) -> Mirror | None:
    """The mirror that a folder of this machine is, or lies in; None if it is none.

    Raises:
        StoreError: the mirror's note cannot be read.
    """
    run = run.absolute()
    if run in _open:
        return _open[run]
    root = mirrors()
    if not run.is_relative_to(root) or len(parts := run.relative_to(root).parts) < 3:
        return None
    top = root.joinpath(*parts[:3])
    if not (note := top.parent.parent / NOTE).is_file():
        return None
    said = read_json(note)
    objects, worked_in = Objects(str(said["address"])), top.parent.parent / "work" / top.name
    if rest := "/".join(parts[3:]):
        objects, worked_in = objects.below(rest), worked_in / rest
    return _open.setdefault(run, Mirror(objects, run, str(said["name"]), worked_in))


def working_folder(where: str) -> Path:
    """The folder in which a run is worked on: the mirror of an address, or the path itself.

    The mirror gets the recipe and the accounts of all stages, unless a process works in it, which
    knows better.

    Raises:
        StoreError: no such address, or the store cannot be reached.
    """
    run = _folder(where, "work")
    if (mirror := mirror_of(run)) is not None:
        with pulling(run):
            _if_free(run, partial(refresh, mirror.objects, run))
    return run


def _if_free(run: Path, do: Callable[[], None]) -> None:
    with explained("lock", run):
        run.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(run / ".lock", timeout=0, thread_local=False)
            lock.acquire()
        except Timeout:
            return
    try:
        do()
    finally:
        lock.release()


def shape(where: str) -> Path:
    """A folder with a run's names and sizes: accounts as they are, other files without content.

    For who deletes: they take no room, and what was set aside is there, too. A path as it is.

    Raises:
        StoreError: no such address or run, or the store cannot be reached.
    """
    run = _folder(where, "shape")
    if (mirror := mirror_of(run)) is not None:
        with pulling(run):
            _if_free(run, partial(make_shape, mirror.objects, run))
        if not (run / RECIPE).is_file():
            raise StoreError(f"{mirror.where} is no run of selfcal: it has no {RECIPE}")
    return run


def reshape(run: Path) -> None:
    """Give the folder of `shape` what the store says now; any other folder is left as it is.

    Raises:
        StoreError: the store cannot be reached.
    """
    if (mirror := mirror_of(run)) is not None:
        with pulling(run):
            make_shape(mirror.objects, run)


def look(where: str, part: Part = "records", must: bool = True) -> Path:
    """A folder with the parts of a run that are looked at: a copy, or the path itself.

    `must`: whether there must be a run.

    Raises:
        StoreError: no such address or run, or the store cannot be reached.
    """
    run = _folder(where, "look")
    if (mirror := mirror_of(run)) is not None:
        with pulling(run):
            pull(mirror.objects, run, part)
        if must and not (run / RECIPE).is_file():
            raise StoreError(f"{mirror.where} is no run of selfcal: it has no {RECIPE}")
    return run


def shown(path: object) -> str:
    """A path as the user knows it: the address of what a mirror has of a store."""
    if isinstance(path, Path) and (mirror := mirror_of(path)) is not None:
        return mirror.where
    return str(path)


def _folder(where: str, use: Use) -> Path:
    if not is_address(where):
        return Path(where)
    plain = address(where)
    if not is_address(plain):  # of file://
        return Path(plain)
    name = re.sub(r"[^0-9A-Za-z._-]", "_", plain.rpartition("/")[2]).lstrip(".") or "run"
    top = mirrors() / hashlib.sha256(plain.encode()).hexdigest()[:16] / use
    note = top.parent / NOTE
    if not note.is_file():
        with explained("make", top):
            mirrors().mkdir(mode=0o700, parents=True, exist_ok=True)
        said: dict[str, Any] = {"address": plain, "name": secrets.token_hex(8)}
        write_json(note, said)
    return top / name
