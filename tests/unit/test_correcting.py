"""From judgments to pairs: verdicts that are corrected, left unread, or asked in one order."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfcal.judge.calibration import Calibration, remedied
from selfcal.methods import parts
from selfcal.methods.parts.base import BySample
from selfcal.methods.parts.correcting import correction
from selfcal.methods.parts.scoring import curate_sample
from selfcal.pipeline import locate, pin, plan
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work
from selfcal.store import StageDir
from selfcal.testing import ScriptedJudge, ScriptedLabels
from selfcal.types import (
    Candidate,
    Drop,
    Judgment,
    LabelledPair,
    PreferencePair,
    Sample,
    WrittenRap,
)

HALF = math.log(2) / 3
LESS_NEUTRAL = Calibration(1.0, (HALF, HALF, -2 * HALF))
"""Neutral weighs half as much against either side: the biases differ by 3 x HALF = log 2."""


def candidates(name: str = "s", n: int = 2) -> list[Candidate]:
    return [Candidate(name, i, f"t{i}", ("t",), (-1.0 - i,), (1,), True) for i in range(n)]


def said(p_first: float, p_second: float) -> list[Judgment]:
    """Both orders of one pair, in agreement: 0 with `p_first`, 1 with `p_second`."""
    neutral = round(1 - p_first - p_second, 9)
    return [
        Judgment("s", 0, 1, "neutral", p_first, p_second, neutral),
        Judgment("s", 1, 0, "neutral", p_second, p_first, neutral),
    ]


def recipe(calibrate: str = "never", abstain: float = 0.0, **curate: Any) -> Recipe:
    judge = {"calibrate": calibrate, "abstain": abstain}
    return Recipe(name="r", iterations=2, judge=judge, curate=curate)


# --- one sample, by hand ----------------------------------------------------------------------


def test_a_correction_can_make_a_verdict_out_of_a_tie() -> None:
    """0.4, 0.2, 0.4 is undecided; with half as much for neutral 0.5, 0.25, 0.25."""
    raw = said(0.4, 0.2)
    undecided = curate_sample(recipe(), candidates(), raw)
    assert undecided == Drop("s", "pairs", "no-gap")
    corrected = remedied(raw, LESS_NEUTRAL)
    assert [(g.verdict, g.p_first, g.p_second, g.p_neutral) for g in corrected] == [
        ("first", pytest.approx(0.5), pytest.approx(0.25), pytest.approx(0.25)),
        ("second", pytest.approx(0.25), pytest.approx(0.5), pytest.approx(0.25)),
    ]
    pair = curate_sample(recipe(), candidates(), corrected)
    assert pair == PreferencePair("s", "t0", "t1", 0, 1, 1.0, -1.0)
    # by the expected gain the gap grows from 0.4 to 0.5
    wide = recipe(aggregator="expected", margin=0.45)
    dropped = curate_sample(wide, candidates(), raw)
    assert isinstance(dropped, Drop) and dropped.reason == "below-margin"
    made = curate_sample(wide, candidates(), corrected)
    assert isinstance(made, PreferencePair) and made.margin == pytest.approx(0.5)


# --- the stage --------------------------------------------------------------------------------


def stage_of(own: Recipe, name: str) -> Stage:
    return next(s for s in plan(own) if s.name == name)


def work_of(
    stage: Stage,
    run: Path,
    samples: Sequence[Sample],
    found: Sequence[Candidate],
    judged: Sequence[Judgment] = (),
) -> Work:
    """A run that has what the stage reads; every calibration stage has found another correction."""
    inputs = {name: StageDir(run / name, name) for name in stage.inputs}
    fits = {
        "judge/calibration": LESS_NEUTRAL,
        "iter-1/calibration": Calibration(),  # changes nothing
        "iter-2/calibration": LESS_NEUTRAL,
    }
    for name, folder in inputs.items():
        folder.open()
        if name == "data":
            folder.write_shard("calibration", 0, samples, Sample)
        elif name.endswith("candidates"):
            folder.write_shard("candidates", 0, found, Candidate)
        elif name.endswith("judgments"):
            folder.write_shard("judgments", 0, judged, Judgment)
        stats = {"calibration": fits[name].to_json()} if name in fits else {}
        folder.finish(stats, 0.0)
    out = StageDir(run / stage.name, "own")
    out.open()
    return Work(run, stage, out, inputs, 0)


ONE = [Sample("s", "s.png", "?", "")]


@pytest.mark.parametrize(
    ("calibrate", "t", "reads", "pairs"),
    [
        ("never", 1, None, 0),
        ("once", 1, "judge/calibration", 1),
        ("once", 2, "judge/calibration", 1),
        ("each", 1, "iter-1/calibration", 0),
        ("each", 2, "iter-2/calibration", 1),
    ],
)
def test_pairs_are_made_of_corrected_verdicts_and_judgments_stay_as_they_were(
    tmp_path: Path, calibrate: str, t: int, reads: str | None, pairs: int
) -> None:
    stage = stage_of(recipe(calibrate), f"iter-{t}/pairs")
    assert [name for name in stage.inputs if "calibration" in name] == [reads] * (reads is not None)
    raw = said(0.4, 0.2)
    work = work_of(stage, tmp_path, ONE, candidates(), raw)
    stats = stage.run(work)
    assert stats["pairs"] == pairs
    assert stats["drops"] == ({} if pairs else {"no-gap": 1})
    assert work.read(f"iter-{t}/judgments", "judgments", Judgment) == raw


def test_judgments_do_not_depend_on_their_correction() -> None:
    prints = {
        how: {p.stage.name: p.folder.fingerprint for p in locate(pin(recipe(how)), Path())}
        for how in ("never", "once", "each")
    }
    for how in ("once", "each"):
        changed = [n for n in prints["never"] if prints[how][n] != prints["never"][n]]
        assert "iter-1/judgments" not in changed and changed[0] == "iter-1/pairs"
    added = [[n for n in prints[how] if n not in prints["never"]] for how in ("once", "each")]
    assert added == [["judge/calibration"], ["iter-1/calibration", "iter-2/calibration"]]


def test_no_stage_is_no_correction() -> None:
    raw = said(0.4, 0.2)
    assert correction({}, None)(raw) == raw


def test_best_of_n_goes_by_corrected_verdicts_too(tmp_path: Path) -> None:
    """Raw the likeliest is taken, as none is better; corrected the second one is."""
    raw = said(0.2, 0.4)
    taken = []
    for how in ("never", "once"):
        own = recipe(how).model_copy(update={"method": "sft_best_of_n"})
        stage = stage_of(own, "iter-1/best")
        work = work_of(stage, tmp_path / how, ONE, candidates(), raw)
        stage.run(work)
        taken += work.folder.read("best", WrittenRap)
    assert taken == [WrittenRap("s", "t0"), WrittenRap("s", "t1")]


def test_fresh_labels_are_of_some_samples_with_two_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [Sample(f"s{i}", "", f"question {i}", "", facts="f") for i in range(10)]
    # s0 and s5 have nothing to compare: 8 are left, every second of them is asked, 3 at most
    found = [c for i, s in enumerate(samples) for c in candidates(s.id, 3 if i % 5 else 1)]
    labels = ScriptedLabels(
        lambda s, a, b: None if s.id == "s3" else "first" if a < b else "second"
    )
    judge = ScriptedJudge(lambda c: "first" if c.first.text < c.second.text else "second", 0.9)
    correcting = importlib.import_module("selfcal.methods.parts.correcting")
    monkeypatch.setattr(correcting, "label_giver", lambda recipe, work: labels)
    monkeypatch.setattr(
        correcting, "judging", lambda recipe: parts.Judging((), {}, lambda work: judge)
    )
    settings = {"calibrate": "each", "calibration_samples": 3, "pairs_per_sample": 2}
    own = Recipe(name="r", iterations=1, judge=settings)
    (stage,) = parts.fresh_calibration(own, 1)
    work = work_of(stage, tmp_path, samples, found)
    stats = stage.run(work)
    pairs = work.folder.read("labelled", LabelledPair)
    assert Counter(p.sample_id for p in pairs) == {"s1": 2, "s6": 2}
    assert all(p.question == f"question {p.sample_id[1]}" and p.facts == "f" for p in pairs)
    assert (stats["labelled"], stats["drops"]) == (4, {"unreadable-label": 2})
    assert Calibration.from_json(stats["calibration"]) and "agreement_before" in stats
    assert parts.fresh_calibration(recipe("once"), 1) == []


# --- facts that are too uncertain -------------------------------------------------------------


def doubtful(name: str, confidence: float) -> Sample:
    return Sample(name, f"{name}.png", "?", "", confidence=confidence)


@pytest.mark.parametrize("schedule", ["full", "one_order", "adaptive"])
def test_comparisons_of_uncertain_samples_are_not_asked(tmp_path: Path, schedule: str) -> None:
    samples = [doubtful("a", 1.0), doubtful("b", 0.69), doubtful("c", 0.7), doubtful("d", 0.0)]
    found = [c for s in samples for c in candidates(s.id, 3)]
    settings = {"kind": "verifier", "abstain": 0.7, "schedule": schedule}
    own = Recipe(name="r", iterations=1, judge=settings, curate={"tie": 0.05})
    judge = ScriptedJudge(lambda c: "first" if c.first.index < c.second.index else "second", 0.9)
    stage = parts.judgments(own, 1, parts.Judging((), {}, lambda work: judge))
    work = work_of(stage, tmp_path, samples, found)
    stats = stage.run(work)
    assert {c.sample.id for c in judge.asked} == {"a", "c"}
    made = work.folder.read("judgments", Judgment)
    assert {g.sample_id for g in made} == {"a", "c"}  # nothing is made up for the others
    by_sample = BySample(work.folder, "judgments", Judgment)  # as an audit reads them
    assert [len(by_sample.of(name)) for name in "abcd"] == [
        sum(g.sample_id == name for g in made) for name in "abcd"
    ]
    assert (stats["judgments"], stats["unscored"]) == (len(judge.asked), 0)

    pairing = parts.pairs(own, 1)
    work = work_of(pairing, tmp_path / "pairs", samples, found, made)
    assert pairing.run(work)["drops"] == {"unscored": 2}
    pairs = work.folder.read("pairs", PreferencePair)
    assert [(p.sample_id, p.chosen_index, p.rejected_index) for p in pairs] == [
        ("a", 0, 2),
        ("c", 0, 2),
    ]
    assert {d.sample_id for d in work.folder.read("drops", Drop)} == {"b", "d"}


def test_an_uncertain_sample_with_one_candidate_is_dropped_for_that(tmp_path: Path) -> None:
    own = recipe(abstain=0.7)
    stage = parts.pairs(own, 1)
    work = work_of(stage, tmp_path, [doubtful("s", 0.1)], candidates(n=1))
    assert stage.run(work)["drops"] == {"one-candidate": 1}


# --- one order --------------------------------------------------------------------------------


def test_one_order_asks_every_pair_once_and_either_first(tmp_path: Path) -> None:
    samples = [Sample(f"s{i}", "", "?", "") for i in range(100)]
    found = [c for s in samples for c in candidates(s.id, 4)]
    own = Recipe(name="r", iterations=1, judge={"kind": "verifier", "schedule": "one_order"})
    judge = ScriptedJudge(lambda c: "first")
    stage = parts.judgments(own, 1, parts.Judging((), {}, lambda work: judge))
    work = work_of(stage, tmp_path, samples, found)
    # 4 x 3 ordered pairs a sample, of which 6 are asked
    assert stage.run(work) == {"judgments": 600, "unscored": 0, "share_of_all": 0.5}
    asked = Counter((c.sample.id, *sorted((c.first.index, c.second.index))) for c in judge.asked)
    assert len(asked) == 600 and set(asked.values()) == {1}
    ahead = sum(c.first.index < c.second.index for c in judge.asked)
    assert abs(ahead - 300) <= 61  # 600 fair coins: 300 +- 12.2, here within 5 of these


# --- the adaptive schedule --------------------------------------------------------------------


def test_best_of_n_counts_what_was_not_asked(tmp_path: Path) -> None:
    """As pairs do: else who was only compared with a strong one looks weak."""
    own = candidates(n=4)
    asked = [
        # 0 was compared with all and lost to 1 narrowly, who was compared with nobody else
        Judgment("s", 0, 1, "second", 0.35, 0.45, 0.2),
        Judgment("s", 0, 2, "first", 0.9, 0.05, 0.05),
        Judgment("s", 0, 3, "first", 0.9, 0.05, 0.05),
        Judgment("s", 2, 3, "first", 0.98, 0.01, 0.01),
    ]
    settings = {"kind": "verifier", "schedule": "adaptive"}
    both = Recipe(
        name="r", iterations=1, judge=settings, curate={"aggregator": "expected", "tie": 0.01}
    )
    pair = curate_sample(both, own, asked)
    assert isinstance(pair, PreferencePair)
    # of what was asked alone, 0 has (-0.1 + 0.85 + 0.85) / 3 = 0.53 and 1 only 0.1
    assert pair.chosen == "t1"
    alone = both.model_copy(update={"method": "sft_best_of_n"})
    stage = stage_of(alone, "iter-1/best")
    work = work_of(stage, tmp_path, ONE, own, asked)
    stage.run(work)
    assert work.folder.read("best", WrittenRap) == [WrittenRap("s", pair.chosen)]
