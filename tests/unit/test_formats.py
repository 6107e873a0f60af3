"""The formats of a response: what is rationale and what answer, and where sentences end in each."""

from __future__ import annotations

import re
import time
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from selfcal.pipeline import plan
from selfcal.rationale import FORMATS, HEADINGS, RapFormat, clean_answer, continued
from selfcal.recipe import Data, Policy, Recipe, Search
from selfcal.teacher import accept
from selfcal.types import Drop, Sample, WrittenRap

BYTES = 200_000
XML, THINK, FREE = (FORMATS[name] for name in ("xml", "think", "free"))

# format -> text -> rationale, answer, compliant
READ: dict[str, dict[str, tuple[str, str, bool]]] = {
    "xml": {
        "<rationale>One dog. So.</rationale>\n<answer>1</answer>": ("One dog. So.", "1", True),
        "<rationale>\nIt is.\n</rationale>\n\n<answer>\nred.\n</answer>\n": ("It is.", "red", True),
        "<rationale>It is.</rationale><answer>**red**</answer>": ("It is.", "red", True),
        # read, but not the format
        "<RATIONALE>It is.</Rationale><Answer>red</ANSWER>": ("It is.", "red", False),
        "< rationale >It is.</ rationale>< answer >red</ answer >": ("It is.", "red", False),
        "It is. <answer>red</answer>": ("It is.", "red", False),
        "It is.</rationale><answer>red</answer>": ("It is.", "red", False),
        "<rationale>It is. <answer>red</answer>": ("It is.", "red", False),
        "Sure! <rationale>It is.</rationale><answer>red</answer>": ("It is.", "red", False),
        "<rationale>It is.</rationale><answer>red</answer> Or not.": ("It is.", "red", False),
        "<rationale>It is.</rationale> Hm. <answer>red</answer>": ("It is.", "red", False),
        "<rationale>a.</rationale><answer>b</answer><answer>c</answer>": ("a.", "c", False),
        "<rationale>a.</rationale><answer>b\nc</answer>": ("a.", "b\nc", False),
        "<rationale></rationale><answer>red</answer>": ("", "red", False),
        "<rationale>It is.</rationale><answer></answer>": ("It is.", "", False),
        "<answer>red</answer><rationale>It is.</rationale>": ("", "red", False),
        # cut off at a token limit
        "<rationale>It is. So": ("It is. So", "", False),
        "<rationale>It is.</rati": ("It is.", "", False),
        "<rationale>It is.</rationale>\n<ans": ("It is.", "", False),
        "<rationale>It is.</rationale><answer>red": ("It is.", "red", False),
        "<rationale>It is.</rationale><answer>red</an": ("It is.", "red", False),
        "<rationale>It is.</rationale><answer>\nred\nIt": ("It is.", "red", False),
        "": ("", "", False),
        # no tags at all: as free text
        "It is. The answer is red.": ("It is.", "red", False),
        "It is red.": ("It is red.", "", False),
    },
    "think": {
        "<think>\nOne dog. So.\n</think>\n\n1": ("One dog. So.", "1", True),
        "<think>It is.</think>Answer: red": ("It is.", "red", True),
        "<think>It is.</think>\n\nThe answer is **B**.": ("It is.", "B", True),
        "<think>Answer: blue? No.</think> red": ("Answer: blue? No.", "red", True),
        # the chat template wrote the opening tag
        "One dog. So.\n</think>\n\n1": ("One dog. So.", "1", True),
        "It is.</think>\nAnswer: red\n": ("It is.", "red", True),
        # read, but not the format
        "<THINK>It is.</Think> red": ("It is.", "red", False),
        "Hm. <think>It is.</think> red": ("It is.", "red", False),
        "<think></think>red": ("", "red", False),
        "<think>\n\n</think>\n\nred": ("", "red", False),
        "<think>It is.</think>": ("It is.", "", False),
        "<think>It is.</think>\nIt is red.\n\nAnswer: red": ("It is.", "red", False),
        "<think>It is.</think>\nThat was long.\nred": ("It is.", "red", False),
        "<think>It is.</think>\nred\nIndeed, the answer is red.": ("It is.", "red", False),
        "<think>a.</think> b. <think>c.</think> d": ("a.", "d", False),
        "<think>a. <think>b.</think> c.</think> d": ("a. <think>b.", "d", False),
        "<think>a.</think> red <think>Or not": ("a.", "red", False),
        # cut off at a token limit
        "<think>It is. So": ("It is. So", "", False),
        "<think>It is.</thi": ("It is.", "", False),
        "It is. The answer is red? Wait": ("It is. The answer is red? Wait", "", False),
        "": ("", "", False),
        # no tags at all: as free text
        "It is.\nAnswer: red": ("It is.", "red", False),
    },
    "free": {
        "It is. The answer is B.": ("It is.", "B", True),
        "It is.\nAnswer: B": ("It is.", "B", True),
        "It is. So the answer is **B**": ("It is.", "B", True),
        "It is.\n\n**Final answer:** 42": ("It is.", "42", True),
        "It is.\n**Answer**: 42\n": ("It is.", "42", True),
        r"40 and 2. Hence $\boxed{42}$.": ("40 and 2.", "42", True),
        "Sum.\n\\[\\boxed{\\text{B}}\\]": ("Sum.", "B", True),
        r"Half. The answer is \boxed{\frac{1}{2}}": ("Half.", r"\frac{1}{2}", True),
        "Seen. The correct option is (B) two dogs.": ("Seen.", "(B) two dogs", True),
        "Seen. The answer is option **B**.": ("Seen.", "B", True),
        "Seen. The final answer is: $3.5$.": ("Seen.", "3.5", True),
        "Seen. The final answer is:\n\nB": ("Seen.", "B", True),
        "Seen. The answer is $5.": ("Seen.", "$5", True),
        "Seen. The answer is $5$.": ("Seen.", "5", True),
        "The answer is not obvious. So, the answer is 3.5 cm.": (
            "The answer is not obvious.", "3.5 cm", True,
        ),
        # read, but not the format
        "The answer is B.": ("", "B", False),
        "The answer is $5.": ("", "$5", False),
        "It is. The answer is red. It is bright.": ("It is.", "red", False),
        "It is. The answer is B. two dogs": ("It is.", "B. two dogs", True),
        "It is.\nAnswer: B\nI hope that helps!": ("It is.", "B", False),
        "It is.\nAnswer:": ("It is.\nAnswer:", "", False),
        "It is red.": ("It is red.", "", False),
        "": ("", "", False),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in READ.items() for text in texts]
)
def test_parse(name: str, text: str) -> None:
    rap = FORMATS[name].parse(text)
    assert (rap.rationale, rap.answer, rap.compliant) == READ[name][text]


