"""The formats of a response: how rationale and answer stand in it, rendered and read.

`FORMATS` has the four that a recipe can choose from (`Recipe.format`). Each is one `RapFormat`: how
it is rendered, which marks its sentences go by, and a reader that takes any text apart into
rationale, answer and what is neither. A reader never raises and is linear in the length of the
text: model output is untrusted. It is tolerant of what models make of a format; whether a response
is compliant is a strict question all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from selfcal.rationale.answers import clean_answer
from selfcal.rationale.sentences import (
    HEADING,
    HEADING_MARKS,
    Marks,
    sentence_end,
    spans,
    split_sentences,
    tag,
    tag_marks,
)
from selfcal.types import Rap

RATIONALE_HEADING = "Rationale:"
ANSWER_HEADING = "Answer:"

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Parts:
    """A response taken apart."""

    rationale: Span
    answer: str
    """Cleaned; empty if there is none."""
    strays: tuple[Span, ...]
    """What belongs neither to the rationale nor to the answer, in order; may be blank."""
    strict: bool
    """Whether the form is exactly the format's; then only an empty part is amiss."""


@dataclass(frozen=True, slots=True)
class RapFormat:
    """How rationale and answer stand in a response."""

    name: str
    layout: str
    """The response, with `{rationale}` and `{answer}`."""
    blanks: tuple[str, str]
    """What stands for rationale and answer where a prompt shows the form."""
    marks: Marks
    """Marks that its sentences go by."""
    take_apart: Callable[[str], Parts]
    opening: str = ""
    """What a chat template may have written already when the response begins."""

    @property
    def example(self) -> str:
        """The form, as a prompt shows it."""
        return self.render(*self.blanks)

    def render(self, rationale: str, answer: str) -> str:
        """Render a rationale and an answer as one RAP."""
        return self.layout.format(rationale=rationale.strip(), answer=answer.strip())

    def parse(self, text: str) -> Rap:
        """Read a response. Never raises; a text that says no answer has an empty one.

        A response is compliant if its form is exactly the format's and neither part is empty.
        """
        parts = self.take_apart(text)
        start, end = parts.rationale
        rationale = text[start:end].strip()
        sentences = tuple(text[a:b] for a, b in spans(text, start, end, self.marks))
        compliant = parts.strict and bool(rationale) and bool(parts.answer)
        return Rap(rationale, parts.answer, sentences, compliant)

    def sentence_end(self, text: str, start: int = 0) -> int | None:
        """Offset at which the sentence that begins at `start` is known to be over, else None.

        It is known only once the first character of the *next* sentence stands in the text.
        """
        return sentence_end(text, start, self.marks)

    def split_sentences(self, text: str) -> list[str]:
        """Split text into sentences; joined without separator they give the text back."""
        return split_sentences(text, self.marks)

    def sentence_spans(self, text: str) -> list[Span]:
        """Where in a response its rationale's sentences stand: `text[start:end]` is a sentence."""
        return list(spans(text, *self.take_apart(text).rationale, self.marks))

    def stray_spans(self, text: str) -> list[Span]:
        """Where sentences stand that belong neither to the rationale nor to the answer.

        In a compliant response there are none.
        """
        strays = self.take_apart(text).strays
        return [span for a, b in strays for span in spans(text, a, b, self.marks)]


# --- headings -------------------------------------------------------------------------------

_RATIONALE_HEADING = re.compile(
    r"\s{0,9}(?:#{1,4} )?(?:\*\*|__)?rationale(?:\*\*|__)?[ \t]{0,3}:(?:\*\*|__)?", re.IGNORECASE
)


def _under_headings(text: str) -> Parts:
    """The answer follows the last `Answer:`, up to the end of its line.

    The rationale ends at the first one. What stands between several, or after the answer's line,
    is stray.
    """
    headings = list(HEADING.finditer(text))
    end = headings[0].start() if headings else len(text)
    heading = _RATIONALE_HEADING.match(text, 0, end)
    rationale = (heading.end() if heading else 0, end)
    if not headings:
        return Parts(rationale, "", (), False)
    line, newline, rest = text[headings[-1].end() :].partition("\n")
    strays = [(heading.end(), then.start()) for heading, then in pairwise(headings)]
    strays += [(headings[-1].end() + len(line), len(text))] if newline else []
    strict = len(headings) == 1 and not rest.strip()
    return Parts(rationale, clean_answer(line), tuple(strays), strict)


# --- tags -----------------------------------------------------------------------------------

