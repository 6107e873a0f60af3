"""What the files of a run say of its other files: manifests, markers and marks.

They may come from a store, so nothing is taken for granted of what they hold.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from selfcal.store import MANIFEST, MARKER, MARKS, PARTIAL, StageDir, changed, file_digest

RECIPE = "recipe.json"


def is_account(key: str) -> bool:
    """Whether an object is the recipe, or says what else is there."""
    parts = key.split("/")
    return parts[-1] in (RECIPE, MANIFEST, MARKER) or parts[-2:-1] == [MARKS]


def is_same_work(folder: StageDir, said: Mapping[str, Any]) -> bool:
    """Whether what lies in a stage's folder is the work that the store has, or nothing."""
    for name in (MARKER, MANIFEST):
        path = folder.path / name
        own = said_in(path.read_bytes()) if path.is_file() else {}
        if own:
            same = own.get("fingerprint") == said.get("fingerprint")
            return same and not changed(inputs_of(own), inputs_of(said))
    return not files_below(folder.path)


def inputs_of(account: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """What a marker or a manifest says of the outcomes that its stage has read."""
    kept = account.get("manifest")
    found = account.get("inputs", kept.get("inputs") if isinstance(kept, dict) else None)
    items = found.items() if isinstance(found, dict) else ()
    return {
        stage: {name: digest for name, digest in outcome.items() if isinstance(digest, str)}
        for stage, outcome in items
        if isinstance(outcome, dict)
    }


def lacks(folder: StageDir) -> bool:
    """Whether a finished stage has not all of its files here."""
    return not all((folder.path / name).is_file() for name in folder.manifest()["files"])


def seals(folder: StageDir, name: str) -> bool:
    """Whether a file is a mark, and its shard whole here."""
    found = re.fullmatch(rf"{MARKS}/(\d{{5,}})\.json", name)
    return found is not None and folder.sealed(int(found[1]))


def sealed_in(folder: StageDir, marks: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """The files that marks here speak for, with their digests."""
    found: dict[str, Mapping[str, Any]] = {}
    for name in marks:
        with suppress(OSError):
            found |= entries((folder.path / name).read_bytes())
    return found


def entries(account: bytes) -> dict[str, Mapping[str, Any]]:
    """The files of a manifest or a mark; nothing if it is damaged."""
    files = said_in(account).get("files")
    if not isinstance(files, dict):
        return {}
    return {
        str(n): e
        for n, e in files.items()
        if isinstance(e, dict) and {"sha256", "size"} <= e.keys()
    }


def said_in(data: bytes | None) -> dict[str, Any]:
    """A JSON object; an empty one if it is damaged."""
    try:
        found = json.loads(data or b"null")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_as_written(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file has the size and the digest that were noted when it was written."""
    same = path.is_file() and path.stat().st_size == entry["size"]
    return same and file_digest(path) == entry["sha256"]


def has_size(path: Path, size: int) -> bool:
    """Whether a file is there, and of this size."""
    return path.is_file() and path.stat().st_size == size


def state(path: Path) -> tuple[int, int]:
    """What changes whenever a file is replaced: size and time."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def files_below(folder: Path) -> list[str]:
    """Relative names of the finished files below a folder, links left out."""
    return [
        (Path(root) / name).relative_to(folder).as_posix()
        for root, _, names in os.walk(folder)
        for name in names
        if not name.endswith(PARTIAL) and not (Path(root) / name).is_symlink()
    ]
