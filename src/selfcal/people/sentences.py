"""The sentences of a response as people can mark them: numbered, the answer being the last one."""

from __future__ import annotations

from dataclasses import dataclass

from selfcal.page import LONGEST
from selfcal.rationale import RapFormat


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, without the blanks around it."""

    number: int
    """In its response, from 1."""
    start: int
    end: int
    """Where it stands in the response."""
    text: str


def sentences(text: str, form: RapFormat) -> list[Sentence]:
    """The sentences of a response, of a long one those that a page shows."""
    found: list[Sentence] = []
    start = 0
    for piece in form.split_sentences(text[:LONGEST]):
        bare = piece.strip()
        if bare:
            at = start + piece.index(bare)
            found.append(Sentence(len(found) + 1, at, at + len(bare), bare))
        start += len(piece)
    return found
