"""Image files: a path in, an upright RGB picture out, or the reason why there is none.

Every reader of images (the policy, the teacher, the check of new data) comes through
`load_image`, so all of them see the same pixels, and an image that passed `check_image` once does
not fail in the middle of a run. Image files are untrusted: only regular files are opened, and a
picture with more pixels than Pillow's `Image.MAX_IMAGE_PIXELS` is refused before it is decoded.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

from selfcal.errors import SelfcalError

_WAYS_OUT = {
    "image-missing": "put the file there or correct the path",
    "image-broken": "replace the file",
    "image-too-large": "scale the image down",
}


class ImageError(SelfcalError):
    """An image cannot be used: the text names the file, the reason and the way out."""


def load_image(path: Path) -> Image.Image:
    """Decode an image fully, as RGB, turned upright by its EXIF orientation.

    Transparent parts become white, 16-bit grey is scaled to 8 bits, and of an animation the first
    frame is taken.

    Raises:
        ImageError: the file is missing, broken or too large.
    """
    decoded = _decode(path)
    if isinstance(decoded, Image.Image):
        return decoded
    reason, detail = decoded
    raise ImageError(f"{path}: {reason} ({detail}); {_WAYS_OUT[reason]}")


def check_image(path: Path) -> str | None:
    """Why an image cannot be used: `image-missing`, `image-broken`, `image-too-large`, or None."""
    decoded = _decode(path)
    return None if isinstance(decoded, Image.Image) else decoded[0]


def data_url(path: Path) -> str:
    """The image as a data URL: what the policy sees is what a server gets to see.

    Photographs (JPEG) stay JPEG, everything else is sent as PNG.

    Raises:
        ImageError: as `load_image`.
    """
    image = load_image(path)
    with Image.open(path) as file:
        kind = "jpeg" if file.format in ("JPEG", "MPO") else "png"
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _decode(path: Path) -> Image.Image | tuple[str, str]:
    """The picture, or (reason, detail)."""
    try:
        if not path.is_file():  # devices and pipes could block or never end
            return "image-missing", "no such file"
        with Image.open(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                return "image-too-large", f"{image.width} x {image.height} pixels, limit {limit}"
            return _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return "image-too-large", str(error)
    except (FileNotFoundError, PermissionError) as error:
        return "image-missing", str(error)
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        return "image-broken", f"{type(error).__name__}: {error}"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    if image.mode.startswith("I;16"):
        # Pillow would clip at 255, which leaves nearly everything white
        image = image.point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("RGB")
