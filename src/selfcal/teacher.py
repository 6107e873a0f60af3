"""Samples in, rationale-answer pairs out: the teacher, and the filter behind it.

A teacher answers the question itself, rationale first; it is not shown the reference answer.
Whoever knows the answer can argue for it from anything, and the filter on disagreeing answers
(SRC, stage 1) would filter nothing. What it writes is kept only in the RAP format and with the
right answer, everything else is dropped with the reason.

Comparison methods ask it for more: to spoil a response (POVID), to mend one, and to say one in its
own words (HA-DPO).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from selfcal.chat import Asked, ChatError, Message, marked, user_message
from selfcal.errors import SelfcalError
from selfcal.image import ImageError
from selfcal.judge.asking import asked_question
from selfcal.miniworld.corrupt import misread, practice_rap
from selfcal.miniworld.habits import gold_rap
from selfcal.miniworld.questions import (
    Premise,
    Query,
    conclude,
    needs,
    read_question,
    say_inference,
    say_premise,
)
from selfcal.miniworld.verifier import read_inference, read_premise, verify
from selfcal.miniworld.world import World, read_facts
from selfcal.prompts import Prompts
from selfcal.rationale import (
    ANSWER_HEADING,
    HEADINGS,
    RapFormat,
    answers_agree,
)
from selfcal.types import Drop, Sample, WrittenRap, question_text


class TeacherError(SelfcalError):
    """The teacher failed at a sample: the text names it and the way out."""


class Teacher(Protocol):
    """Who writes what the policy is to learn from. Several threads may call at once."""

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

    def spoil(self, sample: Sample, response: str) -> str:
        """Put plausible errors into a response: a wrong attribute, count, relation or step.

        Length and style stay; what comes out is another text and has a flaw (POVID).

        Raises:
            TeacherError: the teacher failed.
        """
        ...

    def mend(self, sample: Sample, response: str) -> str:
        """Correct what is wrong in a response, in its style; a sound one comes back as it is.

        A teacher errs here, too: what comes out may still have a flaw (HA-DPO).

        Raises:
            TeacherError: the teacher failed.
        """
        ...

    def restyle(self, sample: Sample, response: str) -> str:
        """Say what a response says, right or wrong, in the teacher's own plain style (HA-DPO).

        Raises:
            TeacherError: the teacher failed.
        """
        ...


def rewrite(
    teacher: Teacher, samples: Sequence[Sample], workers: int = 1, form: RapFormat = HEADINGS
) -> tuple[list[WrittenRap], list[Drop]]:
    """Let the teacher rewrite samples as rationale-answer pairs.

    Returns:
        The pairs that can be trained on, in the order of the samples and in the given format, and a
        drop for every other sample: `no-rationale`, `format` (no RAP can be read out of it)
        or `answer-disagrees` (with the reference answer).

    Raises:
        TeacherError: the teacher failed at a sample.
    """
    written: list[WrittenRap] = []
    drops: list[Drop] = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for sample, text in zip(samples, pool.map(teacher.write, samples), strict=True):
            result = accept(sample, text, form)
            if isinstance(result, Drop):
                drops.append(result)
            else:
                written.append(result)
    return written, drops


def accept(sample: Sample, text: str, form: RapFormat = HEADINGS) -> WrittenRap | Drop:
    """The rule of `rewrite` for one sample: what a teacher wrote, or why it cannot be used.

    Teachers write headings; what is accepted is in the policy's format.
    """
    rap = HEADINGS.parse(text)
    if not rap.rationale:
        return Drop(sample.id, "teacher", "no-rationale", text)
    if not rap.compliant:
        return Drop(sample.id, "teacher", "format", text)
    if not answers_agree(rap.answer, sample.answer, sample.choices):
        detail = f"{rap.answer!r}, reference {sample.answer!r}"
        return Drop(sample.id, "teacher", "answer-disagrees", detail)
    written = form.render(rap.rationale, rap.answer)
    # not every answer can be said in every format
    again = rap if written == text and form is HEADINGS else form.parse(written)
    if not again.compliant or not answers_agree(again.answer, rap.answer, sample.choices):
        return Drop(sample.id, "teacher", "format", written)
    return WrittenRap(sample.id, written)


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
        return self._answer(sample, random.Random(f"{self._seed} {sample.id}"))

    def write_facts(self, sample: Sample) -> str:
        """Return the sample's own facts, which are the whole truth."""
        return sample.facts

    def spoil(self, sample: Sample, response: str) -> str:
        """Misread one or two of the response's premises, and reason on from that or not.

        A response without premises gets a faulty one in its place.

        Raises:
            TeacherError: the sample is not MiniWorld's.
        """
        rng = random.Random(f"{self._seed} spoil {sample.id} {response}")
        query, world = _truth(sample)
        text = response
        while text == response or verify(sample, text).reliable:  # a misreading may be true
            text = _spoiled(query, world, response, rng)
        return text

    def mend(self, sample: Sample, response: str) -> str:
        """Give a reliable response back, and for another the gold one or at times a faulty one.

        Raises:
            TeacherError: the sample is not MiniWorld's.
        """
        _truth(sample)
        if verify(sample, response).reliable:
            return response
        return self._answer(sample, random.Random(f"{self._seed} mend {sample.id} {response}"))

    def restyle(self, sample: Sample, response: str) -> str:
        """Write the response in the RAP format, its sentences with single spaces and only once."""
        rap = HEADINGS.parse(response)
        sentences = dict.fromkeys(" ".join(sentence.split()) for sentence in rap.sentences)
        return (
            HEADINGS.render(" ".join(sentences), rap.answer)
            if sentences
            else f"{ANSWER_HEADING} {rap.answer}"
        )

    def _answer(self, sample: Sample, rng: random.Random) -> str:
        query, world = _truth(sample)
        errs = rng.random() < self._error_rate
        text = gold_rap(query, world)
        while errs and verify(sample, text).reliable:  # some practice is reliable, too
            text = practice_rap(query, world, rng)
        return text


