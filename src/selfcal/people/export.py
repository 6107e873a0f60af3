"""What people said, as training data of a judge: one JSON object a line.

Most people's verdict counts, of two texts that came up several times (in two iterations, say) over
all of them; pairs of which nobody can tell, or people say different things equally often, are left
out and counted. Images lie in a folder beside the file, named by their content, and are there only
if the run's judge is shown images.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfcal.errors import SelfcalError, StoreError
from selfcal.people.agreement import Labelled, labelled, most_said
from selfcal.people.images import image_path
from selfcal.people.judged import Judged, Pair
from selfcal.people.labels import LabelFile, annotators, folded
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
    if file.suffix.lower() != ".jsonl":
        raise SelfcalError(f"--export {file}: labels are read out of .jsonl files; name it so")
    if file.exists():
        raise StoreError(f"{file} exists; give another file, or delete it")
    judged, rows, redone = _rows(run, annotator)
    merged = _merged(rows)
    left_out = Counter(reason for row in merged if (reason := row.reason))
    kept = [row for row in merged if not row.reason]
    if not kept:
        raise SelfcalError(
            f"{run}: nothing to export: of {len(merged)} labelled pairs none has a verdict that "
            f"most people gave, and {redone} labels are of pairs that the run no longer has; label "
            "more"
        )
    images = _Images(run, file) if judged.recipe.judge.sees else None
    text = "".join(f"{json.dumps(_line(row, images), ensure_ascii=False)}\n" for row in kept)
    write_text(file, text)
    verdicts = Counter(_VERDICTS[row.sign] for row in kept if row.sign is not None)
    counts = {"cannot-tell": 0, "tied": 0, **left_out, "redone": redone}
    said = {reason: n for reason, n in counts.items() if n}
    return Exported(file, verdicts, 0 if images is None else images.count, said)


def _rows(run: Path, annotator: str | None) -> tuple[Judged, list[Labelled], int]:
    """The labelled pairs, and how many labels are of pairs that the run has no longer."""
    found = LabelFile(run).read().labels
    if not found:
        Judged(run)  # there may be nothing to label
        raise SelfcalError(f"{run} has no labels yet: {command('audit', run)}")
    own = None if annotator is None else folded(annotator)
    labels = [x for x in found if own in (None, folded(x.annotator))]
    if not labels:
        raise SelfcalError(
            f"{run}: {annotator!r} labelled nothing; labels are of {', '.join(annotators(found))}"
        )
    judged = Judged(run)
    rows = labelled(judged, labels)
    return judged, rows, len(labels) - sum(len(row.labels) for row in rows)


@dataclass(frozen=True, slots=True)
class _Merged:
    """All that was said of two texts of a sample."""

    pair: Pair
    """Where they came up first."""
    votes: tuple[tuple[str, int], ...]
    """Who said so, and the sign, + for the pair's one."""

    @property
    def sign(self) -> int | None:
        """What was said most often (`most_said`)."""
        return most_said(sign for _, sign in self.votes)

    @property
    def reason(self) -> str:
        """Why there is no verdict; empty if there is one."""
        if not self.votes:
            return "cannot-tell"
        return "tied" if self.sign is None else ""


def _merged(rows: Iterable[Labelled]) -> list[_Merged]:
    """Rows of the same two texts of a sample as one: those who read them refuse contradictions."""
    same: dict[tuple[str, ...], list[Labelled]] = defaultdict(list)
    for row in rows:
        same[row.pair.sample.id, *sorted((row.pair.one.text, row.pair.other.text))].append(row)

    def votes(own: Sequence[Labelled]) -> Iterator[tuple[str, int]]:
        for row in own:
            turned = row.pair.one.text != own[0].pair.one.text
            yield from ((who, -sign if turned else sign) for who, sign in row.votes.items())

    return [_Merged(own[0].pair, tuple(votes(own))) for own in same.values()]


def _line(row: _Merged, images: _Images | None) -> dict[str, JSON]:
    pair, sample = row.pair, row.pair.sample
    assert row.sign is not None
    line: dict[str, JSON] = {
        "sample_id": sample.id,
        "question": question_text(sample),
        "facts": sample.facts,
        "first": pair.one.text,
        "second": pair.other.text,
        "verdict": _VERDICTS[row.sign],
        "iteration": pair.iteration,
        "first_index": pair.one.index,
        "second_index": pair.other.index,
        "annotators": len({who for who, _ in row.votes}),
    }
    return line if images is None else line | {"images": list(images.of(sample))}


class _Images:
    """Copies of images beside a file, each content once."""

    def __init__(self, run: Path, file: Path) -> None:
        self._run = run
        self._folder = file.with_name(f"{file.stem}-images")
        self._names: dict[str, str] = {}

    @property
    def count(self) -> int:
        """How many different ones."""
        return len(set(self._names.values()))

    def of(self, sample: Sample) -> Iterator[str]:
        """Paths of a sample's images relative to the file's folder, copied if they are not there.

        Raises:
            ImageError: one is missing, no image, or named by a path that leads out of the run.
            StoreError: the system refused.
        """
        for image in sample.images:
            if image not in self._names:
                self._names[image] = self._copied(image_path(self._run, image))
            yield f"{self._folder.name}/{self._names[image]}"

    def _copied(self, path: Path) -> str:
        suffix = path.suffix.lower() if path.suffix[1:].isalnum() else ""
        name = f"{file_digest(path)[:_NAME]}{suffix}"
        if not (self._folder / name).exists():
            with explained("read", path):
                data = path.read_bytes()
            write_bytes(self._folder / name, data)
        return name
