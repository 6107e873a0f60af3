"""Runs that are damaged: what is found, what is made anew, and what stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from e2e.runs import Told
from selfcal import memory, pipeline, planning, stopping
from selfcal.digests import list_files, read_signed, write_signed
from selfcal.errors import StoreError
from selfcal.executor import base
from selfcal.recipe import Recipe
from selfcal.stage import Shards, Stage, Work
from selfcal.store import MANIFEST, MARKER, StageDir
from selfcal.types import Drop, WrittenRap
from selfcal.upkeep.verify import verify_run

N = 10


class Chain:
    """Four stages: shards, what reads them, a training that reads that, and its measurement."""

    def __init__(self) -> None:
        self.made: list[int] = []
        """Items of `one`, as often as they were made."""
        self.word = "raps"

    def plan(self, recipe: Recipe) -> list[Stage]:
        return [
            Stage("one", (), {}, self.one, N, "items", "shards"),
            Stage("two", ("one",), {}, self.two, N, "items", "reads them"),
            Stage("three", ("two",), {}, self.three, 1, "steps", "trains"),
            Stage("four", ("three",), {}, lambda work: {}, 1, "steps", "measures"),
        ]

    def one(self, work: Work) -> Mapping[str, Any]:
        def make(items: Sequence[int]) -> Shards:
            self.made += items
            return {"raps": (WrittenRap, [WrittenRap(str(i), f"{self.word} {i}") for i in items])}

        work.map(range(N), 3, make)
        work.write("drops", [Drop("x", "one", "tail")], Drop)
        return {"raps": len(work.folder.read("raps", WrittenRap))}

    def two(self, work: Work) -> Mapping[str, Any]:
        work.write("raps", work.read("one", "raps", WrittenRap), WrittenRap)
        return {}

    def three(self, work: Work) -> Mapping[str, Any]:
        weights = work.out / "checkpoint" / "model"
        weights.parent.mkdir()  # fails on what an earlier training has left
        weights.write_text(work.read("two", "raps", WrittenRap)[0].text)
        return {}


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> Chain:
    found = Chain()
    monkeypatch.setattr(planning, "load_method", lambda name: found)
    monkeypatch.setattr(base, "_seed_libraries", lambda *_: None)
    monkeypatch.setattr(planning, "model_digest", lambda name: "0" * 64)
    return found


@pytest.fixture
def run(chain: Chain, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    again(folder)
    chain.made.clear()
    return folder


RECIPE = Recipe(name="r")


def again(run: Path, *reuse: Path) -> Told:
    told = Told()
    pipeline.execute(RECIPE, run, told, reuse)
    return told


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_of_a_damaged_shard_just_that_is_made_anew(
    chain: Chain, run: Path, damage: Callable[[Path], None]
) -> None:
    damage(run / "one" / "raps-00001.parquet")
    told = again(run)
    assert told.mended == {"one": ["raps-00001.parquet"]}
    assert chain.made == [3, 4, 5]
    assert told.begun == ["one"]  # its outcome is the same, so what reads it stays
    assert again(run).begun == []
    manifest = json.loads((run / "one" / MANIFEST).read_text())
    assert manifest["mended"] == ["raps-00001.parquet"]


def test_what_reads_another_outcome_is_made_anew_and_no_more(chain: Chain, run: Path) -> None:
    chain.word = "other"
    flip(run / "one" / "raps-00001.parquet")
    told = again(run)
    # `two` copies all, `three` just the first: its weights are as before, and `four` stays
    assert told.begun == ["one", "two", "three"]
    assert told.mended["two"] == ["one"] and told.mended["three"] == ["two"]
    assert list(run.glob("two.old-*"))
    assert again(run).begun == []


def test_a_file_beside_the_shards_costs_no_shard(chain: Chain, run: Path) -> None:
    flip(run / "one" / "drops-00000.parquet")
    assert again(run).begun == ["one"]
    assert chain.made == []


def test_a_damaged_mark_costs_nothing(chain: Chain, run: Path) -> None:
    (run / "one" / "shards" / "00001.json").write_text("{")
    flip(run / "one" / "raps-00002.parquet")
    assert again(run).begun == ["one"]
    assert chain.made == [6, 7, 8]


def test_empty_marks_of_older_runs_keep_their_shards(chain: Chain, run: Path) -> None:
    for mark in (run / "one" / "shards").iterdir():
        mark.with_suffix("").touch()
        mark.unlink()
    flip(run / "one" / "raps-00002.parquet")
    again(run)
    assert chain.made == [6, 7, 8]


@pytest.mark.parametrize("damage", [cut, lambda path: path.write_text("")])
@pytest.mark.parametrize("stage", ["one", "three"])
def test_a_damaged_manifest_is_restored(
    chain: Chain, run: Path, stage: str, damage: Callable[[Path], None]
) -> None:
    path = run / stage / MANIFEST
    before = path.read_text()
    damage(path)
    told = again(run)
    assert list(told.mended) == [stage] and told.begun == []
    assert path.read_text() == before


def test_without_manifest_and_copy_the_marks_tell_what_is_sound(chain: Chain, run: Path) -> None:
    (run / "one" / MANIFEST).write_text("{")
    (run / "one" / MARKER).write_text("{")
    assert again(run).begun == ["one"]
    assert chain.made == []


def test_a_number_that_was_changed_in_a_manifest_is_no_longer_believed(
    chain: Chain, run: Path
) -> None:
    path = run / "one" / MANIFEST
    path.write_text(path.read_text().replace('"raps": 10', '"raps": 11'))
    assert not StageDir(path.parent, "").done
    again(run)
    assert json.loads(path.read_text())["stats"] == {"raps": 10}


def test_weights_are_compared_in_full_only_where_they_are_read(chain: Chain, run: Path) -> None:
    flip(run / "three" / "checkpoint" / "model")
    assert again(run).begun == []
    shutil.rmtree(run / "four")
    told = again(run)
    assert told.mended == {"three": ["checkpoint/model"]}
    assert told.begun == ["three", "four"]
    assert (run / "three" / "checkpoint" / "model").read_text() == "raps 0"


class Served(Chain):
    """One stage more, which reads no training, but may have a server load all their adapters."""

    def plan(self, recipe: Recipe) -> list[Stage]:
        five = Stage("five", ("four",), {}, self.five, 1, "samples", "asks a server")
        return [*super().plan(recipe), five]

    def five(self, work: Work) -> Mapping[str, Any]:
        (work.out / "answers").write_text("answers")
        return {}

    def three(self, work: Work) -> Mapping[str, Any]:
        (work.out / "adapter").mkdir()
        (work.out / "adapter" / "model").write_text("adapter")
        return super().three(work)


def test_adapters_are_compared_in_full_where_anything_is_to_be_done(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served()
    monkeypatch.setattr(planning, "load_method", lambda name: served)
    again(run := tmp_path / "run")
    flip(run / "three" / "adapter" / "model")
    assert again(run).begun == []
    shutil.copytree(run, other := tmp_path / "other")
    shutil.rmtree(run / "five")
    told = again(run)
    assert told.mended == {"three": ["adapter/model"]}
    assert told.begun == ["three", "five"]
    flip(other / "five" / "answers")  # which is found after the adapter was looked at
    assert again(other).mended.keys() == {"three", "five"}


def test_weights_of_another_size_are_always_noticed(chain: Chain, run: Path) -> None:
    (run / "three" / "checkpoint" / "model").write_text("raps")
    assert again(run).begun == ["three"]


def test_shards_made_of_another_outcome_are_not_gone_on_with(chain: Chain, run: Path) -> None:
    folder = StageDir(run / "one", "ffff")
    folder.open({"zero": {"bytes": "a"}})
    folder.write_shard("raps", 0, [WrittenRap("0", "x")], WrittenRap)
    folder.seal(0, ["raps"])
    folder.open({"zero": {"bytes": "a"}})
    assert folder.sealed(0)
    folder.open({"zero": {"bytes": "b"}})
    assert not folder.sealed(0)
    assert (run / "one.old-ffff").is_dir()


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change an account as somebody would who knows how it is signed."""
    found = read_signed(path)
    change(found)
    write_signed(path, found)


