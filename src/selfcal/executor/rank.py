"""One of several processes that train together: what torchrun starts (see `ranks`).

It finds the stage and runs its very function. All ranks do the steps; the first one alone writes
what the stage leaves, and tells the driver how it gets on. They talk through files in a room, a
folder of the driver's: `torchrun -m selfcal.executor.rank RUN STAGE FINGERPRINT ROOM TOKEN`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import TypeVar

from selfcal import stopping
from selfcal.errors import SelfcalError
from selfcal.executor.base import bring_inputs, perform, work_of
from selfcal.executor.handing import bring_own, hand_over
from selfcal.planning import open_run
from selfcal.quiet import hush
from selfcal.recipe import Recipe
from selfcal.remote import open_run_place
from selfcal.stage import Work
from selfcal.store import JSON, write_json

T = TypeVar("T")
PROGRESS, STOP, OUTCOME = "progress", "stop", "outcome.json"
"""In the room: steps done and in all, the driver's wish to stop, and what became of the stage."""
_PATIENCE = 0.2
"""Seconds between two looks for that wish."""


class Together(Work):
    """The door of a rank that is not the first: it reads, and writes nothing."""

    def write(self, name: str, records: Sequence[T], kind: type[T]) -> None:
        """Left to the first rank."""


def train(
    where: str,
    stage: str,
    fingerprint: str,
    progress: Callable[[int, int], None],
    token: str = "",
    apart: bool = False,
) -> dict[str, JSON]:
    """Do this rank's part of a training; gives what became of it (see `ranks.figures_of`).

    `token` is the driver's, for the store (`Place.token`). `apart`: the driver may be on another
    machine, and gets the files as `handing` says.

    Raises:
        Exception: the training broke in a way that another try may mend, as when a rank is gone.
    """
    try:
        place = open_run_place(where, token)
        recipe = open_run(place.run)
        work = work_of(recipe, place.run, stage, fingerprint)
        if os.environ["RANK"] == "0":
            work = replace(work, progress=progress)
        else:
            work = Together(**vars(work))
        bring_inputs(recipe, work)
        if apart:
            bring_own(work)
        found = _done(recipe, work)
        if apart and os.environ["RANK"] == "0":
            hand_over(work, found)
        return found
    except SelfcalError as error:  # no other try would mend it
        return {"error": type(error).__qualname__, "text": str(error)}
    except stopping.Stopped:  # on the way to the store; the others need not have come that far
        return {"stopped": True, "alone": True}


def _done(recipe: Recipe, work: Work) -> dict[str, JSON]:
    """What becomes of the stage, if nothing is wrong."""
    try:
        return {"figures": perform(recipe, work)}
    except stopping.Stopped:
        return {"stopped": True}
    except stopping.Again as why:
        return {"again": str(why)}


def settles(found: Mapping[str, JSON]) -> bool:
    """Whether it is for this rank to say so: the first one, or any without which none goes on."""
    jointly = {"figures", "stopped"} & set(found) and "alone" not in found
    return os.environ["RANK"] == "0" or not jointly


def take_place() -> None:
    """Take the GPU that is this rank's, where there are some."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def _tell(room: Path, done: int, total: int) -> None:
    new = room / f"{PROGRESS}.new"
    new.write_text(f"{done} {total}")
    new.replace(room / PROGRESS)


def _heed_driver(room: Path) -> None:
    """Ask to stop when the driver wishes it, and leave at once when the driver is gone.

    The driver holds the other end of standard input, which is closed with it: a rank that stayed
    behind would write beside the next one.
    """

    def wait() -> None:
        while not (room / STOP).exists():
            time.sleep(_PATIENCE)
        stopping.ask()

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    for task in (wait, watch):
        Thread(target=task, daemon=True).start()
    # a scheduler signals every process of a job
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.ask())


def main(run: str, stage: str, fingerprint: str, where: str, token: str) -> None:
    """Train, and leave word of what became of it."""
    room = Path(where)
    hush()
    _heed_driver(room)
    take_place()
    found = train(run, stage, fingerprint, lambda done, total: _tell(room, done, total), token)
    if settles(found):
        write_json(room / f"{os.environ['RANK']}-{OUTCOME}", found)
    sys.stderr.flush()
    # the libraries' own farewell aborts now and then, and nothing is left to do
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
