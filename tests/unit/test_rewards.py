"""The audit of what an online method rewarded: figures derived by hand, and what is found."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from math import isclose, nan, sqrt
from pathlib import Path
from typing import Any

import pytest

from selfcal.judge.rewards import audit_rewards
from selfcal.types import Aspect, Rollout, Sample
from selfcal.view.rewards import audit_online
from unit.hand_made import BAD, GOOD, RunFolder, call, flat, sample


def rollout(
    text: str, *judged: float, sample: str = "a", step: int = 0, up: float = 0.0
) -> Rollout:
    return Rollout(sample, step, 0, text, 5, 1.0, True, judged, 0.0, up)


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
    assert audit(rows)["iterations"]["1"]["signals"]["entailed"]["order"] == NOTHING


def test_groups_of_the_same_sample_in_different_steps_are_not_compared() -> None:
    """As in a second epoch, where batches of one sample may follow each other."""
    rows = [rollout("good", 0.1, step=0), rollout("bad", 0.9, step=1)]
    assert audit(rows)["iterations"]["1"]["signals"]["entailed"]["order"] == NOTHING
    rows += [rollout("good", 1.0, step=1)]
    order = audit(rows)["iterations"]["1"]["signals"]["entailed"]["order"]
    assert (order["value"], order["n"]) == (1, 1)


NOTHING = {"value": None, "stderr": None, "n": 0}


@pytest.mark.parametrize(
    ("signal", "aspect"),
    [
        ("entailed", "entailed"),
        ("grounded", "grounded"),
        ("score", "good"),
        ("strength", "good"),
        ("brevity", "good"),
    ],
)
def test_a_signal_is_held_against_what_it_is_of(signal: str, aspect: Aspect) -> None:
    def only(rollout: Rollout, asked: Aspect) -> bool:
        return asked == aspect

    rows = [rollout("x", 0.25, up=1.0)]
    own: Any = audit_rewards({1: lambda: rows}, [signal], only)["iterations"]
    found = own["1"]["signals"][signal]
    assert found["deserved"]["value"] == 1
    # probabilities alone: 0.25 - 1
    assert found["overrated"]["value"] == (None if aspect == "good" else -0.75)
    # what was reinforced is held against reliability, whatever the signal
    assert own["1"]["reinforced"]["value"] == (aspect == "good")


def test_iterations_are_read_once_each_in_their_order() -> None:
    """One is in memory at a time."""
    asked: list[int] = []

    def read(t: int) -> list[Rollout]:
        asked.append(t)
        return many(0.9, 0.1)

    found: Any = audit_rewards({t: partial(read, t) for t in (10, 2, 1)}, ["entailed"], deserves)
    assert asked == [1, 2, 10]
    assert list(found["iterations"]) == ["1", "2", "10"]


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


# --- a run ------------------------------------------------------------------------------------

GRADED = [(GOOD, 0.75, 0.5), (BAD, 0.25, 1.0)]
"""Two responses, each with what a grader says of their logic and of their statements."""


def online(path: Path, *overrides: str, confidence: float = 1.0) -> RunFolder:
    """A finished iteration of two groups, in which the bad response is the reinforced one."""
    run = RunFolder(path, "method=faithful_grpo", *overrides)
    own = [replace(sample(f"cal-{i}"), confidence=confidence) for i in range(2)]
    run.finish("data", {"calibration": (Sample, own)})
    rows = [
        rollout(text, *judged, sample=s.id, up=1.0 if text == BAD else -1.0)
        for s in own
        for text, *judged in GRADED
    ]
    run.finish("iter-1/grpo", {"rollouts": (Rollout, rows)})
    return run


def test_a_run_on_miniworld_is_held_against_the_verifier(tmp_path: Path) -> None:
    found: Any = audit_online(online(tmp_path / "run").path)
    own = found["iterations"]["1"]
    assert (found["truth"], own["responses"]) == ("verifier", 4)
    assert (own["reinforced"]["value"], own["reinforced"]["n"]) == (0, 2)
    entailed, grounded = (own["signals"][name] for name in ("entailed", "grounded"))
    # both answers follow from what is stated; one digit is misread
    assert (entailed["deserved"]["value"], entailed["order"]["n"]) == (1, 0)
    assert (grounded["deserved"]["value"], grounded["order"]["value"]) == (0.5, 0)
    assert (entailed["overrated"]["value"], grounded["overrated"]["value"]) == (-0.5, 0.25)


def test_a_run_on_other_data_has_means_alone(tmp_path: Path) -> None:
    """Though its questions and facts look like MiniWorld's."""
    run = online(tmp_path / "run", f"data.source={tmp_path / 'mine'}").path
    found: Any = audit_online(run)
    own = found["iterations"]["1"]
    assert (found["truth"], own["responses"], found["findings"]) == (None, 4, [])
    assert own["reinforced"] == NOTHING
    means = {"entailed": 0.5, "grounded": 0.75}
    for name, value in means.items():
        figures = own["signals"][name]
        assert figures.pop("mean") == {"value": value, "stderr": 0, "n": 4}
        assert all(figure == NOTHING for figure in figures.values()), name
    said = call("judge", "audit", run)
    assert said.exit_code == 0, said.output
    assert "the truth is not known" in flat(said.output)


def test_doubtful_facts_leave_the_truth_about_statements_open(tmp_path: Path) -> None:
    """But not that of the logic, which no fact decides."""
    found: Any = audit_online(online(tmp_path / "run", confidence=0.5).path)
    own = found["iterations"]["1"]
    assert (found["truth"], own["reinforced"]) == ("verifier", NOTHING)
    assert own["signals"]["grounded"]["deserved"] == NOTHING
    assert own["signals"]["entailed"]["deserved"] == {"value": 1, "stderr": 0, "n": 4}