@pytest.mark.parametrize("name", ["../../victim.txt", "/{tmp}/victim.txt", "..", "a\\b", "a\0", ""])
def test_no_account_leads_out_of_its_stage(
    chain: Chain, run: Path, tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    entry = {name.format(tmp=tmp_path): {"sha256": "0" * 64, "size": 0}}
    rewrite(run / "one" / MANIFEST, lambda said: said["files"].update(entry))
    assert not StageDir(run / "one", read_signed(run / "one" / MARKER)["fingerprint"]).done
    rewrite(run / "one" / MARKER, lambda said: said["manifest"]["files"].update(entry))
    rewrite(run / "one" / "shards" / "00001.json", lambda said: said["files"].update(entry))
    again(run)
    assert victim.read_text() == "mine"
    assert chain.made == [3, 4, 5]  # the other marks are believed


def test_what_a_link_leads_out_of_a_stage_is_not_deleted(
    chain: Chain, run: Path, tmp_path: Path
) -> None:
    outside, folder = tmp_path / "outside", run / "one"
    outside.mkdir()
    (outside / "a.png").write_text("mine")
    (folder / "images").symlink_to(outside)
    entry = {"images/a.png": {"sha256": "0" * 64, "size": 4}}
    rewrite(folder / MANIFEST, lambda said: said["files"].update(entry))
    with pytest.raises(StoreError, match=r"images/a\.png is not deleted: a link leads out"):
        again(run)
    assert (outside / "a.png").read_text() == "mine"


@pytest.mark.parametrize("file", [MANIFEST, MARKER])
@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.update(files=7, manifest=7),
        lambda said: said.update(files={"a": []}, manifest=[]),
        lambda said: said.update(files={"a": {"sha256": 1, "size": "x"}}, manifest={"files": {}}),
        lambda said: said.update(inputs=["one"]),
        lambda said: said.update(inputs={"one": "x"}),
        lambda said: said.update(exact=[], manifest=None),
        lambda said: said.update(stats=None, freed=3, manifest={"files": 1}),
        lambda said: said.update(fingerprint=["a"]),
        lambda said: said.clear(),
    ],
)
def test_an_account_of_another_form_counts_as_damaged(
    chain: Chain, run: Path, file: str, change: Callable[[dict[str, Any]], Any]
) -> None:
    before = (run / "two" / MANIFEST).read_text()
    rewrite(run / "two" / file, change)
    assert verify_run(run).findings
    told = again(run)
    assert list(told.mended) == ["two"] and told.begun == []
    assert (run / "two" / MANIFEST).read_text() == before
    assert verify_run(run).sound


