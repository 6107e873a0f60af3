"""Whole stages of runs on a store: what is stale there, what several processes read and push."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

from selfcal import stopping
from selfcal.errors import StoreError
from selfcal.executor.worker import Share, take_up
from selfcal.planning import locate, needed
from selfcal.remote import doors, place_of, shape, working_folder
from selfcal.remote import lease as leases
from selfcal.remote import objects as stores
from selfcal.remote.lease import KEY
from selfcal.remote.mirror import Mirror
from selfcal.stage import Stage, Work
from selfcal.store import MANIFEST, MARKER, StageDir, write_bytes
from selfcal.tracking import stages as tracked
from selfcal.types import Result, WrittenRap
from selfcal.upkeep.gc import free
from unit.test_mending import RECIPE, Chain, again, chain  # noqa: F401

WHERE = "memory://bucket/runs/x"
AT = "/bucket/runs/x"


class Copied(Chain):
    """Two stages with shards, of which the second copies the first, and one more reader."""

    def plan(self, recipe: Any) -> list[Stage]:
        return [
            Stage("one", (), {}, self.one, 10, "items", "shards"),
            Stage("two", ("one",), {}, self.two, 10, "items", "copies them"),
            Stage("four", ("one",), {}, lambda work: {}, 1, "steps", "reads them"),
        ]

    def two(self, work: Work) -> Mapping[str, Any]:
        rows = work.read("one", "raps", WrittenRap)
        work.map(rows, 3, lambda part: {"raps": (WrittenRap, list(part))})
        return {}


class Pictured(Chain):
    """Samples with images, notes of them, and who goes by the notes and is shown the images."""

    def plan(self, recipe: Any) -> list[Stage]:
        return [
            Stage("data", (), {}, self.data, 1, "samples", "has images"),
            Stage("notes", ("data",), {}, lambda work: {}, 1, "samples", "names them"),
            Stage("labels", ("notes",), {}, self.labels, 1, "samples", "sees them"),
        ]

    def data(self, work: Work) -> Mapping[str, Any]:
        write_bytes(work.out / "images" / "a.png", b"image")
        return {}

    def labels(self, work: Work) -> Mapping[str, Any]:
        return {"seen": (work.run / "data" / "images" / "a.png").read_text()}


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setattr(stores, "PAUSES", (0.0,))
    machine("first", monkeypatch, tmp_path)
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    stopping.forget()


def machine(name: str, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Be a process of another machine."""
    patch.setenv("SELFCAL_MIRRORS", str(tmp_path / name))
    doors._open.clear()


