"""What a judge reads: user turns in, prompts out, written by the model's own chat template.

The texts in a turn were written by others, by a model under test among them. A special token that
one of them spells, such as the end of a turn or an image mark, is broken in two, so that it stays
text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from selfcal import processors
from selfcal.policy import ModelError
from selfcal.types import (
    IMAGE_MARK,
    GradedResponse,
    LabelledPair,
    RankedResponses,
    Sample,
    Verdict,
    question_text,
)

_PROBE = "Which is better?"


@dataclass(frozen=True, slots=True)
class Turn:
    """What a judge is asked."""

    text: str
    group: tuple[str, int]
    """Sample, and first response: turns that agree in the first, or in both, begin alike."""
    images: tuple[str, ...] = ()
    """Paths of what it is shown, in order; a text judge is shown nothing."""


def sample_of(
    labelled: LabelledPair | GradedResponse | RankedResponses, name: str | None = None
) -> Sample:
    """What a judge sees of a sample that responses were labelled for; `name`: another id."""
    image, *more = labelled.images or ("",)
    return Sample(
        name or labelled.sample_id, image, labelled.question, "", facts=labelled.facts,
        more_images=tuple(more),
    )  # fmt: skip


def asked_question(sample: Sample) -> str:
    """A sample's question with its options, inside a turn whose images stand first.

    What marked the place of one of several images says which one it means.
    """
    question, several = question_text(sample), len(sample.images) > 1
    parts = question.split(IMAGE_MARK)
    if len(parts) == 1:
        return question
    if not several:
        return " ".join(p.strip() for p in parts if p.strip())
    marks = (f"[image {k}]" for k in range(1, len(parts)))
    return "".join(p + next(marks, "") for p in parts)


class Chat:
    """One model's chat template, for turns of a user."""

    def __init__(self, name: str, writer: Any, sees: bool = False) -> None:
        """Try the template out.

        Args:
            name: of the model, for errors.
            writer: what has the template: a tokenizer, or the processor of a model that sees.
            sees: whether turns come with images.

        Raises:
            ModelError: there is no template, or it cannot write what is asked.
        """
        self._name, self._writer, self._sees = name, writer, sees
        self._marks = processors.control_marks(writer)
        self._in_parts = sees
        template = getattr(writer, "chat_template", None)
        if not template:
            raise self._unfit("there is none")
        # a model that can think aloud first is to answer at once
        self._more = {"enable_thinking": False} if "enable_thinking" in str(template) else {}
        if _PROBE in self.prompt(_PROBE, int(sees)):
            return
        self._in_parts = True  # some templates know content in parts alone
        if _PROBE not in self.prompt(_PROBE, int(sees)):
            raise self._unfit("it does not write what the user says")

    def prompt(self, text: str, images: int = 0) -> str:
        """The prompt of a turn with so many images before its text, up to where the answer begins.

        Raises:
            ModelError: the template refuses it.
        """
        text = processors.inert(text, self._marks)
        parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
        content = parts if self._in_parts else text
        try:
            written = self._writer.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=False, add_generation_prompt=True, **self._more,
            )  # fmt: skip
        except Exception as error:  # a template can fail in any way that an expression can
            raise self._unfit(str(error).split("\n")[0] or type(error).__name__) from error
        return str(written)

    def _unfit(self, what: str) -> ModelError:
        kind = "a vision-language model" if self._sees else "a model"
        return ModelError(
            f"judge {self._name}: its chat template cannot be used ({what}); take {kind} that was "
            "tuned to instructions as judge.model, or put a chat_template.jinja that writes a "
            "user's turn into its folder"
        )


def verdict_ids(
    tokenizer: Any, words: Sequence[str] = get_args(Verdict), prompt: str = ""
) -> list[int]:
    """First token of each word; behind a prompt, as it begins there.

    Raises:
        ModelError: two words begin with the same token, or one has none.
    """
    before = _ids(tokenizer, prompt) if prompt else []
    ids = []
    for word in words:
        own = _ids(tokenizer, prompt + word)
        merged = own[: len(before)] != before  # with the prompt's last token: it is read alone
        ids += _ids(tokenizer, word)[:1] if merged else own[len(before) :][:1]
    if len(set(ids)) < len(words):
        raise ModelError(
            f"the judge's tokenizer cannot tell the words {tuple(words)} by their first token; "
            "take another judge.model"
        )
    return ids


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found
