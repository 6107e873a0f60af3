"""A run on a store, and the folder of this machine in which it is worked on.

What is finished goes up as soon as it is: a shard, then its mark; a stage's files, then its
manifest. What is read comes down, and is checked against the digests of manifests and marks. So at
every moment the store holds a run that another machine could go on with, and a manifest or a mark
there never speaks for files that are not there. Before anything of a finished stage is changed its
manifest is deleted on the store; other work is moved to `NAME.old-FINGERPRINT` there, too.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from selfcal import stopping
from selfcal.errors import StoreError
from selfcal.remote.accounts import (
    RECIPE,
    entries,
    files_below,
    has_size,
    inputs_of,
    is_same_work,
    lacks,
    said_in,
    sealed_in,
    seals,
)
from selfcal.remote.address import checked
from selfcal.remote.files import Files, pulling
from selfcal.remote.lease import KEY as LEASE
from selfcal.remote.lease import Followed, Lease
from selfcal.remote.objects import Item, Objects, at_once
from selfcal.remote.place import Read
from selfcal.store import (
    JSON,
    MANIFEST,
    MARKER,
    MARKS,
    StageDir,
    changed,
    write_bytes,
)

_WEIGHTS = ("checkpoint", "adapter")
_BESIDE = ("spending", "tracking")
"""Folders of a run that are no stage's."""


