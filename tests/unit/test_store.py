"""The store: what is written can be read back, and what can't be trusted is never read."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest

from selfcal import digests, store, types
from selfcal.errors import SelfcalError, StoreError
from selfcal.lock import RunLock
from selfcal.store import StageDir, fingerprint, read_column, read_records, write_records

DROPS = [types.Drop(f"s{i}", "search", "too-long", "ä\n\x00") for i in range(3)]
RECORDS: list[Any] = [
    types.Sample("a", "a.png", "How many?", "2", ("1", "2"), "count", "One, two.", "two dogs"),
    types.Rap("It is red.\n", "red", ("It is red.\n",), True),
    types.WrittenRap("a", "Rationale: …\nAnswer: 日本"),
    types.Candidate("a", 3, "x y", ("x", " y"), (-0.1, -1e-300), (1, 2), False),
    types.Candidate("a", 4, "", (), (), (), True, (0.9, -0.5), (31.25, 0.0)),
    types.SearchNode("a", 7, -1, "x", -math.inf, 3, 2, True, -1, 0.55),
    types.SentenceReward(0.9, 31.25),
    types.Judgment("a", 0, 1, "first", 0.7, 0.2, 0.1),
    types.Judgment("a", 1, 0, None, 0.0, 0.0, 0.0),
    types.PreferencePair("a", "good", "bad", 0, 1, 2.5, -1.0),
    types.LabelledPair("a", "q", "f", "x", "y", "neutral"),
    types.LabelledPair("a", "q", "", "x", "y", "first", ("images/a.png", "images/b.png")),
    types.Readings("votes", 3),
    types.GradedResponse("a", "q", "f", "x", False),
    types.GradedResponse("a", "q", "f", "x", True, "entailed"),
    types.RankedResponses("a", "q", "f", ("x", "y", "z"), (1, 2, 1)),
    types.Rollout("a", 0, 7, "x", 12, 1.0, True, (0.5, -0.25), 1.1, -0.4),
    types.Drop("a", "curate", "answer-disagrees"),
    types.Response("a", "c", "t", "2", True, False, True, False, True, False, True, 3, 2**62),
    types.Result("iter-1", "test", "all", "accuracy", 1 / 3, 0.01, 200, 0),
]


@dataclass(frozen=True, slots=True)
class Wide:
    """Every supported annotation that the records of `types` don't use."""

    maybe_text: str | None
    maybe_number: int | None
    maybe_flag: bool | None
    maybe_many: tuple[float, ...] | None
    flags: tuple[bool, ...]
    words: tuple[Literal["a", "b"], ...]


@dataclass(frozen=True, slots=True)
class Numbers:
    whole: int
    real: float
    words: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    size: int
    names: tuple[str, ...]
    where: Path | None = None


class Model(pydantic.BaseModel):
    size: int
    inner: Settings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "candidates-00000.parquet"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Records ----------------------------------------------------------------------------------------


def test_every_record_type_is_in_the_round_trip() -> None:
    defined = {kind for kind in vars(types).values() if hasattr(kind, "__dataclass_fields__")}
    assert defined == {type(record) for record in RECORDS}


@pytest.mark.parametrize("kind", dict.fromkeys(map(type, RECORDS)))
def test_round_trip(path: Path, kind: Any) -> None:
    records = [record for record in RECORDS if type(record) is kind] * 3
    write_records(path, records, kind)
    back = read_records(path, kind)
    assert back == records
    assert [repr(record) for record in back] == [repr(record) for record in records]


def test_round_trip_of_optional_and_literal_tuples(path: Path) -> None:
    records = [
        Wide(None, None, None, None, (), ()),
        Wide("", 0, False, (), (True, False), ("a", "b", "a")),
        Wide("x", -1, True, (0.5, math.inf), (), ()),
    ]
    write_records(path, records, Wide)
    assert read_records(path, Wide) == records


def test_nan_survives(path: Path) -> None:
    write_records(path, [Numbers(1, math.nan, ())], Numbers)
    assert math.isnan(read_records(path, Numbers)[0].real)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_field_alone_is_what_the_records_have(path: Path, record: Any) -> None:
    write_records(path, [record], type(record))
    for field in fields(record):
        assert read_column(path, type(record), field.name) == [getattr(record, field.name)]


def test_a_field_alone_is_read_of_the_right_kind_only(path: Path) -> None:
    write_records(path, DROPS, types.Drop)
    with pytest.raises(StoreError, match=r"holds Drop records.*wanted were Judgment"):
        read_column(path, types.Judgment, "sample_id")


class Word(str):
    __slots__ = ()


