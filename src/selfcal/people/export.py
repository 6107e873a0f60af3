"""What people said, as training data of a judge: one JSON object a line.

Most people's verdict counts; pairs of which nobody can tell, or people say different things equally
often, are left out and counted. Images lie in a folder beside the file, named by their content, and
are there only if the run's judge is shown images.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from selfcal.errors import SelfcalError, StoreError
from selfcal.people.agreement import Labelled, labelled
from selfcal.people.judged import Judged
from selfcal.people.labels import LabelFile, annotators
from selfcal.store import JSON, explained, file_digest, write_bytes, write_text
from selfcal.types import Sample, Verdict, question_text
from selfcal.view.status import command

_VERDICTS: Mapping[int, Verdict] = {1: "first", -1: "second", 0: "neutral"}
_NAME = 32
"""Hex digits of an image's name."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    file: Path
    verdicts: Mapping[Verdict, int]
    images: int
    left_out: Mapping[str, int]
    """By reason: `cannot-tell`, `tied`, `redone` (labels of pairs that the run has no longer)."""


def export(run: Path, file: Path, annotator: str | None = None) -> Exported:
    """Write people's verdicts as labelled pairs; `annotator`: one person's alone.

    Raises:
        StoreError: the file is there already, or the system refused.
        SelfcalError: there are no such labels, or they cannot be read.
    """
    if file.exists():
        raise StoreError(f"{file} exists; give another file, or delete it")
    judged, rows, redone = _rows(run, annotator)
    left_out = Counter(reason for row in rows if (reason := _reason(row)))
    kept = [row for row in rows if not _reason(row)]
    if not kept:
        raise SelfcalError(
            f"{run}: nothing to export: of {len(rows)} labelled pairs none has a verdict that most "
            f"people gave, and {redone} labels are of pairs that the run no longer has; label more"
        )
    images = _Images(file) if judged.recipe.judge.sees else None
    text = "".join(f"{json.dumps(_line(row, images), ensure_ascii=False)}\n" for row in kept)
    write_text(file, text)
    verdicts = Counter(_VERDICTS[row.majority] for row in kept if row.majority is not None)
    counts = {"cannot-tell": 0, "tied": 0, **left_out, "redone": redone}
    said = {reason: n for reason, n in counts.items() if n}
    return Exported(file, verdicts, 0 if images is None else images.count, said)


def _rows(run: Path, annotator: str | None) -> tuple[Judged, list[Labelled], int]:
    """The labelled pairs, and how many labels are of pairs that the run has no longer."""
    found = LabelFile(run).read().labels
    if not found:
        raise SelfcalError(f"{run} has no labels yet: {command('audit', run)}")
    labels = [x for x in found if annotator in (None, x.annotator)]
    if not labels:
        raise SelfcalError(
            f"{run}: {annotator!r} labelled nothing; labels are of {', '.join(annotators(found))}"
        )
    judged = Judged(run)
    rows = labelled(judged, labels)
    return judged, rows, len(labels) - sum(len(row.labels) for row in rows)


def _reason(row: Labelled) -> str:
    """Why a pair has no verdict; empty if it has one."""
    if not row.votes:
        return "cannot-tell"
    return "tied" if row.majority is None else ""


def _line(row: Labelled, images: _Images | None) -> dict[str, JSON]:
    pair, sample = row.pair, row.pair.sample
    assert row.majority is not None
    line: dict[str, JSON] = {
        "sample_id": sample.id,
        "question": question_text(sample),
        "facts": sample.facts,
        "first": pair.one.text,
        "second": pair.other.text,
        "verdict": _VERDICTS[row.majority],
        "iteration": pair.iteration,
        "first_index": pair.one.index,
        "second_index": pair.other.index,
        "annotators": len(row.votes),
    }
    return line if images is None else line | {"images": list(images.of(sample))}


class _Images:
    """Copies of images beside a file, each content once."""

    def __init__(self, file: Path) -> None:
        self._folder = file.with_name(f"{file.stem}-images")
        self._names: dict[str, str] = {}

    @property
    def count(self) -> int:
        """How many different ones."""
        return len(set(self._names.values()))

    def of(self, sample: Sample) -> Iterator[str]:
        """Paths of a sample's images relative to the file's folder, copied if they are not there.

        Raises:
            StoreError: one cannot be read, or the system refused.
        """
        for path in sample.images:
            if path not in self._names:
                self._names[path] = self._copied(Path(path))
            yield f"{self._folder.name}/{self._names[path]}"

    def _copied(self, path: Path) -> str:
        suffix = path.suffix.lower() if path.suffix[1:].isalnum() else ""
        name = f"{file_digest(path)[:_NAME]}{suffix}"
        if not (self._folder / name).exists():
            with explained("read", path):
                data = path.read_bytes()
            write_bytes(self._folder / name, data)
        return name
