"""A sample's images, for a page and for an export: they lie in the run, or where its data say.

A run may come from anywhere, so a relative path may not climb out of it, and what is handed on must
be an image. Users' own images may lie elsewhere: the data stage names those by absolute paths.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path, PurePosixPath

from selfcal.image import ImageError, check_image, load_image
from selfcal.view.text import safe

_LONGEST_SIDE = 2048
"""Of an image on a page, in pixels; larger ones are scaled down."""
_LEAVES = "its path leads out of the run"


def image_path(run: Path, image: str) -> Path:
    """Where a sample's image lies.

    Raises:
        ImageError: it is missing, no image, or its path leads out of the run.
    """
    if _leaves(image):
        raise ImageError(f"{run}: image {safe(image)}: {_LEAVES}; correct the run's data")
    load_image(run / image)
    return run / image


def shown(run: Path, image: str) -> bytes | str:
    """A sample's image as PNG, or why there is none, not saying where on this machine it lies."""
    if _leaves(image):
        return _LEAVES if image else "none is named"
    path = run / image
    try:
        state = path.stat()
        return _png(path, state.st_mtime_ns, state.st_size)
    except (OSError, ImageError):
        return (check_image(path) or "image-missing").replace("-", " ")


def _leaves(image: str) -> bool:
    return not image or "\0" in image or ".." in PurePosixPath(image).parts


@lru_cache(maxsize=16)  # a page looks whether there is a picture, then the browser asks for it
def _png(path: Path, changed: int, size: int) -> bytes:
    picture = load_image(path)
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()
