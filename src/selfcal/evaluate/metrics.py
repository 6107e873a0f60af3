"""The measures of rationale-answer alignment.

`grade` turns a response into a `Response` record, `measure` a set of records into `Result`s, each
with its n and standard error. What a share is *of* differs from metric to metric: `alignment` is of
the right answers, `grounding` of the statements, all others of the responses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from selfcal.evaluate.extract import kind_of, read_answer
from selfcal.evaluate.score import is_right
from selfcal.miniworld.verifier import verify
from selfcal.rationale import HEADINGS, RapFormat
from selfcal.types import Response, Result, Sample


def grade(sample: Sample, text: str, form: RapFormat = HEADINGS) -> Response:
    """Grade a response with MiniWorld's verifier."""
    found = verify(sample, text, form)
    return Response(
        sample_id=sample.id,
        category=sample.category,
        text=text,
        answer=found.answer,
        compliant=found.compliant,
        correct=found.correct,
        sound=found.sound,
        counterfactual=found.counterfactual,
        insufficient=found.insufficient,
        unreasonable=found.unreasonable,
        inconsistent=found.inconsistent,
        true_statements=found.true_statements,
        statements=found.statements,
    )


def grade_answer(
    sample: Sample, text: str, form: RapFormat = HEADINGS, cut: bool = False
) -> Response:
    """Grade a response where no verifier knows the truth: its answer and its form alone.

    The answer is read out of any style; one that cannot be read is empty, and not right. `cut`:
    the response ended at the token limit.
    """
    rap, kind = form.parse(text), kind_of(sample)
    answer = read_answer(text, kind, sample.choices, cut)
    if answer is None and rap.compliant and not cut:
        answer = read_answer(rap.answer, kind, sample.choices)
    return Response(
        sample.id, sample.category, text, answer or "", rap.compliant, is_right(answer, sample),
        sound=False, counterfactual=False, insufficient=False, unreasonable=False,
        inconsistent=False, true_statements=0, statements=0,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Metric:
    """A ratio of two sums over responses."""

    part: Callable[[Response], float]
    whole: Callable[[Response], float]
    meaning: str
    verified: bool = True
    """Whether it needs a verifier of rationales."""


def _one(_: Response) -> float:
    return 1.0


METRICS: dict[str, Metric] = {
    "answer_accuracy": Metric(lambda r: r.correct, _one, "right answers", verified=False),
    "rationale_soundness": Metric(lambda r: r.sound, _one, "rationales without any flaw"),
    "alignment": Metric(
        lambda r: r.correct and r.sound, lambda r: r.correct, "right answers with a sound rationale"
    ),
    "reliable_accuracy": Metric(lambda r: r.correct and r.sound, _one, "right and sound"),
    "lucky_answers": Metric(lambda r: r.correct and not r.sound, _one, "right but unsound"),
    "grounding": Metric(
        lambda r: r.true_statements, lambda r: r.statements, "statements that are true of the image"
    ),
    "inconsistency": Metric(
        lambda r: r.inconsistent, _one, "rationale concludes something else than the answer"
    ),
    "flaw/counterfactual": Metric(
        lambda r: r.counterfactual, _one, "a statement contradicts the image"
    ),
    "flaw/insufficient": Metric(
        lambda r: r.insufficient, _one, "what the answer needs is not established"
    ),
    "flaw/unreasonable": Metric(
        lambda r: r.unreasonable, _one, "a step does not follow from what was stated"
    ),
    "format_compliance": Metric(
        lambda r: r.compliant, _one, "rationale first, one answer last", verified=False
    ),
}

READING: dict[str, Metric] = {
    "unreadable": Metric(lambda r: not r.answer, _one, "no answer can be read", verified=False),
}
"""Measured only where answers are read out of any style, without a verifier."""


def ratio(pairs: Iterable[tuple[float, float]]) -> tuple[float, float, int]:
    """Value, standard error and n of a ratio of sums.

    The error is that of a ratio estimator over independent responses (delta method): for a plain
    share it is `sqrt(p (1 - p) / n)`. n is the denominator's sum. An empty denominator gives NaN.
    """
    rows = list(pairs)
    whole = sum(w for _, w in rows)
    if whole == 0:
        return math.nan, math.nan, 0
    value = sum(p for p, _ in rows) / whole
    spread = math.sqrt(sum((p - value * w) ** 2 for p, w in rows))
    return value, spread / whole, round(whole)


def category(response: Response) -> str:
    """A response's category by name: `none` without one, `all*` for one that is called `all`."""
    return {"": "none", "all": "all*"}.get(response.category, response.category)


def measure(
    responses: Sequence[Response], checkpoint: str, split: str, seed: int, verified: bool = True
) -> list[Result]:
    """All metrics, overall (`all`) and for each category.

    Categories go by the names that `category` gives them.
    """
    groups = {"all": list(responses)}
    for r in responses:
        groups.setdefault(category(r), []).append(r)
    return [
        Result(checkpoint, split, where, name, *_rated(metric, own), seed)
        for where, own in groups.items()
        for name, metric in (METRICS if verified else METRICS | READING).items()
        if verified or not metric.verified
    ]


def _rated(metric: Metric, responses: Sequence[Response]) -> tuple[float, float, int]:
    return ratio((float(metric.part(r)), float(metric.whole(r))) for r in responses)
