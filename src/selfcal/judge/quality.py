"""How good is a judge? Labelled pairs it has not seen in, figures with n and error out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from selfcal.store import JSON
from selfcal.types import Candidate, Judgment, LabelledPair, Sample

if TYPE_CHECKING:
    from selfcal.judge.scorer import Judge

_BINS = 10


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
    from selfcal.judge.scorer import Comparison

    asked = []
    for i, pair in enumerate(pairs):
        sample = Sample(str(i), "", pair.question, "", facts=pair.facts)
        a, b = _candidate(sample, 0, pair.first), _candidate(sample, 1, pair.second)
        asked += [Comparison(sample, a, b), Comparison(sample, b, a)]
    made = judge.judge(asked)
    forward, backward = made[::2], made[1::2]
    return report(pairs, forward, backward)


def _candidate(sample: Sample, index: int, text: str) -> Candidate:
    return Candidate(sample.id, index, text, (), (), (), finished=True)


_SIGN = {"first": 1, "second": -1, "neutral": 0}
_Row = tuple[str, float]
"""A sample's id, and a value found in it."""


def report(
    pairs: Sequence[LabelledPair], forward: Sequence[Judgment], backward: Sequence[Judgment]
) -> dict[str, JSON]:
    """The figures of `assess` from judgments in the pairs' order and in the swapped order."""
    hits: list[_Row] = []
    merged: list[_Row] = []
    flips: list[_Row] = []
    neutral: list[_Row] = []
    longer: list[_Row] = []
    unscored: list[_Row] = []
    sure: list[tuple[float, bool]] = []
    for pair, ahead, back in zip(pairs, forward, backward, strict=True):
        sample, truth = pair.sample_id, _SIGN[pair.verdict]
        for judgment, sign in ((ahead, 1), (back, -1)):
            unscored.append((sample, judgment.verdict is None))
            if judgment.verdict is None:
                continue
            said = _SIGN[judgment.verdict] * sign
            hits.append((sample, said == truth))
            neutral.append((sample, said == 0))
            best = max(judgment.p_first, judgment.p_second, judgment.p_neutral)
            sure.append((best, said == truth))
            if len(pair.first) != len(pair.second):
                towards = 1 if len(pair.first) > len(pair.second) else -1
                longer.append((sample, (said - truth) * towards / 2))
        if ahead.verdict is not None and back.verdict is not None:
            flips.append((sample, _SIGN[ahead.verdict] != -_SIGN[back.verdict]))
            merged.append((sample, _merged(ahead, back) == truth))
    return {
        "agreement": _mean(hits),
        "agreement_merged": _mean(merged),
        "flip_rate": _mean(flips),
        "neutral_rate": _mean(neutral),
        "ece": {"value": _ece(sure), "n": len(sure)},
        "length_bias": _mean(longer),
        "unscored": _mean(unscored),
    }


def _merged(ahead: Judgment, back: Judgment) -> int:
    """Sign of the verdict after averaging; a tie is neutral, as in curation."""
    first, second = ahead.p_first + back.p_second, ahead.p_second + back.p_first
    best = max(first, second, ahead.p_neutral + back.p_neutral)
    if best == ahead.p_neutral + back.p_neutral:
        return 0
    return (first == best) - (second == best)


def _mean(rows: Sequence[_Row]) -> JSON:
    """Mean with its standard error, the values of one sample taken as one observation."""
    n = len(rows)
    if not n:
        return {"value": None, "stderr": None, "n": 0}
    mean = sum(value for _, value in rows) / n
    gaps: dict[str, float] = defaultdict(float)
    for sample, value in rows:
        gaps[sample] += value - mean
    spread = math.sqrt(sum(gap**2 for gap in gaps.values())) / n
    return {"value": round(mean, 4), "stderr": round(spread, 4), "n": n}


def _ece(sure: Sequence[tuple[float, bool]]) -> float | None:
    """Mean gap between confidence and hit rate, over bins of confidence, weighted by their size."""
    if not sure:
        return None
    gaps = [0.0] * _BINS
    for confidence, hit in sure:
        gaps[min(int(confidence * _BINS), _BINS - 1)] += confidence - hit
    return round(sum(map(abs, gaps)) / len(sure), 4)
