"""How good is a judge? Labelled pairs it has not seen in, figures with n and error out."""

from __future__ import annotations

import math
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
        `agreement`: share of judgments with the label's verdict, neutral counted; `agreement_merged`:
        the same for the verdict after averaging both orders, as curation uses it; `flip_rate`: share
        of pairs whose verdicts contradict or differ when the order is swapped; `neutral_rate`;
        `ece`: expected calibration error of the verdict's probability (10 equal bins);
        `length_bias`: how much more often than the labels the judge prefers the longer response;
        `unscored`: share that could not be read. All shares carry `n` and `stderr`.
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


def report(
    pairs: Sequence[LabelledPair], forward: Sequence[Judgment], backward: Sequence[Judgment]
) -> dict[str, JSON]:
    """The figures of `assess` from judgments in the pairs' order and in the swapped order."""
    hits: list[bool] = []
    sure: list[tuple[float, bool]] = []
    flips: list[bool] = []
    neutral: list[bool] = []
    merged: list[bool] = []
    longer: list[float] = []
    read = 0
    for pair, ahead, back in zip(pairs, forward, backward, strict=True):
        truth = _SIGN[pair.verdict]
        for judgment, sign in ((ahead, 1), (back, -1)):
            if judgment.verdict is None:
                continue
            read += 1
            said = _SIGN[judgment.verdict] * sign
            hits.append(said == truth)
            neutral.append(said == 0)
            best = max(judgment.p_first, judgment.p_second, judgment.p_neutral)
            sure.append((best, said == truth))
            if len(pair.first) != len(pair.second):
                towards = 1 if len(pair.first) > len(pair.second) else -1
                longer.append((said - truth) * towards / 2)
        if ahead.verdict is not None and back.verdict is not None:
            flips.append(_SIGN[ahead.verdict] != -_SIGN[back.verdict])
            merged.append(_merged(ahead, back) == truth)
    return {
        "agreement": _share(hits),
        "agreement_merged": _share(merged),
        "flip_rate": _share(flips),
        "neutral_rate": _share(neutral),
        "ece": {"value": round(_ece(sure), 4), "n": len(sure)},
        "length_bias": _mean(longer),
        "unscored": {"value": round(1 - read / max(1, 2 * len(pairs)), 4), "n": 2 * len(pairs)},
    }


def _merged(ahead: Judgment, back: Judgment) -> int:
    shares = (
        (ahead.p_first + back.p_second, 1),
        (ahead.p_second + back.p_first, -1),
        (ahead.p_neutral + back.p_neutral, 0),
    )
    return max(shares)[1]


def _share(outcomes: Sequence[bool]) -> JSON:
    n = len(outcomes)
    if not n:
        return {"value": None, "stderr": None, "n": 0}
    p = sum(outcomes) / n
    return {"value": round(p, 4), "stderr": round(math.sqrt(p * (1 - p) / n), 4), "n": n}


def _mean(values: Sequence[float]) -> JSON:
    n = len(values)
    if not n:
        return {"value": None, "stderr": None, "n": 0}
    mean = sum(values) / n
    spread = math.sqrt(sum((v - mean) ** 2 for v in values)) / n
    return {"value": round(mean, 4), "stderr": round(spread, 4), "n": n}


def _ece(sure: Sequence[tuple[float, bool]]) -> float:
    """Mean gap between confidence and hit rate, over bins of confidence, weighted by their size."""
    gap = 0.0
    for b in range(_BINS):
        own = [(c, h) for c, h in sure if min(int(c * _BINS), _BINS - 1) == b]
        if own:
            gap += abs(sum(c for c, _ in own) - sum(h for _, h in own))
    return gap / max(1, len(sure))
