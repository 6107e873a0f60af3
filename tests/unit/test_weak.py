"""Samples that give no pair: who is taken up, what the teacher's RAP must show, what is widened."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfcal.judge.calibration import Calibration, remedied
from selfcal.methods import parts
from selfcal.methods.parts.correcting import Correct
from selfcal.pipeline import locate, pin
from selfcal.recipe import Judge, Recipe
from selfcal.stage import Stage, Work
from selfcal.store import StageDir
from selfcal.testing import Said, ScriptedJudge, ScriptedTeacher
from selfcal.types import Candidate, Drop, PreferencePair, Sample

rescue: Any = importlib.import_module("selfcal.methods.parts.rescue")
searching: Any = importlib.import_module("selfcal.methods.parts.search")

GOLD = "Rationale: There are three dogs.\nAnswer: 3"


def sample(name: str = "s", **more: Any) -> Sample:
    return Sample(name, f"{name}.png", "How many dogs?", "3", **more)


def candidates(name: str = "s", n: int = 3) -> list[Candidate]:
    """The likeliest is the second."""
    logprobs = [-3.0, -1.0, -2.0]
    return [
        Candidate(name, i, f"said {i} of {name}", ("x",), (logprobs[i],), (1,), True)
        for i in range(n)
    ]


def recipe(**curate: Any) -> Recipe:
    settings = {"aggregator": "expected", **curate}
    return Recipe(name="r", iterations=1, judge={"kind": "verifier"}, curate=settings)


def rescued(
    own: Recipe,
    says: Any,
    texts: dict[str, str] | None = None,
    n: int = 3,
    correct: Correct = lambda judgments: judgments,
    confidence: float = 1.0,
) -> tuple[list[PreferencePair], list[Drop], ScriptedJudge]:
    """What becomes of sample `s`, or of the samples that the teacher has texts for."""
    told = texts or {"s": GOLD}
    judge, teacher = ScriptedJudge(says), ScriptedTeacher(lambda s: told[s.id])
    asks = [(sample(name, confidence=confidence), candidates(name, n)) for name in told]
    made = rescue._rescue(own, teacher, judge, asks, correct)
    pairs, drops = list(made["pairs"][1]), list(made["drops"][1])
    return pairs, drops, judge


def prefers(p_gold: float, p_other: float) -> Any:
    """Says these probabilities for the teacher's RAP and the other one, in whichever order."""
    rest = 1 - p_gold - p_other

    def says(c: Any) -> Said:
        return (p_gold, p_other, rest) if c.first.text == GOLD else (p_other, p_gold, rest)

    return says


# --- the teacher's RAP ------------------------------------------------------------------------


def test_the_teachers_rap_is_compared_with_the_likeliest_response_in_both_orders() -> None:
    pairs, drops, judge = rescued(recipe(), prefers(0.75, 0.25))
    assert [(c.first.text, c.second.text) for c in judge.asked] == [
        (GOLD, "said 1 of s"),
        ("said 1 of s", GOLD),
    ]
    # both orders say 0.75 - 0.25
    assert pairs == [PreferencePair("s", GOLD, "said 1 of s", 3, 1, 0.5, -0.5)] and not drops


@pytest.mark.parametrize(
    ("p_gold", "p_other", "margin", "kept"),
    [
        (0.75, 0.25, 1.0, True),  # scores 0.5 and -0.5: a gap of 1
        (0.75, 0.25, 1.01, False),
        (0.5, 0.25, 0.5, True),  # neutral has the rest: a gap of 0.5
        (0.5, 0.25, 0.51, False),
        (0.25, 0.75, 0.0, False),  # the other one is better
        (0.5, 0.5, 0.0, False),  # neither is: no pair without a gap
        (0.0, 0.0, 0.0, False),
    ],
)
def test_it_is_chosen_only_by_the_margin(
    p_gold: float, p_other: float, margin: float, kept: bool
) -> None:
    pairs, drops, _ = rescued(recipe(margin=margin), prefers(p_gold, p_other))
    assert len(pairs) == kept
    assert drops == ([] if kept else [Drop("s", "pairs", "teacher-no-better")])


def test_a_liking_for_a_place_prefers_nobody() -> None:
    for says in ("first", "second"):
        pairs, drops, _ = rescued(recipe(), lambda c, says=says: says)
        assert not pairs and [d.reason for d in drops] == ["teacher-no-better"]


