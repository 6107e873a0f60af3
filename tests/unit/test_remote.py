"""Runs on a store: addresses, objects, the lease, and what goes up and comes down when."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from s3 import S3, serving
from selfcal import stopping
from selfcal.errors import StoreError
from selfcal.lock import RunLock, lock_holder
from selfcal.remote import (
    Read,
    files,
    is_address,
    look,
    open_run_place,
    place_of,
    shown,
    working_folder,
)
from selfcal.remote import lease as leases
from selfcal.remote import objects as stores
from selfcal.remote.address import address, checked, scrubbed
from selfcal.remote.files import Files, pulling
from selfcal.remote.lease import KEY, Followed, Holder, Lease
from selfcal.remote.mirror import Mirror
from selfcal.remote.objects import Objects
from selfcal.store import StageDir, write_json


@dataclass(frozen=True)
class Row:
    number: int


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(stores, "PAUSES", (0.0,))
    monkeypatch.setenv("SELFCAL_MIRRORS", str(tmp_path / "mirrors"))
    yield
    fsspec.filesystem("memory").store.clear()
    stopping.forget()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with pytest.MonkeyPatch.context() as patch, serving(patch) as server:
        yield server


def memory(name: str = "run") -> Objects:
    return Objects(f"memory://bucket/{name}")


def mirror(folder: Path, name: str = "run") -> Mirror:
    """A machine's mirror of a run."""
    return Mirror(memory(name), folder, str(folder))


def stage(mirror: Mirror, name: str = "work", fingerprint: str = "f1") -> StageDir:
    return StageDir(mirror.run / name, fingerprint)


def do(mirror: Mirror, folder: StageDir, shards: int, of: int = 3) -> None:
    """Do a stage's first shards; finish it with the last."""
    mirror.takes_up(folder)
    folder.open()
    mirror.opened(folder)
    for i in range(shards):
        if not folder.sealed(i):
            folder.write_shard("rows", i, [Row(i)], Row)
            folder.seal(i, ["rows"])
            mirror.saved([folder.shard("rows", i), folder.mark(i)])
    if shards == of:
        folder.finish({}, 1.0)
        mirror.finished(folder)


def begun(mirror: Mirror) -> None:
    """A run's first words on the store."""
    write_json(mirror.run / "recipe.json", {})
    mirror.saved([mirror.run / "recipe.json"])


def numbers(folder: StageDir) -> list[int]:
    return [row.number for row in folder.read("rows", Row)]


# --- addresses ---


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("s3://b/runs/x", "s3://b/runs/x"),
        ("S3://b//runs/x/", "s3://b/runs/x"),
        ("gs://b/x", "gs://b/x"),
        ("file:///data/my%20runs/x", "/data/my runs/x"),
    ],
)
def test_an_address_has_one_form(text: str, plain: str) -> None:
    assert address(text) == plain


@pytest.mark.parametrize("text", ["runs/demo", "/abs", "C:/runs", "a:b", "./s3://b"])
def test_paths_are_no_addresses(text: str) -> None:
    assert not is_address(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("s3://bucket", "name a folder"),
        ("s3://me:hush@b/x", "credentials come from"),
        ("https://b/x?X-Amz-Signature=hush", "credentials come from"),
        ("s3://b/../x", "leads|no file"),
        ("s3:/b/x", "no address"),
        ("simplecache::s3://b/x", "no address"),
    ],
)
def test_other_addresses_are_refused_and_no_credential_is_shown(text: str, why: str) -> None:
    with pytest.raises(StoreError, match=why) as error:
        address(text)
    assert "hush" not in str(error.value)


def test_credentials_are_taken_out_of_errors() -> None:
    text = 'no answer from "https://me:hush@host/b/x?X-Amz-Signature=hush&a=1" at all'
    assert scrubbed(text) == 'no answer from "https://...@host/b/x?..." at all'


@pytest.mark.parametrize(
    "key",
    ["../x", "a/../../x", "/etc/x", "a//b", "a\\b", "C:/x", "a/\x00", "a\nb", "", "x" * 256],
)
def test_keys_that_lead_out_of_the_folder_are_refused_by_name(key: str) -> None:
    with pytest.raises(StoreError, match="s3://b/x has an object"):
        checked(key, "s3://b/x")


