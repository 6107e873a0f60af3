"""A response made legible: its sentences, what the verifier found in each, and what differs.

In come the text of a response and the verifier's findings, where there are any; out come lines that
a template shows as they are. Two responses are laid side by side by their sentences, and within two
sentences that face each other the words that differ are marked. The work is bounded: a text that is
too long for it is shown whole and unmarked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import groupby, zip_longest

from selfcal.miniworld.verifier import Verification
from selfcal.page import LONGEST, shortened
from selfcal.rationale import RapFormat
from selfcal.types import Response
from selfcal.view.text import safe

MOST = 200
"""Sentences that are told apart; a response of more is shown whole."""
_WORDS = 60
"""Words of a sentence up to which it is compared word by word."""
_ALIKE = 0.4
"""Share of words in common from which single words are marked, rather than the sentence."""
_WORD = re.compile(r"\s+|\w+|[^\w\s]")
FLAWS = ("wrong answer", "counterfactual", "insufficient", "unreasonable", "inconsistent", "format")
"""What can be wrong with a response, in the order in which it is said."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some words of a sentence."""

    text: str
    changed: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A sentence, or the answer."""

    pieces: tuple[Piece, ...]
    status: str = ""
    """The verifier's word for it; empty: nobody can tell."""
    differs: bool = False
    """Whether the other response has no such sentence."""
    row: int = 0
    """Where it stands when two are laid side by side, from 1."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A response, ready to be shown."""

    lines: tuple[Line, ...]
    answer: Line | None
    """None: it says none."""
    judged: bool
    """Whether it is known if the answer is right, and what is wrong with the response."""
    flaws: tuple[str, ...]
    """Out of `FLAWS`; of a response that nobody judged, what can be seen without."""
    whole: str = ""
    """The text itself, where it is not in the format or too long to be taken apart."""
    long: bool = False
    """Whether it is too long to be taken apart: there are no lines then."""
    rows: int = 0
    """Rows that it takes when laid beside another."""


def mark(text: str, found: Verification | None, form: RapFormat) -> Marked:
    """Take a response apart."""
    spans = _spans(text, found, form) if len(text) <= LONGEST else []
    flaws = tuple(flaws_of(found)) if found else ()
    if len(text) > LONGEST or len(spans) > MOST:
        whole = safe(shortened(text), lines=True)
        return Marked((), None, found is not None, flaws, whole, long=True)
    rap = form.parse(text)
    said = [(safe(text[a:b].strip()), status) for a, b, status in spans]
    lines = [
        Line((Piece(words),), status, row=i)
        for i, (words, status) in enumerate([own for own in said if own[0]], 1)
    ]
    right = "" if found is None else "right" if found.correct else "wrong"
    answer = Line((Piece(safe(rap.answer)),), right) if rap.answer else None
    whole = "" if rap.compliant else safe(text, lines=True)
    if not found and not rap.compliant:
        flaws = ("format",)
    return Marked(tuple(lines), answer, found is not None, flaws, whole, rows=len(lines))


def _spans(text: str, found: Verification | None, form: RapFormat) -> list[tuple[int, int, str]]:
    """Where its sentences stand, and the verifier's word for each."""
    if found:
        return sorted((f.start, f.end, f.status) for f in found.findings)
    return sorted((a, b, "") for a, b in [*form.sentence_spans(text), *form.stray_spans(text)])


def flaws_of(found: Verification | Response) -> list[str]:
    """What is wrong with a response, out of `FLAWS`."""
    has = (
        not found.correct, found.counterfactual, found.insufficient, found.unreasonable,
        found.inconsistent, not found.compliant,
    )  # fmt: skip
    return [name for name, is_so in zip(FLAWS, has, strict=True) if is_so]


# --- what differs ---------------------------------------------------------------------------


def beside(one: Marked, other: Marked) -> tuple[Marked, Marked]:
    """Two responses laid side by side: equal sentences in one row, and what differs marked."""
    if one.long or other.long:
        return one, other
    left: list[Line] = []
    right: list[Line] = []
    row = 0
    for same, a, b in _facing(one.lines, other.lines):
        for x, y in zip_longest(a, b):
            row += 1
            if x and y and not same:
                x, y = _differing(x, y)
            left += [replace(x, row=row, differs=not same)] if x else []
            right += [replace(y, row=row, differs=not same)] if y else []
    answers = _answers(one.answer, other.answer)
    return (
        replace(one, lines=tuple(left), answer=answers[0], rows=row),
        replace(other, lines=tuple(right), answer=answers[1], rows=row),
    )


def _facing(
    one: Sequence[Line], other: Sequence[Line]
) -> list[tuple[bool, Sequence[Line], Sequence[Line]]]:
    """Runs of sentences that face each other, and whether they are the same."""
    steps = _matcher(one, other).get_opcodes()
    return [(step == "equal", one[a:b], other[c:d]) for step, a, b, c, d in steps]


def _differing(one: Line, other: Line) -> tuple[Line, Line]:
    """Two sentences with the words marked that only one of them has."""
    a, b = (_WORD.findall(_plain(line)) for line in (one, other))
    if max(len(a), len(b)) > 2 * _WORDS:
        return one, other
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    if matcher.ratio() < _ALIKE:
        return one, other
    steps = matcher.get_opcodes()
    return (
        replace(one, pieces=_pieces([("".join(a[i:j]), s) for s, i, j, _, _ in steps])),
        replace(other, pieces=_pieces([("".join(b[i:j]), s) for s, _, _, i, j in steps])),
    )


def _pieces(parts: Sequence[tuple[str, str]]) -> tuple[Piece, ...]:
    """The parts that have text; a blank between two changed words is changed with them."""
    changed = [step != "equal" for _, step in parts]
    for i in range(1, len(parts) - 1):
        if parts[i][0].isspace() and changed[i - 1] and changed[i + 1]:
            changed[i] = True
    runs = groupby(zip(parts, changed, strict=True), key=lambda part: part[1])
    pieces = (Piece("".join(text for (text, _), _ in own), is_so) for is_so, own in runs)
    return tuple(piece for piece in pieces if piece.text)


def _answers(one: Line | None, other: Line | None) -> tuple[Line | None, Line | None]:
    differs = one is None or other is None or _plain(one) != _plain(other)
    left = replace(one, differs=differs) if one else None
    return left, replace(other, differs=differs) if other else None


def _plain(line: Line) -> str:
    return "".join(piece.text for piece in line.pieces)


def difference(one: Marked, other: Marked) -> float:
    """Share of sentences, answers included, that the two do not have in common: 0 to 1."""
    if one.long or other.long:
        return float(one.whole != other.whole)
    a, b = ([*own.lines, *([own.answer] if own.answer else [])] for own in (one, other))
    return 1 - _matcher(a, b).ratio()


def _matcher(one: Sequence[Line], other: Sequence[Line]) -> SequenceMatcher[str]:
    a, b = ([_plain(line) for line in own] for own in (one, other))
    return SequenceMatcher(None, a, b, autojunk=False)
