"""HA-DPO: Hallucination-Aware Direct Preference Optimization (arXiv 2311.16839).

The model responds, a strong model finds and corrects what is wrong in the response, and the
corrected one is preferred to the model's own. Both are then said in one style, the strong model's,
so that style cannot tell them apart.

Kept: own response, correction, the same rewriting of both. Changed: one restyled version of each,
where the paper makes several; questions, where the paper has image descriptions; the response is
the greedy one. A recipe may have several iterations; the paper has one.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from selfcal.methods import parts
from selfcal.methods.parts.base import reads
from selfcal.methods.parts.writing import (
    Made,
    Make,
    Writing,
    each,
    greedy,
    greedy_settings,
    teacher_of,
    teacher_settings,
    written_outcome,
    written_pairs,
)
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work
from selfcal.types import Drop, Sample

if TYPE_CHECKING:
    from selfcal.teacher import Teacher


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of HA-DPO."""

    def iteration(t: int, start: str | None) -> list[Stage]:
        return [_pairs(recipe, t, start), parts.preference_tuning(recipe, t, start)]

    return parts.loop(recipe, iteration)


def _pairs(recipe: Recipe, t: int, start: str | None) -> Stage:
    def maker(work: Work, opened: ExitStack) -> Make:
        teacher = teacher_of(recipe, work)
        says = greedy(recipe, work, start, opened, lambda sample: [sample])
        return lambda samples: each(
            recipe, lambda said: mended(teacher, said[0], said[1][0]), says(samples)
        )

    asked = teacher_settings(recipe, "mend", "restyle")
    settings = {"teacher": asked, "policy": greedy_settings(recipe, start)}
    about = "own responses against mended ones"
    return written_pairs(
        recipe, t, maker, about, settings, Writing(responses=1, requests=3), reads(start)
    )


def mended(teacher: Teacher, sample: Sample, response: str) -> Made:
    """The pair of a response; dropped as `nothing-to-mend` if the teacher changes nothing."""
    better = teacher.mend(sample, response)
    changed = written_outcome(sample, better, response, same="nothing-to-mend")
    if isinstance(changed, Drop):
        return Made(changed, (response, better))
    chosen, rejected = (teacher.restyle(sample, text) for text in (better, response))
    # equal by now: what was changed was the style
    outcome = written_outcome(sample, chosen, rejected, same="nothing-to-mend")
    return Made(outcome, (response, better, chosen, rejected))