# format -> sentences that the joined text must be split into
SENTENCES = {
    "xml": [
        ["<rationale>One dog. ", "Two cats.", "</rationale>\n<answer>3</answer>"],
        ["<rationale>\nOne dog.\n", "Two cats.\n", "</rationale>\n\n<answer>\n3\n</answer>\n"],
        ["<rationale>One dog", "</rationale><answer>J. Smith. He is.</answer> ", "Hm."],
        ["One dog. ", "<answer>No. 5 at 3.5</answer>"],
        ["One dog ", "<answer>3"],
        ["<Rationale>Is 3 < 5? ", "Yes.", "</RATIONALE > < answer>1\n2</answer>\n", "So."],
        ["<rationale> 1. Look. ", "It is by Dr. Fox.", "</rationale><answer></answer>"],
        ["It is seen. ", "Answer: it stands."],
    ],
    "think": [
        ["<think>\nOne dog. ", "Two cats.\n", "</think>\n\n3"],
        ["One dog. ", "Two cats.", "</think>Answer: 3"],
        ["<think>这是红色。", "</think>\n\n红"],
        ["<think>Is it? ", "<think>Yes.", "</think>No. ", "</think> It is. ", "Or not."],
        ["Hm ", "Answer: 3\n", "</think> 3"],
    ],
    "free": [["One dog. ", "So the answer is 1."], ["One ", "**Answer:** 1"], ["1.\n", "Yes."]],
}


@pytest.mark.parametrize(
    ("name", "sentences"), [(name, s) for name, rows in SENTENCES.items() for s in rows]
)
def test_sentences(name: str, sentences: list[str]) -> None:
    assert FORMATS[name].split_sentences("".join(sentences)) == sentences


def test_what_is_neither_rationale_nor_answer() -> None:
    def strays(form: RapFormat, text: str) -> list[str]:
        return [text[a:b] for a, b in form.stray_spans(text)]

    said = "Hi. <rationale>a. B.</rationale> c. <answer>d</answer> e. F. <answer>g</answer> h."
    assert strays(XML, said) == ["Hi.", "c.", "d", "e.", "F.", "h."]
    assert [said[a:b] for a, b in XML.sentence_spans(said)] == ["a.", "B."]
    said = "Hi. <think>a. b.</think> c. <think>d.</think> Eh. The answer is f.\nG."
    assert strays(THINK, said) == ["Hi.", "c.", "d.", "Eh.", "G."]
    assert strays(FREE, "So. The answer is red. Yes. No.") == ["Yes.", "No."]
    assert strays(FREE, "No. It is open.") == []


