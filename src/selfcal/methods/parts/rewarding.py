"""How much a policy's own responses are worth by CSR's reward, from iteration to iteration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from selfcal.methods.parts.base import formed, given, reads
from selfcal.methods.parts.search import search_limits, search_settings, use_of
from selfcal.methods.parts.serving import backend_of, engine_for
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work, count_drops
from selfcal.store import JSON
from selfcal.types import Candidate, Drop

_SAMPLES = 200
_OWN: dict[str, Any] = {"candidates": 1, "branch": 1, "keep": "stochastic"}
_IGNORED = {*_OWN, "min_characters", "max_characters", "degenerate"}
"""Settings of the search that are others here."""


def own_reward(recipe: Recipe, t: int, start: str | None) -> list[Stage]:
    """Mean calibrated reward of what the policy of iteration `t` says before it is tuned.

    One response to each of some dev samples, drawn as the policy draws and guided by nothing.
    Rewards are raw (Eq. 4), as ranks have the same mean for every policy; a response has the sum of
    its sentences', so that longer ones have more of it, and both means are given.
    """
    n = min(recipe.data.dev, _SAMPLES)

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.reward import Relevance, calibrated, likelihood, of_images
        from selfcal.search import NO_FILTERS, search

        p, r = recipe.policy, recipe.reward
        samples = work.samples("data", "dev")[:n]
        limits = replace(search_limits(recipe), **_OWN, filters=NO_FILTERS)
        with engine_for(recipe, work, start, use_of(recipe, limits, samples)) as engine:
            # the same random numbers in every iteration: what differs is the policy's doing
            seed = f"{work.seed}|own-reward"
            found = list(search(None, samples, limits, seed, engine=engine))
        said = [c for f in found for c in f.candidates]
        images = {s.id: s.images for s in samples}
        clip = Relevance(r.model, p.dtype, p.device)
        seen = [x for c in said for x in of_images(clip, images[c.sample_id], c.sentences)]
        likely = [likelihood(x) for c in said for x in c.sentence_logprobs]
        mixed = calibrated(seen, likely, r.weight, "raw")
        drops = [d for f in found for d in f.drops]
        work.write("responses", said, Candidate)
        work.write("drops", drops, Drop)
        return {
            "response_reward": round(sum(mixed) / max(1, len(said)), 5),
            "sentence_reward": _mean(mixed),
            "relevance": _mean(seen),
            "likelihood": _mean(likely),
            "sentences": len(mixed),
            "responses": len(said),
            "drops": count_drops(drops),
        }

    searched = {k: v for k, v in search_settings(recipe)["search"].items() if k not in _IGNORED}
    reward = recipe.reward.model_dump(exclude={"normalize"})
    depends = {"search": searched, "reward": reward, "dtype": recipe.policy.dtype}
    depends |= given(recipe, start) | formed(recipe) | backend_of(recipe)
    stage = Stage(
        f"reward/{'iter-' + str(t - 1) if t > 1 else 'start'}", ("data", *reads(start)), depends,
        run, n, "samples", "calibrated reward of own responses",
    )  # fmt: skip
    return [stage] if n else []


def _mean(values: list[float]) -> float:
    return round(sum(values) / max(1, len(values)), 5)
