"""The lock that keeps a second process out of a run, and who holds it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from selfcal.errors import StoreError
from selfcal.remote import mirror_of
from selfcal.store import explained, read_json, write_json

LOCK, HOLDER = ".lock", ".lock-holder"
LOCK_FILES = (LOCK, HOLDER)


def lock_holder(run: Path) -> str:
    """The process that works on a run, in words; empty if there is none.

    The holder's note is removed with the lock, and stays behind where a process was killed: only
    then is the lock tried, so that looking never gets in the way of a run that starts. Of a
    run on a store, its lease is asked, too.

    Raises:
        StoreError: the run lies on a store that cannot be asked.
    """
    mirror = mirror_of(run)
    if here := _holder_here(run if mirror is None else mirror.worked_in):
        return here
    return mirror.holder() if mirror is not None else ""


def _holder_here(run: Path) -> str:
    if not (run / HOLDER).exists() or not (run / LOCK).exists():
        return ""
    try:
        with FileLock(run / LOCK, timeout=0):
            return ""
    except Timeout:
        return _holder_in(run)
    except OSError:  # a folder that we may only read
        return "perhaps one; the lock cannot be tried from here"


def _holder_in(run: Path) -> str:
    try:
        holder = read_json(run / HOLDER)
        return f"process {holder['pid']} on {holder['host']}"
    except (StoreError, LookupError, TypeError):
        return "another process"  # it has the lock, and is about to write its name


class RunLock:
    """Keeps other processes out of a run, for as long as the `with` block lasts.

    The operating system holds the lock (`.lock`), so it goes with a process that dies. Who holds
    it stands beside it in `.lock-holder`, for the message only. A run on a store has a lease there
    as well, for as long.
    """

    def __init__(self, run: Path) -> None:
        """Name the folder of the run; nothing is locked yet."""
        self._run, self._holder = run, run / HOLDER
        self._lock = FileLock(run / LOCK, thread_local=False)

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises:
            StoreError: Another process works on this run, or the system refused.
        """
        with explained("lock", self._run):
            self._run.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:  # an OSError, too
                raise StoreError(
                    f"{self._run} is in use by {_holder_in(self._run)}: wait until it is done, or "
                    "end it and its workers, then run the same command again: it resumes"
                ) from error
        try:
            write_json(self._holder, {"pid": os.getpid(), "host": socket.gethostname()})
            if (mirror := mirror_of(self._run)) is not None:
                mirror.lock()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock back."""
        if (mirror := mirror_of(self._run)) is not None:
            mirror.unlock()
        with suppress(OSError):  # first, as after the release it may be the next holder's
            self._holder.unlink(missing_ok=True)
        self._lock.release()
