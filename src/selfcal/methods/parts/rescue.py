"""Samples that give no pair because no candidate stands out: what a weak model leaves most of.

Pairwise scores say which candidate is better, not whether any is good: where all are poor, they are
all alike, and the sample is dropped (`curate.weak: drop`). Two ways to win a pair all the same: the
teacher's RAP as chosen, if the judge finds it better than what the policy says (`teacher`), or a
second search with more candidates at a higher temperature (`widen`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from selfcal.methods.parts.base import by_workers, calibration_size, form_of, reads, rule_of, spent
from selfcal.methods.parts.correcting import Correct, calibration_stage, correction
from selfcal.methods.parts.facts import insist_on_facts, told
from selfcal.methods.parts.judges import Judging, judging
from selfcal.methods.parts.pairing import likeliest
from selfcal.methods.parts.scoring import curate_sample, judgments, pairs
from selfcal.methods.parts.search import candidates
from selfcal.methods.parts.writing import requests, teacher_of, teacher_settings
from selfcal.recipe import Recipe, RecipeError
from selfcal.stage import Shards, Stage, Work
from selfcal.store import JSON
from selfcal.types import Candidate, Drop, Judgment, PreferencePair, Sample, WrittenRap

if TYPE_CHECKING:
    from selfcal.judge.scorer import Judge
    from selfcal.teacher import Teacher

_SHARD = 64
_WEAK = {"one-candidate", "no-gap", "below-margin"}
"""Reasons of curation that a better response could do away with."""


def weak(recipe: Recipe, t: int, start: str | None) -> list[Stage]:
    """The stages that win pairs from samples without one; the last one has the pairs."""
    if recipe.curate.weak == "teacher":
        return [_taught(recipe, t, judging(recipe))]
    if recipe.curate.weak == "widen":
        search = recipe.search
        by, place = recipe.curate.widen, f"iter-{t}/wider"
        update = {
            "candidates": round(search.candidates * by),
            "temperature": search.temperature * math.sqrt(by),
        }
        wide = recipe.model_copy(update={"search": search.model_copy(update=update)})
        return [
            candidates(wide, t, start, again=(place, f"iter-{t}/pairs", weak_samples)),
            judgments(wide, t, place=place),
            pairs(wide, t, place=place),
        ]
    return []


def refuse_weak(recipe: Recipe) -> None:
    """For a method that judges and has no remedy for weak samples.

    Raises:
        RecipeError: the recipe wants one.
    """
    if recipe.curate.weak != "drop":
        raise RecipeError(
            f"recipe {recipe.name}: curate.weak: method {recipe.method!r} has no remedy for weak "
            "samples; leave it out"
        )


def weak_samples(work: Work, source: str, samples: Sequence[Sample]) -> list[Sample]:
    """Those of the samples that curation, stage `source`, found too weak for a pair."""
    found = {d.sample_id for d in work.read(source, "drops", Drop) if d.reason in _WEAK}
    return [s for s in samples if s.id in found]


def _taught(recipe: Recipe, t: int, judge: Judging) -> Stage:
    """The teacher's RAP against the policy's likeliest response, if the judge agrees."""
    source, searched = f"iter-{t}/pairs", f"iter-{t}/candidates"
    fitted = calibration_stage(recipe, t)

    def run(work: Work) -> Mapping[str, JSON]:
        every = work.samples(told(recipe), "calibration")
        insist_on_facts(recipe, work.stage.name, every)
        samples = weak_samples(work, source, every)
        ids = {s.id for s in samples}
        own: dict[str, list[Candidate]] = {}
        for c in work.records(searched, "candidates", Candidate):
            if c.sample_id in ids:
                own.setdefault(c.sample_id, []).append(c)
        who, loaded = teacher_of(recipe, work), cache(lambda: judge.load(work))
        correct = correction(work.inputs, fitted)

        def rescue(part: Sequence[Sample]) -> Shards:
            return _rescue(recipe, who, loaded(), [(s, own[s.id]) for s in part], correct)

        work.map(samples, _SHARD, rescue)
        return {
            "pairs": work.written("pairs", PreferencePair),
            "drops": work.drop_counts(),
            "judgments": work.written("judgments", Judgment),
            **spent(work),
        }

    asking = {**judge.settings, "abstain": recipe.judge.abstain}
    depends = {"teacher": teacher_settings(recipe, "rationale"), "judge": asking}
    depends |= rule_of(recipe)
    return Stage(
        f"iter-{t}/taught/pairs", (told(recipe), source, searched, *judge.inputs, *reads(fitted)),
        depends, run,
        calibration_size(recipe), "samples", "the teacher's RAP where no candidate stands out",
        "here" if judge.served else by_workers(judge.loads, recipe.teacher),
    )  # fmt: skip


Ask = tuple[Sample, Candidate, Candidate]
"""A sample, the teacher's RAP, and the policy's likeliest response."""


def _rescue(
    recipe: Recipe,
    who: Teacher,
    judge: Judge,
    weak: Sequence[tuple[Sample, list[Candidate]]],
    correct: Correct,
) -> Shards:
    """Pairs of weak samples, why there are none, and all that was written and asked for them."""
    from selfcal.judge.scorer import all_comparisons
    from selfcal.teacher import rewrite

    written, drops = rewrite(who, [s for s, _ in weak], requests(recipe), form_of(recipe))
    texts = {r.sample_id: r.text for r in written}
    asks = [(s, _rap(own, texts[s.id]), likeliest(own)) for s, own in weak if s.id in texts]
    sure = [ask for ask in asks if ask[0].confidence >= recipe.judge.abstain]
    asked = judge.judge([c for s, *rivals in sure for c in all_comparisons(s, rivals)])
    own = {s.id: [g for g in asked if g.sample_id == s.id] for s, _, _ in asks}
    outcomes = [_outcome(recipe, ask, correct(own[ask[0].id])) for ask in asks]
    return {
        "pairs": (PreferencePair, [o for o in outcomes if isinstance(o, PreferencePair)]),
        "drops": (Drop, drops + [o for o in outcomes if isinstance(o, Drop)]),
        "written": (WrittenRap, written),
        "judgments": (Judgment, asked),
    }


def _rap(own: Sequence[Candidate], text: str) -> Candidate:
    """The teacher's response as one more candidate."""
    return Candidate(own[0].sample_id, max(c.index for c in own) + 1, text, (), (), (), True)


def _outcome(recipe: Recipe, ask: Ask, asked: Sequence[Judgment]) -> PreferencePair | Drop:
    sample, rap, said = ask
    outcome = curate_sample(recipe, [rap, said], asked, sample.confidence)
    if isinstance(outcome, PreferencePair) and outcome.chosen_index == rap.index:
        return outcome
    unread = isinstance(outcome, Drop) and outcome.reason == "unscored"
    return Drop(sample.id, "pairs", "unscored" if unread else "teacher-no-better")
