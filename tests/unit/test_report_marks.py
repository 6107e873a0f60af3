"""Responses made legible: their sentences, and what differs between two of them."""

from __future__ import annotations

import time

import pytest

from selfcal.miniworld.verifier import verify
from selfcal.rationale import HEADINGS
from selfcal.report.marks import MOST, Marked, beside, mark
from selfcal.types import without_marks
from unit.hand_made import BAD, GOOD, sample

OWN = sample("cal-0")


def said(marked: Marked) -> list[tuple[str, str, bool, int]]:
    """Each sentence with its changed words in brackets, its status, and where it stands."""
    text = [
        "".join(f"[{p.text}]" if p.changed else p.text for p in line.pieces)
        for line in marked.lines
    ]
    return [(t, x.status, x.differs, x.row) for t, x in zip(text, marked.lines, strict=True)]


def test_sentences_that_differ_face_each_other() -> None:
    good, bad = beside(*(mark(text, verify(OWN, text), HEADINGS) for text in (GOOD, BAD)))
    assert said(good) == [
        ("The left digit is [2].", "true", True, 1),
        ("The right digit is 3.", "true", False, 2),
        ("[2] plus 3 is [5].", "follows", True, 3),
    ]
    assert said(bad) == [
        ("The left digit is [4].", "counterfactual", True, 1),
        ("The right digit is 3.", "true", False, 2),
        ("[4] plus 3 is [7].", "follows", True, 3),
    ]
    assert good.answer and bad.answer and good.answer.differs
    assert (good.answer.status, bad.answer.status) == ("right", "wrong")


def test_words_that_differ_in_a_row_are_marked_as_one() -> None:
    texts = ("Rationale: So it is a red star.\nAnswer: a", "Rationale: That was a star.\nAnswer: a")
    one, other = beside(*(mark(text, None, HEADINGS) for text in texts))
    assert [t for t, *_ in said(one)] == ["[So it is] a [red ]star."]
    assert [t for t, *_ in said(other)] == ["[That was] a star."]


def test_a_sentence_without_a_partner_leaves_a_gap() -> None:
    shorter = GOOD.replace(" The right digit is 3.", "")
    one, other = beside(*(mark(text, None, HEADINGS) for text in (GOOD, shorter)))
    assert [(d, row) for _, _, d, row in said(one)] == [(False, 1), (True, 2), (False, 3)]
    assert [(d, row) for _, _, d, row in said(other)] == [(False, 1), (False, 3)]
    assert one.rows == other.rows == 3


def test_sentences_with_little_in_common_are_not_marked_word_by_word() -> None:
    other = GOOD.replace("The left digit is 2.", "Nobody knows!")
    one, _ = beside(*(mark(text, None, HEADINGS) for text in (GOOD, other)))
    assert said(one)[0] == ("The left digit is 2.", "", True, 1)


@pytest.mark.parametrize("text", ["a. " * 40_000, "x" * 100_000, "So. " * (MOST + 1)])
def test_long_texts_are_shown_whole_and_quickly(text: str) -> None:
    begun = time.perf_counter()
    one = mark(text, None, HEADINGS)
    assert beside(one, mark(GOOD, None, HEADINGS))[0] is one
    assert one.long and not one.lines and len(one.whole) <= 20_100
    assert ("more characters are left out" in one.whole) == (len(text) > 20_000)
    assert time.perf_counter() - begun < 1


def test_marks_of_images_are_left_out_and_blanks_are_quick() -> None:
    begun = time.perf_counter()
    assert without_marks(f"a{' ' * 100_000}b") == f"a{' ' * 100_000}b"
    assert time.perf_counter() - begun < 1
    assert without_marks("<image> \n<image>\t<image>Is it <image>?\n") == "Is it ?"
