"""Curation: judgments in, one preference pair or one named drop a sample out."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcal.curate import (
    AGGREGATORS,
    Aggregator,
    Comparison,
    Scores,
    bradley_terry,
    confidence,
    curate,
    expected,
    majority,
    merge_orders,
)
from selfcal.types import Candidate, Drop, Judgment, PreferencePair, Verdict

Odds = tuple[float, float, float]
"""Probabilities of i better, j better, neutral."""


def candidate(index: int, logprob: float = 0.0, sample: str = "s") -> Candidate:
    return Candidate(sample, index, f"text {index}", (), (logprob,), (), finished=True)


def judged(i: int, j: int, odds: Odds | None, sample: str = "s") -> Judgment:
    """One comparison, shown as i then j; None is unscored."""
    verdicts: tuple[Verdict, ...] = ("first", "second", "neutral")
    if odds is None:
        return Judgment(sample, i, j, None, 0.0, 0.0, 0.0)
    return Judgment(sample, i, j, verdicts[odds.index(max(odds))], *odds)


def both_orders(table: Mapping[tuple[int, int], Odds | None]) -> list[Judgment]:
    """Every pair in both orders, by a judge to whom the order makes no difference."""
    made = []
    for (i, j), odds in table.items():
        made += [judged(i, j, odds), judged(j, i, odds and (odds[1], odds[0], odds[2]))]
    return made


def comparisons(table: Mapping[tuple[int, int], Odds]) -> list[Comparison]:
    return [Comparison(i, j, *odds) for (i, j), odds in table.items()]


# --- both orders of a pair --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judgments", "merged"),
    [
        # order 2, 1 says "first" with 0.6: that is 2 better. P_12 = (0.5 + 0.3) / 2,
        # P_21 = (0.2 + 0.6) / 2, P_0 = (0.3 + 0.1) / 2
        ([judged(1, 2, (0.5, 0.2, 0.3)), judged(2, 1, (0.6, 0.3, 0.1))], [(1, 2, 0.4, 0.4, 0.2)]),
        # one order unscored: the other stands alone, mapped back
        ([judged(1, 2, None), judged(2, 1, (0.6, 0.3, 0.1))], [(1, 2, 0.3, 0.6, 0.1)]),
        ([judged(1, 2, (0.5, 0.2, 0.3)), judged(2, 1, None)], [(1, 2, 0.5, 0.2, 0.3)]),
        # both unscored: the pair is left out, whatever numbers stand in it
        ([replace(judged(1, 2, (0.5, 0.2, 0.3)), verdict=None), judged(2, 1, None)], []),
        ([], []),
        # pairs come out in order of their indices
        (
            [judged(2, 0, (1, 0, 0)), judged(1, 0, (0, 1, 0)), judged(0, 3, (0, 0, 1))],
            [(0, 1, 1, 0, 0), (0, 2, 0, 1, 0), (0, 3, 0, 0, 1)],
        ),
    ],
)
def test_orders_are_mapped_back_and_averaged(
    judgments: list[Judgment], merged: list[tuple[int, int, float, float, float]]
) -> None:
    found = merge_orders(judgments)
    assert [(c.i, c.j) for c in found] == [row[:2] for row in merged]
    for c, row in zip(found, merged, strict=True):
        assert (c.p_i, c.p_j, c.p_neutral) == pytest.approx(row[2:])


def test_a_judge_that_always_prefers_the_first_place_says_nothing() -> None:
    biased: Odds = (0.8, 0.1, 0.1)
    (c,) = merge_orders([judged(0, 1, biased), judged(1, 0, biased)])
    assert c.p_i == c.p_j == pytest.approx(0.45)  # (0.8 + 0.1) / 2
    for aggregate in AGGREGATORS.values():
        assert aggregate([c]) == {0: 0, 1: 0}


# --- aggregators ------------------------------------------------------------------------------

THREE: dict[tuple[int, int], Odds] = {
    (0, 1): (0.7, 0.2, 0.1),  # 0 wins, c = 0.7
    (0, 2): (0.1, 0.3, 0.6),  # neutral, c = 0.6
    (1, 2): (0.4, 0.4, 0.2),  # tie of the two sides: neutral, c = 0.4
}


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        # S_0 = (0.7 + 0) / (0.7 + 0.6), S_1 = (-0.7 + 0) / (0.7 + 0.4), S_2 = 0 / (0.6 + 0.4)
        ("confidence", {0: 7 / 13, 1: -7 / 11, 2: 0}),
        # S_0 = (0.5 - 0.2) / 2, S_1 = (-0.5 + 0) / 2, S_2 = (0.2 + 0) / 2
        ("expected", {0: 0.15, 1: -0.25, 2: 0.1}),
        # one win of two, one loss of two, none
        ("majority", {0: 0.5, 1: -0.5, 2: 0}),
    ],
)
def test_aggregators_by_hand(name: str, scores: Scores) -> None:
    assert AGGREGATORS[name](comparisons(THREE)) == pytest.approx(scores)


@pytest.mark.parametrize(
    "odds", [(0.4, 0.2, 0.4), (0.2, 0.4, 0.4), (0.4, 0.4, 0.2), (0.2, 0.2, 0.6)]
)
def test_a_tie_of_outcomes_counts_as_neutral(odds: Odds) -> None:
    table = comparisons({(0, 1): odds})
    assert confidence(table) == majority(table) == {0: 0, 1: 0}


# Bradley-Terry, worked out apart from the code. With strengths s_i, and one imagined game against
# strength 1 won half, the maximum satisfies for each i: expected wins = wins,
#     s_i / (s_i + 1) + sum_j s_i / (s_i + s_j) = 1/2 + w_i,    w_ij = P_ij + P_0 / 2,
# and the score is tanh(log(s_i) / 2) = (s_i - 1) / (s_i + 1).
BRADLEY_TERRY: dict[str, tuple[dict[tuple[int, int], Odds], Scores]] = {
    # Two players, s_1 = 1 / s_0: s / (s + 1) + s^2 / (s^2 + 1) = 1/2 + w. For s = 2 that is
    # 2/3 + 4/5 = 22/15, so w = 29/30; the scores are +-(2 - 1) / (2 + 1).
    "two": ({(0, 1): (29 / 30, 1 / 30, 0)}, {0: 1 / 3, 1: -1 / 3}),
    # the same w = 28/30 + (2/30) / 2: a neutral outcome counts half to each side
    "two, with a tie": ({(0, 1): (28 / 30, 0, 2 / 30)}, {0: 1 / 3, 1: -1 / 3}),
    # Three players, s = (2, 1, 1/2). Player 0: 2/3 + 2/3 + 4/5 = 32/15 = 1/2 + w_01 + w_02, solved
    # by w_01 = 4/5, w_02 = 5/6. Player 1: 1/2 + 1/3 + 2/3 = 3/2 = 1/2 + 1/5 + w_12, so w_12 = 4/5.
    "three": (
        {(0, 1): (4 / 5, 1 / 5, 0), (0, 2): (5 / 6, 1 / 6, 0), (1, 2): (4 / 5, 1 / 5, 0)},
        {0: 1 / 3, 1: 0, 2: -1 / 3},
    ),
    # by symmetry all are equal
    "even": ({(0, 1): (0.3, 0.3, 0.4)}, {0: 0, 1: 0}),
    "cycle": (
        {(0, 1): (0.9, 0.1, 0), (1, 2): (0.9, 0.1, 0), (0, 2): (0.1, 0.9, 0)},
        {0: 0, 1: 0, 2: 0},
    ),
}


@pytest.mark.parametrize("case", BRADLEY_TERRY)
def test_bradley_terry_by_hand(case: str) -> None:
    table, scores = BRADLEY_TERRY[case]
    assert bradley_terry(comparisons(table)) == pytest.approx(scores, abs=1e-9)


def test_bradley_terry_keeps_an_undefeated_candidate_finite() -> None:
    scores = bradley_terry(comparisons({(0, 1): (1, 0, 0)}))
    # w = 1: s / (s + 1) + s^2 / (s^2 + 1) = 3/2; times 2 (s + 1)(s^2 + 1) that is s^3 - s^2 - s = 3
    s = (1 + scores[0]) / (1 - scores[0])
    assert s**3 - s**2 - s == pytest.approx(3)
    assert scores[1] == pytest.approx(-scores[0])


@pytest.mark.parametrize("aggregate", AGGREGATORS.values(), ids=list(AGGREGATORS))
def test_no_comparisons_no_scores(aggregate: Aggregator) -> None:
    assert aggregate([]) == {}


# --- pairs and drops --------------------------------------------------------------------------

WON: Odds = (0.9, 0.1, 0.0)
EVEN: Odds = (0.2, 0.2, 0.6)


def test_best_and_worst_become_chosen_and_rejected() -> None:
    own = [candidate(i) for i in range(3)]
    pairs, drops = curate(own, both_orders(THREE))
    (pair,) = pairs
    assert not drops
    assert (pair.sample_id, pair.chosen, pair.rejected) == ("s", "text 0", "text 1")
    assert (pair.chosen_index, pair.rejected_index) == (0, 1)
    assert (pair.chosen_score, pair.rejected_score) == pytest.approx((7 / 13, -7 / 11))
    assert pair.margin == pytest.approx(7 / 13 + 7 / 11)


@pytest.mark.parametrize(
    ("n", "table", "margin", "reason", "detail"),
    [
        (1, {}, 0.0, "one-candidate", ""),
        (2, {}, 0.0, "unscored", ""),
        (3, {(0, 1): None, (0, 2): None, (1, 2): None}, 0.0, "unscored", ""),
        (2, {(0, 1): EVEN}, 0.0, "no-gap", ""),
        (2, {(0, 1): EVEN}, 0.5, "no-gap", ""),
        (3, {(0, 1): WON, (1, 2): WON, (0, 2): (0.1, 0.9, 0.0)}, 0.0, "no-gap", ""),
        # 7/13 + 7/11 = 1.1748...
        (3, THREE, 1.2, "below-margin", "1.175 < 1.200"),
    ],
)
def test_drops_name_their_reason(
    n: int, table: dict[tuple[int, int], Odds | None], margin: float, reason: str, detail: str
) -> None:
    own = [candidate(i) for i in range(n)]
    assert curate(own, both_orders(table), margin=margin) == (
        [],
        [Drop("s", "pairs", reason, detail)],
    )


def test_rounding_errors_decide_nothing() -> None:
    # gains 0.1 + 0.2 - 0.3 and 0.3 - 0.1 - 0.2: all four scores are 0, but not in binary
    four: dict[tuple[int, int], Odds] = {
        (0, 1): (0.1, 0, 0.9), (0, 2): (0.2, 0, 0.8), (0, 3): (0, 0.3, 0.7),
        (1, 2): (0, 0, 1), (1, 3): (0.1, 0, 0.9), (2, 3): (0.2, 0, 0.8),
    }  # fmt: skip
    assert 0.1 + 0.2 - 0.3 > 0
    own = [candidate(i) for i in range(4)]
    assert curate(own, both_orders(four), expected)[1] == [Drop("s", "pairs", "no-gap")]
    # scores +-0.1, gap 0.2: not below a margin of 0.2, though 0.35 - 0.25 < 0.1 in binary
    assert 2 * (0.35 - 0.25) < 0.2
    pairs, _ = curate(own[:2], both_orders({(0, 1): (0.35, 0.25, 0.4)}), expected, margin=0.2)
    assert len(pairs) == 1


@pytest.mark.parametrize(
    ("logprobs", "chosen", "rejected"),
    [
        # 0 and 1 tie for best over 2 and 3, which tie for worst
        ((-1.0, -2.0, -3.0, -4.0), 0, 2),
        ((-2.0, -1.0, -4.0, -3.0), 1, 3),
        ((-5.0, -5.0, -5.0, -5.0), 0, 2),  # equally likely: the first of them
    ],
)
def test_ties_go_to_the_likelier_candidate(
    logprobs: Sequence[float], chosen: int, rejected: int
) -> None:
    table: dict[tuple[int, int], Odds] = {(i, j): WON for i in (0, 1) for j in (2, 3)}
    table |= {(0, 1): EVEN, (2, 3): EVEN}
    for aggregate in AGGREGATORS.values():
        own = [candidate(i, p) for i, p in enumerate(logprobs)]
        ((pair,), _) = curate(own, both_orders(table), aggregate)
        assert (pair.chosen_index, pair.rejected_index) == (chosen, rejected)


def test_an_unreadable_verdict_is_no_tie() -> None:
    own = [candidate(i) for i in range(3)]
    won: dict[tuple[int, int], Odds | None] = {(0, 1): WON, (1, 2): WON, (0, 2): None}
    ((unread,), _) = curate(own, both_orders(won))
    ((tied,), _) = curate(own, both_orders(won | {(0, 2): EVEN}))
    # 0 was read once, and won: S_0 = 0.9 / 0.9. A tie of 0.6 would pull: 0.9 / (0.9 + 0.6)
    assert (unread.chosen_score, unread.rejected_score) == pytest.approx((1, -1))
    assert (tied.chosen_score, tied.rejected_score) == pytest.approx((0.6, -0.6))


def test_samples_keep_to_themselves() -> None:
    own = [candidate(i, sample=s) for s in ("b", "a", "c") for i in range(2)]
    asked = [judged(0, 1, WON, "a"), judged(1, 0, (0.8, 0.1, 0.1), "b"), judged(0, 1, WON, "b")]
    pairs, drops = curate(own, asked)
    # b: P_01 = (0.9 + 0.1) / 2 = 0.5, P_10 = (0.1 + 0.8) / 2 = 0.45: 0 still wins
    assert [(p.sample_id, p.chosen_index) for p in pairs] == [("b", 0), ("a", 0)]
    assert drops == [Drop("c", "pairs", "unscored")]


# --- what must hold for any judgments ---------------------------------------------------------

ODDS = st.tuples(*[st.integers(0, 9)] * 3).filter(any).map(lambda w: tuple(x / sum(w) for x in w))


@st.composite
def sample_judgments(draw: st.DrawFn) -> tuple[list[Candidate], list[Judgment]]:
    n = draw(st.integers(2, 5))
    own = [candidate(i, draw(st.sampled_from([-1.0, -2.0]))) for i in range(n)]
    asked = [judged(i, j, draw(st.none() | ODDS)) for i in range(n) for j in range(n) if i != j]
    return own, asked


NAMES = st.sampled_from(sorted(AGGREGATORS))
ANY = settings(deadline=None)  # a busy machine is no defect


@ANY
@given(sample_judgments(), NAMES, st.sampled_from([0.0, 0.2, 1.0]), st.randoms())
def test_order_of_records_changes_nothing(
    made: tuple[list[Candidate], list[Judgment]], name: str, margin: float, rng: random.Random
) -> None:
    own, asked = made
    shuffled = rng.sample(own, len(own)), rng.sample(asked, len(asked))
    aggregate = AGGREGATORS[name]
    assert curate(*shuffled, aggregate, margin) == curate(own, asked, aggregate, margin)


@ANY
@given(sample_judgments(), NAMES)
def test_scores_lie_between_minus_one_and_one(
    made: tuple[list[Candidate], list[Judgment]], name: str
) -> None:
    scores = AGGREGATORS[name](merge_orders(made[1]))
    assert all(-1 <= s <= 1 for s in scores.values())
    read = {k for g in made[1] if g.verdict is not None for k in (g.first, g.second)}
    assert set(scores) == read


@ANY
@given(sample_judgments(), NAMES)
def test_swapping_winners_and_losers_negates_the_scores(
    made: tuple[list[Candidate], list[Judgment]], name: str
) -> None:
    swapped = [replace(g, p_first=g.p_second, p_second=g.p_first) for g in made[1]]
    scores = AGGREGATORS[name](merge_orders(made[1]))
    negated = {i: -s for i, s in scores.items()}
    assert AGGREGATORS[name](merge_orders(swapped)) == pytest.approx(negated, abs=1e-9)


@ANY
@given(sample_judgments(), NAMES)
def test_a_pair_is_a_gap_that_reaches_the_margin(
    made: tuple[list[Candidate], list[Judgment]], name: str
) -> None:
    pairs, drops = curate(*made, AGGREGATORS[name], margin=0.3)
    assert len(pairs) + len(drops) == 1
    for pair in pairs:
        assert isinstance(pair, PreferencePair) and pair.margin >= 0.3 - 1e-9
        assert pair.chosen != pair.rejected


# --- ties -------------------------------------------------------------------------------------


def told(scores: Scores) -> Aggregator:
    """An aggregator that gives these scores, whatever was judged."""
    return lambda comparisons: dict(scores)


def tied(
    scores: Scores, logprobs: Sequence[float], tie: float, margin: float = 0.0
) -> tuple[int, int] | Drop:
    """Chosen and rejected, or why there are none."""
    own = [candidate(i, p) for i, p in enumerate(logprobs)]
    pairs, drops = curate(own, [], told(scores), margin, tie)
    if drops:
        assert not pairs
        return drops[0]
    ((pair,),) = [pairs]
    assert (pair.chosen_score, pair.rejected_score) == pytest.approx(
        (scores[pair.chosen_index], scores[pair.rejected_index])
    )
    return pair.chosen_index, pair.rejected_index


FOUR = {0: 0.30, 1: 0.28, 2: 0.06, 3: 0.05}
LIKELY = (-5.0, -1.0, -1.0, -9.0)


@pytest.mark.parametrize(
    ("tie", "ends"),
    [
        (0.0, (0, 3)),
        (0.015, (0, 2)),  # 2 is 0.01 from the worst, 1 is 0.02 from the best
        (0.02, (1, 2)),  # at most that far
        (0.05, (1, 2)),
    ],
)
def test_near_equal_scores_go_to_the_likelier(tie: float, ends: tuple[int, int]) -> None:
    assert tied(FOUR, LIKELY, tie) == ends


def test_near_equal_and_equally_likely_is_the_first() -> None:
    assert tied({0: 0.28, 1: 0.30, 2: 0.06, 3: 0.05}, [-1.0] * 4, 0.05) == (0, 2)


def test_the_margin_is_that_of_the_two_who_are_taken() -> None:
    # 0.30 - 0.05 would reach 0.25, but 1 and 2 are taken: 0.28 - 0.06 = 0.22
    assert tied(FOUR, LIKELY, 0.05, margin=0.25) == Drop(
        "s", "pairs", "below-margin", "0.220 < 0.250"
    )
    assert tied(FOUR, LIKELY, 0.05, margin=0.22) == (1, 2)
    assert tied(FOUR, LIKELY, 0.0, margin=0.25) == (0, 3)


@pytest.mark.parametrize(
    ("scores", "tie", "dropped"),
    [
        ({0: 0.1, 1: 0.0}, 0.05, True),
        ({0: 0.1, 1: 0.0}, 0.049, False),
        ({0: 0.11, 1: 0.0}, 0.05, False),
        ({0: 0.1, 1: 0.05, 2: 0.0}, 0.05, True),  # 1 would be best and worst
        ({0: 0.3, 1: 0.1}, 0.1, True),  # 0.3 - 0.1 > 2 x 0.1 in binary, by a rounding error
        ({0: 1.0, 1: -1.0}, 1.0, True),
        ({0: 1.0, 1: -1.0}, 0.99, False),
    ],
)
def test_a_gap_of_two_ties_is_none(scores: Scores, tie: float, dropped: bool) -> None:
    found = tied(scores, [-1.0] * len(scores), tie)
    assert found == (Drop("s", "pairs", "no-gap") if dropped else (0, len(scores) - 1))


@ANY
@given(
    st.lists(st.tuples(st.integers(-20, 20), st.sampled_from([-1.0, -2.0])), min_size=2),
    st.integers(0, 15),
    st.randoms(),
)
def test_best_and_worst_are_two_within_a_tie_of_the_ends(
    made: list[tuple[int, float]], twentieths: int, rng: random.Random
) -> None:
    scores = {i: s / 20 for i, (s, _) in enumerate(made)}
    found = tied(scores, [p for _, p in made], twentieths / 20)
    whole = [s for s, _ in made]  # whole numbers: no rounding in the test
    if max(whole) - min(whole) <= 2 * twentieths:
        assert found == Drop("s", "pairs", "no-gap")
        return
    assert not isinstance(found, Drop)
    best, worst = found
    assert best != worst
    assert max(whole) - whole[best] <= twentieths and whole[worst] - min(whole) <= twentieths
    for i, (s, p) in enumerate(made):
        assert max(whole) - s > twentieths or (p, -i) <= (made[best][1], -best)
        assert s - min(whole) > twentieths or (p, -i) <= (made[worst][1], -worst)
    own = [candidate(i, p) for i, (_, p) in enumerate(made)]
    shuffled, order = rng.sample(own, len(own)), rng.sample(sorted(scores), len(scores))
    again, _ = curate(shuffled, [], told({i: scores[i] for i in order}), 0.0, twentieths / 20)
    assert [(p.chosen_index, p.rejected_index) for p in again] == [found]
