"""From samples, a mix: by category, and by the source that they came from.

Samples are drawn in the order of a hash, so their order in a file plays no part. A draw of `n`
holds no more than the `2 n` smallest hashes of each category and source, so it takes a stream of
any length.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from operator import itemgetter
from typing import Generic, TypeVar

from selfcal.data.rows import DataError
from selfcal.types import Sample

T = TypeVar("T")
Key = tuple[bytes, str]
_NAMES = 1000
"""Categories without a weight that are remembered by name, for an error's text."""


def draw_mix(
    samples: Sequence[Sample], n: int, weights: Mapping[str, float] | None, seed: str
) -> list[Sample]:
    """Draw `n` samples without replacement, in the proportion of their categories' weights.

    Samples are drawn in the order of a hash of (seed, id): the order of `samples` does not matter,
    and a smaller draw is contained in a larger one with the same seed. Every next sample comes
    from the category that is furthest behind its share (Sainte-Lague), so 2:1:1 of a multiple of
    four is met exactly. When a category runs short the others make up for it by their weights;
    after them come categories without a weight. A weight of 0 keeps a category out. Without
    weights, categories play no part.

    Returns:
        `n` samples, or fewer if there are no more; in the order of the hash.

    Raises:
        DataError: a weight or `n` is negative, or the weights name a category that no sample has
            while other samples belong to categories that they don't name.
    """
    drawing = Draw[Sample](n, weights)
    for sample in samples:
        drawing.add(sample, order(seed, sample.id), sample.category)
    return drawing.take()


def order(seed: str, sample_id: str) -> Key:
    """What samples are drawn by."""
    return hashlib.sha256(f"{seed} {sample_id}".encode()).digest(), sample_id


class Draw(Generic[T]):
    """A draw from a stream of things, by category and source."""

    def __init__(
        self, n: int, weights: Mapping[str, float] | None, shares: Sequence[float] = (1.0,)
    ) -> None:
        """Draw `n` things, in the proportion of the categories' weights and the sources' shares.

        Within a category, every next thing comes from the source that is furthest behind.

        Raises:
            DataError: `n` is negative.
        """
        if n < 0:
            raise DataError(f"cannot draw {n} samples; give 0 or more")
        self._n, self._weights, self._shares = n, dict(weights or {}), shares
        self._groups: dict[str | None, list[_Smallest[T]]] = {}
        self._unnamed: set[str] = set()

    def add(self, thing: T, key: Key, category: str, source: int = 0) -> None:
        """Have a thing take part."""
        group = category if category in self._weights else None
        if group is None and len(self._unnamed) < _NAMES:
            self._unnamed.add(category)
        if group is not None and self._weights[group] == 0:
            self._groups.setdefault(group, [])  # it is there, and kept out
            return
        if group not in self._groups:
            self._groups[group] = [_Smallest(self._n) for _ in self._shares]
        self._groups[group][source].add(key, thing)

    def take(self) -> list[T]:
        """What was drawn, in the order of the keys.

        Raises:
            DataError: a weight is negative, or names a category that does not occur while there
                are others without a weight.
        """
        if self._weights:
            _check_weights(self._weights, [g for g in self._groups if g], self._unnamed)
        pools = {g: self._interleaved(sources) for g, sources in self._groups.items()}
        named = {c: pool for c, pool in pools.items() if c is not None and pool}
        drawn = [t for c in _turns(named, self._weights, self._n) for t in (named[c].pop(),)]
        drawn += list(reversed(pools.get(None, ())))[: self._n - len(drawn)]
        return [thing for _, thing in sorted(drawn, key=itemgetter(0))]

    def _interleaved(self, sources: list[_Smallest[T]]) -> list[tuple[Key, T]]:
        """Things of a category so that sources take turns by their shares; the first one last."""
        own = {i: source.take()[::-1] for i, source in enumerate(sources)}
        turns = _turns(own, dict(enumerate(self._shares)), self._n)
        return [own[i].pop() for i in turns][::-1]


class _Smallest(Generic[T]):
    """The `n` things with the smallest keys."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._things: list[tuple[Key, T]] = []
        self._limit: Key | None = None

    def add(self, key: Key, thing: T) -> None:
        if self._n and (self._limit is None or key < self._limit):
            self._things.append((key, thing))
            if len(self._things) >= 2 * self._n:
                self._limit = self.take()[-1][0]

    def take(self) -> list[tuple[Key, T]]:
        self._things.sort(key=itemgetter(0))
        del self._things[self._n :]
        return list(self._things)


G = TypeVar("G", str, int)


def _turns(pools: Mapping[G, Sequence[object]], weights: Mapping[G, float], n: int) -> list[G]:
    """Whose turn it is, `n` times or until all pools are empty: who is furthest behind."""
    taken: Counter[G] = Counter()
    turns: list[G] = []
    open_ = {g for g, pool in pools.items() if pool}
    while open_ and len(turns) < n:
        behind = min(open_, key=lambda g: ((taken[g] + 0.5) / weights[g], g))
        turns.append(behind)
        taken[behind] += 1
        if taken[behind] == len(pools[behind]):
            open_.remove(behind)
    return turns


def _check_weights(
    weights: Mapping[str, float], categories: Iterable[str], unnamed: Iterable[str]
) -> None:
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise DataError(f"mix: the weight of {name!r} is {weight}; give 0 or more")
    if not any(weights.values()):
        raise DataError("mix: all weights are 0; give at least one category a weight above 0")
    found, others = set(categories), sorted(unnamed)
    for name in weights:
        # an absent category is a short one, but together with an unnamed one it is a misspelling
        if others and name not in found:
            near = get_close_matches(name, others, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else "correct the name or leave out the mix"
            raise DataError(
                f"mix: no sample has the category {name!r}, but there are "
                f"{', '.join(map(repr, others[:20]))} without a weight; {hint}"
            )
