"""Where a sample's image lies, and whether a page or an export may open it there.

A run may come from anywhere, so a relative path must stay in it, its links followed. Users' own
images may lie elsewhere: the data stage names those by absolute paths.
"""

from __future__ import annotations

import os
from pathlib import Path


def place_of(run: Path, image: str) -> Path | None:
    """The path of an image as a record names it; None: it leads out of the run."""
    path = run / image
    return path if "\0" not in image and (os.path.isabs(image) or _inside(path, run)) else None


def _inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a name that is too long, links in a circle
        return False
