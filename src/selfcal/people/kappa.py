"""How far two or more raters of pairs agree, and how much of it is more than chance.

A verdict is a sign: +1 the one response, -1 the other, 0 neutral. Which response is called the one
says nothing, so every pair counts from both sides, once as it is and once with all signs turned:
then +1 and -1 are equally frequent, and chance depends on the shares of neutral verdicts alone. For
two raters with the shares `p` and `q` it is `p q + (1 - p) (1 - q) / 2` (Cohen); for any number of
raters with the mean share `z` it is `z^2 + (1 - z)^2 / 2` (Fleiss).

Fleiss' kappa is that of pairs with two or more raters, who may be others from pair to pair, and
more or fewer: a pair's agreement is the share of its own raters' couples that agree, its share of
neutral verdicts is that among its own raters, and every pair counts the same. With equally many
raters this is Fleiss' formula (1971).

Pairs of one sample are not independent, so intervals are made by drawing whole samples anew; of few
samples there is none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

DRAWS = 2000
"""Of the bootstrap."""
FEWEST = 30
"""Samples; of fewer the bootstrap is far too sure, and there is no interval."""
_UNDEFINED = 0.025
"""Share of the draws that may have no kappa: of more, those that do are a choice of the draws."""
_AT_ONCE = 50


class Row(NamedTuple):
    """What raters made of one pair."""

    sample: str
    agreed: float
    """Share of couples of raters that agree: 1 or 0 for two."""
    neutral: float
    """The one rater's share of neutral verdicts: 1 or 0; or the share among all raters."""
    neutral_too: float
    """The other rater's; or again the share among all."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval; None where there is nothing to measure."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Agreed:
    """How far some raters agree."""

    raters: tuple[str, ...]
    pairs: int
    samples: int
    agreement: Interval
    """Plain: the share of pairs with the same verdict."""
    kappa: Interval
    """Beyond chance: 1 is perfect, 0 no better than chance; None if chance alone is perfect."""


def cohen(raters: tuple[str, str], verdicts: Iterable[tuple[str, int, int]]) -> Agreed:
    """The agreement of two raters; `verdicts`: a sample's id and both signs, pair by pair."""
    rows = [Row(sample, a == b, a == 0, b == 0) for sample, a, b in verdicts]
    return measured(raters, rows)


def fleiss(raters: tuple[str, ...], verdicts: Iterable[tuple[str, Sequence[int]]]) -> Agreed:
    """The agreement of any number of raters.

    Args:
        raters: their names.
        verdicts: a sample's id and the signs that those gave who judged the pair, pair by pair;
            pairs that one rater judged are passed over.
    """
    rows = []
    for sample, signs in verdicts:
        r = len(signs)
        if r > 1:
            equal = sum(n * (n - 1) for n in map(signs.count, (1, -1, 0)))
            neutral = signs.count(0) / r
            rows.append(Row(sample, equal / (r * (r - 1)), neutral, neutral))
    return measured(raters, rows)


def measured(raters: tuple[str, ...], rows: Sequence[Row], seed: int = 0) -> Agreed:
    """Plain agreement and kappa of these rows, with intervals (percentiles of a bootstrap)."""
    import numpy as np

    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
    for row in rows:
        own = sums[row.sample]
        for i, value in enumerate((1.0, row.agreed, row.neutral, row.neutral_too)):
            own[i] += value
    table = np.array(list(sums.values()), dtype=np.float64).reshape(-1, 4)
    plain, kappa = _figures(table.sum(axis=0, keepdims=True))
    drawn = _redrawn(table, seed) if len(table) >= FEWEST else np.empty((0, 4))
    plains, kappas = _figures(drawn)
    return Agreed(raters, len(rows), len(table), _interval(plain, plains), _interval(kappa, kappas))


def _redrawn(table: NDArray[float64], seed: int) -> NDArray[float64]:
    """Sums over samples drawn with replacement, a row a draw."""
    import numpy as np

    rng, n = np.random.default_rng(seed), len(table)
    even = np.full(n, 1 / n)
    parts = [rng.multinomial(n, even, size=_AT_ONCE) @ table for _ in range(DRAWS // _AT_ONCE)]
    return np.concatenate(parts)


def _figures(sums: NDArray[float64]) -> tuple[NDArray[float64], NDArray[float64]]:
    """Agreement and kappa of each row of sums: pairs, agreements, neutral verdicts of either."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        hits, p, q = (sums[:, i] / sums[:, 0] for i in (1, 2, 3))
        chance = p * q + (1 - p) * (1 - q) / 2
        # whose chance is 1 have always said neutral: 0 / 0
        return hits, np.where(chance < 1, (hits - chance) / (1 - chance), np.nan)


def _interval(figure: NDArray[float64], drawn: NDArray[float64]) -> Interval:
    import numpy as np

    if not len(figure) or np.isnan(figure[0]):
        return Interval(None, None, None)
    known = drawn[~np.isnan(drawn)]
    if len(known) < DRAWS * (1 - _UNDEFINED):
        return Interval(round(float(figure[0]), 4), None, None)
    low, high = np.percentile(known, [2.5, 97.5])
    return Interval(*(round(float(x), 4) for x in (figure[0], low, high)))
