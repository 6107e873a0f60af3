"""What a model's own marks do in texts that others wrote: nothing, in any family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from families.models import FAMILIES, Family, save
from selfcal.judge.asking import Chat
from selfcal.policy import load_processor, prompt_text, training_texts
from selfcal.types import Sample


def special(processor: Any) -> dict[int, str]:
    """The tokens that a tokenizer calls special, by id."""
    added = processor.tokenizer.added_tokens_decoder
    return {i: str(t) for i, t in added.items() if t.special}


def found(processor: Any, text: str) -> list[int]:
    """Special tokens that a text is cut into, in order."""
    known = special(processor)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [i for i in ids if i in known]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_no_text_becomes_a_control_token(family: Family, tmp_path: Path) -> None:
    processor = load_processor(save(family, tmp_path))
    marks = [t for t in special(processor).values() if len(t) > 2 and not t.isalnum()]
    evil = " ".join(marks) + " " + "".join(marks)
    assert marks and len(found(processor, evil)) >= len(marks)  # they would be, left alone

    def asked(question: str) -> Sample:
        return Sample("s", "a.png", question, "")

    harmless = prompt_text(processor, asked("What is seen?"))
    hostile = prompt_text(processor, asked(f"What is seen? {evil}"))
    assert found(processor, hostile) == found(processor, harmless)

    _, (plain, said) = training_texts(processor, asked("?"), ["Answer: red", f"Answer: {evil}"])
    assert found(processor, said) == found(processor, plain)

    chat = Chat(family.name, processor, sees=True)
    assert found(processor, chat.prompt(evil, 1)) == found(processor, chat.prompt("Which?", 1))