def test_verdicts_are_corrected_before_they_count() -> None:
    # 0.4, 0.2, 0.4: half as much weight for neutral makes 0.5, 0.25, 0.25, and gaps of 0.4 and 0.5
    half = math.log(2) / 3
    less = Calibration(1.0, (half, half, -2 * half))
    for correct, kept in ((lambda g: g, 0), (lambda g: remedied(g, less), 1)):
        pairs, *_ = rescued(recipe(margin=0.45), prefers(0.4, 0.2), correct=correct)
        assert len(pairs) == kept
    assert pairs[0].margin == pytest.approx(0.5)


def test_an_order_that_cannot_be_read_leaves_the_other() -> None:
    pairs, *_ = rescued(recipe(), lambda c: "first" if c.first.text == GOLD else None)
    assert [(p.chosen, p.margin) for p in pairs] == [(GOLD, 2.0)]


def test_facts_count_as_they_do_for_other_pairs() -> None:
    # the gap is 2, and 1 where the facts are half certain
    for confidence, weigh, kept in ((0.5, True, 0), (0.5, False, 1), (1.0, True, 1)):
        own = recipe(margin=1.5, weigh_facts=weigh)
        pairs, drops, _ = rescued(own, prefers(1, 0), confidence=confidence)
        assert len(pairs) == kept
        assert [d.reason for d in drops] == ["teacher-no-better"] * (1 - kept)
    careful = recipe().model_copy(update={"judge": Judge(kind="verifier", abstain=0.7)})
    _, drops, judge = rescued(careful, prefers(1, 0), confidence=0.69)
    assert drops == [Drop("s", "pairs", "unscored")] and not judge.asked


def test_scores_that_tie_make_no_pair() -> None:
    for tie, kept in ((0.1, 1), (0.5, 0)):  # a gap of 1 is no more than twice 0.5
        pairs, *_ = rescued(recipe(tie=tie), prefers(0.75, 0.25))
        assert len(pairs) == kept


def test_what_cannot_be_read_is_unscored() -> None:
    pairs, drops, _ = rescued(recipe(), lambda c: None)
    assert not pairs and drops == [Drop("s", "pairs", "unscored")]


def test_what_the_teacher_gets_wrong_is_not_judged_and_counted_by_its_reason() -> None:
    texts = {
        "good": GOLD,
        "wrong": GOLD.replace("3", "4"),
        "bare": "Answer: 3",
    }
    pairs, drops, judge = rescued(recipe(), prefers(1, 0), texts)
    assert [p.sample_id for p in pairs] == ["good"]
    assert {d.sample_id: d.reason for d in drops} == {
        "wrong": "answer-disagrees",
        "bare": "no-rationale",
    }
    assert {c.sample.id for c in judge.asked} == {"good"}


def test_one_candidate_is_enough() -> None:
    pairs, *_ = rescued(recipe(), prefers(1, 0), n=1)
    assert [(p.rejected, p.rejected_index, p.chosen_index) for p in pairs] == [
        ("said 0 of s", 0, 1)
    ]


# --- which samples ----------------------------------------------------------------------------

REASONS = {
    "a": "one-candidate", "b": "no-gap", "c": "below-margin", "d": "unscored", "e": "budget",
    "f": "no-candidate",
}  # fmt: skip
ALL = [*REASONS, "paired"]


def work_of(stage: Stage, run: Path) -> Work:
    """A run in which curation left these drops, and one pair."""
    inputs = {name: StageDir(run / name, name) for name in stage.inputs}
    for folder in inputs.values():
        folder.open()
    found = [c for name in ALL[:3] + ALL[6:] for c in candidates(name, 3 - (name == "a") * 2)]
    drops = [Drop(name, "pairs", reason) for name, reason in REASONS.items()]
    own = PreferencePair("paired", "x", "y", 0, 1, 1.0, -1.0)
    inputs["data"].write_shard("calibration", 0, [sample(name) for name in ALL], Sample)
    inputs["iter-1/pairs"].write_shard("drops", 0, drops, Drop)
    inputs["iter-1/pairs"].write_shard("pairs", 0, [own], PreferencePair)
    if "iter-1/candidates" in inputs:
        inputs["iter-1/candidates"].write_shard("candidates", 0, found, Candidate)
    folder = StageDir(run / stage.name, "own")
    folder.open()
    return Work(run, stage, folder, inputs, 0)