WORDS = st.sampled_from((
    "It", "is", "3.5", "e.g.", "Dr.", "x < y", "a", "J.", "-", "(b)", "red", "no. 5", "&", "Ω", "{",
    "%s",
))  # fmt: skip
SAID = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)
RATIONALE = st.lists(SAID, min_size=1, max_size=5).map(lambda said: ".\n".join(said) + ".")
ANSWER = st.sampled_from(
    ("3", "3.5", "(B) two dogs", "a, b and c", "red.", "50 %", "“x”", "<5>", "{")
)


def test_what_a_format_cannot_say_is_not_learned_from() -> None:
    sample = Sample("s", "", "Which colour?", "not red")
    text = HEADINGS.render("It is blue.", "not red")
    assert accept(sample, text) == WrittenRap("s", text)
    refused = accept(sample, text, FREE)  # "the answer is not red" says none
    assert isinstance(refused, Drop) and refused.reason == "format"
    assert accept(sample, text, XML) == WrittenRap("s", XML.render("It is blue.", "not red"))


@pytest.mark.parametrize("name", FORMATS)
@given(rationale=RATIONALE, answer=ANSWER)
@settings(max_examples=60, deadline=None)
def test_what_is_rendered_is_read_back(name: str, rationale: str, answer: str) -> None:
    form = FORMATS[name]
    text = form.render(f" {rationale}\n", f" {answer} ")
    rap = form.parse(text)
    assert (rap.rationale, rap.answer, rap.compliant) == (rationale, clean_answer(answer), True)
    assert not form.stray_spans(text)
    assert tuple(text[a:b] for a, b in form.sentence_spans(text)) == rap.sentences


_PIECES = st.sampled_from((
    "<rationale>", "</rationale>", "<answer>", "</answer>", "<think>", "</think>", "< Answer >",
    "<", "</", ">", "answer", "think>", "Answer:", "The answer is", r"\boxed{", "}", ".", ". ",
    "。", "\n", " ", "J.", "1.", "- ", "3.5", "It", "is", ")", "$", "\t", "\x1c", "\u2028",
))  # fmt: skip
ANY_TEXT = st.one_of(st.text(), st.lists(_PIECES, max_size=14).map("".join))


@pytest.mark.parametrize("name", FORMATS)
@given(text=ANY_TEXT)
@settings(max_examples=250, deadline=None)
def test_any_text_can_be_read(name: str, text: str) -> None:
    form = FORMATS[name]
    sentences = form.split_sentences(text)
    assert "".join(sentences) == text
    assert all(s.strip() for s in sentences) or sentences == [text]
    rap, own = form.parse(text), form.sentence_spans(text)
    assert tuple(text[a:b] for a, b in own) == rap.sentences
    strays = form.stray_spans(text)
    assert not (rap.compliant and strays)
    assert all(0 <= a < b <= len(text) for a, b in [*own, *strays])
    edges = [edge for span in sorted([*own, *strays]) for edge in span]
    assert edges == sorted(edges)  # they do not overlap