def test_a_listing_with_such_a_key_is_refused(tmp_path: Path) -> None:
    fsspec.filesystem("memory").store["/bucket/run/a/..\\x"] = None
    system = fsspec.filesystem("memory")
    found = {"/bucket/run/data/../../../evil": {"size": 1}}
    here = Objects("memory://bucket/run", _Listing(system, found), "bucket/run")
    with pytest.raises(StoreError, match=r"evil"):
        here.list()


def test_objects_that_stand_for_folders_are_passed_over() -> None:
    """Consoles make them; of the run's own folder, the key is empty."""
    found = {
        "bucket/run/": {"size": 0, "type": "file"},
        "bucket/run/work/": {"size": 0, "type": "file"},
        "bucket/run/other": {"size": 0, "type": "directory"},
        "bucket/run/work/a": {"size": 1, "type": "file"},
    }
    here = Objects("x://bucket/run", _Listing(None, found), "bucket/run")
    assert here.list().keys() == {"work/a"}


class _Listing:
    def __init__(self, system: Any, found: dict[str, Any]) -> None:
        self._system, self._found = system, found

    def find(self, path: str, detail: bool) -> dict[str, Any]:
        return self._found


# --- what goes up, and when ---


def test_a_shard_goes_up_before_its_mark_and_the_manifest_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, order = mirror(tmp_path / "a"), list[str]()
    upload = Objects.upload
    monkeypatch.setattr(
        Objects, "upload", lambda self, path, key: (order.append(key), upload(self, path, key))[1]
    )
    do(here, stage(here), 3)
    assert order == [
        "work/stage.json",
        "work/rows-00000.parquet", "work/shards/00000.json",
        "work/rows-00001.parquet", "work/shards/00001.json",
        "work/rows-00002.parquet", "work/shards/00002.json",
        "work/stage.json", "work/manifest.json",
    ]  # fmt: skip


def test_another_machine_goes_on_at_the_first_shard_that_is_left(tmp_path: Path) -> None:
    one, two = mirror(tmp_path / "a"), mirror(tmp_path / "b")
    begun(one)
    do(one, stage(one), 2)
    with two.working([Read(stage(two), [])]):
        two.takes_up(stage(two))
        assert [stage(two).sealed(i) for i in range(3)] == [True, True, False]
        do(two, stage(two), 3)
    assert numbers(stage(two)) == [0, 1, 2]


def test_only_what_is_read_comes_down(tmp_path: Path) -> None:
    one, two = mirror(tmp_path / "a"), mirror(tmp_path / "b")
    begun(one)
    for name in ("first", "second"):
        do(one, stage(one, name), 3)
    first, second, third = (stage(two, name) for name in ("first", "second", "third"))
    with two.working([Read(first, []), Read(second, [first]), Read(third, [second])]):
        assert first.done and second.done
        assert [two.has(folder) for folder in (first, second)] == [False, True]
        assert not first.shard("rows", 0).exists()
        assert numbers(second) == [0, 1, 2]


