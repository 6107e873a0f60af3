"""Prompts of another tool in, final answers out: what the wrappers share.

The tool says nothing of the kind of question but its prompt, so that is where options, and whether
yes or no is wanted, are looked for. The whole response of every question goes to a folder of JSONL
files. An answer that cannot be read is an empty string: a grader then counts it as wrong, and the
folder says that it was unreadable.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Literal

from selfcal.errors import SelfcalError
from selfcal.evaluate.extract import read_answer
from selfcal.evaluate.payload import Kind
from selfcal.evaluate.predict import add_rows
from selfcal.types import IMAGE_MARK, Sample

if TYPE_CHECKING:
    from PIL.Image import Image

    from selfcal.policy import Policy

Returned = Literal["final", "raw"]
"""What a tool gets: the final answer, or (for captions and long answers) the whole response."""
LOG = "selfcal-responses"
"""Default folder of whole responses."""
MAX_NEW_TOKENS = 1024


class IntegrationError(SelfcalError):
    """A wrapper cannot do what the tool asks: the text names it and the way out."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a tool asks."""

    name: str
    """For the log: task and number."""
    text: str
    """With an `<image>` mark where each image stands."""
    images: tuple[str, ...]
    """Paths."""


class Answerer:
    """A model that answers other tools' questions; it is loaded when the first one comes."""

    def __init__(
        self,
        model: str,
        dtype: str = "auto",
        device: str = "auto",
        batch_size: int = 16,
        log: str | Path = LOG,
        returned: Returned = "final",
        trust_remote_code: bool = False,
    ) -> None:
        """Name the model and what is wanted of it.

        Args:
            model: a run (its last checkpoint), a folder, a hub name, or `miniworld:NAME`.
            dtype: of the weights; `auto` is that of the run, or float32 on a CPU and bfloat16 else.
            device: `auto` is a GPU if there is one.
            batch_size: responses at once, at most.
            log: folder for whole responses.
            returned: see `Returned`.
            trust_remote_code: run code that comes with the model.

        Raises:
            IntegrationError: `returned` or `dtype` is none of its words.
        """
        if returned not in ("final", "raw"):
            raise IntegrationError(f"returned={returned}: give `final` or `raw`")
        if dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise IntegrationError(f"dtype={dtype}: give auto, float32, bfloat16 or float16")
        self._model, self._dtype, self._device = model, dtype, device
        self._batch_size, self._log, self._returned = batch_size, Path(log), returned
        self._trust_remote_code = trust_remote_code

    @cached_property
    def policy(self) -> Policy:
        """The loaded model.

        Raises:
            ModelError: it cannot be loaded.
        """
        from selfcal.benchmarking import find_model
        from selfcal.policy import load_policy, pick_device

        path, recipe = find_model(self._model)
        own, device = recipe.policy if recipe else None, pick_device(self._device)
        usual = own.dtype if own else ("float32" if device == "cpu" else "bfloat16")
        return load_policy(
            path, usual if self._dtype == "auto" else self._dtype, device, self._trust_remote_code,
            own.attention if own else None, own.chat_template if own else None,
        )  # fmt: skip

    def answer(self, questions: Iterable[Question], max_new_tokens: int) -> Iterator[str]:
        """What the tool gets for each question, in order; the whole response goes to the log.

        Raises:
            ModelError: the model cannot be loaded or used.
            StoreError: the log cannot be written.
        """
        from selfcal.search import Limits, respond_ended

        asked: deque[Question] = deque()

        def feed() -> Iterator[Sample]:
            for i, question in enumerate(questions):
                asked.append(question)
                image, *more = question.images or ("",)
                yield Sample(f"{i} {question.name}", image, question.text, "", more_images=(*more,))

        limits = Limits(self._batch_size)
        rows: list[dict[str, Any]] = []
        try:
            for text, ended in respond_ended(self.policy, feed(), max_new_tokens, limits):
                question = asked.popleft()
                kind, answer = final_answer(question.text, text, cut=not ended)
                rows.append(
                    {"name": question.name, "kind": kind, "question": question.text,
                     "text": text, "answer": answer, "cut": not ended}
                )  # fmt: skip
                yield text if self._returned == "raw" else (answer or "")
        finally:
            if rows:
                add_rows(self._log / str(os.environ.get("RANK", 0)), rows)


def final_answer(question: str, text: str, cut: bool = False) -> tuple[Kind, str | None]:
    """What kind of answer a prompt wants, and the final answer of a response to it.

    Yes and no are capitalised, as graders expect them. A question that only looks like one for yes
    or no ("Is it red or blue?"), or for a number, may have an open answer.
    """
    kinds, choices = wanted(question)
    for kind in kinds:
        answer = read_answer(text, kind, choices, cut)
        if answer is not None:
            return kind, answer.capitalize() if kind == "yesno" else answer
    return kinds[0], None


_OPTION = re.compile(r"^[ \t]*\(?([A-Z])[).:][ \t]+(\S.{0,500})$", re.MULTILINE)
_POLAR = re.compile(
    r"\byes (?:or|/) ?no\b|\byes/no\b|(?:^|[.!?:\n]\s*)(?:is|are|was|were|does|do|did|can|could|"
    r"has|have|had|will|would|should)\b[^.?\n]{1,400}\?",
    re.IGNORECASE,
)
_EITHER = re.compile(r"\bor\b[^?\n]{1,80}\?", re.IGNORECASE)
_NUMBER = re.compile(r"\bhow (?:many|much)\b|\bnumber of\b", re.IGNORECASE)


def wanted(question: str) -> tuple[tuple[Kind, ...], tuple[str, ...]]:
    """Kinds of answer that a prompt may want, the likeliest first, and its options."""
    letters: list[str] = []
    choices: list[str] = []
    for m in _OPTION.finditer(question):
        if m[1] == ascii_uppercase[len(letters) % 26]:
            letters.append(m[1])
            choices.append(m[2].strip())
    if len(choices) > 1:
        return ("choice",), tuple(choices)
    if _POLAR.search(question):
        either = _EITHER.search(question) and "yes or no" not in question.lower()
        return (("open",) if either else ("yesno", "open")), ()
    return (("number", "open") if _NUMBER.search(question) else ("open",)), ()


class Images:
    """Pictures that a tool holds in memory, as files for as long as it runs."""

    def __init__(self) -> None:
        """Nothing is written yet."""
        self._folder = Path(tempfile.mkdtemp(prefix="selfcal-images-"))
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)

    def path(self, image: Image) -> str:
        """Where a picture lies; equal ones are one file."""
        rgb = image.convert("RGB")
        digest = hashlib.sha256(str(rgb.size).encode() + rgb.tobytes()).hexdigest()[:32]
        path = self._folder / f"{digest}.png"
        if not path.exists():
            rgb.save(path)
        return str(path)


def joined(parts: Sequence[tuple[Literal["text", "image"], str]]) -> tuple[str, tuple[str, ...]]:
    """Text with image marks, and the images' paths, of parts in their order.

    A mark that stands in the text itself is no image, and loses its brackets.
    """
    bare = IMAGE_MARK.strip("<>")
    text = "\n".join(
        IMAGE_MARK if kind == "image" else value.replace(IMAGE_MARK, bare)
        for kind, value in parts
        if kind == "image" or value.strip()
    )
    return text, tuple(value for kind, value in parts if kind == "image")
