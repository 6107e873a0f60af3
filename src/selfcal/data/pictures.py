"""Images of samples: found, looked at by several threads, and remembered in little memory.

An image that was looked at once is not looked at again: what is remembered of it are two short
hashes, of its path and of its content, so that a million images take about 200 MB, and more are not
remembered. Content means the bytes of the file: the same picture saved anew is another image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

from selfcal.image import Picture, examine

CONTENT = 16
"""Bytes of a content's hash."""
_REMEMBERED = 2**20
_THREADS = 8
_PATH = 4096
"""Characters; no system takes longer paths."""
_REASONS = (
    "", "image-missing", "image-broken", "image-too-large", "image-too-small", "image-too-slim",
    "image-polyglot",
)  # fmt: skip
_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "PPM": "ppm", "JPEG2000": "jp2"}
_KNOWN_ENDINGS = ("", "jpg", "png", "gif", "webp", "bmp", "tif", "ppm", "avif", "jp2")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the rows of a file must meet."""

    min_side: int = 0
    max_pixels: int | None = None
    """None: as many as Pillow takes for safe."""
    max_images: int = 8


@dataclass(frozen=True, slots=True)
class Looked:
    """What is remembered of an image."""

    reason: str | None
    """Why it cannot be used."""
    content: bytes
    """Hash of its bytes; all zero where it could not be read."""
    ending: str
    """That a file of its format has."""


class Checker:
    """Looks at images, each once, in threads; to be used in a `with` block."""

    def __init__(self, rules: Rules, looked: Callable[[Picture], None] | None = None) -> None:
        """Prepare; `looked` is told of every image that can be used, once, in this thread."""
        self.rules = rules
        self._looked = looked
        self._known: dict[bytes, bytes] = {}
        self._open: dict[bytes, Future[tuple[bytes, Picture | None]]] = {}
        self._pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))

    def __enter__(self) -> Self:
        """Nothing more."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the threads; what nobody waits for any more is not looked at."""
        self._pool.shutdown(cancel_futures=True)

    def begin(self, image: str | bytes) -> Callable[[], Looked]:
        """Start to look at an image; the result waits until it is known.

        Args:
            image: an absolute path, or content.
        """
        key = content_of(image) if isinstance(image, bytes) else _path_key(image)
        if (known := self._known.get(key)) is not None:
            return lambda: _unpacked(known)
        future = self._open.get(key)
        if future is None:
            source = image if isinstance(image, bytes) else Path(image)
            future = self._pool.submit(_look, source, self.rules)
            self._open[key] = future
        return lambda: self._settle(key, future)

    def _settle(self, key: bytes, future: Future[tuple[bytes, Picture | None]]) -> Looked:
        packed, picture = future.result()
        if self._open.pop(key, None) is not None:
            self._known[key] = packed
            if len(self._known) > _REMEMBERED:
                del self._known[next(iter(self._known))]
            if picture is not None and self._looked is not None:
                self._looked(picture)
        return _unpacked(packed)


def content_of(data: bytes) -> bytes:
    """Hash of an image's bytes."""
    return hashlib.sha256(data).digest()[:CONTENT]


def locate(image: str, root: str) -> tuple[str, str | None]:
    """The absolute path of an image, and why it cannot be used as far as its place can tell.

    Whatever the path (with `..`, absolute, through links), the file must lie below the root.

    Args:
        image: as it stands in the file.
        root: folder that it is below, absolute.
    """
    if not image.strip():
        return "", "image-missing"
    if len(image) > _PATH:
        return "", "image-missing"
    return _located(image, root)


@lru_cache(maxsize=4096)  # many questions in a row can share one image
def _located(image: str, root: str) -> tuple[str, str | None]:
    if "\0" in image:
        return image, "unsafe-path"
    path = os.path.normpath(os.path.join(root, image))  # lexically: no `..` is left to climb by
    if not _below(path, root):
        return path, "unsafe-path"
    real = os.path.join(_real(os.path.dirname(path)), os.path.basename(path))
    if os.path.islink(real):
        real = os.path.realpath(real)
    return path, None if _below(real, _real(root)) else "unsafe-path"


def _below(path: str, root: str) -> bool:
    return os.path.commonpath([root, path]) == root


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def save_image(path: Path, data: bytes) -> None:
    """Write an embedded image under a name that its content gave; one that is there stays.

    It is synced when its stage is finished.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _path_key(path: str) -> bytes:
    return hashlib.blake2b(path.encode(errors="surrogatepass"), digest_size=CONTENT).digest()


def _look(source: Path | bytes, rules: Rules) -> tuple[bytes, Picture | None]:
    found = examine(source, rules.min_side, rules.max_pixels)
    if isinstance(found, tuple):
        return bytes([_REASONS.index(found[0]), 0]) + bytes(CONTENT), None
    try:
        content = content_of(source) if isinstance(source, bytes) else _file_content(source)
    except OSError:
        return bytes([_REASONS.index("image-missing"), 0]) + bytes(CONTENT), None
    ending = _ENDINGS.get(found.format, found.format.lower())
    return bytes([0, _KNOWN_ENDINGS.index(ending)]) + content, found


def _file_content(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()[:CONTENT]


def _unpacked(packed: bytes) -> Looked:
    return Looked(_REASONS[packed[0]] or None, packed[2:], _KNOWN_ENDINGS[packed[1]])
