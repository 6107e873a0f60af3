"""SRC: Self-Rationale Calibration (ICML 2025, arXiv 2509.13919).

Rationale fine-tuning once; then, three times: candidates by sentence-level beam search, pairwise
scores by the R-Scorer, confidence-weighted preference pairs, DPO with an SFT term, merge. The
policy of one iteration is the sampler and the reference policy of the next.
"""

from __future__ import annotations

from selfcal.methods import parts
from selfcal.recipe import Recipe
from selfcal.stage import Stage


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of SRC."""
    stages = parts.opening(recipe) + parts.r_scorer(recipe)
    for t in range(1, recipe.iterations + 1):
        before = "rft" if t == 1 else f"iter-{t - 1}/dpo"
        stages += [
            parts.candidates(recipe, t, before),
            parts.judgments(recipe, t),
            parts.pairs(recipe, t),
            parts.preference_tuning(recipe, t, before),
            parts.evaluate(recipe, f"iter-{t}", f"iter-{t}/dpo"),
        ]
    return stages
