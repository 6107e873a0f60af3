"""TRL's examples as Parquet files with the images in them, as `datasets` reads them.

Rows are written as they come, so that no more than one row group of images is in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from selfcal.export.images import Stored
from selfcal.store import explained

_GROUP_ROWS = 100
_GROUP_BYTES = 64 * 2**20
"""Of images; a row group ends at either."""
_FILE_BYTES = 512 * 2**20


def write_table(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as files `train-NNNNN.parquet`; their images are `Stored`.

    Raises:
        StoreError: the system refused.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, number, size = None, 0, 0
    with explained("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for group, own in _groups(rows):
                schema = _schema(list(group[0]))
                if writer is None:
                    path = folder / f"train-{number:05d}.parquet"
                    writer = pq.ParquetWriter(path, schema, compression="zstd")
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                size += own
                if size >= _FILE_BYTES:
                    writer.close()
                    writer, number, size = None, number + 1, 0
        finally:
            if writer is not None:
                writer.close()


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Rows with their images read, in groups, each with the size of its images."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        images = [_cell(image) for image in row["images"]]
        group.append(row | {"images": images})
        size += sum(len(image["bytes"] or b"") for image in images)
        if len(group) >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group, size
            group, size = [], 0
    if group:
        yield group, size


def _cell(image: Stored) -> dict[str, Any]:
    if Path(image.name).is_absolute():  # it is to be left where it is
        return {"bytes": None, "path": image.name}
    return {"bytes": image.source.read_bytes(), "path": Path(image.name).name}


def _schema(columns: list[str]) -> Any:
    from datasets import Features, Image, List, Value

    part = {"type": Value("string"), "text": Value("string")}
    turns = List({"role": Value("string"), "content": List(part)})
    features = {name: turns for name in columns} | {"images": List(Image(mode="RGB"))}
    return Features(features).arrow_schema
