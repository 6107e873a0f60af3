"""The RAP format: where sentences end, what is rationale and what answer, when answers agree."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcal.rationale import (
    answers_agree,
    clean_answer,
    normalize_answer,
    parse,
    render,
    sentence_end,
    sentence_spans,
    split_sentences,
    stray_spans,
)

MEGABYTE = 1_000_000

# each row is the sentences that the joined text must be split into
SENTENCES = {
    "none": [],
    "space only": ["  \n "],
    "one, unended": ["no boundary at all"],
    "plain": ["A dog runs. ", "It is brown! ", "Is it? ", "Yes."],
    "decimal": ["It costs 3.5 dollars. ", "Then 4."],
    "decimals at the end": ["The value is 3. ", "5 is more."],
    "e.g.": ["Fruit, e.g. Apples, is red. ", "So it is red."],
    "i.e. in brackets": ["It is late (i.e. After noon). ", "Yes."],
    "title": ["Dr. Smith and Mrs. Jones agree. ", "He is right."],
    "initial": ["By J. Smith and A. B. Jones. ", "It is old."],
    "initial first": ["J. Smith painted it. ", "It is old."],
    "initials joined": ["J.R.R. Tolkien of the U.S. Army wrote. ", "It is long."],
    "I is a word": ["So do I. ", "It is red."],
    "letter before a line": ["The answer is B.\n", "It is red."],
    "no. with a number": ["See no. 5 there. ", "It is red."],
    "no. as an answer": ["Is it red? ", "No. ", "It is blue."],
    "figure": ["See Fig. 3 and Eq. 4. ", "It is red."],
    "numbered list": ["Steps:\n", "1. Look at it.\n", "2. Count. ", "3) Add.\n", "10. Stop."],
    "dashed list": ["Seen:\n", "- Mr. Fox\n", "* a cat.\n", "• a dog"],
    "lettered list": ["(a) One dog. ", "(b) Two."],
    "line break": ["a line without a period\n", "another\n\n  ", "third"],
    "carriage return": ["one\r\n", "two"],
    "answer heading": ["It is red. ", "Answer: red"],
    "answer heading, no period": ["It is red ", "Answer: red"],
    "answer heading, lower": ["So the ", "answer: red"],
    "answer heading, bold": ["It is red ", "**Answer:** red"],
    "answer heading, final": ["It is red. ", "## **Final Answer** : red"],
    "answer heading alone": ["# Answer: red"],
    "answer is no heading": ["The answer is red. ", "An answer."],
    "ellipsis goes on": ["Wait... then it is red. ", "Yes."],
    "ellipsis ends": ["Wait... ", "Then it is red."],
    "marks pile up": ["What?! ", "No!!! ", "Yes."],
    "quote closes": ['He said "stop." ', "Then “go.” ", "Yes."],
    "bracket closes": ["(It is red.) ", "[So.] ", "*It is.* ", "Yes."],
    "lower case goes on": ["approx. five at 5 p.m. on it. ", "Yes."],
    "file name": ["Open a.txt and b.py now. ", "Yes."],
    "CJK": ["这是红色。", "是吗？", "「对。」", "好！"],  # noqa: RUF001
    "CJK answer": ["这是红色。", "Answer: 红"],
    "unicode space": ["One.\u00a0", "Two.\u3000", "Three.\u2028", "Four."],
}


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences(name: str) -> None:
    assert split_sentences("".join(SENTENCES[name])) == SENTENCES[name]


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("It is 3", None),
        ("It is 3.", None),  # may go on as 3.5
        ("It is 3. ", None),  # the next sentence is not there yet
        ("It is 3. T", 9),
        ("It is 3.5", None),
        ("It is e.g. T", None),
        ("It is\n", None),
        ("It is\nt", 6),
        ("It is red Answer", None),
        ("It is red Answer:", 10),
        ("这是红色。", None),
        ("这是红色。是", 5),
        ("  \n ", None),
        ("", None),
    ],
)
def test_a_sentence_ends_only_when_the_next_has_begun(text: str, end: int | None) -> None:
    assert sentence_end(text) == end


_PIECES = st.sampled_from((
    "Answer:", "answer", "**", "## ", "Final ", "Rationale:", ".", ". ", "...", "?", "。", "\n",
    " ", "e.g.", "No.", "J.", "1.", "- ", "3.5", "It", "is", "x", ")", '"', "\t", "\x1c", "\u2028",
))  # fmt: skip
ANY_TEXT = st.one_of(st.text(), st.lists(_PIECES, max_size=14).map("".join))


@given(ANY_TEXT)
@settings(max_examples=300, deadline=None)
def test_any_text_is_split_without_loss_and_can_be_read(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert all(s.strip() for s in sentences) or sentences == [text]
    rap = parse(text)
    spans = sentence_spans(text)
    assert tuple(text[a:b] for a, b in spans) == rap.sentences
    assert not (rap.compliant and stray_spans(text))
    edges = [edge for span in [*spans, *stray_spans(text)] for edge in span]
    assert edges == sorted(edges)
    assert normalize_answer(rap.answer) == normalize_answer(rap.answer + " ")


@given(ANY_TEXT)
@settings(max_examples=200, deadline=None)
def test_a_boundary_once_known_stays(text: str) -> None:
    end = sentence_end(text)
    for known in range(len(text)):
        assert sentence_end(text[:known]) in (None, end)


# text -> rationale, answer, compliant
RESPONSES = {
    "Rationale: It is red. So.\nAnswer: red": ("It is red. So.", "red", True),
    "It is red. Answer: red.": ("It is red.", "red", True),
    "  \n **Rationale:** It is.\n\n**Answer:** **red**\n\n": ("It is.", "red", True),
    "## Rationale: It is.\n## Answer : red": ("It is.", "red", True),
    "It is.\nFinal answer: red": ("It is.", "red", True),
    "It is.\n## **Final Answer:** `red`": ("It is.", "red", True),
    "It is red.": ("It is red.", "", False),
    "Answer: red": ("", "red", False),
    "Rationale:\nAnswer: red": ("", "red", False),
    "It is.\nAnswer:": ("It is.", "", False),
    "It is.\nAnswer: \nred": ("It is.", "", False),
    "It is.\nAnswer: red\nIt is not.": ("It is.", "red", False),
    "It is.\nAnswer: blue\nAnswer: red": ("It is.", "red", False),
    "The answer: is.\nAnswer: red": ("The", "red", False),
    "x# answer: red": ("x#", "red", True),
    "Myanswer: red": ("Myanswer: red", "", False),
    "The answer is red.": ("The answer is red.", "", False),
    "": ("", "", False),
    "\n\n": ("", "", False),
}


@pytest.mark.parametrize("text", RESPONSES)
def test_parse(text: str) -> None:
    rap = parse(text)
    assert (rap.rationale, rap.answer, rap.compliant) == RESPONSES[text]


def test_what_is_rendered_is_read_back() -> None:
    text = render(" One dog, e.g. Rex.\nTwo cats. ", " 3 ")
    rap = parse(text)
    assert text == "Rationale: One dog, e.g. Rex.\nTwo cats.\nAnswer: 3"
    assert (rap.answer, rap.compliant) == ("3", True)
    assert rap.sentences == ("One dog, e.g. Rex.", "Two cats.")
    assert render(rap.rationale, rap.answer) == text


def test_spans_of_sentences_and_of_what_is_neither_rationale_nor_answer() -> None:
    text = "Rationale: :\nRationale. A.\nAnswer: Yes. B.\nC. Answer: 2. D.\n E.\nF. "
    assert sentence_spans(text) == [(11, 12), (13, 23), (24, 26)]
    assert [text[a:b] for a, b in stray_spans(text)] == ["Yes.", "B.", "C.", "E.", "F."]


AGREE = [
    ("red", "Red"),
    ("The red bar.", "red bar"),
    ("a dog", "dog"),
    ("an apple", "Apple"),
    ("**4**", "4"),
    ('"4".', "4"),
    ("“Yes.”", "yes"),
    ("4.0", "4"),
    ("4.", "four"),
    ("+04", "4"),
    ("-0.0", "0"),
    (".5", "0.50"),
    ("50%", "50"),
    ("50 %", "50.0%"),
    ("1,234,567", "1234567"),
    ("1" * 5000 + ".0", "1" * 5000),
    ("twelve", "12"),
    ("(yes)", "yes"),
    ("", ""),
]
DISAGREE = [
    ("4", "5"),
    ("-4", "4"),
    ("4.0", "40"),
    ("3,4", "34"),
    ("1234567", "1234568"),
    ("0.1234567", "0.1234568"),
    ("4 or 5", "4"),
    ("²", "2"),
    ("٤", "4"),
    ("", "0"),
    (".", "0"),
    ("%", "0"),
    ("-", "0"),
    ("B", "red"),
    ("theory", "ory"),
]


@pytest.mark.parametrize(
    ("given_", "reference", "agree"),
    [(*pair, True) for pair in AGREE] + [(*pair, False) for pair in DISAGREE],
)
def test_answers_agree(given_: str, reference: str, agree: bool) -> None:
    assert answers_agree(given_, reference) is agree
    assert answers_agree(reference, given_) is agree


@pytest.mark.parametrize(
    ("given_", "reference", "agree"),
    [
        ("B", "two dogs", True),
        ("(b)", "two dogs", True),
        ("b) two dogs", "two dogs", True),
        ("B. two dogs", "B", True),
        ("B: two", "two dogs", True),
        ("two dogs", "b", True),
        ("A", "two dogs", False),
        ("D", "two dogs", False),
        ("a dog", "a", True),  # the option `dog`, not the letter `a` and a word
        ("C", "4", True),
        ("four", "C", True),
    ],
)
def test_letters_stand_for_choices(given_: str, reference: str, agree: bool) -> None:
    assert answers_agree(given_, reference, ("(a dog)", "Two dogs.", "4.0")) is agree


def test_a_letter_that_is_itself_an_option_stands_for_itself() -> None:
    assert not answers_agree("B", "a", ("b", "a"))
    assert answers_agree("b", "B", ("b", "a"))


@pytest.mark.parametrize(
    ("answer", "clean"),
    [(" **4.** ", "4"), ("`x`.", "x"), ("...", ""), ("3.5", "3.5"), ("", "")],
)
def test_clean_answer(answer: str, clean: str) -> None:
    assert clean_answer(answer) == clean


HOSTILE = (
    ".", " ", "\n", "(", "1", "*", "。", "\u202e", "\0", "\U0001d7d8", "\u0301", "Answer:",
    "Answer: ", "Rationale:", ". ", ". a", "J. ", "1. ", "# ", "\ta",
    "answer\t\t\t", "final ", "1,", "a.b.",
)  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_text_takes_linear_time(unit: str) -> None:
    text = (unit * MEGABYTE)[:MEGABYTE]
    began = time.process_time()
    parse(f"x{text}")
    assert not answers_agree(parse(f"x\nAnswer: 5{text}").answer, "4", ("a", "b"))
    assert time.process_time() - began < 10
