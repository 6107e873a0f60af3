"""The RAP format: text in, rationale, answer and sentences out, and back.

A response is a rationale that ends in one line `Answer: ...`. Sentence boundaries are found in the
*text*, never by a token id, so they are the same for every tokenizer: a period inside a number, an
abbreviation or an initial ends nothing, while a new line, a list item or the answer's heading does
start a new sentence. Everything here is linear in the length of the text: model output is
untrusted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from selfcal.types import Rap

RATIONALE_HEADING = "Rationale:"
ANSWER_HEADING = "Answer:"

_ABBREVIATIONS = frozenset((
    "e.g", "i.e", "dr", "mr", "mrs", "ms", "prof", "st", "vs", "etc", "fig", "figs", "eq", "eqs",
    "approx", "ca", "cf", "al", "inc", "ltd", "jr", "sr", "dept", "est", "min", "max", "avg",
    "resp", "sec", "vol", "pp", "ed", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep",
    "sept", "oct", "nov", "dec", "u.s", "u.k", "a.m", "p.m",
))  # fmt: skip
_MARKS = ".!?。！？"  # noqa: RUF001
_WIDE_MARKS = "。！？"  # noqa: RUF001 (they need no space after them)
_CLOSERS = "\"'”’)]*_`」』）】》"  # noqa: RUF001
_EMPHASIS = '*_`"“”'
_LIST_ITEM = re.compile(r"(?:[-*•]|\(?\d{1,2}[.)]|\(?[a-zA-Z]\))[ \t]")
_HEADING = re.compile(
    r"(?<![^\s。！？])(?:#{1,4} )?(?:\*\*|__)?(?:final )?answer(?:\*\*|__)?[ \t]{0,3}:",  # noqa: RUF001
    re.IGNORECASE,
)
_STOP = re.compile(rf"[\n{_MARKS}]|(?<=\s)[AaFf*_#]")  # all that can end a sentence or begin one
_RATIONALE_HEADING = re.compile(
    r"\s{0,9}(?:#{1,4} )?(?:\*\*|__)?rationale(?:\*\*|__)?[ \t]{0,3}:(?:\*\*|__)?", re.IGNORECASE
)


def render(rationale: str, answer: str) -> str:
    """Render a rationale and an answer as one RAP."""
    return f"{RATIONALE_HEADING} {rationale.strip()}\n{ANSWER_HEADING} {answer.strip()}"


def split_sentences(text: str) -> list[str]:
    """Split text into sentences; joined without separator they give the text back.

    White space after a sentence belongs to that sentence. Text without any boundary is one
    sentence; empty text has none.
    """
    sentences: list[str] = []
    start = 0
    while (end := sentence_end(text, start)) is not None:
        sentences.append(text[start:end])
        start = end
    if start < len(text):
        sentences.append(text[start:])
    return sentences


def sentence_end(text: str, start: int = 0) -> int | None:
    """Offset at which the sentence that begins at `start` is known to be over, else None.

    It is known only once the first character of the *next* sentence stands in the text ("3." may
    go on as "3.5"), which is what a search needs that sees one token after the other.
    """
    i = start
    while i < len(text) and text[i].isspace():
        i += 1
    first = i  # leading white space is never a sentence of its own
    if own := _HEADING.match(text, first):
        i = own.end()  # "## Answer:" is one heading, not a "## " before another
    while stop := _STOP.search(text, i):
        i = stop.start()
        if i > first and _HEADING.match(text, i):
            return i
        if text[i] == "\n":
            after = _skip_space(text, i)
            return after if after < len(text) else None
        if text[i] in _MARKS:
            mark, i = i, i + 1
            while i < len(text) and text[i] in _MARKS:
                i += 1
            while i < len(text) and text[i] in _CLOSERS:
                i += 1
            if i >= len(text):
                return None
            after = _skip_space(text, i)
            if after >= len(text):
                return None
            spaced = after > i or text[mark] in _WIDE_MARKS
            begins = "\n" in text[i:after] or not text[after].islower()
            if spaced and begins and not _is_abbreviation(text, first, mark, after):
                return after
            continue
        i += 1
    return None


def _skip_space(text: str, i: int) -> int:
    while i < len(text) and text[i].isspace():
        i += 1
    return i


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


def parse(text: str) -> Rap:
    """Read a response. Never raises; a text without an answer line has an empty answer.

    The answer is what follows the last `Answer:` heading, up to the end of its line; the rationale
    is what stands before the first. A response is compliant if it has a non-empty rationale,
    exactly one answer heading and nothing after the answer's line.
    """
    headings = list(_HEADING.finditer(text))
    answer, compliant = "", False
    if headings:
        line, _, rest = text[headings[-1].end() :].partition("\n")
        answer = clean_answer(line)
        compliant = len(headings) == 1 and bool(answer) and not rest.strip()
    start, end = _rationale_span(text, headings)
    rationale = text[start:end].strip()
    sentences = tuple(text[a:b] for a, b in _spans(text, start, end))
    return Rap(rationale, answer, sentences, compliant and bool(rationale))


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where in a response the sentences of its rationale stand: `text[start:end]` is a sentence."""
    return list(_spans(text, *_rationale_span(text, list(_HEADING.finditer(text)))))


