"""How good is a judge? Pairs with the truth about them in, figures with n and error out.

A pair is two responses to a sample, what the judge said of them in either order, and what is true;
each figure is a function of pairs. `assess` asks a judge about labelled pairs that it has not seen,
`audit` looks at the judgments of a run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from selfcal.store import JSON
from selfcal.types import Candidate, Judgment, LabelledPair, Sample, Verdict, sign_of

if TYPE_CHECKING:
    from selfcal.judge.scorer import Judge

SIGN = {"first": 1, "second": -1, "neutral": 0}
MIRROR: dict[Verdict, Verdict] = {"first": "second", "second": "first", "neutral": "neutral"}
"""The verdict about the same two responses in the other order."""
BINS = 10
Figure: TypeAlias = dict[str, float | None]
"""`value` and `stderr`, both None where there is nothing to measure, and `n`."""
Row = tuple[str, float]
"""A sample's id, and a value found in it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses, the one and the other; a sign is + for the one, - for the other, 0 neutral."""

    sample: str
    """Id of the sample: figures of one sample are not independent."""
    ahead: Judgment | None
    """The one shown first; None: this order was not asked."""
    back: Judgment | None
    """The other shown first."""
    truth: int | None
    """Sign of the true verdict; None: not known."""
    lengths: tuple[int, int] = (0, 0)
    """Characters of each."""
    likelier: int = 0
    """Which response the policy itself finds likelier."""

    @property
    def longer(self) -> int:
        """Which response is longer."""
        return bigger(*self.lengths)

    @property
    def orders(self) -> list[tuple[Judgment, int]]:
        """The judgments that were asked, each with the sign of the response shown first."""
        return [(g, sign) for g, sign in ((self.ahead, 1), (self.back, -1)) if g is not None]

    @property
    def read(self) -> list[tuple[int, float]]:
        """Sign and probability of each verdict that could be read."""
        return [
            (SIGN[g.verdict] * sign, max(g.p_first, g.p_second, g.p_neutral))
            for g, sign in self.orders
            if g.verdict is not None
        ]

    @property
    def turned(self) -> bool | None:
        """Whether the verdict is another when the order is swapped; None: not both were read."""
        return self.read[0][0] != self.read[1][0] if len(self.read) == 2 else None

    @property
    def merged(self) -> int | None:
        """Sign after averaging the orders that were asked; None if one of them was not read."""
        if not self.orders or len(self.read) < len(self.orders):
            return None
        sums = [0.0, 0.0, 0.0]
        for g, sign in self.orders:
            one, other = (g.p_first, g.p_second)[::sign]
            sums = [a + b for a, b in zip(sums, (one, other, g.p_neutral), strict=True)]
        return sign_of(*sums)


def assess(judge: Judge, pairs: Sequence[LabelledPair]) -> dict[str, JSON]:
    """Ask every labelled pair in both orders and compare with the labels.

    Returns:
        `agreement`: share of judgments with the label's verdict, neutral counted;
        `agreement_merged`: the same for the verdict after averaging both orders, as curation does;
        `flip_rate`: share of pairs whose verdict is another when the order is swapped;
        `neutral_rate`;
        `ece`: expected calibration error of the verdict's probability (10 equal bins);
        `length_bias`: how much more often than the labels the judge prefers the longer response;
        `unscored`: share that could not be read. All but `ece` carry a standard error, over
        samples: the two orders of a pair, and the pairs of a sample, are not independent. A figure
        of nothing (n = 0) is None.
    """
    return report(pairs, *ask_both(judge, pairs))


def ask_both(judge: Judge, pairs: Sequence[LabelledPair]) -> tuple[list[Judgment], list[Judgment]]:
    """Judgments in the pairs' order and in the swapped order; each pair is a sample of its own."""
    from selfcal.judge.asking import sample_of
    from selfcal.judge.scorer import Comparison

    asked = []
    for i, pair in enumerate(pairs):
        sample = sample_of(pair, str(i))
        a, b = _candidate(sample, 0, pair.first), _candidate(sample, 1, pair.second)
        asked += [Comparison(sample, a, b), Comparison(sample, b, a)]
    made = judge.judge(asked)
    return made[::2], made[1::2]


def _candidate(sample: Sample, index: int, text: str) -> Candidate:
    return Candidate(sample.id, index, text, (), (), (), finished=True)


