"""Whole runs: complete, consistent, never redone, and the same however often they are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from e2e.runs import PARTS, RECIPE, SHARDS, SMALL, Told, Undisturbed, outcome, small
from selfcal.errors import StoreError
from selfcal.miniworld import verifier
from selfcal.pipeline import execute, locate, open_run, plan, results
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work
from selfcal.store import StageDir
from selfcal.types import (
    Candidate,
    Drop,
    Judgment,
    LabelledPair,
    PreferencePair,
    Response,
    Sample,
    SearchNode,
    WrittenRap,
)

LOOP = ("candidates", "judgments", "pairs", "dpo")


def read(recipe: Recipe, run: Path, stage: str, name: str, kind: type[Any]) -> list[Any]:
    (folder,) = [p.folder for p in locate(recipe, run) if p.stage.name == stage]
    return folder.read(name, kind)


# --- what a run leaves ----------------------------------------------------------------------


def test_every_stage_is_done_once_in_order(undisturbed: Undisturbed) -> None:
    names = [s.name for s in plan(undisturbed.recipe)]
    assert undisturbed.told.begun == undisturbed.told.ended == names
    assert names == [
        "data", "eval/seed", "teacher", "rft", "eval/rft", "judge/candidates", "judge/labels",
        "judge/train", "judge/quality",
        "iter-1/candidates", "iter-1/judgments", "iter-1/pairs", "iter-1/dpo", "eval/iter-1",
        "iter-2/candidates", "iter-2/judgments", "iter-2/pairs", "iter-2/dpo", "eval/iter-2",
    ]  # fmt: skip
    assert open_run(undisturbed.run) == undisturbed.recipe
    assert not list(undisturbed.run.rglob("*.partial"))
    assert not (undisturbed.run / ".lock-holder").exists()


def test_samples_are_as_many_as_asked_for(undisturbed: Undisturbed) -> None:
    seen: set[str] = set()
    for split, n in (("rft", 40), ("calibration", 24), ("dev", 8), ("test", 8)):
        samples = read(undisturbed.recipe, undisturbed.run, "data", split, Sample)
        assert len({s.id for s in samples} - seen) == len(samples) == n
        assert all((undisturbed.run / s.image).is_file() for s in samples)
        assert not any(Path(s.image).is_absolute() for s in samples)
        seen |= {s.id for s in samples}


def test_every_sample_of_stage_1_is_a_rap_or_a_named_drop(undisturbed: Undisturbed) -> None:
    r, run = undisturbed.recipe, undisturbed.run
    raps = read(r, run, "teacher", "raps", WrittenRap)
    drops = read(r, run, "teacher", "drops", Drop)
    samples = read(r, run, "data", "rft", Sample)
    assert sorted(x.sample_id for x in [*raps, *drops]) == sorted(s.id for s in samples)
    assert undisturbed.outcome["rft"]["stats"]["rows"] == len(raps)


def test_labels_are_of_candidates_and_held_out_by_sample(undisturbed: Undisturbed) -> None:
    r, run = undisturbed.recipe, undisturbed.run
    texts = Counter(
        (c.sample_id, c.text) for c in read(r, run, "judge/candidates", "candidates", Candidate)
    )
    labelled = read(r, run, "judge/labels", "labelled", LabelledPair)
    assert labelled
    assert all(
        texts[p.sample_id, p.first] and texts[p.sample_id, p.second] and p.first != p.second
        for p in labelled
    )
    train = read(r, run, "judge/labels", "train", LabelledPair)
    held_out = read(r, run, "judge/labels", "heldout", LabelledPair)
    assert train and held_out
    assert not {p.sample_id for p in train} & {p.sample_id for p in held_out}
    assert not Counter([*train, *held_out]) - Counter(labelled)
    assert {c[0] for c in texts} <= {s.id for s in read(r, run, "data", "rft", Sample)[:24]}


@pytest.mark.parametrize("t", [1, 2])
def test_the_records_of_an_iteration_follow_from_each_other(
    undisturbed: Undisturbed, t: int
) -> None:
    r, run = undisturbed.recipe, undisturbed.run
    mine = {s.id for s in read(r, run, "data", "calibration", Sample)[t - 1 :: 2]}
    assert len(mine) == 12
    found = read(r, run, f"iter-{t}/candidates", "candidates", Candidate)
    nodes = read(r, run, f"iter-{t}/candidates", "nodes", SearchNode)
    assert {n.sample_id for n in nodes} == mine
    drops = read(r, run, f"iter-{t}/candidates", "drops", Drop)
    without = {d.sample_id for d in drops if d.reason == "no-candidate"}
    own: dict[str, dict[int, Candidate]] = {}
    for c in found:
        own.setdefault(c.sample_id, {})[c.index] = c
    assert own.keys() == mine - without
    assert all(list(cs) == list(range(len(cs))) for cs in own.values())
    ends = Counter((n.sample_id, n.candidate) for n in nodes if n.candidate >= 0)
    assert ends == Counter((c.sample_id, c.index) for c in found)

    judged = read(r, run, f"iter-{t}/judgments", "judgments", Judgment)
    expected = {(s, i, j) for s, cs in own.items() for i in cs for j in cs if i != j}
    assert Counter((g.sample_id, g.first, g.second) for g in judged) == Counter(expected)
    for g in judged:
        total = g.p_first + g.p_second + g.p_neutral
        assert total == pytest.approx(0 if g.verdict is None else 1, abs=1e-5)

    pairs = read(r, run, f"iter-{t}/pairs", "pairs", PreferencePair)
    dropped = read(r, run, f"iter-{t}/pairs", "drops", Drop)
    assert pairs
    assert sorted(x.sample_id for x in [*pairs, *dropped]) == sorted(own)
    for p in pairs:
        cs = own[p.sample_id]
        assert (p.chosen, p.rejected) == (cs[p.chosen_index].text, cs[p.rejected_index].text)
        assert p.chosen_score > p.rejected_score
    tuned = read(r, run, f"iter-{t}/dpo", "drops", Drop)
    assert undisturbed.outcome[f"iter-{t}/dpo"]["stats"]["rows"] == len(pairs) - len(tuned)


def test_every_checkpoint_is_another_and_measured_on_all_samples(undisturbed: Undisturbed) -> None:
    r, run = undisturbed.recipe, undisturbed.run
    weights = {
        s: undisturbed.outcome[s]["files"]["checkpoint/model.safetensors"]
        for s in ("rft", "iter-1/dpo", "iter-2/dpo")
    }
    assert len(set(weights.values())) == 3
    for checkpoint in ("seed", "rft", "iter-1", "iter-2"):
        for split in ("dev", "test"):
            samples = read(r, run, "data", split, Sample)
            responses = read(r, run, f"eval/{checkpoint}", split, Response)
            assert [x.sample_id for x in responses] == [s.id for s in samples]
        followed = read(r, run, f"eval/{checkpoint}", "calibration", Response)
        asked = read(r, run, "data", "calibration", Sample)
        assert [x.sample_id for x in followed] == [s.id for s in asked]  # 24, fewer than 50
    found = results(run)
    assert list(dict.fromkeys(x.checkpoint for x in found)) == ["seed", "rft", "iter-1", "iter-2"]
    assert {x.split for x in found} == {"dev", "test"}  # what is followed is measured nowhere
    accuracy = [x for x in found if x.metric == "answer_accuracy" and x.category == "all"]
    assert [(x.checkpoint, x.split, x.n) for x in accuracy] == [
        (c, s, 8) for c in ("seed", "rft", "iter-1", "iter-2") for s in ("dev", "test")
    ]


def test_long_stages_are_sharded(undisturbed: Undisturbed) -> None:
    """Else the runs below are never killed between shards."""
    for stage in ("teacher", "judge/candidates", "judge/labels", "eval/rft"):
        marks = list((undisturbed.run / stage / "shards").iterdir())
        assert len(marks) > 1, stage
    for stage in ("iter-1/candidates", "iter-2/judgments"):
        assert len(list((undisturbed.run / stage / "shards").iterdir())) > 1, stage


# --- runs again -----------------------------------------------------------------------------


def test_a_second_run_redoes_nothing(undisturbed: Undisturbed) -> None:
    before = {p: p.stat().st_mtime_ns for p in undisturbed.run.rglob("*") if p.is_file()}
    told = Told()
    execute(undisturbed.recipe, undisturbed.run, told)
    assert not told.begun
    assert told.skipped == [s.name for s in plan(undisturbed.recipe)]
    after = {p: p.stat().st_mtime_ns for p in undisturbed.run.rglob("*") if p.is_file()}
    assert {p.name for p in after if after[p] != before.get(p)} <= {"recipe.json", ".lock"}


def test_settings_that_do_not_matter_redo_nothing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    run = shutil.copytree(undisturbed.run, tmp_path / "run")
    told = Told()
    execute(
        small("search.batch_rows=24", "judge.batch_size=3", "evaluate.batch_size=3", "name=other"),
        run,
        told,
    )
    assert not told.begun


def test_a_changed_setting_redoes_what_depends_on_it(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """In a copy of the run: a run can be moved, too."""
    run = shutil.copytree(undisturbed.run, tmp_path / "run")
    recipe, told = small("dpo.beta=0.31"), Told()
    execute(recipe, run, told)
    iter_2 = [f"iter-2/{s}" for s in LOOP]
    assert told.begun == ["iter-1/dpo", "eval/iter-1", *iter_2, "eval/iter-2"]
    # the work with the old setting lies beside it
    aside = {p.name.split(".old-")[0] for p in run.rglob("*.old-*")}
    assert aside == {"dpo", "iter-1", "candidates", "judgments", "pairs", "iter-2"}
    now = outcome(recipe, run)
    same = [s for s in now if now[s] == undisturbed.outcome[s]]
    assert {"data", "rft", "iter-1/pairs"} <= set(same)
    assert "iter-1/dpo" not in same


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ("seed=1", "data"),
        ("teacher.error_rate=0.51", "teacher"),
        ("rft.steps=3", "rft"),
        ("search.temperature=0.51", "judge/candidates"),
        ("judge.train.learning_rate=1.1e-3", "judge/train"),
        ("curate.margin=0.123", "iter-1/pairs"),
        ("evaluate.max_new_tokens=51", "eval/seed"),
    ],
)
def test_the_first_stage_that_a_change_redoes(
    undisturbed: Undisturbed, change: str, first: str
) -> None:
    planned = locate(small(change), undisturbed.run)
    todo = [p.stage.name for p in planned if not p.folder.done]
    assert todo[0] == first


# --- killed runs ----------------------------------------------------------------------------


class Killed(BaseException):
    """As good as a kill, for what is on the disk."""


class Killer(Told):
    """Kills a run once at every point where it is told of: begin, every shard or step, end."""

    def __init__(self) -> None:
        super().__init__()
        self.points: set[tuple[object, ...]] = set()
        self.stage = ""

    def kill(self, *point: object) -> None:
        if point not in self.points:
            self.points.add(point)
            raise Killed(point)

    def begins(self, stage: Stage, number: int, of: int) -> None:
        self.stage = stage.name
        self.kill(stage.name, "begins")

    def moves(self, done: int, total: int) -> None:
        self.kill(self.stage, done)

    def ends(self, stage: Stage, stats: Mapping[str, Any], seconds: float) -> None:
        super().ends(stage, stats, seconds)
        self.kill(stage.name, "ends")


def test_a_run_killed_at_every_point_is_the_same(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = Killer()
    finish, write_shard = StageDir.finish, StageDir.write_shard

    def finishing(self: StageDir, *args: Any) -> None:
        killer.kill(self.path.relative_to(tmp_path), "all written but the manifest")
        finish(self, *args)

    def writing(self: StageDir, name: str, i: int, *args: Any) -> None:
        write_shard(self, name, i, *args)
        if i == 1:
            killer.kill(self.path.relative_to(tmp_path), name, "written, without its mark")

    monkeypatch.setattr(StageDir, "finish", finishing)
    monkeypatch.setattr(StageDir, "write_shard", writing)
    kills = 0
    while True:
        try:
            execute(undisturbed.recipe, tmp_path / "run", killer)
            break
        except Killed:
            kills += 1
            assert kills < 500
    names = [s.name for s in plan(undisturbed.recipe)]
    assert Counter(killer.ended) == Counter(names)  # what ended was not done again
    assert {(n, k) for n in names for k in ("begins", "ends")} <= killer.points
    assert kills == len(killer.points) > 4 * len(names)
    assert outcome(undisturbed.recipe, tmp_path / "run") == undisturbed.outcome


CHILD = f"""
import sys, time
from pathlib import Path
from importlib import import_module
from selfcal.pipeline import Silent, execute
from selfcal.recipe import load_recipe

