"""Stage 2 of SRC: candidates by sentence-level beam search in the policy's own output space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from selfcal.methods.parts.base import calibration_samples, calibration_size
from selfcal.recipe import Recipe
from selfcal.stage import Shards, Stage, Work, count_drops
from selfcal.store import JSON
from selfcal.types import Candidate, Drop, Sample, SearchNode

_SHARD = 64


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
    # how many rows are decoded at once changes speed and memory, not the outcome
    search = recipe.search.model_dump(exclude={"batch_rows"})
    return {"search": search, "dtype": recipe.policy.dtype}


def search_samples(
    recipe: Recipe, work: Work, start: str, samples: Sequence[Sample]
) -> Mapping[str, JSON]:
    """Search for candidates of samples with the policy of stage `start`, and write them."""
    from selfcal.policy import load_policy
    from selfcal.search import SearchLimits, search

    limits = SearchLimits(**recipe.search.model_dump(exclude={"batch_rows"}))
    at_once = max(1, recipe.search.batch_rows // (limits.candidates * limits.branch))

    @cache
    def policy() -> Any:
        p = recipe.policy
        return load_policy(work.checkpoint(start), p.dtype, p.device, p.trust_remote_code)

    def find(part: Sequence[Sample]) -> Shards:
        found: list[Candidate] = []
        nodes: list[SearchNode] = []
        drops: list[Drop] = []
        for i in range(0, len(part), at_once):
            responses, tree, left_out = search(
                policy(), part[i : i + at_once], limits, work.rng_key()
            )
            found += responses
            nodes += tree
            drops += left_out
        return {
            "nodes": (SearchNode, nodes),
            "drops": (Drop, drops),
            "candidates": (Candidate, found),
        }

    work.map(samples, _SHARD, find)
    found = work.folder.read("candidates", Candidate)
    return {
        "candidates": len(found),
        "per_sample": round(len(found) / max(1, len(samples)), 3),
        "tokens": sum(sum(c.token_counts) for c in found),
        "drops": count_drops(work.folder.read("drops", Drop)),
    }
