"""A data file in, before anything runs; what is in it, what would be left out, and why, comes out.

A folder with files by the names of splits gets a report for each of them, and what is more: which
images stand on both sides of training and measurement.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from selfcal.data.door import DataFile, open_data, split_files
from selfcal.data.llava import Turns
from selfcal.data.pictures import Checker, Rules
from selfcal.data.read import Kept, read
from selfcal.data.rows import DataError
from selfcal.data.seen import Seen
from selfcal.data.sources import twin_key
from selfcal.image import Picture
from selfcal.rationale import normalize_answer
from selfcal.types import Drop, Sample

EXAMPLES = 3
_NAMES = 1000
"""Categories that are counted by name; more of them are counted together."""
_OTHERS = "(others)"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_LEAKS = (("rft", "dev"), ("rft", "test"), ("calibration", "dev"), ("calibration", "test"),
          ("dev", "test"))  # fmt: skip
"""Splits that must not share images. Those of training may."""


@dataclass
class Reason:
    """Why rows are left out."""

    rows: int
    first: str
    """Where the first of them stands, and its image."""


@dataclass
class Sizes:
    """Widths or heights, in pixels."""

    least: int
    median: int
    most: int


@dataclass
class Images:
    """The images of the samples."""

    different: int = 0
    """By content."""
    width: Sizes | None = None
    height: Sizes | None = None
    modes: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    animated: int = 0
    """Of which the first frame is taken."""
    turned: int = 0
    """By their EXIF orientation."""
    most: int = 0
    """Images of one sample."""
    several: int = 0
    """Samples with more than one."""


@dataclass
class FileReport:
    """What is in one file."""

    path: str
    split: str = ""
    """Where it is one of several."""
    format: str = ""
    problem: str = ""
    """Why it cannot be read to its end; what stands below counts up to there."""
    rows: int = 0
    kept: int = 0
    categories: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    """Kinds of questions."""
    images: Images = field(default_factory=Images)
    duplicates: int = 0
    """Samples that ask what an earlier one asks of the same images."""
    drops: dict[str, Reason] = field(default_factory=dict)
    examples: list[Sample] = field(default_factory=list)


@dataclass
class Leak:
    """Images that two splits share."""

    splits: tuple[str, str]
    images: int
    first: str
    """A sample of the first split with such an image."""


@dataclass
class DataReport:
    """What is in a file, or in the files of a folder."""

    files: list[FileReport]
    leaks: list[Leak] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether every file can be read and has a sample."""
        return bool(self.files) and all(f.kept and not f.problem for f in self.files)


def inspect_data(
    path: Path,
    images: Path | None = None,
    columns: Mapping[str, str] | None = None,
    turns: Turns = "first",
    rules: Rules | None = None,
) -> DataReport:
    """Read a file, or the files of a folder that are called after splits, and say what is there.

    Raises:
        DataError: there is no such file, or its format is not known.
    """
    splits = split_files(path) if path.is_dir() else {}
    rules = rules or Rules()
    if not splits:
        file = open_data(path, images, columns, turns)
        return DataReport([_inspect(file, "", rules, _Leaks({}))])
    leaks = _Leaks({split: Seen() for split in splits})
    reports: dict[str, FileReport] = {}
    for split in reversed(splits):  # so that a sample that is trained on can be named in a leak
        try:
            file = open_data(splits[split], images, columns, turns)
        except DataError as error:
            reports[split] = FileReport(str(splits[split]), split, problem=str(error))
            continue
        if split != "calibration":
            file = replace(file, answered=True)
        reports[split] = _inspect(file, split, rules, leaks)
    return DataReport([reports[split] for split in splits], leaks.found())


def question_kind(sample: Sample) -> str:
    """What kind of answer a question wants."""
    if sample.choices:
        return "multiple choice"
    answer = normalize_answer(sample.answer)
    if answer in ("yes", "no"):
        return "yes/no"
    if _NUMBER.fullmatch(answer):
        return "number"
    return "open" if answer else "no answer"


