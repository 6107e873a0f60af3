"""A run's images, small enough for a page: each picture once, by the digest of what it shows.

Images come in through `load_image`, which refuses what is too large before it is decoded, from
where `place_of` lets them be. What goes out is a thumbnail, in the page itself or in a folder
beside it, under a name made of its digest: no name out of a run ever becomes part of a path that is
written. An image that cannot be read is a picture with a reason instead.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote

from selfcal.image import ImageError, examine, load_image
from selfcal.store import write_bytes
from selfcal.story import place_of
from selfcal.view.text import safe

if TYPE_CHECKING:
    from PIL import Image

SIDE = 512
"""Pixels that the longer side of a thumbnail has at most."""
_SMALL = 256**2
"""Pixels up to which both formats are tried, and JPEG in a finer quality: each of them counts."""
_FLAT = 256
"""Colours up to which a larger picture is a drawing, for which PNG is tried, too."""
_STEPS = ((SIDE, 80), (SIDE, 60), (384, 65), (320, 55), (256, 50), (192, 45))
"""Sides and qualities that are tried until a thumbnail is light enough."""
_LONGEST_NAME = 120


@dataclass(frozen=True, slots=True)
class Shown:
    """An image of a sample as a page shows it."""

    name: str
    """Where it lies in the run, or its last part outside of it; fit to be shown."""
    digest: str = ""
    """Of the thumbnail; empty: there is none."""
    width: int = 0
    height: int = 0
    """Of the thumbnail, in pixels."""
    size: str = ""
    """Of the image itself, in words."""
    src: str = ""
    """Address relative to the page, where thumbnails lie in a folder; else the page holds it."""
    error: str = ""
    """Why there is no thumbnail."""


class Pictures:
    """The images that a page shows, each read once."""

    def __init__(
        self,
        run: Path,
        assets: Path | None = None,
        page: Path | None = None,
        heaviest: int | None = None,
    ) -> None:
        """Take the run whose images they are.

        Args:
            run: its folder; images are named relative to it.
            assets: folder that thumbnails are written to; None: the page holds them.
            page: folder of the page, from which `assets` is found; None: the one above `assets`.
            heaviest: bytes of one that the page holds, as near as its least size comes to it;
                None: whatever it needs.
        """
        self._run, self._assets = run, assets
        self._heaviest = heaviest if assets is None else None
        self._page = page or (assets.parent if assets else None)
        self._shown: dict[str, Shown] = {}
        self._urls: dict[str, str] = {}
        self._kept: set[str] = set()

    @property
    def urls(self) -> Mapping[str, str]:
        """Data URLs by digest; none where thumbnails lie in a folder."""
        return self._urls

    def take(self, image: str) -> Shown:
        """A sample's image, by its path in the run.

        Raises:
            StoreError: the thumbnail cannot be written.
        """
        if image not in self._shown:
            self._shown[image] = self._read(image)
        return self._shown[image]

    def _read(self, image: str) -> Shown:
        name = self._name(image)
        if not image:
            return Shown(name, error="none is named")
        path = place_of(self._run, image)
        if path is None:
            return Shown(name, error="its path leads out of the run")
        try:
            whole = load_image(path)
        except ImageError:
            return Shown(name, error=self._reason(path))
        size = f"{whole.width:,} × {whole.height:,} pixels"  # noqa: RUF001
        for side, quality in _STEPS:
            whole.thumbnail((side, side))
            kind, data = _encoded(whole, quality)
            if self._heaviest is None or len(data) <= self._heaviest:
                break
        digest = hashlib.sha256(data).hexdigest()[:20]
        src = self._keep(digest, kind, data)
        return Shown(name, digest, whole.width, whole.height, size, src)

    def _keep(self, digest: str, kind: str, data: bytes) -> str:
        """Write or remember a thumbnail; its address, if it has one of its own."""
        if self._assets is None:
            text = base64.b64encode(data).decode("ascii")
            self._urls[digest] = f"data:image/{kind};base64,{text}"
            return ""
        path = self._assets / f"{digest}.{'jpg' if kind == 'jpeg' else kind}"
        if digest not in self._kept:
            write_bytes(path, data)
            self._kept.add(digest)
        assert self._page is not None
        return quote(Path(os.path.relpath(path.resolve(), self._page.resolve())).as_posix())

    def _name(self, image: str) -> str:
        name = PurePosixPath(image).name if os.path.isabs(image) else image
        return safe(name if len(name) <= _LONGEST_NAME else f"…{name[-_LONGEST_NAME:]}")

    def _reason(self, path: Path) -> str:
        """Why an image cannot be used, without saying where on this machine it lies."""
        found = examine(path)
        reason, detail = found if isinstance(found, tuple) else ("image-missing", "try again")
        for own in (path, path.absolute(), path.parent, path.parent.absolute()):
            detail = detail.replace(str(own), "…")
        return safe(f"{reason.replace('-', ' ')} ({detail[:300]})")


def _encoded(image: Image.Image, quality: int) -> tuple[str, bytes]:
    """A picture in the smaller of the two formats: its type and its bytes."""
    small = image.width * image.height <= _SMALL
    fine = (
        {"quality": 92, "subsampling": 0}
        if small and quality == _STEPS[0][1]
        else {"quality": quality}
    )
    made = {"jpeg": _saved(image, "jpeg", **fine)}
    if small or image.getcolors(_FLAT):
        made["png"] = _saved(image, "png", optimize=True)
    kind = min(made, key=lambda k: len(made[k]))
    return kind, made[kind]


def _saved(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