def _truth(sample: Sample) -> tuple[Query, World]:
    """The sample's question and world.

    Raises:
        TeacherError: the sample is not MiniWorld's.
    """
    try:
        query, world = read_question(sample.question), read_facts(sample.facts)
        verify(sample, "")  # the facts answer the question
    except (ValueError, LookupError) as error:
        raise TeacherError(
            f"teacher, sample {sample.id!r}: {error}; the built-in teacher knows MiniWorld "
            "only, use an endpoint for other data"
        ) from error
    return query, world


def _spoiled(query: Query, world: World, response: str, rng: random.Random) -> str:
    """The response with one or two premises misread, which may come out sound all the same."""
    rap = HEADINGS.parse(response)
    told = {i: p for i, s in enumerate(rap.sentences) if (p := read_premise(s))}
    if not told or not rap.answer:
        return practice_rap(query, world, rng)
    seen = dict(told)
    for i in rng.sample(sorted(told), min(len(told), rng.choice((1, 1, 2)))):
        seen[i] = misread(told[i], rng)
    fault = rng.choice(("sight", "sight and step", "step"))
    stated = told if fault == "step" else seen
    said = [say_premise(stated[i]) if i in stated else s for i, s in enumerate(rap.sentences)]
    complete = [p[0] for p in told.values()] == [p[0] for p in needs(query, world)]
    if fault == "sight" or not complete:
        return HEADINGS.render(" ".join(said), rap.answer)
    result = _conclude(query, list(seen.values()))
    step = say_inference(query, list(stated.values()), result)
    said = [step if read_inference(s) else s for s in said]
    return HEADINGS.render(" ".join(said), rng.choice((result, rap.answer)))


def _conclude(query: Query, premises: list[Premise]) -> str:
    if query.kind == "count":  # what was misread as another shape does not count
        premises = [p for p in premises if p[3] == query.args[0]]
    return conclude(query, premises)