_XML_TAG = re.compile(tag("(rationale|answer)"), re.IGNORECASE)
_XML_TAGS = ("<rationale>", "</rationale>", "<answer>", "</answer>")
_THINK_TAG = re.compile(tag("think"), re.IGNORECASE)
_THINK_TAGS = ("<think>", "</think>")


def _in_tags(text: str) -> Parts:
    """The answer stands in the last `<answer>`, the rationale in the first `<rationale>`.

    A closing tag may be missing, as where a token limit cut the response off. A text without any
    tag that ends in an answer is read as free text.
    """
    tags = list(_XML_TAG.finditer(text))
    if not tags and (free := _freely(text)).strict:
        return replace(free, strict=False)
    whole = _without_cut_tag(text, _XML_TAGS)
    between = _between(tags, whole)
    names = [f"{'/' if t[1] else ''}{t[2].lower()}" for t in tags]
    first = next((i for i, n in enumerate(names) if n != "/answer"), len(names))
    if first < len(names) and names[first] == "rationale":
        start = tags[first].end()
        closed = next((i for i, n in enumerate(names) if n in ("/rationale", "answer")), None)
    else:
        start, closed = 0, (first if first < len(names) else None)
    end = whole if closed is None else tags[closed].start()
    strays = [s for s in between if not start <= s[0] <= s[1] <= end]
    answer = ""
    if "answer" in names:
        own = len(names) - 1 - names[::-1].index("answer")
        said = between[own + 1]
        if own + 1 == len(names) or names[own + 1] != "/answer":
            said = _first_line(text, said)
        answer = clean_answer(text[slice(*said)])
        strays = _without(strays, between[own + 1], said)
    strict = tuple(t[0] for t in tags) == _XML_TAGS and "\n" not in answer
    return Parts((start, max(start, end)), answer, tuple(strays), strict and _blank(text, strays))


def _thought(text: str) -> Parts:
    """The rationale ends at the first `</think>`, the answer follows the last one.

    The chat template may have written `<think>`. A text without any tag that ends in an answer is
    read as free text; another is a rationale that was cut off.
    """
    tags = list(_THINK_TAG.finditer(text))
    closing = [i for i, t in enumerate(tags) if t[1]]
    whole = _without_cut_tag(text, _THINK_TAGS)
    opened = bool(tags) and not tags[0][1]
    start = tags[0].end() if opened else 0
    strays = [(0, tags[0].start())] if opened else []
    if not closing:
        if not tags and (free := _freely(text)).strict:
            return replace(free, strict=False)
        return Parts((start, whole), "", tuple(strays), False)
    between = _between(tags, whole)
    first, last = closing[0], closing[-1]
    said = between[last + 1]
    span, answer = _said(text, said)
    strays += between[first + 1 : last + 1]
    strays += [*_without([said], said, span), *between[last + 2 :]]
    form = tuple(t[0] for t in tags) in (_THINK_TAGS, _THINK_TAGS[1:])
    strict = form and "\n" not in text[slice(*said)].strip() and _blank(text, strays)
    return Parts((start, tags[first].start()), answer, tuple(strays), strict)


def _between(tags: Sequence[re.Match[str]], whole: int) -> list[Span]:
    """What stands before, between and after tags."""
    starts = [0, *(t.end() for t in tags)]
    ends = [*(t.start() for t in tags), whole]
    return [(a, max(a, b)) for a, b in zip(starts, ends, strict=True)]


def _without_cut_tag(text: str, tags: Iterable[str]) -> int:
    """The length of a text without a tag that a token limit cut in two."""
    at = text.rfind("<", max(0, len(text) - 20))
    tail = "".join(text[at:].split()).lower() if at >= 0 else ""
    cut = tail and any(t.startswith(tail) and t != tail for t in tags)
    return at if cut else len(text)


def _first_line(text: str, span: Span) -> Span:
    """The first line of a span that is not blank."""
    own = text[slice(*span)]
    start = span[0] + len(own) - len(own.lstrip())
    end = text.find("\n", start, span[1])
    return start, end if end >= 0 else span[1]


def _without(strays: Iterable[Span], outer: Span, inner: Span) -> list[Span]:
    """Spans, with what is left of one of them if a part is taken out."""
    left = [s for s in strays if s != outer]
    return sorted([*left, (outer[0], inner[0]), (inner[1], outer[1])])


def _blank(text: str, strays: Iterable[Span]) -> bool:
    return not any(text[slice(*s)].strip() for s in strays)


# --- free text ------------------------------------------------------------------------------

