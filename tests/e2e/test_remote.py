"""Runs on a store: a real S3 server on loopback, several machines, kills, damage, a lost lease."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from e2e.runs import SHARDS, Told, Undisturbed, outcome, small
from s3 import S3, serving
from selfcal.cli import app
from selfcal.errors import SelfcalError, StoreError
from selfcal.executor.worker import ShardWorker, Share, take_up
from selfcal.pipeline import execute, locate
from selfcal.remote import lease as leases
from selfcal.remote import look, working_folder
from selfcal.remote import objects as stores
from selfcal.remote.lease import KEY

ONCE = "iterations=1"
"""Up to its first iteration it is the undisturbed run, from which that is taken over."""

CHILD = """
import sys
from importlib import import_module
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from e2e.runs import PARTS, SHARDS, small
from selfcal.pipeline import execute
from selfcal.remote import lease, working_folder
lease.LENGTH = 2.0
for name, size in SHARDS.items():
    import_module(f"{PARTS}.{name}")._SHARD = size
execute(small("iterations=1"), working_folder(sys.argv[2]), reuse=[Path(sys.argv[3])])
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with pytest.MonkeyPatch.context() as patch, serving(patch) as server:
        patch.setattr(stores, "PAUSES", (0.05, 0.2))
        patch.setattr(leases, "LENGTH", 2.0)
        yield server


def machine(tmp_path: Path, name: str, patch: pytest.MonkeyPatch) -> None:
    """Be another machine: one whose mirrors are empty at first."""
    patch.setenv("SELFCAL_MIRRORS", str(tmp_path / name))


def on_store(url: str) -> dict[str, dict[str, Any]]:
    """All that the store has of a run, checked by its digests."""
    return outcome(small(ONCE), look(url, "all"))


@pytest.fixture(scope="module")
def local(
    undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory, small_shards: None
) -> Undisturbed:
    """The same run in a folder."""
    run, recipe, told = tmp_path_factory.mktemp("local") / "run", small(ONCE), Told()
    execute(recipe, run, told, [undisturbed.run])
    return Undisturbed(recipe, run, told, outcome(recipe, run))


@pytest.fixture(scope="module")
def finished(
    s3: S3, undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Told, str]:
    """A run whose process and machine died in the midst of it: name, and what the next one did."""
    name, folder = "killed", tmp_path_factory.mktemp("machines")
    wanted, tests = "iter-1/candidates/shards/00000.json", str(Path(__file__).parents[1])
    with (folder / "stderr").open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, tests, s3.url(name), str(undisturbed.run)],
            env={**os.environ, "SELFCAL_MIRRORS": str(folder / "first")},
            stderr=stderr,
        )
    until = time.monotonic() + 200
    while wanted not in s3.names(name):
        assert child.poll() is None, (folder / "stderr").read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    there = s3.names(name)
    assert KEY in there and "iter-1/candidates/manifest.json" not in there
    told = Told()
    with pytest.MonkeyPatch.context() as patch:
        machine(folder, "second", patch)
        execute(small(ONCE), working_folder(s3.url(name)), told)
    return name, told, str(folder / "second")


