"""Stage 2 of SRC: candidates by sentence-level beam search in the policy's own output space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

from selfcal.methods.parts.base import (
    by_workers,
    calibration_samples,
    calibration_size,
    form_of,
    formed,
    given,
    part_of,
    reads,
    searches,
)
from selfcal.methods.parts.budget import Budget, before_each, share
from selfcal.methods.parts.serving import Use, backend_of, engine_for, most_images
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work
from selfcal.store import JSON
from selfcal.types import Candidate, Drop, Sample, SearchNode

if TYPE_CHECKING:
    from selfcal.reward import Relevance
    from selfcal.search import Engine, Guide, SearchLimits
    from selfcal.search.served import ServedEngine

_SHARD = 64
ENGINE = "engine"
"""Figure with the engine's own account: what it did in this process, in which the stage ended."""
_SPEED = {"batch_rows", "cache_gib", "prompt_tokens"}
"""Settings that change speed and memory, not the outcome."""


Only = Callable[[Work, str, Sequence[Sample]], Sequence[Sample]]


def candidates(
    recipe: Recipe,
    t: int,
    start: str | None,
    guided: bool = False,
    again: tuple[str, str, Only] | None = None,
) -> Stage:
    """Sentence-level beam search on the calibration samples, by the policy of stage `start`.

    Args:
        recipe: the recipe.
        t: the iteration.
        start: see above; None: the model as it was given.
        guided: whether sentences are rewarded while the search goes on (CSR).
        again: for a second search: what stands before the stage's name, a stage that it reads, and
            which samples that one leaves to it.
    """
    first = f"iter-{t}/candidates"
    place, source, only = again or (f"iter-{t}", "", None)

    def run(work: Work) -> Mapping[str, JSON]:
        samples: Sequence[Sample] = calibration_samples(recipe, work, t)
        budget = share(recipe)
        if only:
            samples = only(work, source, samples)
            budget = _left(work, first, budget)
        return search_samples(recipe, work, start, samples, guided, budget)

    n = calibration_size(recipe)
    depends = search_settings(recipe) | given(recipe, start) | {"budget": share(recipe)}
    depends["part"] = None if recipe.data.repeat else (t, recipe.iterations)
    depends |= part_of(recipe, "reward") if guided else {}
    inputs = ("data", *reads(start), *([first, source] if source else []))
    return Stage(
        f"{place}/candidates", inputs, depends, run,
        n, "samples", "sentence-level beam search",
        by_workers(searches(recipe) and recipe.budget is None),
    )  # fmt: skip


def _left(work: Work, first: str, budget: int | None) -> int | None:
    """What the first search of the iteration left of its budget."""
    if budget is None:
        return None
    return max(0, budget - int(work.inputs[first].manifest()["stats"]["tokens"]))


def search_settings(recipe: Recipe) -> dict[str, Any]:
    """What the outcome of a search depends on."""
    search = recipe.search.model_dump(exclude=_SPEED)
    depends = {"search": search, "dtype": recipe.policy.dtype}
    return depends | formed(recipe) | backend_of(recipe)


def search_samples(
    recipe: Recipe,
    work: Work,
    start: str | None,
    samples: Sequence[Sample],
    guided: bool = False,
    budget: int | None = None,
) -> Mapping[str, JSON]:
    """Search for candidates of samples with the policy of stage `start`, and write them."""
    from selfcal.search import search

    limits = search_limits(recipe)
    use = use_of(recipe, limits, samples)
    engine = cache(lambda: opened.enter_context(engine_for(recipe, work, start, use)))
    clip = cache(lambda: _clip(recipe))

    def find(left: Iterator[Sample]) -> Iterator[Mapping[str, Sequence[Any]]]:
        own = engine()
        spending = Budget(budget, None if budget is None else before_each(samples, _saved(work)))
        guide = _guide(recipe, clip()) if guided else None
        feed = spending.feed(left)
        for found in search(None, feed, limits, work.rng_key(), engine=own, guide=guide):
            _, drop = spending.settle(sum(n.tokens for n in found.nodes))
            if drop:
                yield {"drops": [drop]}
            else:
                yield {"nodes": found.nodes, "drops": found.drops, "candidates": found.candidates}
        yield from ({"drops": [drop]} for drop in spending.rest(left))

    kinds = {"nodes": SearchNode, "drops": Drop, "candidates": Candidate}
    with ExitStack() as opened:  # by the first sample that is left, if there is one
        work.stream(samples, _SHARD, kinds, find)
    did = _account(engine()) if engine.cache_info().currsize else None
    return _figures(work, len(samples)) | {ENGINE: did}


