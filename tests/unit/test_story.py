"""A sample's story: all that a run has of it, and each file of the run read but once."""

from __future__ import annotations

import gc
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from selfcal import store
from selfcal.errors import SelfcalError, StoreError
from selfcal.story import (
    Cell,
    Records,
    Rollouts,
    Round,
    Story,
    TrainingDrops,
    Written,
    find,
    tell,
)
from selfcal.types import (
    Candidate,
    Drop,
    GradedResponse,
    Judgment,
    LabelledPair,
    PreferencePair,
    Response,
    Rollout,
    Sample,
    SearchNode,
    WrittenRap,
)
from unit.hand_made import BAD, DIGITS, GOOD, RunFolder, sample

ASKED = [
    Judgment("cal-0", 0, 1, "first", 0.8, 0.1, 0.1),
    Judgment("cal-0", 1, 0, "second", 0.2, 0.7, 0.1),
    Judgment("cal-0", 0, 2, "first", 0.5, 0.3, 0.2),
    Judgment("cal-0", 2, 0, None, 0.0, 0.0, 0.0),
]
"""#0 beats #1 with 0.75, and #2 with the 0.5 of the order that was read; #1 and #2 never met."""
WEAK = Drop("cal-0", "pairs", "no-gap")


def said(name: str, *texts: str) -> list[Candidate]:
    return [Candidate(name, i, t, (t,), (-1.0,), (9,), True) for i, t in enumerate(texts)]


def searched(name: str, *texts: str) -> dict[str, tuple[type, list[object]]]:
    """What a stage of candidates leaves of one sample, last candidate first."""
    nodes = [SearchNode(name, i, -1, t, -1.0, 9, 1, True, i) for i, t in enumerate(texts)]
    return {
        "candidates": (Candidate, [*reversed(said(name, *texts))]),
        "nodes": (SearchNode, [*nodes, SearchNode(name, 9, -1, "Cut.", -8.0, 2, 1, False, -1)]),
        "drops": (Drop, [Drop(name, "candidates", "duplicate")]),
    }


def story(run: RunFolder, name: str) -> Story:
    records = Records(run.path, [name])
    [(split, own)] = find(records, name)
    return tell(records, split, own)


def the_round(run: RunFolder, name: str = "cal-0", place: str = "iter-1") -> Round:
    return next(p for p in story(run, name).parts if isinstance(p, Round) and p.place == place)


def judged(path: Path, *overrides: str) -> RunFolder:
    """A run up to the judgments of one sample with three candidates."""
    run = RunFolder(path, *overrides)
    run.finish("data", {"calibration": (Sample, [sample("cal-0")])})
    run.finish("iter-1/candidates", searched("cal-0", GOOD, BAD, "Answer: 5"))
    run.finish("iter-1/judgments", {"judgments": (Judgment, ASKED)})
    return run


def response(name: str, text: str) -> Response:
    return Response(name, "math", text, "5", True, True, True, *[False] * 4, 2, 2)


# --- records --------------------------------------------------------------------------------


def two_shards(path: Path) -> RunFolder:
    """Two samples with candidates in a shard each, and one that nobody will want."""
    run = RunFolder(path)
    names = ("cal-0", "cal-unwanted", "cal-1")
    run.finish("data", {"calibration": (Sample, [sample(n) for n in names])})
    folder = run.planned["iter-1/candidates"].folder
    folder.open()
    for i, own in enumerate((["cal-0", "cal-unwanted"], ["cal-1", "cal-0"])):
        folder.write_shard("candidates", i, [c for n in own for c in said(n, GOOD)], Candidate)
        folder.write_shard("drops", i, [], Drop)
    folder.finish({}, 1.0)
    return run


def test_each_file_is_read_once_and_only_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, read = two_shards(tmp_path / "run"), Counter[str]()
    rows = store.read_records

    def counted(path: Path, kind: type) -> list:
        read[path.relative_to(run.path).as_posix()] += 1
        return rows(path, kind)

    monkeypatch.setattr(store, "read_records", counted)
    records = Records(run.path, ["cal-0", "cal-1"])
    assert not read
    for name in ("cal-0", "cal-1", "cal-0"):
        [(split, own)] = find(records, name)
        tell(records, split, own)
    assert set(read.values()) == {1}
    shards = {
        f"iter-1/candidates/{k}-0000{i}.parquet" for k in ("candidates", "drops") for i in "01"
    }
    assert set(read) == {"data/calibration-00000.parquet", *shards}


