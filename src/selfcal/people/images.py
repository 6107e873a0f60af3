"""A sample's images, for a page and for an export: they lie in the run, or where its data say.

A run may come from anywhere, so they are opened where `place_of` lets them be, and what is handed
on must be an image.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

from selfcal.image import ImageError, check_image, load_image
from selfcal.story import place_of
from selfcal.view.text import safe

_LONGEST_SIDE = 2048
"""Of an image on a page, in pixels; larger ones are scaled down."""
_LEAVES = "its path leads out of the run"


def image_path(run: Path, image: str) -> Path:
    """Where a sample's image lies.

    Raises:
        ImageError: it is missing, no image, or its path leads out of the run.
    """
    path = place_of(run, image) if image else None
    if path is None:
        raise ImageError(f"{run}: image {safe(image)}: {_LEAVES}; correct the run's data")
    load_image(path)
    return path


def shown(run: Path, image: str) -> bytes | str:
    """A sample's image as PNG, or why there is none, not saying where on this machine it lies."""
    if not image:
        return "none is named"
    path = place_of(run, image)
    if path is None:
        return _LEAVES
    try:
        state = path.stat()
        return _png(path, state.st_mtime_ns, state.st_size)
    except (OSError, ImageError):
        return (check_image(path) or "image-missing").replace("-", " ")


@lru_cache(maxsize=16)  # a page looks whether there is a picture, then the browser asks for it
def _png(path: Path, changed: int, size: int) -> bytes:
    picture = load_image(path)
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()