def test_a_damaged_object_is_missing_here_and_what_mends_it_is_brought(tmp_path: Path) -> None:
    one, two = mirror(tmp_path / "a"), mirror(tmp_path / "b")
    begun(one)
    for name in ("first", "second"):
        do(one, stage(one, name), 3)
    path = "/bucket/run/second/rows-00001.parquet"
    system = fsspec.filesystem("memory")
    data = bytearray(system.cat_file(path))
    data[len(data) // 2] ^= 1
    system.pipe_file(path, bytes(data))
    first, second, third = (stage(two, name) for name in ("first", "second", "third"))
    with two.working([Read(first, []), Read(second, [first]), Read(third, [second])]):
        assert second.verify() == ["rows-00001.parquet"]
        assert two.has(first) and first.verify() == []
        with pytest.raises(StoreError, match=r"second/rows-00001\.parquet is damaged .* delete it"):
            two.needs(second)


def test_a_run_without_its_recipe_is_known_by_its_stages(tmp_path: Path) -> None:
    here, other = mirror(tmp_path / "a"), mirror(tmp_path / "b")
    do(here, stage(here), 3)
    with other.working([Read(stage(other), [])]):
        assert stage(other).done
    with (
        pytest.raises(StoreError, match="is not empty and is no run"),
        other.working([Read(stage(other, "another"), [])]),
    ):
        pass


def test_the_manifest_is_gone_from_the_store_before_anything_under_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = mirror(tmp_path / "a")
    do(here, stage(here), 3)
    here.takes_up(stage(here))
    there = memory().list()
    assert "work/manifest.json" not in there
    assert "work/shards/00000.json" in there


def test_other_work_is_moved_aside_on_the_store_too(tmp_path: Path) -> None:
    one, two = mirror(tmp_path / "a"), mirror(tmp_path / "b")
    do(one, stage(one), 3)
    do(two, stage(two, fingerprint="f2"), 3)
    there = memory().list()
    assert {"work/manifest.json", "work.old-f1/manifest.json"} <= there.keys()
    kept = json.loads(memory().read("work.old-f1/manifest.json") or b"")
    assert kept["fingerprint"] == "f1"
    assert {f"work.old-f1/{name}" for name in kept["files"]} <= there.keys()


def test_what_a_stage_no_longer_has_is_deleted_on_the_store(tmp_path: Path) -> None:
    here = mirror(tmp_path / "a")
    folder = stage(here)
    do(here, folder, 2)
    for step in (1, 2):
        checkpoint = folder.path / "trl" / f"checkpoint-{step}"
        write_json(checkpoint / "digests.json", {})
        if step == 2:
            old = folder.path / "trl" / "checkpoint-1"
            (old / "digests.json").unlink()
            old.rmdir()
        here.saved([checkpoint / "digests.json"])
    kept = [key for key in memory().list() if "/trl/" in key]
    assert kept == ["work/trl/checkpoint-2/digests.json"]


def test_finished_work_that_could_not_go_up_does_so_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = mirror(tmp_path / "a")
    begun(here)
    with monkeypatch.context() as patch:
        patch.setattr(Files, "push", lambda self, key: None)  # as when the network is gone
        do(here, stage(here), 3)
    assert not any(key.startswith("work/") for key in memory().list())
    again = mirror(tmp_path / "a")
    with again.working([Read(stage(again), [])]):
        pass
    other = mirror(tmp_path / "b")
    with other.working([Read(stage(other), [])]):
        other.needs(stage(other))
    assert numbers(stage(other)) == [0, 1, 2]


def test_work_of_two_machines_is_never_mixed(tmp_path: Path) -> None:
    """One was stopped with other settings, which the store has since forgotten."""
    one, two = mirror(tmp_path / "a"), mirror(tmp_path / "b")
    begun(one)
    do(one, stage(one, fingerprint="f2"), 1)
    do(two, stage(two), 2)
    again = mirror(tmp_path / "a")
    with again.working([Read(stage(again), [])]):
        do(again, stage(again), 3)
    assert stage(again).verify() == []
    assert numbers(stage(again)) == [0, 1, 2]


def test_an_address_with_other_things_is_refused(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/run/thesis.txt", b"mine")
    with (
        pytest.raises(StoreError, match="not empty and is no run"),
        mirror(tmp_path / "a").working([]),
    ):
        pass


def test_ledgers_come_down_and_go_up_with_the_run(tmp_path: Path) -> None:
    one, two = mirror(tmp_path / "a"), mirror(tmp_path / "b")
    begun(one)
    with one.working([]):
        (one.run / "spending").mkdir()
        (one.run / "spending" / "teacher.jsonl").write_text("{}\n")
    with two.working([]):
        assert (two.run / "spending" / "teacher.jsonl").read_text() == "{}\n"


# --- the lease ---


def test_a_second_machine_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LENGTH", 1.0)
    first, second = Lease(memory(), "one", stopping.ask), Lease(memory(), "two", stopping.ask)
    first.take()
    with pytest.raises(StoreError, match=r"in use by process \d+ on \S+: wait"):
        second.take()
    assert first.holder("one") == "" and "process" in second.holder("two")
    first.give_back()
    second.take()
    second.give_back()
    assert memory().read(KEY) is None


def test_a_lease_that_nobody_renews_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LENGTH", 0.3)
    dead = {"mirror": "gone", "token": "t", "pid": 1, "host": "far", "length": 0.3, "beat": 7}
    memory().create(KEY, json.dumps(dead).encode())
    lease = Lease(memory(), "one", stopping.ask)
    began = time.monotonic()
    lease.take()
    assert time.monotonic() - began >= 0.3
    lease.check()
    lease.give_back()


def held(**said: Any) -> dict[str, Any]:
    """The lease of a process of this machine that has died, in the mirror `one`."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = {"mirror": "one", "token": "t", "pid": child.pid, "host": socket.gethostname()}
    lease = {**dead, "length": 60, **said}
    fsspec.filesystem("memory").pipe_file(f"/bucket/run/{KEY}", json.dumps(lease).encode())
    return lease


def test_the_own_mirrors_lease_is_not_waited_for_when_its_process_has_died() -> None:
    held()
    lease = Lease(memory(), "one", stopping.ask)
    assert lease.holder("one") == ""
    lease.take()  # at once
    lease.give_back()


@pytest.mark.parametrize("said", [{"host": "copied"}, {"pid": os.getppid()}, {"pid": "x"}])
def test_the_name_of_the_mirror_alone_is_not_enough(
    said: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mirrors are copied with a machine's disk, or lie in a home that several machines see."""
    watched = list[Holder]()
    monkeypatch.setattr(
        Lease, "_watched", lambda self, found, holder: (watched.append(holder), found)[1]
    )
    held(**said)
    lease = Lease(memory(), "one", stopping.ask)
    assert lease.holder("one")
    lease.take()
    lease.give_back()
    assert [holder.mirror for holder in watched] == ["one"]


class Careless(MemoryFileSystem):
    """A store that writes whatever the conditions are."""

    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        super().pipe_file(path, value, mode="overwrite")


def test_a_live_lease_is_safe_where_the_store_knows_no_conditions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "LENGTH", 1.0)
    store = Objects("careless://bucket/run", Careless(), "/bucket/run")
    first, second = Lease(store, "one", stopping.ask), Lease(store, "two", stopping.ask)
    first.take()
    with pytest.raises(StoreError, match=r"in use by process \d+ on \S+: wait"):
        second.take()
    first.check()
    first.give_back()


def test_who_was_overwritten_right_after_creating_its_lease_does_not_hold_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "LENGTH", 0.2)
    store = Objects("careless://bucket/run", Careless(), "/bucket/run")
    create, other = Objects.create, json.dumps({"mirror": "two", "token": "t"}).encode()
    watched = list[bytes]()

    def slow(self: Objects, key: str, data: bytes) -> bool:
        return create(self, key, data) and create(self, key, other)

    def look(self: Lease, found: bytes, holder: Holder) -> None:
        watched.append(found)
        raise StoreError("in use")

    monkeypatch.setattr(Objects, "create", slow)
    monkeypatch.setattr(Lease, "_watched", look)
    with pytest.raises(StoreError, match="in use"):
        Lease(store, "one", stopping.ask).take()
    assert watched == [other]