@pytest.mark.parametrize("damage", [cut, lambda path: path.write_text("{}"), "other", "digest"])
def test_a_damaged_mark_of_a_sound_stage_is_written_anew(
    chain: Chain, run: Path, damage: Any
) -> None:
    mark = run / "one" / "shards" / "00001.json"
    before = mark.read_text()
    if damage == "other":
        rewrite(mark, lambda said: said.update(fingerprint="ffff"))
    elif damage == "digest":
        rewrite(mark, lambda said: said["files"]["raps-00001.parquet"].update(sha256="00"))
    else:
        damage(mark)
    assert not verify_run(run).sound
    told = again(run)
    assert list(told.mended) == ["one"] and told.begun == []
    assert mark.read_text() == before and verify_run(run).sound


def test_a_copy_that_disagrees_with_its_manifest_is_written_anew(chain: Chain, run: Path) -> None:
    path = run / "two" / MARKER
    before = path.read_text()
    rewrite(path, lambda said: said["manifest"]["stats"].update(raps=7))
    assert not verify_run(run).sound
    again(run)
    assert path.read_text() == before and verify_run(run).sound


@pytest.mark.parametrize("stage", ["one", "three"])
def test_a_deleted_manifest_is_restored_if_all_its_files_are_there(
    chain: Chain, run: Path, stage: str
) -> None:
    before = (run / stage / MANIFEST).read_text()
    (run / stage / MANIFEST).unlink()
    told = again(run)
    assert list(told.mended) == [stage] and told.begun == []
    assert (run / stage / MANIFEST).read_text() == before


def test_a_deleted_manifest_is_not_restored_over_damaged_files(chain: Chain, run: Path) -> None:
    flip(run / "one" / "raps-00001.parquet")
    (run / "one" / MANIFEST).unlink()
    assert again(run).begun == ["one"]
    assert chain.made == [3, 4, 5]


