"""From the rewards of groups of responses to advantages: the estimators of online methods.

An array is (prompts, responses): row p has the responses to prompt p, its group. NaN marks a
response that could not be scored: it moves no mean and gets advantage 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Groups = npt.NDArray[np.float64]
Scale = Literal["group", "none"]

_EPSILON = 1e-4
"""Added to a standard deviation, as in TRL."""


def group_advantages(rewards: Groups, scale: Scale = "group") -> Groups:
    """Advantages within each group (GRPO, DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    `A_i = (r_i - mean(r)) / (std(r) + 1e-4)` with the group's mean and sample standard deviation,
    as TRL computes it; scale `none` leaves the division out (Dr. GRPO, arXiv 2503.20783), so that a
    group whose rewards hardly differ hardly counts.

    Args:
        rewards: shape (prompts, responses); NaN where unscored.
        scale: see above.

    Returns:
        Advantages of the same shape; 0 where unscored.
    """
    known = ~np.isnan(rewards)
    n = known.sum(axis=1, keepdims=True)
    mean = np.where(known, rewards, 0.0).sum(axis=1, keepdims=True) / np.maximum(n, 1)
    gaps = np.where(known, rewards - mean, 0.0)
    if scale == "none":
        return gaps
    variance = (gaps**2).sum(axis=1, keepdims=True) / np.maximum(n - 1, 1)
    advantages: Groups = gaps / (np.sqrt(variance) + _EPSILON)
    return advantages


def dual_step(multiplier: float, value: float, threshold: float, rate: float, most: float) -> float:
    """One step of projected dual ascent on the multiplier of the constraint `value >= threshold`.

    `lambda <- min(most, max(0, lambda + rate * (threshold - value)))`: the multiplier grows while
    the constraint is violated and shrinks while it holds.

    Args:
        multiplier: lambda, 0 or more.
        value: mean of the constrained reward over the batch; NaN leaves lambda as it is.
        threshold: what that mean shall reach.
        rate: step size.
        most: upper bound of lambda.
    """
    if np.isnan(value):
        return multiplier
    return float(min(most, max(0.0, multiplier + rate * (threshold - value))))


def constrained_advantages(
    task: Groups, constraints: Sequence[Groups], multipliers: Sequence[float]
) -> Groups:
    """Advantage of the Lagrangian: `(A_task + sum_k lambda_k A_k) / (1 + sum_k lambda_k)`.

    The division keeps the size of an update where it was while the multipliers grow.

    Args:
        task: advantages of the task reward, shape (prompts, responses).
        constraints: advantages of each constrained reward, same shape.
        multipliers: lambda of each constraint.
    """
    total = task + sum(m * a for m, a in zip(multipliers, constraints, strict=True))
    advantages: Groups = total / (1 + sum(multipliers))
    return advantages


def rank_rewards(correct: Groups, strength: Groups, spread: float) -> Groups:
    """Reward of answer-correct responses, redistributed by their rank within the group.

    Of n correct responses, the one on rank k (from 1, the best) gets `1 + spread * (n + 1 - 2 k) /
    (n - 1)`: from 1 + spread down to 1 - spread, in equal steps, n in total. Equal ones share the
    mean of their ranks. A single correct response gets 1, a wrong one 0; a correct one without a
    strength was not ranked, gets 1 and counts for nobody's rank.

    Args:
        correct: 1 for a right answer and 0 for a wrong one, shape (prompts, responses).
        strength: the higher the better, same shape; NaN where unranked.
        spread: from 0 to 1; below 1, every right answer stays worth more than a wrong one.
    """
    rewards = correct.copy()
    for row, (right, found) in enumerate(zip(correct, strength, strict=True)):
        at = np.flatnonzero((right > 0) & ~np.isnan(found))
        if len(at) > 1:
            own = found[at]
            above = (own[None, :] > own[:, None]).sum(axis=1)
            equal = (own[None, :] == own[:, None]).sum(axis=1)
            rank = above + (equal + 1) / 2
            rewards[row, at] = 1 + spread * (len(at) + 1 - 2 * rank) / (len(at) - 1)
    return rewards
