"""Visual facts, where samples have none and a text judge will go by them: the teacher writes them.

The stage hands on the samples that are judged, with their facts. Who judges, labels or grades by
facts reads its samples from here (`told`); samples that came with facts keep their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from selfcal.errors import SelfcalError
from selfcal.methods.parts.base import by_workers, spent, trained_on
from selfcal.methods.parts.writing import requests, teacher_of, teacher_settings
from selfcal.recipe import Recipe
from selfcal.stage import Shards, Stage, Work, count_drops
from selfcal.store import JSON
from selfcal.types import Drop, Sample

if TYPE_CHECKING:
    from selfcal.teacher import Teacher

_SHARD = 32


def told(recipe: Recipe) -> str:
    """The stage from which those read samples who go by their facts."""
    teaches = recipe.teacher.kind != "miniworld"  # which knows that world, whose facts are known
    return "facts" if teaches and _by_facts(recipe) else "data"


def insist_on_facts(recipe: Recipe, stage: str, samples: Sequence[Sample]) -> None:
    """See that those who go by facts, in this stage, have some to go by.

    Raises:
        SelfcalError: the judge is a text judge, and no sample has facts: it would judge blind.
    """
    if not _by_facts(recipe) or not samples or any(s.facts.strip() for s in samples):
        return
    raise SelfcalError(
        f"{stage}: none of {len(samples)} samples has facts (such as {samples[0].id!r}), and facts "
        "are all that a text judge goes by; give the column `facts`, a teacher that writes them "
        "(teacher.kind `endpoint` or `local`, or a `file` with facts), or a judge that is shown "
        "the images (judge.sees)"
    )


def _by_facts(recipe: Recipe) -> bool:
    """Whether judge and label giver go by facts alone that are not known beforehand."""
    judge = recipe.judge
    reads = judge.kind in ("rscorer", "endpoint") and not judge.sees
    return reads and not recipe.data.miniworld


def facts(recipe: Recipe) -> list[Stage]:
    """The stage of that name, if this recipe has one."""
    if told(recipe) == "data":
        return []
    asks = recipe.judge.kind == "rscorer" and recipe.judge.labels.kind != "file"
    n = trained_on(recipe) if asks else 0

    def run(work: Work) -> Mapping[str, JSON]:
        who = teacher_of(recipe, work)
        splits = {"rft": n, "calibration": recipe.data.calibration}
        items = [item for split, k in splits.items() if k for item in _items(work, split)[:k]]

        def write(part: Sequence[Item]) -> Shards:
            with ThreadPoolExecutor(requests(recipe)) as pool:
                found = list(pool.map(lambda item: _noted(who, item), part))
            done = list(zip(part, found, strict=True))
            own = {name: [s for item, s in done if item.split == name] for name in splits}
            bare = [Drop(s.id, "facts", "no-facts") for s in found if not s.facts]
            return {**{n: (Sample, samples) for n, samples in own.items()}, "drops": (Drop, bare)}

        work.map(items, _SHARD, write)
        had = sum(bool(item.sample.facts.strip()) for item in items)
        drops = work.folder.read("drops", Drop)
        figures = {"samples": len(items), "written": len(items) - had - len(drops)}
        return {**figures, "drops": count_drops(drops), **spent(work)}

    depends = teacher_settings(recipe, "facts") | {"rft": n}
    size = n + recipe.data.calibration
    about = "the teacher writes down what is to be seen"
    may = by_workers(False, recipe.teacher)
    return [Stage("facts", ("data",), depends, run, size, "samples", about, may)]


@dataclass(frozen=True, slots=True)
class Item:
    """A sample that may lack facts."""

    split: str
    sample: Sample
    """As it is written: its images by their paths in the run."""
    found: Sample
    """With the paths by which its images are read."""


def _items(work: Work, split: str) -> list[Item]:
    every = zip(work.read("data", split, Sample), work.samples("data", split), strict=True)
    return [Item(split, sample, found) for sample, found in every]


def _noted(who: Teacher, item: Item) -> Sample:
    """The sample with its own facts, or with those that the teacher writes."""
    if item.sample.facts.strip():
        return item.sample
    return replace(item.sample, facts=who.write_facts(item.found).strip())
