"""Where sentences end, in plain text and in text with the marks of a response format.

Boundaries are found in the *text*, never by a token id, so they are the same for every tokenizer: a
period inside a number, an abbreviation or an initial ends nothing, while a new line, a list item,
the answer's heading or a format's tag does start a new sentence. A sentence takes the tags before
its first word with it, so that no sentence is a tag alone, and from `<answer>` on it goes up to the
closing tag. Everything here is linear in the length of the text: model output is untrusted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ABBREVIATIONS = frozenset((
    "e.g", "i.e", "dr", "mr", "mrs", "ms", "prof", "st", "vs", "etc", "fig", "figs", "eq", "eqs",
    "approx", "ca", "cf", "al", "inc", "ltd", "jr", "sr", "dept", "est", "min", "max", "avg",
    "resp", "sec", "vol", "pp", "ed", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep",
    "sept", "oct", "nov", "dec", "u.s", "u.k", "a.m", "p.m",
))  # fmt: skip
_MARKS = ".!?。！？"  # noqa: RUF001
_WIDE_MARKS = "。！？"  # noqa: RUF001 (they need no space after them)
_CLOSERS = "\"'”’)]*_`」』）】》"  # noqa: RUF001
_LIST_ITEM = re.compile(r"(?:[-*•]|\(?\d{1,2}[.)]|\(?[a-zA-Z]\))[ \t]")
_HEADING_FORM = r"(?<![^\s。！？])(?:#{1,4} )?(?:\*\*|__)?(?:final )?answer(?:\*\*|__)?[ \t]{0,3}:"  # noqa: RUF001
HEADING = re.compile(_HEADING_FORM, re.IGNORECASE)
"""The heading of an answer."""
_HEADING_STOP = r"(?<=\s)[AaFf*_#]"


@dataclass(frozen=True, slots=True)
class Marks:
    """What a format has in its text beside plain sentences."""

    stop: re.Pattern[str]
    """All that can end a sentence or begin one; one character."""
    opener: re.Pattern[str]
    """What begins a sentence wherever it stands."""
    lead: re.Pattern[str]
    """What stands before a sentence's first word."""
    answer: re.Pattern[str] | None = None
    """The answer's tags, if it has some; group 1 is not empty in the closing one."""
    characters: frozenset[str] = frozenset(f"{_MARKS}\n:")
    """Without one of these no sentence ends."""


HEADING_MARKS = Marks(re.compile(rf"[\n{_MARKS}]|{_HEADING_STOP}"), HEADING, re.compile(r"\s*+"))


def tag(name: str) -> str:
    """The pattern of a tag, opening or closing; group 1 is not empty in a closing one."""
    return rf"<[ \t]{{0,3}}(/?)[ \t]{{0,3}}{name}[ \t]{{0,3}}>"


def tag_marks(*names: str, answer: str = "", headings: bool = False) -> Marks:
    """The marks of a format with such tags; `answer` is that of the answer, if it has one.

    A tag begins a sentence as soon as it cannot be anything else. A token that reaches across the
    end of a sentence puts a tag's first characters into the one before, or a mark into the one
    behind; so a lead may have these, too.
    """
    any_of = "|".join(names)
    opener = rf"<[ \t]{{0,3}}(?:/|{any_of})"
    return Marks(
        re.compile(rf"[\n{_MARKS}<]" + (f"|{_HEADING_STOP}" if headings else "")),
        re.compile(f"{opener}|{_HEADING_FORM}" if headings else opener, re.IGNORECASE),
        re.compile(
            rf"(?:[\s{_MARKS}{re.escape(_CLOSERS)}]"
            rf"|<?[ \t]{{0,3}}/?[ \t]{{0,3}}(?:{any_of})?[ \t]{{0,3}}>)*+",
            re.IGNORECASE,
        ),
        re.compile(rf"(/?)[ \t]{{0,3}}{answer}[ \t]{{0,3}}>", re.IGNORECASE) if answer else None,
        HEADING_MARKS.characters | {"<"},
    )


