"""What other tools get of a model's responses; VLMEvalKit's base class is a stand-in here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from selfcal.integrations.answering import (
    Answerer,
    Images,
    IntegrationError,
    Question,
    final_answer,
    joined,
    wanted,
)
from selfcal.testing import tiny_samples

MCQ = "Question: What is it?\nOptions:\nA. a dog\nB. a cat\nPlease select the correct answer."


@pytest.mark.parametrize(
    ("question", "kinds", "choices"),
    [
        (MCQ, ("choice",), ("a dog", "a cat")),
        ("What is it?\n(A) dog\n(B) cat\n(C) cow", ("choice",), ("dog", "cat", "cow")),
        ("Is there a dog in the image?\nAnswer with a single word.", ("yesno", "open"), ()),
        ("Please answer yes or no. Is it red or blue?", ("yesno", "open"), ()),
        ("Is it red or blue?", ("open",), ()),
        ("How many dogs are there?", ("number", "open"), ()),
        ("What does the sign say? Answer briefly.", ("open",), ()),
        ("What is plan A. of the two?", ("open",), ()),
    ],
)  # fmt: skip
def test_the_kind_of_answer_is_seen_in_the_prompt(
    question: str, kinds: tuple[str, ...], choices: tuple[str, ...]
) -> None:
    assert wanted(question) == (kinds, choices)


@pytest.mark.parametrize(
    ("question", "text", "answer"),
    [
        (MCQ, "Rationale: A dog has no whiskers, so A is out.\nAnswer: B", "B"),
        (MCQ, "I see a cat.", "B"),
        (MCQ, "Hard to say.", None),
        ("Is there a dog?", "Rationale: There is no cat.\nAnswer: yes", "Yes"),
        ("How many?", "Answer: two dogs", "2"),
        ("How many?", "Answer: a few", "a few"),
    ],
)  # fmt: skip
def test_a_tool_gets_the_final_answer(question: str, text: str, answer: str | None) -> None:
    assert final_answer(question, text)[1] == answer


def test_images_stand_where_they_stood_and_no_text_can_forge_one() -> None:
    parts = [("text", "First"), ("image", "a.png"), ("text", "an <image> mark"), ("image", "b.png")]
    assert joined(parts) == ("First\n<image>\nan image mark\n<image>", ("a.png", "b.png"))  # type: ignore[arg-type]


def test_equal_pictures_are_one_file() -> None:
    images = Images()
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    assert images.path(red) == images.path(red.copy()) != images.path(blue)
    with Image.open(images.path(blue)) as found:
        assert found.getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("wrong", [{"returned": "letters"}, {"dtype": "int8"}])
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(IntegrationError, match=f"{next(iter(wrong))}="):
        Answerer("miniworld:mini-llava", **wrong)


@pytest.fixture
def vlmeval(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """VLMEvalKit's base class, as far as its documentation describes it."""

    class BaseModel:
        INTERLEAVE = False
        allowed_types = ("text", "image", "video")

        def __init__(self) -> None:
            self.dump_image_func = None

        def generate_inner(self, message: Any, dataset: str | None = None) -> str:
            raise NotImplementedError

        def generate(self, message: Any, dataset: str | None = None) -> str:
            assert all({"type", "value"} <= set(m) for m in message)
            return self.generate_inner(message, dataset)

    for name in ("vlmeval", "vlmeval.vlm", "vlmeval.vlm.base"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vlmeval.vlm.base"].BaseModel = BaseModel  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "selfcal.integrations.vlmevalkit", raising=False)
    yield BaseModel
    sys.modules.pop("selfcal.integrations.vlmevalkit", None)


def test_vlmevalkit_gets_final_answers_and_the_log_has_the_texts(
    vlmeval: type, tmp_path: Path
) -> None:
    from selfcal.integrations.vlmevalkit import Selfcal

    samples = tiny_samples(tmp_path / "data", 3, "test")
    model = Selfcal("miniworld:mini-llava", device="cpu", log=str(tmp_path / "log"))
    assert isinstance(model, vlmeval) and model.INTERLEAVE
    said = [
        model.generate(
            [{"type": "image", "value": s.image}, {"type": "text", "value": s.question}], "Mini"
        )
        for s in samples
    ]
    rows = [json.loads(p.read_text()) for p in sorted((tmp_path / "log" / "0").iterdir())]
    assert [row["answer"] or "" for row in rows] == said
    for row, answer in zip(rows, said, strict=True):
        assert row["text"].endswith(f"Answer: {answer.lower()}") and row["name"] == "Mini"
        assert "\n" not in answer and len(answer) < 12
    with pytest.raises(IntegrationError, match="Mini: has video"):
        model.generate([{"type": "video", "value": "a.mp4"}], "Mini")


def test_whole_responses_for_tools_that_grade_captions(tmp_path: Path) -> None:
    (sample,) = tiny_samples(tmp_path / "data", 1, "test")
    log = tmp_path / "log"
    answerer = Answerer("miniworld:mini-llava", device="cpu", log=log, returned="raw")
    (text,) = answerer.answer([Question("captions 0", sample.question, (sample.image,))], 200)
    assert (
        "Answer: " in text and json.loads(next((log / "0").iterdir()).read_text())["text"] == text
    )
