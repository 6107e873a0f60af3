"""Stage 2 of SRC: candidates by sentence-level beam search in the policy's own output space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from selfcal.methods.parts.base import calibration_samples, calibration_size
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work, count_drops
from selfcal.store import JSON
from selfcal.types import Candidate, Drop, Sample, SearchNode

if TYPE_CHECKING:
    from selfcal.search import Engine, Limits

_SHARD = 64
ENGINE = "engine"
"""Figure with the engine's own account; of the last process alone, if the stage was resumed."""
_SPEED = {"batch_rows", "cache_gib", "prompt_tokens"}
"""Settings that change speed and memory, not the outcome."""


def candidates(recipe: Recipe, t: int, start: str) -> Stage:
    """Sentence-level beam search on the calibration samples, by the policy of stage `start`."""

    def run(work: Work) -> Mapping[str, JSON]:
        return search_samples(recipe, work, start, calibration_samples(recipe, work, t))

    n = calibration_size(recipe)
    return Stage(
        f"iter-{t}/candidates", ("data", start),
        search_settings(recipe) | {"part": None if recipe.data.repeat else (t, recipe.iterations)},
        run, n, "samples", "sentence-level beam search",
    )  # fmt: skip


def search_settings(recipe: Recipe) -> dict[str, Any]:
    """What the outcome of a search depends on."""
    search = recipe.search.model_dump(exclude=_SPEED)
    return {"search": search, "dtype": recipe.policy.dtype}


def search_samples(
    recipe: Recipe, work: Work, start: str, samples: Sequence[Sample]
) -> Mapping[str, JSON]:
    """Search for candidates of samples with the policy of stage `start`, and write them."""
    from selfcal.policy import load_policy
    from selfcal.search import Engine, Sampling, SearchLimits, search

    s, p = recipe.search, recipe.policy
    sampling = Sampling(s.temperature, s.top_p, s.top_k, s.repetition_penalty)
    limits = SearchLimits(
        s.candidates, s.branch, s.keep, s.max_sentences, s.sentence_tokens, sampling
    )
    engines: list[Engine] = []

    def find(left: Iterator[Sample]) -> Iterator[Mapping[str, Sequence[Any]]]:
        policy = load_policy(work.checkpoint(start), p.dtype, p.device, p.trust_remote_code)
        may = engine_limits(recipe, s.batch_rows)
        engines.append(Engine(policy, sampling, s.sentence_tokens, may))
        for found in search(policy, left, limits, work.rng_key(), engine=engines[0]):
            yield {"nodes": found.nodes, "drops": found.drops, "candidates": found.candidates}

    kinds = {"nodes": SearchNode, "drops": Drop, "candidates": Candidate}
    work.stream(samples, _SHARD, kinds, find)
    return _figures(work, len(samples)) | {ENGINE: _account(engines[0]) if engines else None}


def engine_limits(recipe: Recipe, rows: int) -> Limits:
    """What the engine may use."""
    from selfcal.search import Limits

    gib = recipe.search.cache_gib
    return Limits(rows, None if gib is None else int(gib * 2**30), recipe.search.prompt_tokens)


def _account(engine: Engine) -> JSON:
    """What the engine did since this process took the stage up."""
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
    for c in work.folder.records("candidates", Candidate):
        count["candidates"] += 1
        count["tokens"] += sum(c.token_counts)
    merged = sum(n.draws - 1 for n in work.folder.records("nodes", SearchNode))
    return {
        "candidates": count["candidates"],
        "per_sample": round(count["candidates"] / max(1, samples), 3),
        "tokens": count["tokens"],
        "merged": merged,
        "drops": count_drops(work.folder.records("drops", Drop)),
    }
