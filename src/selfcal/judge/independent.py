"""Independent scoring: each response is graded alone, which is what SRC compares pairs against.

The grader is trained like the R-Scorer, from the same label-giving judge, but sees one response at
a time and says whether it is good. From two grades a comparison follows: the first is better if it
is good and the second is not, and so on, as if the two grades were independent. So curation and
audit treat both kinds of judge alike, and candidates end up in the order of their grades.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from selfcal.judge.grader import Grader
from selfcal.judge.scorer import Comparison, Reading, judgment
from selfcal.types import Judgment

if TYPE_CHECKING:
    from selfcal.judge.sharing import Counts


def compared(good_first: float, good_second: float) -> tuple[float, float, float]:
    """Probabilities of first, second and neutral out of two independent probabilities of good."""
    first = good_first * (1 - good_second)
    second = good_second * (1 - good_first)
    return first, second, 1 - first - second


class IndependentScorer:
    """A language model that grades responses one by one, as a judge of pairs."""

    def __init__(self, path: str, prompt: str | None, how: Reading) -> None:
        """Load the grader from a folder, the hub or `miniworld:NAME`.

        Raises:
            ModelError: it cannot be loaded or its tokenizer cannot tell the grades.
        """
        self._grader = Grader(path, {"good": prompt}, how)

    @property
    def counts(self) -> Counts:
        """What it computed so far."""
        return self._grader.counts

    def judge(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        """Grade every response once, then compare the grades."""
        shown = {
            (c.sample.id, own.index): (c.sample, own.text)
            for c in comparisons
            for own in (c.first, c.second)
        }
        grades = dict(zip(shown, self._grader.grade("good", list(shown.values())), strict=True))
        return [judgment(c, _pair(grades, c)) for c in comparisons]


def _pair(
    grades: dict[tuple[str, int], float | None], c: Comparison
) -> tuple[float, float, float] | None:
    first, second = (grades[c.sample.id, own.index] for own in (c.first, c.second))
    return None if first is None or second is None else compared(first, second)
