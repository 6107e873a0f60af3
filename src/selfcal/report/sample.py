"""One sample's story as its page shows it: what a template needs, with nothing left to decide.

A story goes in, plain values come out, each text made harmless by `safe` (the template escapes it
besides). Whatever the verifier says is for people: the loop never saw it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from string import ascii_uppercase
from typing import Any

from selfcal.page import shortened
from selfcal.report.marks import Marked, beside, mark
from selfcal.report.pictures import Pictures
from selfcal.report.reader import Reader
from selfcal.report.rounds import drops_view, pair_view, round_view
from selfcal.story import Answer, Rollouts, Round, Story, TrainingDrops, Written
from selfcal.types import Rollout, without_marks
from selfcal.view.text import safe

_TEXTS = 64
"""Different responses of one group, or texts written on the way, that are shown."""


def view_of(story: Story, reader: Reader, pictures: Pictures) -> dict[str, Any]:
    """All that the template of a sample names."""
    s, taught = story.sample, story.taught
    names = ascii_uppercase if len(s.choices) <= 26 else range(1, len(s.choices) + 1)
    return {
        "id": safe(shortened(s.id)),
        "split": safe(story.split),
        "category": safe(shortened(s.category)),
        "images": [pictures.take(image) for image in s.images],
        "question": _text(without_marks(s.question)),
        "choices": [(str(n), _text(c)) for n, c in zip(names, s.choices, strict=False)],
        "reference": _text(s.answer),
        "rationale": _text(s.rationale),
        "facts": _text(s.facts),
        "confidence": s.confidence,
        "taught": taught,
        "raps": [reader.mark(rap.text) for rap in taught.raps] if taught else [],
        "taught_drops": drops_view(taught.drops) if taught else [],
        "answers": list(_answers(story.answers, reader)),
        "missing": [safe(name) for name in story.missing],
        "parts": [_part(part, reader, pictures) for part in story.parts],
    }


def _text(text: str) -> str:
    return safe(shortened(text), lines=True)


def _answers(answers: Sequence[Answer], reader: Reader) -> Iterator[dict[str, Any]]:
    """What each checkpoint answered, and what of it the one before had not said."""
    before: tuple[str, Marked, str] | None = None
    for answer in answers:
        text, name = answer.response.text, safe(answer.checkpoint)
        said = mark(text, answer.found, reader.form)
        yield {
            "name": name,
            "said": beside(before[1], said)[1] if before else said,
            "right": answer.found.correct if answer.found else answer.response.correct,
            "before": before[0] if before else "",
            "same": before is not None and text.split() == before[2].split(),
        }
        before = name, said, text


def _part(
    part: Round | Written | Rollouts | TrainingDrops, reader: Reader, pictures: Pictures
) -> dict[str, Any]:
    if isinstance(part, Round):
        return round_view(part, reader, pictures)
    if isinstance(part, Written):
        return _written(part, reader, pictures)
    if isinstance(part, Rollouts):
        return _rollouts(part, reader)
    return {"kind": "training", "name": safe(part.stage), "drops": drops_view(part.drops)}


def _written(part: Written, reader: Reader, pictures: Pictures) -> dict[str, Any]:
    return {
        "kind": "written",
        "name": safe(part.stage.removesuffix("/pairs")),
        "about": safe(part.about),
        "done": part.done,
        "pairs": [pair_view(p, part.known, reader, pictures) for p in part.pairs],
        "on_the_way": [reader.mark(text) for text in part.on_the_way[:_TEXTS]],
        "drops": drops_view(part.drops),
    }


def _rollouts(part: Rollouts, reader: Reader) -> dict[str, Any]:
    return {
        "kind": "rollouts",
        "name": safe(part.stage),
        "done": part.done,
        "responses": len(part.rollouts),
        "signals": [safe(name) for name in part.signals],
        "groups": [
            {"step": step, **_group(list(own), len(part.signals), reader)}
            for step, own in groupby(part.rollouts, key=lambda r: r.step)
        ],
        "drops": drops_view(part.drops),
    }


def _group(group: Sequence[Rollout], signals: int, reader: Reader) -> dict[str, Any]:
    """Responses to the sample in one batch: equal texts once, the best first."""
    times = Counter(r.text for r in group)
    own = sorted({r.text: r for r in group}.values(), key=lambda r: (-r.advantage, r.index))
    rows = [
        {
            "times": times[r.text],
            "advantage": r.advantage,
            "reward": r.reward,
            "correct": None if math.isnan(r.correct) else bool(r.correct),
            "judged": [*r.judged, *[math.nan] * signals][:signals],
            "said": reader.mark(r.text),
        }
        for r in own[:_TEXTS]
    ]
    return {"size": len(group), "rows": rows, "more": len(own) - len(rows)}