def test_manifests_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = two_shards(tmp_path / "run")
    records = Records(run.path, ["cal-0"])
    assert records.done("iter-1/candidates") and not records.done("iter-1/pairs")
    monkeypatch.setattr(store, "read_json", lambda path: pytest.fail(f"{path} is read again"))
    assert records.done("iter-1/candidates") and not records.done("iter-1/pairs")
    assert not records.done("no/such/stage")


def test_only_the_records_of_wanted_samples_are_kept(tmp_path: Path) -> None:
    run = two_shards(tmp_path / "run")
    records = Records(run.path, ["cal-0", "cal-1"])
    own = records.own("iter-1/candidates", "candidates", Candidate, "cal-0")
    assert own == said("cal-0", GOOD) * 2  # of both shards
    own.clear()  # which is the caller's own list
    assert len(records.own("iter-1/candidates", "candidates", Candidate, "cal-0")) == 2
    gc.collect()
    assert "cal-unwanted" not in {c.sample_id for c in gc.get_objects() if type(c) is Candidate}
    with pytest.raises(ValueError, match="'cal-unwanted' are not kept"):
        records.own("iter-1/candidates", "candidates", Candidate, "cal-unwanted")


def test_what_is_not_there_has_no_records(tmp_path: Path) -> None:
    records = Records(two_shards(tmp_path / "run").path, ["cal-0"])
    stages = ("iter-1/candidates", "nodes"), ("iter-1/pairs", "drops"), ("iter-9/pairs", "drops")
    for stage, name in (*stages, ("", "drops")):
        assert records.own(stage, name, Drop, "cal-0") == []


# --- samples --------------------------------------------------------------------------------


def test_a_sample_is_found_in_every_split_that_has_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    splits = {"test": [sample("a", "5"), sample("b")], "calibration": [sample("a", "6")]}
    run.finish("data", {split: (Sample, own) for split, own in splits.items()})
    found = find(Records(run.path, ["a", "b"]), "a")
    assert [(split, own.answer) for split, own in found] == [("calibration", "6"), ("test", "5")]
    with pytest.raises(SelfcalError, match=r"near: b; its splits: calibration \(1, such as a\)"):
        find(Records(run.path, ["bb"]), "bb")