def test_a_killed_run_goes_on_on_another_machine(
    finished: tuple[str, Told, str], s3: S3, local: Undisturbed, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    name, told, _ = finished
    names = [p.stage.name for p in locate(small(ONCE), tmp_path)]
    at = names.index("iter-1/candidates")
    assert told.skipped == names[:at]
    assert told.begun == told.ended == names[at:]
    # the shard that was finished is not made again
    assert told.moved[0][0] >= SHARDS["search"]
    machine(tmp_path, "third", monkeypatch)
    assert on_store(s3.url(name)) == local.outcome
    assert KEY not in s3.names(name)


def test_what_nobody_reads_any_more_is_not_brought(
    finished: tuple[str, Told, str], monkeypatch: pytest.MonkeyPatch, s3: S3
) -> None:
    name, _, mirrors = finished
    monkeypatch.setenv("SELFCAL_MIRRORS", mirrors)
    run = working_folder(s3.url(name))
    assert (run / "rft" / "checkpoint").is_dir()
    for stage in ("teacher", "judge/labels", "judge/candidates"):
        assert (run / stage / "manifest.json").is_file()
        assert not list((run / stage).glob("*.parquet")), stage


def test_a_damaged_object_is_found_and_only_its_shard_made_again(
    finished: tuple[str, Told, str], s3: S3, local: Undisturbed, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    name = finished[0]
    machine(tmp_path, "fresh", monkeypatch)
    s3.drop(name, "iter-1/judgments/")
    broken = "iter-1/candidates/candidates-00001.parquet"
    data = bytearray(s3.get(name, broken))
    data[len(data) // 2] ^= 1
    s3.put(name, broken, bytes(data))
    s3.asked.clear()
    told = Told()
    execute(small(ONCE), working_folder(s3.url(name)), told)
    assert told.begun == ["iter-1/candidates", "iter-1/judgments"]
    assert told.moved[0] == (24 - SHARDS["search"], 24)
    written = {a.rpartition(f"/{name}/")[2] for a in s3.asked if a.startswith("PUT ")}
    shards = {k for k in written if k.startswith("iter-1/candidates/candidates-")}
    assert shards == {broken}
    assert on_store(s3.url(name)) == local.outcome


def test_a_stage_of_a_run_on_a_store_is_reused(
    finished: tuple[str, Told, str], s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, "fresh", monkeypatch)
    told = Told()
    recipe = small(ONCE, "method=sft_only")
    other = look(s3.url(finished[0]), "accounts")
    execute(recipe, working_folder(s3.url("reusing")), told, [other])
    assert "rft" in told.reused and "eval/rft" in told.reused
    machine(tmp_path, "another", monkeypatch)
    assert outcome(recipe, look(s3.url("reusing"), "all"))


def test_a_worker_on_another_machine_takes_its_shards_up(
    finished: tuple[str, Told, str], s3: S3, local: Undisturbed, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    name, stage = finished[0], "eval/iter-1"
    s3.drop(name, f"{stage}/")
    machine(tmp_path, "node", monkeypatch)
    where = s3.url(name)
    (planned,) = [p for p in locate(small(ONCE), tmp_path) if p.stage.name == stage]
    sizes, fingerprint = _sizes(planned.stage.size), planned.folder.fingerprint
    share = Share(where, str(Path.cwd()), stage, fingerprint, sizes, 1)
    worker = ShardWorker(share, take_up)
    assert worker.do(1) == share.sizes[1]
    worker.close()
    assert f"{stage}/shards/00001.json" in s3.names(name)
    assert f"{stage}/shards/00000.json" not in s3.names(name)
    machine(tmp_path, "driver", monkeypatch)
    told = Told()
    execute(small(ONCE), working_folder(where), told)
    assert told.begun == [stage]
    assert told.moved[0] == (share.sizes[1], planned.stage.size)
    assert on_store(where) == local.outcome


def _sizes(items: int) -> tuple[int, ...]:
    size = SHARDS["measure"]
    return tuple(min(size, items - at) for at in range(0, items, size))


class Taken(Told):
    """Lets another machine take the lease over when a stage is at work."""

    def __init__(self, s3: S3, stage: str) -> None:
        super().__init__()
        self._s3, self._stage = s3, stage

    def moves(self, done: int, total: int) -> None:
        if self.begun[-1] != self._stage or not done:
            return
        if done == 1:
            other = {"mirror": "m", "token": "t", "pid": 7, "host": "other", "length": 60}
            self._s3.put("lost", KEY, json.dumps(other).encode())
        time.sleep(0.3)  # a model's time, so that the lease is looked at in between


def test_a_run_that_has_lost_its_lease_stops_and_keeps_its_work(
    s3: S3, local: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(tmp_path, "one", monkeypatch)
    monkeypatch.setattr(leases, "LENGTH", 0.4)
    recipe, told = small(ONCE, "dpo.steps=3"), Taken(s3, "eval/iter-1")
    run = working_folder(s3.url("lost"))
    with pytest.raises(StoreError, match=r"/lost was taken over by process 7 on other: .*kept"):
        execute(recipe, run, told, [local.run])
    assert told.begun[-1] == "eval/iter-1" and "eval/iter-1" not in told.ended
    assert json.loads(s3.get("lost", KEY))["host"] == "other"
    there = s3.names("lost")
    assert "iter-1/dpo/manifest.json" in there and "eval/iter-1/manifest.json" not in there
    s3.drop("lost", KEY)  # the other one is done
    again = Told()
    execute(recipe, run, again)
    assert again.begun == ["eval/iter-1"]
    assert again.moved[0][0] > 0  # what was made before it was noticed


def test_the_commands_take_addresses(
    finished: tuple[str, Told, str], s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = s3.url(finished[0])
    machine(tmp_path, "looking", monkeypatch)

    def call(*words: str) -> str:
        done = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        return done.output

    said = call("status", url)
    assert f"run      {url}" in said and f"selfcal results {url}" in said
    assert json.loads(call("results", url, "--json"))
    sample = _rows(look(url) / "iter-1" / "candidates")[0]["sample_id"]
    assert sample in call("trace", url, sample)
    call("report", url)
    assert "report.html" in s3.names(finished[0])
    said = call("run", "--out", url)
    assert f"The run lies in {url}" in said
    assert json.loads(call("verify", url, "--json"))["sound"]


def test_gc_frees_the_store(
    finished: tuple[str, Told, str], s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = finished[0]
    machine(tmp_path, "cleaning", monkeypatch)
    s3.put(name, "rft.old-unknown/checkpoint/model.safetensors", b"x" * 12_345)
    aside = [n for n in s3.names(name) if ".old-" in n]
    call = partial(CliRunner().invoke, app, env={"COLUMNS": "200"})
    assert call(["gc", s3.url(name)]).exit_code == 0
    assert set(aside) <= set(s3.names(name))
    before = set(s3.names(name))
    done = call(["gc", s3.url(name), "--checkpoints", "--apply"])
    assert done.exit_code == 0, done.output
    gone = before - set(s3.names(name))
    assert set(aside) <= gone and any(n.startswith("rft/checkpoint/") for n in gone)
    assert not any(n.startswith("iter-1/dpo/checkpoint/") for n in gone)
    done = call(["verify", s3.url(name), "--json"])
    assert json.loads(done.stdout)["sound"], done.output
    told = Told()
    execute(small(ONCE), working_folder(s3.url(name)), told)
    assert told.begun == []


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "s3://b/x"],
        ["compare", "a.yaml", "--seeds", "0", "--out", "s3://b/x"],
        ["export", "runs/x", "--format", "trl", "--out", "s3://b/x"],
    ],
)
def test_what_takes_no_address_says_so(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "takes a path on this machine" in " ".join(done.output.split())


def test_data_is_not_read_from_a_store() -> None:
    with pytest.raises(SelfcalError, match=r"data\.source.*not from s3://"):
        small("data.source=s3://bucket/data")


def _rows(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(folder / "candidates-00000.parquet").to_pylist()
    return rows
