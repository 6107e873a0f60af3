"""The RAP format: text in, rationale, answer and sentences out, and back.

A response is a rationale that ends in one line `Answer: ...`. Sentence boundaries are found in the
*text*, never by a token id, so they are the same for every tokenizer: a period inside a number, an
abbreviation or an initial ends nothing, while a new line, a list item or the answer's heading does
start a new sentence. Everything here is linear in the length of the text; model output is untrusted.
"""

from __future__ import annotations

import re

from selfcal.types import Rap

RATIONALE_HEADING = "Rationale:"
ANSWER_HEADING = "Answer:"

_ABBREVIATIONS = frozenset(
    "e.g i.e dr mr mrs ms prof st vs etc fig figs eq eqs no nos approx ca cf al inc ltd jr sr "
    "dept est min max avg resp sec vol pp ed jan feb mar apr jun jul aug sep sept oct nov dec "
    "u.s u.k a.m p.m".split()
)
_CLOSERS = "\"'”’)]*_`"
_LIST_ITEM = re.compile(r"(?:[-*•]|\(?\d{1,2}[.)]|\(?[a-zA-Z]\))[ \t]")
_HEADING = re.compile(r"(?:\*\*|__|#{1,4} )?answer(?:\*\*|__)?[ \t]{0,3}:", re.IGNORECASE)
_RATIONALE_HEADING = re.compile(r"\s{0,9}(?:\*\*|#{1,4} )?rationale(?:\*\*)?[ \t]{0,3}:", re.I)


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
    while i < len(text):
        if i > first and _starts_heading(text, i):
            return i
        if text[i] == "\n":
            after = _skip_space(text, i)
            return after if after < len(text) else None
        if text[i] in ".!?。！？":
            mark, i = i, i + 1
            while i < len(text) and text[i] in ".!?。！？":
                i += 1
            while i < len(text) and text[i] in _CLOSERS:
                i += 1
            if i >= len(text):
                return None
            after = _skip_space(text, i)
            spaced = after > i or text[mark] in "。！？"
            if spaced and not _is_abbreviation(text, first, mark):
                if after >= len(text):
                    return None
                if "\n" in text[i:after] or not text[after].islower():
                    return after
            continue
        i += 1
    return None


def _skip_space(text: str, i: int) -> int:
    while i < len(text) and text[i].isspace():
        i += 1
    return i


def _starts_heading(text: str, i: int) -> bool:
    at_word = text[i - 1].isspace() and text[i] in "Aa*_#"
    return at_word and _HEADING.match(text, i) is not None


def _is_abbreviation(text: str, first: int, mark: int) -> bool:
    """Whether the period at `mark` belongs to an abbreviation, an initial or a list number."""
    if text[mark] != ".":
        return False
    word_start = mark
    while word_start > first and not text[word_start - 1].isspace() and mark - word_start < 12:
        word_start -= 1
    word = text[word_start:mark].lstrip("(\"'")
    if word.lower() in _ABBREVIATIONS:
        return True
    if len(word) == 1 and word.isalpha() and word.isupper() and word != "I":
        # an initial ("J. Smith"); but "B." closes "The answer is B." before a new line
        return "\n" not in text[mark + 1 : mark + 3] and word_start > first
    # "1. First ..." at the start of a sentence is its own list number
    return word_start == first and _LIST_ITEM.match(text, first) is not None


def parse(text: str) -> Rap:
    """Read a response. Never raises; a text without an answer line has an empty answer.

    The answer is what follows the last `Answer:` heading, up to the end of its line. A response is
    compliant if it has a non-empty rationale, exactly one answer heading and nothing after the
    answer's line.
    """
    headings = [m for m in _HEADING.finditer(text) if m.start() == 0 or text[m.start() - 1].isspace()]
    body, answer, compliant = text, "", False
    if headings:
        last = headings[-1]
        body = text[: headings[0].start()]
        line, _, rest = text[last.end() :].lstrip(" \t").partition("\n")
        answer = clean_answer(line)
        compliant = len(headings) == 1 and bool(answer) and not rest.strip()
    heading = _RATIONALE_HEADING.match(body)
    rationale = body[heading.end() if heading else 0 :].strip()
    sentences = tuple(s.strip() for s in split_sentences(rationale))
    return Rap(rationale, answer, sentences, compliant and bool(rationale))


def clean_answer(answer: str) -> str:
    """Strip white space, emphasis marks and a final period from an answer."""
    return answer.strip().strip("*_`\"").rstrip(".").strip()


def answers_agree(given: str, reference: str, choices: tuple[str, ...] = ()) -> bool:
    """Whether two short answers say the same.

    Case, articles, surrounding punctuation and number format ("4.0", "four") do not matter. With
    `choices`, a letter ("B", "(b)") stands for its option.
    """
    return normalize_answer(given, choices) == normalize_answer(reference, choices)


_NUMBER_WORDS = {
    word: str(i)
    for i, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()
    )
}


def normalize_answer(answer: str, choices: tuple[str, ...] = ()) -> str:
    """Bring a short answer to the form in which answers are compared."""
    text = clean_answer(answer).lower().strip("()[]{}<>,;:!? ")
    if choices:
        options = [clean_answer(c).lower() for c in choices]
        letter = re.match(r"([a-z])(?:[).:]|$)", text)
        if letter and text not in options and ord(letter[1]) - 97 < len(options):
            text = options[ord(letter[1]) - 97]
    text = re.sub(r"^(?:the|a|an) ", "", text)
    text = _NUMBER_WORDS.get(text, text)
    if re.fullmatch(r"[+-]?(?:\d[\d,]{0,30}(?:\.\d{0,30})?|\.\d{1,30})%?", text):
        number = float(text.rstrip("%").replace(",", ""))
        return f"{number:g}"
    return text
