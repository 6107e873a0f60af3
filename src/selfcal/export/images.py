"""Images of an export: each content once, under a name that comes from the content.

A file is copied byte for byte where every tool reads it as selfcal does. One that lies on its side
by its EXIF orientation, has transparent parts, or 16 or 32 bits for a pixel's grey, is written anew
as the picture that the policy saw, since other tools would show their model another one.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfcal.image import check_image, load_image, opened
from selfcal.store import explained

Keep = Literal["copy", "link", "path"]
"""Images are copied, linked (where the file system can), or left where they are."""
FOLDER = "images"
_ORIENTATION = 0x0112
_UPRIGHT = (None, 1)
_NAME = 32
"""Hex digits of a name: 128 bits of the content's SHA-256."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An image of the export."""

    name: str
    """Path relative to the export; absolute where images are left where they are."""
    source: Path
    """A file with its content."""


class ImageStore:
    """Puts images into an export."""

    def __init__(self, folder: Path, keep: Keep) -> None:
        """`folder` is the export's own; images go below it."""
        self._folder, self._keep = folder, keep
        self._known: dict[str, Stored] = {}
        self._reasons: dict[str, str | None] = {}

    def __len__(self) -> int:
        """How many different images there are."""
        return len({stored.name for stored in self._known.values()})

    def reason(self, path: str) -> str | None:
        """Why an image cannot be in the export (`image-missing`, ...), or None."""
        if path not in self._reasons:
            self._reasons[path] = check_image(Path(path))
        return self._reasons[path]

    def place(self, path: str) -> Stored:
        """Put an image that there is no `reason` against into the export.

        Raises:
            StoreError: the system refused.
        """
        if path not in self._known:
            self._known[path] = self._place(Path(path))
        return self._known[path]

    def _place(self, path: Path) -> Stored:
        if self._keep == "path":
            return Stored(str(path.resolve()), path)
        with explained("read", path):
            suffix, plain = _kind(path)
            data = path.read_bytes() if plain else _as_seen(path)
        name = f"{hashlib.sha256(data).hexdigest()[:_NAME]}{suffix if plain else '.png'}"
        target = self._folder / FOLDER / name
        with explained("write", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists() and not (
                plain and self._keep == "link" and _linked(path, target)
            ):
                target.write_bytes(data)
        return Stored(f"{FOLDER}/{name}", target)


def _linked(path: Path, target: Path) -> bool:
    try:
        os.link(path.resolve(), target)
    except OSError:  # another file system
        return False
    return True


def _kind(path: Path) -> tuple[str, bool]:
    """The file's ending by its content, and whether others read it as `load_image` does."""
    with opened(path) as image:
        kind = (image.format or "png").lower()
        odd = image.has_transparency_data or image.mode.startswith(("I", "F"))
        upright = image.getexif().get(_ORIENTATION) in _UPRIGHT
    return f".{'jpg' if kind in ('jpeg', 'mpo') else kind}", upright and not odd


def _as_seen(path: Path) -> bytes:
    buffer = io.BytesIO()
    load_image(path).save(buffer, "png")
    return buffer.getvalue()


def forget(folder: Path) -> None:
    """Delete what an export that failed left behind."""
    shutil.rmtree(folder, ignore_errors=True)
