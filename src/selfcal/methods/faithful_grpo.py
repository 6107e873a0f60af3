"""Faithful GRPO: consistency and grounding as constraints on answer-only reinforcement learning.

Faithful GRPO (arXiv 2604.08476) maximizes the task reward *subject to* the rationale entailing the
answer and its statements being true of the image, by Lagrangian dual ascent: a constraint that the
batch violates gains weight in the advantage until it holds. Kept: both constraints, at the level of
the batch, in the advantage; the task reward is `grpo`'s.

What selfcal does where descriptions of the method leave it open: both signals are probabilities of
yes by one learned grader of the R-Scorer's family, which reads visual facts and no pixels
(`parts.graders`); grounding asks about all statements of a response at once. Advantages of task,
consistency and grounding are normalized within the group each by itself, so that no reward's scale
hides another's, then summed with the multipliers and divided by one plus their sum. Multipliers
begin at `start`, take one projected step a batch, and are carried from iteration to iteration.
Left out: the paper's supervised traces with points and boxes; rationale fine-tuning stands for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from selfcal.methods import parts
from selfcal.recipe import Grpo, Recipe, Settings
from selfcal.stage import Stage

if TYPE_CHECKING:
    from selfcal.advantage import Groups

CONSTRAINTS = ("entailed", "grounded")


class Options(Settings):
    """The method's own settings."""

    entailed_prompt: str | None = None
    """A Jinja2 template over question, facts and response; None: the built-in one, which leaves
    the facts out."""
    grounded_prompt: str | None = None
    """The same; the built-in one has the facts."""
    consistency: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Least mean probability that the answer follows from the rationale."""
    grounding: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Least mean probability that all statements are true."""
    start: Annotated[float, Field(ge=0)] = 0.5
    """Both multipliers before the first step."""
    rate: Annotated[float, Field(gt=0)] = 0.2
    """Step size of the dual ascent."""
    most: Annotated[float, Field(gt=0)] = 2.0
    """Upper bound of a multiplier."""

    @model_validator(mode="after")
    def _bounded(self) -> Options:
        if self.start > self.most:
            raise ValueError(f"start: {self.start} is above `most`, {self.most}; lower it")
        return self


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of the method.

    Raises:
        RecipeError: the recipe wants what the method does not go by.
    """
    own = parts.options(recipe, Options)
    parts.refuse_unread(recipe)
    prompts: parts.Prompts = {"entailed": own.entailed_prompt, "grounded": own.grounded_prompt}
    method = parts.Online(
        CONSTRAINTS,
        lambda learned: DualAscent(recipe.grpo, own, learned),
        lambda work: parts.GradeRater(recipe, work, prompts),
        ("judge/grader",),
        {"options": own, "min_mass": recipe.judge.min_mass},
        asks=lambda size: len(CONSTRAINTS) * size,
        by_facts=True,
    )
    return parts.online_loop(recipe, method, parts.grader(recipe, prompts))


class DualAscent(parts.Estimator):
    """Advantages of the Lagrangian; its multipliers rise while the batch violates a constraint."""

    def __init__(self, settings: Grpo, own: Options, learned: Mapping[str, float]) -> None:
        """Begin with the multipliers of the last iteration, if it has `learned` any."""
        self._settings, self._own = settings, own
        self._thresholds = (own.consistency, own.grounding)
        self.multipliers = [learned.get(f"multiplier_{c}", own.start) for c in CONSTRAINTS]

    @property
    def figures(self) -> Mapping[str, float]:
        """The multipliers."""
        pairs = zip(CONSTRAINTS, self.multipliers, strict=True)
        return {f"multiplier_{c}": round(m, 6) for c, m in pairs}

    def estimate(self, batch: parts.Batch) -> tuple[Groups, Groups]:
        """Rewards of the Lagrangian, and advantages with the multipliers as they are now.

        The multipliers take their step afterwards, by the means over this batch.
        """
        import numpy as np

        from selfcal.advantage import constrained_advantages, dual_step, group_advantages

        signals = [batch.signals[c] for c in CONSTRAINTS]
        task, *others = (group_advantages(r, self._settings.scale) for r in (batch.task, *signals))
        advantages = constrained_advantages(task, others, self.multipliers)
        weighed = zip(self.multipliers, signals, strict=True)
        rewards = batch.task + sum(m * np.nan_to_num(s) for m, s in weighed)
        self.multipliers = [
            dual_step(m, _mean(s), threshold, self._own.rate, self._own.most)
            for m, s, threshold in zip(self.multipliers, signals, self._thresholds, strict=True)
        ]
        return rewards, advantages


def _mean(signal: Groups) -> float:
    """Mean over what was scored; NaN if nothing was."""
    import numpy as np

    known = signal[~np.isnan(signal)]
    return float(known.mean()) if known.size else float("nan")
