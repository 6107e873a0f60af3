"""The verifier: reads any rationale sentence by sentence and says what is wrong with it.

It takes a sample (whose facts are the whole truth) and a response, and returns a `Verification`
with a `Finding`, character span included, for every sentence. A sentence is a *statement* about the
image (true or counterfactual), an *inference* (follows or not), or unreadable. From these come the
three flaws: counterfactual, insufficient (nothing was concluded, or not from all that the answer
needs), unreasonable (a step does not follow from what was stated before it, or is given up by what
is stated after it). Unreadable text establishes nothing and breaks nothing, but counts as a
statement not shown to be true. What stands outside rationale and answer establishes nothing either,
but is held against the response where it is false.

Used by evaluation, and by the built-in teacher and label-giving judge. The calibration loop never
asks it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from selfcal.miniworld.questions import (
    KINDS,
    RELATIONS,
    Premise,
    Query,
    conclude,
    is_related,
    needs,
    read_question,
)
from selfcal.miniworld.world import COLORS, PLACES, POSITIONS, SHAPES, World, read_facts
from selfcal.rationale import HEADINGS, RapFormat, answers_agree
from selfcal.types import Sample, Verdict

Status = Literal["true", "counterfactual", "unreadable", "follows", "unreasonable"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What the verifier found about one sentence; `response[start:end]` is the sentence."""

    start: int
    end: int
    status: Status


@dataclass(frozen=True, slots=True)
class Verification:
    """What the verifier found in one response."""

    findings: tuple[Finding, ...]
    correct: bool
    """The answer is right."""
    counterfactual: bool
    insufficient: bool
    unreasonable: bool
    inconsistent: bool
    """The rationale concludes something else than the answer says."""
    compliant: bool
    answer: str
    """As it was read."""

    @property
    def sound(self) -> bool:
        """None of the three flaws."""
        return not (self.counterfactual or self.insufficient or self.unreasonable)

    @property
    def statements(self) -> int:
        """Sentences that claim something of the image, unreadable ones included."""
        return sum(f.status in ("true", "counterfactual", "unreadable") for f in self.findings)

    @property
    def true_statements(self) -> int:
        """Statements that are true of the image."""
        return sum(f.status == "true" for f in self.findings)

    @property
    def grounded(self) -> bool:
        """Something is stated of the image, and each statement is true."""
        return 0 < self.statements == self.true_statements

    @property
    def reliable(self) -> bool:
        """A right answer for sound reasons, in the form of a RAP.

        Unlike the metric `reliable_accuracy` it asks for the form: a bare answer, which states
        nothing false, must not pass for a rationale.
        """
        return self.correct and self.sound and self.compliant


def compare(sample: Sample, first: str, second: str, form: RapFormat = HEADINGS) -> Verdict:
    """The verifier as a label-giving judge: a reliable response is better than one that is not.

    Two reliable responses are equal, and so are two unreliable ones: degrees of wrong teach
    nothing.
    """
    a, b = (verify(sample, text, form).reliable for text in (first, second))
    return "neutral" if a == b else "first" if a else "second"


def verify(sample: Sample, response: str, form: RapFormat = HEADINGS) -> Verification:
    """Verify a response to a MiniWorld sample. Any text is accepted.

    Raises:
        ValueError: the sample's question or facts are not MiniWorld's, or the facts leave the
            question open.
    """
    query, world, needed = _truth(sample.question, sample.facts)
    rap = form.parse(response)
    reading = _Reading(query, world, needed)
    spans = form.sentence_spans(response)
    findings = [Finding(a, b, reading.read(response[a:b])) for a, b in spans]
    for i, inference in reading.early:
        if not _check(inference, query, needed, reading.stated)[1]:
            findings[i] = replace(findings[i], status="unreasonable")
    concluded, established = reading.concluded, reading.established
    strays = form.stray_spans(response)
    findings += [Finding(a, b, reading.read(response[a:b])) for a, b in strays]
    statuses = {f.status for f in findings}
    return Verification(
        findings=tuple(findings),
        correct=answers_agree(rap.answer, conclude(query, needed)),
        counterfactual="counterfactual" in statuses,
        insufficient=not established,
        unreasonable="unreasonable" in statuses,
        inconsistent=concluded is not None and not answers_agree(rap.answer, concluded),
        compliant=rap.compliant,
        answer=rap.answer,
    )


def entails(sample: Sample, response: str, form: RapFormat = HEADINGS) -> bool:
    """Whether a response's answer follows from what its rationale states, true of the image or not.

    Then everything that the answer needs is stated, each step follows from it, and the answer is
    what the rationale arrives at. Question and response decide it; the facts do not matter.

    Raises:
        ValueError: the sample's question is not MiniWorld's.
    """
    query, rap = read_question(sample.question), form.parse(response)
    sentences = [response[a:b] for a, b in form.sentence_spans(response)]
    told = {p[:2]: p for p in map(read_premise, sentences) if p}
    needed = _needed_of(query, list(told.values()))
    if not rap.compliant or not needed:
        return False
    reading = _Reading(query, World(), needed)
    steps = [reading.read(s) for s in sentences]
    return (
        reading.established
        and reading.concluded is not None
        and answers_agree(rap.answer, reading.concluded)
        and "unreasonable" not in steps
    )


