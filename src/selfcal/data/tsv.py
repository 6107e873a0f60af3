"""VLMEvalKit's tables: tab-separated text with images in base64.

Options stand in columns A, B, C, ...; an image that several rows share stands in one of them, and
the others name that row's index. To follow such a reference without holding all images, the file is
read beforehand for the places of the rows that are named.
"""

from __future__ import annotations

import base64
import binascii
import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any, BinaryIO

from selfcal.data.rows import ROW_BYTES, DataError, Row, decoded, listed, too_long

_REFERENCE = 64
"""A cell of at most so many characters is no image but the index of another row."""


def tsv_rows(path: Path) -> Iterator[Row]:
    """Every row of a table.

    Raises:
        DataError: the table is malformed.
    """
    images = _Images(path)
    for number, (_, cells) in enumerate(_records(path), start=1):
        yield Row(f"row {number}", _row(cells, images))


def columns_of(path: Path) -> list[str]:
    """Names of the columns.

    Raises:
        DataError: there are none.
    """
    with path.open("rb") as file:
        return _header(_Lines(file, path), path)


def _row(cells: dict[str, str], images: _Images) -> dict[str, Any]:
    """A row's cells by the names of a sample's columns."""
    row: dict[str, Any] = dict(cells)
    row["id"] = cells.get("index", cells.get("id", ""))
    if not cells.get("category"):
        row["category"] = cells.get("l2-category", "")
    if hint := cells.get("hint", "").strip():
        row["question"] = f"Hint: {hint}\n{cells.get('question', '')}"
    options = {letter: cells[letter] for letter in ascii_uppercase if cells.get(letter, "").strip()}
    if {"A", "B"} <= options.keys():
        row["choices"] = list(options.values())
        row["answer"] = _answer(cells.get("answer", ""), options)
    if "image" in cells and cells["image"].strip():
        row["image"] = [images.decode(one) for one in listed(cells["image"]) or [cells["image"]]]
    elif "image_path" in cells:
        row["image"] = listed(cells["image_path"]) or cells["image_path"]
    return row


def _answer(answer: str, options: Mapping[str, str]) -> str:
    """A letter is that of a column: where a column in between is empty, options move up."""
    bare = answer.strip()
    return answer if bare in options.values() else options.get(bare.upper(), answer)


class _Images:
    """Images of a table, those of other rows too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, int] | None = None
        self._last: tuple[str, bytes] = ("", b"")

    def decode(self, cell: str) -> bytes | None:
        """The bytes of an image; none for a broken one, None for one that is nowhere."""
        if len(cell) > _REFERENCE:
            return _bytes(cell)
        index = cell.strip()
        if index == self._last[0]:
            return self._last[1]
        if self._places is None:
            self._places = self._find()
        if index not in self._places:
            return None
        with self._path.open("rb") as file:
            header = _header(_Lines(file, self._path), self._path)
            file.seek(self._places[index])
            _, cells = next(_rest(_Lines(file, self._path), header, self._path))
        own = listed(cells["image"]) or [cells["image"]]
        self._last = index, _bytes(own[0])
        return self._last[1]

    def _find(self) -> dict[str, int]:
        """Where the rows stand that other rows name."""
        named: set[str] = set()
        for _, cells in _records(self._path):
            own = cells.get("image", "")
            named.update(c.strip() for c in listed(own) or [own] if len(c) <= _REFERENCE)
        return {
            index: place
            for place, cells in _records(self._path)
            if (index := cells.get("index", "")) in named and len(cells["image"]) > _REFERENCE
        }


def _bytes(cell: str) -> bytes:
    try:
        return base64.b64decode(cell.rpartition("base64,")[2].strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _records(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Every row with its place in bytes."""
    with path.open("rb") as file:
        lines = _Lines(file, path)
        yield from _rest(lines, _header(lines, path), path)


class _Lines:
    """Lines of a file as text, with the place of the next one in bytes."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.place, self._number = file.tell(), 0
        self._file, self._path = file, path

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(ROW_BYTES + 1):
            self._number += 1
            if len(line) > ROW_BYTES:
                raise too_long(f"{self._path}: line {self._number}")
            if self.place == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            self.place = self._file.tell()
            yield decoded(line, f"{self._path}: line {self._number}")


def _header(lines: _Lines, path: Path) -> list[str]:
    names = next(_cells(lines, path), [])
    if "index" not in names and "id" not in names:
        raise DataError(
            f"{path}: no index (found: {', '.join(names)[:200] or 'nothing'}); a .tsv file has "
            "the columns index, image or image_path, question, answer in its first line"
        )
    return names


def _rest(lines: _Lines, header: list[str], path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    place = lines.place
    for number, cells in enumerate(_cells(lines, path), start=1):
        if cells and len(cells) != len(header):
            raise DataError(
                f"{path}: row {number}: {len(cells)} cells under {len(header)} columns; put cells "
                "with tabs, quotes or line breaks into quotes"
            )
        if cells:
            yield place, dict(zip(header, cells, strict=True))
        place = lines.place


def _cells(lines: _Lines, path: Path) -> Iterator[list[str]]:
    reader = csv.reader(iter(lines), delimiter="\t")
    while True:
        before = csv.field_size_limit(min(ROW_BYTES, sys.maxsize))  # it is the whole process's
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}: line {reader.line_num}: not readable as tab-separated text ({error}); "
                "write the file anew"
            ) from error
        finally:
            csv.field_size_limit(before)
        yield cells
