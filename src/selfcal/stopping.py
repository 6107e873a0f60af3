"""The wish to stop: asked for once, heeded where work can be taken up again.

A signal asks; whoever works looks between two batches, saves what it has, and raises `Stopped`.
"""

from __future__ import annotations

import time
from threading import Event

_wish = Event()
_LOOK_S = 0.2


class Stopped(Exception):
    """The work was left where it can be taken up again, because somebody asked for that."""


class Again(Exception):
    """The stage shall be run again: it has kept what it has done, and noted what to do otherwise.

    The text says why, in a line for people.
    """


def ask() -> None:
    """Ask whoever works in this process to stop after the batch in work."""
    _wish.set()


def asked() -> bool:
    """Whether somebody did."""
    return _wish.is_set()


def forget() -> None:
    """Take the wish back, as when a new run begins."""
    _wish.clear()


def heed() -> None:
    """Called between two batches, when all that is finished is saved.

    Raises:
        Stopped: somebody asked for it.
    """
    if _wish.is_set():
        raise Stopped


def pause(seconds: float) -> None:
    """Wait, unless somebody asks to stop.

    Raises:
        Stopped: somebody did.
    """
    over = time.monotonic() + seconds
    heed()
    while (left := over - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK_S))  # and no wait for the event: a signal's handler sets it
        heed()
