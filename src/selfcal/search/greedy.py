"""The greedy response of a policy to each sample, on the search's engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from selfcal.policy import Policy
from selfcal.search.engine import Ask, Engine, Job, Limits, Place
from selfcal.search.jobs import Runs
from selfcal.search.sampling import Sampling
from selfcal.types import Sample


def respond(
    policy: Policy | None,
    samples: Iterable[Sample],
    max_new_tokens: int,
    may: Limits | None = None,
    engine: Runs | None = None,
) -> Iterator[str]:
    """The most likely token after the other, up to the model's end of response or the limit.

    Args:
        policy: who responds; None where an engine is given.
        samples: to what.
        max_new_tokens: the limit.
        may: rows and memory; changes speed, not results.
        engine: one that takes the most likely token, and whole responses.

    Raises:
        ModelError: the model's cache cannot be gathered by row, or memory is too small for one row.
        ImageError: an image cannot be read.
    """
    return (text for text, _ in respond_ended(policy, samples, max_new_tokens, may, engine))


def respond_ended(
    policy: Policy | None,
    samples: Iterable[Sample],
    max_new_tokens: int,
    may: Limits | None = None,
    engine: Runs | None = None,
) -> Iterator[tuple[str, bool]]:
    """As `respond`; with each response whether the model ended it, rather than the limit."""
    if engine is None:
        assert policy is not None, "respond needs a policy or an engine"
        engine = Engine(policy, Sampling(temperature=0), max_new_tokens, may, whole=True)
    return engine.run(samples, lambda _, place: _answer(place, max_new_tokens))


def _answer(place: Place, tokens: int) -> Job[tuple[str, bool]]:
    found = yield [Ask(place, np.zeros((1, tokens)))]
    return found[0][0].text.strip(), found[0][0].ended