def _inspect(file: DataFile, split: str, rules: Rules, leaks: _Leaks) -> FileReport:
    report = FileReport(str(file.path), split, file.format)
    tally = _Tally(report)
    with Checker(rules, tally.looked) as checker:
        try:
            for found in read(file, checker, embedded=Path("embedded")):
                tally.add(found)
                if isinstance(found, Kept):
                    leaks.add(split, found)
        except DataError as error:
            report.problem = str(error)
    tally.end()
    return report


class _Tally:
    """Counts what comes by into a report."""

    def __init__(self, report: FileReport) -> None:
        self._report = report
        self._categories, self._kinds = Counter[str](), Counter[str]()
        self._modes, self._formats = Counter[str](), Counter[str]()
        self._widths, self._heights = array("I"), array("I")
        self._twins, self._contents = Seen(), Seen()
        self._examples: dict[str, list[Sample]] = {}

    def looked(self, picture: Picture) -> None:
        """An image that is looked at for the first time."""
        self._widths.append(picture.width)
        self._heights.append(picture.height)
        self._modes[picture.mode] += 1
        self._formats[picture.format] += 1
        self._report.images.animated += picture.animated
        self._report.images.turned += picture.turned

    def add(self, found: Kept | Drop) -> None:
        """A row."""
        self._report.rows += 1
        if isinstance(found, Drop):
            reason = self._report.drops.setdefault(found.reason, Reason(0, found.detail))
            reason.rows += 1
            return
        sample, images = found.sample, self._report.images
        self._report.kept += 1
        many = len(self._categories) >= _NAMES and sample.category not in self._categories
        self._categories[_OTHERS if many else sample.category] += 1
        kind = question_kind(sample)
        self._kinds[kind] += 1
        for content in found.contents:
            self._contents.add(content)
        images.most = max(images.most, len(found.contents))
        images.several += len(found.contents) > 1
        self._report.duplicates += not self._twins.add(twin_key(sample, found.contents))
        if len(own := self._examples.setdefault(kind, [])) < EXAMPLES:
            own.append(sample)

    def end(self) -> None:
        """All rows have come by."""
        report, images = self._report, self._report.images
        report.categories = dict(self._categories.most_common())
        report.kinds = dict(self._kinds.most_common())
        report.drops = dict(sorted(report.drops.items(), key=lambda d: -d[1].rows))
        report.examples = _varied(self._examples)
        images.different = len(self._contents)
        images.modes = dict(self._modes.most_common())
        images.formats = dict(self._formats.most_common())
        if self._widths:
            images.width, images.height = _sizes(self._widths), _sizes(self._heights)


def _varied(examples: Mapping[str, Sequence[Sample]]) -> list[Sample]:
    """A few samples, of as many kinds as there are."""
    rounds = [own[i] for i in range(EXAMPLES) for own in examples.values() if i < len(own)]
    return rounds[:EXAMPLES]


def _sizes(values: Sequence[int]) -> Sizes:
    ordered = sorted(values)
    return Sizes(ordered[0], ordered[len(ordered) // 2], ordered[-1])


class _Leaks:
    """Images that come by in one split after they came by in another."""

    def __init__(self, seen: dict[str, Seen]) -> None:
        self._seen = seen
        self._counted = {pair: Seen() for pair in _LEAKS if set(pair) <= seen.keys()}
        self._first: dict[tuple[str, str], str] = {}

    def add(self, split: str, kept: Kept) -> None:
        """A sample of a split; those splits come first that others must not share images with."""
        for content in kept.contents if split in self._seen else ():
            for pair, counted in self._counted.items():
                if pair[0] == split and content in self._seen[pair[1]]:
                    counted.add(content)
                    self._first.setdefault(pair, kept.sample.id)
            self._seen[split].add(content)

    def found(self) -> list[Leak]:
        """All pairs of splits that share images."""
        return [
            Leak(pair, len(counted), self._first[pair])
            for pair, counted in self._counted.items()
            if pair in self._first
        ]
