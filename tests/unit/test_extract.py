"""Final answers out of whole outputs: two files of hard ones, and what holds for any text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcal.evaluate.extract import kind_of, read_answer
from selfcal.evaluate.payload import Kind, bare
from selfcal.evaluate.score import exactly, is_right, relaxed
from selfcal.types import Sample

FILES = ("hard_answers.yaml", "hard_answers_held_out.yaml")


def cases(name: str) -> list[dict[str, Any]]:
    text = (Path(__file__).parent / "data" / name).read_text(encoding="utf-8")
    found: list[dict[str, Any]] = yaml.load(text, yaml.CSafeLoader)
    return found


def read(case: dict[str, Any]) -> str | None:
    choices = case.get("choices", ())
    return read_answer(case["output"], case["kind"], choices, case.get("cut", False))


def test_at_least_99_percent_of_the_hard_outputs_are_read_right() -> None:
    rows = [case for name in FILES for case in cases(name)]
    assert len(rows) >= 180
    assert {c["kind"] for c in rows} == {"choice", "yesno", "number", "open"}
    assert sum(c["expected"] is None for c in rows) > len(rows) / 5
    wrong = [c for c in rows if bare(read(c) or "?none?") != bare(c["expected"] or "?none?")]
    shown = "\n".join(f"{c['note']}: {c['output']!r} gave {read(c)!r}" for c in wrong)
    assert len(wrong) <= len(rows) / 100, shown


def test_hard_outputs_have_no_twins() -> None:
    rows = [(c["output"], str(c.get("choices"))) for name in FILES for c in cases(name)]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("kind", ["choice", "yesno", "number", "open"])
@pytest.mark.parametrize(
    "piece",
    ["Answer: ", "(A) ", "\\boxed{", "$", "<think>", "no ", "wait, ", "1,", "so it is ", "**",
     "\\frac{1}{", "not ", "<answer>", "1 1/", " ", "\n", "A: b. ", "\"", "the answer is "],
)  # fmt: skip
def test_time_is_linear_in_the_text(kind: Kind, piece: str) -> None:
    def seconds(n: int) -> float:
        text = piece * (n // len(piece))
        start = time.process_time()
        read_answer(text, kind, ("one", "two", "three"))
        return time.process_time() - start

    short = min(seconds(2_500) for _ in range(2))
    assert seconds(10_000) < 10 * max(short, 0.01)  # 16 times, if it were quadratic


@given(st.text(max_size=200), st.sampled_from(["choice", "yesno", "number", "open"]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_text_is_read_or_not_and_never_raises(text: str, kind: Kind, cut: bool) -> None:
    found = read_answer(text, kind, ("red", "blue", "5 cm"), cut)
    assert found is None or found
    if kind == "choice":
        assert found in (None, "A", "B", "C")
    if kind == "yesno":
        assert found in (None, "yes", "no")


@pytest.mark.parametrize(
    ("answer", "choices", "kind"),
    [("B", ("x", "y"), "choice"), ("Yes", (), "yesno"), ("12.5%", (), "number"),
     ("$1,200", (), "number"), ("Italy", (), "open"), ("12 apples", (), "open")],
)  # fmt: skip
def test_kind_of_a_question(answer: str, choices: tuple[str, ...], kind: Kind) -> None:
    assert kind_of(Sample("s", "i.png", "q", answer, choices)) == kind


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("4", "4.0", True), ("4", "four", False), ("45%", "45", True), ("0.75", "3/4", True),
        ("1234", "1,234", True), ("4.1", "4", False),
    ],
)  # fmt: skip
def test_numbers_are_compared_by_value(answer: str, reference: str, right: bool) -> None:
    # "four" is a word: its question is open, and there the texts are compared
    sample = Sample("s", "i.png", "q", reference)
    assert exactly(answer, sample, "number") is (right or reference == "four")


@pytest.mark.parametrize("reference", ["cat", "B", "(b)", "B. cat"])
def test_a_reference_may_be_a_letter_or_the_option(reference: str) -> None:
    sample = Sample("s", "i.png", "q", reference, ("dog", "cat"))
    assert is_right("B", sample) and not is_right("A", sample)


def test_the_unreadable_is_never_right() -> None:
    assert not is_right(None, Sample("s", "i.png", "q", ""))


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        # by hand, from the rule: at most 5 % off the reference
        ("105", "100", True), ("95", "100", True), ("105.1", "100", False), ("94.9", "100", False),
        ("-10.4", "-10", True), ("10", "-10", False),
        ("0", "0", True), ("0.01", "0", False),  # no share of zero
        ("45%", "0.45", True), ("45%", "45", False), ("45%", "45%", True), ("46%", "45%", True),
        ("Italy", "italy", True), ("Italy", "Italia", False), ("the red", "red", False),
    ],
)  # fmt: skip
def test_relaxed_accuracy_by_hand(answer: str, reference: str, right: bool) -> None:
    sample = Sample("s", "i.png", "q", reference)
    assert relaxed(answer, sample, kind_of(sample)) is right