def test_a_value_of_a_finer_type_is_kept_if_it_is_the_same(path: Path) -> None:
    write_records(path, [Numbers(1, 0.0, (Word("a"), "b"))], Numbers)
    assert read_records(path, Numbers) == [Numbers(1, 0.0, ("a", "b"))]


def test_no_records(path: Path) -> None:
    write_records(path, [], types.Candidate)
    assert read_records(path, types.Candidate) == []


def test_folder_names_with_an_equals_sign_add_no_column(tmp_path: Path) -> None:
    path = tmp_path / "detail=x" / "drops-00000.parquet"
    write_records(path, DROPS, types.Drop)
    assert read_records(path, types.Drop) == DROPS


@pytest.mark.parametrize(
    "annotation",
    [
        "dict[str, int]",
        "list[str]",
        "tuple[int, int]",
        "int | str",
        "int | str | None",
        "Literal[1, 2]",
        "Literal['a', None]",
        "tuple[int | None, ...]",
        "bytes",
        "Path",
        "None",
        "Any",
    ],
)
def test_unsupported_annotation_names_the_field(path: Path, annotation: str) -> None:
    hints = {"odd": eval(annotation)}
    kind: Any = dataclass(type("Odd", (), {"__annotations__": hints}))
    with pytest.raises(TypeError, match=r"Odd\.odd"):
        write_records(path, [], kind)
    assert not path.exists()


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (Numbers(1.5, 0.0, ()), "whole"),  # type: ignore[arg-type]
        (Numbers(True, 0.0, ()), "whole"),
        (Numbers(2**70, 0.0, ()), "whole"),
        (Numbers(None, 0.0, ()), "whole"),  # type: ignore[arg-type]
        (Numbers(1, "1", ()), "real"),  # type: ignore[arg-type]
        (Numbers(1, 0.0, "ab"), "words"),  # type: ignore[arg-type]
        (Numbers(1, 0.0, ("\ud800",)), "words"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_not_bent(
    path: Path, record: Numbers, field: str
) -> None:
    with pytest.raises(TypeError, match=field):
        write_records(path, [Numbers(1, 0.0, ("a",)), record], Numbers)
    assert not path.exists()


def test_a_none_inside_a_tuple_is_refused(path: Path) -> None:
    bad = Numbers(1, 0.0, (None,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Numbers"):
        write_records(path, [bad], Numbers)


def test_a_record_of_another_kind_is_refused(path: Path) -> None:
    with pytest.raises(TypeError, match="is no Candidate"):
        write_records(path, DROPS, types.Candidate)


def test_reading_as_another_kind(path: Path) -> None:
    write_records(path, DROPS, types.Drop)
    with pytest.raises(StoreError, match=r"holds Drop records.*wanted were Judgment"):
        read_records(path, types.Judgment)


def test_same_kind_with_other_fields(path: Path) -> None:
    older: Any = dataclass(type("Drop", (), {"__annotations__": {"sample_id": str}}))
    write_records(path, [older("s0")], older)
    with pytest.raises(StoreError, match="fields sample_id; wanted"):
        read_records(path, types.Drop)


def test_a_foreign_parquet_file(path: Path) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    pq.write_table(pa.table({"sample_id": ["a"], "text": ["b"]}), path)
    with pytest.raises(StoreError, match="holds unknown records"):
        read_records(path, types.WrittenRap)


def test_every_truncation_is_noticed(path: Path) -> None:
    write_records(path, DROPS, types.Drop)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match=r"candidates-00000.* damaged .*is made anew"):
            read_records(path, types.Drop)


def test_a_flipped_bit_is_noticed_in_the_data_pages(path: Path) -> None:
    write_records(path, DROPS, types.Drop)
    whole = path.read_bytes()
    at = whole.index(b"too-long")  # zstd leaves what is this short as it is
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(StoreError, match="damaged"):
        read_records(path, types.Drop)


@pytest.mark.parametrize("read", [store.read_json, store.file_digest, store.tree_digest])
def test_reading_what_is_missing(tmp_path: Path, read: Any) -> None:
    with pytest.raises(StoreError, match=r"absent: No such file"):
        read(tmp_path / "absent")


def test_a_missing_record_file(path: Path) -> None:
    with pytest.raises(StoreError, match=r"00000\.parquet: No such file"):
        read_records(path, types.Drop)


def test_the_store_starts_without_arrow() -> None:
    code = "import sys, selfcal.store; sys.exit('pyarrow' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(Path(store.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


# Atomic writing ---------------------------------------------------------------------------------


def fail_with(code: int) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = tmp_path / "report.json"
    store.write_json(path, {"old": 1})
    monkeypatch.setattr(os, call, fail_with(code))
    with pytest.raises(StoreError) as caught:
        store.write_json(path, {"new": 2})
    monkeypatch.undo()
    assert isinstance(caught.value, SelfcalError)
    for part in (str(path), os.strerror(code), "run the same command again", "resumes"):
        assert part in str(caught.value)
    assert names(tmp_path) == ["report.json"]
    assert store.read_json(path) == {"old": 1}


def test_a_full_disk_says_to_free_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(StoreError, match="No space left on device; free some space"):
        store.write_text(tmp_path / "a", "x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_write_that_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened(Path("/dev/full"), "wb"))
    with pytest.raises(StoreError, match="free some space"):
        store.write_bytes(tmp_path / "a", b"x" * 100_000)
    assert names(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.write_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == []


def test_file_then_rename_then_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def note_replace(old: Path, new: Path) -> None:
        calls.append("rename")
        assert Path(old).read_bytes() == b"x" and Path(old).parent == tmp_path
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    store.write_bytes(tmp_path / "a", b"x")
    assert [calls[0].endswith(".partial"), *calls[1:]] == [True, "rename", str(tmp_path)]


def test_a_file_system_that_cannot_sync_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    store.write_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_files_get_the_usual_mode(tmp_path: Path) -> None:
    store.write_bytes(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_json_refuses_nan_and_damage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(tmp_path / "a", {"loss": math.nan})
    assert names(tmp_path) == []
    (tmp_path / "a").write_text('{"loss": ')
    with pytest.raises(StoreError, match="damaged"):
        store.read_json(tmp_path / "a")


# Digests ----------------------------------------------------------------------------------------


def test_fingerprint_is_sha256_of_canonical_json() -> None:
    expected = hashlib.sha256(b'[{"a":[1,2],"b":null},"x"]').hexdigest()[:16]
    assert fingerprint({"b": None, "a": (1, 2)}, "x") == expected


def test_fingerprint_of_dataclasses_and_models() -> None:
    plain = {"size": 2, "names": ["a"], "where": None}
    assert fingerprint(Settings(2, ("a",))) == fingerprint(plain)
    model = Model(size=1, inner=Settings(2, ("a",)))
    assert fingerprint([model]) == fingerprint([{"size": 1, "inner": plain}])
    assert fingerprint("a", "b") != fingerprint("ab") != fingerprint(["a", "b"])


@pytest.mark.parametrize(
    "part",
    [
        Path("x"),
        {"a": [Path("x")]},
        {Path("x"): 1},
        Settings(1, (), Path("x")),
        Model(size=1, inner=Settings(1, (), Path("x"))),
        {1, 2},
        b"x",
        Settings,
        Model,
        object(),
    ],
)
def test_fingerprint_refuses(part: object) -> None:
    with pytest.raises(TypeError):
        fingerprint(part)


def test_file_and_tree_digest(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b").write_bytes(b"abc")
    (tmp_path / "sub" / "a").write_bytes(b"")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert store.file_digest(tmp_path / "b") == abc
    before = store.tree_digest(tmp_path)
    (tmp_path / ".b.1-0.partial").write_bytes(b"half")
    assert store.tree_digest(tmp_path) == before
    (tmp_path / "sub" / "a").rename(tmp_path / "sub" / "c")
    renamed = store.tree_digest(tmp_path)
    (tmp_path / "b").write_bytes(b"abd")
    assert len({before, renamed, store.tree_digest(tmp_path)}) == 3


# Stages -----------------------------------------------------------------------------------------


@pytest.fixture
def stage(tmp_path: Path) -> StageDir:
    stage = StageDir(tmp_path / "search", "aaaa")
    stage.open()
    stage.write_shard("drops", 0, DROPS[:2], types.Drop)
    return stage


def test_a_stage_from_start_to_end(stage: StageDir) -> None:
    assert stage.shard("drops", 3).name == "drops-00003.parquet"
    assert stage.has("drops", 0) and not stage.has("drops", 1) and not stage.done
    stage.write_shard("drops", 1, DROPS[2:], types.Drop)
    store.write_bytes(stage.path / "adapter" / "weights.bin", b"abc")
    (stage.path / "adapter" / ".x.1-0.partial").write_bytes(b"half")
    stage.finish({"kept": 3, "loss": {"mean": 0.5}}, seconds=1.5)
    assert stage.done and stage.verify() == []
    assert stage.read("drops", types.Drop) == DROPS
    manifest = stage.manifest()
    assert manifest["fingerprint"] == "aaaa" and manifest["seconds"] == 1.5
    assert manifest["stats"] == {"kept": 3, "loss": {"mean": 0.5}}
    assert manifest["written"].endswith("+00:00")
    files = ["adapter/weights.bin", "drops-00000.parquet", "drops-00001.parquet"]
    assert list(manifest["files"]) == files
    assert manifest["files"][files[0]] == {
        "sha256": hashlib.sha256(b"abc").hexdigest(),
        "size": 3,
    }


def test_resume_keeps_shards_and_sweeps_leftovers(stage: StageDir) -> None:
    (stage.path / ".drops-00001.parquet.1-0.partial").write_bytes(b"half")
    again = StageDir(stage.path, "aaaa")
    again.open()
    assert names(stage.path) == ["drops-00000.parquet", "stage.json"]
    assert again.has("drops", 0) and not again.has("drops", 1)


def test_reopening_a_finished_stage_makes_it_unfinished(stage: StageDir) -> None:
    stage.finish({}, 0.0)
    stage.open()
    assert not stage.done and stage.has("drops", 0)


@pytest.mark.parametrize("finished", [True, False])
def test_other_work_is_moved_aside(stage: StageDir, finished: bool) -> None:
    if finished:
        stage.finish({}, 0.0)
        (stage.path / store.MARKER).unlink()  # the manifest alone tells as well
    aside = stage.path.with_name("search.old-aaaa")
    aside.mkdir()
    (aside / "older").touch()
    other = StageDir(stage.path, "bbbb")
    assert not other.done
    other.open()
    assert names(stage.path) == ["stage.json"]
    assert "drops-00000.parquet" in names(aside) and "older" not in names(aside)


@pytest.mark.parametrize("marker", [None, "{", "[]", '{"fingerprint": "../../x"}'])
def test_files_of_unknown_origin_are_moved_aside(tmp_path: Path, marker: str | None) -> None:
    stage = StageDir(tmp_path / "search", "aaaa")
    stage.path.mkdir()
    (stage.path / "drops-00000.parquet").touch()
    if marker is not None:
        (stage.path / store.MARKER).write_text(marker)
    stage.open()
    assert not stage.has("drops", 0)
    assert names(tmp_path) == ["search", "search.old-unknown"]


def test_links_that_lead_back_are_walked_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "top").symlink_to(tmp_path)
    (tmp_path / "also").symlink_to(tmp_path / "a" / "b")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    # `also/up/b` is `also` once more
    assert digests.list_files(tmp_path) == ["a/b/file", "also/file", "nowhere"]


def test_images_of_a_shard_are_its_own(stage: StageDir) -> None:
    for i in range(2):
        stage.write_shard("drops", i, DROPS, types.Drop)
        store.write_bytes(stage.images(i) / "a.png", b"abc")
        stage.seal(i, ["drops"])
    assert stage.names(1) == ["drops"]
    assert stage.sealed(0) and stage.sealed(1)
    (stage.images(1) / "a.png").write_bytes(b"abd")
    assert stage.sealed(0) and not stage.sealed(1)
    stage.clear([1])
    assert not stage.images(1).exists() and stage.images(0).exists()
    assert not stage.has("drops", 1) and stage.sealed(0)


def test_what_was_half_written_goes_when_a_manifest_is_restored(stage: StageDir) -> None:
    """A process was killed between the copy of the manifest and the manifest."""
    stage.finish({}, 1.0)
    (stage.path / store.MANIFEST).rename(half := stage.path / ".manifest.json.1-a.partial")
    assert stage.restore() and stage.done
    assert not half.exists()


def test_a_mark_that_names_no_files_seals_nothing(stage: StageDir) -> None:
    store.write_signed(stage.mark(0), {"fingerprint": "aaaa"})
    assert not stage.sealed(0)


def test_images_that_a_link_leads_out_are_not_cleared(stage: StageDir, tmp_path: Path) -> None:
    (tmp_path / "mine" / "00000").mkdir(parents=True)
    (stage.path / "images").symlink_to(tmp_path / "mine")
    with pytest.raises(StoreError, match="a link leads out of the stage"):
        stage.clear([0])
    assert (tmp_path / "mine" / "00000").is_dir()


def test_read_needs_every_shard(stage: StageDir) -> None:
    with pytest.raises(StoreError, match="no shard of 'dropped'"):
        stage.read("dropped", types.Drop)
    stage.write_shard("drops", 2, DROPS[2:], types.Drop)
    with pytest.raises(StoreError, match="drops-00001"):
        stage.read("drops", types.Drop)
    stage.write_shard("drops", 1, [], types.Drop)
    assert stage.read("drops", types.Drop) == DROPS
    stage.finish({}, 0.0)
    stage.shard("drops", 2).unlink()
    with pytest.raises(StoreError, match=r"drops-00002.*put it back if it was yours"):
        stage.read("drops", types.Drop)


def test_read_takes_shards_of_that_name_alone_and_in_order(tmp_path: Path) -> None:
    stage = StageDir(tmp_path, "aaaa")
    drops = [types.Drop(str(i), "s", "r") for i in range(12)]
    for i in reversed(range(12)):
        stage.write_shard("drops", i, [drops[i]], types.Drop)
    stage.write_shard("drops-extra", 0, DROPS, types.Drop)
    (tmp_path / ".drops-00012.parquet.1-0.partial").write_bytes(b"half")
    assert stage.read("drops", types.Drop) == drops


@pytest.mark.parametrize(("name", "i"), [("", 0), ("../x", 0), ("A", 0), ("a.b", 0), ("a", -1)])
def test_shard_names_stay_in_the_folder(tmp_path: Path, name: str, i: int) -> None:
    with pytest.raises(ValueError, match="no name for a shard"):
        StageDir(tmp_path, "aaaa").shard(name, i)


def test_verify_names_what_changed(stage: StageDir) -> None:
    store.write_bytes(stage.path / "gone", b"x")
    store.write_bytes(stage.path / "same", b"x")
    stage.finish({}, 0.0)
    shard = stage.shard("drops", 0)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1  # the size stays
    shard.write_bytes(data)
    (stage.path / "gone").unlink()
    (stage.path / "new").touch()
    assert stage.verify() == ["drops-00000.parquet", "gone"]
    assert stage.done


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fingerprint": "aaaa", "files": []}'])
def test_a_damaged_manifest(stage: StageDir, text: str) -> None:
    with pytest.raises(StoreError, match=r"manifest\.json: No such file"):
        stage.manifest()
    (stage.path / store.MANIFEST).write_text(text)
    with pytest.raises(StoreError, match=r"manifest\.json is"):
        stage.verify()


def test_a_full_disk_at_the_manifest_leaves_the_stage_unfinished(
    stage: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", fail_with(errno.ENOSPC))
    with pytest.raises(StoreError, match="free some space"):
        stage.finish({}, 0.0)
    monkeypatch.undo()
    assert not stage.done and stage.has("drops", 0)


# The lock ---------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from selfcal.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    source = str(Path(store.__file__).parents[1])
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    env = {**os.environ, "PYTHONPATH": source}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_kept_out(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(StoreError) as caught, RunLock(tmp_path / "run"):
        pass
    for part in (str(tmp_path / "run"), f"process {holder.pid} on {os.uname().nodename}", "wait"):
        assert part in str(caught.value)
    (tmp_path / "run" / ".lock-holder").unlink()  # it is for the message only
    with pytest.raises(StoreError, match="in use by another process"), RunLock(tmp_path / "run"):
        pass


def test_a_dead_process_does_not_block(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunLock(tmp_path / "run"):
        found = json.loads((tmp_path / "run" / ".lock-holder").read_text())
        assert found["pid"] == os.getpid()
    assert names(tmp_path / "run") == [".lock"]


def test_the_lock_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunLock(tmp_path), pytest.raises(StoreError), RunLock(tmp_path):
        pass
    monkeypatch.setattr(os, "replace", fail_with(errno.ENOSPC))
    with pytest.raises(StoreError, match="free some space"), RunLock(tmp_path):
        pass
    monkeypatch.undo()
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    with RunLock(tmp_path):
        pass


def test_a_run_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(StoreError, match="cannot lock"), RunLock(tmp_path / "run"):
        pass


def test_a_sampled_digest_sees_what_changes_in_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("a card")
    large = folder / "model.safetensors"
    large.write_bytes(bytes(digests._WHOLE + 1))
    before = store.sampled_digest(folder, ".json", ".safetensors")
    (folder / "README.md").write_text("another card")
    assert store.sampled_digest(folder, ".json", ".safetensors") == before
    seen = {before}
    with large.open("r+b") as file:  # its first and last byte are in blocks that are read
        for at in (0, digests._WHOLE):
            file.seek(at)
            file.write(b"x")
            file.flush()
            seen.add(store.sampled_digest(folder, ".json", ".safetensors"))
    (folder / "config.json").write_text("{ }")
    seen.add(store.sampled_digest(folder, ".json", ".safetensors"))
    assert len(seen) == 4
