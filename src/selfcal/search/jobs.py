"""What a search asks of the engine, what it gets, and what the engine counts.

A *job* is a generator that asks for continuations of places in a response and gets sentences back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from selfcal.types import Sample

if TYPE_CHECKING:
    import torch

    from selfcal.search.cache import Segment

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a response stands between two sentences."""

    segment: Segment
    logits: torch.Tensor
    """Of the next token, [vocabulary], float32."""
    position: int
    """Of the next token."""
    history: tuple[int, ...]
    """Tokens of prompt and response so far; empty where sampling does not look at them."""
    last: int | None = None
    """The token before it; None where the response begins."""


@dataclass(frozen=True, slots=True, eq=False)
class Sentence:
    """A decoded sentence and the place where it ends."""

    place: Place | None
    """None where the response is over."""
    text: str
    logprob: float
    """Sum of its tokens' log-probabilities (nats, temperature 1), the end of response included."""
    ids: tuple[int, ...]
    """Its tokens, the end of response included."""
    ended: bool
    """Whether the model ended its response here."""

    @property
    def tokens(self) -> int:
        """Number of its tokens."""
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """Continue a place, once for each row of random numbers."""

    place: Place
    uniforms: np.ndarray[Any, np.dtype[np.float64]]
    """[draws, tokens at most], each in [0, 1)."""


Job = Generator[list[Ask], list[list[Sentence]], T]
"""Asks, gets for each ask one sentence a draw (draws alike share one object), and returns."""


class Runs(Protocol):
    """What runs jobs: the local engine, or one on a server."""

    def run(
        self, samples: Iterable[Sample], start: Callable[[Sample, Place], Job[T]]
    ) -> Iterator[T]:
        """Run a job for each sample; results come in the samples' order."""
        ...


@dataclass(slots=True)
class Counts:
    """What the engine did, counted. Tokens include those of images."""

    prompt_tokens: int = 0
    """Of all prompts, each once."""
    prompt_slots: int = 0
    """The same with padding, as the model was given them."""
    tokens: int = 0
    """Distinct tokens fed after prompts."""
    steps: int = 0
    capacity: int = 0
    """Slots, summed over steps."""
    images: int = 0
    """Prompts read, each with its image; what failed for lack of memory is not counted."""
    back_offs: int = 0
    """How often memory ran out."""

    @property
    def amplification(self) -> float:
        """Tokens forwarded over tokens needed."""
        needed = self.prompt_tokens + self.tokens
        return (self.prompt_slots + self.tokens) / max(1, needed)

    @property
    def occupancy(self) -> float:
        """Mean share of slots in work."""
        return self.tokens / max(1, self.capacity)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine may use."""

    rows: int = 192
    """Rows decoded at once, at most."""
    cache_bytes: int | None = None
    """For keys and values; None: a share of the memory that is free when it starts."""
    prompt_tokens: int = 8192
    """Text tokens of prompts that are read at once, at most (one prompt always is)."""
