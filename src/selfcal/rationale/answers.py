"""Short answers: cleaned of what surrounds them, and compared by what they say.

All of it is linear in the length of the text: model output is untrusted.
"""

from __future__ import annotations

import re

_EMPHASIS = '*_`"“”'


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
