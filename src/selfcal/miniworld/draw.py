"""Paint a world as a 48 x 48 image. Digits are scikit-learn's scans of real handwriting."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from selfcal.miniworld.world import PLACES, POSITIONS, World

SIZE = 48
_CELL = SIZE // 3
_UNIT = 5  # pixels of bar height per unit of value
_RGB = {
    "red": (205, 45, 45),
    "green": (40, 150, 60),
    "blue": (45, 80, 205),
    "yellow": (225, 190, 30),
}


def paint(
    world: World, rng: random.Random, scans: dict[int, list[int]] | None = None
) -> Image.Image:
    """Paint a world; position, size, shade and noise vary with `rng`.

    Args:
        world: what to paint.
        rng: the only source of randomness.
        scans: for digits, which scans of `load_scans` may be used for each value.
    """
    shade = rng.randint(225, 250)
    image = Image.new("RGB", (SIZE, SIZE), (shade, shade, shade))
    draw = ImageDraw.Draw(image)
    for position, color, shape in world.objects:
        _paint_shape(draw, position, color, shape, rng)
    for i, (color, value) in enumerate(world.bars):
        left = i * _CELL + rng.randint(2, 4)
        draw.rectangle(
            (left, SIZE - 1 - value * _UNIT, left + rng.randint(9, 10), SIZE - 1),
            fill=_vary(color, rng),
        )
    for place, value in world.digits:
        choices = (scans or _all_scans())[value]
        _paste_scan(image, load_scans()[0][rng.choice(choices)], PLACES.index(place), rng)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 3, (SIZE, SIZE, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def _vary(color: str, rng: random.Random) -> tuple[int, int, int]:
    r, g, b = (max(0, min(255, c + rng.randint(-18, 18))) for c in _RGB[color])
    return r, g, b


def _paint_shape(
    draw: ImageDraw.ImageDraw, position: str, color: str, shape: str, rng: random.Random
) -> None:
    i = POSITIONS.index(position)
    x = (i % 3) * _CELL + 8 + rng.randint(-1, 1)
    y = (i // 3) * _CELL + 8 + rng.randint(-1, 1)
    r = rng.choice((5, 6, 6))
    fill = _vary(color, rng)
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "square":
        draw.rectangle((x - r + 1, y - r + 1, x + r - 1, y + r - 1), fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)
    else:
        angles = [np.pi / 5 * k - np.pi / 2 for k in range(10)]
        radii = [r + 1 if k % 2 == 0 else 0.45 * r for k in range(10)]
        points = [
            (x + q * np.cos(a), y + q * np.sin(a)) for a, q in zip(angles, radii, strict=True)
        ]
        draw.polygon(points, fill=fill)


def _paste_scan(image: Image.Image, scan: np.ndarray, column: int, rng: random.Random) -> None:
    ink = Image.fromarray((scan * (255 / 16)).astype(np.uint8)).resize(
        (14, 14), Image.Resampling.BICUBIC
    )
    ink = ink.filter(ImageFilter.SHARPEN)
    tone = rng.randint(10, 60)
    at = (column * _CELL + 1 + rng.randint(-1, 1), _CELL + 1 + rng.randint(-1, 1))
    image.paste(Image.new("RGB", ink.size, (tone, tone, tone)), at, mask=ink)


@lru_cache(maxsize=1)
def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 handwritten digits: images [1797, 8, 8] with values 0 to 16, and labels [1797]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


@lru_cache(maxsize=1)
def _all_scans() -> dict[int, list[int]]:
    labels = load_scans()[1]
    return {v: [int(i) for i in np.flatnonzero(labels == v)] for v in range(10)}
