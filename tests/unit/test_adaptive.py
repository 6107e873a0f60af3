"""The adaptive schedule: what it asks, when it stops, and that it ends where all pairs end."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations

import pytest

from selfcal.adaptive import Noise, Schedule, Score, compare, imputed
from selfcal.curate import AGGREGATORS, Aggregator, confidence, curate, decide, merge_orders
from selfcal.judge.controls import GuessingJudge
from selfcal.judge.scorer import Comparison, all_comparisons, judgment
from selfcal.testing import Said, ScriptedJudge
from selfcal.types import Candidate, Judgment, Sample

EQUAL = {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0}
"""Log-probabilities of four equally likely candidates."""


def sample(name: str = "s") -> Sample:
    return Sample(name, "", "question", "")


def candidates(n: int, name: str = "s") -> list[Candidate]:
    """Candidate 0 is the likeliest."""
    return [Candidate(name, i, f"text {i}", (), (-float(i),), (), finished=True) for i in range(n)]


def score(aggregate: Aggregator = confidence) -> Score:
    return lambda judgments: aggregate(merge_orders(judgments))


def by_quality(quality: Sequence[float], sure: float = 0.98) -> Callable[[Comparison], Said]:
    """The better response wins, equal ones are neutral, each time with the probability `sure`."""

    def says(c: Comparison) -> Said:
        gap = quality[c.first.index] - quality[c.second.index]
        at = 0 if gap > 0 else 1 if gap < 0 else 2
        return [sure if k == at else (1 - sure) / 2 for k in range(3)]

    return says


# --- the rule ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "logprobs", "margin", "tie", "outcome"),
    [
        ({0: 0.5, 1: -0.5, 2: 0.0}, EQUAL, 0.0, 0.0, (0, 1)),
        # equal scores: the likelier one, then the lower index
        ({0: 0.5, 1: 0.5, 2: 0.0, 3: 0.0}, EQUAL | {1: 1.0, 3: 1.0}, 0.0, 0.0, (1, 3)),
        ({0: 0.5, 1: 0.5, 2: 0.0, 3: 0.0}, EQUAL, 0.0, 0.0, (0, 2)),
        # 1 + 1e-12 is 1 in nine decimals
        ({0: 1.0, 1: 1.0 + 1e-12, 2: 0.0}, EQUAL, 0.0, 0.0, (0, 2)),
        # no gap, a gap below the margin, a gap that just reaches it
        ({0: 0.3, 1: 0.3}, EQUAL, 0.0, 0.0, None),
        ({0: 0.3, 1: 0.2}, EQUAL, 0.2, 0.0, None),
        ({0: 0.3, 1: 0.1}, EQUAL, 0.2, 0.0, (0, 1)),
        # within 0.05 of the ends is a tie: 1 beats 0 and 3 beats 2 by likelihood
        ({0: 0.5, 1: 0.45, 2: -0.5, 3: -0.46}, EQUAL | {1: 1.0, 3: 1.0}, 0.0, 0.05, (1, 3)),
        ({0: 0.5, 1: 0.44, 2: -0.5, 3: -0.44}, EQUAL | {1: 1.0, 3: 1.0}, 0.0, 0.05, (0, 2)),
        # all within two ties of each other: nobody is both best and worst
        ({0: 0.1, 1: 0.0}, EQUAL, 0.0, 0.05, None),
        ({0: 0.1}, EQUAL, 0.0, 0.0, None),
        ({}, EQUAL, 0.0, 0.0, None),
    ],
)
def test_decide(
    scores: dict[int, float],
    logprobs: dict[int, float],
    margin: float,
    tie: float,
    outcome: tuple[int, int] | None,
) -> None:
    assert decide(scores, logprobs, margin, tie) == outcome


# --- what is asked ----------------------------------------------------------------------------


def test_one_candidate_needs_no_comparison() -> None:
    assert Schedule(score()).ask(candidates(1), []) == []
    assert compare(ScriptedJudge(lambda c: "first"), [(sample(), candidates(1))], _plain()) == []


def test_the_likeliest_candidate_comes_first_and_against_all() -> None:
    own = candidates(4)[::-1]
    assert Schedule(score()).ask(own, []) == [(0, 1), (0, 2), (0, 3)]
    # of five and more, the middling one meets the rest too
    assert Schedule(score()).ask(candidates(5), [])[4:] == [(2, 1), (2, 3), (2, 4)]


@pytest.mark.parametrize(
    ("odds", "asked"),
    [
        ([0.98, 0.01, 0.01], 1),  # sure: the other order is not asked
        ([0.01, 0.01, 0.98], 1),  # sure that it is a tie
        ([0.40, 0.35, 0.25], 2),  # anything could come of it
    ],
)
def test_two_candidates(odds: list[float], asked: int) -> None:
    judge = ScriptedJudge(lambda c: odds)
    made = compare(judge, [(sample(), candidates(2))], _plain())
    assert [(g.first, g.second) for g in made] == [(0, 1), (1, 0)][:asked]


def test_nothing_is_asked_twice_and_all_at_most() -> None:
    judge = GuessingJudge("seed")
    made = compare(judge, [(sample(), candidates(6))], _plain(risk=0.0), rounds=99)
    asked = [(g.first, g.second) for g in made]
    assert len(asked) == len(set(asked)) <= 30
    assert set(asked) <= set(permutations(range(6), 2))


def test_rounds_end_what_stays_open() -> None:
    judge = GuessingJudge("seed")
    one = compare(judge, [(sample(), candidates(6))], _plain(), rounds=1)
    assert len(one) == 5 + 4  # two stars
    two = compare(judge, [(sample(), candidates(6))], _plain(), rounds=2)
    assert two[:9] == one
    assert 9 < len(two) <= 12  # and a tenth of 30


def test_one_call_a_round() -> None:
    calls = []

    class Counting(ScriptedJudge):
        def judge(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
            calls.append(len(comparisons))
            return super().judge(comparisons)

    asks = [(sample(f"s{k}"), candidates(3, f"s{k}")) for k in range(5)]
    compare(Counting(by_quality([0, 2, 1])), asks, _plain(), rounds=3)
    assert calls[0] == 5 * 2
    assert len(calls) <= 3


def test_a_sample_does_not_depend_on_the_others() -> None:
    judge = GuessingJudge("seed")
    asks = [(sample(f"s{k}"), candidates(2 + k, f"s{k}")) for k in range(4)]
    together = compare(judge, asks, _plain())
    alone = [g for k in range(4) for g in compare(judge, [asks[k]], _plain())]
    assert together == alone
    assert compare(judge, asks, _plain()) == together


# --- unscored judgments -----------------------------------------------------------------------


def test_unscored_judgments_are_kept_and_not_asked_again() -> None:
    judge = ScriptedJudge(lambda c: None)
    own = candidates(3)
    made = compare(judge, [(sample(), own)], _plain(), rounds=99)
    assert [g.verdict for g in made] == [None] * len(made)
    assert len({(g.first, g.second) for g in made}) == len(made) <= 6
    assert imputed(own, made) == []
    assert [d.reason for d in curate(own, made)[1]] == ["unscored"]


def test_an_unscored_order_is_made_up_by_others() -> None:
    says = by_quality([0, 2, 1])
    judge = ScriptedJudge(lambda c: None if (c.first.index, c.second.index) == (0, 1) else says(c))
    own = candidates(3)
    made = compare(judge, [(sample(), own)], _plain(), rounds=99)
    rest = imputed(own, made)
    assert sum(g.verdict is None for g in made) == 1
    assert {(g.first, g.second) for g in made + rest} == set(permutations(range(3), 2))
    assert _outcome(own, made + rest) == (1, 0)


# --- what is imputed --------------------------------------------------------------------------


def test_imputed_is_what_was_not_asked() -> None:
    own = candidates(3)
    asked = [_judged(0, 1, [0.98, 0.01, 0.01]), _judged(0, 2, [0.01, 0.01, 0.98])]
    rest = imputed(own, asked)
    assert [(g.first, g.second) for g in rest] == [(1, 0), (1, 2), (2, 0), (2, 1)]
    # the mirrored order turns round; 0 = 2 and 0 > 1 give 2 > 1
    assert [g.verdict for g in rest] == ["second", "second", "neutral", "first"]
    for g in rest:
        assert g.p_first + g.p_second + g.p_neutral == pytest.approx(1)
    assert imputed(own, [*asked, *rest]) == []
    assert imputed(own, []) == []


def test_the_mirrored_order_by_hand() -> None:
    """d and t of the other order are the known ones, times their correlation.

    Only `quality` and `rest` are left in d, only `band_candidate` and `band_rest` in t. d_01 and
    d_10 have the variance 2 + 1 and the covariance -2: the mean of d_10 is -2/3 d_01. Likewise t:
    band_0 + band_1 has the variance 2, so t_10 = 2/3 t_01.
    """
    noise = Noise(1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 1)
    odds = [0.7, 0.1, 0.2]
    d = math.log(odds[0] / odds[1]) / 2
    t = math.log(odds[2]) - (math.log(odds[0]) + math.log(odds[1])) / 2
    (found,) = imputed(candidates(2), [_judged(0, 1, odds)], noise)
    weights = [math.exp(-2 / 3 * d), math.exp(2 / 3 * d), math.exp(2 / 3 * t)]
    expected = [w / sum(weights) for w in weights]
    assert [found.p_first, found.p_second, found.p_neutral] == pytest.approx(expected)
    assert (found.first, found.second) == (1, 0)


def test_samples_are_imputed_each_by_its_own() -> None:
    own = candidates(2, "a") + candidates(2, "b") + candidates(2, "c")
    asked = [_judged(0, 1, [0.98, 0.01, 0.01], "b"), _judged(1, 0, [0.98, 0.01, 0.01], "a")]
    rest = imputed(own, asked)
    assert [(g.sample_id, g.first, g.second, g.verdict) for g in rest] == [
        ("a", 0, 1, "second"),
        ("b", 1, 0, "second"),
    ]


# --- the same outcome as of all pairs -----------------------------------------------------------


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_clear_ranking_is_found_by_every_aggregator(name: str) -> None:
    aggregate = AGGREGATORS[name]
    quality = [2, 5, 1, 4, 0, 3]
    judge = ScriptedJudge(lambda c: _graded(quality[c.first.index] - quality[c.second.index]))
    own = candidates(6)
    schedule = Schedule(score(aggregate), margin=0.2, draws=16)
    made = compare(judge, [(sample(), own)], schedule)
    assert len(made) <= 20
    assert _outcome(own, made + imputed(own, made), aggregate) == (1, 4)


def test_equals_make_no_pair() -> None:
    judge = ScriptedJudge(by_quality([0, 0, 0, 0]))
    own = candidates(4)
    made = compare(judge, [(sample(), own)], _plain(margin=0.2))
    assert len(made) < 12
    assert _outcome(own, made + imputed(own, made), margin=0.2) is None


def test_a_gap_below_the_margin_makes_no_pair() -> None:
    """Expected scores 0.1 and -0.1: a gap of 0.2, which 0.15 lets through and 0.3 does not."""
    judge = ScriptedJudge(lambda c: [0.5, 0.4, 0.1] if c.first.index == 0 else [0.4, 0.5, 0.1])
    aggregate = AGGREGATORS["expected"]
    own = candidates(2)
    for margin, outcome in ((0.15, (0, 1)), (0.3, None)):
        made = compare(judge, [(sample(), own)], Schedule(score(aggregate), margin))
        assert len(made) == 2  # one order cannot settle so small a gap
        assert _outcome(own, made, aggregate, margin) == outcome


def test_ties_go_to_the_likelier() -> None:
    judge = ScriptedJudge(by_quality([0, 0, 1, 1]))
    own = candidates(4)
    made = compare(judge, [(sample(), own)], _plain(tie=0.05))
    scores = score()(made + imputed(own, made))
    assert decide(scores, {c.index: c.logprob for c in own}, 0.0, 0.05) == (2, 0)


@pytest.mark.parametrize("n", [4, 6, 8])
def test_noisy_judges(n: int) -> None:
    """At most half the comparisons, and the outcome of all of them in nearly every sample.

    Three tiers of quality; each verdict's log-weight is off by 0.25 nats in each ordered
    comparison. So d, half the difference of two, is off by 0.25 / sqrt(2), and t, one less the mean
    of two, by 0.25 sqrt(3/2); the tiers -3, 0 and 3 have the standard deviation sqrt(6).
    """
    noise = Noise(
        quality=6**0.5, place=0, order=0, pair=0, rest=0.25 / 2**0.5,
        band=0, band_mean=2, band_candidate=0,
        band_order=0, band_pair=0, band_rest=0.25 * 1.5**0.5,
    )  # fmt: skip
    asks = [(sample(f"s{k}"), candidates(n, f"s{k}")) for k in range(60)]
    judge = ScriptedJudge(_noisy)
    schedule = Schedule(score(), margin=0.2, tie=0.05, noise=noise)
    made = compare(judge, asks, schedule)
    same = 0
    for s, own in asks:
        asked = [g for g in made if g.sample_id == s.id]
        full = ScriptedJudge(_noisy).judge(list(all_comparisons(s, own)))
        assert set(asked) <= set(full)
        logprobs = {c.index: c.logprob for c in own}
        wanted, found = (
            decide(score()(g), logprobs, 0.2, 0.05) for g in (full, asked + imputed(own, asked))
        )
        same += wanted == found
    assert len(made) <= 0.5 * 60 * n * (n - 1)
    assert same >= 56  # at a risk of 0.03, 1.8 of 60 end otherwise, more than 4 with 3 %


def _noisy(c: Comparison) -> Said:
    quality = [
        random.Random(f"{c.sample.id} {x.index}").choice([-6, 0, 6]) for x in (c.first, c.second)
    ]
    rng = random.Random(f"{c.sample.id} {c.first.index} {c.second.index}")
    d = (quality[0] - quality[1]) / 2
    weights = [math.exp(x + rng.gauss(0, 0.25)) for x in (d, -d, 2.0)]
    return [w / sum(weights) for w in weights]


def _graded(d: float) -> Said:
    weights = [math.exp(x) for x in (2 * d, -2 * d, 1.0)]
    return [w / sum(weights) for w in weights]


def _plain(**settings: float) -> Schedule:
    return Schedule(score(), **settings)  # type: ignore[arg-type]


def _judged(i: int, j: int, odds: Sequence[float], name: str = "s") -> Judgment:
    own = candidates(3, name)
    return judgment(Comparison(sample(name), own[i], own[j]), odds)


def _outcome(
    own: Sequence[Candidate],
    judgments: Sequence[Judgment],
    aggregate: Aggregator = confidence,
    margin: float = 0.0,
) -> tuple[int, int] | None:
    """The curation's; the plain rule of `decide` is held against it."""
    pairs, _ = curate(own, judgments, aggregate, margin)
    outcome = (pairs[0].chosen_index, pairs[0].rejected_index) if pairs else None
    logprobs: Mapping[int, float] = {c.index: c.logprob for c in own}
    assert decide(score(aggregate)(judgments), logprobs, margin) == outcome
    return outcome
