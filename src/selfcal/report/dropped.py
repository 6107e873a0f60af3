"""What a run left out, and why, as the values of `data.html.j2`; and the samples that it has.

Every stage that leaves something out writes it down with a short reason. Drops stream by: of each
stage and reason the first ones are kept to be shown, and all are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from selfcal.page import cut
from selfcal.report.reasons import WORDS
from selfcal.report.record import Record
from selfcal.types import Drop, Judgment, Sample

SHOWN = 200
"""Rows of each stage and reason that are listed."""
_DETAIL = 300
"""Characters of a detail that are shown."""
_CATEGORIES = 200
"""Categories that are counted by name."""
_READ = {
    "duplicate": "the same question about the same images is there already",
    "empty-question": "there is no question",
    "empty-answer": "there is no answer",
    "answer-not-an-option": "the answer is none of the options",
    "text-too-long": "a text is too long to be read",
    "image-missing": "no image is named, or no file is there",
    "unsafe-path": "the image's path leads out of the folder of images",
    "image-broken": "the image is empty, cut off, or no image at all",
    "image-too-large": "the image has more pixels than data.max_pixels, or is too large a file",
    "image-too-small": "a side of the image is shorter than data.min_side",
    "image-too-slim": "one side of the image is more than 200 times as long as the other",
    "image-polyglot": "the file is a web page, an archive or a program beside being an image",
    "too-many-images": "there are more images than data.max_images",
    "later-turn": "a later turn of a conversation, which may lean on what was said before",
}
"""Reasons for which rows of the data are not read."""


@dataclass
class Reason:
    """What one stage left out for one reason."""

    name: str
    meaning: str
    total: int = 0
    rows: list[tuple[str, str]] = field(default_factory=list)
    """Sample and detail of the first ones."""

    def add(self, sample_id: str, detail: str) -> None:
        """Count one, and keep it if it is among the first."""
        self.total += 1
        if len(self.rows) < SHOWN:
            self.rows.append((sample_id, cut(detail, _DETAIL)))


@dataclass(frozen=True, slots=True)
class Left:
    """What one stage left out."""

    stage: str
    about: str
    total: int
    reasons: tuple[Reason, ...]
    """The most frequent first."""


def data_context(record: Record) -> dict[str, Any]:
    """What `data.html.j2` shows.

    Raises:
        StoreError: a file of the run is damaged.
    """
    splits, categories, hidden = _samples(record)
    left = [own for name in record.manifests if (own := _left(record, name))]
    unscored = [own for name in record.manifests if (own := _unscored(record, name))]
    leaked = record.stats("data").get("leaked_images")
    return {
        "splits": splits,
        "categories": categories,
        "hidden": hidden,
        "leaked": leaked if isinstance(leaked, int) else 0,
        "dropped": left,
        "unscored": unscored,
        "shown": SHOWN,
    }


def _samples(record: Record) -> tuple[list[str], list[tuple[str, list[int]]], int]:
    """Splits; samples of each category in each of them; categories that are not listed."""
    counts = record.stats("data").get("samples")
    splits = [s for s in counts if _has(record, "data", s)] if isinstance(counts, Mapping) else []
    found: dict[str, Counter[str]] = {}
    for split in splits:
        for sample in record.planned["data"].folder.records(split, Sample):
            found.setdefault(sample.category, Counter())[split] += 1
    order = sorted(found, key=lambda c: -found[c].total())
    rows = [(c or "(none)", [found[c][s] for s in splits]) for c in order[:_CATEGORIES]]
    sums = [sum(found[c][s] for c in found) for s in splits]
    return splits, [*rows, ("all", sums)], max(0, len(order) - _CATEGORIES)


def _has(record: Record, stage: str, name: str) -> bool:
    return any(file.startswith(f"{name}-0") for file in record.manifests[stage]["files"])


def _left(record: Record, stage: str) -> Left | None:
    if not _has(record, stage, "drops"):
        return None
    known = _READ | WORDS if stage != "data" else WORDS | _READ
    reasons: dict[str, Reason] = {}
    for drop in record.planned[stage].folder.records("drops", Drop):
        own = reasons.setdefault(drop.reason, Reason(drop.reason, known.get(drop.reason, "")))
        own.add(drop.sample_id, drop.detail)
    return _of(record, stage, reasons)


def _unscored(record: Record, stage: str) -> Left | None:
    """Comparisons that count for nothing: quarantined, and never taken for a tie."""
    said = record.stats(stage).get("unscored")
    if not isinstance(said, int) or not said or not _has(record, stage, "judgments"):
        return None
    reason = Reason("unscored", "the judge's answer could not be read, or it was to abstain")
    for g in _unread(record, stage):
        reason.add(g.sample_id, f"candidate {g.first} against candidate {g.second}")
    return _of(record, stage, {"unscored": reason})


def _unread(record: Record, stage: str) -> Iterator[Judgment]:
    found = record.planned[stage].folder.records("judgments", Judgment)
    return (g for g in found if g.verdict is None)


def _of(record: Record, stage: str, reasons: Mapping[str, Reason]) -> Left | None:
    total = sum(r.total for r in reasons.values())
    if not total:
        return None
    ordered = sorted(reasons.values(), key=lambda r: -r.total)
    return Left(stage, record.planned[stage].stage.about, total, tuple(ordered))
