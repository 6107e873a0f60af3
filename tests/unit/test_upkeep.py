"""`selfcal verify` and `selfcal gc`, on runs that are made by hand."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from selfcal.errors import StoreError
from selfcal.lock import RunLock
from selfcal.mending import survey
from selfcal.pipeline import locate
from selfcal.store import MANIFEST, MARKER, StageDir
from selfcal.types import Candidate, Drop, Judgment, PreferencePair, Sample, SearchNode
from selfcal.upkeep.gc import find_items, free
from selfcal.upkeep.verify import verify_run
from unit.hand_made import BAD, GOOD, RunFolder, call, flat, sample

ONE, TWO = sample("calibration-1"), sample("calibration-2")
DROPPED = Drop(TWO.id, "candidates", "no-candidate")
OLD = "0123456789abcdef"
LEFT = Drop(ONE.id, "pairs", "no-margin")


def candidate(index: int, text: str, sample_id: str = ONE.id) -> Candidate:
    return Candidate(sample_id, index, text, (text,), (-1.0,), (3,), True)


def node(number: int, parent: int) -> SearchNode:
    return SearchNode(ONE.id, number, parent, "x", -1.0, 1, 1, True, -1)


def judgment(first: int, second: int) -> Judgment:
    return Judgment(ONE.id, first, second, "first", 0.8, 0.1, 0.1)


FOUND = [candidate(0, GOOD), candidate(1, BAD)]
NODES = [node(0, -1), node(1, 0)]
ASKED = [judgment(0, 1), judgment(1, 0)]
PAIR = PreferencePair(ONE.id, GOOD, BAD, 0, 1, 1.0, 0.0)


class Hand(RunFolder):
    """A run up to its pairs, in which single records can be made wrong."""

    def data(self, *calibration: Sample) -> None:
        image = self.path / "images"
        image.mkdir(exist_ok=True)
        for s in (ONE, TWO):
            (image / f"{s.id}.png").write_bytes(b"x")
        self.finish("data", {"calibration": (Sample, [*calibration])})

    def search(self, *found: Candidate, nodes: list[SearchNode] = NODES) -> None:
        drops = {"drops": (Drop, [DROPPED])}
        rows = {"candidates": (Candidate, [*found]), "nodes": (SearchNode, nodes)}
        self.finish("iter-1/candidates", rows | drops, {"drops": {"no-candidate": 1}})

    def judge(self, *asked: Judgment) -> None:
        self.finish("iter-1/judgments", {"judgments": (Judgment, [*asked])})

    def pair(self, *pairs: PreferencePair, drops: list[Drop] = []) -> None:  # noqa: B006
        rows = {"pairs": (PreferencePair, [*pairs]), "drops": (Drop, drops)}
        self.finish("iter-1/pairs", rows)


@pytest.fixture
def run(tmp_path: Path) -> Hand:
    (tmp_path / "run").mkdir()
    made = Hand(tmp_path / "run", "judge.kind=verifier", "rft=null")
    made.data(ONE, TWO)
    for name in made.planned:  # what the rest reads, made of nothing
        if name not in ("data", "iter-1/candidates", "iter-1/judgments", "iter-1/pairs"):
            made.finish(name)
    made.search(*FOUND)
    made.judge(*ASKED)
    made.pair(PAIR)
    return made


def said(run: Hand) -> list[tuple[str, int | None, str]]:
    return [(f.file, f.row, f.what) for f in verify_run(run.path).findings]


# --- what is wrong ------------------------------------------------------------------------------


def test_a_sound_run_has_no_findings(run: Hand) -> None:
    shown = call("verify", run.path)
    assert shown.exit_code == 0, shown.output
    assert "Sound:" in shown.stdout
    assert json.loads(call("verify", run.path, "--json").stdout)["sound"] is True


def test_a_flipped_bit_a_missing_file_and_a_damaged_manifest_are_named(run: Hand) -> None:
    path = run.path / "iter-1" / "judgments" / "judgments-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (run.path / "iter-1" / "pairs" / "drops-00000.parquet").unlink()
    (run.path / "data" / MARKER).write_text("{")
    shown = call("verify", run.path)
    assert shown.exit_code == 1
    text = flat(shown.stdout)
    assert "judgments-00000.parquet: is not what was written (checksum); `selfcal run" in text
    assert "drops-00000.parquet: is missing" in text
    assert "data/stage.json: is damaged" in text


def test_a_record_that_names_what_is_not_there_is_named_with_its_row(run: Hand) -> None:
    run.search(*FOUND, candidate(0, GOOD, "nobody"), nodes=[node(0, -1), node(1, 7)])
    run.judge(*ASKED, judgment(0, 2))
    found = said(run)
    at = "iter-1/candidates"
    lost = f"names sample {'nobody'!r}, which the run does not have"
    assert (f"{at}/candidates-00000.parquet", 2, lost) in found
    lost = f"node 1 of sample {ONE.id!r} has no parent 7 before it"
    assert (f"{at}/nodes-00000.parquet", 1, lost) in found
    lost = f"names candidate 2 of sample {ONE.id!r}, which has 2"
    assert ("iter-1/judgments/judgments-00000.parquet", 2, lost) in found


def test_every_row_is_there_exactly_once(run: Hand) -> None:
    run.judge(*ASKED, ASKED[1])
    run.pair()
    assert said(run) == [
        ("iter-1/judgments/judgments-00000.parquet", 2,
         f"a second record of {ONE.id!r}, 1, 0"),
        ("iter-1/pairs", None,
         f"1 samples are neither in 'pairs' nor among the drops, such as {ONE.id!r}"),
    ]  # fmt: skip
    run.judge(*ASKED)
    run.pair(drops=[LEFT])
    assert said(run) == []


def test_drops_are_as_many_as_are_counted(run: Hand) -> None:
    run.search(*FOUND)
    path = run.planned["iter-1/candidates"].folder
    path.finish({"drops": {"no-candidate": 2}}, 1.0)
    assert said(run)[0][2].startswith("counts drops {'no-candidate': 2}")


@pytest.mark.parametrize("image", ["../x.png", "images/none.png"])
def test_an_image_that_is_gone_or_outside_is_named(run: Hand, image: str) -> None:
    run.data(ONE, replace(TWO, image=image))
    assert [row for _, row, what in said(run) if "image" in what] == [1]


def test_a_stage_whose_input_is_open_or_has_changed_is_named(run: Hand) -> None:
    pairs, judged = (run.planned[f"iter-1/{n}"].folder for n in ("pairs", "judgments"))
    pairs.finish({}, 1.0, {"iter-1/judgments": {"bytes": "another"}})
    assert ("iter-1/pairs", None, "was made before what it reads was made anew: iter-1/judgments") in said(run)  # noqa: E501  # fmt: skip
    (judged.path / MANIFEST).unlink()
    assert ("iter-1/pairs", None, "is done, but what it reads is not: iter-1/judgments") in said(run)  # noqa: E501  # fmt: skip


def test_work_of_other_settings_is_named(run: Hand) -> None:
    other = StageDir(run.path / "iter-1" / "pairs", "ffff")
    other.open()
    assert any("of other settings" in what for _, _, what in said(run))


def test_a_run_in_work_and_a_folder_that_may_only_be_read_can_be_verified(run: Hand) -> None:
    with RunLock(run.path):
        assert "The run is in work (process" in flat(call("verify", run.path).stdout)
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    verify_run(run.path)
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before


# --- what could go ------------------------------------------------------------------------------


def trained(run: Hand) -> StageDir:
    """A finished training with a checkpoint, and what trainers and kills leave."""
    folder = run.planned["iter-1/dpo"].folder
    folder.open()
    for name in ("checkpoint/model", "trl/checkpoint-3/state", "trl/log"):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_bytes(b"x" * 100)
    folder.finish({}, 1.0)
    return folder


def test_what_nothing_needs_is_said_and_stays_without_apply(run: Hand) -> None:
    folder = trained(run)
    aside = run.path / "iter-1" / f"pairs.old-{OLD}"
    aside.mkdir()
    (aside / MARKER).touch()
    (aside / "file").write_bytes(b"x" * 50)
    (run.path / "data" / ".x.1-2.partial").write_bytes(b"x" * 10)
    items = {i.path.relative_to(run.path).as_posix(): i.freed for i in find_items(run.path)}
    assert items == {
        f"iter-1/pairs.old-{OLD}": 50, "iter-1/dpo/trl": 200, "data/.x.1-2.partial": 10
    }  # fmt: skip
    shown = call("gc", run.path)
    assert "Nothing was deleted" in shown.stdout and aside.exists()
    assert call("gc", run.path, "--apply").exit_code == 0
    assert not aside.exists() and not (folder.path / "trl").exists()
    assert folder.verify() == [] and folder.done
    assert find_items(run.path) == []
    assert verify_run(run.path).sound


def test_the_last_checkpoint_stays_and_one_that_is_taken_is_trained_anew_when_it_is_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "run").mkdir()
    run = Hand(tmp_path / "run", "iterations=2")
    run.data(ONE, TWO)
    for name, p in run.planned.items():
        if name != "data":
            p.folder.open()
            if name.endswith("/dpo"):
                (p.folder.path / "checkpoint").mkdir()
                (p.folder.path / "checkpoint" / "model").write_bytes(b"x")
            p.folder.finish({}, 1.0)
    first = run.planned["iter-1/dpo"].folder
    before = first.outcome()
    assert [i.path for i in free(run.path, checkpoints=True)] == [first.path / "checkpoint"]
    assert first.done and first.outcome() == before
    planned = locate(run.recipe, run.path)
    assert survey(planned) == {}
    run.planned["eval/iter-1"].folder.open()
    assert survey(planned) == {"iter-1/dpo": ["checkpoint/model"]}


def test_what_another_run_shares_is_not_counted_as_freed(run: Hand, tmp_path: Path) -> None:
    folder = trained(run)
    os.link(folder.path / "trl" / "log", tmp_path / "kept")
    (item,) = find_items(run.path)
    assert (item.bytes, item.freed) == (200, 100)


@pytest.mark.parametrize(
    "name", ["pairs.old-mine", f"pairs.old-{OLD}", "pairs.old-0123456789ABCDEF"]
)
def test_a_folder_that_no_stage_answers_for_is_the_users_own(run: Hand, name: str) -> None:
    own = run.path / "iter-1" / name
    own.mkdir()
    (own / "notes.txt").write_text("mine")
    if not name.endswith(OLD):
        (own / MARKER).touch()
    assert free(run.path) == []
    assert (own / "notes.txt").exists()


def test_what_was_set_aside_without_an_account_goes_too(run: Hand) -> None:
    (run.path / "iter-1" / "pairs.old-unknown").mkdir()
    (run.path / "iter-1" / f"pairs.old-{OLD}" / "shards").mkdir(parents=True)
    (run.path / "iter-1" / f"pairs.old-{OLD}" / "shards" / "00003.json").touch()
    assert len(free(run.path)) == 2


def test_nothing_is_followed_out_of_the_run(run: Hand, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "trl").mkdir(parents=True)
    (outside / ".x.partial").touch()
    (outside / MARKER).touch()
    (run.path / "iter-1" / f"pairs.old-{OLD}").symlink_to(outside)
    folder = run.planned["iter-1/dpo"].folder.path
    (folder / "trl").symlink_to(outside / "trl")
    assert free(run.path) == []
    assert (outside / ".x.partial").exists()


def test_a_run_in_work_is_left_alone(run: Hand) -> None:
    with RunLock(run.path):
        with pytest.raises(StoreError, match="in use"):
            find_items(run.path)
        with pytest.raises(StoreError, match="in use"):
            free(run.path)
