"""The measurement of a checkpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from selfcal.methods.parts.base import given, reads, weights
from selfcal.methods.parts.search import engine_limits
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work
from selfcal.store import JSON
from selfcal.types import Response, Result, Sample

_SHARD = 200


def evaluate(recipe: Recipe, checkpoint: str, trained: str | None = None) -> Stage:
    """Greedy responses of a checkpoint on dev and test, and all metrics.

    `trained` is the stage that made the checkpoint; None: the model as it was given.
    """
    settings, p = recipe.evaluate, recipe.policy
    verified = recipe.data.miniworld

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.evaluate import grade, grade_answer, measure
        from selfcal.policy import load_policy
        from selfcal.search import respond

        grading: Callable[[Sample, str], Response] = grade if verified else grade_answer

        def answer(left: Iterator[tuple[str, Sample]]) -> Iterator[Mapping[str, list[Response]]]:
            path = weights(recipe, work, trained)
            policy = load_policy(path, p.dtype, p.device, p.trust_remote_code)
            asked: deque[tuple[str, Sample]] = deque()  # filled by the engine's reading thread

            def feed() -> Iterator[Sample]:
                for split, sample in left:
                    asked.append((split, sample))
                    yield sample

            may = engine_limits(recipe, settings.batch_size)
            for text in respond(policy, feed(), settings.max_new_tokens, may):
                split, sample = asked.popleft()
                yield {split: [grading(sample, text)]}

        items = [(split, s) for split in settings.splits for s in work.samples("data", split)]
        work.stream(items, _SHARD, dict.fromkeys(settings.splits, Response), answer)
        results = [
            r
            for split in settings.splits
            for r in measure(
                work.folder.read(split, Response), checkpoint, split, work.seed, verified
            )
        ]
        work.write("results", results, Result)
        return {r.metric: round(r.value, 4) for r in results if r.category == "all" and r.n}

    n = sum(getattr(recipe.data, s) for s in settings.splits)
    inputs = ("data", *reads(trained))
    depends: dict[str, Any] = {"splits": settings.splits, "max_new_tokens": settings.max_new_tokens}
    depends |= {"dtype": recipe.policy.dtype, "verified": verified}
    depends |= given(recipe, trained)
    return Stage(f"eval/{checkpoint}", inputs, depends, run, n, "samples", f"measure {checkpoint}")