def _needed_of(query: Query, told: list[Premise]) -> list[Premise] | None:
    """What of these statements the answer needs, in the order of `needs`; None if some is missing.

    As MiniWorld's images are: a chart has three bars, and the largest is of three digits.
    """
    kind, args = query.kind, query.args
    objects = [p for p in told if p[0] == "object"]
    by_key = {p[:2]: p for p in told}
    if kind == "count":
        return [p for p in objects if p[3] == args[0]] or None
    if kind in ("color", "relation"):
        named = [("", args[0])] if kind == "color" else [args[:2], args[2:4]]
        found = [[p for p in objects if p[3] == s and c in ("", p[2])] for c, s in named]
        return [own[0] for own in found] if all(len(own) == 1 for own in found) else None
    known: dict[str, list[tuple[str, ...]]] = {
        "shape": [("object", *args)],
        "comparison": [("count", s) for s in args],
        "highest": [p[:2] for p in told if p[0] == "bar"],
        "largest": [("digit", place) for place in PLACES],
    }
    of_bars: list[tuple[str, ...]] = [("bar", c) for c in args]
    keys = known.get(kind) or of_bars or [("digit", "left"), ("digit", "right")]
    if any(key not in by_key for key in keys) or (kind == "highest" and len(keys) != 3):
        return None
    return [by_key[key] for key in keys]


class _Reading:
    """A rationale read so far, sentence by sentence."""

    def __init__(self, query: Query, world: World, needed: list[Premise]) -> None:
        self.query, self.world, self.needed = query, world, needed
        self.stated: Stated = {}
        self.concluded: str | None = None
        """The answer of the last inference that gave one."""
        self.established = False
        """Whether an answer was concluded after all that it needs had been stated."""
        self.early: list[tuple[int, Inference]] = []
        """Inferences drawn before all that they need was stated, by number of the sentence."""
        self._read = 0

    def read(self, sentence: str) -> Status:
        """Read the next sentence."""
        self._read += 1
        if premise := read_premise(sentence):
            self.stated[premise[:2]] = premise
            return "true" if is_true(premise, self.world) else "counterfactual"
        if inference := read_inference(sentence):
            result, follows = _check(inference, self.query, self.needed, self.stated)
            complete = all(p[:2] in self.stated for p in self.needed)
            if not complete:
                self.early.append((self._read - 1, inference))
            if result is not None:
                self.concluded = result
                self.established = complete
            return "follows" if follows else "unreasonable"
        return "unreadable"


@lru_cache(maxsize=4096)
def _truth(question: str, facts: str) -> tuple[Query, World, list[Premise]]:
    query, world = read_question(question), read_facts(facts)
    try:
        if query.kind not in KINDS[world.category]:
            raise ValueError(f"asked of {world.category}")
        needed = needs(query, world)
        conclude(query, needed)
    except (LookupError, ValueError) as error:
        raise ValueError(f"facts {facts!r} leave the question open: {question!r}") from error
    return query, world, needed


_SHAPE = f"({'|'.join(SHAPES)})"
_COLOR = f"({'|'.join(COLORS)})"
_POSITION = f"({'|'.join(sorted(POSITIONS, key=len, reverse=True))})"
_N = r"([0-9]+)"  # of any length: sentences are short, see _LONGEST_SENTENCE
_PREMISES = {
    "object": re.compile(rf"the {_POSITION} is an? {_COLOR} {_SHAPE}"),
    "count": re.compile(rf"there (?:is|are) {_N} {_SHAPE}s?"),
    "bar": re.compile(rf"the {_COLOR} bar is {_N}"),
    "digit": re.compile(rf"the ({'|'.join(PLACES)}) digit is {_N}"),
}
_RELATION = f"({'|'.join(RELATIONS)})"
_INFERENCES = {
    "makes": re.compile(rf"that makes {_N} {_SHAPE}s?"),
    "is": re.compile(rf"so it is (?:an? )?({'|'.join(COLORS + SHAPES)}|[0-9]+)"),
    "relation": re.compile(
        rf"so the {_COLOR} {_SHAPE} is (not )?{_RELATION} the {_COLOR} {_SHAPE}"
    ),
    "more": re.compile(rf"{_N} is (not )?more than {_N}"),
    "highest": re.compile(rf"so the {_COLOR} bar is the highest"),
    "largest": re.compile(rf"so {_N} is the largest"),
    "arithmetic": re.compile(rf"{_N} (plus|minus) {_N} is (-?[0-9]+)"),
}
_LONGEST_SENTENCE = 120
_LEAD = re.compile(r"^(?:[-*•]|\(?[0-9]{1,2}[.)]) ")  # of a list item
Inference = tuple[str, tuple[str, ...]]
Stated = dict[tuple[str, ...], Premise]


