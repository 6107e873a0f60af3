"""One image file in, one upright RGB picture out, or the reason why there is none.

Every reader of images (the policy, the teacher, the check of new data) comes through
`load_image`, so all of them see the same pixels, and an image that passed `check_image` once does
not fail in the middle of a run. Image files are untrusted: only regular files are opened, only
decoders of common formats are asked (others start programs or are hardly tested), a picture with
too many pixels is refused before it is decoded, and a file that is a web page, an archive or a
program beside being a picture is none. What counts is a file's content, never its ending.
"""

from __future__ import annotations

import base64
import errno
import functools
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

from selfcal.errors import SelfcalError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""By Pillow's names. Encapsulated PostScript, for one, would be handed to another program."""
_BYTES = 2**28
"""A file may be this large."""
_SIDE = 30_000
"""Pixels of a side, at most."""
_SLIM = 200
"""How many times as long as wide a picture may be: a model's processor scales the short side up,
and the long one with it."""
_OUT_OF_REACH = {
    errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EIO,
}  # fmt: skip
"""Errors of the system by which nothing is known of a file's content."""
_TURNED = range(2, 9)
"""EXIF orientations that are not upright."""
_WAYS_OUT = {
    "image-missing": "put the file there or correct the path",
    "image-broken": "replace the file",
    "image-too-large": "scale the image down",
    "image-too-small": "take a larger image, or lower data.min_side",
    "image-too-slim": "crop or pad the image",
    "image-polyglot": "save the picture anew, as a picture alone",
}


class ImageError(SelfcalError):
    """An image cannot be used: the text names the file, the reason and the way out."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What an image is, found by decoding it."""

    width: int
    height: int
    """In pixels, upright."""
    mode: str
    """Of its pixels in the file, by Pillow's name, such as `RGB`, `CMYK` or `I;16`."""
    format: str
    """By Pillow's name."""
    animated: bool
    """Whether there are more frames than the first, which is the one that is taken."""
    turned: bool
    """Whether its EXIF orientation turned it."""


def load_image(path: Path) -> Image.Image:
    """Decode an image fully, as RGB, turned upright by its EXIF orientation.

    Transparent parts become white, 16-bit grey is scaled to 8 bits, and of an animation the first
    frame is taken.

    Raises:
        ImageError: the file is missing, broken or too large.
    """
    decoded = _decode(path)
    if isinstance(decoded[0], str):
        reason, detail = decoded
        raise ImageError(f"{path}: {reason} ({detail}); {_WAYS_OUT[reason]}")
    return decoded[0]


def check_image(path: Path) -> str | None:
    """Why an image cannot be used, such as `image-missing` or `image-broken`; None: it can."""
    decoded = _decode(path)
    return decoded[0] if isinstance(decoded[0], str) else None


def examine(
    source: Path | bytes, min_side: int = 0, max_pixels: int | None = None
) -> Picture | tuple[str, str]:
    """What an image is, or (reason, detail) why it cannot be used.

    Args:
        source: a file, or the content of one.
        min_side: least width and height, in pixels; a smaller image is `image-too-small`.
        max_pixels: more of them are `image-too-large`, before they are decoded.
    """
    decoded = _decode(source, max_pixels)
    if isinstance(decoded[0], str):
        return decoded[0], str(decoded[1])
    found = decoded[1]
    assert isinstance(found, Picture)
    if min(found.width, found.height) < min_side:
        return "image-too-small", f"{found.width} x {found.height} pixels, at least {min_side}"
    return found


def data_url(path: Path) -> str:
    """The image as a data URL: what the policy sees is what a server gets to see.

    Photographs (JPEG) stay JPEG, everything else is sent as PNG.

    Raises:
        ImageError: as `load_image`.
    """
    image = load_image(path)
    with opened(path) as file:
        kind = "jpeg" if file.format in ("JPEG", "MPO") else "png"
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def opened(source: Path | IO[bytes]) -> Image.Image:
    """An image whose header was read, by the decoders of `FORMATS` alone.

    Raises:
        OSError: it is none; other errors are those of Pillow's decoders.
    """
    return Image.open(source, formats=_formats())


