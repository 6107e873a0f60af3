"""Stages 3 and 4 of SRC: judgments of candidates, and preference pairs out of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from selfcal.curate import AGGREGATORS, Aggregator, Scores, curate, merge_orders
from selfcal.methods.parts.base import BySample, by_workers, calibration_size, reads, rule_of
from selfcal.methods.parts.correcting import calibration_stage, correction
from selfcal.methods.parts.facts import insist_on_facts, told
from selfcal.methods.parts.judges import Judging, judging, reading_figures, readings_of
from selfcal.methods.parts.pairing import write_pairs
from selfcal.recipe import Recipe
from selfcal.stage import Shards, Stage, Work
from selfcal.store import JSON
from selfcal.types import Candidate, Drop, Judgment, PreferencePair, Sample

if TYPE_CHECKING:
    from selfcal.adaptive import Schedule
    from selfcal.judge.scorer import Judge

_SHARD = 64


def judgments(recipe: Recipe, t: int, judge: Judging | None = None, place: str = "") -> Stage:
    """Pairs of candidates in both orders: all of them, or those that can still matter.

    Args:
        recipe: the recipe.
        t: the iteration.
        judge: who compares; by default the recipe's own.
        place: what stands before the stages' names; by default the iteration's.
    """
    who, place = judge or judging(recipe), place or f"iter-{t}"
    searched = f"{place}/candidates"

    def run(work: Work) -> Mapping[str, JSON]:
        every = work.samples(told(recipe), "calibration")
        insist_on_facts(recipe, work.stage.name, every)
        known = {s.id for s in every}
        found = BySample(work.inputs[searched], "candidates", Candidate, known)
        samples = [s for s in every if s.id in found]
        loaded = cache(lambda: who.load(work))

        def score(part: Sequence[Sample]) -> Shards:
            asks = [(s, found.of(s.id)) for s in part]
            made = {"judgments": (Judgment, _ask(recipe, loaded, asks))}
            return {**made, **(readings_of(loaded()) if who.served else {})}

        work.map(samples, _SHARD, score)
        figures = _judgment_figures(work, searched)
        return {**figures, **(reading_figures(work) if who.served else {})}

    depends = {**who.settings, "abstain": recipe.judge.abstain}
    if recipe.judge.schedule != "full":
        depends["schedule"] = recipe.judge.schedule
    if recipe.judge.schedule == "adaptive":
        depends |= rule_of(recipe)
    return Stage(
        f"{place}/judgments", (told(recipe), searched, *who.inputs), depends, run,
        calibration_size(recipe), "samples", "pairwise scoring",
        "here" if who.served else by_workers(who.loads),
    )  # fmt: skip


def _ask(
    recipe: Recipe, judge: Callable[[], Judge], asks: Sequence[tuple[Sample, list[Candidate]]]
) -> list[Judgment]:
    """The judgments of some samples' candidates; none where the facts are too uncertain."""
    from selfcal.adaptive import compare
    from selfcal.judge.scorer import all_comparisons, one_order

    sure = [(s, own) for s, own in asks if s.confidence >= recipe.judge.abstain]
    if recipe.judge.schedule == "adaptive":
        return compare(judge(), sure, schedule(recipe))
    every = all_comparisons if recipe.judge.schedule == "full" else one_order
    return judge().judge([c for sample, own in sure for c in every(sample, own)])


def schedule(recipe: Recipe) -> Schedule:
    """The adaptive schedule under a recipe's rule of curation."""
    from selfcal.adaptive import Schedule

    aggregate, rule = AGGREGATORS[recipe.curate.aggregator], recipe.curate
    return Schedule(lambda g: aggregate(merge_orders(g)), rule.margin, rule.tie)


def _judgment_figures(work: Work, searched: str) -> dict[str, JSON]:
    verdicts = Counter(work.folder.column("judgments", Judgment, "verdict"))
    sizes = Counter(work.column(searched, "candidates", Candidate, "sample_id"))
    asked, every = verdicts.total(), sum(n * (n - 1) for n in sizes.values())
    share = round(asked / max(1, every), 4)
    return {"judgments": asked, "unscored": verdicts[None], "share_of_all": share}


def curate_sample(
    recipe: Recipe, own: Sequence[Candidate], asked: Sequence[Judgment], confidence: float = 1.0
) -> PreferencePair | Drop:
    """The preference pair of one sample, or why there is none.

    `confidence` is that of the sample's facts; scores count as much, if the recipe weighs them.
    """
    judged, rule = [*asked, *unasked(recipe, own, asked)], recipe.curate
    made, dropped = curate(own, judged, _aggregator(recipe, confidence), rule.margin, rule.tie)
    return made[0] if made else dropped[0]


def scores_of(
    recipe: Recipe, own: Sequence[Candidate], asked: Sequence[Judgment], confidence: float = 1.0
) -> Scores:
    """What each candidate of one sample counts when `curate_sample` makes the same of it."""
    judged = [*asked, *unasked(recipe, own, asked)]
    return _aggregator(recipe, confidence)(merge_orders(judged))


def _aggregator(recipe: Recipe, confidence: float) -> Aggregator:
    aggregate = AGGREGATORS[recipe.curate.aggregator]
    weight = confidence if recipe.curate.weigh_facts else 1.0
    return lambda comparisons: {i: weight * s for i, s in aggregate(comparisons).items()}


def unasked(recipe: Recipe, own: Sequence[Candidate], asked: Sequence[Judgment]) -> list[Judgment]:
    """What the comparisons that were not asked would most plausibly have said."""
    if recipe.judge.schedule != "adaptive":
        return []
    from selfcal.adaptive import imputed

    return imputed(own, asked)


def pairs(recipe: Recipe, t: int, place: str = "") -> Stage:
    """Aggregate the judgments into one preference pair a sample; `place` as for `judgments`."""
    place = place or f"iter-{t}"
    searched, judged = f"{place}/candidates", f"{place}/judgments"
    fitted = calibration_stage(recipe, t)

    def run(work: Work) -> Mapping[str, JSON]:
        correct = correction(work.inputs, fitted)
        found = BySample(work.inputs[searched], "candidates", Candidate)
        asked = BySample(work.inputs[judged], "judgments", Judgment, found)
        sure = {s.id: s.confidence for s in work.read("data", "calibration", Sample)}
        return write_pairs(
            work,
            (
                curate_sample(recipe, found.of(name), correct(asked.of(name)), sure[name])
                for name in found
            ),
        )

    depends = rule_of(recipe) | {"schedule": recipe.judge.schedule}
    return Stage(
        f"{place}/pairs", ("data", searched, judged, *reads(fitted)), depends, run,
        calibration_size(recipe), "samples", "confidence-weighted curation",
    )  # fmt: skip
