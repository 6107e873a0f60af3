"""Control: the rationale-fine-tuned model, trained on with SFT alone.

Each iteration is as many optimizer steps on the teacher's RAPs as SRC's DPO would take if no sample
were dropped. What SRC gains over this is not owed to more training. Not from a paper.
"""

from __future__ import annotations

from selfcal.methods import parts
from selfcal.recipe import Recipe
from selfcal.stage import Stage


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of the control."""
    stages = parts.opening(recipe)
    for t in range(1, recipe.iterations + 1):
        before = "rft" if t == 1 else f"iter-{t - 1}/sft"
        stages += [
            parts.more_fine_tuning(recipe, t, before),
            parts.evaluate(recipe, f"iter-{t}", f"iter-{t}/sft"),
        ]
    return stages
