"""Single files on their way between a mirror and its store, and what both are known to have."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from selfcal import stopping
from selfcal.remote.accounts import is_as_written, state
from selfcal.remote.address import checked
from selfcal.remote.objects import Objects, at_once
from selfcal.store import MARKS, PARTIAL, explained


class Files:
    """The files of a run in a folder, each an object by its relative path."""

    def __init__(self, objects: Objects, run: Path, allowed: Callable[[], None]) -> None:
        """Name them; `allowed` is called before the store is changed, and raises if it must not."""
        self._objects, self._run, self._allowed = objects, run, allowed
        self._same: dict[str, tuple[int, int]] = {}  # size and time of files that the store has

    def path(self, key: str) -> Path:
        """The file of an object.

        Raises:
            StoreError: the key leads out of the folder.
        """
        return self._run / checked(key, self._objects.address)

    def key(self, path: Path) -> str:
        """The key of a file."""
        return path.relative_to(self._run).as_posix()

    def note(self, key: str) -> None:
        """Remember that the store has this file as it is now."""
        with suppress(OSError):
            self._same[key] = state(self.path(key))

    def is_same(self, key: str) -> bool:
        """Whether the store is known to have this file as it is now."""
        try:
            return self._same.get(key) == state(self.path(key))
        except OSError:
            return False

    def is_known(self, key: str) -> bool:
        """Whether the store is known to have this file, perhaps in an older state."""
        return key in self._same

    def bring(self, key: str, entry: Mapping[str, Any] | None) -> None:
        """Bring a file that is not here as it was written; a damaged one is missing afterwards."""
        path = self.path(key)
        if self.is_same(key):
            return
        if entry is not None and is_as_written(path, entry):
            self.note(key)
            return
        half = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
        with explained("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                for _ in range(2):  # what was cut on its way is whole the second time
                    there = self._objects.download(key, half)
                    if there and (entry is None or is_as_written(half, entry)):
                        os.replace(half, path)
                        self.note(key)
                        return
                if entry is not None:
                    path.unlink(missing_ok=True)
            finally:
                half.unlink(missing_ok=True)

    def push_all(self, keys: Iterable[str]) -> None:
        """Take files up, several at a time; marks after all others."""
        names = sorted(keys)
        for marks in (False, True):
            at_once(self.push, [n for n in names if (f"/{MARKS}/" in n) is marks])

    def push(self, key: str) -> None:
        """Take a file up, unless the store has it or it is not there."""
        path = self.path(key)
        if self.is_same(key) or not path.is_file():
            return
        self._allowed()
        now = state(path)
        self._objects.upload(path, key)
        self._same[key] = now

    def delete(self, keys: Collection[str]) -> None:
        """Delete objects."""
        if keys:
            self._allowed()
            self._objects.delete(list(keys))
        for key in keys:
            self._same.pop(key, None)


_SILENT_S = 2.0
"""Seconds to wait for another process without a word."""


@contextmanager
def pulling(run: Path) -> Iterator[None]:
    """Keeps processes of one machine from bringing the same files twice.

    Raises:
        Stopped: that was asked for, while another one brings some.
    """
    with explained("lock", run):
        run.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run.parent / f".{run.name}.pull", thread_local=False)
        _wait_for(lock, run)
    try:
        yield
    finally:
        lock.release()


def _wait_for(lock: FileLock, run: Path) -> None:
    """Take a lock; say so if that takes long."""
    waited = 0.0
    while True:
        try:
            lock.acquire(timeout=_SILENT_S / 10)
            return
        except Timeout:
            stopping.heed()
        waited += _SILENT_S / 10
        if waited >= _SILENT_S > waited - _SILENT_S / 10:
            print(f"{run}: another process brings files of this run; waiting", file=sys.stderr)
