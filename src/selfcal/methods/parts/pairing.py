"""Preference pairs out of whatever a method goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from selfcal.methods.parts.base import calibration_size
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work
from selfcal.store import JSON
from selfcal.types import Candidate, Drop, PreferencePair, Sample

Decide = Callable[[Sample, Sequence[Candidate]], PreferencePair | Drop]


def pairs_by(recipe: Recipe, t: int, decide: Decide, about: str, settings: object = None) -> Stage:
    """Pairs of candidates, decided sample by sample.

    Args:
        recipe: the recipe.
        t: the iteration.
        decide: from a sample and its candidates the pair, or why there is none.
        about: one line for people.
        settings: what the decision depends on.
    """

    def run(work: Work) -> Mapping[str, JSON]:
        samples = {s.id: s for s in work.samples("data", "calibration")}
        found = work.records(f"iter-{t}/candidates", "candidates", Candidate)
        groups = groupby(found, key=lambda c: c.sample_id)
        return write_pairs(work, (decide(samples[name], list(own)) for name, own in groups))

    inputs = ("data", f"iter-{t}/candidates")
    depends = {"method": recipe.method, "own": settings}  # who decides is no setting of its own
    n = calibration_size(recipe)
    return Stage(f"iter-{t}/pairs", inputs, depends, run, n, "samples", about)


def write_pairs(work: Work, outcomes: Iterable[PreferencePair | Drop]) -> Mapping[str, JSON]:
    """Write pairs and drops; gives their figures."""
    made, drops = work.writer("pairs", PreferencePair), work.writer("drops", Drop)
    count, margin = 0, 0.0
    for outcome in outcomes:
        if isinstance(outcome, Drop):
            drops.add(outcome)
        else:
            made.add(outcome)
            count, margin = count + 1, margin + outcome.margin
    made.end()
    drops.end()
    mean = round(margin / max(1, count), 4)
    return {"pairs": count, "drops": work.drop_counts(), "mean_margin": mean}


def pair(
    chosen: Candidate, rejected: Candidate, scores: tuple[float, float] = (1.0, 0.0)
) -> PreferencePair:
    """The pair of two candidates and their scores."""
    return PreferencePair(
        chosen.sample_id, chosen.text, rejected.text, chosen.index, rejected.index, *scores
    )


def likeliest(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the best log-probability; of equals the first."""
    return max(candidates, key=lambda c: (c.logprob, -c.index))
