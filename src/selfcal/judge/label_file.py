"""Labelled pairs that are there already: a file in, the R-Scorer's training data out.

A row is a pair of responses with a verdict, of people or of another run. Nothing in it is trusted:
what a row says of images must lie below the file's own folder, and a row that cannot be used ends
the reading with its line, as labels are few and dear. Only a pair of equal texts, and one that is
there twice, are left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from selfcal.data.lines import json_lines
from selfcal.data.rows import Row, kind_of
from selfcal.data.tables import parquet_rows
from selfcal.errors import SelfcalError
from selfcal.judge.quality import MIRROR
from selfcal.judge.training import held_out
from selfcal.types import Drop, LabelledPair, Verdict

REQUIRED = ("sample_id", "question", "first", "second", "verdict")
COLUMNS = (*REQUIRED, "facts", "images")
TO_TRAIN, TO_HOLD_OUT = 100, 30
"""Pairs below which a judge learns little, and the check of it says little."""
_STAGE = "judge/labels"


class LabelFileError(SelfcalError):
    """A file of labels cannot be used: the text names file, line and way out."""


@dataclass(frozen=True, slots=True)
class LabelFile:
    """What a file of labels holds."""

    pairs: tuple[LabelledPair, ...]
    """In the file's order; paths of images are absolute."""
    drops: tuple[Drop, ...]
    """`equal-texts` and `twice`."""


def read_label_file(path: Path, sees: bool = False) -> LabelFile:
    """The labelled pairs of a .jsonl or .parquet file.

    Args:
        path: the file; its columns are `COLUMNS`, and others are ignored.
        sees: whether they are for a judge that is shown the images, which must be there then; any
            other goes by the facts.

    Raises:
        LabelFileError: the file or one of its rows cannot be used, or two rows contradict.
        DataError: the file is damaged.
    """
    pairs: list[LabelledPair] = []
    drops: list[Drop] = []
    known: dict[tuple[str, ...], tuple[Verdict, str]] = {}
    for row in _rows(path):
        pair = _pair(path, row, sees)
        if _words(pair.first) == _words(pair.second):
            drops.append(Drop(pair.sample_id, _STAGE, "equal-texts", row.place))
            continue
        key, verdict = _turned(pair)
        said, where = known.setdefault(key, (verdict, row.place))
        if said != verdict:
            raise _refused(
                path, row, f"its verdict on this pair is not that of {where}; keep one of the two"
            )
        if where != row.place:
            drops.append(Drop(pair.sample_id, _STAGE, "twice", f"{row.place}, as {where}"))
            continue
        pairs.append(pair)
    if pairs and not sees and not any(p.facts.strip() for p in pairs):
        raise LabelFileError(
            f"{path}: no pair (of {len(pairs)}) has facts, and facts are all that a text judge "
            "goes by; fill the column `facts`, or take a judge that is shown the images "
            "(judge.sees)"
        )
    return LabelFile(tuple(pairs), tuple(drops))


def split_labels(
    path: Path, pairs: Sequence[LabelledPair], share: float
) -> tuple[list[LabelledPair], list[LabelledPair]]:
    """Training pairs, and those of a share of the samples, held out.

    Raises:
        LabelFileError: there are too few for both.
    """
    train, test = held_out(pairs, share)
    samples = len({p.sample_id for p in pairs})
    if not train or not test:
        lacking = "to train on" if not train else "to hold out"
        raise LabelFileError(
            f"{path}: its pairs ({len(pairs)}, samples: {samples}) leave none {lacking} "
            f"(judge.holdout is {share:g}, and a sample's pairs stay together); label pairs of "
            "more samples"
        )
    if not any(p.verdict != "neutral" for p in train):
        raise LabelFileError(
            f"{path}: every pair to train on ({len(train)}) is neutral, which teaches nothing; "
            "label pairs of which one is better"
        )
    return train, test


def few_labels(train: int, heldout: int) -> str:
    """A warning where labelled pairs are too few for a judge, with the way out; else nothing."""
    if train >= TO_TRAIN and heldout >= TO_HOLD_OUT:
        return ""
    return (
        f"Few labels for the judge: pairs to train on {train:,}, held out {heldout:,}. With fewer "
        f"than about {TO_TRAIN} it hardly learns, with fewer than {TO_HOLD_OUT} held out nobody "
        "can tell. Way out: label pairs of more samples (selfcal audit RUN, then --export FILE; "
        "elsewhere judge.samples), or train longer (judge.train.epochs)."
    )


