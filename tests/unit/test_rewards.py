"""The audit of what an online method rewarded: figures derived by hand, and what is found."""

from __future__ import annotations

import json
from functools import partial
from math import isclose, nan, sqrt
from typing import Any

from selfcal.judge.rewards import audit_rewards
from selfcal.types import Aspect, Rollout


def rollout(text: str, *judged: float, sample: str = "a", up: float = 0.0) -> Rollout:
    return Rollout(sample, 0, 0, text, 5, 1.0, True, judged, 0.0, up)


def deserves(rollout: Rollout, aspect: Aspect) -> bool | None:
    """Texts say it themselves: `good`, `bad`, or anything else."""
    return {"good": True, "bad": False}.get(rollout.text)


def audit(*iterations: list[Rollout], signals: tuple[str, ...] = ("entailed",)) -> Any:
    given = {t: partial(list, own) for t, own in enumerate(iterations, 1)}
    return audit_rewards(given, signals, deserves)


def test_order_counts_pairs_of_a_group_that_differ_in_what_they_deserve() -> None:
    group = [
        rollout("good", 0.9), rollout("good", 0.4),
        rollout("bad", 0.4), rollout("bad", 0.1), rollout("who knows", 1.0),
    ]  # fmt: skip
    # 0.9 > 0.4, 0.9 > 0.1, 0.4 = 0.4 (half), 0.4 > 0.1: 3.5 of 4
    order = audit(group)["iterations"]["1"]["signals"]["entailed"]["order"]
    assert order["value"] == 0.875
    assert order["n"] == 4


def test_responses_of_different_groups_are_not_compared() -> None:
    rows = [rollout("good", 0.1, sample="a"), rollout("bad", 0.9, sample="b")]
    order = audit(rows)["iterations"]["1"]["signals"]["entailed"]["order"]
    assert order == {"value": None, "stderr": None, "n": 0}


def test_means_are_of_what_was_scored() -> None:
    rows = [rollout("good", 0.8, sample="a"), rollout("bad", 0.4, sample="b"), rollout("bad", nan)]
    found = audit(rows)["iterations"]["1"]["signals"]["entailed"]
    assert found["mean"]["value"] == 0.6  # (0.8 + 0.4) / 2
    assert found["deserved"] == {"value": 0.5, "stderr": round(sqrt(0.5) / 2, 4), "n": 2}
    assert found["overrated"]["value"] == 0.1  # (0.8 - 1 + 0.4 - 0) / 2


def test_only_probabilities_can_be_overrated() -> None:
    found = audit([rollout("bad", 0.9)], signals=("score",))
    assert found["iterations"]["1"]["signals"]["score"]["overrated"]["n"] == 0


def test_reinforced_is_of_responses_with_an_advantage_above_0() -> None:
    rows = [
        rollout("good", up=1.0),
        rollout("bad", up=0.5),
        rollout("bad", up=-1.0),
        rollout("?", up=2),
    ]
    own = audit(rows, signals=())["iterations"]["1"]
    assert own["responses"] == 4
    assert own["reinforced"]["value"] == 0.5
    assert own["reinforced"]["n"] == 2


def many(good: float, bad: float) -> list[Rollout]:
    """Forty groups of a good and a bad response, with the same signals in each."""
    return [
        rollout(text, value, sample=str(i))
        for i in range(40)
        for text, value in (("good", good), ("bad", bad))
    ]


def test_a_judge_that_puts_the_bad_first_is_found() -> None:
    (said,) = audit(many(0.4, 0.6))["findings"]
    assert said.startswith("order: entailed puts a response that deserves it before one")
    assert "0.000 ±0.000 of pairs" in said
    assert "Way out: label more samples" in said


def test_a_judge_that_the_policy_has_learned_to_please_is_found() -> None:
    fine, hacked = many(0.9, 0.1), many(0.9, 0.9)
    found = audit(fine, hacked)
    assert found["drift"]["entailed"]["value"] == 0.5  # from always right to always equal
    assert [f.split(":")[0] for f in found["findings"]] == ["overrated", "order", "drift"]
    assert audit(fine, fine)["findings"] == []


def test_one_iteration_cannot_drift() -> None:
    assert audit(many(0.9, 0.1))["drift"]["entailed"]["n"] == 0


def test_where_the_truth_is_not_known_means_remain() -> None:
    rows = [rollout("who knows", 0.3), rollout("who knows", 0.5)]
    found = audit(rows)
    own = found["iterations"]["1"]["signals"]["entailed"]
    assert isclose(own["mean"]["value"], 0.4)
    assert own["order"]["n"] == own["deserved"]["n"] == 0
    assert found["findings"] == []
    json.dumps(found, allow_nan=False)