def test_a_run_without_samples_says_what_to_do(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with pytest.raises(StoreError, match="has no samples yet: selfcal run --out"):
        find(Records(run.path, ["a"]), "a")


def test_a_sample_has_the_facts_that_the_teacher_wrote(tmp_path: Path) -> None:
    run = RunFolder(
        tmp_path / "run", f"data.source={tmp_path / 'mine'}", "teacher.kind=file",
        f"teacher.path={tmp_path / 'raps.jsonl'}",
    )  # fmt: skip
    run.finish("data", {"calibration": (Sample, [replace(sample("cal-0"), facts="")])})
    assert story(run, "cal-0").sample.facts == ""
    run.finish("facts", {"calibration": (Sample, [sample("cal-0")])})
    assert story(run, "cal-0").sample.facts == DIGITS[1]
    records = Records(run.path, ["cal-0"])
    assert records.verified(sample("cal-0"), GOOD) is None  # though it looks like MiniWorld's


def test_the_verifier_is_silent_where_facts_leave_the_question_open(tmp_path: Path) -> None:
    records = Records(RunFolder(tmp_path / "run").path, [])
    found = records.verified(sample("cal-0"), BAD)
    assert found is not None and found.counterfactual and not found.correct
    assert records.verified(replace(sample("cal-0"), facts="red bar: 3"), BAD) is None


# --- rounds ---------------------------------------------------------------------------------


def test_a_round_has_the_tree_the_cells_and_the_scores(tmp_path: Path) -> None:
    found = the_round(judged(tmp_path / "run"))
    assert found.searched and found.curating == "iter-1/pairs"
    assert found.about == "confidence-weighted curation"
    assert [r.candidate.index for r in found.candidates] == [0, 1, 2]  # stored the other way round
    assert [n.node for n in found.nodes] == [0, 1, 2, 9]
    assert set(found.cells) == {(0, 1), (1, 0), (0, 2), (2, 0)}
    for (i, j), sign, confidence in (((0, 1), 1, 0.75), ((2, 0), -1, 0.5)):
        assert found.cells[i, j] == Cell(sign, pytest.approx(confidence))
        assert found.cells[j, i] == Cell(-sign, pytest.approx(confidence))
    assert [r.score for r in found.candidates] == [1.0, -1.0, -1.0]
    assert (len(found.judgments), found.unscored) == (4, 1)
    good, bad, bare = (r.found for r in found.candidates)
    assert good and good.sound and good.correct
    assert bad and bad.counterfactual and not bad.correct
    assert bare and bare.insufficient and bare.correct


def test_roles_are_those_that_curation_gave(tmp_path: Path) -> None:
    run = judged(tmp_path / "run")
    assert {r.role for r in the_round(run).candidates} == {""}
    pair = PreferencePair("cal-0", GOOD, BAD, 0, 1, 1.0, -1.0)
    run.finish("iter-1/pairs", {"pairs": (PreferencePair, [pair]), "drops": (Drop, [])})
    overlong = Drop("cal-0", "dpo", "overlong", "9 tokens > 8")
    run.finish("iter-1/dpo", {"drops": (Drop, [overlong, Drop("cal-1", "dpo", "overlong")])})
    own = story(run, "cal-0")
    found = own.parts[0]
    assert isinstance(found, Round) and found.pairs == (pair,)
    assert [r.role for r in found.candidates] == ["chosen", "rejected", ""]
    assert own.parts[1:] == (TrainingDrops("iter-1/dpo", (overlong,)),)


def test_a_method_without_pairs_has_a_best_candidate(tmp_path: Path) -> None:
    run = judged(tmp_path / "run", "method=sft_best_of_n")
    run.finish("iter-1/best", {"best": (WrittenRap, [WrittenRap("cal-0", BAD)])})
    found = the_round(run)
    assert (found.curating, found.about) == ("iter-1/best", "the judge's best candidates")
    assert [r.role for r in found.candidates] == ["", "best", ""]
    assert (found.pairs, found.drops) == ((), found.dropped["iter-1/candidates"])


def test_drops_of_a_round_are_known_by_their_stage(tmp_path: Path) -> None:
    run = judged(tmp_path / "run")
    run.finish("iter-1/pairs", {"drops": (Drop, [WEAK])})
    found = the_round(run)
    duplicate = Drop("cal-0", "candidates", "duplicate")
    assert found.dropped == {"iter-1/candidates": (duplicate,), "iter-1/pairs": (WEAK,)}
    assert found.drops == (duplicate, WEAK)


def test_verdicts_count_as_they_were_corrected(tmp_path: Path) -> None:
    run = judged(tmp_path / "run", "judge.calibrate=once")
    found = the_round(run)
    assert (found.corrected, found.uncorrected) == ("", "judge/calibration")
    assert [r.score for r in found.candidates] == [None] * 3
    assert found.judgments == tuple(ASKED)
    # 22.5 times the weight to neutral: of 0-1 0.75, 0.15, 2.25; of 0-2 (read once) 0.5, 0.3, 4.5
    third = math.log(22.5) / 3
    fit = {"temperature": 1.0, "bias": [-third, -third, 2 * third]}
    run.finish("judge/calibration", stats={"calibration": fit})
    found = the_round(run)
    assert (found.corrected, found.uncorrected) == ("judge/calibration", "")
    assert [r.score for r in found.candidates] == [0.0] * 3
    assert found.cells[2, 0] == Cell(0, pytest.approx(4.5 / 5.3))
    assert found.judgments[2].p_neutral == pytest.approx(4.5 / 5.3)
    assert found.judgments[3].verdict is None


def test_where_no_judge_decides_nothing_is_scored(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "method=answer_only")
    run.finish("data", {"calibration": (Sample, [sample("cal-0")])})
    run.finish("iter-1/candidates", searched("cal-0", GOOD, BAD))
    found = the_round(run)
    assert [r.score for r in found.candidates] == [None, None]
    assert (found.judgments, found.cells, found.unscored) == ((), {}, 0)


def test_a_search_to_come_is_told_and_that_of_others_is_not(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    names = ("cal-0", "cal-1")
    run.finish("data", {"calibration": (Sample, [sample(n) for n in names])})
    [waiting] = story(run, "cal-1").parts
    assert isinstance(waiting, Round)
    assert (waiting.place, waiting.searched, waiting.candidates) == ("iter-1", False, ())
    run.finish("iter-1/candidates", searched("cal-0", GOOD))
    assert story(run, "cal-1").parts == ()
    assert the_round(run).searched


def test_a_wider_search_is_for_those_without_a_pair(tmp_path: Path) -> None:
    run = judged(tmp_path / "run", "curate.weak=widen")
    pair = PreferencePair("cal-0", GOOD, BAD, 0, 1, 1.0, -1.0)
    run.finish("iter-1/pairs", {"pairs": (PreferencePair, [pair]), "drops": (Drop, [])})
    assert [p.place for p in story(run, "cal-0").parts if isinstance(p, Round)] == ["iter-1"]
    run.finish("iter-1/pairs", {"pairs": (PreferencePair, []), "drops": (Drop, [WEAK])})
    assert not the_round(run, place="iter-1/wider").searched
    run.finish("iter-1/wider/candidates", searched("cal-0", BAD, GOOD))
    asked = [Judgment("cal-0", 0, 1, "second", 0.2, 0.7, 0.1)]
    run.finish("iter-1/wider/judgments", {"judgments": (Judgment, asked)})
    wide = the_round(run, place="iter-1/wider")
    assert (wide.searched, wide.curating) == (True, "iter-1/wider/pairs")
    assert [r.score for r in wide.candidates] == [-1.0, 1.0]
    assert the_round(run).dropped["iter-1/pairs"] == (WEAK,)


def test_a_training_sample_has_the_teacher_and_the_judges_round(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "method=independent")
    both = {"rft": (Sample, [sample("rft-0")]), "calibration": (Sample, [sample("cal-0")])}
    run.finish("data", both)
    taught = story(run, "rft-0").taught
    assert taught is not None and not taught.done and taught.raps == ()
    left = [Drop("rft-0", "teacher", "format"), Drop("rft-0", "rft", "overlong")]
    run.finish("teacher", {"raps": (WrittenRap, [WrittenRap("rft-0", GOOD)]),
                           "drops": (Drop, left[:1])})  # fmt: skip
    run.finish("rft", {"drops": (Drop, left[1:])})
    run.finish("judge/candidates", searched("rft-0", GOOD, BAD))
    label = LabelledPair("rft-0", *DIGITS, GOOD, BAD, "first")
    unread = Drop("rft-0", "judge/labels", "unreadable-label")
    run.finish("judge/labels", {"labelled": (LabelledPair, [label]), "drops": (Drop, [unread])})
    grade = GradedResponse("rft-0", *DIGITS, GOOD, True)
    run.finish("judge/grades", {"graded": (GradedResponse, [grade]), "drops": (Drop, [])})
    own = story(run, "rft-0")
    assert own.taught is not None and own.taught.done
    assert (own.taught.raps, own.taught.drops) == ((WrittenRap("rft-0", GOOD),), tuple(left))
    [found] = own.parts
    assert isinstance(found, Round) and (found.place, found.curating) == ("judge", "")
    assert (found.labels, found.grades) == ((label,), (grade,))
    assert found.dropped["judge/labels"] == (unread,)
    other = story(run, "cal-0")
    assert other.taught is None
    assert [p.place for p in other.parts if isinstance(p, Round)] == ["iter-1"]


# --- what is not searched -------------------------------------------------------------------


def test_a_written_pair_and_what_was_written_in_vain(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "method=povid", "rft=null")
    names = ("cal-0", "cal-1", "cal-2")
    run.finish("data", {"calibration": (Sample, [sample(n) for n in names])})
    [waiting] = story(run, "cal-0").parts
    assert isinstance(waiting, Written) and not waiting.done
    pair = PreferencePair("cal-0", GOOD, BAD, -1, -1, 1.0, 0.0, "iter-1/pairs/images/x.png")
    texts = [("cal-0", GOOD + " \n"), ("cal-0", BAD), ("cal-0", "Hm."), ("cal-1", "Oh.")]
    same = Drop("cal-1", "pairs", "same")
    rows = {
        "pairs": (PreferencePair, [pair]),
        "drops": (Drop, [same]),
        "written": (WrittenRap, [WrittenRap(*t) for t in texts]),
    }
    run.finish("iter-1/pairs", rows)
    made, vain, none = (story(run, n).parts for n in names)
    about = "the teacher's RAPs against spoiled ones"
    assert made == (Written("iter-1/pairs", about, True, (pair,), frozenset(), ("Hm.",), ()),)
    assert vain == (Written("iter-1/pairs", about, True, (), frozenset(), ("Oh.",), (same,)),)
    assert none == ()


def test_a_pair_that_the_teacher_rescued_knows_the_candidates(tmp_path: Path) -> None:
    run = judged(tmp_path / "run", "curate.weak=teacher")
    run.finish("iter-1/pairs", {"drops": (Drop, [WEAK])})
    pair = PreferencePair("cal-0", GOOD, BAD, 3, 1, 0.9, -0.9)
    run.finish("iter-1/taught/pairs", {"pairs": (PreferencePair, [pair]), "drops": (Drop, [])})
    rescued = story(run, "cal-0").parts[1]
    assert isinstance(rescued, Written)
    assert (rescued.stage, rescued.pairs) == ("iter-1/taught/pairs", (pair,))
    assert rescued.known == {0, 1, 2}


def test_rollouts_come_by_batch_and_position(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "method=online_src")
    names = ("cal-0", "cal-1")
    run.finish("data", {"calibration": (Sample, [sample(n) for n in names])})
    [waiting] = story(run, "cal-0").parts
    assert waiting == Rollouts("iter-1/grpo", False, ("score",), (), ())
    rows = [
        Rollout("cal-0", step, i, GOOD, 9, 1.0, True, (0.5,), 0.5, 0.0)
        for step, i in ((1, 0), (0, 1), (0, 0))
    ]
    run.finish("iter-1/grpo", {"rollouts": (Rollout, rows), "drops": (Drop, [])})
    [part] = story(run, "cal-0").parts
    assert isinstance(part, Rollouts) and part.done
    assert part.rollouts == tuple(reversed(rows))
    assert story(run, "cal-1").parts == ()


# --- answers --------------------------------------------------------------------------------


def test_answers_come_in_the_order_of_checkpoints(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    splits = {s: [sample(f"{s}-0")] for s in ("calibration", "dev", "test")}
    run.finish("data", {split: (Sample, own) for split, own in splits.items()})
    assert story(run, "test-0").missing == ("seed", "rft", "iter-1")
    for checkpoint, text in (("iter-1", GOOD), ("seed", BAD)):
        rows = {s: (Response, [response(f"{s}-0", text)]) for s in ("dev", "test")}
        run.finish(f"eval/{checkpoint}", rows)
    own = story(run, "test-0")
    assert [a.checkpoint for a in own.answers] == ["seed", "iter-1"]
    assert [a.response.text for a in own.answers] == [BAD, GOOD]
    assert [a.found and a.found.correct for a in own.answers] == [False, True]
    assert own.missing == ("rft",)
    assert own.parts == ()
    other = story(run, "calibration-0")
    assert (other.answers, other.missing) == ((), ())


def test_answers_to_a_followed_calibration_sample(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "evaluate.splits=[dev]")
    names = ("cal-0", "cal-1")
    test = [sample("test-0")]
    run.finish(
        "data", {"calibration": (Sample, [sample(n) for n in names]), "test": (Sample, test)}
    )
    run.finish("eval/seed", {"calibration": (Response, [response("cal-0", GOOD)])})
    followed, other = (story(run, n) for n in names)
    assert [(a.checkpoint, a.response.text) for a in followed.answers] == [("seed", GOOD)]
    assert (other.answers, followed.missing, other.missing) == ((), (), ())
    assert story(run, "test-0").missing == ()  # a split that nobody measures