def report(
    labelled: Sequence[LabelledPair], forward: Sequence[Judgment], backward: Sequence[Judgment]
) -> dict[str, JSON]:
    """The figures of `assess` from judgments in the pairs' order and in the swapped order."""
    pairs = [
        Pair(p.sample_id, ahead, back, SIGN[p.verdict], (len(p.first), len(p.second)))
        for p, ahead, back in zip(labelled, forward, backward, strict=True)
    ]
    calibration = ece(pairs)
    return {
        "agreement": agreement(pairs),
        "agreement_merged": agreement_merged(pairs),
        "flip_rate": flip_rate(pairs),
        "neutral_rate": neutral_rate(pairs),
        "ece": {"value": calibration["value"], "n": calibration["n"]},
        "length_bias": leaning(pairs, lambda p: p.longer),
        "unscored": unscored(pairs),
    }


# --- figures ----------------------------------------------------------------------------------


def agreement(pairs: Sequence[Pair]) -> Figure:
    """Share of judgments with the true verdict."""
    return mean([(p.sample, said == p.truth) for p, said, _ in _known(pairs)])


def agreement_merged(pairs: Sequence[Pair]) -> Figure:
    """Share of pairs with the true verdict, their orders averaged."""
    known = [p for p in pairs if p.merged is not None and p.truth is not None]
    return mean([(p.sample, p.merged == p.truth) for p in known])


def flip_rate(pairs: Sequence[Pair]) -> Figure:
    """Share of pairs whose verdict is another when the order is swapped."""
    return mean([(p.sample, p.turned) for p in pairs if p.turned is not None])


def first_bias(pairs: Sequence[Pair]) -> Figure:
    """How much more often the response shown first is preferred than the one shown second.

    Over pairs that were read in both orders, so that a judge that goes by content alone has 0.
    """
    both = [(p.sample, p.read) for p in pairs if len(p.read) == 2]
    # the second order's sign is that of the response shown second
    return mean([(sample, (read[0][0] - read[1][0]) / 2) for sample, read in both])


def neutral_rate(pairs: Sequence[Pair]) -> Figure:
    """Share of neutral verdicts."""
    return mean([(p.sample, said == 0) for p in pairs for said, _ in p.read])


def unscored(pairs: Sequence[Pair]) -> Figure:
    """Share of judgments that could not be read."""
    return mean([(p.sample, g.verdict is None) for p in pairs for g, _ in p.orders])


def leaning(pairs: Sequence[Pair], towards: Callable[[Pair], int]) -> Figure:
    """How much more often than the truth the judge prefers a kind of response.

    A neutral verdict counts half to each side. `towards` gives the response's sign in a pair, 0
    for pairs without.
    """
    known = [(p, said, towards(p)) for p, said, _ in _known(pairs) if towards(p)]
    return mean([(p.sample, (said - (p.truth or 0)) * side / 2) for p, said, side in known])


def ece(pairs: Sequence[Pair]) -> Figure:
    """Expected calibration error: the mean gap between confidence and hit rate over equal bins.

    It is the mean over judgments of `confidence - hit`, each taken with the sign of its bin's gap;
    the standard error is that of this mean.
    """
    bins = reliability(pairs)
    signed = []
    for rows in bins:
        over = sum(confidence - hit for _, confidence, hit in rows) > 0
        signed += [(s, (c - hit) * (1 if over else -1)) for s, c, hit in rows]
    return mean(signed)


def reliability(pairs: Sequence[Pair]) -> list[list[tuple[str, float, bool]]]:
    """Sample, confidence and whether it was right of each judgment, in bins of confidence."""
    bins: list[list[tuple[str, float, bool]]] = [[] for _ in range(BINS)]
    for p, said, confidence in _known(pairs):
        bins[min(int(confidence * BINS), BINS - 1)].append((p.sample, confidence, said == p.truth))
    return bins


def bigger(one: float, other: float) -> int:
    """Sign of the larger one."""
    return (one > other) - (one < other)


def _known(pairs: Sequence[Pair]) -> Iterator[tuple[Pair, int, float]]:
    """Pair, sign and probability of each verdict that was read and can be held to the truth."""
    return ((p, *said) for p in pairs if p.truth is not None for said in p.read)


def mean(rows: Sequence[Row]) -> Figure:
    """Mean with its standard error, the values of one sample taken as one observation."""
    n = len(rows)
    if not n:
        return {"value": None, "stderr": None, "n": 0}
    middle = sum(value for _, value in rows) / n
    gaps: dict[str, float] = defaultdict(float)
    for sample, value in rows:
        gaps[sample] += value - middle
    spread = math.sqrt(sum(gap**2 for gap in gaps.values())) / n
    return {"value": round(middle, 4), "stderr": round(spread, 4), "n": n}
