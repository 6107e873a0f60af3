"""Prompts for the engine: samples in, encoded groups of like length out, made in a thread beside.

Decoding images and cutting them into a model's patches takes as long as a small model needs to
answer, and uses no GPU; so the next groups are prepared while the model is at work. Prompts of one
length need no padding: what decides a prompt's length is the size of its image and the number of
its text's tokens, so that samples alike in both go together.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from selfcal.policy import Policy, Prompt
from selfcal.types import Sample

if TYPE_CHECKING:
    import torch

_AHEAD = 2
"""Groups that are prepared before they are wanted."""
_WINDOW = 2
"""Groups among which prompts of like length are looked for."""
_PADDING = 0.02
"""Share of a group's text tokens that may be padding."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A sample with its prompt."""

    order: int
    sample: Sample
    prompt: Prompt


Group = tuple[list[Arrival], "dict[str, torch.Tensor]"]
"""Arrivals, and their encoded batch on the CPU."""


class Prompts:
    """A queue of groups, filled by a thread of its own; use it in a `with` block."""

    def __init__(self, policy: Policy, samples: Iterable[Sample], tokens: int) -> None:
        """Read `samples` in groups of at most `tokens` text tokens.

        The first group is one sample; after it the thread waits for `size`, so that memory can be
        reckoned first, and groups do not depend on who was faster.
        """
        self._policy, self._tokens = policy, tokens
        self._samples = samples
        self._ready: queue.Queue[Group | BaseException | None] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._sized = threading.Event()
        self._group = 1
        self._encoding = threading.Lock()  # a fast tokenizer must not serve two threads
        self._over = False
        self._thread = threading.Thread(target=self._prepare, name="prompts", daemon=True)

    def __enter__(self) -> Prompts:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the thread, whatever it is at."""
        self._stopped.set()
        with suppress(queue.Empty):
            while True:
                self._ready.get_nowait()
        self._thread.join()

    @property
    def sized(self) -> bool:
        """Whether `size` was said."""
        return self._sized.is_set()

    def size(self, group: int) -> None:
        """Say how many samples a group may have, once and for all."""
        self._group = group
        self._sized.set()

    def encode(self, group: Sequence[Arrival]) -> dict[str, torch.Tensor]:
        """A group as one batch on the CPU; both threads may ask."""
        with self._encoding:
            return self._policy.encode_prompts([a.prompt for a in group])

    def take(self) -> Group | None:
        """The next group, once it is ready; None after the last one.

        Raises:
            ImageError: an image cannot be read.
        """
        if self._over:
            return None
        found = self._ready.get()
        if isinstance(found, BaseException):
            self._over = True
            raise found
        self._over = found is None
        return found

    @property
    def over(self) -> bool:
        """Whether the last group was taken, as far as is known."""
        return self._over

    def _prepare(self) -> None:
        try:
            for group in self._groups():
                if not self._put((group, self.encode(group))):
                    return
                while not self._sized.wait(0.1):
                    if self._stopped.is_set():
                        return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, what: Group | BaseException | None) -> bool:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._ready.put(what, timeout=0.1)
                return True
        return False

    def _groups(self) -> Iterator[list[Arrival]]:
        arrivals = map(self._arrival, itertools.count(), self._samples)
        window: list[Arrival] = []
        while True:
            window += itertools.islice(arrivals, _WINDOW * self._group - len(window))
            if not window:
                return
            picked = self._pick(window)
            yield picked
            taken = {a.order for a in picked}
            window = [a for a in window if a.order not in taken]

    def _arrival(self, order: int, sample: Sample) -> Arrival:
        with self._encoding:
            return Arrival(order, sample, self._policy.prompt(sample))

    def _pick(self, window: Sequence[Arrival]) -> list[Arrival]:
        """The oldest arrival, and others whose prompts are as long as its own, or nearly."""
        oldest = window[0]
        alike = [a for a in window if a.prompt.size == oldest.prompt.size]
        alike.sort(key=lambda a: (abs(a.prompt.tokens - oldest.prompt.tokens), a.order))
        picked: list[Arrival] = []
        for arrival in alike[: self._group]:
            widths = [a.prompt.tokens for a in (*picked, arrival)]
            padded = max(widths) * len(widths)
            if picked and (padded > self._tokens or padded > sum(widths) * (1 + _PADDING)):
                break
            picked.append(arrival)
        return picked
