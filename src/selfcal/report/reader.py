"""Who reads the texts of one sample: their sentences, what is wrong with them, and who is better.

The verifier is asked once for each text, and never for one that is too long for a page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from selfcal.miniworld.verifier import Verification
from selfcal.page import LONGEST
from selfcal.rationale import RapFormat
from selfcal.report.marks import Marked, mark
from selfcal.story import Round
from selfcal.types import Sample


@dataclass(frozen=True)
class Reader:
    """A sample, its format, and the verifier where it can be asked."""

    sample: Sample
    form: RapFormat
    verified: Callable[[str], Verification | None]
    _known: dict[str, Verification | None] = field(default_factory=dict)

    def check(self, text: str) -> Verification | None:
        """What the verifier finds in a response; None where nobody can tell."""
        if len(text) > LONGEST:
            return None
        if text not in self._known:
            self._known[text] = self.verified(text)
        return self._known[text]

    def mark(self, text: str) -> Marked:
        """A response, ready to be shown."""
        return mark(text, self.check(text), self.form)

    def truth(self, one: str, other: str) -> int | None:
        """+1 if the one response truly is better, -1 if the other is, 0 if neither; None: unknown.

        As `judge.labels.known_truth` has it: a reliable response is better than one that is not.
        """
        a, b = self.check(one), self.check(other)
        if a is None or b is None or self.sample.confidence < 1:
            return None
        return a.reliable - b.reliable

    def truths(self, told: Round) -> dict[tuple[int, int], int]:
        """The same for the candidates whose verdict is known, by (row, column) of the matrix."""
        texts = {r.candidate.index: r.candidate.text for r in told.candidates}
        asked = [(i, j) for i, j in told.cells if i in texts and j in texts]
        known = {(i, j): self.truth(texts[i], texts[j]) for i, j in asked}
        return {key: sign for key, sign in known.items() if sign is not None}


@dataclass(frozen=True, slots=True)
class Disagreement:
    """How often judge and verifier say different things of two candidates."""

    asked: int
    """Pairs of candidates of which both say something."""
    opposite: int
    """The verifier finds the other one better."""
    invented: int
    """The judge prefers one where the verifier sees no difference."""
    missed: int
    """The judge sees none where the verifier does."""

    @property
    def count(self) -> int:
        """All of them."""
        return self.opposite + self.invented + self.missed


def disagreement(told: Round, truths: dict[tuple[int, int], int]) -> Disagreement:
    """Count the pairs of a round, each once."""
    pairs = [(told.cells[key].sign, sign) for key, sign in truths.items() if key[0] < key[1]]
    return Disagreement(
        asked=len(pairs),
        opposite=sum(said * true < 0 for said, true in pairs),
        invented=sum(said != 0 and true == 0 for said, true in pairs),
        missed=sum(said == 0 and true != 0 for said, true in pairs),
    )