def plan_by(method: Chain, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("selfcal.planning.load_method", lambda name: method)


def forget(store: Any, run: Path, stage: str) -> None:
    """Let nobody know of a stage."""
    store.rm(f"{AT}/{stage}", recursive=True)
    shutil.rmtree(run / stage)


def texts(run: Path, stage: str) -> list[str]:
    return [rap.text for rap in StageDir(run / stage, "").read("raps", WrittenRap)]


@pytest.mark.parametrize("where", ["first", "second"])
def test_a_stage_whose_input_has_changed_is_made_anew_and_no_shard_of_it_comes_back(
    chain: Chain, store: Any, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    method = Copied()
    plan_by(method, monkeypatch)
    again(run := working_folder(WHERE))
    forget(store, run, "four")  # so that `one` is read again
    store.pipe_file(f"{AT}/one/raps-00001.parquet", b"xx")
    method.word = "other"
    machine(where, monkeypatch, tmp_path)
    run = working_folder(WHERE)
    if where == "first":
        (run / "one" / "raps-00001.parquet").unlink()
    told = again(run)
    assert told.begun == ["one", "two", "four"]
    assert told.mended == {"one": ["raps-00001.parquet"], "two": ["one"]}
    # by the chain's own words: shards of three, of which the second was made anew
    wanted = [f"{'other' if 3 <= i < 6 else 'raps'} {i}" for i in range(10)]
    assert texts(run, "one") == texts(run, "two") == wanted
    aside = [key for key in store.find(AT) if "/two.old-" in key]
    assert any(key.endswith("raps-00001.parquet") for key in aside)
    machine("third", monkeypatch, tmp_path)
    assert again(working_folder(WHERE)).begun == []


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_finished_stage_that_nobody_reads_is_mended_as_well(
    chain: Chain, store: Any, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    plan_by(Copied(), monkeypatch)
    again(run := working_folder(WHERE))
    wanted = texts(run, "two")
    if damage == "lost":
        store.rm_file(f"{AT}/two/raps-00002.parquet")
    else:
        store.pipe_file(f"{AT}/two/raps-00002.parquet", b"xx")
    machine("second", monkeypatch, tmp_path)
    told = again(run := working_folder(WHERE))
    assert told.begun == ["two"] and told.mended == {"two": ["raps-00002.parquet"]}
    assert texts(run, "two") == wanted
    machine("third", monkeypatch, tmp_path)
    assert again(working_folder(WHERE)).begun == []


def test_what_is_freed_is_looked_for_when_nobody_else_works_there(
    chain: Chain, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    plan_by(Copied(), monkeypatch)
    again(working_folder(WHERE))
    machine("second", monkeypatch, tmp_path)
    run = shape(WHERE)
    store.pipe_file(f"{AT}/four/trl/state", b"1")  # by who held the lease in the meantime
    assert [item.path for item in free(run)] == [run / "four" / "trl"]
    assert not store.exists(f"{AT}/four/trl/state")


def test_work_on_inputs_that_had_another_outcome_is_not_gone_on_with(
    chain: Chain, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    """A process was killed after it had deleted the manifest, and before it had moved the rest."""
    plan_by(Copied(), monkeypatch)
    run = working_folder(WHERE)
    again(run)
    mirror = place_of(run)
    two = StageDir(run / "two", StageDir(run / "two", "").manifest()["fingerprint"])
    store.rm_file(f"{AT}/two/{MANIFEST}")
    assert json.loads(store.cat_file(f"{AT}/two/{MARKER}"))["manifest"]["inputs"]["one"]
    machine("second", monkeypatch, tmp_path)
    other = Mirror(mirror.objects, tmp_path / "x", "x")  # type: ignore[attr-defined]
    folder = StageDir(other.run / "two", two.fingerprint)
    other.takes_up(folder, {"one": {"bytes": "other", "exact": "other"}})
    there = store.find(AT)
    assert not any("/two/" in key for key in there)
    assert f"{AT}/two.old-{two.fingerprint}/raps-00000.parquet" in there
    assert not folder.sealed(0)


def test_images_that_samples_name_come_down_with_whatever_reads_the_samples(
    chain: Chain, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    plan_by(Pictured(), monkeypatch)
    again(run := working_folder(WHERE))
    planned = locate(RECIPE, run)
    by_name = {p.stage.name: p for p in planned}
    assert needed(by_name["labels"].stage, planned).keys() == {"data", "notes"}
    assert needed(by_name["data"].stage, planned).keys() == set()
    machine("worker", monkeypatch, tmp_path)
    labels = by_name["labels"].folder.fingerprint
    _, work = take_up(Share(WHERE, ".", "labels", labels, (1,), 1))
    assert (work.run / "data" / "images" / "a.png").read_bytes() == b"image"
    forget(store, run, "labels")
    machine("second", monkeypatch, tmp_path)
    assert again(working_folder(WHERE)).begun == ["labels"]


def test_a_worker_that_outlives_its_driver_pushes_nothing(
    chain: Chain, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr(leases, "_LOOK", 0.0)
    plan_by(Copied(), monkeypatch)
    again(run := working_folder(WHERE))
    driver = place_of(run)
    assert isinstance(driver, Mirror)
    two = next(p for p in locate(RECIPE, run) if p.stage.name == "two").folder
    driver.lock()
    machine("worker", monkeypatch, tmp_path)
    _, work = take_up(Share(WHERE, ".", "two", two.fingerprint, (3,), 1, driver.token))
    write_bytes(file := work.out / "raps-00009.parquet", b"1")
    work.saved([file])
    assert store.exists(f"{AT}/two/raps-00009.parquet")
    driver.unlock()
    assert not store.exists(f"{AT}/{KEY}")
    write_bytes(file, b"22")
    with pytest.raises(StoreError, match="no longer worked on by the process that started"):
        work.saved([file])


def test_a_measurement_that_was_never_sent_is_read_from_the_store(
    chain: Chain, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    class Measured(Chain):
        def plan(self, recipe: Any) -> list[Stage]:
            return [Stage("eval/base", (), {}, self.measure, 1, "samples", "measures")]

        def measure(self, work: Work) -> Mapping[str, Any]:
            found = Result("base", "test", "all", "accuracy", 0.5, 0.25, 4, 0)
            work.write("results", [found], Result)
            return {}

    plan_by(Measured(), monkeypatch)
    again(working_folder(WHERE))
    machine("second", monkeypatch, tmp_path)
    run = working_folder(WHERE)
    sent = list[Mapping[str, float]]()

    class Line:
        def log(self, figures: Mapping[str, float], step: int) -> None:
            sent.append(figures)

    class Tracker:
        kind, works = "none", True

        def __init__(self) -> None:
            self.run, self._known = run, dict[str, Any](sent={})

        def retry(self) -> None: ...

        def known(self) -> dict[str, Any]:
            return self._known

        def keep(self, known: dict[str, Any]) -> None:
            self._known = known

        def line(self, name: str, begun_at: int) -> Line:
            return Line()

        def attempt(self, do: Any) -> Any:
            return do()

    planned = [(p.stage, p.folder) for p in locate(RECIPE, run)]
    watch = tracked.Watch(Tracker(), planned)  # type: ignore[arg-type]
    watch.skips(planned[0][0], reused=False)
    assert sent[0]["eval/test/accuracy"] == 0.5
