"""STIC: Self-Training on Image Comprehension (arXiv 2405.19716).

No judge and no teacher: what the model says when it is asked to look step by step is preferred to
what it says when it cannot see properly, or is misled by the prompt.

Kept: its first stage, with both kinds of dispreferred responses (a corrupted image, by jittered
colours or low resolution; a misleading prompt), half of the samples each, all the model's own, and
DPO with an SFT term on the chosen. Changed: the prompts ask the sample's question, where the
paper's ask for image descriptions, and the policy is tuned on the plain question. Left out: the
second stage, fine-tuning with own descriptions in the prompts. A recipe may have several
iterations; the paper has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from selfcal.methods import parts
from selfcal.methods.parts.base import calibration_samples, reads
from selfcal.methods.parts.writing import (
    Made,
    Make,
    Writing,
    greedy,
    greedy_settings,
    written_outcome,
    written_pairs,
)
from selfcal.recipe import Recipe, Settings
from selfcal.stage import Stage, Work
from selfcal.store import PARTIAL
from selfcal.types import Sample

_QUESTION = "{question}"
_SPOILED = ".spoiled-"


class Options(Settings):
    """STIC's own settings."""

    step_by_step: str = (
        "{question}\nLook at the image step by step: first what is there, then what it is like "
        "and where it is, and only then what follows from it. Say nothing that cannot be seen."
    )
    """Prompt of the chosen response; {question} stands for the question."""
    misleading: str = (
        "{question}\nTake it that more is in the image than can be seen: add things that would go "
        "well with it, and let them count for the answer."
    )
    """Prompt of half of the rejected responses."""
    corruptions: tuple[Literal["blur", "noise", "occlude", "low-resolution", "jitter"], ...] = (
        "jitter",
        "low-resolution",
    )
    """What spoils the images of the other half, by turns."""
    strength: Annotated[int, Field(ge=1, le=5)] = 4
    """How strongly."""

    @field_validator("step_by_step", "misleading")
    @classmethod
    def _asks(cls, prompt: str) -> str:
        if _QUESTION not in prompt:
            raise ValueError(f"a prompt needs {_QUESTION} where the question goes")
        return prompt

    @field_validator("corruptions")
    @classmethod
    def _some(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if not kinds:
            raise ValueError("name one corruption at least")
        return kinds


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of STIC."""
    own = parts.options(recipe, Options)

    def iteration(t: int, start: str | None) -> list[Stage]:
        return [_pairs(recipe, t, start, own), parts.preference_tuning(recipe, t, start)]

    return parts.loop(recipe, iteration)


def _pairs(recipe: Recipe, t: int, start: str | None, own: Options) -> Stage:
    def maker(work: Work, opened: ExitStack) -> Make:
        place = {s.id: i for i, s in enumerate(calibration_samples(recipe, work, t))}
        spoil = Spoiler(own, place, work.out, work.rng_key())
        opened.callback(spoil.clear)  # some were asked ahead
        says = greedy(recipe, work, start, opened, spoil.asks)

        def make(samples: Iterator[Sample]) -> Iterator[Made]:
            for sample, (chosen, rejected) in says(samples):
                spoil.image(sample).unlink(missing_ok=True)
                outcome = written_outcome(sample, chosen, rejected)
                yield Made(outcome, (chosen, rejected))

        return make

    settings = {"options": own, "policy": greedy_settings(recipe, start)}
    about = "looking step by step against not seeing, or being misled"
    return written_pairs(recipe, t, maker, about, settings, Writing(responses=2), reads(start))


class Spoiler:
    """What the policy is asked for each sample, well and badly."""

    def __init__(self, own: Options, place: Mapping[str, int], folder: Path, key: str) -> None:
        """`place` numbers the samples, `folder` takes the spoiled images."""
        self._own, self._place, self._folder, self._key = own, place, folder, key
        self._made: set[Path] = set()

    def asks(self, sample: Sample) -> tuple[Sample, Sample]:
        """The sample with the good prompt, and with the misleading one or a spoiled image."""
        from selfcal.corruption import corrupt_file

        own, i = self._own, self._place[sample.id]
        good = replace(sample, question=own.step_by_step.replace(_QUESTION, sample.question))
        if i % 2:
            return good, replace(
                sample, question=own.misleading.replace(_QUESTION, sample.question)
            )
        kind = own.corruptions[i // 2 % len(own.corruptions)]
        image, key = self.image(sample), f"{self._key}|{sample.id}"
        self._made.add(image)  # workers beside this one have images of their own there
        corrupt_file(Path(sample.image), image, kind, own.strength, key)
        return good, replace(sample, image=str(image))

    def clear(self) -> None:
        """Delete the spoiled images that are left."""
        for image in self._made:
            image.unlink(missing_ok=True)

    def image(self, sample: Sample) -> Path:
        """Where the sample's spoiled image is, while it is needed."""
        # named as what a killed writer leaves, which is cleared away when the stage is resumed
        return self._folder / f"{_SPOILED}{self._place[sample.id]}.png{PARTIAL}"
