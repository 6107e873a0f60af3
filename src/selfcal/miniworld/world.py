"""What is in an image, and how it is said in facts.

A `World` is the truth behind one 48 x 48 image: a scene of coloured shapes on a 3 x 3 grid, a chart
of three bars, or a row of handwritten digits. `facts` writes it in words, `read_facts` reads those
words back, so a sample carries its whole truth as text and the verifier needs nothing else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star")
COLORS = ("red", "green", "blue", "yellow")
POSITIONS = (
    "top-left", "top", "top-right",
    "left", "center", "right",
    "bottom-left", "bottom", "bottom-right",
)  # fmt: skip
PLACES = ("left", "middle", "right")
CATEGORIES = ("perception", "chart", "math")
MAX_BAR = 9


@dataclass(frozen=True, slots=True)
class World:
    """The truth behind one image. Exactly one of the three parts is filled."""

    objects: tuple[tuple[str, str, str], ...] = ()
    """(position, colour, shape) in reading order."""
    bars: tuple[tuple[str, int], ...] = ()
    """(colour, value 1 to 9) from left to right."""
    digits: tuple[tuple[str, int], ...] = ()
    """(place, value 0 to 9) from left to right."""

    @property
    def category(self) -> str:
        """`perception`, `chart` or `math`."""
        return "perception" if self.objects else "chart" if self.bars else "math"

    def count(self, shape: str) -> int:
        """How many objects have this shape."""
        return sum(s == shape for _, _, s in self.objects)

    def find(self, shape: str, color: str | None = None) -> list[tuple[str, str, str]]:
        """Objects of this shape (and colour), in reading order."""
        return [o for o in self.objects if o[2] == shape and color in (None, o[1])]


def plural(shape: str, n: int) -> str:
    """`circle` or `circles`."""
    return shape if n == 1 else shape + "s"


def facts(world: World) -> str:
    """The world in words, complete: what a teacher would note down about the image."""
    if world.objects:
        counts = [f"{world.count(s)} {plural(s, world.count(s))}" for s in SHAPES]
        return "; ".join([f"{p}: {c} {s}" for p, c, s in world.objects] + counts)
    if world.bars:
        return "; ".join(f"{c} bar: {v}" for c, v in world.bars)
    return "; ".join(f"{p} digit: {v}" for p, v in world.digits)


def read_facts(text: str) -> World:
    """Read back what `facts` wrote.

    Raises:
        ValueError: the text is not MiniWorld facts.
    """
    objects: list[tuple[str, str, str]] = []
    bars: list[tuple[str, int]] = []
    digits: list[tuple[str, int]] = []
    for part in text.split(";"):
        name, colon, value = part.strip().partition(": ")
        words = name.split()
        if not colon:
            continue  # counts repeat what the objects say
        if name in POSITIONS and len(value.split()) == 2:
            color, shape = value.split()
            objects.append((name, color, shape))
        elif len(words) == 2 and words[1] in ("bar", "digit") and value.isdigit():
            (bars if words[1] == "bar" else digits).append((words[0], int(value)))
        else:
            raise ValueError(f"not MiniWorld facts: {part.strip()!r} in {text!r}")
    if not objects and not bars and not digits:
        raise ValueError(f"not MiniWorld facts: {text!r}")
    return World(tuple(objects), tuple(bars), tuple(digits))


def random_world(category: str, rng: random.Random) -> World:
    """Draw a world of a category. Digit values are drawn here; their scans when it is painted."""
    if category == "perception":
        chosen = sorted(rng.sample(range(9), rng.randint(3, 5)))
        # two or three shapes dominate, so that counts above one are common
        pool = rng.sample(SHAPES, rng.randint(2, 4))
        return World(
            objects=tuple((POSITIONS[i], rng.choice(COLORS), rng.choice(pool)) for i in chosen)
        )
    if category == "chart":
        values = rng.sample(range(1, MAX_BAR + 1), 3)
        return World(bars=tuple(zip(rng.sample(COLORS, 3), values, strict=True)))
    if category == "math":
        places = PLACES if rng.random() < 0.4 else ("left", "right")
        values = rng.sample(range(10), len(places))
        return World(digits=tuple(zip(places, values, strict=True)))
    raise ValueError(f"unknown category {category!r}; one of {', '.join(CATEGORIES)}")
