"""Verdicts corrected before they count: which correction a recipe wants, and where it is fitted.

Judgments are stored as the judge gave them, so that an audit sees the judge and not its remedy;
curation corrects what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from selfcal.methods.parts.base import by_sample, by_workers, spent
from selfcal.methods.parts.facts import insist_on_facts, told
from selfcal.methods.parts.judges import (
    judging,
    label_giver,
    label_settings,
    labels_at_once,
    learned_figures,
)
from selfcal.recipe import Recipe
from selfcal.stage import Shards, Stage, Work
from selfcal.store import JSON, StageDir
from selfcal.types import Candidate, Drop, Judgment, LabelledPair, Sample

_SHARD = 16
Correct = Callable[[Sequence[Judgment]], Sequence[Judgment]]


def calibration_stage(recipe: Recipe, t: int) -> str | None:
    """The stage that fits what corrects the verdicts of iteration `t`, if any does."""
    places = {"once": "judge/calibration", "each": f"iter-{t}/calibration"}
    return places.get(recipe.judge.calibrate)


def correction(folders: Mapping[str, StageDir], stage: str | None) -> Correct:
    """What corrects the judgments of a sample: the fit of a finished stage; nothing without one."""
    if stage is None:
        return lambda judgments: judgments
    from selfcal.judge.calibration import Calibration, remedied

    folder = folders[stage]
    found = Calibration.from_json(folder.manifest()["stats"]["calibration"], str(folder.path))
    return lambda judgments: remedied(judgments, found)


def fresh_calibration(recipe: Recipe, t: int) -> list[Stage]:
    """Labels for pairs of this iteration's candidates, and the correction that they teach."""
    if recipe.judge.calibrate != "each":
        return []
    settings, who, searched = recipe.judge, judging(recipe), f"iter-{t}/candidates"

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.judge.training import label_pairs

        own = by_sample(work.read(searched, "candidates", Candidate))
        every = work.samples(told(recipe), "calibration")
        insist_on_facts(recipe, work.stage.name, every)
        sure = [s for s in every if s.confidence >= settings.abstain]
        able = [s for s in sure if len(own.get(s.id, ())) > 1]
        samples = able[:: max(1, len(able) // settings.calibration_samples)]
        giver, key, at_once = label_giver(recipe, work), work.rng_key(), labels_at_once(recipe)

        def label(part: Sequence[Sample]) -> Shards:
            pairs, drops = label_pairs(giver, part, own, settings.pairs_per_sample, key, at_once)
            return {"labelled": (LabelledPair, work.stored(pairs)), "drops": (Drop, drops)}

        work.map(samples[: settings.calibration_samples], _SHARD, label)
        pairs = work.folder.read("labelled", LabelledPair)
        drops = work.drop_counts()
        figures = learned_figures(who.load(work), work.shown(pairs))
        return {"labelled": len(pairs), "drops": drops, **figures, **spent(work)}

    depends = {**who.settings, "samples": settings.calibration_samples}
    depends |= {"pairs": settings.pairs_per_sample, "abstain": settings.abstain}
    depends["labels"] = label_settings(recipe, "compare")
    return [
        Stage(
            f"iter-{t}/calibration", (told(recipe), searched, *who.inputs), depends, run,
            settings.calibration_samples, "samples", "calibration of the verdicts",
            by_workers(False, settings.labels),
        )
    ]  # fmt: skip
