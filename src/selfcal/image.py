"""One image file in, one upright RGB picture out, or the reason why there is none.

Every reader of images (the policy, the teacher, the check of new data) comes through
`load_image`, so all of them see the same pixels, and an image that passed `check_image` once does
not fail in the middle of a run. Image files are untrusted: only regular files are opened, only
decoders of common formats are asked (others start programs or are hardly tested), and a picture
with too many pixels is refused before it is decoded.
"""

from __future__ import annotations

import base64
import errno
import functools
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from selfcal.errors import SelfcalError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""By Pillow's names. Encapsulated PostScript, for one, would be handed to another program."""
_BYTES = 2**28
"""A file may be this large."""
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
    """Why an image cannot be used: `image-missing`, `image-broken`, `image-too-large`, or None."""
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
    with Image.open(path, formats=_formats()) as file:
        kind = "jpeg" if file.format in ("JPEG", "MPO") else "png"
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


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
        file = source if isinstance(source, Path) else io.BytesIO(source)
        with Image.open(file, formats=_formats()) as image:
            if refused := _too_many_pixels(image, max_pixels):
                return "image-too-large", refused
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
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        unread = isinstance(error, OSError) and error.errno in _OUT_OF_REACH
        return "image-missing" if unread else "image-broken", f"{type(error).__name__}: {error}"


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of the formats that this Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _too_many_pixels(image: Image.Image, max_pixels: int | None) -> str:
    limits = [n for n in (Image.MAX_IMAGE_PIXELS, max_pixels) if n is not None]
    if limits and image.width * image.height > min(limits):
        return f"{image.width} x {image.height} pixels, limit {min(limits)}"
    return ""


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