def _plain(sentence: str) -> str:
    """A sentence in the form in which it is read; empty if it is too long to be MiniWorld's."""
    plain = " ".join(sentence.lower().split())
    plain = _LEAD.sub("", plain).strip("*_` ").rstrip(".!*_` ")
    return plain if len(plain) <= _LONGEST_SENTENCE else ""


def read_premise(sentence: str) -> Premise | None:
    """Read a sentence as a statement about the image, or None."""
    plain = _plain(sentence)
    for kind, pattern in _PREMISES.items():
        if match := pattern.fullmatch(plain):
            if kind == "object":
                position, color, shape = match.groups()
                return ("object", position, color, shape)
            if kind == "count":
                return ("count", match[2], str(int(match[1])))
            return (kind, match[1], str(int(match[2])))
    return None


def read_inference(sentence: str) -> Inference | None:
    """Read a sentence as an inference, or None."""
    plain = _plain(sentence)
    for kind, pattern in _INFERENCES.items():
        if match := pattern.fullmatch(plain):
            groups = (g or "" for g in match.groups())
            return kind, tuple(str(int(g)) if g.isdigit() else g for g in groups)
    return None


def is_true(premise: Premise, world: World) -> bool:
    """Whether a statement is true of the image."""
    if premise[0] == "object":
        return premise[1:] in world.objects
    if premise[0] == "count":
        return bool(world.objects) and world.count(premise[1]) == int(premise[2])
    rows = world.bars if premise[0] == "bar" else world.digits
    return (premise[1], int(premise[2])) in rows


_ASKED = {
    "makes": ("count",),
    "is": ("color", "shape", "value"),
    "relation": ("relation",),
    "more": ("comparison",),
    "highest": ("highest",),
    "largest": ("largest",),
    "plus": ("bar-sum", "digit-sum"),
    "minus": ("bar-difference", "digit-difference"),
}


def _check(
    inference: Inference, query: Query, needed: list[Premise], stated: Stated
) -> tuple[str | None, bool]:
    """The answer that an inference concludes (None: of another question), and if it follows.

    It must follow from what was *stated*, true or not. A premise that was never stated does not
    make the step unreasonable (the rationale is insufficient for it), a contradicted one does.
    """
    kind, parts = inference
    asked = _ASKED[parts[1] if kind == "arithmetic" else kind]
    result = _conclusion(kind, parts)
    if query.kind not in asked:
        return (result if kind == "arithmetic" else None), False
    premises = [stated[p[:2]] for p in needed if p[:2] in stated]
    if query.kind == "count":
        told = [p for p in stated.values() if p[0] == "object" and p[3] == query.args[0]]
        return result, parts[1] == query.args[0] and int(result) == len(told)
    complete = len(premises) == len(needed)
    if query.kind in ("color", "shape", "value"):
        return result, not complete or conclude(query, premises) == result
    if query.kind == "relation":
        named = (parts[0], parts[1], parts[4], parts[5], parts[3]) == query.args
        told = [
            p
            for c, s in (query.args[:2], query.args[2:4])
            for p in stated.values()
            if p[0] == "object" and p[2:] == (c, s)
        ]
        holds = len(told) != 2 or is_related(told[0][1], parts[3], told[1][1]) == (result == "yes")
        return result, named and holds
    values = [int(p[2]) for p in premises]
    if query.kind == "highest":
        return result, not complete or conclude(query, premises) == result
    if query.kind == "largest":
        return result, all(v <= int(parts[0]) for v in values) and (
            not complete or int(parts[0]) in values
        )
    return result, _numbers_follow(kind, parts, query, values, complete)


def _conclusion(kind: str, parts: tuple[str, ...]) -> str:
    if kind == "relation":
        return "no" if parts[2] else "yes"
    if kind == "more":
        return "no" if parts[1] else "yes"
    return str(parts[3] if kind == "arithmetic" else parts[0])


def _numbers_follow(
    kind: str, parts: tuple[str, ...], query: Query, values: list[int], complete: bool
) -> bool:
    """Whether a step on two numbers is right and its numbers are those that were stated."""
    a, b = int(parts[0]), int(parts[2])
    if kind == "more":
        right = (a > b) != bool(parts[1])
    else:
        right = int(parts[3]) == (a + b if parts[1] == "plus" else a - b)
    ordered = query.kind in ("comparison", "bar-difference")
    if complete:
        used = [a, b] == values if ordered else sorted((a, b)) == sorted(values)
    else:
        used = all(v in (a, b) for v in values)
    return right and used
