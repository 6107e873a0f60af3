"""GRPO with rewards for answer and form alone: what most reach for, and the others' baseline.

Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300) with verifiable rewards, as
DeepSeek-R1 (arXiv 2501.12948) made it a habit: 1 for the right answer, and a little for the form.
Nobody looks at the rationale. Kept: groups of responses to one prompt, advantages normalized within
the group, no critic, the clipped ratio. As TRL does by default: no divergence term (`grpo.kl`) and
losses averaged over tokens (DAPO, arXiv 2503.14476). Changed: training starts from the rationale
fine-tuned policy and goes in iterations, each with its own samples, as all methods here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfcal.methods import parts
from selfcal.recipe import Grpo, Recipe
from selfcal.stage import Stage

if TYPE_CHECKING:
    from selfcal.advantage import Groups


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of the method."""
    method = parts.Online((), lambda _: TaskReward(recipe.grpo))
    return parts.online_loop(recipe, method)


@dataclass(frozen=True)
class TaskReward(parts.Estimator):
    """Reward `correct + format_weight * compliant`, normalized within its group."""

    settings: Grpo

    def estimate(self, batch: parts.Batch) -> tuple[Groups, Groups]:
        """Rewards and advantages."""
        from selfcal.advantage import group_advantages

        return batch.task, group_advantages(batch.task, self.settings.scale)
