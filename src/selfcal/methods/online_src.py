"""SRC's signal online: the R-Scorer's confidence-weighted scores as the reward of a group.

selfcal's own. SRC (ICML 2025, arXiv 2509.13919) searches for candidates, compares them in pairs,
and tunes the policy on best against worst, offline, iteration by iteration. Here the same judge,
trained in the same way, compares the responses of each group while the policy samples them, and the
same aggregation (`curate.aggregator`) makes their rewards; the policy takes a step at once. So the
two differ in how the signal is used, not in what it says. Like SRC it needs no reference answers:
with `answer_weight` above 0 a right answer counts beside the score.

Every pair of different texts of a group is compared in both orders; equal texts share their score,
and a group of one text teaches nothing. Scores lie in [-1, 1] and have the judge's confidence in
them; with `grpo.scale: none`, as in the recipes, advantages keep it: a group in which the judge
sees no difference does not count as much as one in which it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from selfcal.curate import AGGREGATORS, merge_orders
from selfcal.methods import parts
from selfcal.recipe import Grpo, Recipe, Settings
from selfcal.stage import Stage, Work
from selfcal.types import Candidate

if TYPE_CHECKING:
    from selfcal.advantage import Groups
    from selfcal.train import Group


class Options(Settings):
    """The method's own settings."""

    answer_weight: Annotated[float, Field(ge=0)] = 0.0
    """Of the task reward (answer and form) beside the score; 0: the judge alone."""


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of the method.

    Raises:
        RecipeError: the recipe wants what the method does not go by.
    """
    own = parts.options(recipe, Options)
    parts.refuse_unread(recipe, compares=True)
    judge = parts.judging(recipe)
    method = parts.Online(
        ("score",),
        lambda _: ScoreReward(recipe.grpo, own.answer_weight),
        lambda work: ScoreRater(recipe, work, judge),
        judge.inputs,
        {"options": own, "judge": judge.settings, "aggregator": recipe.curate.aggregator},
        needs_answers=own.answer_weight > 0,
        asks=lambda size: size * (size - 1),
        by_facts=True,
    )
    return parts.online_loop(recipe, method, parts.r_scorer(recipe))


class ScoreRater(parts.Rater):
    """Compares the different texts of each group in pairs; their aggregated scores."""

    def __init__(self, recipe: Recipe, work: Work, judge: parts.Judging) -> None:
        """Load the recipe's judge."""
        self._judge = judge.load(work)
        self._aggregate = AGGREGATORS[recipe.curate.aggregator]

    def cost(self, groups: Sequence[Group], correct: Sequence[Sequence[float]]) -> int:
        """One comparison for each ordered pair of different texts."""
        return sum(n * (n - 1) for n in (len(set(g.texts)) for g in groups))

    def rate(
        self, groups: Sequence[Group], correct: Sequence[Sequence[float]]
    ) -> list[list[tuple[float, ...]]]:
        """Scores in [-1, 1]; 0 in a group of one text, NaN for a text with no readable verdict."""
        from selfcal.judge.scorer import all_comparisons

        shown = [
            [Candidate(g.sample.id, i, t, (), (), (), True) for i, t in enumerate(_texts(g))]
            for g in groups
        ]
        asked = [list(all_comparisons(g.sample, own)) for g, own in zip(groups, shown, strict=True)]
        answers = iter(self._judge.judge([c for own in asked for c in own]))
        rated: list[list[tuple[float, ...]]] = []
        for g, own in zip(groups, asked, strict=True):
            scores = self._aggregate(merge_orders([next(answers) for _ in own]))
            place = {text: i for i, text in enumerate(_texts(g))}
            missing = 0.0 if len(place) == 1 else float("nan")
            rated.append([(scores.get(place[text], missing),) for text in g.texts])
        return rated


def _texts(group: Group) -> list[str]:
    return list(dict.fromkeys(group.texts))


@dataclass(frozen=True)
class ScoreReward(parts.Estimator):
    """The judge's score, and the task reward if it has a weight."""

    settings: Grpo
    answer_weight: float

    def estimate(self, batch: parts.Batch) -> tuple[Groups, Groups]:
        """Rewards and advantages."""
        from selfcal.advantage import group_advantages

        rewards = batch.signals["score"]
        if self.answer_weight:
            rewards = rewards + self.answer_weight * batch.task
        return rewards, group_advantages(rewards, self.settings.scale)
