"""Copies of runs on a store, for looking at them.

A copy follows the store: what was changed there is brought again, what is gone is deleted. Which
state a file has is noted beside the copy, in `seen.json`.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias

from selfcal.errors import StoreError
from selfcal.remote.accounts import is_account
from selfcal.remote.lease import KEY as LEASE
from selfcal.remote.objects import AT_ONCE, Item, Objects, at_once
from selfcal.store import MANIFEST, MARKER, PARTIAL, explained, read_json, write_bytes, write_json

SEEN = "seen.json"
Part: TypeAlias = Literal["accounts", "records", "images", "all"]
"""Manifests and marks; those and the records; also images; all files."""

_WEIGHTS = ("checkpoint", "adapter", "trl", "serving")
_RECORDS = (".parquet", ".json", ".jsonl")


def pull(objects: Objects, run: Path, part: Part) -> None:
    """Bring a copy up to date; more that was brought before stays, if it is still the same.

    Raises:
        StoreError: the store cannot be reached, or has a name that is no file of a run.
    """
    there = {key: item for key, item in objects.list().items() if _belongs(key)}
    note = run.parent / SEEN
    seen = _read(note)
    for key in seen.keys() - there.keys():
        with explained("delete", run / key):
            (run / key).unlink(missing_ok=True)
    # a file that was changed must not be taken for the one of its manifest
    now = {k: v for k, v in seen.items() if k in there and v == _state(there[k])}
    wanted = [k for k in there if (k in seen or _wanted(k, part)) and not _have(run, k, now)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        brought = list(pool.map(lambda key: _bring(objects, key, run / key), wanted))
    now |= {k: _state(there[k]) for k, ok in zip(wanted, brought, strict=True) if ok}
    write_json(note, now)


def _belongs(key: str) -> bool:
    parts = key.split("/")
    return not parts[0].startswith(".") and not any(".old-" in part for part in parts)


def _wanted(key: str, part: Part) -> bool:
    name, folders = key.rpartition("/")[2], key.split("/")[:-1]
    if part == "all" or name in (MANIFEST, MARKER) or not folders or folders[-1] == "shards":
        return part == "all" or not name.endswith(".html")
    if name == "trainer_state.json" and "trl" in folders:
        return True  # how far a training is
    if part == "accounts" or any(folder in _WEIGHTS for folder in folders):
        return False
    return part == "images" or name.endswith(_RECORDS)


def _have(run: Path, key: str, seen: Mapping[str, Any]) -> bool:
    return key in seen and (run / key).is_file()


def _state(item: Item) -> list[Any]:
    return [item.size, item.tag or secrets.token_hex(8)]  # without a tag it is always brought


def _bring(objects: Objects, key: str, path: Path) -> bool:
    """Bring a file; whether it was still there."""
    half = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    with explained("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if there := objects.download(key, half):
                os.replace(half, path)
            return there
        finally:
            half.unlink(missing_ok=True)


def _read(note: Path) -> dict[str, Any]:
    with suppress(StoreError):
        found = read_json(note)
        return found if isinstance(found, dict) else {}
    return {}


def refresh(objects: Objects, run: Path) -> None:
    """Bring the recipe, and each stage's manifest, marker and marks.

    Raises:
        StoreError: the store cannot be reached.
    """

    def bring(key: str) -> None:
        data, path = objects.read(key), run / key
        if data is not None and not (path.is_file() and path.read_bytes() == data):
            write_bytes(path, data)

    at_once(bring, [k for k in objects.list() if ".old-" not in k and is_account(k)])


def make_shape(objects: Objects, run: Path) -> None:
    """Make a folder anew: accounts as they are, all other files of their size, but empty.

    Raises:
        StoreError: the store cannot be reached, or the system refused.
    """
    with explained("clear", run):
        for path in run.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
    refresh(objects, run)
    for key, item in objects.list().items():
        path = run / key
        with explained("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if key != LEASE and not path.exists():
                path.touch()
                os.truncate(path, item.size)
