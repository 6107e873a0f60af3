"""Workers of a cluster, without one: which shards they do, how often they open what, and how they
end; and whether a cluster has room for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfcal.errors import SelfcalError, StoreError
from selfcal.executor import handing
from selfcal.executor.base import rebuilt
from selfcal.executor.handing import bring_own, hand_over, handed_over
from selfcal.executor.room import ClusterError, Needs, check_room
from selfcal.executor.worker import ShardWorker, Share, take_up
from selfcal.pipeline import locate, pin
from selfcal.recipe import Recipe
from selfcal.remote import place_of, working_folder
from selfcal.stage import Shards, Stage, Work
from selfcal.store import JSON, StageDir, write_json, write_text
from selfcal.types import Drop

ITEMS = list("abcdefgh")
RECIPE = Recipe(name="r", iterations=1, threads=1)
SHARE = Share("run", ".", "stage", "fingerprint", (3, 3, 2), 1)


def drop(item: str) -> Drop:
    return Drop(item, "stage", "reason")


class Opened:
    """A stage that opens something, parts its work into shards, and counts what it does."""

    def __init__(self, folder: Path, stream: bool = False, bad: str = "") -> None:
        self.folder = StageDir(folder, "fingerprint")
        self.folder.open()
        self.stream, self.bad = stream, bad
        self.begun = self.closed = 0
        self.made: list[str] = []
        self.threads: set[int] = set()

    def run(self, work: Work) -> Mapping[str, JSON]:
        self.begun += 1
        self.threads.add(threading.get_ident())
        try:
            if self.stream:
                work.stream(ITEMS, 3, {"drops": Drop}, self.each)
            else:
                work.map(ITEMS, 3, self.part)
        finally:
            self.closed += 1
        raise AssertionError("figures are not a worker's business")

    def each(self, items: Iterator[str]) -> Iterator[Mapping[str, Sequence[Drop]]]:
        for item in items:
            self.make(item)
            yield {"drops": [drop(item)]}

    def part(self, items: Sequence[str]) -> Shards:
        for item in items:
            self.make(item)
        return {"drops": (Drop, [drop(i) for i in items])}

    def make(self, item: str) -> None:
        if item == self.bad:
            raise StoreError(f"{item} is bad")
        self.made.append(item)

    def worker(self, share: Share = SHARE) -> ShardWorker:
        stage = Stage("stage", (), None, self.run, len(ITEMS), "items", "")
        return ShardWorker(share, lambda _: (RECIPE, Work(Path("run"), stage, self.folder, {}, 0)))

    def read(self, i: int) -> str:
        return "".join(d.sample_id for d in self.folder.read_shard("drops", i, Drop))


@pytest.mark.parametrize("stream", [False, True])
def test_a_worker_does_the_shards_that_it_is_told_to_in_any_order(
    tmp_path: Path, stream: bool
) -> None:
    stage = Opened(tmp_path, stream)
    worker = stage.worker()
    assert [worker.do(2), worker.do(0)] == [2, 3]
    assert [stage.folder.sealed(i) for i in range(3)] == [True, False, True]
    assert (stage.read(2), stage.read(0)) == ("gh", "abc")
    worker.close()
    assert (stage.begun, stage.closed) == (1, 1)  # what it opened is opened once, and closed
    assert threading.get_ident() not in stage.threads


@pytest.mark.parametrize("stream", [False, True])
def test_shards_do_not_hang_on_who_did_them(tmp_path: Path, stream: bool) -> None:
    alone, one, other = (Opened(tmp_path / name, stream) for name in ("alone", "both", "both"))
    first, second, third = alone.worker(), one.worker(), other.worker()
    for i in range(3):
        first.do(i)
        (second, third)[i % 2].do(i)
    names = sorted(p.relative_to(tmp_path / "alone") for p in (tmp_path / "alone").rglob("*.*"))
    assert len(names) == 7  # three shards, their marks, and the stage's
    for name in names:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()
    for worker in (first, second, third):
        worker.close()


def test_a_shard_that_is_whole_is_not_done_again(tmp_path: Path) -> None:
    before, after = Opened(tmp_path), Opened(tmp_path)
    died = before.worker()
    died.do(1)
    died.close()
    worker = after.worker()
    assert worker.do(1) == 3
    assert after.made == []
    after.folder.shard("drops", 1).write_bytes(b"cut")
    assert worker.do(1) == 3
    assert after.made == list("def")
    assert after.folder.sealed(1)
    worker.close()


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_stage_is_the_workers_and_the_shards_before_it_are_kept(
    tmp_path: Path, stream: bool
) -> None:
    stage = Opened(tmp_path, stream, bad="e")
    worker = stage.worker()
    worker.do(2)
    for i in (1, 0):  # it does no more
        with pytest.raises(StoreError, match=r"^e is bad$"):
            worker.do(i)
    worker.close()
    assert [stage.folder.sealed(i) for i in range(3)] == [False, False, True]
    assert stage.closed == 1


def test_what_fails_before_the_first_shard_is_told_with_it(tmp_path: Path) -> None:
    def opens(share: Share) -> Any:
        raise StoreError("no such run")

    worker = ShardWorker(SHARE, opens)
    with pytest.raises(StoreError, match="no such run"):
        worker.do(0)
    worker.close()


def test_a_worker_whose_stage_parts_its_work_otherwise_does_nothing(tmp_path: Path) -> None:
    stage = Opened(tmp_path)
    worker = stage.worker(Share("run", ".", "stage", "fingerprint", (4, 4), 1))
    with pytest.raises(StoreError, match="every machine needs the same selfcal"):
        worker.do(0)
    assert not stage.made


def test_a_worker_writes_nothing_into_a_folder_that_is_anothers_by_now(tmp_path: Path) -> None:
    stage = Opened(tmp_path)
    worker = stage.worker()
    worker.do(0)
    StageDir(tmp_path, "other").open()
    with pytest.raises(StoreError, match=r"other settings \(other, not fingerprint\)"):
        worker.do(1)
    worker.close()
    assert not (tmp_path / "shards").exists()


def test_what_another_machine_has_trained_comes_to_the_driver_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two mirrors of a store; the other machine has other work of that name from before."""
    stage = Stage("rft", (), None, lambda work: {}, 2, "steps", "")

    def machine(name: str) -> Work:
        monkeypatch.setenv("SELFCAL_MIRRORS", str(tmp_path / name))
        run = working_folder("memory://bucket/ranks")
        return Work(run, stage, StageDir(run / "rft", "f"), {}, 0, saved=place_of(run).saved)

    here, there = machine("here"), machine("there")
    here.folder.open({})
    write_text(here.out / "trl" / "checkpoint-1" / "state", "one")
    place_of(here.run).opened(here.folder)
    StageDir(there.out, "older").open({})
    write_text(there.out / "trl" / "checkpoint-9" / "state", "of other work")

    bring_own(there)
    assert [p.name for p in (there.out / "trl").iterdir()] == ["checkpoint-1"]
    assert (there.out / "trl" / "checkpoint-1" / "state").read_text() == "one"
    hand_over(there, {"stopped": True})
    assert handed_over(here) is None
    write_text(there.out / "checkpoint" / "model", "weights")
    hand_over(there, {"figures": {"steps": 2}})
    assert handed_over(here) == {"figures": {"steps": 2}}
    assert (here.out / "checkpoint" / "model").read_text() == "weights"
    here.folder.finish({"steps": 2}, 1.0, {})
    place_of(here.run).finished(here.folder)
    (again,) = {machine("third").run}
    place_of(again).needs(folder := StageDir(again / "rft", "f"))
    assert sorted(folder.manifest()["files"]) == ["checkpoint/model", "trl/checkpoint-1/state"]
    assert (folder.path / "checkpoint" / "model").read_text() == "weights"