for name, size in {SHARDS!r}.items():
    import_module("{PARTS}." + name)._SHARD = size

class Says(Silent):
    def begins(self, stage, number, of):
        self.stage = stage.name
    def moves(self, done, total):
        if self.stage == "iter-1/judgments" and done:
            print("in the middle", flush=True)
            time.sleep(600)

execute(load_recipe(Path({str(RECIPE)!r}), {list(SMALL)!r}), Path(sys.argv[1]), Says())
"""


def test_a_run_that_died_by_kill_9_and_was_moved_is_the_same(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("w") as errors:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, tmp_path / "here"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert child.stdout
        said = child.stdout.readline()
        assert said == "in the middle\n", log.read_text()[-3000:]
        with pytest.raises(StoreError, match=rf"in use by process {child.pid}"):
            execute(undisturbed.recipe, tmp_path / "here")
        os.kill(child.pid, signal.SIGKILL)
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
    half = tmp_path / "here/iter-1/judgments"
    assert not (half / "manifest.json").exists()
    assert [p.name for p in (half / "shards").iterdir()] == ["00000.json"]

    (tmp_path / "here").rename(tmp_path / "there")
    told = Told()
    execute(undisturbed.recipe, tmp_path / "there", told)
    assert told.begun[0] == "iter-1/judgments"
    assert outcome(undisturbed.recipe, tmp_path / "there") == undisturbed.outcome


# --- two runs -------------------------------------------------------------------------------


def test_two_processes_in_one_run_are_refused(undisturbed: Undisturbed) -> None:
    class Second(Told):
        def skips(self, stage: Stage, reused: bool) -> None:
            super().skips(stage, reused)
            with pytest.raises(StoreError, match="in use"):
                execute(undisturbed.recipe, undisturbed.run)

    told = Second()
    execute(undisturbed.recipe, undisturbed.run, told)
    assert told.skipped


def test_a_folder_that_is_no_run_is_refused(undisturbed: Undisturbed, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty and is no run"):
        execute(undisturbed.recipe, tmp_path)
    with pytest.raises(StoreError, match="is a file"):
        execute(undisturbed.recipe, tmp_path / "thesis.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_reuses_what_another_has_done(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of linking, too: a stage that is linked by half is not there."""
    recipe, run = undisturbed.recipe, tmp_path / "run"
    copy = shutil.copytree

    def half(source: Path, target: Path, *args: Any, **how: Any) -> Path:
        done: Path = copy(source, target, *args, **how)
        if Path(source).name == "candidates":
            for part in list(Path(target).rglob("*.parquet"))[1:]:
                part.unlink()
            raise Killed
        return done

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", half)
        with pytest.raises(Killed):
            execute(recipe, run, reuse=[undisturbed.run])
    assert not (run / "judge/candidates").exists()
    told = Told()
    execute(recipe, run, told, reuse=[undisturbed.run])
    names = [s.name for s in plan(recipe)]
    assert not told.begun
    assert told.skipped + told.reused == names
    assert told.skipped == names[: names.index("judge/candidates")]
    assert outcome(recipe, run) == undisturbed.outcome
    assert not list(run.rglob("*.partial"))
    weights = Path("rft/checkpoint/model.safetensors")
    assert (run / weights).samefile(undisturbed.run / weights)