def _decode(
    source: Path | bytes, max_pixels: int | None = None
) -> tuple[Image.Image, Picture] | tuple[str, str]:
    """The picture and what it is, or (reason, detail)."""
    try:
        if isinstance(source, Path) and not source.is_file():  # devices could block or never end
            return "image-missing", "no such file"
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        if not 0 < size <= _BYTES:
            return ("image-too-large", f"{size} bytes") if size else ("image-broken", "it is empty")
        data = source.read_bytes() if isinstance(source, Path) else source
        if slow := _slow(data):
            return "image-broken", slow
        with opened(io.BytesIO(data)) as image:
            if what := _also(data):
                return "image-polyglot", f"it is {what}, too"
            if refused := _ill_shaped(image, max_pixels):
                return refused
            mode = image.mode
            image.load()
            upright, turned = _upright(image)
            rgb = _to_rgb(upright)
            about = mode, image.format or "", _is_animated(image), turned
            return rgb, Picture(rgb.width, rgb.height, *about)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return "image-too-large", str(error)
    except MemoryError:  # of this machine, and no fault of the file
        raise
    except UnidentifiedImageError:
        return "image-broken", "it is of no format that is read"
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        unread = isinstance(error, OSError) and error.errno in _OUT_OF_REACH
        return "image-missing" if unread else "image-broken", f"{type(error).__name__}: {error}"


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of the formats that this Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _ill_shaped(image: Image.Image, max_pixels: int | None) -> tuple[str, str] | None:
    """(reason, detail) if nobody should decode it."""
    limits = [n for n in (Image.MAX_IMAGE_PIXELS, max_pixels) if n is not None]
    short, long = sorted(image.size)
    if short < 1:
        return "image-broken", f"{image.width} x {image.height} pixels"
    if limits and short * long > min(limits):
        return "image-too-large", f"{image.width} x {image.height} pixels, limit {min(limits)}"
    if long > _SIDE:
        return "image-too-large", f"{image.width} x {image.height} pixels, limit of a side {_SIDE}"
    if long > _SLIM * short:
        return "image-too-slim", f"{image.width} x {image.height} pixels"
    return None


_PLAIN_PNM = (b"P1", b"P2", b"P3")
_SPACE = rb"\s{1,8}(?:#[^\r\n]{0,200}[\r\n]\s{0,8}){0,8}"
_PNM = re.compile(
    rb"P(?:4(?:%b\d{1,10}){2}|[^\s4]\S{0,5}(?:%b[\d.-]{1,10}){3})\s" % (_SPACE, _SPACE)
)
"""Their header, with few comments: it is read byte by byte."""
_SCANS, _SEGMENTS = 100, 10_000
"""Of a JPEG: a picture in progressive form has about ten scans."""
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")


def _slow(data: bytes) -> str:
    """Why a small file would take long to decode; empty: it does not, for all that is known."""
    if data.startswith(_PLAIN_PNM):  # decoded by loops in Python
        return "its pixels are spelled out in text, which is not read"
    if data[:1] == b"P" and data[1:2].isalnum() and not _PNM.match(data):
        return "it has no short header"
    return "it has too many scans or segments" if _scans(data) > _SCANS else ""


def _scans(data: bytes) -> int:
    """Scans of a JPEG, each of which is decoded over the whole picture; 0 of other files."""
    if not data.startswith(b"\xff\xd8"):
        return 0
    scans, at = 0, 2
    for _ in range(_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or found[1] == b"\xd9" or scans > _SCANS:
            return scans
        scans += found[1] == b"\xda"
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return _SCANS + 1


_PAGE = re.compile(rb"<(?:script|html|iframe|!doctype\s+html|\?php|svg[\s>]|\?=)", re.IGNORECASE)
_SCRIPT = re.compile(rb"(?:GIF8[79]a|BM)(?:/\*|=)")
_PROGRAMS = (b"\x7fELF", b"MZ", b"#!", b"%PDF-")
_END_OF_ZIP = b"PK\5\6"


def _also(data: bytes) -> str:
    """What else the bytes of a picture would pass for; empty: nothing that is looked for here."""
    if _PAGE.search(data):
        return "a web page"
    if _SCRIPT.match(data):
        return "a script"
    if data.startswith(_PROGRAMS) or b"%PDF-" in data[:1024]:
        return "a document or program"
    at = data.rfind(_END_OF_ZIP, max(0, len(data) - 2**16 - 22))
    # its last two bytes say how long a comment follows, so that chance hardly makes one
    whole = at >= 0 and at + 22 + int.from_bytes(data[at + 20 : at + 22], "little") == len(data)
    return "an archive" if whole else ""


def _is_animated(image: Image.Image) -> bool:
    if image.format == "MPO":  # a camera's further pictures are previews, or the other eye's
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame does no harm to the first
        return True


def _upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image as it is to be shown; one whose EXIF part is damaged, as it is."""
    try:
        turned = image.getexif().get(0x0112) in _TURNED
        return (ImageOps.exif_transpose(image), True) if turned else (image, False)
    except MemoryError:
        raise
    except Exception:
        return image, False


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    if image.mode.startswith("I;16"):
        # Pillow would clip at 255, which leaves nearly everything white
        image = image.point(lambda value: value * (1 / 257)).convert("L")
    elif image.mode in ("I", "F"):
        image = _to_grey(image)
    return image.convert("RGB")


def _to_grey(image: Image.Image) -> Image.Image:
    """32-bit grey to 8 bits: by the range that its values seem to be of."""
    low, high = image.getextrema()
    assert isinstance(low, int | float) and isinstance(high, int | float)
    if low >= 0 and high <= (1 if image.mode == "F" else 255):
        low, high = 0, 1 if image.mode == "F" else 255
    elif low >= 0 and high <= 65535:
        low, high = 0, 255 if high <= 255 else 65535
    scale = 255 / (high - low) if high > low else 0.0
    return image.convert("F").point(lambda value: value * scale + (-low * scale)).convert("L")
