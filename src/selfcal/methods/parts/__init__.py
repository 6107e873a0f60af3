"""The stages that methods are made of.

Each function takes the recipe and gives a `Stage`: it joins a stage's plain functions (search,
judge, curate, train, evaluate) to the records they read and write, and knows nothing of the order.
Heavy libraries are imported when a stage runs, so that planning stays instant.
"""

from __future__ import annotations

from selfcal.methods.parts.measure import evaluate
from selfcal.methods.parts.samples import data
from selfcal.methods.parts.scoring import judgments, pairs, r_scorer
from selfcal.methods.parts.search import candidates
from selfcal.methods.parts.tuning import (
    more_fine_tuning,
    preference_tuning,
    rationale_fine_tuning,
    teach,
)
from selfcal.recipe import Recipe
from selfcal.stage import Stage


def opening(recipe: Recipe) -> list[Stage]:
    """What methods begin with: samples, the seed measured, fine-tuning, and that measured."""
    return [
        data(recipe),
        evaluate(recipe, "seed"),
        teach(recipe),
        rationale_fine_tuning(recipe),
        evaluate(recipe, "rft", "rft"),
    ]


__all__ = [
    "candidates", "data", "evaluate", "judgments", "more_fine_tuning", "opening", "pairs",
    "preference_tuning", "r_scorer", "rationale_fine_tuning", "teach",
]  # fmt: skip
