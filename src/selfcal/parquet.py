"""Records to Parquet bytes and back; no file is touched here (`store` does that).

The columns follow from the annotations of the record's dataclass, and the name of the record kind
travels in the file. What comes out equals what went in, or there is an error: values that arrow
would bend without a word are refused, and pages carry checksums.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
import typing
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
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
    arrays = [_array(list(map(attrgetter(field.name), records)), field) for field in schema]
    try:
        table = pa.Table.from_arrays(arrays, schema=schema)
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    except pa.ArrowException as error:  # a None where the annotation has none
        raise TypeError(f"a record does not fit {kind.__name__}: {error}") from error
    return bytes(sink.getvalue())


def decode(data: bytes, kind: type[T]) -> list[T]:
    """Decode the records that `encode` gave, with the errors of `columns`."""
    # the columns have the order of the fields, and one length
    return list(map(kind, *columns(data, kind)))


def columns(data: bytes, kind: type[T], *names: str) -> list[list[Any]]:
    """Decode some fields of the records alone, all by default: a list of values for each.

    Raises:
        TypeError: `kind` has a field of a type that has no column.
        ValueError: The bytes are damaged or hold something else; says what is wrong with them.
    """
    import pyarrow as pa

    schema = _schema(kind)
    try:
        file = opened(pa.BufferReader(data), page_checksum_verification=True)
        found = file.schema_arrow
        name = (found.metadata or {}).get(_KIND, b"unknown").decode()
        table, cells = None, list[list[Any]]()
        if name == kind.__name__ and found.equals(schema):
            table = file.read(list(names) or None)
            cells = [_cells(table.column(n)) for n in names or schema.names]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"is damaged or no Parquet file ({error})") from error
    if table is None:
        raise ValueError(
            f"holds {name} records with the fields {', '.join(found.names)}; wanted were "
            f"{kind.__name__} records with {', '.join(schema.names)}"
        )
    return cells


def opened(source: Any, **options: Any) -> Any:
    """A Parquet file of pyarrow's, whose footer is no forgery by which pyarrow would crash.

    Figures below zero in a footer end the whole process there (`std::length_error`).

    Args:
        source: a path, or a file of Arrow's.
        options: of `pyarrow.parquet.ParquetFile`.

    Raises:
        ValueError, OSError: It is no Parquet file, or its footer contradicts itself.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(source, **options)
    about = file.metadata
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    rows = [group.num_rows for group in groups]  # more of it than this, and pyarrow may end, too
    if min(rows, default=0) < 0 or sum(rows) != about.num_rows:
        file.close()
        raise ValueError("its footer contradicts itself")
    return file


def kind_of(data: bytes) -> str:
    """The name of the records' kind in a Parquet file; empty if it names none.

    Raises:
        ValueError: The bytes are damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"is damaged or no Parquet file ({error})") from error
    return (schema.metadata or {}).get(_KIND, b"").decode(errors="replace")


def exact_digest(data: bytes) -> str:
    """The sha256, in hex, of all that a Parquet file holds but its floating-point numbers.

    Raises:
        ValueError: The bytes are damaged.
    """
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    try:
        table = opened(pa.BufferReader(data)).read().replace_schema_metadata()
        numbers = [f.name for f in table.schema if "double" in str(f.type)]
        table = table.drop_columns(numbers).combine_chunks()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"is damaged or no Parquet file ({error})") from error
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _array(values: list[Any], field: Any) -> Any:
    import pyarrow as pa

    try:
        array = pa.array(values, field.type)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise TypeError(f"field {field.name!r} holds a value that doesn't fit: {error}") from error
    # Arrow makes 1.5 into 1, or "ab" into the list a, b, without a word, so compare. What is of the
    # very type is never bent; neither is a float, and NaN would not compare.
    if "double" not in str(field.type) and not _exact(values, field):
        for value, cell in zip(values, _cells(array), strict=True):
            if value != cell:
                raise TypeError(f"field {field.name!r} holds {value!r}, read back as {cell!r}")
    return array


_EXACT: dict[str, set[type]] = {"string": {str}, "int64": {int}, "bool": {bool}}
_NONE = type(None)


def _exact(values: list[Any], field: Any) -> bool:
    """Whether all values are of the very type that the column gives back, or None."""
    import pyarrow as pa

    kind = field.type
    if pa.types.is_list(kind):
        if not set(map(type, values)) <= {tuple}:
            return False
        values, kind = list(chain.from_iterable(values)), kind.value_type
        return set(map(type, values)) <= _EXACT[str(kind)]
    return set(map(type, values)) - {_NONE} <= _EXACT[str(kind)]


def _cells(array: Any) -> list[Any]:
    import pyarrow as pa

    cells: list[Any] = array.to_pylist()
    if not pa.types.is_list(array.type):
        return cells
    return [cell if cell is None else tuple(cell) for cell in cells]


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
