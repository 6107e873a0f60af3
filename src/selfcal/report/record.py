"""A run's folder in; its recipe, its stages, and what their manifests and results say, out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfcal.lock import lock_holder
from selfcal.pipeline import Planned, locate, open_run
from selfcal.recipe import Recipe
from selfcal.types import Result


@dataclass(frozen=True)
class Record:
    """What is known of a run, finished or not; each file is read once."""

    run: Path
    recipe: Recipe
    planned: Mapping[str, Planned]
    """All stages, in order."""
    manifests: Mapping[str, Mapping[str, Any]]
    """Of the finished stages, in order."""
    results: tuple[Result, ...]
    """In the order of the checkpoints; a share of none or all with the error that it has."""
    holder: str
    """The process that works on it, in words; empty if there is none."""

    @property
    def missing(self) -> list[str]:
        """Stages that are not finished, in order."""
        return [name for name in self.planned if name not in self.manifests]

    @property
    def planned_measurements(self) -> bool:
        """Whether the run measures anything."""
        return any(name.startswith("eval/") for name in self.planned)

    @property
    def checkpoints(self) -> list[str]:
        """Measured ones, in order."""
        return list(dict.fromkeys(r.checkpoint for r in self.results))

    @property
    def split(self) -> str:
        """The split that is shown: `test` where it was measured."""
        splits = {r.split for r in self.results}
        return "test" if "test" in splits or not splits else min(splits)

    def stats(self, stage: str) -> Mapping[str, Any]:
        """A finished stage's figures; nothing of one that is not finished."""
        found = self.manifests[stage]["stats"] if stage in self.manifests else {}
        return found if isinstance(found, Mapping) else {}

    def found(self, split: str, category: str) -> dict[tuple[str, str], Result]:
        """Results by checkpoint and metric."""
        own = [r for r in self.results if (r.split, r.category) == (split, category)]
        return {(r.checkpoint, r.metric): r for r in own}


def read_record(run: Path) -> Record:
    """Read what a run's manifests and results say.

    Raises:
        SelfcalError: the folder is no run, or a file of it is damaged.
    """
    recipe = open_run(run)
    planned = {p.stage.name: p for p in locate(recipe, run)}
    done = {name: p for name, p in planned.items() if p.folder.done}
    results = [
        _uncertain(r)
        for name, p in done.items()
        if name.startswith("eval/")
        for r in p.folder.read("results", Result)
    ]
    manifests = {name: p.folder.manifest() for name, p in done.items()}
    return Record(run, recipe, planned, manifests, tuple(results), lock_holder(run))


def _uncertain(result: Result) -> Result:
    """A result with an error above 0: a share of none or all does not make it certain.

    Where all answers are alike their spread is 0. Then the error is that of the share with one
    answer of either kind added (Laplace's rule), which is about that of Wilson's interval.
    """
    if result.stderr != 0 or not result.n or result.value not in (0.0, 1.0):
        return result
    share = (result.value * result.n + 1) / (result.n + 2)
    return replace(result, stderr=math.sqrt(share * (1 - share) / result.n))
