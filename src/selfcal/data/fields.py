"""A row in; the fields of a sample out, with its images as they were given.

What is wrong with a row's form is an error, since whatever wrote the file is wrong. What is wrong
with its content is a reason to leave the row out.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

from selfcal.data.rows import DataError, Row, kind_of, listed
from selfcal.rationale import normalize_answer
from selfcal.types import IMAGE_MARK, Sample, without_marks

TEXT = 2**20
"""Text of a row may have this many characters in any column."""
_TEXTS = ("question", "category", "rationale", "facts")
_ID = 512
_LETTER = re.compile(r"\(?([A-Za-z])[).:]{0,2}")
_LETTER_AND_TEXT = re.compile(r"\(?([A-Za-z])[).:]{1,2}\s+(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Fields:
    """A row, read."""

    sample: Sample
    """Its image paths are as in the file; empty where images are embedded."""
    images: tuple[str | bytes, ...]
    """Paths, or contents of embedded images."""
    reason: str | None
    """Why the row is left out, as far as its text can tell."""


def read_fields(row: Row, where: str, answered: bool, max_images: int) -> Fields:
    """A row's values as the fields of a sample, types checked.

    Args:
        row: with the columns of a sample.
        where: file and place, for errors.
        answered: whether it must have an answer.
        max_images: that it may have.

    Raises:
        DataError: a value is of a wrong type, or the id is empty or very long.
    """
    cells = row.cells
    text = {n: _text(cells.get(n), n, where) for n in _TEXTS}
    own_id = _text(cells.get("id"), "id", where)
    if not own_id.strip():
        raise DataError(f"{where}: the id is empty; give every row its own id")
    if len(own_id) > _ID:
        raise DataError(f"{where}: the id has {len(own_id):,} characters; {_ID} are enough")
    images = _images(cells, where)
    choices = _choices(cells.get("choices"), where)
    answer, reason = _answer(cells.get("answer"), choices, where)
    reason = _reason(row, text, answer, choices, answered, len(images), max_images) or reason
    sample = Sample(
        own_id,
        images[0] if images and isinstance(images[0], str) else "",
        text["question"][:TEXT] if reason else _question(text["question"], choices, len(images)),
        answer,
        choices,
        text["category"],
        text["rationale"],
        text["facts"],
        _share(cells.get("confidence"), where),
        tuple(i if isinstance(i, str) else "" for i in images[1:]),
    )
    if reason is None and not sample.question.strip():  # nothing but marks
        reason = "empty-question"
    return Fields(sample, images, reason)


def _reason(
    row: Row,
    text: Mapping[str, str],
    answer: str,
    choices: tuple[str, ...],
    answered: bool,
    images: int,
    max_images: int,
) -> str | None:
    if row.left_out:
        return row.left_out
    if any(len(t) > TEXT for t in (*text.values(), answer, *choices)):
        return "text-too-long"
    if not text["question"].strip():
        return "empty-question"
    if answered and not answer.strip():
        return "empty-answer"
    return "too-many-images" if images > max_images else None


def match_option(answer: str | int, choices: tuple[str, ...]) -> str | None:
    """The option that an answer means; None: none of them.

    An answer is an option's text, its letter (`B`, `(b)`, `B. blue`), or its place from 0. Text
    goes before letter, letter before place; a whole number that is no text is a place.
    """
    if isinstance(answer, int):
        return choices[answer] if 0 <= answer < len(choices) else None
    bare = answer.strip()
    for choice in choices:
        if choice.strip() == bare:
            return choice
    alike = [c for c in choices if normalize_answer(c) == normalize_answer(bare)]
    if len(alike) == 1:
        return alike[0]
    if letter := _LETTER.fullmatch(bare):
        return _lettered(letter[1], choices)
    if (both := _LETTER_AND_TEXT.fullmatch(bare)) and (own := _lettered(both[1], choices)):
        same = normalize_answer(own) == normalize_answer(both[2])
        return own if same else None
    if bare.isascii() and bare.isdecimal() and len(bare) < 6 and int(bare) < len(choices):
        return choices[int(bare)]
    return None


def _lettered(letter: str, choices: tuple[str, ...]) -> str | None:
    place = ascii_lowercase.index(letter.lower())
    return choices[place] if place < len(choices) else None


def _answer(value: object, choices: tuple[str, ...], where: str) -> tuple[str, str | None]:
    """The answer, and why it is none."""
    if not choices:
        return _text(value, "answer", where), None
    if isinstance(value, bool) or not isinstance(value, int):
        value = _text(value, "answer", where)
    if value == "" or (isinstance(value, str) and (not value.strip() or len(value) > TEXT)):
        return value if isinstance(value, str) else "", None
    option = match_option(value, choices)
    return (str(value), "answer-not-an-option") if option is None else (option, None)


def _question(question: str, choices: tuple[str, ...], images: int) -> str:
    """A question with its image marks if there is one for each image, else without.

    Options may have marks, too. A mark before the question about a single image says nothing, as
    that is where images stand.
    """
    if IMAGE_MARK not in question:
        return question
    marks = sum(text.count(IMAGE_MARK) for text in (question, *choices))
    leads = images == 1 and question.lstrip().startswith(IMAGE_MARK)
    return question.strip() if marks == images and not leads else without_marks(question)


def _choices(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, str) and (found := listed(value)) is not None:
        value = found
    if not isinstance(value, list | None):
        raise DataError(f"{where}: choices is {kind_of(value)}; give a list of texts")
    return tuple(_text(c, "choices", where) for c in value or ())


def _images(cells: Mapping[str, Any], where: str) -> tuple[str | bytes, ...]:
    """Images of a row, one by one: those of `images` if it has any, else that of `image`."""
    many = cells.get("images")
    value = many if many not in (None, [], "") else cells.get("image")
    column = "image" if value is not many else "images"
    if isinstance(value, str) and (found := listed(value)) is not None:
        value = found
    each = value if isinstance(value, list) else [value]
    return tuple(_image(one, column, where) for one in each) or ("",)


def may_have_several(row: Row) -> bool:
    """Whether a row may have several images, by a glance."""
    image = row.cells.get("image")
    spelled = isinstance(image, str) and image.lstrip().startswith("[")
    return bool(row.cells.get("images")) or isinstance(image, list) or spelled


def _image(value: object, column: str, where: str) -> str | bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and {"bytes", "path"} >= value.keys():  # a Hugging Face image
        content, path = value.get("bytes"), value.get("path")
        if isinstance(content, bytes):
            return content
        if content is None:
            return _text(path, column, where)
    text = _text(value, column, where)
    if text.startswith("data:image/"):
        try:
            return base64.b64decode(text.partition("base64,")[2], validate=True)
        except (binascii.Error, ValueError):
            return b""
    return text


def _share(value: object, where: str) -> float:
    if value is None or value == "":
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"{where}: confidence is {value!r:.40}; give a number from 0 to 1")
    return float(value)


def _text(value: object, column: str, where: str) -> str:
    if value is None:
        return ""
    if column == "id" and type(value) is int:
        return str(value)
    if not isinstance(value, str):
        images = ("image", "images")
        way_out = "save it as a file and give its path" if column in images else "give text"
        raise DataError(f"{where}: {column} is {kind_of(value)}; {way_out}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character: "\ud83d"
        raise DataError(
            f"{where}: {column} has half a surrogate pair at character {error.start + 1}; "
            "write the file anew as UTF-8"
        ) from error
    return value
