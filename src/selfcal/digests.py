"""Digests: of files, of folders, of settings, and of a JSON file that carries its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfcal.errors import StoreError
from selfcal.files import JSON, PARTIAL, REMAKE, explained, read_json, write_json

_OWN = "own_digest"
"""In a JSON object: the digest of all else in it."""


def fingerprint(*parts: object) -> str:
    """Give 16 hex digits that name these settings: sha256 over their canonical JSON.

    Parts are JSON values, dataclasses and pydantic models, nested as they like; a tuple counts as
    a list. A path is refused, as the same run has other paths on another machine: give the
    `file_digest`, `tree_digest` or `sampled_digest` of what it points to.

    Raises:
        TypeError: A part is, or holds, a path or anything else that has no JSON form.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_as_dict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_dict(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if hasattr(value, "model_dump") and not isinstance(value, type):  # a pydantic model
        return value.model_dump()
    hint = ": use the digest of what it points to" if isinstance(value, os.PathLike) else ""
    raise TypeError(f"cannot fingerprint {value!r} ({type(value).__name__}){hint}")


def file_digest(path: Path) -> str:
    """Give the sha256 of a file's content, in hex.

    Raises:
        StoreError: It is missing or not readable.
    """
    with explained("read", path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(folder: Path) -> str:
    """Give the sha256 over the relative names and contents of a folder's files, in hex.

    Raises:
        StoreError: The folder, or a file in it, is missing or not readable.
    """
    files = [[name, file_digest(folder / name)] for name in list_files(folder)]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


_WHOLE = 16 * 2**20
"""Bytes up to which `sampled_digest` reads all of a file."""
_BLOCK = 64 * 2**10
_BLOCKS = 64


def sampled_digest(folder: Path, *suffixes: str) -> str:
    """Give a sha256 over a folder's files with these suffixes, in hex, without reading all of them.

    A file larger than 16 MB gives its size and 64 blocks of 64 KiB at even distances: a training
    is seen, which moves all weights; a change of a byte in between is not.

    Raises:
        StoreError: The folder, or a file in it, is missing or not readable.
    """
    own = [name for name in list_files(folder) if name.endswith(suffixes)]
    files = [[name, *sampled_file(folder / name)] for name in own]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def sampled_file(path: Path) -> tuple[int, str]:
    """Give a file's size and sha256, of which a large one is sampled as in `sampled_digest`.

    Raises:
        StoreError: It is missing or not readable.
    """
    with explained("read", path):
        size = path.stat().st_size
        return size, file_digest(path) if size <= _WHOLE else _block_digest(path, size)


def _block_digest(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for i in range(_BLOCKS):
            file.seek(i * (size - _BLOCK) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def list_files(folder: Path) -> list[str]:
    """Relative names of all finished files below a folder, sorted; links are followed.

    A link to a folder that it lies in leads nowhere new, and is left out.
    """
    with explained("read", folder):
        found = [path for path in _walk(folder, frozenset()) if not path.name.endswith(PARTIAL)]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    stat = folder.stat()
    if (own := (stat.st_dev, stat.st_ino)) in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), above | {own})
            else:
                yield Path(entry.path)


def write_signed(path: Path, obj: Mapping[str, JSON]) -> None:
    """Write a JSON object with its own digest, as `write_json` does, with its errors."""
    write_json(path, {**obj, _OWN: fingerprint(obj)})


def read_signed(path: Path) -> dict[str, Any]:
    """Read what `write_signed` wrote; without a digest it is taken as it is.

    Raises:
        StoreError: It is missing, not readable, no JSON object, or not what was written.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise StoreError(f"{path} is damaged (no JSON object): {REMAKE}")
    said = found.pop(_OWN, None)
    if said is not None and said != fingerprint(found):
        raise StoreError(f"{path} is damaged (its content is not what was written): {REMAKE}")
    return found
