"""The lock of a run on a store: a lease, as no operating system holds a lock there.

Its holder makes an object that must not exist yet, and changes it every few seconds. Who finds one
watches it: only when it has not changed for as long as it promises may it be taken over. No two
clocks are compared. Processes that work for the holder are told its token, and look now and then
whether the lease still bears it.
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

from selfcal import stopping
from selfcal.errors import StoreError
from selfcal.remote.objects import Objects

KEY = ".lease.json"
LENGTH = 60.0
"""Seconds after which an unchanged lease is over."""
_LOOK = 5.0
"""Seconds between two looks of a process that works for the holder, at most."""
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
    pid: Any
    host: Any

    @property
    def dead(self) -> bool:
        """Whether it is known to have died: it was of this machine, which has no such process.

        A process with our own number was one before us, as in a container that began anew.
        """
        if self.host != socket.gethostname() or not isinstance(self.pid, int):
            return False
        import psutil

        return self.pid == os.getpid() or not psutil.pid_exists(self.pid)


class Lease:
    """Keeps other machines out of a run on a store, from `take` to `give_back`."""

    def __init__(self, objects: Objects, mirror: str, lost: Callable[[], None]) -> None:
        """Name the run's objects.

        Args:
            objects: of the run.
            mirror: random name of the mirror. A lease of that name is not watched if its process
                is gone from this machine: a mirror's lock keeps a second one out.
            lost: called, from another thread, when somebody else has taken the lease over.
        """
        self._objects, self._mirror, self._lost = objects, mirror, lost
        self.token, self._data = secrets.token_hex(8), b""
        self._beat, self._renewed = 0, 0.0
        self._gone = ""
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._turn = threading.Lock()

    def take(self) -> None:
        """Take the lease; waits for as long as that of another one lasts.

        Raises:
            StoreError: another process works on this run, or the store refused.
            Stopped: that was asked for.
        """
        self._data = self._next()
        while not self._taken():
            stopping.heed()
        self._renewed = _now()
        self._thread = threading.Thread(target=self._keep, name="selfcal-lease", daemon=True)
        self._thread.start()

    def _taken(self) -> bool:
        """Take the lease, if nobody has it or its holder is gone; False: it is to be seen anew."""
        # looked at before and after: there are stores that write whatever the condition is
        if (found := self._objects.read(KEY)) is None:
            return self._objects.create(KEY, self._data) and self._objects.read(KEY) == self._data
        holder = _holder(found)
        known = holder.mirror == self._mirror and holder.dead
        if not known and self._watched(found, holder) is None:
            return False
        taken = self._objects.replace(KEY, found, self._data)
        if not taken or (seen := self._objects.read(KEY)) != self._data:
            raise self._in_use((seen if taken else self._objects.read(KEY)) or found)
        return True

    def _watched(self, found: bytes, holder: Holder) -> bytes | None:
        """The lease again, when it has not changed for its length; None if it is gone."""
        over = _now() + holder.length
        while (left := over - _now()) > 0:
            stopping.pause(min(left, holder.length / 10, 5))
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
        with suppress(StoreError, stopping.Stopped):  # who comes next waits for its length, then
            if not self._gone and self._objects.read(KEY, patient=False) == self._data:
                self._objects.delete([KEY])

    def holder(self, dead: str) -> str:
        """Who holds it, in words; empty if nobody does, or one of the mirror `dead` that died."""
        found = self._objects.read(KEY)
        if not found or ((holder := _holder(found)).mirror == dead and holder.dead):
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
            if seen is not None and _is(seen, self.token):  # an answer was lost
                self._data, self._renewed = seen, began
                return
            who = _holder(seen).words if seen else "somebody who removed its lease"
            self._gone = f"was taken over by {who}"

    def _next(self) -> bytes:
        self._beat += 1
        words = {
            "mirror": self._mirror,
            "token": self.token,
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


class Followed:
    """The lease of a process for which this one works."""

    def __init__(self, objects: Objects, token: str) -> None:
        """Name the run's objects, and what the lease bears for as long as that process holds it."""
        self._objects, self._token = objects, token
        self._seen: float | None = None
        self._turn = threading.Lock()

    def check(self) -> None:
        """Called before the store is changed; looks every few seconds.

        Raises:
            StoreError: the lease is no longer that process's, or the store cannot be reached.
        """
        with self._turn:
            if self._seen is not None and _now() - self._seen < _LOOK:
                return
            began = _now()
            found = self._objects.read(KEY)
            if found is None or not _is(found, self._token):
                raise StoreError(
                    f"{self._objects.address} is no longer worked on by the process that started "
                    "this worker, which ended or has lost the lease: the worker stops, and changes "
                    "nothing more there"
                )
            self._seen = began


def _holder(data: bytes) -> Holder:
    said = _read(data)
    length, pid, host = (said.get(name) for name in ("length", "pid", "host"))
    lasts = float(length) if isinstance(length, int | float) and 0.1 <= length <= LENGTH else LENGTH
    words = f"process {str(pid)[:20]} on {str(host)[:100]}"
    return Holder(str(said.get("mirror")), words, lasts, pid, host)


def _is(data: bytes, token: str) -> bool:
    return _read(data).get("token") == token


def _read(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
