"""What all readers share: a row of a data file with its place, and what is wrong with a file.

Every format has a reader of its own that gives `Row`s one after the other and holds one of them in
memory. Files are untrusted: a row has a greatest size, so that no single one can fill the memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfcal.errors import SelfcalError

ROW_BYTES = 2**27
"""A row may be this long, embedded images included."""
_ITEM = re.compile(r"""'([^'\\]*)'|"([^"\\]*)\"""")
_QUOTED = r"""(?:'[^'\\]*+'|"[^"\\]*+")"""
_LIST = re.compile(rf"\[\s*+{_QUOTED}(?:\s*+,\s*+{_QUOTED})*+\s*+,?+\s*+\]")


class DataError(SelfcalError):
    """A data file cannot be used: the text names file, row and way out."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file, its columns not yet looked at."""

    place: str
    """Where it stands, in words: `line 3`."""
    cells: Mapping[str, Any]
    left_out: str = ""
    """Why its own reader leaves it out, if it does."""


def kind_of(value: object) -> str:
    """What a value is, in words."""
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), f"of type {type(value).__name__}")


def as_text(value: object) -> object:
    """A number of a table as text, as data files spell it; what is no number stays as it is.

    NaN is how tables spell that there is none: None.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        whole = value.is_integer()
        return None if math.isnan(value) else json.dumps(int(value) if whole else value)
    return value


def listed(text: str) -> list[str] | None:
    """The texts of a list that is spelled out, as JSON or as Python would; None: it is no list."""
    bare = text.strip()
    if not (bare.startswith("[") and bare.endswith("]")):
        return None
    if _LIST.fullmatch(bare):
        return [one or other for one, other in _ITEM.findall(bare)]
    try:
        found = json.loads(bare)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, list) and all(isinstance(item, str) for item in found)
    return found if whole else None


def decoded(data: bytes, where: str) -> str:
    """Text of UTF-8 bytes.

    Raises:
        DataError: they are not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: byte {error.start + 1} is not UTF-8; write the file anew as UTF-8"
        ) from error


def too_long(where: str) -> DataError:
    """The error for a row that is longer than any may be."""
    return DataError(
        f"{where}: is longer than {ROW_BYTES // 2**20} MiB; save its images as files, and give "
        "their paths"
    )
