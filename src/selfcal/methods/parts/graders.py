"""The grader: is an answer entailed by its rationale, is each statement true of the image?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from selfcal.methods.parts import learned
from selfcal.methods.parts.base import trained_on
from selfcal.methods.parts.facts import facts
from selfcal.methods.parts.judges import candidates_of_training, labels_at_once
from selfcal.methods.parts.online import Rater
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work
from selfcal.store import JSON
from selfcal.types import Aspect, Drop, GradedResponse, Sample

if TYPE_CHECKING:
    from selfcal.judge.grader import Grader
    from selfcal.judge.labels import LabelGiver
    from selfcal.train import Group, Run, Trained

Prompts = Mapping[Aspect, str | None]
"""The aspects that a grader is trained for, each with its Jinja2 template; None: the built-in."""


def grader(recipe: Recipe, prompts: Prompts) -> list[Stage]:
    """Candidates of training samples, their grades, the grader's training, and its quality.

    Raises:
        ModelError: a prompt is no Jinja2.
    """
    from selfcal.judge.grader import GradeWriter
    from selfcal.judge.training import grade_responses

    GradeWriter(prompts)  # a bad template is told before anything is paid for
    aspects = tuple(prompts)
    depends = {"prompts": dict(prompts)}

    def ask(
        who: LabelGiver, samples: Sequence[Sample], own: learned.Responses
    ) -> tuple[list[GradedResponse], list[Drop]]:
        return grade_responses(who, samples, own, aspects, labels_at_once(recipe))

    def train(graded: Sequence[GradedResponse], run: Run) -> Trained:
        from selfcal.train import train_grader

        j = recipe.judge
        return train_grader(j.model, graded, j.train, prompts, run, j.sees)

    def figures(work: Work, heldout: Sequence[GradedResponse]) -> Mapping[str, JSON]:
        return _agreement(_load(recipe, work, prompts), heldout, aspects)

    rows = trained_on(recipe) * recipe.search.candidates * len(aspects)
    kept = round(rows * recipe.judge.holdout)
    return [
        *(facts(recipe) if set(aspects) - {"entailed"} else []),
        candidates_of_training(recipe),
        learned.labels(
            recipe,
            "grades",
            GradedResponse,
            ask,
            {"aspects": aspects},
            [f"grade-{aspect}" for aspect in aspects],
        ),
        learned.training(recipe, "grader", "grades", GradedResponse, train, rows - kept, depends),
        learned.check(recipe, "grader", "grades", GradedResponse, figures, kept, depends),
    ]


def _load(recipe: Recipe, work: Work, prompts: Prompts) -> Grader:
    from selfcal.judge.grader import Grader

    return Grader(work.checkpoint("judge/grader"), prompts, learned.reading(recipe))


def _agreement(
    judge: Grader, heldout: Sequence[GradedResponse], aspects: Sequence[Aspect]
) -> dict[str, JSON]:
    """Of each aspect: how often the likelier grade is the label, and how often the label is yes.

    What cannot be read counts as wrong.
    """
    from selfcal.judge.asking import sample_of
    from selfcal.judge.quality import mean

    found: dict[str, JSON] = {}
    for aspect in aspects:
        own = [g for g in heldout if g.aspect == aspect]
        given = judge.grade(aspect, [(sample_of(g), g.response) for g in own])
        hits = [
            (g.sample_id, float(p is not None and (p > 0.5) == g.good))
            for p, g in zip(given, own, strict=True)
        ]
        found[f"{aspect}_agreement"] = mean(hits)
        found[f"{aspect}_yes"] = mean([(g.sample_id, float(g.good)) for g in own])
    return found


class GradeRater(Rater):
    """Grades each different response of a group for each aspect: the probability of yes."""

    def __init__(self, recipe: Recipe, work: Work, prompts: Prompts) -> None:
        """Load the grader of stage `judge/grader`."""
        self._grader, self._aspects = _load(recipe, work, prompts), tuple(prompts)

    def cost(self, groups: Sequence[Group], correct: Sequence[Sequence[float]]) -> int:
        """One grade for each different response and aspect."""
        return len(self._aspects) * sum(len(set(g.texts)) for g in groups)

    def rate(
        self, groups: Sequence[Group], correct: Sequence[Sequence[float]]
    ) -> list[list[tuple[float, ...]]]:
        """The grades, in the order of the aspects."""
        shown = [(g.sample, text) for g in groups for text in dict.fromkeys(g.texts)]
        found = [
            [float("nan") if p is None else p for p in self._grader.grade(aspect, shown)]
            for aspect in self._aspects
        ]
        grades = {
            (sample.id, text): own
            for (sample, text), own in zip(shown, zip(*found, strict=True), strict=True)
        }
        return [[grades[g.sample.id, text] for text in g.texts] for g in groups]
