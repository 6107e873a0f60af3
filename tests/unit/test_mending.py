"""Runs that are damaged: what is found, what is made anew, and what stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from e2e.runs import Told
from selfcal import memory, pipeline, planning, stopping
from selfcal.errors import StoreError
from selfcal.executor import base
from selfcal.recipe import Recipe
from selfcal.stage import Shards, Stage, Work
from selfcal.store import MANIFEST, MARKER, StageDir
from selfcal.types import Drop, WrittenRap

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
    (run / "four" / MANIFEST).unlink()
    told = again(run)
    assert told.mended == {"three": ["checkpoint/model"]}
    assert told.begun == ["three", "four"]
    assert (run / "three" / "checkpoint" / "model").read_text() == "raps 0"


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
