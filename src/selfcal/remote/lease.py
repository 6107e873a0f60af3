"""The lock of a run on a store: a lease, as no operating system holds a lock there.

Its holder makes an object that must not exist yet, and changes it every few seconds. Who finds one
watches it: only when it has not changed for as long as it promises may it be taken over. No two
clocks are compared.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from selfcal.errors import StoreError
from selfcal.remote.objects import Objects

KEY = ".lease.json"
LENGTH = 60.0
"""Seconds after which an unchanged lease is over."""
_LONGEST = 600.0
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while a machine sleeps


def _now() -> float:
    return time.clock_gettime(_CLOCK)


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as it says itself."""

    mirror: str
    """Random name of the mirror that it works in."""
    words: str
    """For people: process and machine."""
    length: float
    """Seconds that the lease lasts unchanged."""


class Lease:
    """Keeps other machines out of a run on a store, from `take` to `give_back`."""

    def __init__(self, objects: Objects, mirror: str, lost: Callable[[], None]) -> None:
        """Name the run's objects.

        Args:
            objects: of the run.
            mirror: random name of the mirror. Two processes cannot work in one, so a lease that
                bears the own name is that of a process that died.
            lost: called, from another thread, when somebody else has taken the lease over.
        """
        self._objects, self._mirror, self._lost = objects, mirror, lost
        self._own, self._data = secrets.token_hex(8), b""
        self._beat, self._renewed = 0, 0.0
        self._gone = ""
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._turn = threading.Lock()

    def take(self) -> None:
        """Take the lease; waits for as long as that of another one lasts.

        Raises:
            StoreError: another process works on this run, or the store refused.
        """
        self._data = self._next()
        while not self._objects.create(KEY, self._data):
            found = self._objects.read(KEY)
            if found is None:
                continue
            holder = _holder(found)
            if holder.mirror != self._mirror:
                found = self._watched(found, holder)
            if found is not None and not self._objects.replace(KEY, found, self._data):
                raise self._in_use(self._objects.read(KEY) or found)
            if found is not None:
                break
        self._renewed = _now()
        self._thread = threading.Thread(target=self._keep, name="selfcal-lease", daemon=True)
        self._thread.start()

    def _watched(self, found: bytes, holder: Holder) -> bytes | None:
        """The lease again, when it has not changed for its length; None if it is gone."""
        over = _now() + holder.length
        while (left := over - _now()) > 0:
            time.sleep(min(left, holder.length / 10, 5))
            if (seen := self._objects.read(KEY)) is None:
                return None
            if seen != found:
                raise self._in_use(seen)
        return found

    def check(self) -> None:
        """Called before the store is changed.

        Raises:
            StoreError: the lease is no longer ours, or that cannot be told.
        """
        if not self._gone and _now() - self._renewed > LENGTH / 2:
            self._renew()
        if self._gone:
            raise StoreError(
                f"{self._objects.address} {self._gone}: this process stops, and changes nothing "
                "more there; its finished work is kept on this machine. When the other one is "
                "done, run the same command again: it resumes"
            )

    @property
    def gone(self) -> bool:
        """Whether somebody else has taken the lease over."""
        return bool(self._gone)

    def give_back(self) -> None:
        """End the lease."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(StoreError):  # who comes next waits for its length, then
            if not self._gone and self._objects.read(KEY, patient=False) == self._data:
                self._objects.delete([KEY])

    def holder(self, dead: str) -> str:
        """Who holds it, in words; empty if nobody does, or one in the mirror of the name `dead`."""
        found = self._objects.read(KEY)
        if not found or (holder := _holder(found)).mirror == dead:
            return ""
        return holder.words

    def _keep(self) -> None:
        while not self._end.wait(LENGTH / 4):
            with suppress(StoreError):  # the next time; who is late finds out if it was too late
                self._renew()
            if self._gone:
                self._lost()
                return

    def _renew(self) -> None:
        """Change the lease.

        Raises:
            StoreError: the store cannot be reached.
        """
        with self._turn:
            new = self._next()
            began = _now()
            if self._objects.replace(KEY, self._data, new):
                self._data, self._renewed = new, began
                return
            seen = self._objects.read(KEY, patient=False)
            if seen is not None and _is(seen, self._own):  # an answer was lost
                self._data, self._renewed = seen, began
                return
            who = _holder(seen).words if seen else "somebody who removed its lease"
            self._gone = f"was taken over by {who}"

    def _next(self) -> bytes:
        self._beat += 1
        words = {
            "mirror": self._mirror,
            "token": self._own,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "length": LENGTH,
            "beat": self._beat,
        }
        return json.dumps(words).encode()

    def _in_use(self, found: bytes) -> StoreError:
        return StoreError(
            f"{self._objects.address} is in use by {_holder(found).words}: wait until it is done, "
            "or end it and its workers, then run the same command again: it resumes"
        )


def _holder(data: bytes) -> Holder:
    said = _read(data)
    length = said.get("length")
    lasts = float(length) if isinstance(length, int | float) else LENGTH
    words = f"process {str(said.get('pid'))[:20]} on {str(said.get('host'))[:100]}"
    return Holder(str(said.get("mirror")), words, min(max(lasts, 0.1), _LONGEST))


def _is(data: bytes, token: str) -> bool:
    return _read(data).get("token") == token


def _read(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
