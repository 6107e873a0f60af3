"""Runs of the smallest size, who is told how they go, and what they leave."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from selfcal.methods.parts.search import ENGINE
from selfcal.pipeline import locate, pin
from selfcal.recipe import Recipe, load_recipe
from selfcal.stage import Stage
from selfcal.store import StageDir
from selfcal.types import Sample

RECIPE = Path(__file__).parents[2] / "recipes" / "miniworld-src.yaml"
SMALL = (
    "data.rft=40", "data.calibration=24", "data.repeat=false", "data.dev=8", "data.test=8",
    "rft.steps=2", "judge.samples=24", "judge.train.steps=2", "dpo.steps=2", "iterations=2",
    "curate.margin=0", "threads=1",
)  # fmt: skip
PARTS = "selfcal.methods.parts"
SHARDS = {"search": 8, "scoring": 5, "judges": 5, "measure": 10}
"""Rows a shard, by module of `PARTS`."""
"""So that every sharded stage has several."""


def small_shards() -> None:
    """Part the stages of this process so."""
    for name, size in SHARDS.items():
        import_module(f"{PARTS}.{name}")._SHARD = size


def be_a_worker() -> None:
    """As `small_shards`; wait before a shard is sealed, as long as a file `pause` is in the run."""
    small_shards()
    seal = StageDir.seal

    def sealing(self: StageDir, *args: Any) -> None:
        run = self.path.parents[1]
        if (run / "pause").exists():
            (run / f"paused-{os.getpid()}").touch()
        while (run / "pause").exists():
            time.sleep(0.05)
        seal(self, *args)

    StageDir.seal = sealing  # type: ignore[method-assign]


def small(*more: str) -> Recipe:
    """The shipped recipe, as small as it goes."""
    return pin(load_recipe(RECIPE, [*SMALL, *more]))


@dataclass
class Told:
    """A reporter that remembers."""

    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    moved: list[tuple[int, int]] = field(default_factory=list)
    mended: dict[str, list[str]] = field(default_factory=dict)
    noted: list[str] = field(default_factory=list)

    def begins(self, stage: Stage, number: int, of: int) -> None:
        self.begun.append(stage.name)

    def moves(self, done: int, total: int) -> None:
        self.moved.append((done, total))

    def ends(self, stage: Stage, stats: Mapping[str, Any], seconds: float) -> None:
        self.ended.append(stage.name)

    def skips(self, stage: Stage, reused: bool) -> None:
        (self.reused if reused else self.skipped).append(stage.name)

    def mends(self, stage: Stage, names: Sequence[str]) -> None:
        self.mended[stage.name] = list(names)

    def notes(self, line: str) -> None:
        self.noted.append(line)


class Near(float):
    """A number that equals another one up to the rounding of a model's arithmetic.

    A resumed search has other samples side by side in a batch.
    """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, float):
            return False
        if math.isnan(self) or math.isnan(other):  # a share of nothing
            return math.isnan(self) and math.isnan(other)
        return math.isclose(self, other, abs_tol=2e-4)

    __hash__ = None  # type: ignore[assignment]


def near(value: Any) -> Any:
    """The same value with `Near` in place of its floats."""
    if isinstance(value, float):
        return Near(value)
    if isinstance(value, dict):
        return {k: near(v) for k, v in value.items()}
    return [near(v) for v in value] if isinstance(value, list | tuple) else value


def outcome(recipe: Recipe, run: Path) -> dict[str, dict[str, Any]]:
    """What a finished run holds: records, digests of other files, and the figures, by stage."""
    found = {}
    for p in locate(recipe, run):
        assert p.folder.done, p.stage.name
        assert p.folder.verify() == [], p.stage.name
        manifest = p.folder.manifest()
        files = {
            name: near(pq.read_table(p.folder.path / name).to_pylist())
            if name.endswith(".parquet")
            else entry["sha256"]
            for name, entry in manifest["files"].items()
            # PEFT writes the path of its base there, and sets in any order
            if name not in ("adapter/README.md", "adapter/adapter_config.json")
        }
        stats = {k: v for k, v in manifest["stats"].items() if k != ENGINE}
        found[p.stage.name] = {"files": files, "stats": near(stats)}
    return found


@dataclass(frozen=True)
class Undisturbed:
    """The run that every other one is compared with."""

    recipe: Recipe
    run: Path
    told: Told
    outcome: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Kept:
    """What a run has kept, stage by stage."""

    recipe: Recipe
    run: Path

    def read(self, stage: str, name: str, kind: type[Any]) -> list[Any]:
        (folder,) = [p.folder for p in locate(self.recipe, self.run) if p.stage.name == stage]
        return folder.read(name, kind)

    def stats(self, stage: str) -> dict[str, Any]:
        (folder,) = [p.folder for p in locate(self.recipe, self.run) if p.stage.name == stage]
        return folder.manifest()["stats"]


@dataclass(frozen=True)
class Finished(Kept):
    """A finished run, and what it told on its way."""

    told: Told

    @property
    def samples(self) -> dict[str, Sample]:
        """The calibration samples, in order."""
        return {s.id: s for s in self.read("data", "calibration", Sample)}
