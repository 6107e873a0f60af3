"""How long parsers of untrusted text take for long strings, and how that grows with their length.

    python -m benchmarks.linear [PARSER...]

For each parser the slowest family of strings, its time for 2**15 and 2**16 characters, and the
ratio of both (linear: 2; the least of some repeats is taken). Exit code 1: a ratio above 2.6.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tests.fuzz import hostile

SIZE = 2**15
REPEATS, ROUNDS = 3, 6
MOST = 2.6
NOTICED_S = 0.005


def seconds(read: Callable[[str], object], text: str) -> float:
    """Seconds of computing."""
    begun = time.process_time()
    hostile.quietly(read, text)
    return time.process_time() - begun


def least(read: Callable[[str], object], one: str, two: str) -> tuple[float, float]:
    """Seconds for both, the least of some repeats by turns; of more where the ratio is high.

    Others at work make all slower, and not by the same.
    """
    first, second = [], []
    for _ in range(ROUNDS):
        for _ in range(REPEATS):
            first.append(seconds(read, one))
            second.append(seconds(read, two))
        if min(second) / min(first) <= MOST:
            break
    return min(first), min(second)


def main(names: list[str]) -> int:
    """Measure, and print a line a parser."""
    families, over = hostile.families(), 0
    for name, read in hostile.parsers().items():
        if names and name not in names:
            continue
        worst = (0.0, 0.0, "")
        for family, make in families.items():
            if seconds(read, make(SIZE)) < NOTICED_S:
                continue
            one, two = least(read, make(SIZE), make(2 * SIZE))
            worst = max(worst, (two / one, two, family))
        ratio, took, family = worst
        over += ratio > MOST
        print(f"{name:24} ratio {ratio:.2f}, {took * 1000:.1f} ms, {family}", flush=True)
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
