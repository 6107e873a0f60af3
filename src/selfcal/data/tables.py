"""Typed tables: Parquet files, Arrow files, and Hugging Face's dataset folders made of them.

They are read batch by batch without the `datasets` library. Its features are understood where they
matter: an image is a struct of bytes and path, and a class label is a number with a name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcal.data.rows import DataError, Row
from selfcal.parquet import opened

_ROWS = 1024
_ROWS_WITH_IMAGES = 16
"""Images of so many rows are in memory at once."""
_INFO_BYTES = 2**24


def parquet_rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """Every row of a Parquet file, with those of the wanted columns that it has.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow as pa

    number = 0
    try:
        with opened(path) as file:
            schema = file.schema_arrow
            columns, names = _columns(schema, wanted), _labels(schema)
            for batch in file.iter_batches(_batch(schema, columns), columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", _named(row, names))
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise _damaged(path, "Parquet", number, error) from error


def arrow_rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """Every row of an Arrow file, as a stream (Hugging Face) or with a footer (Feather).

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow as pa

    number = 0
    try:
        with pa.memory_map(str(path)) as source:
            for batch in _batches(source):
                batch.validate(full=True)  # offsets of a forged file could point anywhere
                columns, names = _columns(batch.schema, wanted), _labels(batch.schema)
                own, size = batch.select(columns), _batch(batch.schema, columns)
                for at in range(0, own.num_rows, size):
                    for row in own.slice(at, size).to_pylist():
                        number += 1
                        yield Row(f"row {number}", _named(row, names))
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise _damaged(path, "Arrow", number, error) from error


def _batches(source: Any) -> Iterator[Any]:
    import pyarrow as pa

    if source.read(6) == b"ARROW1":
        source.seek(0)
        with pa.ipc.open_file(source) as file:
            for i in range(file.num_record_batches):
                yield file.get_batch(i)
        return
    source.seek(0)
    with pa.ipc.open_stream(source) as stream:
        yield from stream


def columns_of(path: Path) -> list[str]:
    """Names of the columns of a Parquet or Arrow file.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".parquet":
            return list(pq.read_schema(path).names)
        with pa.memory_map(str(path)) as source:
            footer = source.read(6) == b"ARROW1"
            source.seek(0)
            opened = pa.ipc.open_file(source) if footer else pa.ipc.open_stream(source)
            return list(opened.schema.names)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        name = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
        raise _damaged(path, name, 0, error) from error


def saved_shards(folder: Path) -> list[Path]:
    """The shards of a dataset that `save_to_disk` wrote, in order.

    Raises:
        DataError: its `state.json` names none, or names files outside of the folder.
    """
    state = folder / "state.json"
    try:
        with state.open("rb") as file:
            found = json.loads(file.read(_INFO_BYTES))
        names = [entry["filename"] for entry in found["_data_files"]]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"{state}: names no data files; save the dataset anew") from error
    if not names or not all(isinstance(n, str) and _plain(n) for n in names):
        raise DataError(f"{state}: its data files are not files of this folder; save it anew")
    return [folder / name for name in names]


def _plain(name: str) -> bool:
    return Path(name).name == name and name.endswith(".arrow") and "\0" not in name


def _columns(schema: Any, wanted: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(schema.names) if name in wanted]


def _batch(schema: Any, columns: Sequence[str]) -> int:
    heavy = any("binary" in str(schema.field(name).type) for name in columns)
    return _ROWS_WITH_IMAGES if heavy else _ROWS


def _labels(schema: Any) -> dict[str, list[str]]:
    """Names of the classes of columns that are Hugging Face's class labels."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {
            name: f.get("names")
            for name, f in features.items()
            if isinstance(f, dict) and f.get("_type") == "ClassLabel"
        }
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}
    return {
        name: names
        for name, names in found.items()
        if isinstance(names, list) and all(isinstance(n, str) for n in names)
    }


def _named(row: dict[str, Any], labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    for name, classes in labels.items():
        value = row.get(name)
        if isinstance(value, int):  # -1 stands for no label
            row[name] = classes[value] if 0 <= value < len(classes) else None
    return row


def _damaged(path: Path, kind: str, number: int, error: Exception) -> DataError:
    return DataError(
        f"{path}: not readable as {kind} after row {number} ({error}); write the file anew"
    )
