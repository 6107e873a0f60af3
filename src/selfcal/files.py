"""Files that are written whole or not at all, and errors that say what to do.

Every file is written under a temporary name (`.NAME.*.partial`), synced and renamed, so a name
that can be read is a file that was finished; what a killed writer leaves keeps its `.partial`
ending and is never read.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from selfcal.errors import StoreError

JSON: TypeAlias = str | int | float | bool | Sequence["JSON"] | Mapping[str, "JSON"] | None
PARTIAL = ".partial"
REMAKE = "go on with its run (`selfcal run --out RUN`): it is made anew"
_WAYS_OUT = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of the quota",
    errno.EROFS: "make the file system writable or choose another folder",
    errno.EACCES: "give this user access or choose another folder",
    errno.ENOENT: "put it back if it was yours",
}


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably; missing folders are made.

    Raises:
        StoreError: The system refused (disk full, read-only, no permission, ...). A file that was
            at `path` before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    with explained("write", path):
        make_folder(path.parent)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # an interrupt must not leave half a file either
            with suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)  # only now would the rename outlive a power cut


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_bytes` does, with its errors."""
    write_bytes(path, text.encode())


def write_json(path: Path, obj: JSON) -> None:
    """Write JSON as `write_bytes` does, with its errors.

    Raises:
        ValueError: A number is NaN or infinite. JSON has no such number; it has null.
    """
    write_text(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StoreError: It is missing, not readable, or no JSON.
    """
    with explained("read", path):
        data = path.read_bytes()
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({error}): {REMAKE}") from error


def is_plain(name: str) -> bool:
    """Whether a relative name, with `/` between its parts, can be joined to a folder.

    It leads to no place outside, and every file system takes it.
    """
    parts = name.split("/")
    bad = any(p in ("", ".", "..") or len(p.encode(errors="replace")) > 255 for p in parts)
    strange = re.search(r"[\\\x00-\x1f\x7f]", name) or re.match(r"[A-Za-z]:", name)
    return not bad and not strange


def make_folder(folder: Path) -> None:
    """Make a folder if it is missing, so that it outlives a power cut as its files do."""
    if not folder.is_dir():
        missing = [made for made in (folder, *folder.parents) if not made.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            sync(made.parent)


def sync(path: Path) -> None:
    """Write a file, or the names in a folder, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems can't sync a folder; the rename is all there is then.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def explained(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError that names the path, the reason and the way out."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        way_out = _WAYS_OUT.get(error.errno or 0, "mend that")
        message = f"cannot {doing} {path}: {reason}; {way_out}, then run the same command again"
        raise StoreError(f"{message}: it resumes") from error