@pytest.mark.parametrize("damage", [lambda p: p.write_text("wei9hts"), lambda p: p.unlink()])
def test_a_handed_over_file_that_is_no_longer_what_it_was_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], Any]
) -> None:
    monkeypatch.setattr(handing, "_VISIBLE_S", 0)
    stage = Stage("rft", (), None, lambda work: {}, 2, "steps", "")
    work = Work(tmp_path, stage, StageDir(tmp_path / "rft", "f"), {}, 0)
    work.folder.open({})
    write_text(model := work.out / "checkpoint" / "model", "weights")
    hand_over(work, {"figures": {"steps": 2}})
    damage(model)
    with pytest.raises(StoreError, match=r"checkpoint/model is not to be seen here as it was"):
        handed_over(work, done=True)  # it may come to be seen
    assert handed_over(work) is None
    assert not (work.out / "outcome.json").exists()
    write_text(model, "weights")
    hand_over(work, {"figures": {"steps": 2}})
    assert handed_over(work) == {"figures": {"steps": 2}}


def test_what_is_handed_over_is_on_the_disk_before_its_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def sync(path: Path) -> None:
        assert not (work.out / "outcome.json").exists()
        synced.append(path.relative_to(tmp_path).as_posix())

    monkeypatch.setattr(handing, "sync", sync)
    stage = Stage("rft", (), None, lambda work: {}, 2, "steps", "")
    work = Work(tmp_path, stage, StageDir(tmp_path / "rft", "f"), {}, 0)
    work.folder.open({})
    for name in ("adapter/a", "checkpoint/model"):
        write_text(work.out / name, "weights")
    hand_over(work, {"figures": {"steps": 2}})
    assert synced[:2] == ["rft/adapter/a", "rft/checkpoint/model"]
    assert set(synced[2:]) == {"rft/adapter", "rft/checkpoint"}