class Mirror:
    """A run on a store, in a folder of this machine."""

    def __init__(
        self, objects: Objects, run: Path, name: str, worked_in: Path | None = None
    ) -> None:
        """Name them; nothing is asked yet.

        Args:
            objects: of the run.
            run: the folder.
            name: random name of the folder in which this machine works on the run, for the lease.
            worked_in: that folder; None: `run`.
        """
        self.objects, self.run, self.worked_in = objects, run, worked_in or run
        self._name = name
        self.lease = self._lease()
        self.files = Files(objects, run, self._check)
        self._held = False
        self._followed: Followed | None = None
        self._fetched: set[Path] = set()
        self._stages: list[StageDir] = []

    @property
    def where(self) -> str:
        """The address."""
        return self.objects.address

    def lock(self) -> None:
        """Take the run's lease, for a process that holds the folder's lock.

        Raises:
            StoreError: another process works on this run, or the store refused.
        """
        self.lease = self._lease()  # one that was lost is lost for good
        self.lease.take()
        self._held, self._followed = True, None

    def _lease(self) -> Lease:
        own = self._name if self.worked_in == self.run else secrets.token_hex(8)
        return Lease(self.objects, own, stopping.ask)

    @property
    def token(self) -> str:
        """The lease's, for processes that work for this one; empty if this one does not hold it."""
        return self.lease.token if self._held else ""

    def follow(self, token: str) -> None:
        """Change the store only for as long as its lease bears this token."""
        self._followed = Followed(self.objects, token)

    def unlock(self) -> None:
        """Give the lease back, if it was taken."""
        if self._held:
            self._held = False
            self.lease.give_back()
            if self.lease.gone:
                stopping.forget()  # it was the lease's wish

    def holder(self) -> str:
        """Who holds the lease, in words; empty if nobody does, or a dead process of this machine.

        Whoever asks has seen that the lock of the folder `worked_in` is free.
        """
        return self.lease.holder(self._name)

    @contextmanager
    def working(self, stages: Sequence[Read]) -> Iterator[None]:
        """Bring what is needed at first; in the end, take up what belongs to no stage."""
        self._begin(stages)
        try:
            yield
        except stopping.Stopped:
            self._check()  # it may be the reason
            self._close()
            raise
        except BaseException:
            with suppress(StoreError):  # the first error is the one to tell
                self._close()
            raise
        else:
            self._close()

    def _begin(self, stages: Sequence[Read]) -> None:
        self._stages = [s.folder for s in stages]
        there = self.objects.list()
        own = (f"{self.files.key(f.path)}/{n}" for f in self._stages for n in (MARKER, MANIFEST))
        if (
            RECIPE not in there
            and any(key != LEASE for key in there)
            and there.keys().isdisjoint(own)
        ):
            raise StoreError(
                f"{self.where} is not empty and is no run of selfcal; give another address"
            )
        self._pull_rest(there)
        for folder in self._stages:
            self._agree(folder, self._below(folder, there))
        open_ = {s.folder.path for s in stages if not s.folder.done}
        for folder in self._stages:
            if folder.done and not self.has(folder) and self._differs(folder, there):
                self.fetch(folder)
                if lacks(folder):
                    open_.add(folder.path)
        while True:
            read = [i for s in stages if s.folder.path in open_ for i in s.inputs]
            needed = [folder for folder in read if folder.done and not self.has(folder)]
            if not needed:
                return
            for folder in needed:
                self.fetch(folder)
                if lacks(folder):
                    open_.add(folder.path)  # it is to be mended, from its own inputs

    def _differs(self, folder: StageDir, there: Mapping[str, Item]) -> bool:
        """Whether the store lacks a file of a finished stage, or has one of another size."""
        below = self._below(folder, there)
        return any(
            name not in below or below[name].size != entry["size"]
            for name, entry in folder.manifest()["files"].items()
        )

    def _agree(self, folder: StageDir, there: Mapping[str, Item]) -> None:
        """Let folder and store know the same of a stage: manifest, marks, or the work left here."""
        said = self._account(folder, there)
        own = said.get("fingerprint") == folder.fingerprint
        if own and not is_same_work(folder, said):
            shutil.rmtree(folder.path, ignore_errors=True)  # of other work, which the store has not
        if own and MANIFEST in there:
            self._pull_accounts(folder, there)
            folder.restore()
            if folder.done:
                return
        if folder.done and (own or not there):
            if lacks(folder):
                return  # to be mended; what the store has is fetched when that begins
            self._fetched.add(folder.path)
            self.finished(folder)

    def _account(self, folder: StageDir, there: Collection[str]) -> dict[str, Any]:
        """What the store says of the work that it has of a stage; nothing if it is damaged."""
        for name in (MARKER, MANIFEST, *sorted(n for n in there if n.startswith(f"{MARKS}/"))):
            if name in there:
                found = said_in(self.objects.read(f"{self.files.key(folder.path)}/{name}"))
                if isinstance(found.get("fingerprint"), str):
                    return found
        return {}

    def fetch(self, folder: StageDir) -> None:
        """Bring what is finished of a stage; see `Place.fetch`."""
        with pulling(self.run):
            if folder.done:
                self._bring(folder, folder.manifest()["files"])
                self._fetched.add(folder.path)
            else:
                self._fetch_begun(folder)

    def _fetch_begun(self, folder: StageDir) -> None:
        there = self._below(folder, self.objects.list(self.files.key(folder.path)))
        self._pull_accounts(folder, there)
        sealed = sealed_in(folder, [n for n in there if n.startswith(f"{MARKS}/")])
        others = {
            name: None
            for name in there
            if name.split("/")[0] not in (*_WEIGHTS, MARKS)
            and name not in (MANIFEST, MARKER, *sealed)
            and not has_size(folder.path / name, there[name].size)
        }
        self._bring(folder, {**others, **sealed})

    def needs(self, folder: StageDir) -> None:
        """Bring all of a finished stage; see `Place.needs`."""
        if not self.has(folder):
            self.fetch(folder)
        if lacks(folder):
            names = folder.manifest()["files"]
            first = next(name for name in names if not (folder.path / name).is_file())
            raise StoreError(
                f"{self.where}/{self.files.key(folder.path)}/{first} is damaged or missing; delete "
                f"it there, then `selfcal run --out {self.where}` makes it anew"
            )

    def has(self, folder: StageDir) -> bool:
        """Whether a finished stage was fetched, or made here."""
        return folder.path in self._fetched

    def sets_aside(self, folder: StageDir) -> None:
        """Move a finished stage aside on the store, too: none of its shards may come back."""
        self._check()
        if there := self._below(folder, self.objects.list(self.files.key(folder.path))):
            found = str(self._account(folder, there).get("fingerprint", ""))
            self._set_aside(folder, found, there)
        self._fetched.discard(folder.path)

    def takes_up(self, folder: StageDir, inputs: Mapping[str, JSON] | None = None) -> None:
        """Make the store ready for work on a stage, and bring what there is of it.

        Other work is moved aside, and so is work on inputs that had another outcome.
        """
        self._check()
        there = self._below(folder, self.objects.list(self.files.key(folder.path)))
        said = self._account(folder, there)
        found = str(said.get("fingerprint", ""))
        if there and (found != folder.fingerprint or changed(inputs_of(said), inputs or {})):
            self._set_aside(folder, found, there)
            return
        if MANIFEST in there:
            self.files.delete([f"{self.files.key(folder.path)}/{MANIFEST}"])
        if there and not folder.done and not self.has(folder):
            self.fetch(folder)

    def _set_aside(self, folder: StageDir, found: str, there: Collection[str]) -> None:
        """Move other work on the store to `NAME.old-FINGERPRINT`: copied whole, then deleted."""
        key = self.files.key(folder.path)
        aside = f"{key}.old-{found if re.fullmatch(r'[0-9A-Za-z_]{1,64}', found) else 'unknown'}"
        last = sorted(there, key=lambda name: (name == MANIFEST, name == MARKER, name))
        at_once(lambda name: self.objects.copy(f"{key}/{name}", f"{aside}/{name}"), last[:-1])
        self.objects.copy(f"{key}/{last[-1]}", f"{aside}/{last[-1]}")
        for names in ([MANIFEST], [n for n in last if n not in (MANIFEST, MARKER)], [MARKER]):
            self.files.delete([f"{key}/{name}" for name in names if name in there])

    def opened(self, folder: StageDir) -> None:
        """Delete on the store what is no longer of the stage, marks first; take the rest up."""
        key = self.files.key(folder.path)
        self._sweep(folder, lambda name: (folder.path / name).is_file())
        self.files.push_all(f"{key}/{name}" for name in files_below(folder.path))

    def _sweep(self, folder: StageDir, keeps: Callable[[str], bool]) -> None:
        key = self.files.key(folder.path)
        there = self._below(folder, self.objects.list(key))
        gone = [name for name in there if not keeps(name)]
        for own in (True, False):
            self.files.delete([f"{key}/{n}" for n in gone if n.startswith(f"{MARKS}/") is own])

    def saved(self, files: Sequence[Path]) -> None:
        """Take finished files up, one after the other."""
        for path in files:
            self.files.push(self.files.key(path))
        keys = [self.files.key(path) for path in files]
        for stage in {key.partition("/trl/")[0] for key in keys if "/trl/" in key}:
            self._sweep_checkpoints(self.run / stage)

    def _sweep_checkpoints(self, stage: Path) -> None:
        """Delete a training's checkpoints that it no longer keeps."""

        def keeps(name: str) -> bool:
            return not name.startswith("trl/") or (stage / name).exists()

        self._sweep(StageDir(stage, ""), keeps)

    def finished(self, folder: StageDir) -> None:
        """Take up a stage's files, and its manifest when nothing else is there."""
        key, files = self.files.key(folder.path), folder.manifest()["files"]
        self._know_marked(folder)
        marks = [n for n in files_below(folder.path) if n.startswith(f"{MARKS}/")]
        self.files.push_all(f"{key}/{name}" for name in (*files, *marks))
        kept = {*files, *marks, MARKER, MANIFEST}
        self._sweep(folder, lambda name: name in kept)
        self.files.push(f"{key}/{MARKER}")
        self.files.push(f"{key}/{MANIFEST}")
        self._fetched.add(folder.path)

    def deletes(self, path: Path) -> None:
        """Delete it on the store, too; what its stage says of itself is taken up before."""
        key = self.files.key(path)
        accounts = [path.parent / name for name in (MARKER, MANIFEST)]
        self.saved([account for account in accounts if account.is_file()])
        below = self.objects.list(key)
        self.files.delete([k for k in below if k == key or k.startswith(f"{key}/")])

    def _know_marked(self, folder: StageDir) -> None:
        """Shards that a worker has taken up: the store has the mark that speaks for them."""
        key = self.files.key(folder.path)
        marks = [n for n in files_below(folder.path) if n.startswith(f"{MARKS}/")]
        new = [n for n in marks if not self.files.is_same(f"{key}/{n}")]

        def look(name: str) -> None:
            own = (folder.path / name).read_bytes()
            if self.objects.read(f"{key}/{name}") == own:
                for file in (name, *entries(own)):
                    self.files.note(f"{key}/{file}")

        if new and self.objects.read(f"{key}/{MARKER}") is not None:
            at_once(look, new)

    def _close(self) -> None:
        """Take up what belongs to no stage, and accounts that were signed anew."""
        beside = [f"{folder}/{n}" for folder in _BESIDE for n in files_below(self.run / folder)]
        top = [p.name for p in self.run.iterdir() if p.suffix == ".json"]
        for key in (*beside, *top):
            self.files.push(key)
        for folder in self._stages:
            if folder.done and self.files.is_known(f"{self.files.key(folder.path)}/{MANIFEST}"):
                self.files.push(f"{self.files.key(folder.path)}/{MARKER}")
                self.files.push(f"{self.files.key(folder.path)}/{MANIFEST}")

    def _pull_rest(self, there: Mapping[str, Item]) -> None:
        """Bring what belongs to no stage; of what both have, the longer one, as ledgers grow."""
        for key, item in there.items():
            path = self.files.path(key)
            longer = path.is_file() and path.stat().st_size >= item.size
            if not longer and key.startswith(tuple(f"{folder}/" for folder in _BESIDE)):
                self.files.bring(key, None)

    def _pull_accounts(self, folder: StageDir, there: Collection[str]) -> None:
        """Bring a stage's manifest, marker and marks."""
        names = [n for n in there if n in (MANIFEST, MARKER) or n.startswith(f"{MARKS}/")]
        at_once(lambda name: self._pull_account(folder, name), names)

    def _pull_account(self, folder: StageDir, name: str) -> None:
        key = f"{self.files.key(folder.path)}/{name}"
        if self.files.is_same(key):
            return
        data, path = self.objects.read(key), self.files.path(key)
        if data is None:
            return
        for file in entries(data):
            checked(file, f"{self.where}/{key}")
        if path.is_file() and path.read_bytes() != data and seals(folder, name):
            return  # made anew here, and not yet taken up
        if not path.is_file() or path.read_bytes() != data:
            write_bytes(path, data)
        self.files.note(key)

    def _bring(self, folder: StageDir, entries: Mapping[str, Mapping[str, Any] | None]) -> None:
        key = self.files.key(folder.path)
        for name in entries:
            checked(name, f"{self.where}/{key}/{MANIFEST}")
        at_once(lambda name: self.files.bring(f"{key}/{name}", entries[name]), list(entries))

    def _check(self) -> None:
        if self._held:
            self.lease.check()
        elif self._followed is not None:
            self._followed.check()

    def _below(self, folder: StageDir, there: Mapping[str, Item]) -> dict[str, Item]:
        """What is below a stage's folder, by the names that it has there."""
        start = f"{self.files.key(folder.path)}/"
        return {key[len(start) :]: item for key, item in there.items() if key.startswith(start)}