# --- what the loop may know -----------------------------------------------------------------


def test_the_loop_asks_no_verifier_and_sees_no_answer(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without verifier, answers and reference rationales it does the very same."""
    run = shutil.copytree(undisturbed.run, tmp_path / "run")
    for t in (1, 2):
        shutil.rmtree(run / f"iter-{t}")
    stage = ""
    truth, samples = verifier._truth, Work.samples

    class Where(Told):
        def begins(self, what: Stage, number: int, of: int) -> None:
            super().begins(what, number, of)
            nonlocal stage
            stage = what.name

    def guarded(*args: Any) -> Any:
        assert not stage.startswith("iter-"), f"{stage} asks the verifier"
        return truth(*args)

    def blank(self: Work, *args: str) -> list[Sample]:
        found = samples(self, *args)
        if not stage.startswith("iter-"):
            return found
        return [replace(s, answer="", rationale="", choices=(), category="") for s in found]

    monkeypatch.setattr(verifier, "_truth", guarded)
    monkeypatch.setattr(Work, "samples", blank)
    told = Where()
    execute(undisturbed.recipe, run, told)
    assert told.begun == [f"iter-{t}/{s}" for t in (1, 2) for s in LOOP]
    assert outcome(undisturbed.recipe, run) == undisturbed.outcome


# --- controls -------------------------------------------------------------------------------


def test_a_guessing_judge_needs_no_training(undisturbed: Undisturbed, tmp_path: Path) -> None:
    recipe, told = small("judge.kind=guess", "iterations=1"), Told()
    execute(recipe, tmp_path / "run", told, reuse=[undisturbed.run])
    assert told.reused == ["data", "eval/seed", "teacher", "rft", "eval/rft"]
    assert told.begun == [*(f"iter-1/{s}" for s in LOOP), "eval/iter-1"]
    judged = read(recipe, tmp_path / "run", "iter-1/judgments", "judgments", Judgment)
    assert len({g.p_first for g in judged}) > len(judged) // 2


def test_the_verifier_as_judge_is_certain(undisturbed: Undisturbed, tmp_path: Path) -> None:
    recipe, run, told = small("judge.kind=verifier", "iterations=1"), tmp_path / "run", Told()
    execute(recipe, run, told, reuse=[undisturbed.run])
    judged = read(recipe, run, "iter-1/judgments", "judgments", Judgment)
    assert judged
    assert {max(g.p_first, g.p_second, g.p_neutral) for g in judged} == {1.0}
    swap = {"first": "second", "second": "first", "neutral": "neutral"}
    said = {(g.sample_id, g.first, g.second): g.verdict for g in judged}
    assert all(said[s, j, i] == swap[v] for (s, i, j), v in said.items())


def test_fine_tuning_alone(undisturbed: Undisturbed, tmp_path: Path) -> None:
    recipe, run, told = small("method=sft_only"), tmp_path / "run", Told()
    execute(recipe, run, told, reuse=[undisturbed.run])
    assert told.begun == ["iter-1/sft", "eval/iter-1", "iter-2/sft", "eval/iter-2"]
    stats = outcome(recipe, run)
    assert stats["iter-1/sft"]["stats"]["steps"] == recipe.dpo.steps
    assert json.loads((run / "recipe.json").read_text())["recipe"]["method"] == "sft_only"
