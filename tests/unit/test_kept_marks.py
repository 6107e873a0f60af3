"""Marks of a run's responses: made once, kept, and only of the very responses they were made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from selfcal.evaluate.marking import FLAWS, Mark
from selfcal.evaluate.metrics import grade_answer
from selfcal.methods.parts import marks as parts
from selfcal.methods.parts.marks import mark_split
from selfcal.recipe import LocalMarker, Recipe
from selfcal.stage import Stage, Work
from selfcal.store import StageDir
from selfcal.types import Response, Sample

SAMPLES = [Sample(f"s{i}", f"{i}.png", "How many?", str(i)) for i in range(120)]
RECIPE = Recipe(name="marked").model_copy(
    update={"evaluate": Recipe(name="r").evaluate.model_copy(update={
        "marker": LocalMarker(model="none"),
    })}
)  # fmt: skip


class Asked(list[str]):
    """A marker that finds no flaw, and keeps the ids that it was asked about."""

    def mark(self, sample: Sample, response: str, reverse: bool = False) -> tuple[bool, ...]:
        if not reverse:
            self.append(sample.id)
        return tuple(False for _ in FLAWS)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    marker = Asked()

    @contextmanager
    def opened(*_: object) -> Iterator[Asked]:
        yield marker

    monkeypatch.setattr(parts, "marker_for", opened)
    return marker


@pytest.fixture
def saved() -> list[Path]:
    return []


@pytest.fixture
def work(tmp_path: Path, saved: list[Path]) -> Work:
    data, folder = StageDir(tmp_path / "data", "d"), StageDir(tmp_path / "eval/seed", "e")
    for own in (data, folder):
        own.open()
    data.write_shard("test", 0, SAMPLES, Sample)
    stage = Stage("eval/seed", ("data",), None, lambda work: {}, 1, "samples", "")
    said = Work(tmp_path, stage, folder, {"data": data}, 0)
    answered(said, [f"Answer: {s.answer}" for s in SAMPLES])
    return replace(said, saved=saved.extend)


def answered(work: Work, texts: Sequence[str]) -> None:
    made = [grade_answer(s, text) for s, text in zip(SAMPLES, texts, strict=True)]
    work.folder.write_shard("test", 0, made, Response)


def ids(numbers: range) -> list[str]:
    return sorted(f"s{i}" for i in numbers)


def test_marks_are_made_once_and_each_shard_is_saved(
    work: Work, asked: Asked, saved: list[Path]
) -> None:
    marks = mark_split(RECIPE, work, "test")
    assert list(marks) == [s.id for s in SAMPLES] and sorted(asked) == ids(range(120))
    assert saved == [work.folder.shard("marks-test", i) for i in range(3)]
    asked.clear()
    assert mark_split(RECIPE, work, "test") == marks
    assert asked == []


def test_damaged_marks_alone_are_made_anew(work: Work, asked: Asked) -> None:
    marks = mark_split(RECIPE, work, "test")
    asked.clear()
    shard = work.folder.shard("marks-test", 1)
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert mark_split(RECIPE, work, "test") == marks
    assert sorted(asked) == ids(range(50, 100))


def test_marks_of_another_response_say_nothing(work: Work, asked: Asked) -> None:
    mark_split(RECIPE, work, "test")
    asked.clear()
    answered(work, [*(f"Answer: {s.answer}" for s in SAMPLES[:-1]), "Answer: 7"])
    marks = mark_split(RECIPE, work, "test")
    assert sorted(asked) == ids(range(100, 120))
    assert marks["s119"] == work.folder.read_shard("marks-test", 2, Mark)[-1]


def test_marks_outlast_a_resume_of_the_measurement(work: Work, asked: Asked) -> None:
    """There are more shards of marks than of responses: they are not taken for left-overs."""

    def answer(items: Iterator[Sample]) -> Iterator[dict[str, list[Response]]]:
        for s in items:
            yield {"test": [grade_answer(s, f"Answer: {s.answer}")]}

    work.stream(SAMPLES, 60, {"test": Response}, answer)
    mark_split(RECIPE, work, "test")
    asked.clear()
    work.stream(SAMPLES, 60, {"test": Response}, answer)
    mark_split(RECIPE, work, "test")
    assert asked == []
