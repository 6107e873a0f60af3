"""A response in, the flaws of its rationale out, where no verifier knows the truth: an estimate.

A marker (a strong model) is asked about the three flaws of a rationale. It is asked twice, with the
flaws and the material in reverse order the second time; only what it says both times counts, and
how far it agrees with itself is reported beside every estimate (Cohen's kappa). What cannot be
read, or differs, is *unscored*: counted, and never filled in. No figure made here is called like
one of the verifier's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from selfcal.chat import ChatError, marked, user_message
from selfcal.errors import SelfcalError
from selfcal.evaluate.metrics import category, ratio
from selfcal.image import ImageError
from selfcal.judge.asking import asked_question
from selfcal.prompts import Prompts
from selfcal.types import Response, Result, Sample

if TYPE_CHECKING:
    from selfcal.chat import Message

FLAWS = ("counterfactual", "insufficient", "unreasonable")
ESTIMATED = "estimated/"
"""What the name of every figure begins with that a marker's word stands behind."""
Said = tuple[bool | None, bool | None, bool | None]
"""Whether each of `FLAWS` is there; None: unreadable."""


class MarkerError(SelfcalError):
    """The marker failed at a sample: the text names it and the way out."""


class Marker(Protocol):
    """Who marks flaws. Several threads may call at once."""

    def mark(self, sample: Sample, response: str, reverse: bool = False) -> Said:
        """Say which flaws a response's rationale has.

        Args:
            sample: what was asked.
            response: the whole response.
            reverse: whether flaws and material are presented in reverse order.

        Raises:
            MarkerError: the marker failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Mark:
    """What a marker said about one response, in both presentations."""

    sample_id: str
    forward: tuple[int, ...]
    """1 for each of `FLAWS` that is there, 0 for one that is not, -1 for unreadable."""
    backward: tuple[int, ...]
    """The same with the presentation reversed; in the order of `FLAWS` all the same."""
    of: str = ""
    """What names the response, where marks are kept: of another one they say nothing."""

    def flaw(self, name: str) -> bool | None:
        """Whether a flaw is there; None: unscored."""
        i = FLAWS.index(name)
        one, other = self.forward[i], self.backward[i]
        return None if one != other or one < 0 else bool(one)

    @property
    def verdicts(self) -> tuple[bool, bool] | None:
        """Whether the rationale is sound, forward and backward; None if one is unreadable."""
        if -1 in (*self.forward, *self.backward):
            return None
        return not any(self.forward), not any(self.backward)

    @property
    def sound(self) -> bool | None:
        """Whether the rationale has none of the flaws; None: unscored."""
        said = self.verdicts
        return said[0] if said and said[0] == said[1] else None


def mark_twice(marker: Marker, sample: Sample, response: str) -> Mark:
    """Mark a response in both presentations.

    Raises:
        MarkerError: the marker failed.
    """
    both = [_coded(marker.mark(sample, response, reverse)) for reverse in (False, True)]
    return Mark(sample.id, both[0], both[1])


def mark_all(
    marker: Marker, pairs: Sequence[tuple[Sample, str]], workers: int = 1
) -> Iterator[Mark]:
    """Marks of responses, in their order, up to `workers` of them side by side.

    Raises:
        MarkerError: the marker failed.
    """
    with ThreadPoolExecutor(max_workers=workers) as pool:
        yield from pool.map(lambda pair: mark_twice(marker, *pair), pairs)


def _coded(said: Said) -> tuple[int, ...]:
    return tuple(-1 if s is None else int(s) for s in said)


# --- figures ----------------------------------------------------------------------------------

Rated = tuple[str, float, float, int]
"""Name of a figure, its value, standard error and n."""
MARKER_AGREEMENT, MARKER_UNSCORED = "marker_agreement", "marker_unscored"


def estimates(rows: Iterable[tuple[bool, Mark]]) -> list[Rated]:
    """All estimates over responses; each row says whether the answer is right, and the mark.

    Soundness, and what follows from it, is of the responses whose soundness is scored; a flaw's
    share of those where that flaw is. `marker_agreement` is Cohen's kappa of sound or not between
    both presentations, of the responses that are readable in both; `marker_unscored` the share of
    responses without a soundness.
    """
    rows = list(rows)
    scored = [(right, mark.sound) for right, mark in rows if mark.sound is not None]
    sound = ratio((float(bool(s)), 1.0) for _, s in scored)
    shares: dict[str, tuple[float, float, int]] = {
        "rationale_soundness": sound,
        "alignment": ratio((float(r and bool(s)), float(r)) for r, s in scored),
        "reliable_accuracy": ratio((float(r and bool(s)), 1.0) for r, s in scored),
        "lucky_answers": ratio((float(r and not s), 1.0) for r, s in scored),
    }
    for flaw in FLAWS:
        found = [mark.flaw(flaw) for _, mark in rows]
        shares[f"flaw/{flaw}"] = ratio((float(f), 1.0) for f in found if f is not None)
    unscored = ratio((float(mark.sound is None), 1.0) for _, mark in rows)
    return [
        *((ESTIMATED + name, *figure) for name, figure in shares.items()),
        (MARKER_AGREEMENT, *kappa([v for _, mark in rows if (v := mark.verdicts)])),
        (MARKER_UNSCORED, *unscored),
    ]


def kappa(pairs: Sequence[tuple[bool, bool]]) -> tuple[float, float, int]:
    """Cohen's kappa of two yes/no ratings, its standard error, and n.

    The error is the large-sample one of Fleiss, Cohen and Everitt (Psychological Bulletin 72,
    1969, Eq. 13); 1.96 of it to either side is a 95 % interval. NaN where all ratings are alike:
    agreement beyond chance has no meaning then.
    """
    n = len(pairs)
    share = {
        (a, b): sum(pair == (a, b) for pair in pairs) / n
        for a in (True, False)
        for b in (True, False)
        if n
    }
    first = {a: share.get((a, True), 0) + share.get((a, False), 0) for a in (True, False)}
    second = {b: share.get((True, b), 0) + share.get((False, b), 0) for b in (True, False)}
    chance = sum(first[a] * second[a] for a in (True, False))
    if not n or chance == 1:
        return math.nan, math.nan, n
    same = share[True, True] + share[False, False]
    value = (same - chance) / (1 - chance)
    agree = sum(
        share[a, a] * (1 - (first[a] + second[a]) * (1 - value)) ** 2 for a in (True, False)
    )
    differ = (
        sum(share[a, not a] * (second[a] + first[not a]) ** 2 for a in (True, False))
        * (1 - value) ** 2
    )
    variance = agree + differ - (value - chance * (1 - value)) ** 2
    return value, math.sqrt(max(0.0, variance) / n) / (1 - chance), n


def measure_marks(
    responses: Sequence[Response],
    marks: Mapping[str, Mark],
    checkpoint: str,
    split: str,
    seed: int,
) -> list[Result]:
    """All estimates, overall (`all`) and for each category; `marks` by sample id."""
    groups = {"all": list(responses)}
    for r in responses:
        groups.setdefault(category(r), []).append(r)
    return [
        Result(checkpoint, split, where, *figure, seed)
        for where, own in groups.items()
        for figure in estimates((r.correct, marks[r.sample_id]) for r in own)
    ]


# --- a chat model as the marker ---------------------------------------------------------------

_NO_FACTS = "(none were noted)"


class Asked(Protocol):
    """A model that is asked in words; several threads may ask at once."""

    def ask(self, messages: Sequence[Message]) -> str:
        """The text of the reply to a conversation."""
        ...


class ChatMarker:
    """A strong model that is asked by a prompt: behind a server, or on this machine."""

    def __init__(self, model: Asked, sees: bool = True, prompts: Prompts | None = None) -> None:
        """Take a model, which the caller closes.

        Args:
            model: who is asked.
            sees: whether it is shown the image; else it reads the sample's facts.
            prompts: in the place of the shipped ones.
        """
        self._model, self._sees = model, sees
        self._prompts = prompts or Prompts("marker")

    def mark(self, sample: Sample, response: str, reverse: bool = False) -> Said:
        """Ask about the three flaws; what is not answered yes or no is None.

        Raises:
            MarkerError: an image cannot be read, or there was no reply.
        """
        prompt = self.prompt(sample, response, reverse)
        try:
            images = sample.images if self._sees else ()
            return read_marks(self._model.ask([user_message(prompt, images)]))
        except (ChatError, ImageError) as error:
            raise MarkerError(f"marker, sample {sample.id!r}: {error}") from error

    def prompt(self, sample: Sample, response: str, reverse: bool = False) -> str:
        """What is asked about a response, beside its images."""
        question, facts = asked_question(sample), sample.facts or _NO_FACTS
        shown = {} if self._sees else {"Facts": facts}
        parts, flaws = {"Question": question, **shown, "Response": response}, FLAWS
        if reverse:
            parts, flaws = dict(reversed(parts.items())), FLAWS[::-1]
        mark, material = marked(parts)
        return self._prompts.render(
            "flaws", mark=mark, material=material, question=question, facts=facts,
            response=response, flaws=flaws, sees="yes" if self._sees else "",
        )  # fmt: skip


_LINE = re.compile(
    rf"^\W{{0,6}}({'|'.join(FLAWS)})\W{{1,6}}(yes|no)\W{{0,6}}$", re.IGNORECASE | re.MULTILINE
)


def read_marks(reply: str) -> Said:
    """Read a reply: each flaw must have one line, or lines that all say the same."""
    said: dict[str, set[bool]] = {name: set() for name in FLAWS}
    for m in _LINE.finditer(reply):
        said[m[1].lower()].add(m[2].lower() == "yes")
    one = [next(iter(s)) if len(s) == 1 else None for s in said.values()]
    return one[0], one[1], one[2]