@pytest.mark.parametrize("length", ["600", "NaN", "1e99", "-1", "1" + 400 * "0", "true"])
def test_no_lease_is_watched_for_longer_than_ours_lasts(length: str) -> None:
    found = leases._holder(b'{"length": %s}' % length.encode()).length
    assert found == (1.0 if length == "true" else leases.LENGTH)


def test_the_wait_for_a_lease_heeds_the_wish_to_stop() -> None:
    held(host="far")
    stopping.ask()
    lease = Lease(memory(), "two", stopping.ask)
    with pytest.raises(stopping.Stopped):  # and not after a minute
        lease.take()
    lease.give_back()
    assert json.loads(memory().read(KEY) or b"")["host"] == "far"


def test_tries_end_with_the_wish_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    class Busy:
        def find(self, path: str, detail: bool) -> dict[str, Any]:
            asked.append(path)
            stopping.ask()
            raise OSError("busy")

    monkeypatch.setattr(stores, "PAUSES", (600.0,))
    with pytest.raises(stopping.Stopped):
        Objects("busy://bucket/run", Busy(), "bucket/run").list()
    assert len(asked) == 1


def test_who_works_for_the_holder_stops_with_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_LOOK", 0.0)
    here, worker = mirror(tmp_path / "a"), mirror(tmp_path / "b")
    assert here.token == ""
    here.lock()
    worker.follow(here.token)
    do(worker, stage(worker), 1)
    taker = {"mirror": "c", "token": "t", "pid": 9, "host": "other", "length": 60, "beat": 1}
    held(**taker)
    with pytest.raises(StoreError, match="no longer worked on by the process that started"):
        do(worker, stage(worker), 2)
    assert "work/shards/00001.json" not in memory().list()
    memory().delete([KEY])
    write_json(new := worker.run / "work" / "new.json", {})
    with pytest.raises(StoreError, match="no longer worked on"):
        worker.saved([new])
    here.unlock()