def stray_spans(text: str) -> list[tuple[int, int]]:
    """Where sentences stand that belong neither to the rationale nor to the answer.

    They are what a response adds after its answer's line, or says between several answer headings;
    in a compliant response there are none.
    """
    headings = list(_HEADING.finditer(text))
    stray: list[tuple[int, int]] = []
    for heading, then in pairwise(headings):
        stray += _spans(text, heading.end(), then.start())
    if headings:
        line_end = text.find("\n", headings[-1].end())
        stray += _spans(text, line_end, len(text)) if line_end >= 0 else ()
    return stray


def _rationale_span(text: str, headings: list[re.Match[str]]) -> tuple[int, int]:
    end = headings[0].start() if headings else len(text)
    heading = _RATIONALE_HEADING.match(text, 0, end)
    return heading.end() if heading else 0, end


def _spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Spans of the sentences of `text[start:end]`, without the white space around them."""
    for sentence in split_sentences(text[start:end]):
        bare = sentence.strip()
        left = start + len(sentence) - len(sentence.lstrip())
        if bare:
            yield left, left + len(bare)
        start += len(sentence)


def clean_answer(answer: str) -> str:
    """Strip white space, emphasis marks and a final period from an answer."""
    return answer.strip().strip(_EMPHASIS + " ").rstrip(_EMPHASIS + ". ").strip()


def answers_agree(given: str, reference: str, choices: tuple[str, ...] = ()) -> bool:
    """Whether two short answers say the same.

    Case, articles, surrounding punctuation and number format ("4.0", "four", "50%", "1,000") do not
    matter. With `choices`, a letter ("B", "(b)") stands for its option.
    """
    return normalize_answer(given, choices) == normalize_answer(reference, choices)


_NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six",
    "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
_NUMBER = re.compile(
    r"(?=[+-]?\.?[0-9])([+-]?)([0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.([0-9]*))? ?%?"
)


def normalize_answer(answer: str, choices: tuple[str, ...] = ()) -> str:
    """Bring a short answer to the form in which answers are compared."""
    text = _bare(answer)
    if choices:
        options = [_bare(c) for c in choices]
        letter = re.match(r"([a-z])(?:[).:]|$)", text)
        if letter and text not in options and ord(letter[1]) - 97 < len(options):
            text = options[ord(letter[1]) - 97]
    text = re.sub(r"^(?:the|a|an) ", "", text)
    if text in _NUMBER_WORDS:
        return str(_NUMBER_WORDS.index(text))
    number = _NUMBER.fullmatch(text)
    return _plain_number(*number.groups("")) if number else text


def _bare(answer: str) -> str:
    return clean_answer(answer).lower().strip("()[]{}<>,;:!? ")


def _plain_number(sign: str, whole: str, fraction: str) -> str:
    """A number in digits, exactly: as text, so that no length of it is rounded or refused."""
    whole, fraction = whole.replace(",", "").lstrip("0"), fraction.rstrip("0")
    number = (whole or "0") + (f".{fraction}" if fraction else "")
    return f"-{number}" if sign == "-" and number != "0" else number