def test_an_error_of_another_process_keeps_its_class() -> None:
    error = rebuilt("StoreError", "of a file")
    assert (type(error), str(error)) == (StoreError, "of a file")
    assert type(rebuilt("of a plugin", "x", ClusterError)) is ClusterError


def test_a_stage_without_shards_is_no_work_for_workers(tmp_path: Path) -> None:
    folder = StageDir(tmp_path, "fingerprint")
    stage = Stage("stage", (), None, lambda work: {}, 0, "items", "")
    worker = ShardWorker(SHARE, lambda _: (RECIPE, Work(Path("run"), stage, folder, {}, 0)))
    with pytest.raises(SelfcalError, match="no shards that workers could do"):
        worker.do(0)


def test_a_stage_is_taken_up_by_its_name_and_fingerprint(tmp_path: Path) -> None:
    recipe = pin(Recipe(name="r", iterations=1, judge={"kind": "guess"}))
    (data, *_) = locate(recipe, tmp_path)
    share = Share(str(tmp_path), ".", "data", data.folder.fingerprint, (1,), 1)
    with pytest.raises(StoreError, match="cannot be seen from every machine"):
        take_up(share)
    write_json(tmp_path / "recipe.json", {"format": 6, "recipe": recipe.model_dump(mode="json")})
    again, work = take_up(share)
    assert (again, work.stage.name, work.folder) == (recipe, "data", data.folder)
    with pytest.raises(StoreError, match="data is not other here: every machine needs the same"):
        take_up(Share(str(tmp_path), ".", "data", "other", (1,), 1))


# --- room -------------------------------------------------------------------------------------

SMALL, BIG = {"CPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("needs", "nodes", "most"),
    [
        (Needs(4, 1, 0), [SMALL], None),
        (Needs(5, 1, 0), [SMALL, {"CPU": 1.0}], None),
        (Needs(4, 2, 1), [SMALL, BIG], None),
        (Needs(8, 2, 0.5), [BIG], None),
        (Needs(1, 1, 4), [BIG], None),
        (Needs(8, 1, 1), [SMALL], {"CPU": 64, "GPU": 8}),
        (Needs(8, 1, 1), [SMALL], {}),  # how far it goes is not known
    ],
)
def test_workers_that_fit(
    needs: Needs, nodes: list[dict[str, float]], most: dict[str, float] | None
) -> None:
    check_room(needs, nodes, most)
    if most != {}:  # and not one more
        with pytest.raises(ClusterError):
            check_room(replace(needs, workers=needs.workers + 1), nodes, most)


@pytest.mark.parametrize(
    ("needs", "nodes", "most", "said"),
    [
        (Needs(5, 1, 0), [SMALL], None, "room for 4; set executor.workers=4"),
        (
            Needs(1, 1, 1),
            [SMALL],
            None,
            "4 CPUs and 0 GPUs on 1 nodes, room for 0; set executor.cpus",
        ),
        (Needs(2, 3, 0), [SMALL, {"CPU": 2.0}], None, "room for 1"),  # not 6 CPUs on one node
        (Needs(7, 1, 0.6), [BIG], None, "room for 4"),  # one 0.6 a GPU, though 4 / 0.6 > 6
        (Needs(2, 1, 3), [BIG], None, "room for 1"),
        (Needs(5, 4, 1), [BIG, {"CPU": 64.0}], None, "room for 4"),
        (Needs(9, 1, 0, "executor.ranks"), [SMALL], None, "set executor.ranks=4"),
        (Needs(9, 1, 1), [BIG], {"CPU": 64, "GPU": 8}, "its autoscaler cannot bring as many"),
    ],
)
def test_workers_that_do_not_fit_are_refused_with_the_way_out(
    needs: Needs, nodes: list[dict[str, float]], most: dict[str, float] | None, said: str
) -> None:
    with pytest.raises(ClusterError) as error:
        check_room(needs, nodes, most)
    assert said in str(error.value)
