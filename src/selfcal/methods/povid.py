"""POVID: Preference Optimization in VLLM with AI-Generated Dispreferences (arXiv 2402.11411).

What the model is to prefer was written by somebody else, and what it is not to prefer is made from
that: a strong model puts plausible hallucinations into it, and the image is drowned in noise, which
brings out what the model would say without looking.

Kept: both dispreferences, in one DPO; no response of the policy is needed. Changed: chosen is the
teacher's RAP, and only if its answer is right, where the paper takes ground-truth answers; the
noisy image goes with the spoiled response of the same pair, where the paper lets the model go on
from a prefix of the chosen one on the noisy image while it trains; Gaussian noise on the pixels in
place of a diffusion's. A recipe may have several iterations; the paper has one.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from selfcal.methods import parts
from selfcal.methods.parts.base import calibration_samples, form_of
from selfcal.methods.parts.writing import (
    SHARD,
    Made,
    Make,
    Writing,
    each,
    teacher_of,
    teacher_settings,
    written_outcome,
    written_pairs,
)
from selfcal.recipe import Recipe, Settings
from selfcal.stage import Stage, Work
from selfcal.types import Drop, Sample


class Options(Settings):
    """POVID's own settings."""

    noise: Annotated[int, Field(ge=1, le=5)] = 2
    """Strength of the noise on the rejected response's image (`corruption.noise`)."""


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of POVID."""
    own = parts.options(recipe, Options)

    def iteration(t: int, start: str | None) -> list[Stage]:
        return [_pairs(recipe, t, own), parts.preference_tuning(recipe, t, start)]

    return parts.loop(recipe, iteration)


def _pairs(recipe: Recipe, t: int, own: Options) -> Stage:
    def maker(work: Work, opened: ExitStack) -> Make:
        from selfcal.corruption import corrupt_file
        from selfcal.teacher import accept

        teacher = teacher_of(recipe, work)
        shard = {s.id: i // SHARD for i, s in enumerate(calibration_samples(recipe, work, t))}

        def write(sample: Sample) -> Made:
            text = teacher.write(sample)
            rap = accept(sample, text, form_of(recipe))
            if isinstance(rap, Drop):
                return Made(rap, (text,))
            rejected = teacher.spoil(sample, rap.text)
            outcome = written_outcome(sample, rap.text, rejected)
            if isinstance(outcome, Drop):
                return Made(outcome, (text, rejected))
            image = _image(work, sample, shard[sample.id])
            key = f"{work.rng_key()}|{sample.id}"
            corrupt_file(Path(sample.image), image, "noise", own.noise, key)
            within = image.relative_to(work.run).as_posix()
            return Made(replace(outcome, rejected_image=within), (text, rejected))

        return lambda samples: each(recipe, write, samples)

    settings = {"teacher": teacher_settings(recipe, "rationale", "spoil"), "options": own}
    about = "the teacher's RAPs against spoiled ones"
    return written_pairs(recipe, t, maker, about, settings, Writing(requests=2))


def _image(work: Work, sample: Sample, shard: int) -> Path:
    """Where a sample's noisy image goes; an id may have any characters."""
    name = hashlib.sha256(sample.id.encode()).hexdigest()[:16]
    return work.folder.images(shard) / f"{name}.png"
