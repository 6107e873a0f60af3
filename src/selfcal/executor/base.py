"""What every executor is, and how a process takes up a stage of a run."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from selfcal.errors import SelfcalError, StoreError
from selfcal.executor.refused import refused_writes
from selfcal.memory import release
from selfcal.planning import locate, needed
from selfcal.recipe import Recipe
from selfcal.remote import place_of
from selfcal.stage import Work
from selfcal.stopping import Again
from selfcal.store import JSON


class Executor(Protocol):
    """Does the work of stages."""

    def run(self, recipe: Recipe, work: Work) -> Mapping[str, JSON]:
        """Do a stage's work; gives its figures.

        Raises:
            SelfcalError: the stage failed in a foreseen way.
            Stopped: that was asked for; what is finished is kept.
        """
        ...


def perform(recipe: Recipe, work: Work) -> Mapping[str, JSON]:
    """Run a stage's function in this process; gives its figures.

    Raises:
        Again: the stage shall be run again, in a process that holds nothing of this attempt.
        StoreError: the system refused a write.
    """
    _seed_libraries(work.integer_seed(), recipe.threads)
    with refused_writes(work.folder.path):
        return work.stage.run(work)


def perform_again(recipe: Recipe, work: Work) -> Mapping[str, JSON]:
    """As `perform`, as often as the stage wants to be run again."""
    while True:
        try:
            return perform(recipe, work)
        except Again as why:
            note(str(why))
        gc.collect()  # only now is nothing held of what did not fit
        release()


def note(text: str) -> None:
    """Tell people a line, once."""
    print(text, file=sys.stderr)


def rebuilt(kind: str, text: str, other: type[SelfcalError] = SelfcalError) -> SelfcalError:
    """The error of another process, of the class that it had there.

    Args:
        kind: the class's `__qualname__`.
        text: for people.
        other: the class where this process knows none of that name.
    """
    found = {known.__qualname__: known for known in _kinds(SelfcalError)}.get(kind, other)
    error = found.__new__(found)
    Exception.__init__(error, text)
    return error


def _kinds(kind: type[SelfcalError]) -> Iterator[type[SelfcalError]]:
    """A class of errors, and all below it that this process knows."""
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def work_of(
    recipe: Recipe,
    run: Path,
    stage: str,
    fingerprint: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Work:
    """A stage of a run, as another process takes it up.

    Raises:
        StoreError: the run's recipe has no such stage, or one with another fingerprint, as when
            code and files of two versions meet.
    """
    planned = locate(recipe, run)
    folders = {p.stage.name: p.folder for p in planned}
    for p in planned:
        if p.stage.name == stage and p.folder.fingerprint == fingerprint:
            inputs = {name: folders[name] for name in p.stage.inputs}
            saved = place_of(run).saved
            return Work(run, p.stage, p.folder, inputs, recipe.seed, progress, saved)
    raise StoreError(
        f"{run}: stage {stage} is not {fingerprint} here: every machine needs the same selfcal and "
        "the same model and data files, by the same paths"
    )


def bring_inputs(recipe: Recipe, work: Work) -> None:
    """Bring what a stage reads to this machine, where the run lies on a store.

    Raises:
        StoreError: something of it is damaged or missing, or the store cannot be reached.
    """
    place = place_of(work.run)
    for folder in needed(work.stage, locate(recipe, work.run)).values():
        place.needs(folder)


def _seed_libraries(seed: int, threads: int | None) -> None:
    """Seed what libraries draw from globally, so that a resumed run equals an undisturbed one."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)
