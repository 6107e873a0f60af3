"""How much a policy's own responses are worth by CSR's reward, from iteration to iteration."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from selfcal.methods.parts.base import by_workers, formed, given, reads, searches
from selfcal.methods.parts.search import search_limits, search_settings, use_of
from selfcal.methods.parts.serving import backend_of, engine_for
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work
from selfcal.store import JSON
from selfcal.types import Candidate, Drop, Sample

if TYPE_CHECKING:
    from selfcal.reward import Relevance

_SAMPLES, _SHARD = 200, 64
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
        from selfcal.reward import Relevance
        from selfcal.search import NO_FILTERS, search

        p, r = recipe.policy, recipe.reward
        samples = work.samples("data", "dev", n)
        limits = replace(search_limits(recipe), **_OWN, filters=NO_FILTERS)
        use = use_of(recipe, limits, samples)
        engine = cache(lambda: opened.enter_context(engine_for(recipe, work, start, use)))
        clip = cache(lambda: Relevance(r.model, p.dtype, p.device))
        # the same random numbers in every iteration: what differs is the policy's doing
        seed = f"{work.seed}|own-reward"

        def rate(left: Iterator[Sample]) -> Iterator[Mapping[str, Sequence[Any]]]:
            asked = deque[Sample]()  # filled by the engine's reading thread
            own = engine()
            clip().forget()
            for found in search(None, _noting(left, asked), limits, seed, engine=own):
                sample = asked.popleft()
                said = [_rated(recipe, clip(), sample, c) for c in found.candidates]
                yield {"responses": said, "drops": found.drops}

        with ExitStack() as opened:  # by the first sample that is left, if there is one
            work.stream(samples, _SHARD, {"responses": Candidate, "drops": Drop}, rate)
        return _figures(work)

    searched = {k: v for k, v in search_settings(recipe)["search"].items() if k not in _IGNORED}
    reward = recipe.reward.model_dump(exclude={"normalize"})
    depends = {"search": searched, "reward": reward, "dtype": recipe.policy.dtype}
    depends |= given(recipe, start) | formed(recipe) | backend_of(recipe)
    stage = Stage(
        f"reward/{'iter-' + str(t - 1) if t > 1 else 'start'}", ("data", *reads(start)), depends,
        run, n, "samples", "calibrated reward of own responses", by_workers(searches(recipe)),
    )  # fmt: skip
    return [stage] if n else []


def _noting(samples: Iterator[Sample], asked: deque[Sample]) -> Iterator[Sample]:
    for sample in samples:
        asked.append(sample)
        yield sample


def _rated(recipe: Recipe, clip: Relevance, sample: Sample, said: Candidate) -> Candidate:
    """A response with what each of its sentences is worth."""
    from selfcal.reward import calibrated, likelihood, of_images

    seen = of_images(clip, sample.images, said.sentences)
    likely = [likelihood(x) for x in said.sentence_logprobs]
    mixed = calibrated(seen, likely, recipe.reward.weight, "raw")
    return replace(said, sentence_rewards=tuple(mixed), sentence_relevances=tuple(seen))


def _figures(work: Work) -> dict[str, JSON]:
    from selfcal.reward import likelihood

    said = work.folder.read("responses", Candidate)
    mixed = [x for c in said for x in c.sentence_rewards]
    return {
        "response_reward": round(sum(mixed) / max(1, len(said)), 5),
        "sentence_reward": _mean(mixed),
        "relevance": _mean([x for c in said for x in c.sentence_relevances]),
        "likelihood": _mean([likelihood(x) for c in said for x in c.sentence_logprobs]),
        "sentences": len(mixed),
        "responses": len(said),
        "drops": work.drop_counts(),
    }


def _mean(values: list[float]) -> float:
    return round(sum(values) / max(1, len(values)), 5)