@pytest.mark.parametrize("name", FORMATS)
@given(text=ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_a_boundary_once_known_stays(name: str, text: str) -> None:
    end = FORMATS[name].sentence_end(text)
    for known in range(len(text)):
        assert FORMATS[name].sentence_end(text[:known]) in (None, end)


TOKENS = {"characters": ".", "words": r"\w+|\W", "tags": r"</?\w+>\n*| ?\w+|\W"}


@pytest.mark.parametrize("cut", TOKENS)
@pytest.mark.parametrize("name", FORMATS)
def test_sentences_seen_token_by_token_are_those_of_the_whole_text(name: str, cut: str) -> None:
    form = FORMATS[name]
    text = form.render("One dog, e.g. Rex.\nTwo cats. They make 3.5 in all.", "3.5 cm")
    seen = searched(form, re.findall(TOKENS[cut], text, re.DOTALL))
    whole = form.split_sentences(text)
    assert "".join(seen) == text
    assert [s.strip() for s in seen] == [s.strip() for s in whole]  # a token may begin with a space
    assert len(whole) == 4  # three of the rationale, and the answer


def searched(form: RapFormat, tokens: list[str]) -> list[str]:
    """Sentences as a search sees them: each ends before the token that makes its end known."""
    sentences, own = [], ""
    for token in tokens:
        if own and form.marks.characters & set(own + token) and form.sentence_end(own + token):
            sentences, own = [*sentences, own], ""
        own += token
    return [*sentences, own]


@pytest.mark.parametrize(
    "tokens",
    [
        [
            "<rationale>",
            "One",
            " dog",
            ".</",
            "rationale",
            "><",
            "answer",
            ">",
            "3",
            "</",
            "answer",
            ">",
        ],
        [
            "<",
            "rationale",
            ">",
            "One dog",
            "</",
            "rationale",
            ">\n",
            "<",
            "answer",
            ">3</",
            "answer>",
        ],
        ["<rationale>One dog", " <", "answer", ">", "3", "</", "answer", ">"],
        ["<rationale>One dog.", "\n", "</rationale", "><", "answer", ">", "3. J. S.", "</answer>"],
    ],
)
def test_tokens_across_a_tag_leave_the_answer_in_one_sentence(tokens: list[str]) -> None:
    first, second = searched(XML, tokens)
    assert "dog" in first
    assert not set("3J") & set(first)
    assert second.endswith("</answer>")


@pytest.mark.parametrize("name", ["headings", "xml", "think", "free"])
def test_the_shown_example_is_the_format(name: str) -> None:
    form = FORMATS[name]
    assert form.name == name
    assert form.parse(form.example).compliant
    assert form.example == form.render(*form.blanks)


def test_a_response_goes_on_where_the_prompt_ends() -> None:
    text = THINK.render("One dog.", "1")
    assert text == "<think>\nOne dog.\n</think>\n\n1"
    inside = "One dog.\n</think>\n\n1"
    assert continued("user: Q\nassistant: <think>\n", text) == inside
    assert continued("user: Q\nassistant: <think>\n", inside) == inside
    assert continued("user: Q\nassistant:", text) == text
    assert continued("<think>\n\n</think>\n\n", text) == text
    for form in (HEADINGS, XML, FREE):
        assert continued("assistant: <think>\n", form.render("a", "b")) == form.render("a", "b")
    assert asdict(THINK.parse(text)) == asdict(THINK.parse(inside))


HOSTILE = (
    "<", ">", "</", "<answer>", "</answer>", "<answer></answer>", "<rationale>", "</rationale>",
    "<think>", "</think>", "<think>a.</think>", "<think> </think>\n", "< ", "answer>", "/>",
    "<think", r"\boxed{", r"\boxed{1}", "The answer is ", "answer is", "Answer:", "\n", " ", ".",
    ". a", "{", "}", "<answer>\n", "\u202e", "\0", "$", "option ", "</x>", ". <",
)  # fmt: skip


@pytest.mark.parametrize("name", ["xml", "think", "free"])
def test_hostile_text_takes_linear_time(name: str) -> None:
    form = FORMATS[name]
    for unit in HOSTILE:
        text = "x" + (unit * BYTES)[:BYTES]
        began = time.process_time()
        assert "".join(form.split_sentences(text)) == text
        form.parse(f"<rationale>a</rationale><answer>{text}</answer><think></think>{text}")
        assert time.process_time() - began < 5, unit


def test_shipped_models_speak_headings_alone() -> None:
    with pytest.raises(ValidationError, match=r"miniworld:mini-llava speaks `headings` alone"):
        Recipe(name="r", format="xml")
    other = Policy(model="some/model")
    assert Recipe(name="r", format="xml", policy=other).format == "xml"
    assert Recipe(name="r", format="think", data=Data(source="folder"), policy=other)


@pytest.mark.parametrize("method", ["src", "csr", "povid", "grpo"])
def test_stages_go_by_the_format(method: str) -> None:
    def settings_of(form: str) -> dict[str, str]:
        own = {"keep": "top_bottom"} if method == "csr" else {}
        recipe = Recipe(
            name="r",
            method=method,
            format=form,
            iterations=1,
            policy=Policy(model="some/model"),
            search=Search(**own),
        )
        return {s.name: str(s.settings) for s in plan(recipe)}

    plain, tagged = settings_of("headings"), settings_of("xml")
    changed = {name for name in plain if plain[name] != tagged[name]}
    own = {"src": "iter-1/candidates", "csr": "iter-1/candidates"}
    own |= {"povid": "iter-1/pairs", "grpo": "iter-1/grpo"}
    assert changed >= {"teacher", "eval/seed", "eval/rft", "eval/iter-1", own[method]}
    assert not any("format'" in text for text in plain.values())
