"""What a pair's page shows of a pair, and what the form that it sends says.

A and B are the two responses as one person sees them; a label names them by their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from selfcal import page
from selfcal.judge.quality import MIRROR
from selfcal.people.judged import Pair
from selfcal.people.labels import Flaw, Label, Marked, Side, folded
from selfcal.people.pick import swapped
from selfcal.people.sentences import Sentence, sentences
from selfcal.rationale import RapFormat
from selfcal.store import fingerprint
from selfcal.types import Candidate, Verdict

_DAY = 24 * 3600.0
_CHOICES: Mapping[str, Verdict | None] = {
    "a": "first", "b": "second", "equal": "neutral", "cannot": None,
}  # fmt: skip
FLAWS: Mapping[Flaw, str] = {
    "counterfactual": "The image shows otherwise",
    "unreasonable": "It does not follow from what was said",
    "insufficient": "Not enough was said for it",
    "other": "Something else",
}


class Said(BaseModel):
    """A form that a pair's page sends."""

    annotator: str
    number: int
    pair: str
    choice: Literal["a", "b", "equal", "cannot"]
    mark: Annotated[str, Field(pattern=r"^([ab]:[0-9]{1,6})?$")] = ""
    flaw: Flaw | Literal[""] = ""
    seconds: Annotated[float, Field(ge=0, le=_DAY, allow_inf_nan=False)] | Literal[""] = ""


def pair_id(pair: Pair) -> str:
    """Tells a pair from those that stood at its number before."""
    return fingerprint(list(pair.key), pair.texts)


def ordered(name: str, pair: Pair) -> list[tuple[str, Candidate]]:
    """The two responses as this person sees them, A and B."""
    own = (pair.other, pair.one) if swapped(folded(name), pair.key) else (pair.one, pair.other)
    return list(zip("ab", own, strict=True))


@dataclass(frozen=True, slots=True)
class Response:
    """A response as a page shows it."""

    letter: str
    sentences: list[Sentence]
    left_out: int
    """Characters of a text that is too long for a page."""


def response(letter: str, text: str, form: RapFormat) -> Response:
    """A response under a letter, as far as a page shows it."""
    return Response(letter, sentences(text, form), max(0, len(text) - page.LONGEST))


@dataclass(frozen=True, slots=True)
class Before:
    """What was said before, as the form has it."""

    choice: str
    mark: str
    flaw: str


def before(label: Label | None, a: int) -> Before:
    """What was said, as the form has it that now shows the candidate `a` as A."""
    if label is None:
        return Before("", "", "")
    as_shown = label.first == a
    verdict = MIRROR[label.verdict] if label.verdict and not as_shown else label.verdict
    choice = next(name for name, own in _CHOICES.items() if own == verdict)
    letter = "a" if (label.flaw_in == "first") == as_shown else "b"
    mark = f"{letter}:{label.false_sentence.number}" if label.false_sentence else ""
    return Before(choice, mark, label.flaw or "")


def label_of(name: str, said: Said, pair: Pair, form: RapFormat) -> Label:
    """What a form says, as a label.

    Raises:
        HTTPException: it marks a sentence that there is not.
    """
    (_, first), (_, second) = ordered(name, pair)
    marked: dict[str, Any] = {}
    if said.mark:
        letter, _, number = said.mark.partition(":")
        side: Side = "first" if letter == "a" else "second"
        text = (first if letter == "a" else second).text
        own = next((s for s in sentences(text, form) if s.number == int(number)), None)
        if own is None:
            raise HTTPException(400, "There is no such sentence to mark.")
        marked = {
            "flaw_in": side, "flaw": said.flaw or None,
            "false_sentence": Marked(number=own.number, text=own.text),
        }  # fmt: skip
    return Label(
        sample_id=pair.sample.id, iteration=pair.iteration, first=first.index, second=second.index,
        texts=pair.texts, verdict=_CHOICES[said.choice], annotator=name,
        seconds=None if said.seconds == "" else round(said.seconds, 1),
        at=datetime.now(UTC).isoformat(timespec="seconds"), **marked,
    )  # fmt: skip