def split_sentences(text: str, marks: Marks = HEADING_MARKS) -> list[str]:
    """Split text into sentences; joined without separator they give the text back.

    White space after a sentence belongs to that sentence. Text without any boundary is one
    sentence; empty text has none.
    """
    sentences: list[str] = []
    start = 0
    while (end := sentence_end(text, start, marks)) is not None:
        sentences.append(text[start:end])
        start = end
    if start < len(text):
        sentences.append(text[start:])
    return sentences


def spans(text: str, start: int, end: int, marks: Marks) -> Iterator[tuple[int, int]]:
    """Spans of the sentences of `text[start:end]`, without the white space around them."""
    for sentence in split_sentences(text[start:end], marks):
        bare = sentence.strip()
        left = start + len(sentence) - len(sentence.lstrip())
        if bare:
            yield left, left + len(bare)
        start += len(sentence)


def sentence_end(text: str, start: int = 0, marks: Marks = HEADING_MARKS) -> int | None:
    """Offset at which the sentence that begins at `start` is known to be over, else None.

    It is known only once the first character of the *next* sentence stands in the text ("3." may
    go on as "3.5"), which is what a search needs that sees one token after the other.
    """
    lead = marks.lead.match(text, start)
    i = first = lead.end() if lead else start  # a lead is never a sentence of its own
    if marks.answer and (end := _answer_end(text, start, first, marks.answer)) is not None:
        return _next(text, end) if end >= 0 else None
    if own := marks.opener.match(text, first):
        i = own.end()  # "## Answer:" is one heading, not a "## " before another
    while stop := marks.stop.search(text, i):
        i = stop.start()
        if i > first and marks.opener.match(text, i):
            return i
        if text[i] == "\n":
            return _next(text, i)
        if text[i] in _MARKS:
            mark, i = i, _past_marks(text, i)
            if (after := _next(text, i)) is None:
                return None
            tagged = text[after] == "<" and "<" in marks.characters
            spaced = after > i or text[mark] in _WIDE_MARKS or tagged
            begins = "\n" in text[i:after] or not text[after].islower()
            if spaced and begins and not _is_abbreviation(text, first, mark, after):
                return after
            continue
        i += 1
    return None


def _answer_end(text: str, start: int, first: int, answer: re.Pattern[str]) -> int | None:
    """Where the answer ends that a lead opens: -1 if it is not closed yet, None if none opens."""
    closing = True
    for found in answer.finditer(text, start, first):
        closing = bool(found[1])
    if closing:
        return None
    return next((m.end() for m in answer.finditer(text, first) if m[1]), -1)


def _past_marks(text: str, i: int) -> int:
    while i < len(text) and text[i] in _MARKS:
        i += 1
    while i < len(text) and text[i] in _CLOSERS:
        i += 1
    return i


def _next(text: str, i: int) -> int | None:
    """Offset of the first character from `i` on that is no white space, None if there is none."""
    while i < len(text) and text[i].isspace():
        i += 1
    return i if i < len(text) else None


def _is_abbreviation(text: str, first: int, mark: int, after: int) -> bool:
    """Whether the period at `mark` belongs to an abbreviation, an initial or a list number."""
    if text[mark] != ".":
        return False
    word_start = mark
    while word_start > first and not text[word_start - 1].isspace() and mark - word_start < 12:
        word_start -= 1
    word = text[word_start:mark].lstrip("(\"'")
    if word.lower() in _ABBREVIATIONS:
        return True
    if word.lower() in ("no", "nos"):  # "no. 5"; but "Is it red? No. It is blue."
        return text[after].isdigit()
    letters = word.split(".")
    if all(len(w) == 1 and w.isalpha() for w in letters) and (word.isupper() and word != "I"):
        # initials ("J. Smith", "J.R. Smith"); but "B." closes "The answer is B." before a new line
        return "\n" not in text[mark + 1 : mark + 3]
    # "1. First ..." at the start of a sentence is its own list number
    return word_start == first and _LIST_ITEM.match(text, first) is not None