_BOXED = r"\\boxed[ \t]?\{"
_STATED = re.compile(
    rf"{HEADING.pattern}|{_BOXED}|\b(?:answer|(?:correct|right|best) (?:option|choice))[ \t]{{1,3}}"
    r"(?:is|are|would be|must be)\b(?![ \t]{1,3}not\b)[ \t]{0,3}:?",
    re.IGNORECASE,
)
_OPTION = re.compile(
    r"[*_]{0,2}(?:option|choice) (?=[*_]{0,2}\(?[A-Z]\)?[.*_]{0,5}$)", re.IGNORECASE
)
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf)\w{0,4}\{([^{}]*)\}")
_MOST_IN_BOX = 2_000


def _freely(text: str) -> Parts:
    """The last line says the answer; the rationale is what stands before that sentence."""
    span, answer = _said(text, (0, len(text)), stated=True)
    if not answer:
        return Parts((0, len(text)), "", (), False)
    rest = (span[1], len(text))
    return Parts((0, span[0]), answer, (rest,), _blank(text, [rest]))


def _said(text: str, within: Span, stated: bool = False) -> tuple[Span, str]:
    """The sentence of a span that says the answer, and the answer.

    It is the last one that says so ("the answer is", "Answer:", a box); else the last line, unless
    it must be `stated`.
    """
    own, offset = text[slice(*within)], within[0]
    found = max(_STATED.finditer(own), key=re.Match.start, default=None)
    if found is None:
        end = len(own.rstrip())
        start = own.rfind("\n", 0, end) + 1
        return (offset + start, offset + end), "" if stated else clean_answer(own[start:end])
    begun = own[: found.start() + 1]  # with the statement's first character all ends are known
    start = found.start() + 1 - len(split_sentences(begun)[-1])
    answer, end = _stated(own, found)
    return (offset + start, offset + end), answer


def _stated(text: str, found: re.Match[str]) -> tuple[str, int]:
    """The answer that a statement says, and where it ends."""
    if found[0].endswith("{"):
        inside = _box(text, found.end())
        answer = text[found.end() : inside]
        if command := _TEXT_COMMAND.fullmatch(answer.strip()):
            answer = command[1]
        return clean_answer(answer), _line_part(text, inside, _line_end(text, inside))
    start, end = _first_line(text, (found.end(), len(text)))
    if not found[0].endswith(":"):
        end = _line_part(text, start, end)
    said = text[start:end].strip(" \t.")
    if len(said) > 2 and said[0] == said[-1] == "$":  # mathematics, not money
        said = said[1:-1].strip(" \t.")
    return clean_answer(_OPTION.sub("", said)), end


def _line_part(text: str, start: int, end: int) -> int:
    """Where the sentence ends that others may follow in its line."""
    return start + (sentence_end(text[start:end]) or end - start)


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return end if end >= 0 else len(text)


def _box(text: str, start: int) -> int:
    """Where the box closes whose content begins at `start`."""
    depth = 1
    for i in range(start, min(len(text), start + _MOST_IN_BOX)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            return i
    return _line_end(text, start)


# --- all of them ----------------------------------------------------------------------------

HEADINGS = RapFormat(
    "headings",
    f"{RATIONALE_HEADING} {{rationale}}\n{ANSWER_HEADING} {{answer}}",
    ("<short sentences>", "<answer>"),
    HEADING_MARKS,
    _under_headings,
)
FORMATS = {
    own.name: own
    for own in (
        HEADINGS,
        RapFormat(
            "xml",
            "<rationale>{rationale}</rationale>\n<answer>{answer}</answer>",
            ("[short sentences]", "[answer]"),
            tag_marks("rationale", "answer", answer="answer"),
            _in_tags,
        ),
        RapFormat(
            "think",
            "<think>\n{rationale}\n</think>\n\n{answer}",
            ("[short sentences]", "[answer]"),
            tag_marks("think", headings=True),
            _thought,
            opening="<think>",
        ),
        RapFormat(
            "free",
            "{rationale}\nThe answer is {answer}.",
            ("[short sentences]", "[answer]"),
            HEADING_MARKS,
            _freely,
        ),
    )
}
"""The formats by name."""


def continued(prompt: str, text: str) -> str:
    """A response as it stands after a prompt: without an opening that the prompt ends with."""
    bare = text.lstrip()
    for own in FORMATS.values():
        written = own.opening and prompt.rstrip().endswith(own.opening)
        if written and bare.startswith(own.opening):
            return bare.removeprefix(own.opening).lstrip()
    return text
