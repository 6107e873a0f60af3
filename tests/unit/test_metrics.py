"""The measures: what each is a share of, and its standard error."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from selfcal.evaluate.metrics import METRICS, grade, grade_answer, measure, ratio
from selfcal.types import Response, Sample


def response(category: str, correct: bool, true: int, statements: int, **found: bool) -> Response:
    """A response that has just the named flaws."""
    flaws = {f: found.get(f, False) for f in ("counterfactual", "insufficient", "unreasonable")}
    return Response(
        "s", category, "text", "answer", found.get("compliant", True), correct,
        sound=not any(flaws.values()), **flaws, inconsistent=found.get("inconsistent", False),
        true_statements=true, statements=statements,
    )  # fmt: skip


RESPONSES = [
    response("math", True, 3, 3),
    response("math", True, 1, 2, counterfactual=True),  # a lucky answer
    response("chart", False, 2, 2),  # sound, yet wrong
    response(
        "chart", False, 0, 1,
        counterfactual=True, insufficient=True, unreasonable=True, inconsistent=True,
        compliant=False,
    ),
]  # fmt: skip

HALF = (0.5, 0.25, 4)  # 2 of 4: sqrt(1/2 * 1/2 / 4)
QUARTER = (0.25, math.sqrt(3) / 8, 4)  # 1 of 4: sqrt(1/4 * 3/4 / 4)
NONE = (math.nan, math.nan, 0)

OVERALL = {
    "answer_accuracy": HALF,
    "rationale_soundness": HALF,
    "alignment": (0.5, math.sqrt(1 / 8), 2),  # 1 of the 2 right ones: sqrt(1/2 * 1/2 / 2)
    "reliable_accuracy": QUARTER,
    "lucky_answers": QUARTER,
    # 6 of 8 statements. What each response has above 3/4 of its statements: 3/4, -1/2, 1/2, -3/4;
    # the error is sqrt(9/16 + 1/4 + 1/4 + 9/16) / 8 = sqrt(13/8) / 8
    "grounding": (0.75, math.sqrt(13 / 8) / 8, 8),
    "inconsistency": QUARTER,
    "flaw/counterfactual": HALF,
    "flaw/insufficient": QUARTER,
    "flaw/unreasonable": QUARTER,
    "format_compliance": (0.75, math.sqrt(3) / 8, 4),
}

# value and n in each category
BY_CATEGORY: dict[str, dict[str, tuple[float, int]]] = {
    "answer_accuracy": {"math": (1, 2), "chart": (0, 2)},
    "alignment": {"math": (1 / 2, 2), "chart": (math.nan, 0)},  # no right answer, no share
    "grounding": {"math": (4 / 5, 5), "chart": (2 / 3, 3)},
    "lucky_answers": {"math": (1 / 2, 2), "chart": (0, 2)},
}


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([], NONE),
        ([(0, 0), (0, 0)], NONE),
        ([(1, 1)], (1, 0, 1)),
        ([(1, 1), (0, 1)], (0.5, math.sqrt(1 / 8), 2)),
        ([(1, 1)] * 30 + [(0, 1)] * 70, (0.3, math.sqrt(0.3 * 0.7 / 100), 100)),
        # rows outside the denominator change nothing
        ([(1, 1), (0, 1), (0, 0), (0, 0)], (0.5, math.sqrt(1 / 8), 2)),
        # 2 of 4: above one half of their own are 1 - 3/2 and 1 - 1/2; sqrt(1/4 + 1/4) / 4
        ([(1, 3), (1, 1)], (0.5, math.sqrt(1 / 2) / 4, 4)),
        # the same share everywhere: no spread
        ([(1, 2), (2, 4), (5, 10)], (0.5, 0, 16)),
    ],
)
def test_ratio(rows: list[tuple[float, float]], found: tuple[float, float, int]) -> None:
    assert ratio(rows) == pytest.approx(found, nan_ok=True)


def test_every_metric_by_hand() -> None:
    found = {
        r.metric: (r.value, r.stderr, r.n)
        for r in measure(RESPONSES, "iter-1", "test", seed=7)
        if r.category == "all"
    }
    assert list(found) == list(METRICS) == list(OVERALL)
    for name, row in OVERALL.items():
        assert found[name] == pytest.approx(row), name


def test_categories() -> None:
    results = measure(RESPONSES, "iter-1", "test", seed=7)
    assert len(results) == 3 * len(METRICS)
    assert {(r.checkpoint, r.split, r.seed) for r in results} == {("iter-1", "test", 7)}
    for metric, categories in BY_CATEGORY.items():
        for category, row in categories.items():
            (r,) = (r for r in results if (r.metric, r.category) == (metric, category))
            assert (r.value, r.n) == pytest.approx(row, nan_ok=True), (metric, category)


def test_alignment_and_luck_follow_from_the_accuracies() -> None:
    value = {r.metric: r.value for r in measure(RESPONSES[:3], "seed", "dev", 0)[: len(METRICS)]}
    assert value["alignment"] == value["reliable_accuracy"] / value["answer_accuracy"]
    assert value["lucky_answers"] == value["answer_accuracy"] - value["reliable_accuracy"]


def test_no_responses_have_no_value() -> None:
    results = measure([], "seed", "dev", 0)
    assert [r.metric for r in results] == list(METRICS)
    assert all(math.isnan(r.value) and math.isnan(r.stderr) and r.n == 0 for r in results)


def test_no_statements_are_no_grounding() -> None:
    mute = response("math", False, 0, 0, insufficient=True)
    found = {r.metric: r for r in measure([mute], "seed", "dev", 0) if r.category == "all"}
    assert math.isnan(found["grounding"].value) and found["grounding"].n == 0
    assert found["flaw/insufficient"].value == 1


@pytest.mark.parametrize(("category", "name"), [("", "none"), ("all", "all*"), ("x", "x")])
def test_category_names_never_mix_with_all(category: str, name: str) -> None:
    own = [replace(r, category=category) for r in RESPONSES]
    n = {r.category: r.n for r in measure(own, "seed", "dev", 0) if r.metric == "answer_accuracy"}
    assert n == {"all": 4, name: 4}


def test_without_a_verifier_only_answer_and_form_are_measured() -> None:
    found = {r.metric for r in measure(RESPONSES, "seed", "dev", 0, verified=False)}
    assert found == {"answer_accuracy", "format_compliance", "unreadable"}


BARS = Sample(
    "s1", "a.png", "What is the value of the red bar?", "3",
    category="chart", facts="red bar: 3; green bar: 5; blue bar: 2",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "correct", "sound", "true", "statements", "compliant"),
    [
        ("Rationale: The red bar is 3. So it is 3.\nAnswer: 3", True, True, 1, 1, True),
        ("Rationale: The red bar is 4. So it is 4.\nAnswer: 4", False, False, 0, 1, True),
        # the right answer for a wrong reason
        ("Rationale: The red bar is 4. So it is 4.\nAnswer: 3", True, False, 0, 1, True),
        ("Answer: 3", True, False, 0, 0, False),  # nothing was established
    ],
)
def test_grade(
    text: str, correct: bool, sound: bool, true: int, statements: int, compliant: bool
) -> None:
    r = grade(BARS, text)
    assert (r.sample_id, r.category, r.text) == ("s1", "chart", text)
    assert (r.correct, r.sound, r.compliant) == (correct, sound, compliant)
    assert (r.true_statements, r.statements) == (true, statements)


def test_grade_answer_reads_choices_and_claims_nothing_of_the_rationale() -> None:
    sample = Sample("s2", "a.png", "Which?", "cat", choices=("dog", "cat"), category="pets")
    r = grade_answer(sample, "Rationale: It has whiskers.\nAnswer: B")
    assert (r.answer, r.correct, r.compliant, r.category) == ("B", True, True, "pets")
    assert (r.sound, r.statements, r.inconsistent) == (False, 0, False)
    assert not grade_answer(sample, "Rationale: It barks.\nAnswer: A").correct
