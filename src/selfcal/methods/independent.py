"""SRC with independent scores in place of pairwise ones: the R-Scorer's ablation.

SRC (ICML 2025, arXiv 2509.13919) reports that pairwise scoring beats independent scoring by 6.4
points on fine-grained perception. Kept: all of SRC but the scores: the same base model, trained on
the very responses of the R-Scorer's labelled pairs, graded one by one by the same label-giving
judge. A candidate's score is how much likelier it is to be good than the others. The paper does not
say how its independent scorer was trained; a grade is yes or no here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from selfcal.methods import parts
from selfcal.methods.parts.base import (
    by_workers,
    outcome_of,
    spent,
    spread,
    trained_on,
    training_run,
    training_stats,
)
from selfcal.methods.parts.facts import insist_on_facts, told
from selfcal.methods.parts.judges import base_of, label_settings
from selfcal.methods.parts.learned import reading
from selfcal.recipe import Curate, Recipe, RecipeError, Settings
from selfcal.stage import Shards, Stage, Work
from selfcal.store import JSON
from selfcal.types import Drop, GradedResponse, LabelledPair, Sample

if TYPE_CHECKING:
    from selfcal.judge.scorer import Judge


class Options(Settings):
    """The method's own settings."""

    prompt: str | None = None
    """A Jinja2 template over question, facts and response; None: the built-in one."""


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of the ablation.

    Raises:
        RecipeError: the recipe wants what only SRC has.
        ModelError: `prompt` is no Jinja2.
    """
    from selfcal.judge.grader import GradeWriter

    parts.refuse_weak(recipe)
    if recipe.judge.kind != "rscorer":
        raise RecipeError(
            f"recipe {recipe.name}: judge.kind: this method trains a judge of its own; leave it out"
        )
    own = parts.options(recipe, Options)
    GradeWriter({"good": own.prompt})  # a bad template is told before anything is paid for
    grader = _grader(recipe, own)
    # the order of the grades themselves: an expected gain is linear in them
    curate: Curate = recipe.curate.model_copy(update={"aggregator": "expected"})
    # grades have no order to average, and nothing was held out of the grader's own kind
    judge = recipe.judge.model_copy(update={"calibrate": "never"})
    recipe = recipe.model_copy(update={"curate": curate, "judge": judge})

    def iteration(t: int, start: str | None) -> list[Stage]:
        return [
            parts.candidates(recipe, t, start),
            parts.judgments(recipe, t, grader),
            parts.pairs(recipe, t),
            parts.preference_tuning(recipe, t, start),
        ]

    before = [
        *parts.labelled(recipe),
        _grades(recipe),
        _training(recipe),
        parts.quality(recipe, grader, "judge/grader-quality"),
    ]
    return parts.loop(recipe, iteration, before)


def _grader(recipe: Recipe, own: Options) -> parts.Judging:
    def load(work: Work) -> Judge:
        from selfcal.judge.independent import IndependentScorer

        return IndependentScorer(work.checkpoint("judge/grader"), own.prompt, reading(recipe))

    depends = {"kind": "independent", "prompt": own.prompt, "min_mass": recipe.judge.min_mass}
    return parts.Judging(("judge/grader",), depends, load)


def _grades(recipe: Recipe) -> Stage:
    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.judge.training import grade_responses

        who, at_once = parts.label_giver(recipe, work), parts.labels_at_once(recipe)
        pairs = work.read("judge/labels", "train", LabelledPair)
        responses: dict[str, list[str]] = {}
        for p in pairs:
            responses.setdefault(p.sample_id, []).extend((p.first, p.second))
        samples = [s for s in work.samples(told(recipe), "rft") if s.id in responses]
        insist_on_facts(recipe, work.stage.name, samples)

        def grade(part: Sequence[Sample]) -> Shards:
            graded, drops = grade_responses(who, part, responses, workers=at_once)
            return {"graded": (GradedResponse, work.stored(graded)), "drops": (Drop, drops)}

        work.map(samples, 64, grade)
        graded = work.folder.read("graded", GradedResponse)
        drops = work.drop_counts()
        good = sum(g.good for g in graded)
        return {"graded": len(graded), "good": good, "drops": drops, **spent(work)}

    n = trained_on(recipe)
    depends = label_settings(recipe, "grade-good")
    return Stage(
        "judge/grades", (told(recipe), "judge/labels"), depends, run, n, "samples",
        "label-giving grades of the same responses", by_workers(False, recipe.judge.labels),
    )  # fmt: skip


def _training(recipe: Recipe) -> Stage:
    settings, own = recipe.judge, parts.options(recipe, Options)

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.train import train_grader

        graded = work.shown(work.read("judge/grades", "graded", GradedResponse))
        prompts: parts.Prompts = {"good": own.prompt}
        to = training_run(recipe, work)
        trained = train_grader(settings.model, graded, settings.train, prompts, to, settings.sees)
        return training_stats(work, trained)

    rows = 2 * trained_on(recipe) * settings.pairs_per_sample
    depends = {**base_of(recipe), "prompt": own.prompt, "train": outcome_of(settings.train)}
    return Stage(
        "judge/grader", ("judge/grades",), depends, run, settings.train.steps_for(rows), "steps",
        "training of the grader", spread(recipe, "judge.train", settings.train),
    )  # fmt: skip
