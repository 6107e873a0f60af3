"""From rewards to advantages: every estimator of the online methods, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcal.advantage import (
    Groups,
    Scale,
    constrained_advantages,
    dual_step,
    group_advantages,
    rank_rewards,
)
from selfcal.methods import parts
from selfcal.methods.consistency_grpo import SplitAdvantage
from selfcal.methods.faithful_grpo import DualAscent, Options
from selfcal.methods.groupwise_grpo import RankReward
from selfcal.methods.grpo import TaskReward
from selfcal.methods.online_src import ScoreRater, ScoreReward
from selfcal.methods.parts import online
from selfcal.recipe import Grpo, Recipe
from selfcal.testing import Said, ScriptedJudge
from selfcal.train import Group
from selfcal.types import Sample

NAN = math.nan
Rows = Sequence[Sequence[float]]
PLAIN, SCALED = Grpo(scale="none"), Grpo(scale="group")


def array(rows: Rows) -> Groups:
    return np.array(rows, dtype=np.float64)


def close(found: Groups, rows: Rows) -> bool:
    """Whether these are the numbers, NaN where NaN is expected."""
    return found.shape == np.shape(rows) and np.allclose(found, rows, 0, 1e-12, equal_nan=True)


def batch(task: Rows, form: Rows | None = None, **signals: Rows) -> parts.Batch:
    """A batch; without `form`, the task reward is that of the answer alone."""
    own, extra = array(task), array(form) if form else np.zeros(np.shape(task))
    return parts.Batch(own + extra, own, extra, {k: array(v) for k, v in signals.items()})


# --- groups -----------------------------------------------------------------------------------


def test_advantages_are_gaps_in_standard_deviations_of_the_own_group() -> None:
    rewards = [
        [1, 0, 0, 0],  # mean 1/4; gaps 3/4, -1/4; variance (9 + 1 + 1 + 1) / 16 / 3 = 1/4
        [0, 0, 4, 0],  # the same, four times as large: mean 1; gaps 3, -1; variance 12 / 3 = 4
        [7, 1, 1, 7],  # mean 4; gaps 3; variance 4 x 9 / 3 = 12
    ]
    root = 12**0.5 + 1e-4
    assert close(
        group_advantages(array(rewards)),
        [
            [0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001],
            [-1 / 2.0001, -1 / 2.0001, 3 / 2.0001, -1 / 2.0001],
            [3 / root, -3 / root, -3 / root, 3 / root],
        ],
    )
    unscaled = [[0.75, -0.25, -0.25, -0.25], [-1, -1, 3, -1], [3, -3, -3, 3]]
    assert close(group_advantages(array(rewards), "none"), unscaled)


def test_what_is_unscored_moves_no_mean_and_gets_nothing() -> None:
    rewards = [
        [1, NAN, 5, 3],  # of 1, 5, 3: mean 3; gaps -2, 2, 0; variance 8 / 2 = 4
        [NAN, 2, NAN, 4],  # of 2, 4: mean 3; gaps -1, 1; variance 2 / 1
    ]
    root = 2**0.5 + 1e-4
    scaled = [[-2 / 2.0001, 0, 2 / 2.0001, 0], [0, -1 / root, 0, 1 / root]]
    assert close(group_advantages(array(rewards)), scaled)
    assert close(group_advantages(array(rewards), "none"), [[-2, 0, 2, 0], [0, -1, 0, 1]])


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize(
    "group",
    [
        [1, 1, 1],
        [0, 0, 0],
        [0.1, 0.1, 0.1],  # whose mean is no exact 0.1
        [NAN, 0.7, 0.7],
        [NAN, 0.7, NAN],
        [NAN, NAN, NAN],
    ],
)
def test_a_group_in_which_nothing_differs_teaches_nothing(
    group: Sequence[float], scale: Scale
) -> None:
    assert close(group_advantages(array([group]), scale), [[0, 0, 0]])


def test_unscaled_a_group_that_hardly_differs_hardly_counts() -> None:
    # 0.501 and 0.499: gaps 0.001; deviation 0.001 x root 2, far above the 0.0001 added to it
    rewards = array([[0.501, 0.499]])
    assert close(group_advantages(rewards, "none"), [[0.001, -0.001]])
    assert 0.6 < group_advantages(rewards)[0, 0] < 2**-0.5


def test_advantages_are_those_of_trl() -> None:
    import torch
    from trl.trainer.utils import nanstd

    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(40, 6)).round(1)
    rewards[rng.random(rewards.shape) < 0.3] = NAN
    rewards[0], rewards[1], rewards[2, 1:] = 0.5, NAN, NAN
    rows = torch.tensor(rewards)
    # as in its GRPOTrainer, where an advantage that is not a number becomes 0
    gaps = rows - torch.nanmean(rows, dim=1, keepdim=True)
    for scale, found in (("group", gaps / (nanstd(rows, 1, True) + 1e-4)), ("none", gaps)):
        expected = torch.nan_to_num(found, nan=0.0).numpy()
        # TRL corrects its variance in single precision
        np.testing.assert_allclose(group_advantages(rewards, scale), expected, 0, 1e-6)
        assert (expected == 0).any() and (np.abs(expected) > 0.5).any()


# --- constraints ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("multiplier", "value", "then"),
    [
        (0.5, 0.75, 0.6),  # 0.2 is missing: 0.5 + 0.5 x 0.2
        (0.0, 0.0, 0.475),  # it begins again after it was 0
        (0.5, 1.0, 0.475),  # 0.05 too much: 0.5 - 0.5 x 0.05
        (0.5, 0.95, 0.5),
        (0.01, 1.0, 0.0),  # -0.015
        (0.0, 1.0, 0.0),
        (1.95, 0.75, 2.0),  # 2.05
        (2.0, 0.0, 2.0),
        (2.0, 1.0, 1.975),  # the bound holds nothing down
        (0.5, NAN, 0.5),
        (0.0, NAN, 0.0),
    ],
)
def test_a_multiplier_takes_a_step_within_its_bounds(
    multiplier: float, value: float, then: float
) -> None:
    found = dual_step(multiplier, value, threshold=0.95, rate=0.5, most=2.0)
    assert found == pytest.approx(then, abs=1e-12)


TASK, FIRST, SECOND = array([[1, -1, 0]]), array([[0, 2, -2]]), array([[4, 0, -4]])


@pytest.mark.parametrize(
    ("multipliers", "advantages"),
    [
        # 1 + 0 + 6 = 7, -1 + 1 + 0 = 0, 0 - 1 - 6 = -7, by 1 + 0.5 + 1.5 = 3
        ((0.5, 1.5), [[7 / 3, 0, -7 / 3]]),
        # 1 + 0, -1 + 2, 0 - 2, by 2
        ((1.0, 0.0), [[0.5, 0.5, -1]]),
        # 1 + 12, -1 + 0, 0 - 12, by 4
        ((0.0, 3.0), [[3.25, -0.25, -3]]),
        ((0.0, 0.0), [[1, -1, 0]]),
    ],
)
def test_constraints_count_by_their_multipliers(
    multipliers: Sequence[float], advantages: Rows
) -> None:
    assert close(constrained_advantages(TASK, [FIRST, SECOND], multipliers), advantages)


def test_without_multipliers_what_is_left_is_grpo() -> None:
    assert close(constrained_advantages(TASK, [], []), [[1, -1, 0]])
    one = batch([[1, 0, 0, 0]], entailed=[[0.1, 0.9, 0.5, 0.2]], grounded=[[0, 1, 1, 0]])
    never = DualAscent(SCALED, Options(start=0), {})
    _, advantages = never.estimate(one)
    assert close(advantages, [[0.75 / 0.5001, *[-0.25 / 0.5001] * 3]])
    assert close(advantages, TaskReward(SCALED).estimate(one)[1].tolist())


# --- faithful GRPO ----------------------------------------------------------------------------

OWN = Options(consistency=0.9, grounding=0.8, start=0.5, rate=0.5, most=5)
BATCHES = [
    batch([[1, 0]], entailed=[[0.5, 0.9]], grounded=[[1.0, 0.8]]),
    batch([[1, 1]], entailed=[[1.0, 0.6]], grounded=[[0.4, 0.8]]),
]


def test_the_multipliers_follow_two_batches() -> None:
    ascent = DualAscent(PLAIN, OWN, {})
    assert ascent.figures == {"multiplier_entailed": 0.5, "multiplier_grounded": 0.5}
    rewards, advantages = ascent.estimate(BATCHES[0])
    # 1 + 0.5 x 0.5 + 0.5 x 1.0 and 0 + 0.5 x 0.9 + 0.5 x 0.8
    assert close(rewards, [[1.75, 0.85]])
    # gaps 0.5, -0.2 and 0.1: (0.5 - 0.5 x 0.2 + 0.5 x 0.1) / 2
    assert close(advantages, [[0.225, -0.225]])
    # means 0.7 and 0.9: 0.5 + 0.5 x 0.2 and 0.5 - 0.5 x 0.1
    assert ascent.multipliers == pytest.approx([0.6, 0.45], abs=1e-12)
    assert ascent.figures == {"multiplier_entailed": 0.6, "multiplier_grounded": 0.45}
    rewards, advantages = ascent.estimate(BATCHES[1])
    # 1 + 0.6 x 1.0 + 0.45 x 0.4 and 1 + 0.6 x 0.6 + 0.45 x 0.8
    assert close(rewards, [[1.78, 1.72]])
    # gaps 0, 0.2 and -0.2: (0.6 x 0.2 - 0.45 x 0.2) / (1 + 0.6 + 0.45)
    assert close(advantages, [[0.03 / 2.05, -0.03 / 2.05]])
    # means 0.8 and 0.6: 0.6 + 0.5 x 0.1 and 0.45 + 0.5 x 0.2
    assert ascent.multipliers == pytest.approx([0.65, 0.55], abs=1e-12)


def test_an_iteration_begins_with_the_multipliers_of_the_last_one() -> None:
    last = DualAscent(PLAIN, OWN, {})
    last.estimate(BATCHES[0])
    ascent = DualAscent(PLAIN, OWN, last.figures)
    assert ascent.multipliers == [0.6, 0.45]
    assert close(ascent.estimate(BATCHES[1])[1], [[0.03 / 2.05, -0.03 / 2.05]])
    # what was not learned begins where both began
    assert DualAscent(PLAIN, OWN, {"multiplier_grounded": 2.0}).multipliers == [0.5, 2.0]


def test_who_sees_the_same_batches_has_the_same_multipliers() -> None:
    first, second = DualAscent(SCALED, OWN, {}), DualAscent(SCALED, OWN, {})
    for seen in BATCHES:
        rewards, advantages = first.estimate(seen)
        again = second.estimate(seen)
        assert second.multipliers == first.multipliers
        assert (again[0] == rewards).all() and (again[1] == advantages).all()


def test_a_constraint_is_on_the_mean_of_all_that_was_scored() -> None:
    ascent = DualAscent(PLAIN, OWN, {})
    nothing = [[NAN, NAN], [NAN, NAN]]
    seen = batch([[1, 0], [0, 1]], entailed=[[1.0, 0.4], [0.4, NAN]], grounded=nothing)
    rewards, advantages = ascent.estimate(seen)
    # 1 + 0.5 x 1.0, 0.5 x 0.4; 0.5 x 0.4, 1
    assert close(rewards, [[1.5, 0.2], [0.2, 1]])
    # (0.5 + 0.5 x 0.3) / 2; in the second group one alone is scored: 0.5 / 2
    assert close(advantages, [[0.325, -0.325], [-0.25, 0.25]])
    # the mean of three is 0.6; nothing says whether statements are true
    assert ascent.multipliers == pytest.approx([0.65, 0.5], abs=1e-12)


def test_no_rewards_scale_hides_anothers() -> None:
    # variance of the answers 1/4 as above; of the consistency (0.0009 + 3 x 0.0001) / 3 = 0.02 ** 2
    seen = batch([[1, 0, 0, 0]], entailed=[[0, 0.04, 0, 0]], grounded=[[1, 1, 1, 1]])
    _, advantages = DualAscent(SCALED, OWN, {}).estimate(seen)
    right, wrong, more, less = 0.75 / 0.5001, -0.25 / 0.5001, 0.03 / 0.0201, -0.01 / 0.0201
    both = [right + less / 2, wrong + more / 2, wrong + less / 2, wrong + less / 2]
    assert close(advantages, [[a / 2 for a in both]])


# --- GRPO, with consistency or ranks ------------------------------------------------------------


def test_the_task_reward_is_answer_and_form() -> None:
    seen = batch([[1, 1, 0, 0]], form=[[0.1, 0, 0.1, 0]])
    rewards, advantages = TaskReward(PLAIN).estimate(seen)
    assert close(rewards, [[1.1, 1, 0.1, 0]])
    assert close(advantages, [[0.55, 0.45, -0.45, -0.55]])  # mean 0.55
    assert TaskReward(PLAIN).figures == {}


SPLIT = batch([[1, 0], [0, 1]], entailed=[[0.5, 0.9], [0.3, NAN]])


def test_consistency_counts_by_its_weight() -> None:
    rewards, advantages = SplitAdvantage(PLAIN, 0.25).estimate(SPLIT)
    # 0.75 + 0.25 x 0.5 and 0.25 x 0.9; 0.25 x 0.3 and 0.75
    assert close(rewards, [[0.875, 0.225], [0.075, 0.75]])
    # gaps 0.5 and -0.2: 0.75 x 0.5 - 0.25 x 0.2; one alone is scored: 0.75 x 0.5
    assert close(advantages, [[0.325, -0.325], [-0.375, 0.375]])


@pytest.mark.parametrize("settings", [PLAIN, SCALED])
def test_without_weight_consistency_is_nothing_and_with_all_of_it_everything(
    settings: Grpo,
) -> None:
    grpo = TaskReward(settings).estimate(SPLIT)
    for own, plain in zip(SplitAdvantage(settings, 0).estimate(SPLIT), grpo, strict=True):
        assert (own == plain).all()
    rewards, advantages = SplitAdvantage(settings, 1).estimate(SPLIT)
    assert close(rewards, [[0.5, 0.9], [0.3, 0]])
    # gaps 0.2, variance 2 x 0.04 / 1
    gap = 0.2 / (0.08**0.5 + 1e-4) if settings.scale == "group" else 0.2
    assert close(advantages, [[-gap, gap], [0, 0]])


@pytest.mark.parametrize(
    ("correct", "strength", "rewards"),
    [
        # ranks 1, 3, 2 of three: 1 + 0.5 x (4 - 2 k) / 2 = 1.5, 0.5, 1
        ([1, 1, 1, 0], [0.5, 0.2, 0.3, NAN], [1.5, 0.5, 1, 0]),
        # ranks 2, 1, 4, 3 of four: 1 + 0.5 x (5 - 2 k) / 3, in steps of 1/3
        ([1, 1, 1, 1], [0.3, 0.4, 0.1, 0.2], [7 / 6, 1.5, 0.5, 5 / 6]),
        # the first two share rank 1.5: 1 + 0.5 x (4 - 3) / 2
        ([1, 1, 1, 0], [0.4, 0.4, 0.2, NAN], [1.25, 1.25, 0.5, 0]),
        # the last two share rank 2.5
        ([1, 1, 1, 0], [0.2, 0.6, 0.2, NAN], [0.75, 1.5, 0.75, 0]),
        ([1, 1, 0, 0], [0.5, 0.5, NAN, NAN], [1, 1, 0, 0]),
        ([1, 1, 1, 1], [0.25, 0.25, 0.25, 0.25], [1, 1, 1, 1]),
        # one alone, ranked or not
        ([0, 1, 0, 0], [NAN, NAN, NAN, NAN], [0, 1, 0, 0]),
        ([0, 1, 0, 0], [NAN, 0.3, NAN, NAN], [0, 1, 0, 0]),
        # who was not ranked stands beside the two who were
        ([1, 1, 1, 0], [0.5, NAN, 0.25, NAN], [1.5, 1, 0.5, 0]),
        ([1, 1, 0, 0], [0.5, NAN, NAN, NAN], [1, 1, 0, 0]),
        ([1, 1, 1, 1], [NAN, NAN, NAN, NAN], [1, 1, 1, 1]),
        # a wrong answer is worth nothing and beats nobody, however strong
        ([0, 1, 1, 0], [0.9, 0.2, 0.1, 0.8], [0, 1.5, 0.5, 0]),
        ([0, 0, 0, 0], [0.9, NAN, 0.1, NAN], [0, 0, 0, 0]),
    ],
)
def test_right_answers_share_their_reward_by_rank(
    correct: Sequence[float], strength: Sequence[float], rewards: Sequence[float]
) -> None:
    right = array([correct, [1, 1, 0, 0]])  # another group changes nothing
    before = right.copy()
    found = rank_rewards(right, array([strength, [1, 2, 3, NAN]]), 0.5)
    assert close(found, [rewards, [0.5, 1.5, 0, 0]])
    assert (right == before).all()


def test_at_spread_one_the_last_right_answer_is_worth_a_wrong_one() -> None:
    found = rank_rewards(array([[1, 1, 1, 0]]), array([[0.1, 0.7, 0.2, NAN]]), 1.0)
    assert close(found, [[0, 2, 1, 0]])


STRENGTHS = st.sampled_from([NAN, 0.0, 0.1, 0.2, 0.3, 0.4])
MEMBER = st.tuples(st.sampled_from([0.0, 1.0]), STRENGTHS)


@given(st.lists(MEMBER, min_size=1, max_size=9), st.floats(0.01, 1))
def test_what_right_answers_are_worth_together_stays_the_same(
    group: list[tuple[float, float]], spread: float
) -> None:
    correct, strength = (array([row]) for row in zip(*group, strict=True))
    found = rank_rewards(correct, strength, spread)
    assert found.sum() == pytest.approx(correct.sum())
    assert (found[correct == 0] == 0).all()
    assert (np.abs(found[correct == 1] - 1) <= spread + 1e-9).all()
    order = [(s, r) for (c, s), r in zip(group, found[0], strict=True) if c and s == s]
    for one, other in zip(sorted(order), sorted(order)[1:], strict=False):
        assert (one[0] < other[0]) == (one[1] < other[1])


def test_the_form_stands_beside_the_ranks() -> None:
    seen = batch([[1, 1, 1, 0]], form=[[0.1, 0.1, 0, 0.1]], strength=[[0.5, 0.2, 0.3, NAN]])
    rewards, advantages = RankReward(PLAIN, 0.5).estimate(seen)
    assert close(rewards, [[1.6, 0.6, 1, 0.1]])
    assert close(advantages, [[0.775, -0.225, 0.175, -0.725]])  # mean 3.3 / 4
    # unranked, it is GRPO
    unread = batch([[1, 1, 1, 0]], form=[[0.1, 0.1, 0, 0.1]], strength=[[NAN] * 4])
    for own, plain in zip(
        RankReward(SCALED, 0.5).estimate(unread), TaskReward(SCALED).estimate(unread), strict=True
    ):
        assert close(own, plain.tolist())


# --- what a batch is worth ----------------------------------------------------------------------

RIGHT = "Rationale: The red bar is 3. So it is 3.\nAnswer: 3"
BARE, WRONG = "Answer: 3", "Rationale: The red bar is 4. So it is 4.\nAnswer: 4"


class Own(parts.Estimator):
    """What a method of another package may do: its advantages are not around 0."""

    seen: parts.Batch

    def estimate(self, batch: parts.Batch) -> tuple[Groups, Groups]:
        self.seen = batch
        return batch.task + 1, batch.signals["first"]


def test_a_response_is_on_record_with_all_that_is_known_of_it() -> None:
    recipe, own = Recipe(name="r", iterations=1, grpo={"format_weight": 0.25}), Own()
    grading = online._Grading(recipe, ("first", "second"), None, own)
    known, unknown = (Sample(name, "", "q", answer) for name, answer in (("s", "3"), ("t", " ")))
    groups = [Group(known, (RIGHT, BARE, WRONG)), Group(unknown, (WRONG, BARE, RIGHT))]
    judged = [[(4.0, NAN), (1.0, 5.0), (1.0, 6.0)], [(0.0, 7.0), (0.0, 8.0), (3.0, 9.0)]]
    found = [one for group in grading.weigh(groups, judged) for one in group]
    assert close(own.seen.correct, [[1, 1, 0], [NAN, NAN, NAN]])
    assert close(own.seen.form, [[0.25, 0, 0.25], [0.25, 0, 0.25]])
    assert close(own.seen.task, [[1.25, 1, 0.25], [NAN, NAN, NAN]])
    assert close(own.seen.signals["second"], [[NAN, 5, 6], [7, 8, 9]])
    assert [one.compliant for one in found] == [True, False, True, True, False, True]
    assert repr([one.correct for one in found]) == repr([1.0, 1.0, 0.0, NAN, NAN, NAN])
    assert repr([one.reward for one in found]) == repr([2.25, 2.0, 1.25, NAN, NAN, NAN])
    assert repr([one.judged for one in found]) == repr([j for group in judged for j in group])
    # as TRL would do it, so that what is on record is what the policy learns from: means 2 and 1
    assert [one.advantage for one in found] == [2, -1, -1, -1, -1, 2]


# --- SRC online -------------------------------------------------------------------------------


def test_a_right_answer_counts_beside_the_score_if_it_has_a_weight() -> None:
    seen = batch([[1, 0, 1]], form=[[0, 0.1, 0.1]], score=[[-0.5, 0.5, NAN]])
    rewards, advantages = ScoreReward(PLAIN, 0.0).estimate(seen)
    assert close(rewards, [[-0.5, 0.5, NAN]])
    assert close(advantages, [[-0.5, 0.5, 0]])
    rewards, advantages = ScoreReward(PLAIN, 0.5).estimate(seen)
    # -0.5 + 0.5 x 1, 0.5 + 0.5 x 0.1; a task reward does not make up for a score
    assert close(rewards, [[0, 0.55, NAN]])
    assert close(advantages, [[-0.275, 0.275, 0]])
    # variance 2 x 0.5 ** 2 / 1
    gap = 0.5 / (0.5**0.5 + 1e-4)
    assert close(ScoreReward(SCALED, 0.0).estimate(seen)[1], [[-gap, gap, 0]])


def test_without_a_weight_no_reference_answer_is_needed() -> None:
    seen = batch([[NAN, NAN]], score=[[0.5, 0.25]])
    rewards, advantages = ScoreReward(PLAIN, 0.0).estimate(seen)
    assert close(rewards, [[0.5, 0.25]]) and close(advantages, [[0.125, -0.125]])
    rewards, advantages = ScoreReward(PLAIN, 1.0).estimate(seen)
    assert close(rewards, [[NAN, NAN]]) and close(advantages, [[0, 0]])


S, T = (Sample(name, "", "q", "", facts=f"facts of {name}") for name in "st")
Signals = list[list[tuple[float, ...]]]


def rated(says: Any, *groups: Group, by: str = "expected") -> tuple[Signals, ScriptedJudge]:
    """The scores by a judge that follows a script, of which the cost is what was asked."""
    judge = ScriptedJudge(says)
    recipe = Recipe(name="r", iterations=1, curate={"aggregator": by})
    work: Any = None
    rater = ScoreRater(recipe, work, parts.Judging((), {}, lambda work: judge))
    unknown = [[NAN for _ in g.texts] for g in groups]
    found = rater.rate(groups, unknown)
    assert rater.cost(groups, unknown) == len(judge.asked)
    return found, judge


ODDS: dict[str, tuple[float, float, float]] = {
    "ab": (0.7, 0.1, 0.2), "ac": (0.2, 0.2, 0.6), "bc": (0.0, 0.9, 0.1),
}  # fmt: skip
"""Of the first of two texts better, the second, and neither."""


def by_odds(c: Any) -> Said:
    """Says the same in either order; of `?` nothing that can be read."""
    first, second = c.first.text, c.second.text
    if "?" in first + second:
        return None
    if first + second in ODDS:
        return ODDS[first + second]
    better, worse, neutral = ODDS[second + first]
    return worse, better, neutral


def scores(found: Signals) -> list[list[float]]:
    return [[own for (own,) in group] for group in found]


def test_all_pairs_of_different_texts_are_compared_in_both_orders() -> None:
    found, judge = rated(by_odds, Group(S, ("a", "b", "c")))
    pairs = [(c.sample, c.first.text, c.second.text) for c in judge.asked]
    assert sorted(p[1] + p[2] for p in pairs) == ["ab", "ac", "ba", "bc", "ca", "cb"]
    assert all(sample is S for sample, *_ in pairs)
    # gains 0.6 of a on b, 0 of a on c, -0.9 of b on c
    assert close(array(scores(found)), [[0.3, -0.75, 0.45]])


def test_scores_are_aggregated_as_in_curation() -> None:
    found, _ = rated(by_odds, Group(S, ("a", "b", "c")), by="confidence")
    # a: won at 0.7, neutral at 0.6: 0.7 / 1.3; b: lost at 0.7 and 0.9; c: neutral, won: 0.9 / 1.5
    assert close(array(scores(found)), [[0.7 / 1.3, -1, 0.6]])
    found, _ = rated(by_odds, Group(S, ("a", "b", "c")), by="majority")
    assert close(array(scores(found)), [[0.5, -1, 0.5]])


def test_a_judge_that_goes_by_the_place_says_nothing() -> None:
    found, judge = rated(lambda c: (0.9, 0.0, 0.1), Group(S, ("a", "b", "c")))
    assert len(judge.asked) == 6
    assert close(array(scores(found)), [[0, 0, 0]])


def test_equal_texts_share_their_score() -> None:
    found, judge = rated(by_odds, Group(S, ("a", "b", "a", "a", "b")))
    assert len(judge.asked) == 2
    assert close(array(scores(found)), [[0.6, -0.6, 0.6, 0.6, -0.6]])


def test_a_group_of_one_text_is_not_compared() -> None:
    found, judge = rated(by_odds, Group(S, ("a", "a", "a")), Group(T, ("?", "?")))
    assert not judge.asked
    assert scores(found) == [[0, 0, 0], [0, 0]]


def test_groups_have_scores_of_their_own() -> None:
    groups = [
        Group(S, ("b", "a")),
        Group(T, ("a", "a")),
        Group(T, ("c", "b")),
        Group(S, ("c", "a")),
    ]
    found, judge = rated(by_odds, *groups)
    assert [c.sample.id for c in judge.asked] == ["s", "s", "t", "t", "s", "s"]
    assert close(array(scores(found)), [[-0.6, 0.6], [0, 0], [0.9, -0.9], [0, 0]])


def test_a_text_without_a_readable_verdict_has_no_score() -> None:
    found, judge = rated(by_odds, Group(S, ("a", "?", "b", "?")), Group(T, ("?", "a", "a", "?")))
    assert len(judge.asked) == 6 + 2  # it was asked, and costs
    assert close(array(scores(found)), [[0.6, NAN, -0.6, NAN], [NAN] * 4])
    # one order is enough
    one_order, _ = rated(
        lambda c: by_odds(c) if c.first.text == "a" else None, Group(S, ("a", "b"))
    )
    assert close(array(scores(one_order)), [[0.6, -0.6]])
