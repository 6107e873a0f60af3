"""A sample of what `python -m tests.fuzz` does, every fault it ever found, and long strings."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from fuzz import hostile
from fuzz.run import CASES, attempt, fuzz, made
from fuzz.targets import TARGETS, Target

INPUTS = 60
"""Of each target."""
MOST_S = 5.0
"""Seconds of computing that a string of 1 MB may take any parser."""
SIZE = 2**20
FAMILIES = (
    "'A. ' repeated", "'½' repeated",
    "'\\\\boxed{' repeated", "'答案是' repeated", "'a' before '\"'",
)  # fmt: skip
"""Those that were slowest, or quadratic, once; `benchmarks/linear.py` measures all."""


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the files
@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_damaged_inputs_are_read_or_refused(target: Target, tmp_path: Path) -> None:
    for number in range(INPUTS):
        what = attempt(target, made(target, 1, number), tmp_path)
        assert what in (None, "refused"), f"--seed 1 --show {number}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "case", sorted(CASES.glob("*/*")), ids=lambda case: f"{case.parent.name}-{case.name}"
)
def test_what_was_a_fault_once_is_none_now(case: Path, tmp_path: Path) -> None:
    assert attempt(TARGETS[case.parent.name], case.read_bytes(), tmp_path) in (None, "refused")


def test_faults_of_every_kind_are_found_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(data: bytes, _: Path) -> None:
        number = int(data)
        if number == 3:
            raise KeyError("three")
        if number == 5:
            signal.raise_signal(signal.SIGKILL)
        while number == 7:
            time.process_time()

    monkeypatch.setattr("fuzz.run.CASES", tmp_path / "cases")
    monkeypatch.setattr("fuzz.run.LIMIT_S", 0.1)
    target = Target("own", "", lambda rng: b"%d" % rng.getrandbits(3), read)
    state = tmp_path / "state.json"
    first = fuzz(target, 10, 0, state, lambda _: None)
    assert first.inputs == 10
    whole = fuzz(target, 30, 0, state, lambda _: None)  # goes on
    assert whole.inputs == 30
    kinds = {what.split(" at ")[0] for what in whole.faults}
    assert kinds == {"KeyError", "TooSlow", f"killed by {int(signal.SIGKILL)}"}
    assert len(list((tmp_path / "cases" / "own").iterdir())) == 3


PARSERS = [p for p in hostile.parsers() if not p.startswith(("parse ", "split ", "sentence_end "))]
"""Without those that others call."""


@pytest.mark.parametrize("name", PARSERS)
def test_a_megabyte_takes_no_parser_long(name: str) -> None:
    read, families = hostile.parsers()[name], hostile.families()
    for family in FAMILIES:
        text = families[family](SIZE)
        begun = time.process_time()
        hostile.quietly(read, text)
        assert time.process_time() - begun < MOST_S, family
