"""Which pairs people are shown: a seeded draw out of all that the judge compared in first searches.

Every pair of different texts has nearly the same chance, whatever the judge said of it, so what is
found on the drawn pairs is a fair estimate for all. The draw is a fixed order: of a sample's
`m` pairs, shuffled, the k-th stands at `(k + u) / m` for one random `u` a sample, and the lowest
come first. So each pair's place is uniform on [0, 1], a sample's pairs lie as far apart as they
can, a shorter draw is the beginning of a longer one, and who stops early has judged a fair draw,
too.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from selfcal.errors import SelfcalError
from selfcal.people.judged import Asked, Judged, Key, Pair


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is shown, to whom, and where."""

    pairs: int = 200
    """How many; fewer if the judge compared fewer."""
    iteration: int | None = None
    """Whose pairs; None: those of all that are finished."""
    annotator: str | None = None
    """Who judges; None: the page asks."""
    host: str = "127.0.0.1"
    names: tuple[str, ...] = ()
    """Others that the server goes by, as of a proxy."""
    port: int = 7860
    """The first port that is tried."""
    browser: bool = True
    """Whether a browser is opened."""


def pick(judged: Judged, count: int) -> list[Pair]:
    """The pairs to show, in the order that all annotators get them.

    Raises:
        SelfcalError: there are none to draw from.
    """
    seed = judged.recipe.seed
    drawn = heapq.nsmallest(
        count,
        (row for asked in judged.asked() for row in _placed(asked, seed)),
        key=lambda row: (row[0], row[1].key),
    )
    if not drawn:
        raise SelfcalError(
            f"{judged.run}: its judge compared no two different responses; nothing to show"
        )
    return [pair for _, pair in drawn]


def _placed(asked: Asked, seed: int) -> Iterator[tuple[float, Pair]]:
    """A sample's pairs, each with its place in the draw."""
    rng = random.Random(f"{seed}|audit|{asked.iteration}|{asked.sample.id}")
    pairs: Sequence[Pair] = asked.pairs
    shift = rng.random()
    for k, pair in enumerate(rng.sample(pairs, len(pairs))):
        yield (k + shift) / len(pairs), pair


def swapped(annotator: str, key: Key) -> bool:
    """Whether the one with the higher number stands first for this annotator: a fixed coin."""
    return hashlib.sha256(repr((annotator, *key)).encode()).digest()[0] % 2 == 1
