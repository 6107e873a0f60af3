"""The measurement of a checkpoint."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import cache
from typing import Any

from selfcal.methods.parts.base import by_workers, form_of, formed, given, reads, searches
from selfcal.methods.parts.marks import mark_split, marker_settings
from selfcal.methods.parts.serving import backend_of, engine_for, greedily
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work
from selfcal.store import JSON
from selfcal.types import Response, Result, Sample

_SHARD = 200
FOLLOWED = "calibration"
"""Name of the responses to samples that are followed, and of their split."""


def followed_by(recipe: Recipe) -> int:
    """How many calibration samples every checkpoint answers."""
    return min(recipe.evaluate.followed, recipe.data.calibration)


def evaluate(recipe: Recipe, checkpoint: str, trained: str | None = None) -> Stage:
    """Greedy responses of a checkpoint on dev and test, and all metrics; estimates by a marker.

    The first calibration samples, which is as many of each iteration's, are answered as well: these
    responses are kept, and measured nowhere.

    `trained` is the stage that made the checkpoint; None: the model as it was given.
    """
    settings = recipe.evaluate
    verified, followed = recipe.data.miniworld, followed_by(recipe)
    names, most = (*settings.splits, *([FOLLOWED] if followed else [])), {FOLLOWED: followed}

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.evaluate import grade, grade_answer
        from selfcal.search import respond_ended

        form = form_of(recipe)

        def answer(left: Iterator[tuple[str, Sample]]) -> Iterator[Mapping[str, list[Response]]]:
            own = engine()
            asked: deque[tuple[str, Sample]] = deque()  # filled by the engine's reading thread

            def feed() -> Iterator[Sample]:
                for split, sample in left:
                    asked.append((split, sample))
                    yield sample

            for text, ended in respond_ended(None, feed(), settings.max_new_tokens, engine=own):
                split, sample = asked.popleft()
                if verified:
                    yield {split: [grade(sample, text, form)]}
                else:
                    yield {split: [grade_answer(sample, text, form, cut=not ended)]}

        items = [(name, s) for name in names for s in work.samples("data", name, most.get(name))]
        use = greedily(recipe, settings.batch_size, [s for _, s in items])
        engine = cache(lambda: opened.enter_context(engine_for(recipe, work, trained, use)))
        with ExitStack() as opened:  # by the first sample that is left, if there is one
            work.stream(items, _SHARD, dict.fromkeys(names, Response), answer)
        return _measured(recipe, work, checkpoint)

    n = sum(getattr(recipe.data, s) for s in settings.splits) + followed
    return Stage(
        f"eval/{checkpoint}", ("data", *reads(trained)), _depends(recipe, trained), run, n,
        "samples", f"measure {checkpoint}", by_workers(searches(recipe)),
    )  # fmt: skip


def _measured(recipe: Recipe, work: Work, checkpoint: str) -> Mapping[str, JSON]:
    """All metrics of the responses, written; those over all samples for the manifest."""
    from selfcal.evaluate import measure, measure_marks

    results: list[Result] = []
    for split in recipe.evaluate.splits:
        responses = work.folder.read(split, Response)
        results += measure(responses, checkpoint, split, work.seed, recipe.data.miniworld)
        if recipe.evaluate.marker is not None:
            marks = mark_split(recipe, work, split)
            results += measure_marks(responses, marks, checkpoint, split, work.seed)
    work.write("results", results, Result)
    return {
        r.metric: round(r.value, 4)
        for r in results
        if r.category == "all" and math.isfinite(r.value)
    }


def _depends(recipe: Recipe, trained: str | None) -> dict[str, Any]:
    """What a measurement depends on."""
    settings, followed = recipe.evaluate, followed_by(recipe)
    depends: dict[str, Any] = {"splits": settings.splits, "max_new_tokens": settings.max_new_tokens}
    depends |= {"dtype": recipe.policy.dtype, "verified": recipe.data.miniworld}
    depends |= given(recipe, trained) | formed(recipe) | backend_of(recipe)
    return depends | marker_settings(recipe) | ({"followed": followed} if followed else {})
