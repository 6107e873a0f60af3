"""What a stage's folder says of its files, checked before it is believed.

Three kinds of JSON objects do: the manifest of a finished stage, the marker of one in work
(`stage.json`, which keeps a copy of the manifest), and the mark of each shard. A file system may
have damaged them, and whoever can write to the run may have changed them: names in them are joined
into paths and deleted. So one that is not formed as it must be says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selfcal import parquet
from selfcal.digests import file_digest, read_signed
from selfcal.errors import StoreError
from selfcal.files import JSON, REMAKE, explained, is_plain

MANIFEST, MARKER, MARKS = "manifest.json", "stage.json", "shards"


def said(path: Path) -> dict[str, Any]:
    """What a manifest, a marker or a mark says; nothing if it is missing or damaged."""
    try:
        found = read_signed(path)
    except StoreError:
        return {}
    return found if _is_formed(found) else {}


def said_manifest(path: Path) -> dict[str, Any]:
    """What a manifest says.

    Raises:
        StoreError: There is none, or it is damaged.
    """
    found = read_signed(path)
    if not _is_manifest(found):
        raise StoreError(f"{path} is damaged (it is no manifest): {REMAKE}")
    return found


def inputs_of(account: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a marker or a manifest says of the outcomes that its stage has read; None: nothing."""
    copy: Mapping[str, Any] = account.get("manifest", {})  # older markers say it just there
    found: dict[str, Any] | None = account.get("inputs", copy.get("inputs"))
    return found


def entry_of(path: Path) -> dict[str, JSON]:
    """A file's digest and size, as accounts have them."""
    return {"sha256": file_digest(path), "size": path.stat().st_size}


def is_file_of(path: Path, entry: Mapping[str, JSON], by_size: bool = False) -> bool:
    """Whether a file is there, and as it was written; `by_size`: just as large."""
    if not path.is_file() or path.stat().st_size != entry["size"]:
        return False
    return by_size or file_digest(path) == entry["sha256"]


def exact_of(path: Path) -> str:
    """The digest of a record file but for the last digits of its numbers.

    Raises:
        StoreError: It is missing or damaged.
    """
    with explained("read", path):
        data = path.read_bytes()
    try:
        return parquet.exact_digest(data)
    except ValueError as error:
        raise StoreError(f"{path} {error}: {REMAKE}") from error


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name the stages of which both know an outcome, and not the same one.

    It is the same if all bytes are, or all but the last digits of numbers: what is computed anew
    beside other samples is rounded otherwise.
    """
    return [
        stage
        for stage in before.keys() & now.keys()
        if not before[stage].items() & now[stage].items()
    ]


def is_outcome(name: str) -> bool:
    """Whether a file is part of a stage's outcome."""
    # older manifests name marks, too; PEFT writes paths there, and sets in any order
    strange = ("adapter/README.md", "adapter/adapter_config.json")
    return not name.startswith(("trl/", f"{MARKS}/")) and name not in strange


# How they are formed ----------------------------------------------------------------------------


def _is_formed(found: Mapping[str, Any]) -> bool:
    """Whether an account says who it is of, and all that it says is of the right kind."""
    return isinstance(found.get("fingerprint"), str) and all(
        is_right(found[key]) for key, is_right in _KEYS.items() if key in found
    )


def _is_manifest(found: Any) -> bool:
    needed = {"files", "stats"}
    return isinstance(found, dict) and needed <= found.keys() and _is_formed(found)


def _is_files(found: Any) -> bool:
    return isinstance(found, dict) and all(
        is_plain(name)
        and isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("size"), int)
        for name, entry in found.items()
    )


def _is_texts(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(text, str) for text in found.values())


def _is_inputs(found: Any) -> bool:
    return isinstance(found, dict) and all(map(_is_texts, found.values()))


def _is_dict(found: Any) -> bool:
    return isinstance(found, dict)


def _is_int(found: Any) -> bool:
    return isinstance(found, int)


_KEYS: Mapping[str, Callable[[Any], bool]] = {
    "files": _is_files,
    "freed": _is_files,
    "exact": _is_texts,
    "inputs": _is_inputs,
    "stats": _is_dict,
    "size": _is_int,
    "manifest": _is_manifest,
}