def test_only_what_a_better_response_could_do_away_with_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = ScriptedJudge(lambda c: "neutral" if c.sample.id == "b" else prefers(1, 0)(c))
    teacher = ScriptedTeacher(lambda s: GOLD)
    monkeypatch.setattr(rescue, "teacher_of", lambda recipe, work: teacher)
    monkeypatch.setattr(rescue, "judging", lambda recipe: parts.Judging((), {}, lambda work: judge))
    (stage,) = parts.weak(recipe(weak="teacher"), 1, "rft")
    assert stage.name == "iter-1/taught/pairs"
    work = work_of(stage, tmp_path)
    # both orders of three samples
    assert stage.run(work) == {"pairs": 2, "drops": {"teacher-no-better": 1}, "judgments": 6}
    assert [s.id for s in teacher.asked] == ["a", "b", "c"]
    pairs = work.folder.read("pairs", PreferencePair)
    assert [(p.sample_id, p.chosen, p.rejected) for p in pairs] == [
        ("a", GOLD, "said 0 of a"),
        ("c", GOLD, "said 1 of c"),
    ]
    assert work.folder.read("drops", Drop) == [Drop("b", "pairs", "teacher-no-better")]


def test_nothing_is_weak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither judge nor teacher is asked, and what is written can be read."""

    def refuse(*_: object) -> None:
        raise AssertionError("asked about nothing")

    monkeypatch.setattr(rescue, "weak_samples", lambda *_: [])
    monkeypatch.setattr(rescue, "teacher_of", lambda *_: ScriptedTeacher(refuse))  # type: ignore[arg-type]
    judge = parts.Judging((), {}, lambda work: ScriptedJudge(refuse))  # type: ignore[arg-type]
    monkeypatch.setattr(rescue, "judging", lambda recipe: judge)
    (stage,) = parts.weak(recipe(weak="teacher"), 1, "rft")
    work = work_of(stage, tmp_path)
    assert stage.run(work) == {"pairs": 0, "drops": {}, "judgments": 0}
    assert work.folder.read("pairs", PreferencePair) == []


# --- a wider search ---------------------------------------------------------------------------


@pytest.mark.parametrize(("by", "wanted"), [(2.0, 12), (1.5, 9), (3.0, 18)])
def test_the_wider_search_is_for_weak_samples_and_wants_more_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float, wanted: int
) -> None:
    asked: list[tuple[Recipe, list[str], bool]] = []

    def search(
        recipe: Recipe, work: Work, start: Any, samples: Sequence[Sample], guided: bool, *_: Any
    ) -> dict[str, Any]:
        asked.append((recipe, [s.id for s in samples], guided))
        return {}

    monkeypatch.setattr(searching, "search_samples", search)
    stages = parts.weak(recipe(weak="widen", widen=by), 1, "rft")
    assert [s.name for s in stages] == [
        f"iter-1/wider/{what}" for what in ("candidates", "judgments", "pairs")
    ]
    work = work_of(stages[0], tmp_path)
    stages[0].run(work)
    ((wide, names, guided),) = asked
    assert (names, guided) == (["a", "b", "c"], False)
    own = recipe().search
    assert (own.candidates, wide.search.candidates) == (6, wanted)
    assert wide.search.temperature == pytest.approx(own.temperature * math.sqrt(by))
    changed = {"candidates", "temperature"}
    assert wide.search.model_dump(exclude=changed) == own.model_dump(exclude=changed)


def test_weak_samples_are_dropped_by_default() -> None:
    assert parts.weak(recipe(), 1, "rft") == []


# --- what a changed setting makes anew --------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"teacher": {"error_rate": 0.1}}, {"teacher": {"error_rate": 0.2}}),
        (
            {"teacher": {"kind": "miniworld"}},
            {"teacher": {"kind": "endpoint", "model": "m"}},
        ),
        ({"judge": {"kind": "verifier"}}, {"judge": {"kind": "guess"}}),
        ({"curate": {"weak": "teacher", "margin": 0.1}}, {}),
    ],
)
def test_taught_pairs_depend_on_teacher_judge_and_rule(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Without fine-tuning: else the teacher counts by way of the policy, too."""
    base = {"name": "r", "rft": None, "judge": {"kind": "verifier"}, "curate": {"weak": "teacher"}}
    prints = [
        next(
            p.folder.fingerprint
            for p in locate(pin(Recipe.model_validate(base | change)), Path())
            if p.stage.name == "iter-1/taught/pairs"
        )
        for change in (one, other)
    ]
    assert prints[0] != prints[1]
