"""Are the rewards of an online method right? Its responses in, figures and findings out; no model.

What a judge says of the policy's responses is held against the truth, iteration by iteration: a
policy that learns from a judge also learns where the judge errs. Figures have their standard error
over samples, and n; where the truth is not known, those that need it are None with n = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, product
from math import isnan
from typing import Any

from selfcal.judge.audit import Limit, enough, lost
from selfcal.judge.quality import Figure, Row, mean
from selfcal.store import JSON
from selfcal.types import Aspect, Rollout

Truth = Callable[[Rollout, Aspect], bool | None]
"""Whether a response deserves a yes; None: not known."""
_ASPECTS: Mapping[str, Aspect] = {"entailed": "entailed", "grounded": "grounded"}
"""What signals are the probability of; all others shall put reliable responses first."""

_REPAIR = "label more samples (judge.samples), train longer (judge.train.epochs) or take a larger "
_LIMITS = {
    "order": Limit(
        0.80, "{1} puts a response that deserves it before one that does not in {0} of pairs.",
        f"{_REPAIR}judge.model.", below=True,
    ),
    "overrated": Limit(
        0.10, "{1} is higher by {0} than the share of responses that deserve it.",
        f"{_REPAIR}judge.model; fewer iterations leave the policy less time to find its errors.",
    ),
    "drift": Limit(
        0.02, "{1} orders responses worse by {0} in the last iteration than in the first.",
        "the policy has left what the judge was trained on: take fewer iterations.",
    ),
}  # fmt: skip


def audit_rewards(
    iterations: Mapping[int, Callable[[], Sequence[Rollout]]], signals: Sequence[str], truth: Truth
) -> dict[str, JSON]:
    """The figures of every iteration, and what is wrong.

    Args:
        iterations: gives the responses of each, group by group; at least one.
        signals: names of what the judge gave, in the order of `Rollout.judged`.
        truth: what responses deserve.

    Returns:
        `iterations`, each with `responses`; `reinforced`, the share of reliable responses among
        those with an advantage above 0; and for each of its `signals` the `mean` of those scored,
        `deserved` (the share of them that deserves a yes), `overrated` (mean less that share, of
        probabilities alone), and `order`: of two responses of a group of which one deserves a yes,
        how often the judge gave that one more (equal counts half). `drift` of each signal is how
        much less `order` is in the last iteration than in the first; `enough`, whether no finding
        says anything; and `findings`.
    """
    found = {t: _iteration(read(), signals, truth) for t, read in sorted(iterations.items())}
    first, last = ([*found.values()][at]["signals"] for at in (0, -1))
    drift = {
        s: lost(first[s]["order"], last[s]["order"]) if len(found) > 1 else mean([])
        for s in signals
    }
    figures = [
        (name, signal, figure)
        for signal in signals
        for name, figure in {**last[signal], "drift": drift[signal]}.items()
        if name in _LIMITS
    ]
    said = [_finding(*one) for one in figures]
    return {
        "iterations": {str(t): own for t, own in found.items()},
        "drift": drift,
        "enough": enough(figure for _, _, figure in figures),
        "findings": [text for text in said if text],
    }


def _iteration(rollouts: Sequence[Rollout], signals: Sequence[str], truth: Truth) -> dict[str, Any]:
    reliable = [(r, truth(r, "good")) for r in rollouts]
    up: list[Row] = [
        (r.sample_id, float(t)) for r, t in reliable if t is not None and r.advantage > 0
    ]
    return {
        "responses": len(rollouts),
        "reinforced": mean(up),
        "signals": {name: _signal(rollouts, k, name, truth) for k, name in enumerate(signals)},
    }


def _signal(rollouts: Sequence[Rollout], k: int, name: str, truth: Truth) -> dict[str, Figure]:
    aspect = _ASPECTS.get(name, "good")
    scored = [(r, r.judged[k], truth(r, aspect)) for r in rollouts if not isnan(r.judged[k])]
    known = [(r.sample_id, value, t) for r, value, t in scored if t is not None]
    gaps: list[Row] = [(sample, value - t) for sample, value, t in known if name in _ASPECTS]
    return {
        "mean": mean([(r.sample_id, value) for r, value, _ in scored]),
        "deserved": mean([(sample, float(t)) for sample, _, t in known]),
        "overrated": mean(gaps),
        "order": mean(_ordered(scored)),
    }


def _ordered(scored: Sequence[tuple[Rollout, float, bool | None]]) -> list[Row]:
    """Of every two responses of a group that differ in what they deserve: who got more."""
    rows: list[Row] = []
    for (sample, _), group in groupby(scored, key=lambda s: (s[0].sample_id, s[0].step)):
        own = list(group)
        good = [value for _, value, t in own if t is True]
        bad = [value for _, value, t in own if t is False]
        rows += [(sample, 0.5 if a == b else float(a > b)) for a, b in product(good, bad)]
    return rows


def _finding(name: str, signal: str, figure: Figure) -> str | None:
    limit = _LIMITS[name]
    if not limit.passed(figure):
        return None
    text = f"{figure['value']:.3f} ±{figure['stderr']:.3f}"
    return f"{name}: {limit.says.format(text, signal)} Way out: {limit.way_out}"
