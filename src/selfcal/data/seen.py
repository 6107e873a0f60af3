"""A set of things seen that stays small: eight bytes for each, whatever they are.

What is kept of a thing is a hash of 64 bits. Two among a million things share one with a
probability of 3 in 100 million, so whoever must be sure looks again.
"""

from __future__ import annotations

import hashlib
from typing import Any

_RECENT = 2**15


class Seen:
    """Hashes of things: a sorted array, and the latest ones beside it until they are merged."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        import numpy as np

        self._sorted: Any = np.empty(0, np.uint64)
        self._recent: set[int] = set()
        self._limit = _RECENT

    def __len__(self) -> int:
        """How many different things were seen."""
        return len(self._recent) + len(self._sorted)

    def __contains__(self, thing: bytes) -> bool:
        """Whether it was seen."""
        return self._has(_hash(thing))

    def add(self, thing: bytes) -> bool:
        """See a thing; whether it is a new one."""
        own = _hash(thing)
        if self._has(own):
            return False
        self._recent.add(own)
        if len(self._recent) >= self._limit:
            self._merge()
        return True

    def _has(self, own: int) -> bool:
        if own in self._recent:
            return True
        import numpy as np

        at = int(self._sorted.searchsorted(np.uint64(own)))
        return at < len(self._sorted) and int(self._sorted[at]) == own

    def _merge(self) -> None:
        import numpy as np

        recent = np.fromiter(self._recent, np.uint64, len(self._recent))
        recent.sort()
        self._recent = set()
        self._sorted = np.insert(self._sorted, self._sorted.searchsorted(recent), recent)
        self._limit = max(_RECENT, len(self._sorted) // 256)  # a merge copies all there is


def _hash(thing: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(thing, digest_size=8).digest(), "big")
