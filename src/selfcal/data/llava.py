"""LLaVA's conversations: what a human says and what the model answers, turn by turn.

A sample is one question with its answer. The first turn is one that stands by itself; a later one
often leans on what was said before ("and the other one?"), or on an instruction of the first turn.
So later turns are left out, and counted as `later-turn`, unless they are asked for (`turns: all`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from selfcal.data.rows import DataError, Row, kind_of

Turns = Literal["first", "all"]
_ASKS = ("human", "user")
_ANSWERS = ("gpt", "assistant")


def conversations(rows: Iterable[Row], path: Path, turns: Turns) -> Iterator[Row]:
    """One row for every question with its answer; those after the first get `-2`, `-3`, ... .

    Raises:
        DataError: an entry is no conversation.
    """
    for row in rows:
        where = f"{path}: {row.place}"
        rest = {k: v for k, v in row.cells.items() if k != "conversations"}
        rest.setdefault("image", None)  # LLaVA's files have entries that are text alone
        for number, (question, answer) in enumerate(_pairs(row.cells, where), start=1):
            own = {**rest, "question": question, "answer": answer}
            if number > 1 and "id" in own:
                own["id"] = f"{own['id']}-{number}"
            place = row.place if number == 1 else f"{row.place}, turn {number}"
            yield Row(place, own, "later-turn" if number > 1 and turns == "first" else "")


def _pairs(cells: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """Questions and answers; an answer that is missing is empty."""
    said = cells.get("conversations")
    if not isinstance(said, list):
        raise DataError(
            f"{where}: conversations is {kind_of(said)}; give a list of turns, each with from and "
            "value"
        )
    pairs: list[tuple[str, str]] = []
    for turn in said:
        who, what = _turn(turn, where)
        if who in _ASKS:
            pairs.append((what, ""))
        elif who in _ANSWERS and pairs and not pairs[-1][1]:
            pairs[-1] = (pairs[-1][0], what)
        elif who != "system":
            raise DataError(
                f"{where}: a turn from {str(who)[:40]!r} where another one was due; let human and "
                "gpt take turns, the human first"
            )
    return pairs or [("", "")]


def _turn(turn: object, where: str) -> tuple[object, str]:
    if isinstance(turn, dict) and isinstance(turn.get("value"), str):
        return turn.get("from"), turn["value"]
    raise DataError(f"{where}: a turn has no text; give every turn from and value")