class ChatTeacher:
    """A vision-language model that is asked by prompts: behind a server, or on this machine."""

    def __init__(self, model: Asked, prompts: Prompts | None = None) -> None:
        """Take a model, which the caller closes, and prompts; by default the shipped ones."""
        self._model, self._prompts = model, prompts or Prompts("teacher")

    def write(self, sample: Sample) -> str:
        """Ask for a rationale-answer pair; the reply may have any form.

        Raises:
            TeacherError: an image cannot be read, or the model gave no reply.
        """
        return self._ask(sample, "rationale", example=HEADINGS.example)

    def write_facts(self, sample: Sample) -> str:
        """Ask for the visual facts that a text judge goes by.

        Raises:
            TeacherError: an image cannot be read, or the model gave no reply.
        """
        return self._ask(sample, "facts")

    def spoil(self, sample: Sample, response: str) -> str:
        """Ask for the response with plausible mistakes.

        Raises:
            TeacherError: an image cannot be read, or the model gave no reply.
        """
        return self._ask_about(sample, "spoil", response)

    def mend(self, sample: Sample, response: str) -> str:
        """Ask for the response with its mistakes corrected.

        Raises:
            TeacherError: an image cannot be read, or the model gave no reply.
        """
        return self._ask_about(sample, "mend", response)

    def restyle(self, sample: Sample, response: str) -> str:
        """Ask for the same in the model's own style, without the image: it is to correct nothing.

        Raises:
            TeacherError: the model gave no reply.
        """
        return self._ask_about(sample, "restyle", response, sees=False)

    def _ask(self, sample: Sample, name: str, example: str = "") -> str:
        parts = {"question": question_text(sample), "choices": sample.choices, "example": example}
        prompt = self._prompts.render(name, **parts)
        # a question says where its images stand; in material, marks are no more than words
        return self._said(sample, lambda: user_message(prompt, sample.images, interleave=True))

    def _ask_about(self, sample: Sample, name: str, response: str, sees: bool = True) -> str:
        question = asked_question(sample)  # the images stand before the material
        mark, material = marked({"Question": question, "Response": response})
        prompt = self._prompts.render(
            name, mark=mark, material=material, question=question, response=response,
            example=HEADINGS.example,
        )  # fmt: skip
        return self._said(sample, lambda: user_message(prompt, sample.images if sees else ()))

    def _said(self, sample: Sample, message: Callable[[], Message]) -> str:
        try:
            return self._model.ask([message()])
        except (ChatError, ImageError) as error:
            raise TeacherError(f"teacher, sample {sample.id!r}: {error}") from error


class Translated:
    """A teacher for a policy that writes in another format than headings.

    Teachers are asked for, and given, headings: a format with `<think>` tags would get lost among
    their own thoughts. What is no response in the policy's format is handed on as it is.
    """

    def __init__(self, teacher: Teacher, form: RapFormat) -> None:
        """Take the teacher, and the policy's format."""
        self._teacher, self._form = teacher, form

    def write(self, sample: Sample) -> str:
        """As the teacher writes: `accept` renders it in the policy's format."""
        return self._teacher.write(sample)

    def write_facts(self, sample: Sample) -> str:
        """As the teacher."""
        return self._teacher.write_facts(sample)

    def spoil(self, sample: Sample, response: str) -> str:
        """As the teacher, in the policy's format."""
        return self._through(self._teacher.spoil, sample, response)

    def mend(self, sample: Sample, response: str) -> str:
        """As the teacher, in the policy's format."""
        return self._through(self._teacher.mend, sample, response)

    def restyle(self, sample: Sample, response: str) -> str:
        """As the teacher, in the policy's format."""
        return self._through(self._teacher.restyle, sample, response)

    def _through(self, ask: Callable[[Sample, str], str], sample: Sample, response: str) -> str:
        given = _turned(response, self._form, HEADINGS)
        said = ask(sample, given)
        return response if said == given else _turned(said, HEADINGS, self._form)


def _turned(text: str, form: RapFormat, into: RapFormat) -> str:
    """A response of one format in another; as it is if it is none."""
    rap = form.parse(text)
    return into.render(rap.rationale, rap.answer) if rap.compliant else text
