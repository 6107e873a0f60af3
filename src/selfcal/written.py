"""Rationales and facts that are there already: a file with a row a sample, in the teacher's place.

The file says what the teacher would have said; all else goes as with any teacher, so a row's RAP is
kept only in the RAP format and with the right answer. A sample without a row has no rationale, and
is dropped and counted as such.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from selfcal.data.rows import as_text
from selfcal.parquet import opened
from selfcal.rationale import HEADINGS
from selfcal.teacher import TeacherError
from selfcal.types import Sample

COLUMNS = ("id", "rationale", "answer", "facts")
_ROWS = 1024
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Written:
    response: str
    facts: str
    place: str


class FileTeacher:
    """A teacher whose responses and facts stand in a `.jsonl` or `.parquet` file."""

    def __init__(self, path: Path, columns: Mapping[str, str] | None = None) -> None:
        """Read the file.

        Args:
            path: a row a sample. `id` is the sample's; `rationale` and `answer` are its RAP, or
                `rationale` alone the whole response; `facts` is for a text judge. `id` and one of
                `rationale` and `facts` must be there.
            columns: what these are called, where otherwise.

        Raises:
            TeacherError: the file is missing or malformed, has no such column, or two rows for one
                sample.
        """
        self._path = path
        self._names = _names(columns or {})
        self._rows: dict[str, _Written] = {}
        for place, row in _read(path):
            self._check(row, place, columns or {})
            sample_id = self._text(row, "id", place)
            if not sample_id.strip():
                raise TeacherError(f"{path}: {place}: the id is empty; give each row a sample's id")
            if sample_id in self._rows:
                raise TeacherError(
                    f"{path}: {place}: sample {sample_id!r} has a row already, "
                    f"{self._rows[sample_id].place}; leave one of them out"
                )
            parts = [self._text(row, name, place) for name in ("rationale", "answer", "facts")]
            self._rows[sample_id] = _Written(_response(parts[0], parts[1]), parts[2], place)

    def write(self, sample: Sample) -> str:
        """The file's response to the sample; empty without a row."""
        row = self._rows.get(sample.id)
        return row.response if row else ""

    def write_facts(self, sample: Sample) -> str:
        """The file's facts; empty without a row."""
        row = self._rows.get(sample.id)
        return row.facts if row else ""

    def spoil(self, sample: Sample, response: str) -> str:
        """Nothing that a file can do."""
        raise self._unable(sample)

    def mend(self, sample: Sample, response: str) -> str:
        """Nothing that a file can do."""
        raise self._unable(sample)

    def restyle(self, sample: Sample, response: str) -> str:
        """Nothing that a file can do."""
        raise self._unable(sample)

    def _unable(self, sample: Sample) -> TeacherError:
        return TeacherError(
            f"teacher, sample {sample.id!r}: {self._path} has rationales and facts, and cannot "
            "rework a response; take a teacher of kind `endpoint` or `local`"
        )

    def _check(self, row: Row, place: str, given: Mapping[str, str]) -> None:
        """That the columns are there which a recipe names, and those that nothing goes without."""
        for name, column in self._names.items():
            if column not in row and (name in given or name == "id"):
                near = get_close_matches(column, list(row), n=1, cutoff=0.4)
                hint = f"did you mean {near[0]!r}?" if near else "correct teacher.columns"
                raise TeacherError(
                    f"{self._path}: {place}: there is no column {column!r} (for {name}; found: "
                    f"{', '.join(row) or 'nothing'}); {hint}"
                )
        if not {self._names["rationale"], self._names["facts"]} & set(row):
            raise TeacherError(
                f"{self._path}: {place}: there is neither `rationale` nor `facts` (found: "
                f"{', '.join(row)}); say in teacher.columns what they are called"
            )

    def _text(self, row: Row, name: str, place: str) -> str:
        value = row.get(self._names[name])
        if name == "id" and type(value) is int:
            value = str(value)
        if name == "answer":
            value = as_text(value)
        if not isinstance(value, str | None):
            raise TeacherError(
                f"{self._path}: {place}: {self._names[name]} is of type {type(value).__name__}; "
                "give text"
            )
        text = value or ""
        if not _is_whole(text):
            raise TeacherError(
                f"{self._path}: {place}: {self._names[name]} has half a character (a surrogate of "
                "UTF-16 alone), which cannot be written; correct the row"
            )
        return text if name == "id" else text.strip()  # an id is a sample's, to the letter


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _names(given: Mapping[str, str]) -> dict[str, str]:
    """What each column is called."""
    for name in given:
        if name not in COLUMNS:
            near = get_close_matches(name, COLUMNS, n=1, cutoff=0.4)
            hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(COLUMNS)}"
            raise TeacherError(f"teacher.columns: there is no `{name}`; {hint}")
    return {name: given.get(name, name) for name in COLUMNS}


def _response(rationale: str, answer: str) -> str:
    return HEADINGS.render(rationale, answer) if rationale and answer else rationale


def _read(path: Path) -> Iterator[tuple[str, Row]]:
    """Each row with its place, in words."""
    readers = {".jsonl": _lines, ".parquet": _table}
    reader = readers.get(path.suffix.lower())
    if reader is None or not path.is_file():
        what = "no such file" if reader else "unknown kind of file"
        raise TeacherError(f"teacher.path: {path}: {what}; give a {' or '.join(readers)} file")
    try:
        yield from reader(path)
    except OSError as error:
        raise TeacherError(f"{path}: cannot be read ({error}); check the file") from error


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise TeacherError(
                    f"{path}: line {number}: not readable as JSON ({error}); write one object a "
                    "line, in UTF-8"
                ) from error
            if not isinstance(row, dict):
                raise TeacherError(f"{path}: line {number}: no object; write one object a line")
            yield f"line {number}", row


def _table(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa

    number = 0
    try:
        with opened(path) as file:
            flat = [f.name for f in file.schema_arrow if not _is_bulky(f.type)]
            for batch in file.iter_batches(_ROWS, columns=flat):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pa.ArrowException, ValueError) as error:
        raise TeacherError(
            f"{path}: not readable as Parquet after row {number} ({error}); write the file anew"
        ) from error


def _is_bulky(kind: Any) -> bool:
    """Whether a column has images, or other things that no text is in."""
    import pyarrow as pa

    return bool(pa.types.is_nested(kind) or pa.types.is_binary(kind))
