"""GRPO with a consistency reward: does the answer follow from the rationale?

After CORA (arXiv 2606.14691), which puts a light consistency reward model beside the task reward
and splits the advantage, so that neither of the two drowns the other. Kept: a small plug-in model
that reads question, rationale and answer, no image and no facts; two advantages, combined.

What selfcal does where descriptions of the method leave it open: the reward is the probability of
yes by a learned grader of the R-Scorer's family (`parts.graders`); task and consistency are
normalized within the group each by itself and combined as `(1 - weight) A_task + weight A_cons`;
wrong answers take part, so that even among them a rationale that leads to its answer is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from selfcal.methods import parts
from selfcal.recipe import Grpo, Recipe, Settings
from selfcal.stage import Stage

if TYPE_CHECKING:
    from selfcal.advantage import Groups


class Options(Settings):
    """The method's own settings."""

    entailed_prompt: str | None = None
    """A Jinja2 template over question and response; None: the built-in one."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of the consistency advantage."""


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of the method.

    Raises:
        RecipeError: the recipe wants what the method does not go by.
    """
    own = parts.options(recipe, Options)
    parts.refuse_unread(recipe)
    prompts: parts.Prompts = {"entailed": own.entailed_prompt}
    method = parts.Online(
        ("entailed",),
        lambda _: SplitAdvantage(recipe.grpo, own.weight),
        lambda work: parts.GradeRater(recipe, work, prompts),
        ("judge/grader",),
        {"options": own, "min_mass": recipe.judge.min_mass},
        asks=lambda size: size,
    )
    return parts.online_loop(recipe, method, parts.grader(recipe, prompts))


@dataclass(frozen=True)
class SplitAdvantage(parts.Estimator):
    """Advantages of task and consistency, each normalized by itself, then combined."""

    settings: Grpo
    weight: float

    def estimate(self, batch: parts.Batch) -> tuple[Groups, Groups]:
        """Weighted rewards, and the combined advantages."""
        import numpy as np

        from selfcal.advantage import group_advantages

        consistency, share = batch.signals["entailed"], self.weight
        task = group_advantages(batch.task, self.settings.scale)
        own = group_advantages(consistency, self.settings.scale)
        rewards = (1 - share) * batch.task + share * np.nan_to_num(consistency)
        return rewards, (1 - share) * task + share * own
