"""GRPO whose reward for right answers is redistributed by a ranking of their rationales.

Groupwise Ranking Reward (arXiv 2604.18892): of the responses to one prompt, those with the right
answer are ranked by a judge in one pass, and the better-reasoned ones get more of the reward. Kept:
only verified answers are ranked, all of a group at once, and the judge is asked once a group.

What selfcal does where descriptions of the method leave it open: the judge is a small model of the
R-Scorer's family, trained from rankings of the label-giving judge (`parts.rankers`); equal texts
are shown once and share their rank; a right answer is worth between `1 - spread` and `1 + spread`,
in equal steps by rank, so that what all right answers of a group are worth together stays the same;
a group with one right answer, or one text, is not ranked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from selfcal.methods import parts
from selfcal.recipe import Grpo, Recipe, RecipeError, Settings
from selfcal.stage import Stage

if TYPE_CHECKING:
    from selfcal.advantage import Groups


class Options(Settings):
    """The method's own settings."""

    prompt: str | None = None
    """A Jinja2 template over question, facts and responses; None: the built-in one."""
    orders: Annotated[int, Field(gt=0)] = 6
    """Training rows made of each ranked group, each some of its responses in a random order."""
    spread: Annotated[float, Field(gt=0, le=1)] = 0.5
    """How far the reward of right answers goes from 1, up and down."""


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of the method.

    Raises:
        RecipeError: groups are larger than the judge can rank, or the recipe wants what the method
            does not go by.
    """
    from selfcal.judge.ranker import NUMBERS

    own = parts.options(recipe, Options)
    parts.refuse_unread(recipe)
    if recipe.grpo.group > len(NUMBERS):
        raise RecipeError(
            f"recipe {recipe.name}: grpo.group: {recipe.grpo.group} responses cannot be ranked in "
            f"one pass; set it to {len(NUMBERS)} or less"
        )
    method = parts.Online(
        ("strength",),
        lambda _: RankReward(recipe.grpo, own.spread),
        lambda work: parts.RankRater(recipe, work, own.prompt),
        ("judge/ranker",),
        {"options": own, "min_mass": recipe.judge.min_mass},
        asks=lambda _: 1,
        by_facts=True,
    )
    before = parts.ranker(recipe, own.prompt, own.orders)
    return parts.online_loop(recipe, method, before)


@dataclass(frozen=True)
class RankReward(parts.Estimator):
    """Right answers share their reward by rank; wrong ones get the form's alone."""

    settings: Grpo
    spread: float

    def estimate(self, batch: parts.Batch) -> tuple[Groups, Groups]:
        """Rewards and advantages."""
        from selfcal.advantage import group_advantages, rank_rewards

        ranked = rank_rewards(batch.correct, batch.signals["strength"], self.spread)
        rewards = ranked + batch.form
        return rewards, group_advantages(rewards, self.settings.scale)
