"""Samples in, rationale-answer pairs out: stage 1's teacher, and the filter behind it.

A teacher answers the question itself, rationale first; it is not shown the reference answer.
Whoever knows the answer can argue for it from anything, and the filter on disagreeing answers
(SRC, stage 1) would filter nothing. What it writes is kept only in the RAP format and with the
right answer, everything else is dropped with the reason.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from selfcal.chat import ChatClient, ChatError, question_text, user_message
from selfcal.errors import SelfcalError
from selfcal.image import ImageError
from selfcal.miniworld.corrupt import practice_rap
from selfcal.miniworld.habits import gold_rap
from selfcal.miniworld.questions import read_question
from selfcal.miniworld.verifier import verify
from selfcal.miniworld.world import read_facts
from selfcal.rationale import answers_agree, parse, render
from selfcal.types import Drop, Sample, WrittenRap


class TeacherError(SelfcalError):
    """The teacher failed at a sample: the text names it and the way out."""


class Teacher(Protocol):
    """Who writes the rationale-answer pairs of stage 1. Several threads may call at once."""

    def write(self, sample: Sample) -> str:
        """Write a response to the sample, rationale first.

        Raises:
            TeacherError: the teacher failed.
        """
        ...

    def write_facts(self, sample: Sample) -> str:
        """Write down what is to be seen in the image, for a judge that sees no pixels.

        Raises:
            TeacherError: the teacher failed.
        """
        ...


def rewrite(
    teacher: Teacher, samples: Sequence[Sample], workers: int = 1
) -> tuple[list[WrittenRap], list[Drop]]:
    """Let the teacher rewrite samples as rationale-answer pairs.

    Returns:
        The pairs that can be trained on, in the order of the samples and in the exact RAP format,
        and a drop for every other sample: `no-rationale`, `format` (no RAP can be read out of it)
        or `answer-disagrees` (with the reference answer).

    Raises:
        TeacherError: the teacher failed at a sample.
    """
    written: list[WrittenRap] = []
    drops: list[Drop] = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for sample, text in zip(samples, pool.map(teacher.write, samples), strict=True):
            result = _filter(sample, text)
            if isinstance(result, Drop):
                drops.append(result)
            else:
                written.append(result)
    return written, drops


def _filter(sample: Sample, text: str) -> WrittenRap | Drop:
    rap = parse(text)
    if not rap.rationale:
        return Drop(sample.id, "teacher", "no-rationale", text)
    if not rap.compliant:
        return Drop(sample.id, "teacher", "format", text)
    if not answers_agree(rap.answer, sample.answer, sample.choices):
        detail = f"{rap.answer!r}, reference {sample.answer!r}"
        return Drop(sample.id, "teacher", "answer-disagrees", detail)
    return WrittenRap(sample.id, render(rap.rationale, rap.answer))


class MiniWorldTeacher:
    """The built-in teacher: knows MiniWorld's truth, and errs now and then as a real one does."""

    def __init__(self, error_rate: float, seed: int) -> None:
        """Prepare the teacher.

        Args:
            error_rate: Share of samples (0 to 1) whose rationale or answer gets random faults.
            seed: With the sample's id, decides which samples those are and what goes wrong.
        """
        self._error_rate = error_rate
        self._seed = seed

    def write(self, sample: Sample) -> str:
        """Write the gold response, or at times a faulty one.

        Raises:
            TeacherError: the sample is not MiniWorld's.
        """
        rng = random.Random(f"{self._seed} {sample.id}")
        errs = rng.random() < self._error_rate
        try:
            query, world = read_question(sample.question), read_facts(sample.facts)
            text = gold_rap(query, world)
            while errs and verify(sample, text).reliable:  # some practice is reliable, too
                text = practice_rap(query, world, rng)
        except (ValueError, LookupError) as error:
            raise TeacherError(
                f"teacher, sample {sample.id!r}: {error}; the built-in teacher knows MiniWorld "
                "only, use an endpoint for other data"
            ) from error
        return text

    def write_facts(self, sample: Sample) -> str:
        """Return the sample's own facts, which are the whole truth."""
        return sample.facts


_RATIONALE_PROMPT = """\
Look at the image and answer the question below it. Show what your answer rests on.

Write the rationale first, in short plain sentences. Go through everything that the answer depends \
on and establish it from the image, one fact a sentence: which things are there, what they are \
like, where they are, what can be read off. Say nothing that cannot be seen. Then say in a \
sentence or two how the answer follows from these facts. The answer comes last, on a line of its \
own: {form}.

Reply in exactly this form, without lists, without emphasis and with nothing after the answer:
{example}

Question: {question}"""
_OPEN_FORM = "a word, a number or a short phrase, not a sentence"
_CHOICE_FORM = "one of the options, word for word"

_FACTS_PROMPT = """\
Write down what is to be seen in the image, for a reader who cannot see it and has to check what \
others say about it. Note
- the objects, how many there are of each kind, and their attributes (colour, shape, size, state);
- where they are, and how they stand to each other;
- every text, number, label, axis and value that can be read, exactly as it is written.
One fact a line, short, nothing else. Note what is certain only: no guesses, no interpretation, no \
conclusions. The reader will be asked the question below; note all that bears on it, but do not \
answer it.

Question: {question}"""


class ChatTeacher:
    """A strong vision-language model behind an OpenAI-compatible server."""

    def __init__(self, client: ChatClient) -> None:
        """Take a client, which the caller closes."""
        self._client = client

    def write(self, sample: Sample) -> str:
        """Ask for a rationale-answer pair; the reply may have any form.

        Raises:
            TeacherError: the image cannot be read, or the server gave no reply.
        """
        prompt = _RATIONALE_PROMPT.format(
            form=_CHOICE_FORM if sample.choices else _OPEN_FORM,
            example=render("<short sentences>", "<answer>"),
            question=question_text(sample),
        )
        return self._ask(sample, prompt)

    def write_facts(self, sample: Sample) -> str:
        """Ask for the visual facts that a text judge goes by.

        Raises:
            TeacherError: the image cannot be read, or the server gave no reply.
        """
        return self._ask(sample, _FACTS_PROMPT.format(question=question_text(sample)))

    def _ask(self, sample: Sample, prompt: str) -> str:
        try:
            return self._client.ask([user_message(prompt, Path(sample.image))])
        except (ChatError, ImageError) as error:
            raise TeacherError(f"teacher, sample {sample.id!r}: {error}") from error
