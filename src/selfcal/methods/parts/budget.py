"""The tokens that calibration may generate: spent sample by sample, in the samples' order.

So the cut does not depend on what a batch or a resumed run happened to compute: a sample counts if
those before it have left something, and is then done in full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain

from selfcal.recipe import Recipe
from selfcal.types import Drop, Sample


def share(recipe: Recipe) -> int | None:
    """Tokens that one iteration may generate; None: no limit."""
    return None if recipe.budget is None else max(1, recipe.budget // recipe.iterations)


def before_each(samples: Sequence[Sample], saved: Mapping[str, int]) -> dict[str, int]:
    """Tokens that are saved already for the samples before each one, by its id.

    Args:
        samples: all of them, in their order.
        saved: tokens by sample, of the shards that are there; some in between may not be.
    """
    running = accumulate((saved.get(s.id, 0) for s in samples), initial=0)
    return dict(zip((s.id for s in samples), running, strict=False))  # the last sum is of all


class Budget:
    """Feeds samples to a generator of responses until their tokens are spent."""

    def __init__(
        self,
        limit: int | None,
        before: Mapping[str, int] | None = None,
        stage: str = "candidates",
    ) -> None:
        """Start with what earlier processes spent (see `before_each`); `stage` is who drops."""
        self._limit, self._before, self._stage = limit, before or {}, stage
        self._spent = 0  # by this process
        self._asked: deque[Sample] = deque()  # filled by an engine's reading thread
        self._unfed: list[Sample] = []

    def _over(self, sample: Sample) -> bool:
        """Whether the samples before this one have spent all."""
        before = self._spent + self._before.get(sample.id, 0)
        return self._limit is not None and before >= self._limit

    def feed(self, left: Iterator[Sample]) -> Iterator[Sample]:
        """The samples that responses are to be generated for."""
        for sample in left:
            if self._over(sample):
                self._unfed = [sample]
                return
            self._asked.append(sample)
            yield sample

    def settle(self, tokens: int) -> tuple[Sample, Drop | None]:
        """The next sample that was fed, and whether it is dropped; call for each result, in order.

        Samples are fed ahead, so some results come when all is spent.
        """
        sample = self._asked.popleft()
        if self._over(sample):
            return sample, dropped(sample, self._stage)
        self._spent += tokens
        return sample, None

    def rest(self, left: Iterator[Sample]) -> Iterator[Drop]:
        """The drops of all samples that were not fed: call when there are no results any more."""
        for sample in chain(self._unfed, left):
            yield dropped(sample, self._stage)


def dropped(sample: Sample, stage: str) -> Drop:
    """The record of a sample that the budget does not reach."""
    return Drop(sample.id, stage, "budget")
