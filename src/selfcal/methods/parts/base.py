"""What the stages of all parts need: their share of a recipe, and how records are grouped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from selfcal.recipe import Recipe, Settings, Training
from selfcal.stage import Work, count_drops
from selfcal.store import JSON
from selfcal.types import Candidate, Drop, Judgment, Sample

if TYPE_CHECKING:
    from selfcal.train import Run, Trained

SPLITS = ("rft", "calibration", "dev", "test")
_REACHING = {"base_url", "api_key_env", "timeout", "retries"}
SERVER = {"endpoint": _REACHING}
"""Keys of a server's settings that do not change what it says."""


def part_of(recipe: Recipe, *names: str) -> dict[str, Any]:
    """The part of a recipe that a stage depends on."""
    values = {n: getattr(recipe, n) for n in names}
    return {n: v.model_dump() if isinstance(v, Settings) else v for n, v in values.items()}


def calibration_size(recipe: Recipe) -> int:
    """How many calibration samples an iteration gets."""
    return recipe.data.calibration // (1 if recipe.data.repeat else recipe.iterations)


def calibration_samples(recipe: Recipe, work: Work, t: int) -> list[Sample]:
    """The calibration samples of iteration `t`, counted from 1."""
    samples = work.samples("data", "calibration")
    return samples if recipe.data.repeat else samples[t - 1 :: recipe.iterations]


def by_sample(found: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Candidates by their sample's id."""
    own: dict[str, list[Candidate]] = defaultdict(list)
    for c in found:
        own[c.sample_id].append(c)
    return own


class InOrder:
    """Candidates of samples, part by part, when both come in the same order.

    So that not all candidates of a run are in memory at once.
    """

    def __init__(self, samples: Sequence[Sample], found: Iterable[Candidate]) -> None:
        """`found` has candidates of these samples alone, and of all of them."""
        self._place = {s.id: i for i, s in enumerate(samples)}
        self._groups = groupby(found, key=lambda c: c.sample_id)

    def of(self, part: Sequence[Sample]) -> list[list[Candidate]]:
        """Of samples that follow those of the last call; others in between are passed over."""
        own: list[list[Candidate]] = []
        while len(own) < len(part):
            sample_id, candidates = next(self._groups)
            if self._place[sample_id] >= self._place[part[0].id]:
                own.append(list(candidates))
        return own


class Following:
    """Records by sample, where samples are asked for in the records' order; some have none."""

    def __init__(self, judgments: Iterable[Judgment]) -> None:
        """Read from the first one."""
        self._groups = groupby(judgments, key=lambda g: g.sample_id)
        self._next = next(self._groups, None)

    def of(self, sample_id: str) -> list[Judgment]:
        """This sample's."""
        if self._next is None or self._next[0] != sample_id:
            return []
        own = list(self._next[1])
        self._next = next(self._groups, None)
        return own


def steps(settings: Training, rows: int) -> int:
    """Optimizer steps that a training on so many rows takes."""
    return settings.steps or max(1, round(rows * settings.epochs / settings.batch_size))


def training_run(recipe: Recipe, work: Work) -> Run:
    """Where and how a training of this stage runs."""
    from selfcal.train import Run

    return Run(
        work.out, work.integer_seed(), recipe.policy.device, recipe.policy.dtype, work.progress
    )


def training_stats(work: Work, trained: Trained) -> Mapping[str, JSON]:
    """What a training did, for the manifest; its drops are written."""
    work.write("drops", trained.drops, Drop)
    return {
        "steps": trained.steps,
        "rows": trained.rows,
        "drops": count_drops(trained.drops),
        "curve": [dict(row) for row in trained.curve],
    }