def test_those_who_work_for_the_holder_look_every_few_seconds_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held()
    reads, read = list[str](), Objects.read

    def counted(self: Objects, key: str, patient: bool = True) -> bytes | None:
        reads.append(key)
        return read(self, key, patient)

    monkeypatch.setattr(Objects, "read", counted)
    monkeypatch.setattr(leases, "_now", lambda: 100.0 + 2 * len(seen))
    followed, seen = Followed(memory(), "t"), list[int]()
    for i in range(6):  # at 0, 2, 4, 6, 8 and 10 s
        followed.check()
        seen.append(i)
    assert len(reads) == 2  # at 0 and 6 s


def test_who_has_lost_the_lease_stops_and_changes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LENGTH", 0.2)
    here = mirror(tmp_path / "a")
    begun(here)
    here.lock()
    taker = {"mirror": "b", "token": "t", "pid": 9, "host": "other", "length": 60, "beat": 1}
    fsspec.filesystem("memory").pipe_file(f"/bucket/run/{KEY}", json.dumps(taker).encode())
    until = time.monotonic() + 20
    while not stopping.asked() and time.monotonic() < until:
        time.sleep(0.01)
    with pytest.raises(StoreError, match="was taken over by process 9 on other"), here.working([]):
        stopping.heed()
    with pytest.raises(StoreError, match="changes nothing more there"):
        do(here, stage(here), 1)
    assert not any(key.startswith("work/") for key in memory().list())
    here.unlock()
    assert not stopping.asked()
    assert json.loads(memory().read(KEY) or b"") == taker


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"length": "long"}', b'{"length": 1e99}'])
def test_a_lease_that_makes_no_sense_can_be_lived_with(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LENGTH", 0.1)
    memory().create(KEY, data)
    lease = Lease(memory(), "one", stopping.ask)
    lease.take()
    assert (memory().read(KEY) or b"") not in (b"", data)
    lease.give_back()
    assert memory().read(KEY) is None


# --- several processes of one machine ---


def test_who_waits_for_another_process_says_so_and_heeds_the_wish_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "_SILENT_S", 0.1)
    heeded, heed = list[str](), stopping.heed

    def then() -> None:
        heeded.append(capsys.readouterr().err)
        if len(heeded) > 15:
            stopping.ask()
        heed()

    monkeypatch.setattr(stopping, "heed", then)
    with pulling(tmp_path / "run"), pytest.raises(stopping.Stopped), pulling(tmp_path / "run"):
        pass
    said = "".join(heeded)
    assert said == f"{tmp_path / 'run'}: another process brings files of this run; waiting\n"
    stopping.forget()
    with pulling(tmp_path / "run"):
        pass


# --- doors ---


def test_a_run_has_one_place_by_its_folder(tmp_path: Path) -> None:
    folder = working_folder("memory://bucket/runs/demo")
    place = place_of(folder)
    assert isinstance(place, Mirror) and place_of(folder) is place
    assert (place.where, folder.name) == ("memory://bucket/runs/demo", "demo")
    assert shown(folder) == "memory://bucket/runs/demo"
    assert shown(folder / "a") == "memory://bucket/runs/demo/a"
    assert place_of(tmp_path).where == str(tmp_path) and shown(tmp_path) == str(tmp_path)
    assert working_folder(str(tmp_path)) == tmp_path == working_folder(f"file://{tmp_path}")


