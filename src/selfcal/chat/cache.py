"""Replies on disk, by content: the same question to the same model is paid for once.

The key is a digest over all that decides a reply: model, settings, messages with their images, the
number of the draw. Neither key nor address of the server are part of it. Threads and processes may
share the file. A cache must never stop a run: a damaged file is moved aside, and one that cannot
be used is done without.
"""

from __future__ import annotations

import json
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from filelock import FileLock

T = TypeVar("T")

_TABLE = "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT) WITHOUT ROWID"
_WAIT_S = 30.0
_NAME = "replies.sqlite"


def cache_file() -> Path:
    """In the folder `$SELFCAL_CACHE`, else `$XDG_CACHE_HOME/selfcal`, else `~/.cache/selfcal`.

    Raises:
        RuntimeError: neither is set, and the user has no home.
    """
    if own := os.environ.get("SELFCAL_CACHE"):
        return Path(own) / _NAME
    common = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(common) / "selfcal" / _NAME


class Cache:
    """Replies by key; threads and processes may share the file."""

    def __init__(self, path: Path | None = None) -> None:
        """Name the file, by default the user's; it is made when something is kept."""
        self._lock, self._setting_up = Lock(), Lock()
        self._off = self._set_up = False
        try:
            self._path = path or cache_file()
        except RuntimeError as error:
            self._path = Path(_NAME)
            self._do_without(str(error))

    def get(self, key: str) -> Any:
        """What was kept under a key, as JSON gives it; None if nothing was."""

        def look(base: sqlite3.Connection) -> str | None:
            row = base.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
            return row[0] if row else None

        found = self._use(look) if self._begun() else None
        try:
            return json.loads(found) if isinstance(found, str) else None
        except (ValueError, RecursionError):
            return None

    def put(self, key: str, reply: Mapping[str, Any]) -> None:
        """Keep something under a key, in the place of what was there."""

        def keep(base: sqlite3.Connection) -> None:
            base.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, json.dumps(reply)))

        self._use(keep)

    def _use(self, do: Callable[[sqlite3.Connection], T]) -> T | None:
        """Do something with the file; None where that is not to be had."""
        for _ in range(2):
            if self._off:
                return None
            try:
                with self._connected() as base:
                    return do(base)
            except (OSError, sqlite3.OperationalError) as error:
                self._do_without(str(error))
            except sqlite3.DatabaseError as error:
                self._replace(str(error))
        return None

    def _replace(self, why: str) -> None:
        """Begin a new file in the place of a damaged one; where that cannot be, do without."""
        try:
            self._move_aside(why)
        except (OSError, sqlite3.Error) as error:  # also that others hold the lock for too long
            self._do_without(f"{why}; moving it aside: {error}")

    def _begun(self) -> bool:
        """Whether there is a file; not where that cannot be seen."""
        try:
            return self._path.exists()
        except OSError as error:
            self._do_without(str(error))
            return False

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection of one's own: cheap beside a request, and safe in threads and forks."""
        if not (self._set_up and self._path.exists()):
            self._begin()
        with closing(sqlite3.connect(self._path, timeout=_WAIT_S)) as base:
            base.execute("PRAGMA synchronous = NORMAL")
            base.execute(_TABLE)
            with base:
                yield base

    def _begin(self) -> None:
        """Set the file up, one at a time: SQLite does not wait where a journal is changed."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._setting_up, FileLock(f"{self._path}.setup", timeout=_WAIT_S):
            with closing(sqlite3.connect(self._path, timeout=_WAIT_S)) as base:
                base.execute("PRAGMA journal_mode = WAL")
                with base:
                    base.execute(_TABLE)
            self._set_up = True

    def _move_aside(self, why: str) -> None:
        with self._lock, FileLock(f"{self._path}.lock", timeout=_WAIT_S):
            try:
                with self._connected() as base:
                    base.execute("SELECT count(*) FROM replies").fetchone()
                return  # another process has done it
            except sqlite3.OperationalError:  # it is no worse than busy
                raise
            except sqlite3.DatabaseError:
                pass
            aside = _free_name(self._path)
            self._path.rename(aside)
            for end in ("-wal", "-shm"):
                Path(f"{self._path}{end}").unlink(missing_ok=True)
        _warn(f"the cache of replies {self._path} is damaged ({why}); it is now {aside}, and a new "
              "one is begun")  # fmt: skip

    def _do_without(self, why: str) -> None:
        with self._lock:
            if self._off:
                return
            self._off = True
        _warn(f"the cache of replies {self._path} cannot be used ({why}); going on without it: "
              "set SELFCAL_CACHE to a folder on a local disk")  # fmt: skip


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return aside


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)
