"""Files of records: Parquet (see `parquet`), written whole or not at all (see `files`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from selfcal import parquet
from selfcal.clock import spent
from selfcal.errors import StoreError
from selfcal.files import REMAKE, explained, write_bytes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def write_records(path: Path, records: Sequence[T], kind: type[T]) -> None:
    """Write records, all of one kind, as a Parquet file; an empty list is fine.

    Raises:
        StoreError: The system refused.
        TypeError: `kind` has a field of a type that has no column, a record is of another kind,
            or a value does not fit its field.
    """
    with spent("disk"):
        try:
            data = parquet.encode(records, kind)
        except TypeError as error:
            raise TypeError(f"cannot write {path}: {error}") from error
        write_bytes(path, data)


def read_records(path: Path, kind: type[T]) -> list[T]:
    """Read the records of a file that `write_records` wrote.

    Raises:
        StoreError: The file is missing, damaged, or holds records of another kind.
        TypeError: `kind` has a field of a type that has no column.
    """
    return _decoded(path, lambda data: parquet.decode(data, kind))


def read_column(path: Path, kind: type[T], field: str) -> list[Any]:
    """Read one field alone of such records, with the errors of `read_records`; much faster."""
    return _decoded(path, lambda data: parquet.columns(data, kind, field)[0])


def _decoded(path: Path, decode: Callable[[bytes], list[Any]]) -> list[Any]:
    try:
        with spent("disk"):
            with explained("read", path):
                data = path.read_bytes()
            return decode(data)
    except ValueError as error:
        raise StoreError(f"{path} {error}: if it is the right file, {REMAKE}") from error