def _rows(path: Path) -> Iterator[Row]:
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".parquet") or not path.is_file():
        what = "no such file" if kind in (".jsonl", ".parquet") else "unknown kind of file"
        raise LabelFileError(f"judge.labels: {path}: {what}; give a .jsonl or .parquet file")
    try:
        yield from json_lines(path) if kind == ".jsonl" else parquet_rows(path, COLUMNS)
    except OSError as error:
        raise LabelFileError(f"{path}: cannot be read ({error}); check the file") from error


def _pair(path: Path, row: Row, sees: bool) -> LabelledPair:
    """A row, checked."""
    for name in REQUIRED if sees else (*REQUIRED, "facts"):
        if name not in row.cells:
            near = get_close_matches(name, map(str, row.cells), n=1, cutoff=0.4)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise _refused(path, row, f"there is no {name!r}{hint}; give each row {_listed(sees)}")
    verdict = row.cells["verdict"]
    if verdict not in get_args(Verdict):
        raise _refused(
            path, row, f"the verdict is {verdict!r:.40}; give first, second or neutral, and leave "
            "out pairs without a verdict",
        )  # fmt: skip
    texts = {name: _text(path, row, name) for name in (*REQUIRED[:4], "facts")}
    for name in REQUIRED[:4]:
        if not texts[name].strip():
            raise _refused(path, row, f"{name!r} is empty; fill it, or leave the row out")
    return LabelledPair(**texts, verdict=verdict, images=_images(path, row, sees))


def _text(path: Path, row: Row, name: str) -> str:
    value = row.cells.get(name)
    if name == "sample_id" and type(value) is int:
        value = str(value)
    if not isinstance(value, str | None):
        raise _refused(path, row, f"{name!r} is {kind_of(value)}; give text")
    text = value or ""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _refused(
            path, row, f"{name!r} has half a character (a surrogate of UTF-16 alone), which cannot "
            "be written; correct the row",
        ) from None  # fmt: skip
    return text


def _images(path: Path, row: Row, sees: bool) -> tuple[str, ...]:
    """The absolute paths of a row's images."""
    given: Any = row.cells.get("images") or []
    if not isinstance(given, list) or not all(isinstance(i, str) and i for i in given):
        raise _refused(path, row, "'images' is no list of paths; give one such as [\"a.png\"]")
    if sees and not given:
        raise _refused(
            path, row, "there are no images, and the judge is to see (judge.sees); list their "
            "paths under 'images', or take a text judge",
        )  # fmt: skip
    folder = path.resolve().parent
    found = []
    for name in given:
        try:
            image = (folder / name).resolve()
            there = image.is_file()
        except (OSError, ValueError) as error:  # a name with a zero byte, or far too long
            raise _refused(path, row, f"image {name!r:.80}: no path ({error})") from error
        if not image.is_relative_to(folder):
            raise _refused(
                path, row, f"image {name!r:.80} lies outside of {folder}; put the file of labels "
                "above its images",
            )  # fmt: skip
        if sees and not there:
            raise _refused(path, row, f"image {name!r:.80}: there is no {image}; put it there")
        found.append(str(image))
    return tuple(found)


def _turned(pair: LabelledPair) -> tuple[tuple[str, ...], Verdict]:
    """What tells a pair from others in either order, and its verdict in that order."""
    ordered = pair.first <= pair.second
    texts = (pair.first, pair.second) if ordered else (pair.second, pair.first)
    verdict: Verdict = pair.verdict if ordered else MIRROR[pair.verdict]
    return (pair.sample_id, pair.question, *texts), verdict


def _words(text: str) -> str:
    return " ".join(text.split())


def _listed(sees: bool) -> str:
    names = (*REQUIRED, "images" if sees else "facts")
    return ", ".join(names[:-1]) + f" and {names[-1]}"


def _refused(path: Path, row: Row, why: str) -> LabelFileError:
    return LabelFileError(f"{path}: {row.place}: {why}")
