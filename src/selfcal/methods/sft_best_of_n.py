"""Best of n: fine-tuning on the judge's best candidate, without preferences.

RAFT (Reward rAnked FineTuning, TMLR 2023, arXiv 2304.06767). Kept: the best of several of the
policy's own responses becomes training data for SFT, round after round; every prompt gives one,
even where all candidates are poor. Changed: the reward is the R-Scorer's score over pairs, the
candidates come from SRC's search, and each round takes as many steps as SRC's DPO would. What SRC
gains over this is owed to the rejected responses.
"""

from __future__ import annotations

from collections.abc import Mapping

from selfcal.methods import parts
from selfcal.methods.parts.base import BySample, calibration_size, reads
from selfcal.methods.parts.correcting import calibration_stage, correction
from selfcal.methods.parts.scoring import scores_of
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work, count_drops
from selfcal.store import JSON
from selfcal.types import Candidate, Drop, Judgment, WrittenRap


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of the method.

    Raises:
        RecipeError: the recipe wants what only SRC has.
    """
    parts.refuse_weak(recipe)

    def iteration(t: int, start: str | None) -> list[Stage]:
        return [
            parts.candidates(recipe, t, start),
            parts.judgments(recipe, t),
            *parts.fresh_calibration(recipe, t),
            _best(recipe, t),
            parts.best_fine_tuning(recipe, t, start),
        ]

    return parts.loop(recipe, iteration, parts.r_scorer(recipe), trained="sft")


def _best(recipe: Recipe, t: int) -> Stage:
    searched, judged = f"iter-{t}/candidates", f"iter-{t}/judgments"
    fitted = calibration_stage(recipe, t)

    def run(work: Work) -> Mapping[str, JSON]:
        correct = correction(work.inputs, fitted)
        best: list[WrittenRap] = []
        drops: list[Drop] = []
        found = BySample(work.inputs[searched], "candidates", Candidate)
        asked = BySample(work.inputs[judged], "judgments", Judgment, found)
        for name in found:
            own = found.of(name)
            scores = scores_of(recipe, own, correct(asked.of(name)))
            if len(own) > 1 and not scores:
                drops.append(Drop(name, "best", "unscored"))
                continue
            top = max(own, key=lambda c: (round(scores.get(c.index, 0.0), 9), c.logprob, -c.index))
            best.append(WrittenRap(name, top.text))
        work.write("best", best, WrittenRap)
        work.write("drops", drops, Drop)
        return {"best": len(best), "drops": count_drops(drops)}

    depends = {"aggregator": recipe.curate.aggregator}
    return Stage(
        f"iter-{t}/best", (searched, judged, *reads(fitted)), depends, run,
        calibration_size(recipe), "samples", "the judge's best candidates",
    )  # fmt: skip