def search_limits(recipe: Recipe) -> SearchLimits:
    """What the search of a recipe may do."""
    from selfcal.search import Filters, Sampling, SearchLimits

    s = recipe.search
    sampling = Sampling(s.temperature, s.top_p, s.top_k, s.repetition_penalty)
    filters = Filters(s.min_characters, s.max_characters, s.degenerate == "drop")
    return SearchLimits(
        s.candidates, s.branch, s.keep, s.max_sentences, s.sentence_tokens, sampling, filters,
        form_of(recipe),
    )  # fmt: skip


def _clip(recipe: Recipe) -> Relevance:
    from selfcal.reward import Relevance

    return Relevance(recipe.reward.model, recipe.policy.dtype, recipe.policy.device)


def _guide(recipe: Recipe, clip: Relevance) -> Guide:
    from selfcal.reward import CalibratedReward

    clip.forget()  # what it knows is left out of its batches, and so moves the last digits
    return CalibratedReward(clip, recipe.reward.weight, recipe.reward.normalize)


def _saved(work: Work) -> Counter[str]:
    """Tokens of the shards that an earlier process wrote, by sample."""
    saved = Counter[str]()
    for i in work.folder.numbers("nodes"):
        for node in work.folder.read_shard("nodes", i, SearchNode):
            saved[node.sample_id] += node.tokens
    return saved


def _spent(work: Work) -> int:
    """Tokens of the finished search."""
    return sum(work.folder.column("nodes", SearchNode, "tokens"))


def use_of(recipe: Recipe, limits: SearchLimits, samples: Sequence[Sample]) -> Use:
    """What a search wants of an engine."""
    return Use(
        limits.sampling, limits.sentence_tokens, recipe.search.batch_rows, form=limits.form,
        images=most_images(samples),
    )  # fmt: skip


def _account(engine: Engine | ServedEngine) -> JSON:
    """What the engine did since this process took the stage up."""
    from selfcal.search import Engine

    if not isinstance(engine, Engine):
        return asdict(engine.counts)
    counts = engine.counts
    return {
        "tokens": counts.prompt_tokens + counts.tokens,
        "amplification": round(counts.amplification, 4),
        "steps": counts.steps,
        "rows": round(counts.tokens / max(1, counts.steps), 1),
        "occupancy": round(counts.occupancy, 4),
        "back_offs": counts.back_offs,
    }


def _figures(work: Work, samples: int) -> dict[str, JSON]:
    count = Counter[str]()
    rewarded: list[float] = []
    for rewards in work.folder.column("candidates", Candidate, "sentence_rewards"):
        count["candidates"] += 1
        rewarded += [sum(rewards)] if rewards else []
    count["tokens"] = _spent(work)
    count["merged"] = sum(n - 1 for n in work.folder.column("nodes", SearchNode, "draws"))
    found: dict[str, JSON] = {
        "candidates": count["candidates"],
        "per_sample": round(count["candidates"] / max(1, samples), 3),
        "tokens": count["tokens"],  # of all sentences in the trees, equal siblings once
        "merged": count["merged"],
        "drops": work.drop_counts(),
    }
    if rewarded:
        found["mean_reward"] = round(sum(rewarded) / len(rewarded), 4)
    return found
