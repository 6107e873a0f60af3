"""The one door to data files: a path in, a file whose format is recognised out.

Formats are told apart by their ending and, where one ending has several, by their first entry.
Whatever the format, rows come out with the columns of a sample: `id, image | images, question,
answer` and, where there are any, `choices, category, rationale, facts, confidence`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from selfcal.data import tables, tsv
from selfcal.data.entries import json_entries, prompts
from selfcal.data.lines import json_lines
from selfcal.data.llava import Turns, conversations
from selfcal.data.rows import DataError, Row, as_text
from selfcal.recipe import nearest
from selfcal.store import file_digest, sampled_file

REQUIRED = ("id", "image", "question", "answer")
COLUMNS = (*REQUIRED, "images", "choices", "category", "rationale", "facts", "confidence")
ROW_NUMBER = "ROW"
"""As the column of `id`: the row's number, from 1, where there is no column of that name."""
SPLITS = ("rft", "calibration", "dev", "test")
_ENDINGS = (".parquet", ".jsonl", ".json", ".tsv", ".arrow")
_SHARDED = (".parquet", ".arrow", ".jsonl")
_TYPED = (".parquet", ".arrow")
_READ = 512 * 2**20
"""Bytes up to which `data_digest` reads all."""


@dataclass(frozen=True)
class DataFile:
    """A file, or a folder of shards, that can be read again and again."""

    path: Path
    format: str
    """Its format, in words."""
    root: str
    """Folder that image paths are below, absolute."""
    answered: bool
    """Whether a row without an answer is left out: prompts have none."""
    read: Callable[[], Iterator[Row]]
    """Its rows as they are."""
    columns: Mapping[str, str]
    typed: bool
    """Whether its format has types, so that a number may stand where text belongs."""

    def rows(self) -> Iterator[Row]:
        """Its rows, with the columns of a sample.

        Raises:
            DataError: the file is malformed; names the row.
        """
        try:
            for number, row in enumerate(self.read(), start=1):
                cells = self._mapped(row, number) if self.columns else row.cells
                check_columns(cells, f"{self.path}: {row.place}")
                yield Row(row.place, _spelled(cells) if self.typed else cells, row.left_out)
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def _mapped(self, row: Row, number: int) -> Mapping[str, Any]:
        cells = dict(row.cells)
        for name, column in self.columns.items():
            if column in row.cells:
                cells[name] = row.cells[column]
            elif column == ROW_NUMBER and name == "id":
                cells[name] = number
            elif number == 1 or name in REQUIRED:
                raise _unmapped(name, column, row.cells, f"{self.path}: {row.place}")
            else:
                cells[name] = None
        if "image" in self.columns and "images" not in self.columns:
            cells.pop("images", None)  # whoever names the one does not mean the other
        return cells


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error}); check the file")


def open_data(
    path: Path,
    images: Path | None = None,
    columns: Mapping[str, str] | None = None,
    turns: Turns = "first",
) -> DataFile:
    """Recognise a data file, or a folder of shards.

    Args:
        path: of any format in docs/data.md.
        images: folder that image paths are below; None: that of the file.
        columns: the column of each field that is called otherwise.
        turns: which turns of a conversation become samples.

    Raises:
        DataError: there is no such file, or nothing in it says what it is.
    """
    columns = dict(columns or {})
    _check_mapping(columns)
    files = _shards(path)
    kind = files[0].suffix.lower()
    raw, name, answered = _reader(files, kind, columns, turns)
    if kind in _TYPED:
        _check_schema(files[0], columns)
    if path.is_dir():
        name = f"{'saved dataset' if (path / 'state.json').exists() else 'folder'}, {name}"
        name += f", {len(files)} {'file' if len(files) == 1 else 'files'}"
    root = images or (path if path.is_dir() else path.parent)
    whole = os.path.abspath(root)
    return DataFile(path, name, whole, answered, raw, columns, kind in _TYPED)


def split_files(folder: Path) -> dict[str, Path]:
    """The files, or folders, of a folder that are called by the name of a split."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        named = [folder / f"{split}{ending}" for ending in _ENDINGS]
        if path := next((p for p in (*named, folder / split) if p.exists()), None):
            found[split] = path
    return found


def data_digest(path: Path) -> str | None:
    """What changes when a data file does, or a folder of shards; None if there is none.

    Up to 512 MB, all is read; of more, large shards are sampled. Images that lie in files of their
    own are no part of it.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        files = _shards(path)
        size = sum(f.stat().st_size for f in files)
    except (DataError, OSError):  # it is said when the data are read
        return None
    if files == [path] and size <= _READ:
        return file_digest(path)
    # not the name of the path itself: data that were moved are the same data
    read = file_digest if size <= _READ else sampled_file
    found = [["" if f == path else f.name, read(f)] for f in files]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def check_columns(found: Iterable[str], where: str) -> None:
    """See that every column is there that a sample needs.

    Raises:
        DataError: one is not.
    """
    names = list(found)
    missing = [n for n in REQUIRED if n not in names and (n != "image" or "images" not in names)]
    if missing:
        hint = f"; number the rows by the column mapping id={ROW_NUMBER}" if "id" in missing else ""
        raise DataError(
            f"{where}: no {' and no '.join(missing)} (found: {_names(names)}); "
            f"samples need the columns {', '.join(REQUIRED)}{hint}"
        )


