"""Judges that are no method: one guesses, one knows. They show what the loop owes to its judge."""

from __future__ import annotations

import random
from collections.abc import Sequence

from selfcal.judge.scorer import Comparison, judgment
from selfcal.miniworld.verifier import compare
from selfcal.rationale import HEADINGS, RapFormat
from selfcal.types import Judgment


class GuessingJudge:
    """Random verdict probabilities: a loop that gains by it would gain by anything."""

    def __init__(self, seed: str) -> None:
        """Guess the same for the same seed and pair."""
        self._seed = seed

    def judge(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        """Guess."""
        return [judgment(c, self._guess(c)) for c in comparisons]

    def _guess(self, c: Comparison) -> list[float]:
        rng = random.Random(f"{self._seed}|{c.sample.id}|{c.first.index}|{c.second.index}")
        weights = [rng.expovariate(1) for _ in range(3)]
        return [w / sum(weights) for w in weights]


class VerifyingJudge:
    """MiniWorld's verifier as judge: what a perfect R-Scorer would bring."""

    def __init__(self, form: RapFormat = HEADINGS) -> None:
        """Read responses in a format."""
        self._form = form

    def judge(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        """The true verdict, with certainty."""
        order = ("first", "second", "neutral")
        found = [compare(c.sample, c.first.text, c.second.text, self._form) for c in comparisons]
        return [
            judgment(c, [float(v == o) for o in order])
            for c, v in zip(comparisons, found, strict=True)
        ]
