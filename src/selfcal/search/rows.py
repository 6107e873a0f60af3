"""The strands of the engine: in work, each in a slot of the batch, or waiting for one.

A strand is some draws that have been alike so far. One that waits keeps its keys and values as
segments; a budget in bytes bounds both the slots and what waits. If memory runs out, the strands in
work go back into the queue with all they have decoded, and half as many slots go on.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Any

from selfcal.clock import spent
from selfcal.memory import attempt, free_bytes, note, release
from selfcal.policy import ModelError
from selfcal.search.cache import Layout, Ledger, Segment, Slots
from selfcal.search.jobs import Counts, Job, Limits, Place, Sentence

_SEGMENTS = 0.3
"""Share of the cache budget for what waits; the rest is the slots'."""


@dataclass(slots=True, eq=False)
class Running:
    """A job, and what it still waits for."""

    order: int
    job: Job[Any]
    asks: int = 0
    found: list[list[Sentence]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Request:
    """An ask in work."""

    owner: Running
    place: Place
    uniforms: memoryview
    """[draws, tokens at most]"""
    found: list[Sentence | None]
    missing: int


@dataclass(slots=True, eq=False)
class Strand:
    """Draws that have been alike so far, with the state behind them."""

    request: Request
    draws: list[int]
    segment: Segment
    tokens: list[int]
    """Of this sentence, the last one not fed yet."""
    logprob: float
    marked: bool
    """Whether a token has a mark that can end a sentence."""
    own: int = 0
    """Columns in its slot that no segment holds."""
    slot: int = -1

    @property
    def length(self) -> int:
        """Columns it takes: tokens of prompt and response so far."""
        return self.segment.length + self.own


class Rows:
    """Strands in work and in wait, on one policy's device."""

    def __init__(self, limits: Limits, device: str, counts: Counts) -> None:
        """Nothing yet; `counts` counts what happens."""
        self.most = limits.rows
        """Slots, for now: fewer while responses are long, and for good once memory ran out."""
        self._ceiling = limits.rows
        self.active: list[Strand] = []
        """In work: strand i is row i of the batch."""
        self.waiting: list[tuple[int, int, Strand]] = []
        """The oldest sample's first."""
        self.slots: Slots | None = None
        self.layout: Layout | None = None
        self.ledger = Ledger()
        self._budget = limits.cache_bytes
        self._device, self._counts = device, counts
        self._numbers = itertools.count()

    def prompts(self, length: int) -> int:
        """How many prompts of this length may be read at once."""
        assert self.layout is not None
        fits = int(_SEGMENTS * self.budget() / (2 * length * self.layout.column_bytes))
        return max(1, min(self._ceiling // 8, fits))

    def budget(self) -> int:
        """Bytes for keys and values."""
        if self._budget is None:
            self._budget = free_bytes(self._device)
        return self._budget

    @property
    def crowded(self) -> bool:
        """Whether what waits has used up its part of the budget."""
        return self._budget is not None and self.ledger.held > _SEGMENTS * self._budget

    def queue(self, strand: Strand) -> None:
        """Let a strand wait for a slot."""
        heapq.heappush(self.waiting, (strand.request.owner.order, next(self._numbers), strand))

    def seal(self, strand: Strand) -> None:
        """Make a segment of what a strand has in its slot alone."""
        if not strand.own:
            return
        slots = self.slots
        assert slots is not None
        with spent("cache"):
            states, _ = attempt(lambda: slots.tail(strand.slot, strand.own))
            if states is None:  # no memory left: the host keeps it until it is loaded
                states = slots.tail(strand.slot, strand.own, "cpu")
        strand.segment = Segment(strand.segment, states, self.ledger)
        strand.own = 0

    def fill(self) -> None:
        """Give free slots to waiting strands, and close the gaps that are left."""
        if not (self.waiting or self.active):
            return
        with spent("cache"):
            joining = self._joining()
            longest = max(s.length for s in itertools.chain(self.active, joining))
            if self.slots is None or longest >= self.slots.columns or self._too_long(longest):
                for strand in joining:
                    self.queue(strand)
                self._remake(longest)
                return
            slots = self.slots
            # rows that left no longer count
            slots.begin = slots.end - max((s.length for s in self.active), default=0)
            slots.room(longest)
            self._seat(slots, joining)

    def _too_long(self, longest: int) -> bool:
        """Whether shorter slots would leave memory for more of them, and they are wanted."""
        assert self.slots is not None
        return (
            self.most < self._ceiling
            and len(self.waiting) > self.most
            and 2 * _columns(longest) < self.slots.columns
        )

    def _remake(self, longest: int) -> None:
        """Make slots with room for `longest`, and fill them."""
        self._empty()
        self.slots, said = attempt(lambda: self._make(longest))
        if self.slots is None:
            self.back_off(said)
        else:
            self.fill()  # others may join now, and be longer still

    def _joining(self) -> list[Strand]:
        count = min(len(self.waiting), self.most - len(self.active))
        return [heapq.heappop(self.waiting)[2] for _ in range(count)]

    def _make(self, longest: int) -> Slots:
        """Slots for responses a good deal longer than the longest one so far."""
        assert self.layout is not None
        columns = _columns(longest)
        fits = int((1 - _SEGMENTS) * self.budget() / (columns * self.layout.column_bytes))
        self.most = max(1, min(self._ceiling, fits))
        return Slots(self.layout, self.most, columns)

    def _seat(self, slots: Slots, joining: list[Strand]) -> None:
        taken = {s.slot for s in self.active}
        rows = len(self.active) + len(joining)
        free = iter([i for i in range(rows) if i not in taken])
        # one laid-out response serves all that go on from it
        laid = {id(s.segment): s.slot for s in self.active if not s.own}
        for strand in self.active:
            if strand.slot >= rows:
                target = next(free)
                slots.copy(strand.slot, target, strand.length)
                strand.slot = target
                if not strand.own:
                    laid[id(strand.segment)] = target
        for strand in joining:
            strand.slot = next(free)
            twin = laid.get(id(strand.segment))
            if twin is None:
                slots.load(strand.slot, strand.segment)
                laid[id(strand.segment)] = strand.slot
            else:
                slots.copy(twin, strand.slot, strand.length)
        self.active += joining
        self.active.sort(key=lambda s: s.slot)
        slots.rows = rows
        slots.begin = slots.end - max(s.length for s in self.active)

    def clear(self) -> None:
        """Forget all strands, and how long they were: the next ones find all as these did."""
        self.active, self.waiting = [], []
        self._empty()
        self.most = self._ceiling

    def _empty(self) -> None:
        """Send all strands in work back into the queue, and free the slots."""
        for strand in self.active:
            self.seal(strand)
            strand.slot = -1
            self.queue(strand)
        self.active = []
        if self.slots is not None:
            self.slots.free()
        self.slots = None
        release()

    def back_off(self, said: str) -> None:
        """Go on with half as many slots.

        Raises:
            ModelError: there was just one.
        """
        if self.most <= 1:
            raise too_large(said)
        self._counts.back_offs += 1
        note("the search ran out of memory: it goes on with fewer responses (search.batch_rows)")
        self._empty()
        self.most = self._ceiling = self.most // 2


def _columns(longest: int) -> int:
    """Columns with which slots for such a response are made, so that it may grow for a while."""
    return longest + max(32, longest // 4)


def too_large(said: str) -> ModelError:
    """The error where not even one response fits."""
    return ModelError(
        f"the search runs out of memory with a single response in work ({said}): give a smaller "
        "search.cache_gib and search.batch_rows, so that less is held in wait, a smaller model, "
        "policy.dtype=bfloat16, smaller images or a machine with more memory"
    )
