"""Two responses in, a verdict out: the strong judge that the R-Scorer learns from (SRC, stage 3).

Like the R-Scorer it goes by the visual facts and sees no pixels. The responses are the output of a
model under training, so they are data to the judge and never instructions: they stand between marks
that no response can know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, get_args

from selfcal.chat import Asked, ChatError, marked, user_message
from selfcal.errors import SelfcalError
from selfcal.image import ImageError
from selfcal.judge.asking import asked_question
from selfcal.miniworld import verifier
from selfcal.prompts import Part, Prompts
from selfcal.rationale import HEADINGS, RapFormat
from selfcal.types import Aspect, Sample, Verdict


class LabelError(SelfcalError):
    """The label-giving judge failed at a sample: the text names it and the way out."""


class LabelGiver(Protocol):
    """Who gives the R-Scorer its training verdicts. Several threads may call at once."""

    def compare(self, sample: Sample, first: str, second: str) -> Verdict | None:
        """Say which response is better; None if the judge's answer cannot be read.

        Raises:
            LabelError: the judge failed.
        """
        ...

    def grade(self, sample: Sample, response: str, aspect: Aspect = "good") -> bool | None:
        """Grade a response; None if the judge's answer cannot be read.

        Raises:
            LabelError: the judge failed.
        """
        ...

    def rank(self, sample: Sample, responses: Sequence[str]) -> tuple[int, ...] | None:
        """The rank of each response, from 1, the best; None if the answer cannot be read.

        Raises:
            LabelError: the judge failed.
        """
        ...


class VerifierLabels:
    """MiniWorld's verifier as the label-giving judge: a reliable response is better."""

    def __init__(self, form: RapFormat = HEADINGS) -> None:
        """Read responses in a format."""
        self._form = form

    def compare(self, sample: Sample, first: str, second: str) -> Verdict:
        """Say which response is better.

        Raises:
            LabelError: the sample is not MiniWorld's.
        """
        with _of_miniworld(sample):
            return verifier.compare(sample, first, second, self._form)

    def grade(self, sample: Sample, response: str, aspect: Aspect = "good") -> bool:
        """Say whether a response is reliable, or whether its answer is entailed, or its grounding.

        Raises:
            LabelError: the sample is not MiniWorld's.
        """
        with _of_miniworld(sample):
            if aspect == "entailed":
                return verifier.entails(sample, response, self._form)
            found = verifier.verify(sample, response, self._form)
            return found.grounded if aspect == "grounded" else found.reliable

    def rank(self, sample: Sample, responses: Sequence[str]) -> tuple[int, ...]:
        """Reliable responses before all others.

        Raises:
            LabelError: the sample is not MiniWorld's.
        """
        good = [self.grade(sample, text) for text in responses]
        return tuple(1 if own or not any(good) else 2 for own in good)


def known_truth(
    sample: Sample, first: str, second: str, form: RapFormat = HEADINGS
) -> Verdict | None:
    """Which response to a MiniWorld sample truly is better.

    None where that is not known: its facts are uncertain, or leave the question open.
    """
    if sample.confidence < 1:
        return None
    try:
        return verifier.compare(sample, first, second, form)
    except (ValueError, LookupError):
        return None


@contextmanager
def _of_miniworld(sample: Sample) -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError) as error:
        raise LabelError(
            f"labels, sample {sample.id!r}: {error}; the verifier knows MiniWorld only, use an "
            "endpoint for other data"
        ) from error


_NO_FACTS = "(none were noted)"


class ChatLabels:
    """A strong model as the label giver: behind a server, or on this machine."""

    def __init__(self, model: Asked, prompts: Prompts | None = None, sees: bool = False) -> None:
        """Take a model, which the caller closes, and prompts; by default the shipped ones.

        `sees`: it is a vision-language model and is shown the images, as the judge is that it
        labels for. Otherwise it goes by the facts.
        """
        self._model, self._prompts, self._sees = model, prompts or Prompts("labels"), sees

    def compare(self, sample: Sample, first: str, second: str) -> Verdict | None:
        """Ask which response is better; None if the reply is none of the three words.

        Raises:
            LabelError: the model gave no reply.
        """
        named = {"First response": first, "Second response": second}
        return read_verdict(self._ask("compare", sample, named, first=first, second=second))

    def grade(self, sample: Sample, response: str, aspect: Aspect = "good") -> bool | None:
        """Ask about a response; None if the reply is neither yes nor no.

        Raises:
            LabelError: the model gave no reply.
        """
        named = {"Response": response}
        said = _last_word(self._ask(f"grade-{aspect}", sample, named, response=response))
        return {"yes": True, "no": False}.get(said)

    def rank(self, sample: Sample, responses: Sequence[str]) -> tuple[int, ...] | None:
        """Ask for the order of responses; None if the reply does not name each of them once.

        Raises:
            LabelError: the model gave no reply.
        """
        named = {f"Response {i}": text for i, text in enumerate(responses, 1)}
        return read_ranks(self._ask("rank", sample, named, responses=responses), len(responses))

    def _ask(self, name: str, sample: Sample, named: Mapping[str, str], **responses: Part) -> str:
        logic = name == "grade-entailed"  # for which it is no matter what is to be seen
        question, facts = asked_question(sample), sample.facts or _NO_FACTS
        shown = {} if logic or (self._sees and not sample.facts) else {"Facts": facts}
        mark, material = marked({"Question": question, **shown, **named})
        prompt = self._prompts.render(
            name, mark=mark, material=material, question=question, facts=facts,
            sees=self._sees, **responses,
        )  # fmt: skip
        try:
            images = sample.images if self._sees and not logic else ()
            return self._model.ask([user_message(prompt, images)])
        except (ChatError, ImageError) as error:
            raise LabelError(f"labels, sample {sample.id!r}: {error}") from error


_PREFIX = re.compile(r"(?:final )?(?:verdict|answer)\W{1,9}")


def read_verdict(reply: str) -> Verdict | None:
    """Read the judge's reply: its last line must be the verdict alone, or it is None."""
    word = _last_word(reply)
    return next((verdict for verdict in get_args(Verdict) if verdict == word), None)


_ORDER = re.compile(r"\d{1,3}(?: ?[>=] ?\d{1,3})*")


def read_ranks(reply: str, count: int) -> tuple[int, ...] | None:
    """Read an order such as `2 > 1 = 3` into the rank of each; None if one is missing or twice."""
    line = _last_word(reply)
    if not _ORDER.fullmatch(line):
        return None
    found: dict[int, int] = {}
    for rank, tied in enumerate(line.split(">"), 1):
        for number in tied.split("="):
            found[int(number)] = rank
    if sorted(found) != list(range(1, count + 1)) or len(re.findall(r"\d+", line)) != count:
        return None
    return tuple(found[n] for n in range(1, count + 1))


def _last_word(reply: str) -> str:
    """The last line that says anything, without marks and without a lead such as `Verdict:`."""
    lines = reply.lower().split("\n")
    line = next((line for line in reversed(lines) if line.strip()), "")
    return _PREFIX.sub("", line.strip(" \t\r*_`\"'.[]()"), count=1).strip(" *_`\"'.[]()")
