"""The greedy response of a policy to each sample, on the search's engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from selfcal.policy import Policy
from selfcal.search.engine import Ask, Engine, Job, Limits, Place
from selfcal.search.sampling import Sampling
from selfcal.types import Sample


def respond(
    policy: Policy, samples: Iterable[Sample], max_new_tokens: int, may: Limits | None = None
) -> Iterator[str]:
    """The most likely token after the other, up to the model's end of response or the limit.

    Raises:
        ModelError: the model's cache cannot be gathered by row, or memory is too small for one row.
        ImageError: an image cannot be read.
    """
    engine = Engine(policy, Sampling(temperature=0), max_new_tokens, may, whole=True)
    return engine.run(samples, lambda _, place: _answer(place, max_new_tokens))


def _answer(place: Place, tokens: int) -> Job[str]:
    found = yield [Ask(place, np.zeros((1, tokens)))]
    return found[0][0].text.strip()
