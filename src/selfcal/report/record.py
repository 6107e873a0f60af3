"""A run's folder in; its recipe, its stages, and what their manifests and results say, out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, Field, ValidationError, field_validator

from selfcal.errors import StoreError, first_fault
from selfcal.lock import lock_holder
from selfcal.pipeline import Planned, locate, open_run
from selfcal.recipe import Recipe
from selfcal.store import MANIFEST, StageDir
from selfcal.types import Result

_LONGEST = 1e9
"""Seconds that a stage may have taken: some 30 years."""
_LARGEST = 1e15
"""Of the numbers in a manifest; larger ones no chart can show."""


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

    @cached_property
    def checkpoints(self) -> list[str]:
        """Measured ones, in order."""
        return list(dict.fromkeys(r.checkpoint for r in self.results))

    @cached_property
    def split(self) -> str:
        """The split that is shown: `test` where it was measured."""
        splits = {r.split for r in self.results}
        return "test" if "test" in splits or not splits else min(splits)

    def stats(self, stage: str) -> Mapping[str, Any]:
        """A finished stage's figures; nothing of one that is not finished."""
        found: Mapping[str, Any] = self.manifests[stage]["stats"] if stage in self.manifests else {}
        return found

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
    manifests = {name: _checked(p.folder) for name, p in done.items()}
    return Record(run, recipe, planned, manifests, tuple(results), lock_holder(run))


class _Manifest(BaseModel, strict=True):
    """What a report needs of a manifest."""

    written: AwareDatetime
    seconds: Annotated[float, Field(ge=0, le=_LONGEST)]
    stats: dict[str, Any]

    @field_validator("stats")
    @classmethod
    def _can_be_drawn(cls, stats: dict[str, Any]) -> dict[str, Any]:
        if any(abs(number) > _LARGEST for number in _numbers(stats)):
            raise ValueError("a number in it is too large")
        return stats


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a value of JSON."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list):
        for own in value.values() if isinstance(value, dict) else value:
            yield from _numbers(own)


def _checked(folder: StageDir) -> Mapping[str, Any]:
    """A stage's manifest.

    Raises:
        StoreError: it is damaged.
    """
    found = folder.manifest()
    try:
        _Manifest.model_validate_json(json.dumps(found))
    except ValidationError as error:
        raise StoreError(
            f"{folder.path / MANIFEST}: {first_fault(error)}; put a copy of the file back, or "
            "delete it and run the recipe again: the stage is redone"
        ) from None
    return found


def _uncertain(result: Result) -> Result:
    """A result with an error above 0: a share of none or all does not make it certain.

    Where all answers are alike their spread is 0. Then the error is that of the share with one
    answer of either kind added (Laplace's rule), which is about that of Wilson's interval.
    """
    if result.stderr != 0 or not result.n or result.value not in (0.0, 1.0):
        return result
    share = (result.value * result.n + 1) / (result.n + 2)
    return replace(result, stderr=math.sqrt(share * (1 - share) / result.n))
