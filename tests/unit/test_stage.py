"""`Work.map` and `Work.stream`: shards of the right size, each made once, whatever fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from selfcal.errors import SelfcalError, StoreError
from selfcal.methods.parts.base import BySample
from selfcal.stage import Stage, Work
from selfcal.store import StageDir, read_records, write_bytes
from selfcal.types import Drop, Judgment, Sample

Made = Iterator[Mapping[str, list[Drop]]]
ITEMS = list("abcdefgh")
KINDS = {"drops": Drop, "vowels": Drop}


def drop(item: str) -> Drop:
    return Drop(item, "stage", "reason")


def even(items: Iterator[str]) -> Made:
    """One record for each item, and a second one for every vowel."""
    for item in items:
        yield {"drops": [drop(item)]} | ({"vowels": [drop(item)]} if item in "aeiou" else {})


@pytest.fixture
def told() -> list[tuple[int, int]]:
    return []


@pytest.fixture
def work(tmp_path: Path, told: list[tuple[int, int]]) -> Work:
    folder = StageDir(tmp_path / "stage", "fingerprint")
    folder.open()
    stage = Stage("stage", (), None, lambda work: {}, len(ITEMS), "items", "")
    return Work(tmp_path, stage, folder, {}, 0, lambda *at: told.append(at))


def shards(work: Work, name: str = "drops") -> list[str]:
    """The items of every shard, in a string each; of those that are there."""
    marks = sorted(p.name for p in (work.out / "shards").glob("*"))
    return ["".join(d.sample_id for d in read(work, name, int(mark[:5]))) for mark in marks]


def read(work: Work, name: str, i: int) -> Sequence[Drop]:
    return read_records(work.folder.shard(name, i), Drop)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(3, ["abc", "def", "gh"]), (4, ["abcd", "efgh"]), (8, ["abcdefgh"]), (9, ["abcdefgh"])],
)
def test_shards_have_the_size_asked_for(work: Work, size: int, expected: list[str]) -> None:
    work.stream(ITEMS, size, KINDS, even)
    assert shards(work) == expected
    assert "".join(shards(work, "vowels")) == "ae"


def test_progress_is_told_item_by_item(work: Work, told: list[tuple[int, int]]) -> None:
    work.stream(ITEMS, 3, KINDS, even)
    assert told == [(i, 8) for i in range(9)]


def test_without_items_there_is_one_empty_shard(work: Work) -> None:
    work.stream([], 3, KINDS, even)
    assert [p.name for p in (work.out / "shards").iterdir()] == ["00000.json"]
    assert shards(work) == shards(work, "vowels") == [""]


def test_a_stream_gives_the_same_shards_as_a_map(work: Work, tmp_path: Path) -> None:
    work.stream(ITEMS, 3, KINDS, even)
    streamed = {p.name: p.read_bytes() for p in work.out.glob("*.parquet")}
    other = StageDir(tmp_path / "other", "fingerprint")
    other.open()
    Work(tmp_path, work.stage, other, {}, 0).map(
        ITEMS,
        3,
        lambda part: {
            "drops": (Drop, [drop(i) for i in part]),
            "vowels": (Drop, [drop(i) for i in part if i in "aeiou"]),
        },
    )
    assert {p.name: p.read_bytes() for p in other.path.glob("*.parquet")} == streamed


def test_images_of_a_shard_last_before_its_mark(work: Work) -> None:
    saved: list[str] = []

    def drawn(part: Sequence[str]) -> Mapping[str, tuple[type[Drop], list[Drop]]]:
        i = ITEMS.index(part[0]) // 4
        for item in part:
            write_bytes(work.folder.images(i) / f"{item}.png", item.encode())
        return {"drops": (Drop, [drop(item) for item in part])}

    def tell(files: Sequence[Path]) -> None:
        saved.extend(path.relative_to(work.out).as_posix() for path in files)

    replace(work, saved=tell).map(ITEMS, 4, drawn)
    images = [f"images/00000/{item}.png" for item in "abcd"]
    assert saved[:6] == [*images, "drops-00000.parquet", "shards/00000.json"]
    (work.folder.images(1) / "e.png").unlink()
    (work.folder.images(1) / "leftover.png").touch()
    saved.clear()
    replace(work, saved=tell).map(ITEMS, 4, drawn)
    images = [f"images/00001/{item}.png" for item in "efgh"]
    assert saved == [*images, "drops-00001.parquet", "shards/00001.json"]


class Failing(Exception):
    pass


def failing_at(bad: str, seen: list[str]) -> Callable[[Iterator[str]], Made]:
    def work(items: Iterator[str]) -> Made:
        for item in items:
            seen.append(item)
            if item == bad:
                raise Failing(item)
            yield from even(iter(item))

    return work


def test_a_failure_keeps_the_shards_before_it_and_work_resumes_after_them(
    work: Work, told: list[tuple[int, int]]
) -> None:
    with pytest.raises(Failing):
        work.stream(ITEMS, 3, KINDS, failing_at("e", []))
    assert shards(work) == ["abc"]
    told.clear()
    seen: list[str] = []
    work.stream(ITEMS, 3, KINDS, failing_at("none", seen))
    assert seen == list("defgh")
    assert shards(work) == ["abc", "def", "gh"]
    assert told == [(i, 8) for i in range(3, 9)]


def test_only_what_is_missing_is_worked_on(work: Work) -> None:
    """A shard in the middle, too, and a last one that is shorter."""
    work.stream(ITEMS, 3, KINDS, even)
    for gone in (1, 2):
        work.folder.mark(gone).unlink()
        seen: list[str] = []
        work.stream(ITEMS, 3, KINDS, failing_at("none", seen))
        assert "".join(seen) == ["abc", "def", "gh"][gone]
    assert shards(work) == ["abc", "def", "gh"]


def test_nothing_is_worked_on_when_all_is_there(work: Work, told: list[tuple[int, int]]) -> None:
    work.stream(ITEMS, 3, KINDS, even)
    told.clear()

    def nothing(items: Iterator[str]) -> Made:
        raise AssertionError("work was asked for")
        yield {}

    work.stream(ITEMS, 3, KINDS, nothing)
    assert told == [(8, 8)]


def test_shards_of_another_size_are_not_gone_on_with(work: Work) -> None:
    """As another selfcal may have left them: of fewer items, and so more of them."""
    work.stream(ITEMS, 2, KINDS, even)
    work.folder.mark(1).unlink()
    assert len(list(work.out.glob("drops-*.parquet"))) == 4
    work.stream(ITEMS, 3, KINDS, even)
    assert shards(work) == ["abc", "def", "gh"]
    assert sorted(p.name for p in (work.out / "shards").iterdir()) == [
        "00000.json", "00001.json", "00002.json",
    ]  # fmt: skip
    work.stream(ITEMS, 8, KINDS, even)
    assert shards(work) == ["abcdefgh"]


def test_items_are_taken_as_the_work_needs_them(work: Work) -> None:
    """Work that reads ahead gets items of later shards without a pause."""
    ahead: list[int] = []

    def eager(items: Iterator[str]) -> Made:
        taken = list(items)
        ahead.append(len(list((work.out / "shards").glob("*"))))
        yield from even(iter(taken))

    work.stream(ITEMS, 3, KINDS, eager)
    assert ahead == [0]
    assert shards(work) == ["abc", "def", "gh"]


def test_work_that_gives_too_little_is_named(work: Work) -> None:
    with pytest.raises(SelfcalError, match="stage stage: there is no result for item 3 of shard 0"):
        work.stream(ITEMS, 3, KINDS, lambda items: even(iter([next(items), next(items)])))


# --- records sample by sample ---------------------------------------------------------------


def judged(work: Work, *shards: str) -> StageDir:
    """A folder of judgments whose `second` counts them, shard by shard."""
    numbers = count()
    for i, ids in enumerate(shards):
        records = [Judgment(s, 0, next(numbers), "first", 1.0, 0.0, 0.0) for s in ids]
        work.folder.write_shard("judgments", i, records, Judgment)
    return work.folder


def test_records_come_by_sample_in_any_order_and_some_have_none(work: Work) -> None:
    found = BySample(judged(work, "aab", "", "bddd", "e"), "judgments", Judgment)
    assert list(found) == ["a", "b", "d", "e"]
    assert "c" not in found
    for sample, expected in [("d", [4, 5, 6]), ("a", [0, 1]), ("c", []), ("b", [2, 3]), ("e", [7])]:
        own = found.of(sample)
        assert [g.second for g in own] == expected
        assert {g.sample_id for g in own} <= {sample}


def test_a_shard_is_read_when_its_samples_are_wanted_and_once_in_turn(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = BySample(judged(work, "aab", "cc", "d"), "judgments", Judgment)
    read, seen = StageDir.read_shard, list[int]()

    def reading(self: StageDir, name: str, i: int, kind: type[Judgment]) -> list[Judgment]:
        seen.append(i)
        return read(self, name, i, kind)

    monkeypatch.setattr(StageDir, "read_shard", reading)
    for sample in "abd":
        found.of(sample)
    assert seen == [0, 2]


def test_records_of_an_unknown_sample_are_an_error(work: Work) -> None:
    folder = judged(work, "a", "xb")
    with pytest.raises(StoreError, match="sample 'x' has judgments, but the run has no such"):
        BySample(folder, "judgments", Judgment, "ab")


def test_records_that_come_one_by_one_are_written_shard_by_shard(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfcal.stage._WRITTEN", 3)
    work.folder.write_shard("drops", 5, [drop("old")], Drop)  # of a run that was killed
    saved: list[str] = []
    told = replace(work, saved=lambda files: saved.extend(f.name for f in files))
    out = told.writer("drops", Drop)
    for item in ITEMS:
        out.add(drop(item))
    assert saved == ["drops-00000.parquet", "drops-00001.parquet"]
    out.end()
    assert ["".join(d.sample_id for d in read(work, "drops", i)) for i in range(3)] == [
        "abc", "def", "gh",
    ]  # fmt: skip
    assert sorted(p.name for p in work.out.glob("*.parquet")) == saved
    assert work.written("drops", Drop) == 8
    assert work.drop_counts() == {"reason": 8}


def test_without_records_there_is_one_empty_shard_of_them(work: Work) -> None:
    work.writer("drops", Drop).end()
    assert read(work, "drops", 0) == []
    assert work.drop_counts() == {}


def test_samples_come_with_paths_in_the_run_and_no_more_than_wanted(work: Work) -> None:
    every = [
        Sample("a", "data/a.png", "?", "2"),
        Sample("b", "/elsewhere/b.png", "?", "2", more_images=("data/c.png",)),
        Sample("c", "data/d.png", "?", "2"),
    ]
    work.write("rft", every, Sample)
    own = replace(work, inputs={"data": work.folder})
    found = own.samples("data", "rft", 2)
    assert [s.images for s in found] == [
        (str(work.run / "data/a.png"),),
        ("/elsewhere/b.png", str(work.run / "data/c.png")),
    ]
    assert len(own.samples("data", "rft")) == 3