def test_a_worker_finds_the_run_by_where_it_lies(tmp_path: Path) -> None:
    place = place_of(working_folder("memory://bucket/runs/demo"))
    with pytest.raises(StoreError, match="memory://bucket/runs/demo is no run"):
        open_run_place("memory://bucket/runs/demo")
    assert isinstance(place, Mirror)
    begun(place)
    do(place, stage(place), 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFCAL_MIRRORS", str(tmp_path / "elsewhere"))
        there = open_run_place("memory://bucket/runs/demo")
        folder = StageDir(there.run / "work", "f1")
        assert folder.done and not folder.shard("rows", 0).exists()
        there.needs(folder)
        assert numbers(folder) == [0, 1, 2]


def test_looking_brings_records_but_no_weights_and_follows_the_store() -> None:
    place = place_of(working_folder("memory://bucket/runs/demo"))
    assert isinstance(place, Mirror)
    begun(place)
    folder = stage(place)
    do(place, folder, 2)
    (folder.path / "checkpoint").mkdir()
    (folder.path / "checkpoint" / "model.safetensors").write_bytes(b"weights")
    (folder.path / "a.png").write_bytes(b"image")
    do(place, folder, 3)
    copy = look("memory://bucket/runs/demo")
    assert copy != place.run and numbers(StageDir(copy / "work", "f1")) == [0, 1, 2]
    assert not (copy / "work" / "checkpoint").exists() and not (copy / "work" / "a.png").exists()
    look("memory://bucket/runs/demo", "images")
    assert (copy / "work" / "a.png").exists()
    assert not (copy / "work" / "checkpoint").exists()
    look("memory://bucket/runs/demo", "all")
    assert StageDir(copy / "work", "f1").verify() == []
    place.takes_up(folder)  # its manifest is gone
    assert not (look("memory://bucket/runs/demo") / "work" / "manifest.json").exists()


def test_looking_where_no_run_is_says_so() -> None:
    with pytest.raises(StoreError, match="memory://bucket/none is no run of selfcal"):
        look("memory://bucket/none")


def test_the_lock_of_a_mirror_is_the_lease_too() -> None:
    folder = working_folder("memory://bucket/runs/demo")
    with RunLock(folder):
        assert Objects("memory://bucket/runs/demo").read(KEY)
        assert "process" in lock_holder(folder)
    assert Objects("memory://bucket/runs/demo").read(KEY) is None
    assert lock_holder(folder) == ""


# --- a real server ---


def test_an_unknown_kind_of_store_is_refused() -> None:
    with pytest.raises(StoreError, match="nosuch://b/x cannot be opened"):
        Objects("nosuch://b/x").list()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
        with pytest.raises(StoreError, match=r"pip install 'selfcal\[gcs\]'"):
            Objects("gs://b/x").list()


def test_no_bucket_and_no_server_are_named(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/x.*make the bucket"):
        Lease(Objects("s3://no-such-bucket/x"), "one", stopping.ask).take()
    monkeypatch.setattr(stores, "PAUSES", ())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreError, match="give credentials"):
        Objects(s3.url("x")).list()


def test_a_server_that_is_busy_now_and_then_is_asked_again(s3: S3, tmp_path: Path) -> None:
    s3.failing, s3.failed = 4, 0
    try:
        one, two = (Mirror(Objects(s3.url("busy")), tmp_path / n, n) for n in "ab")
        begun(one)
        do(one, stage(one), 3)
        with two.working([Read(stage(two), [])]):
            two.needs(stage(two))
    finally:
        s3.failing = 0
    assert s3.failed > 3
    assert stage(two).verify() == [] and numbers(stage(two)) == [0, 1, 2]


def test_s3_decides_who_gets_the_lease(s3: S3) -> None:
    here = Objects(s3.url("lease"))
    assert here.create("k", b"1") and not here.create("k", b"2")
    assert here.create("k", b"1")  # an answer that was lost
    assert not here.replace("k", b"0", b"3")
    assert here.replace("k", b"1", b"3") and here.read("k") == b"3"
    stale, read = b"3", Objects.read
    with pytest.MonkeyPatch.context() as patch:
        # somebody else is faster, after we have looked
        def slow(self: Objects, key: str, patient: bool = True) -> bytes | None:
            found = read(self, key, patient)
            if found == stale:
                s3.put("lease", "k", b"4")
            return found

        patch.setattr(Objects, "read", slow)
        assert not here.replace("k", stale, b"5")
    assert here.read("k") == b"4"


def test_a_folder_made_in_a_console_is_an_address(s3: S3, tmp_path: Path) -> None:
    for key in ("", "work/", "iter-1/"):
        s3.put("made", key, b"")
    here = Mirror(Objects(s3.url("made")), tmp_path / "a", "a")
    with here.working([]):
        begun(here)
        do(here, stage(here), 3)
    assert here.objects.list().keys() >= {"recipe.json", "work/manifest.json"}
    assert not any(key.endswith("/") or not key for key in here.objects.list())


def test_names_are_no_patterns(s3: S3, tmp_path: Path) -> None:
    here, file = Objects(s3.url("names")), tmp_path / "f"
    file.write_bytes(b"1")
    for key in ("d/*", "d/x", "d/a[1].png", "d/a1.png"):
        here.upload(file, key)
    here.copy("d/*", "e/*")
    here.delete(["d/*", "d/a[1].png", "d/none"])
    assert here.list().keys() == {"d/x", "d/a1.png", "e/*"}
    assert here.download("e/*", tmp_path / "g") and (tmp_path / "g").read_bytes() == b"1"
