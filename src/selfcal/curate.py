"""From judgments to preference pairs: aggregate each candidate's comparisons, keep best and worst.

Every unordered pair of candidates was asked in both orders. The two answers are averaged after
mapping them back to the candidates, which cancels a judge's preference for the first or second
place. From the averaged probabilities `P_ij` (i better), `P_ji`, `P_0` each candidate gets a score
in [-1, 1]; the best becomes chosen, the worst rejected, if their gap reaches the margin (SRC, stage
4; the paper leaves the aggregation open, `confidence` is selfcal's reading of it).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from selfcal.types import Candidate, Drop, Judgment, PreferencePair, sign_of


@dataclass(frozen=True, slots=True)
class Comparison:
    """One unordered pair i < j, both orders averaged; the three probabilities sum to 1."""

    i: int
    j: int
    p_i: float
    p_j: float
    p_neutral: float

    @property
    def sign(self) -> int:
        """The verdict: +1 for i, -1 for j, 0 neutral."""
        return sign_of(self.p_i, self.p_j, self.p_neutral)

    @property
    def confidence(self) -> float:
        """The verdict's probability."""
        return max(self.p_i, self.p_j, self.p_neutral)


def merge_orders(judgments: Iterable[Judgment]) -> list[Comparison]:
    """Average the orders of each pair. An unscored judgment does not count as anything.

    A pair whose other order is unscored keeps the one that was read; a pair with none is left out.
    """
    votes: dict[tuple[int, int], list[tuple[float, float, float]]] = defaultdict(list)
    for g in judgments:
        if g.verdict is None:
            continue
        if g.first < g.second:
            votes[g.first, g.second].append((g.p_first, g.p_second, g.p_neutral))
        else:
            votes[g.second, g.first].append((g.p_second, g.p_first, g.p_neutral))
    return [
        Comparison(i, j, *[sum(p) / len(p) for p in zip(*ps, strict=True)])
        for (i, j), ps in sorted(votes.items())
    ]


Scores = dict[int, float]
Aggregator = Callable[[Sequence[Comparison]], Scores]


def confidence(comparisons: Sequence[Comparison]) -> Scores:
    """`S_i = sum_j c_ij s_ij / sum_j c_ij`.

    The verdict is the most probable outcome, `c` its probability, `s` +1 / -1 / 0 for a win, a loss
    and a neutral verdict of i (a tie between outcomes counts as neutral). Neutral verdicts thus
    pull towards 0 by their confidence.
    """
    gained: Scores = defaultdict(float)
    weight: Scores = defaultdict(float)
    for c in comparisons:
        sign, sure = c.sign, c.confidence
        for candidate, s in ((c.i, sign), (c.j, -sign)):
            gained[candidate] += sure * s
            weight[candidate] += sure
    return {i: gained[i] / weight[i] for i in weight}


def expected(comparisons: Sequence[Comparison]) -> Scores:
    """`S_i` = mean over j of `P_ij - P_ji`."""
    sums: Scores = defaultdict(float)
    n: dict[int, int] = defaultdict(int)
    for c in comparisons:
        for candidate, gain in ((c.i, c.p_i - c.p_j), (c.j, c.p_j - c.p_i)):
            sums[candidate] += gain
            n[candidate] += 1
    return {i: sums[i] / n[i] for i in n}


def majority(comparisons: Sequence[Comparison]) -> Scores:
    """Wins minus losses over comparisons, whatever the confidence."""
    return expected(
        [
            Comparison(c.i, c.j, float(c.sign > 0), float(c.sign < 0), float(c.sign == 0))
            for c in comparisons
        ]
    )


def bradley_terry(comparisons: Sequence[Comparison]) -> Scores:
    """Bradley-Terry strengths, a neutral outcome counted half to each side, squashed to [-1, 1].

    Maximum a posteriori by Hunter's (2004) minorization-maximization. The prior is one imagined
    comparison of every candidate with an average opponent, won half, which keeps an undefeated
    candidate finite. The score is `tanh(log strength / 2)`: the expected gain against the average.
    """
    players = sorted({k for c in comparisons for k in (c.i, c.j)})
    wins: Scores = dict.fromkeys(players, 0.5)
    for c in comparisons:
        wins[c.i] += c.p_i + c.p_neutral / 2
        wins[c.j] += c.p_j + c.p_neutral / 2
    strength: Scores = dict.fromkeys(players, 1.0)
    for _ in range(500):
        games = {i: 1 / (strength[i] + 1) for i in players}
        for c in comparisons:
            share = 1 / (strength[c.i] + strength[c.j])
            games[c.i] += share
            games[c.j] += share
        new = {i: wins[i] / games[i] for i in players}
        moved = max((abs(math.log(new[i] / strength[i])) for i in players), default=0.0)
        strength = new
        if moved < 1e-12:
            break
    return {i: math.tanh(math.log(strength[i]) / 2) for i in players}


