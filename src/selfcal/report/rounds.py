"""A round as a sample's page shows it: pair, win matrix, search tree, and what was left out.

Each function takes a part of a story and gives what the template needs, its texts made harmless.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfcal.page import cut, shortened
from selfcal.report.marks import Marked, beside, mark
from selfcal.report.pictures import Pictures, Shown
from selfcal.report.reader import Reader, disagreement
from selfcal.report.reasons import in_words
from selfcal.report.tree import sentences, tree_of
from selfcal.story import Cell, Ranked, Round
from selfcal.types import Drop, PreferencePair
from selfcal.view.text import safe

_PLAYERS = 24
"""Candidates that a win matrix has at most; of more, those that score best."""
_BUSY = 40
"""Sentences of a tree above which pruned ones are folded away at first."""
_DETAIL = 1_000
"""Characters of a reason's detail that are shown."""


@dataclass(frozen=True, slots=True)
class Side:
    """One response of a pair."""

    name: str
    """`#3`, if it is a candidate."""
    score: float | None
    """None: nobody compared it."""
    said: Marked
    image: Shown | None = None
    """Its own, where the method spoiled the image."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A chosen and a rejected response, side by side."""

    chosen: Side
    rejected: Side
    margin: float | None
    """None: nobody compared them."""
    truth: int | None
    """+1: the verifier finds the chosen one better, too; -1: the rejected one; 0: neither."""


@dataclass(frozen=True, slots=True)
class Duel:
    """A cell of the win matrix."""

    sign: int
    confidence: float
    truth: int | None
    """What the verifier says; None: nobody can tell."""

    @property
    def against(self) -> bool:
        """Whether the verifier says something else."""
        return self.truth is not None and self.truth != self.sign


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the win matrix."""

    own: Ranked
    duels: tuple[Duel | None, ...]
    """By column; None: not asked, or not read, or the row itself."""


def round_view(told: Round, reader: Reader, pictures: Pictures) -> dict[str, Any]:
    """A search, and what others made of it."""
    truths = reader.truths(told)
    tree = tree_of(told, reader)
    count, pruned = sentences(tree)
    known = [r.candidate.index for r in told.candidates]
    ranked = _ranked(told.candidates)
    return {
        "kind": "round",
        "name": safe(told.place),
        "about": safe(told.about),
        "searched": told.searched,
        "candidates": len(known),
        "pairs": [pair_view(p, known, reader, pictures) for p in told.pairs],
        "best": [_side(r, reader) for r in ranked if r.role == "best"],
        "matrix": _matrix(ranked, told.cells, truths) if told.judgments or told.cells else [],
        "judgments": len(told.judgments),
        "unscored": told.unscored,
        "corrected": safe(told.corrected),
        "uncorrected": safe(told.uncorrected),
        "against": disagreement(told, truths),
        "tree": tree,
        "sentences": count,
        "untold": 0 if tree else len(told.nodes),
        "pruned": pruned,
        "folded": bool(pruned) and count > _BUSY,
        "guided": any(r.candidate.sentence_rewards for r in told.candidates),
        "listed": [] if tree else [(r, _side(r, reader)) for r in ranked],
        "labels": [
            (label.verdict, *beside(reader.mark(label.first), reader.mark(label.second)))
            for label in told.labels
        ],
        "grades": [(g.good, g.aspect, reader.mark(g.response)) for g in told.grades],
        "drops": drops_view(told.drops),
    }


def _ranked(candidates: Sequence[Ranked]) -> list[Ranked]:
    """The best one first; as they come where nothing is scored."""

    def place(r: Ranked) -> tuple[bool, float, int]:
        return r.score is None, -(r.score or 0.0), r.candidate.index

    return sorted(candidates, key=place)


def _side(r: Ranked, reader: Reader) -> Side:
    return Side(f"#{r.candidate.index}", r.score, reader.mark(r.candidate.text))


def _matrix(
    ranked: Sequence[Ranked],
    cells: Mapping[tuple[int, int], Cell],
    truths: Mapping[tuple[int, int], int],
) -> list[Row]:
    """Who beats whom, the best candidate first."""
    shown = ranked[:_PLAYERS]
    order = [r.candidate.index for r in shown]

    def duel(i: int, j: int) -> Duel | None:
        cell = cells.get((i, j))
        return Duel(cell.sign, cell.confidence, truths.get((i, j))) if cell else None

    return [Row(r, tuple(duel(i, j) for j in order)) for r, i in zip(shown, order, strict=True)]


def pair_view(
    pair: PreferencePair, known: Collection[int], reader: Reader, pictures: Pictures
) -> Pair:
    """A pair; `known`: indices that are candidates' own."""
    spoiled = pictures.take(pair.rejected_image) if pair.rejected_image else None
    # what is true of the image says nothing of a response to another one
    rejected_text = (
        mark(pair.rejected, None, reader.form) if spoiled else reader.mark(pair.rejected)
    )
    said = beside(reader.mark(pair.chosen), rejected_text)
    chosen, rejected = (
        Side(f"#{index}" if index in known else "", score if index >= 0 else None, marked, image)
        for index, score, marked, image in (
            (pair.chosen_index, pair.chosen_score, said[0], None),
            (pair.rejected_index, pair.rejected_score, said[1], spoiled),
        )
    )
    compared = chosen.score is not None and rejected.score is not None
    truth = None if spoiled else reader.truth(pair.chosen, pair.rejected)
    return Pair(chosen, rejected, pair.margin if compared else None, truth)


def drops_view(drops: Sequence[Drop]) -> list[dict[str, str]]:
    """Why something was left out."""
    return [
        {
            "stage": safe(cut(d.stage, _DETAIL)),
            "reason": safe(cut(d.reason, _DETAIL)),
            "words": in_words(d),
            "detail": safe(shortened(d.detail, _DETAIL)),
        }
        for d in drops
    ]
