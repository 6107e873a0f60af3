"""JSON lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfcal.data.rows import ROW_BYTES, DataError, Row, decoded, kind_of, too_long


def json_lines(path: Path) -> Iterator[Row]:
    """Every object of a file.

    Raises:
        DataError: a line is no JSON object, not UTF-8, or too long.
    """
    number = 0
    with path.open("rb") as file:
        while line := file.readline(ROW_BYTES + 1):
            number += 1
            if len(line) > ROW_BYTES:
                raise too_long(f"{path}: line {number}")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark of Windows tools
            if not line.isspace():
                yield Row(f"line {number}", _object(line, f"{path}: line {number}"))


def _object(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(decoded(line, where))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not readable as JSON ({error}); the file must hold one object a line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: {kind_of(row)}, not an object; write one object a line")
    return row