AGGREGATORS: dict[str, Aggregator] = {
    "confidence": confidence,
    "expected": expected,
    "bradley_terry": bradley_terry,
    "majority": majority,
}


_DIGITS = 9
"""Scores and gaps count to so many decimals, so that no rounding error makes or breaks a tie."""


def decide(
    scores: Mapping[int, float], logprobs: Mapping[int, float], margin: float, tie: float = 0.0
) -> tuple[int, int] | None:
    """Best and worst candidate, or None without a gap or below the margin.

    Scores up to `tie` from the best (the worst) count as equal to it, and equal ones go to the
    candidate that the model finds likelier, then to the lower index, so that the result does not
    depend on order. A gap of at most `2 * tie` is none, so that nobody is both best and worst; the
    margin is that of the two who are taken.
    """
    if len(scores) < 2:
        return None
    ends = _ends(scores, logprobs, tie)
    if ends is None:
        return None
    return ends if _reached(scores, ends, margin) else None


def _reached(scores: Mapping[int, float], ends: tuple[int, int], margin: float) -> bool:
    best, worst = ends
    return round(scores[best] - scores[worst], _DIGITS) >= margin


def _ends(
    scores: Mapping[int, float], logprobs: Mapping[int, float], tie: float
) -> tuple[int, int] | None:
    """Best and worst, or None without a gap."""
    rounded = {i: round(s, _DIGITS) for i, s in scores.items()}
    high, low = max(rounded.values()), min(rounded.values())
    if round(high - low, _DIGITS) <= round(2 * tie, _DIGITS):
        return None
    best = [i for i, s in rounded.items() if round(high - s, _DIGITS) <= tie]
    worst = [i for i, s in rounded.items() if round(s - low, _DIGITS) <= tie]
    return _likeliest(best, logprobs), _likeliest(worst, logprobs)


def _likeliest(indices: Iterable[int], logprobs: Mapping[int, float]) -> int:
    return min(indices, key=lambda i: (-logprobs[i], i))


def curate(
    candidates: Sequence[Candidate],
    judgments: Sequence[Judgment],
    aggregate: Aggregator = confidence,
    margin: float = 0.0,
    tie: float = 0.0,
) -> tuple[list[PreferencePair], list[Drop]]:
    """One preference pair a sample, or the named reason why there is none.

    Reasons: `one-candidate`, `unscored` (no comparison could be read), `no-gap` (all scores equal,
    up to ties), `below-margin`. Who is best and worst, `decide` says.
    """
    texts: dict[str, dict[int, Candidate]] = defaultdict(dict)
    for c in candidates:
        texts[c.sample_id][c.index] = c
    asked: dict[str, list[Judgment]] = defaultdict(list)
    for g in judgments:
        asked[g.sample_id].append(g)
    pairs: list[PreferencePair] = []
    drops: list[Drop] = []
    for sample_id, own in texts.items():
        scores = aggregate(merge_orders(asked[sample_id]))
        outcome = _curate_one(sample_id, own, scores, margin, tie)
        if isinstance(outcome, Drop):
            drops.append(outcome)
        else:
            pairs.append(outcome)
    return pairs, drops


def _curate_one(
    sample_id: str, own: dict[int, Candidate], scores: Scores, margin: float, tie: float
) -> PreferencePair | Drop:
    if len(own) < 2:
        return Drop(sample_id, "pairs", "one-candidate")
    if len(scores) < 2:
        return Drop(sample_id, "pairs", "unscored")
    logprobs = {i: c.logprob for i, c in own.items()}
    ends = _ends(scores, logprobs, tie)
    if ends is None:
        return Drop(sample_id, "pairs", "no-gap")
    best, worst = ends
    high, low = round(scores[best], _DIGITS), round(scores[worst], _DIGITS)
    if not _reached(scores, ends, margin):
        return Drop(sample_id, "pairs", "below-margin", f"{high - low:.3f} < {margin:.3f}")
    return PreferencePair(sample_id, own[best].text, own[worst].text, best, worst, high, low)