def test_a_stage_that_was_opened_is_at_work_wherever_it_was_killed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StageDir(run / "one", read_signed(run / "one" / MARKER)["fingerprint"])

    def killed(self: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", killed)
        folder.open()
    assert folder.done and "manifest" not in read_signed(folder.path / MARKER)
    folder.open()
    assert not folder.restore() and not folder.done


@pytest.mark.parametrize("older", [False, True])
def test_shards_of_other_inputs_are_not_gone_on_with_when_the_manifest_is_gone(
    chain: Chain, run: Path, older: bool
) -> None:
    folder = StageDir(run / "one", "ffff")
    folder.open({"zero": {"bytes": "a"}})
    folder.write_shard("raps", 0, [WrittenRap("0", "x")], WrittenRap)
    folder.seal(0, ["raps"])
    folder.finish({}, 0.0, {"zero": {"bytes": "a"}})
    assert read_signed(folder.path / MARKER)["inputs"] == {"zero": {"bytes": "a"}}
    if older:
        rewrite(folder.path / MARKER, lambda said: said.pop("inputs"))
    (folder.path / MANIFEST).unlink()
    folder.open({"zero": {"bytes": "b"}})
    assert not folder.sealed(0)


def test_a_run_goes_on_without_its_recipe(chain: Chain, run: Path, tmp_path: Path) -> None:
    (run / pipeline.RECIPE_FILE).unlink()
    assert again(run).begun == []
    assert pipeline.open_run(run) == pipeline.pin(RECIPE)
    other = tmp_path / "other"
    (other / "one").mkdir(parents=True)
    (other / "one" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="is no run of selfcal"):
        again(other)


def test_a_stage_that_is_copied_is_on_the_disk_before_it_has_its_name(
    chain: Chain, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_file_system(source: str, target: str) -> None:
        raise OSError

    synced: list[Path] = []
    monkeypatch.setattr(os, "link", other_file_system)
    monkeypatch.setattr(pipeline, "sync", synced.append)
    assert again(tmp_path / "other", run).reused == ["one", "two", "three", "four"]
    half, files = tmp_path / "other" / ".one.partial", list_files(run / "one")
    folders = [half, half / "shards"]
    expected = {*folders, *(half / name for name in files), tmp_path / "other"}
    assert expected <= set(synced)
    assert synced.index(tmp_path / "other") == len(folders) + len(files)


def test_a_wish_to_stop_is_heeded_between_stages_that_are_taken_over(
    chain: Chain, run: Path, tmp_path: Path
) -> None:
    class Asks(Told):
        def skips(self, stage: Stage, reused: bool) -> None:
            super().skips(stage, reused)
            stopping.ask()

    told = Asks()
    with pytest.raises(stopping.Stopped):
        pipeline.execute(RECIPE, tmp_path / "other", told, [run])
    assert told.reused == ["one"]


def test_a_damaged_stage_is_not_taken_over(chain: Chain, run: Path, tmp_path: Path) -> None:
    flip(run / "one" / "raps-00001.parquet")
    told = again(tmp_path / "other", run)
    assert told.begun == ["one"] and told.reused == ["two", "three", "four"]


def test_a_damaged_record_of_the_run_says_how_to_go_on(chain: Chain, run: Path) -> None:
    path = run / pipeline.RECIPE_FILE
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(StoreError, match=r"recipe\.json was changed.*selfcal run RECIPE --out"):
        pipeline.open_run(run)
    assert again(run).begun == []
    assert pipeline.open_run(run).seed == 0


def test_a_wish_to_stop_is_heeded_between_two_stages_and_used_up(
    chain: Chain, tmp_path: Path
) -> None:
    plan, run = chain.plan(RECIPE), tmp_path / "run"

    class Asks(Told):
        def ends(self, stage: Stage, stats: Mapping[str, Any], seconds: float) -> None:
            super().ends(stage, stats, seconds)
            stopping.ask()

    told = Asks()
    with pytest.raises(stopping.Stopped):
        pipeline.execute(RECIPE, run, told)
    assert told.ended == ["one"]
    assert again(run).begun == [s.name for s in plan[1:]]


def test_what_happens_on_the_way_is_said_once_and_kept_in_the_figures(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two(work: Work) -> Mapping[str, Any]:
        memory.note("smaller batches")
        memory.note("smaller batches")
        work.write("raps", work.read("one", "raps", WrittenRap), WrittenRap)
        return {}

    monkeypatch.setattr(chain, "two", two)
    told = again(tmp_path / "run")
    assert told.noted == ["smaller batches"]
    stats = json.loads((tmp_path / "run" / "two" / MANIFEST).read_text())["stats"]
    assert stats == {"notes": ["smaller batches"]}
    assert "notes" not in json.loads((tmp_path / "run" / "one" / MANIFEST).read_text())["stats"]
