"""A JSON file that is one long list of objects, read entry by entry; and CSR's prompts.

Such files grow to gigabytes, and `json.load` would hold all of it. The text is read in pieces here,
and each entry is decoded as soon as it is whole.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from selfcal.data.rows import ROW_BYTES, DataError, Row, kind_of, too_long

_PIECE = 2**20
_SPACE = " \t\n\r"
_NEAR = 16
"""An error so near to the end of what was read may only mean that there is more to read."""
_PROMPT = ("id", "image", "input")


def json_entries(path: Path) -> Iterator[Row]:
    """Every object of a list; places are counted from 1.

    Raises:
        DataError: the file is no list of objects, not JSON, or an entry is too long.
    """
    with path.open("rb") as file:
        text = _Text(file, path)
        if (first := text.next_mark()) != "[":
            raise _no_list(path, first)
        text.at += 1
        number = 0
        while (mark := text.next_mark()) != "]":
            if number:
                if mark != ",":
                    raise text.broken(f"entry {number} is not followed by a comma or the end")
                text.at += 1
                text.next_mark()
            number += 1
            entry = text.entry(number)
            where = f"{path}: entry {number}"
            if not isinstance(entry, dict):
                raise DataError(f"{where}: {kind_of(entry)}, not an object; give {_needs()}")
            yield Row(f"entry {number}", entry)
        text.at += 1
        if text.next_mark():
            raise text.broken("more follows after the list")


class _Text:
    """The text of a file, as much of it as is needed."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.at = 0
        self._file, self._path = file, path
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._buffer, self._ended = "", False

    def next_mark(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self.at < len(self._buffer) and self._buffer[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self._buffer):
                return self._buffer[self.at]
            if self._ended:
                return ""
            self._more(_PIECE)

    def entry(self, number: int) -> Any:
        """Decode the value that begins here, and go behind it."""
        size = _PIECE
        while True:
            try:
                value, end = self._scan(self._buffer, self.at)
                if end < len(self._buffer) or self._ended:  # a number might go on
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended or not self._unfinished(error):
                    raise self.broken(f"entry {number}: {error.msg}") from error
            except (ValueError, RecursionError) as error:
                raise self.broken(f"entry {number}: {error}") from error
            if len(self._buffer) - self.at > ROW_BYTES:
                raise too_long(f"{self._path}: entry {number}")
            self._more(size)
            size *= 2  # so that decoding a long entry again and again costs no more than twice

    def _unfinished(self, error: json.JSONDecodeError) -> bool:
        return "Unterminated" in error.msg or error.pos >= len(self._buffer) - _NEAR

    def _more(self, size: int) -> None:
        piece = self._file.read(size)
        self._ended = not piece
        try:
            text = self._decoder.decode(piece, final=self._ended)
        except UnicodeDecodeError as error:
            raise self.broken(str(error)) from error
        self._buffer, self.at = self._buffer[self.at :] + text, 0

    def broken(self, why: str) -> DataError:
        """The error for a file that is no JSON."""
        return DataError(f"{self._path}: not readable as JSON ({why}); write the file anew")


def _no_list(path: Path, first: str) -> DataError:
    if not first:
        return DataError(f"{path}: not readable as JSON (it is empty); write the file anew")
    return DataError(
        f"{path}: a .json file is a list of prompts, conversations or samples, and this one begins "
        f"with {first!r}; if it has one object a line, call it .jsonl"
    )


def _needs() -> str:
    return f"{', '.join(_PROMPT[:-1])} and {_PROMPT[-1]}"


def prompts(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    """CSR's prompts as rows with a question and without an answer.

    Raises:
        DataError: an entry is no prompt.
    """
    for row in rows:
        cells: Mapping[str, Any] = row.cells
        if missing := [name for name in _PROMPT if name not in cells]:
            raise DataError(
                f"{path}: {row.place}: no {' and no '.join(missing)} (found: "
                f"{', '.join(cells) or 'nothing'}); prompts need {', '.join(_PROMPT)}"
            )
        if not isinstance(cells["input"], str | None):
            raise DataError(f"{path}: {row.place}: input is {kind_of(cells['input'])}; give text")
        yield Row(row.place, {**cells, "question": cells["input"], "answer": ""})