def _names(found: Iterable[str]) -> str:
    text = ", ".join(islice(map(str, found), 40))
    return text[:400] or "nothing"


def _check_mapping(columns: Mapping[str, str]) -> None:
    for name in columns:
        if name not in COLUMNS:
            near = nearest(name, COLUMNS)
            hint = f"did you mean {near!r}?" if near else f"fields are {', '.join(COLUMNS)}"
            raise DataError(f"columns: a sample has no field {name!r}; {hint}")


def _check_schema(file: Path, columns: Mapping[str, str]) -> None:
    """An error of the columns is said at once, even where there is no row."""
    try:
        found = tables.columns_of(file)
    except OSError as error:
        raise _unreadable(file, error) from error
    for name, column in columns.items():
        if column not in found and (name, column) != ("id", ROW_NUMBER):
            raise _unmapped(name, column, found, str(file))
    check_columns([*found, *columns], str(file))


def _unmapped(name: str, column: str, found: Iterable[str], where: str) -> DataError:
    return DataError(
        f"{where}: no column {column!r} for {name} (found: {_names(found)}); correct the column "
        "mapping"
    )


def _shards(path: Path) -> list[Path]:
    """The files of a path, all of one ending."""
    endings = f"{_ENDINGS[1]} or {_ENDINGS[0]} file (or {', '.join(_ENDINGS[2:])}, or a folder)"
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the path of a {endings}")
    if path.suffix.lower() not in _ENDINGS:
        raise DataError(f"{path}: unknown kind of file; convert it to {', '.join(_ENDINGS[1:])}")
    return [path]


def _folder(path: Path) -> list[Path]:
    if (path / "state.json").is_file():
        return tables.saved_shards(path)
    if (path / "dataset_dict.json").is_file():
        own = sorted(p.name for p in path.iterdir() if p.is_dir())
        raise DataError(f"{path}: is a folder of several datasets; give one: {', '.join(own)}")
    for folder in (path, path / "data"):
        # a pipe that is called so would block, and a device never end
        by_ending = {e: sorted(filter(Path.is_file, folder.glob(f"*{e}"))) for e in _SHARDED}
        kinds = [e for e, files in by_ending.items() if files]
        if len(kinds) == 1:
            return by_ending[kinds[0]]
        if kinds:
            both = " and ".join(kinds)
            raise DataError(f"{path}: is a folder with {both} files; give one of them")
    raise DataError(f"{path}: is a folder without {', '.join(_SHARDED)} files; give a data file")


def _reader(
    files: Sequence[Path], kind: str, columns: Mapping[str, str], turns: Turns
) -> tuple[Callable[[], Iterator[Row]], str, bool]:
    """How the rows are read, the format's name, and whether rows have answers."""
    path = files[0]
    if kind == ".tsv":
        return lambda: tsv.tsv_rows(path), "VLMEvalKit table (.tsv)", True
    if kind in _TYPED:
        wanted = [*COLUMNS, *columns.values()]
        read = tables.parquet_rows if kind == ".parquet" else tables.arrow_rows
        return lambda: _all(files, lambda f: read(f, wanted)), kind[1:].capitalize(), True
    base = json_lines if kind == ".jsonl" else json_entries
    text = "JSON lines" if kind == ".jsonl" else "JSON list"
    keys = _first_keys(base(path))
    if "conversations" in keys:
        own = lambda: _all(files, lambda f: conversations(base(f), f, turns))  # noqa: E731
        return own, f"LLaVA conversations ({text})", True
    if kind == ".json" and "question" not in (*keys, *columns):
        return lambda: prompts(base(path), path), "CSR prompts (JSON list)", False
    return lambda: _all(files, base), text, True


def _first_keys(rows: Iterator[Row]) -> Iterable[str]:
    try:
        first = next(rows, None)
    except (DataError, OSError):  # it is said when the file is read
        return ()
    return first.cells if first else ("question",)


def _all(files: Sequence[Path], read: Callable[[Path], Iterator[Row]]) -> Iterator[Row]:
    """The rows of all shards, one after the other."""
    for file in files:
        for row in read(file):
            named = Row(f"{file.name}, {row.place}", row.cells, row.left_out)
            yield row if len(files) == 1 else named


def _spelled(cells: Mapping[str, Any]) -> Mapping[str, Any]:
    """Numbers of a typed table as text where a sample has text; with options, they are places."""
    changed = dict(cells)
    for name in ("answer", "category"):
        spelled = as_text(cells.get(name))
        if spelled is None or not (name == "answer" and cells.get("choices")):
            changed[name] = spelled
    if isinstance(choices := cells.get("choices"), list):
        changed["choices"] = [as_text(c) for c in choices]
    return changed
