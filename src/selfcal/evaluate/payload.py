"""What a model claims as its answer in, the answer out: a letter, yes or no, a number, or a text.

A claim is the piece of plain text that stands where an answer is due: after `Answer:`, in a box,
in a last line. Where it says nothing that can be read, or more than one thing, the result is None:
it is never guessed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Literal

from selfcal.evaluate import phrases
from selfcal.evaluate.plain import numbers, plain

Kind = Literal["choice", "yesno", "number", "open"]
"""Of a question, by what its answer is."""

_LONGEST = 300
"""Characters of an answer in words."""
_LONGEST_OPTION = 1_000
"""Characters of an option that is compared; a longer one is known by its letter alone."""
_EDGES = " \t\n\r\"'`*_.,;:!?()[]{}<>$\\~"


def read_payload(text: str, kind: Kind, choices: Sequence[str], strict: bool = False) -> str | None:
    """The answer that a claim says; None if it cannot be read.

    Args:
        text: plain text, by `plain`.
        kind: of the question.
        choices: options of a multiple-choice question.
        strict: the claim must be an answer and nothing else, as in a bare last line.
    """
    if kind == "choice":
        return _choice(text, choices, strict)
    if kind == "open":
        return _open(text)
    if phrases.REFUSAL.search(text):
        return None
    return _yes_no(text) if kind == "yesno" else _number(text, strict)


def without_lead(text: str) -> str:
    """A claim without words such as `So it is` before it."""
    text = text.strip().lstrip("\"'([ ")
    for _ in range(5):
        lead = phrases.LEAD.match(text)
        if not lead or lead.end() == len(text):
            break
        text = text[lead.end() :]
    return text


def bare(text: str) -> str:
    """A short text as it is compared: lower case, no article, no punctuation around it."""
    text = " ".join(text.lower().split()).strip(_EDGES)
    return re.sub(r"^(?:the|a|an) (?=\S)", "", text).strip(_EDGES)


# --- multiple choice --------------------------------------------------------------------------

_LETTER_FIRST = re.compile(
    r"[(\[{\"' ]{0,3}(?:(?:option|choice|answer|letter) )?[(\[{\"' ]{0,3}"
    r"(?:(?P<upper>(?-i:[A-Z]))|(?P<lower>(?-i:[a-z])))(?P<close>[)\]}.:,;\"'!]{1,3}|\s*$|\s+-\s|(?=\s))",
    re.IGNORECASE,
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def _choice(text: str, choices: Sequence[str], strict: bool) -> str | None:
    options = _bare_options(tuple(choices[: len(ascii_uppercase)]))
    said = without_lead(text)
    for form in (text, said):
        if (one := _same(bare(form), options)) is not None:
            return one
    if set(options) >= {"yes", "no"} and (polar := _yes_no(text)) is not None:
        return ascii_uppercase[options.index(polar)]
    lead = _letter_first(text, options) or _letter_first(said, options)
    if lead is not None:
        return lead if lead in ascii_uppercase[: len(options)] else None
    if strict:
        return None
    if phrases.REFUSAL.search(text):
        return None
    kept = phrases.REJECTED.sub(" ", phrases.NEGATED.sub(" ", text))
    found = _named(kept, options) | _mentioned(kept, len(options))
    return found.pop() if len(found) == 1 else None


@functools.lru_cache(maxsize=64)
def _bare_options(choices: tuple[str, ...]) -> tuple[str, ...]:
    """Options as they are compared; a response has many claims, and they are the same for all."""
    return tuple(bare(plain(c)) if len(c) <= _LONGEST_OPTION else "" for c in choices)


def _same(text: str, options: Sequence[str]) -> str | None:
    """The letter of the only option that this is, in words, by number or by place."""
    equal = [i for i, o in enumerate(options) if o == text and o]
    if not equal:
        place = re.fullmatch(
            rf"(?:option|choice) (\d{{1,2}})|({'|'.join(_ORDINALS)}) (?:option|choice|one)", text
        )
        if place:
            i = int(place[1]) - 1 if place[1] else _ORDINALS.index(place[2])
            equal = [i] if 0 <= i < len(options) else []
        else:
            equal = _same_number(text, options)
    return ascii_uppercase[equal[0]] if len(equal) == 1 and equal[0] < 26 else None


def _same_number(text: str, options: Sequence[str]) -> list[int]:
    own = _quantity(text)
    if own is None:
        return []
    theirs = [_quantity(o) for o in options]
    if any(t is None for t in theirs) or len({t and t[0] for t in theirs}) < len(theirs):
        return []
    return [i for i, t in enumerate(theirs) if t and t[0] == own[0] and own[1] in ("", t[1])]


def _quantity(text: str) -> tuple[str, str] | None:
    """Number and unit of a text that is nothing else."""
    found = numbers(text)
    if len(found) != 1 or text[: found[0][0]].strip(" ($=~") or len(text) > 40:
        return None
    unit = text[found[0][1] :].strip(" .)")
    return (
        (found[0][2], unit)
        if not re.search(r"[\d=]", unit.replace("^2", "").replace("^3", ""))
        else None
    )


def _letter_first(text: str, options: Sequence[str]) -> str | None:
    """The letter that a claim begins with; `?` where what follows contradicts it."""
    m = _LETTER_FIRST.match(text)
    if not m:
        return None
    letter, close = m["upper"] or m["lower"], m["close"]
    shown = (
        letter.isupper()
        or close.strip()[:1] in (")", "]", "}", ".", ":")
        or not text[m.end() :].strip()
    )
    if not shown:
        return None
    letter, rest = letter.upper(), text[m.end() :]
    i = ascii_uppercase.index(letter)
    own = options[i] if i < len(options) else ""
    after = bare(rest)
    if not close.strip() and phrases.VERB.match(rest):
        return None  # something is said about the option
    if not close.strip() and after and letter in "AI" and after != own:
        return None  # an article or a pronoun
    if re.match(
        r"\W{0,3}(?:and|or|&|/|,|und|oder)?\W{0,3}\b[A-Z]\b(?!')(?:\W|$)", rest.lstrip(), 0
    ) and (
        re.match(
            r"\W{0,3}(?:(?:and|or|und|oder)\b|[&/,])",
            text[m.end("upper" if m["upper"] else "lower") :].lstrip(" )\"'"),
        )
    ):
        return "?"
    sentence = bare(re.split(r"[.\n;](?:\s|$)", rest.strip(), maxsplit=1)[0])
    other = _same(sentence, options) or _same(after, options)
    if (
        other is not None
        and other != letter
        and len(sentence) > 0
        and not re.match(r"\W*not\b", rest, re.IGNORECASE)
    ):
        return "?"
    return letter


def _named(text: str, options: Sequence[str]) -> set[str]:
    """Letters of the options whose words stand in a text; of nested ones the longest."""
    left, found = " ".join(text.lower().split()), set()
    for i in sorted(range(len(options)), key=lambda i: -len(options[i])):
        if len(options[i]) < 2 and not options[i].isdigit():
            continue
        if options[i] not in left:
            continue
        pattern = rf"(?<![\w.]){re.escape(options[i])}(?!\w|\.\d)"
        left, n = re.subn(pattern, " \0 ", left)
        if n:
            found.add(ascii_uppercase[i])
    return found


def _mentioned(text: str, count: int) -> set[str]:
    letters = {next(g for g in m.groups() if g).upper() for m in phrases.MENTION.finditer(text)}
    return letters & set(ascii_uppercase[:count])


# --- yes or no --------------------------------------------------------------------------------


def _yes_no(text: str) -> str | None:
    text = phrases.IDIOM.sub(" ", text)
    for form in (text, without_lead(text)):
        m = phrases.POLAR.match(form) or phrases.POLAR_CJK.match(form)
        if not m:
            continue
        rest = form[m.end() :]
        other = phrases.BOTH.match(rest)
        if other and (other[1].lower() in ("yes", "true")) != bool(m["yes"]):
            return None
        if m["no"] and m["no"].lower() == "no" and not phrases.CLAUSE.match(rest):
            return None  # "no dog ..." says nothing of the question
        return "yes" if m["yes"] else "no"
    return None


# --- numbers and open answers -----------------------------------------------------------------


def _number(text: str, strict: bool) -> str | None:
    text = re.sub(r"\bnot\b[^,;.\n]{0,60}?(?=\bbut\b|[,;]|$)", " ", text)
    head, equals, tail = text.rpartition("=")
    if strict and equals and numbers(head):
        return None
    if equals and numbers(tail):
        text = tail
    said = without_lead(text).lstrip(" \"'([$=~")
    if said[:1].isdigit() and "$" in text[: len(text) - len(said)]:
        pass  # a currency sign
    elif text.strip().startswith(("-", "+", "(-", "minus", "negative")):
        said = text.strip().lstrip("(")
    if phrases.UNSOLVED.search(said):
        return None
    found = [
        (a, b, v)
        for a, b, v in numbers(said)
        if said[b : b + 1] != ":" or not said[b + 1 : b + 2].isdigit()
    ]
    if len(found) != len(numbers(said)) or not found or phrases.BOUND.search(said):
        return None
    first = found[0]
    if strict and (first[0] > 1 or not phrases.UNIT.match(said[first[1] :])):
        return None
    if len({v for _, _, v in found}) == 1:
        return first[2]
    leads = first[0] <= 1 and phrases.AFTER.match(said[first[1] :])
    return first[2] if leads else None


def _open(text: str) -> str | None:
    if phrases.REFUSAL.search(text):
        return None
    if (quoted := phrases.QUOTED.findall(text)) and len(set(quoted)) == 1:
        return str(quoted[0]).strip()
    said = (
        phrases.REASON.split(without_lead(text), maxsplit=1)[0]
        .strip()
        .strip("\"'`*_ ")
        .rstrip(". ")
        .strip("\"'`*_ ")
    )
    return said if 0 < len(said) <= _LONGEST and re.search(r"\w", said) else None
