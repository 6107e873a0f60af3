"""Records to Parquet bytes and back; no file is touched here (`store` does that).

The columns follow from the annotations of the record's dataclass, and the name of the record kind
travels in the file. What comes out equals what went in, or there is an error: values that arrow
would bend without a word are refused, and pages carry checksums.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

_KIND = b"selfcal.kind"
_ARROW = {str: "string", int: "int64", float: "float64", bool: "bool"}


def encode(records: Sequence[T], kind: type[T]) -> bytes:
    """Encode records, all of one kind, as a Parquet file; there may be none.

    Raises:
        TypeError: `kind` has a field of a type that has no column, a record is of another kind,
            or a value does not fit its field.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if strange := [record for record in records if type(record) is not kind]:
        raise TypeError(f"{strange[0]!r} is no {kind.__name__}")
    schema, sink = _schema(kind), pa.BufferOutputStream()
    arrays = [
        _array([getattr(record, field.name) for record in records], field) for field in schema
    ]
    try:
        table = pa.Table.from_arrays(arrays, schema=schema)
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    except pa.ArrowException as error:  # a None where the annotation has none
        raise TypeError(f"a record does not fit {kind.__name__}: {error}") from error
    return bytes(sink.getvalue())


def decode(data: bytes, kind: type[T]) -> list[T]:
    """Decode the records that `encode` gave.

    Raises:
        TypeError: `kind` has a field of a type that has no column.
        ValueError: The bytes are damaged or hold something else; says what is wrong with them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(kind)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        found = file.schema_arrow
        name = (found.metadata or {}).get(_KIND, b"unknown").decode()
        table = file.read() if name == kind.__name__ and found.equals(schema) else None
        columns = [_cells(table.column(field)) for field in schema.names] if table else []
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"is damaged or no Parquet file ({error})") from error
    if table is None:
        raise ValueError(
            f"holds {name} records with the fields {', '.join(found.names)}; wanted were "
            f"{kind.__name__} records with {', '.join(schema.names)}"
        )
    rows = zip(*columns, strict=True)
    return [kind(**dict(zip(schema.names, row, strict=True))) for row in rows]


def _array(values: list[Any], field: Any) -> Any:
    import pyarrow as pa

    try:
        array = pa.array(values, field.type)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise TypeError(f"field {field.name!r} holds a value that doesn't fit: {error}") from error
    # Arrow makes 1.5 into 1, or "ab" into the list a, b, without a word, so compare. A float is
    # never bent, and NaN would not compare.
    if "double" not in str(field.type):
        for value, cell in zip(values, _cells(array), strict=True):
            if value != cell:
                raise TypeError(f"field {field.name!r} holds {value!r}, read back as {cell!r}")
    return array


def _cells(array: Any) -> list[Any]:
    return [tuple(cell) if isinstance(cell, list) else cell for cell in array.to_pylist()]


@functools.cache
def _schema(kind: type[DataclassInstance]) -> Any:
    import pyarrow as pa

    hints = typing.get_type_hints(kind)
    fields = [_field(kind, field.name, hints[field.name]) for field in dataclasses.fields(kind)]
    return pa.schema(fields, metadata={_KIND: kind.__name__})


def _field(kind: type, name: str, hint: Any) -> Any:
    """Arrow field for `X` or `X | None`, where X is a scalar or a tuple[scalar, ...]."""
    import pyarrow as pa

    inner = hint
    if optional := typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        inner = rest[0] if len(rest) == 1 else None
    if many := (typing.get_origin(inner) is tuple and typing.get_args(inner)[1:] == (...,)):
        inner = typing.get_args(inner)[0]
    if typing.get_origin(inner) is typing.Literal:
        kinds = {type(arg) for arg in typing.get_args(inner)}
        inner = kinds.pop() if kinds == {str} else None
    if inner not in _ARROW:
        raise TypeError(
            f"{kind.__name__}.{name} is annotated {hint}, for which there is no column: use str, "
            "int, float, bool, a Literal of strings, a tuple[..., ...] of these, or one | None"
        )
    arrow = pa.type_for_alias(_ARROW[inner])
    if many:
        arrow = pa.list_(pa.field("element", arrow, nullable=False))
    return pa.field(name, arrow, nullable=optional)
