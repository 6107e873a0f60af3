"""Continuous batching for branching responses: many samples in flight, no token computed twice.

What comes in are samples and, for each, a *job*: a generator that asks for continuations of places
in its response and gets sentences back. What goes out are the jobs' results, in the order of the
samples. In between:

- Every image is encoded and every prompt read once. A `Place` remembers where a response stands:
  its keys and values as `Segment`s, shared by all that goes on from there, and the next logits.
- Draws that begin alike are one `_Strand`: it is decoded once, until its draws differ; then it
  forks. So a step computes distinct tokens only, though each draw has random numbers of its own.
- A strand leaves its slot when its sentences end, and a waiting one takes the slot in the next
  step. New samples are read when too few are waiting.
- The slots' number is set by a budget in bytes. If memory runs out all the same, the strands in
  work go back into the queue, with all they have decoded, and half as many slots go on.

The end of a sentence is seen in the text, one token too late: the token that begins the next
sentence is drawn but never fed to the model, and its logits are kept for the next draw.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from selfcal.clock import spent
from selfcal.memory import attempt, free_bytes, release
from selfcal.policy import ModelError, Policy
from selfcal.search.cache import Layout, Ledger, Segment, Slots
from selfcal.search.prompts import Arrival, Prompts
from selfcal.search.sampling import Sampling, draw
from selfcal.search.sentences import Sentences
from selfcal.types import Sample

if TYPE_CHECKING:
    import torch

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


@dataclass(slots=True)
class Work:
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
    back_offs: int = 0
    """How often memory ran out."""

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
    """Read at once, at most (one prompt always is)."""


@dataclass(slots=True, eq=False)
class _Running:
    """A job, and what it still waits for."""

    order: int
    job: Job[Any]
    asks: int = 0
    found: list[list[Sentence]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Request:
    """An ask in work."""

    owner: _Running
    place: Place
    uniforms: memoryview
    """[draws, tokens at most]"""
    found: list[Sentence | None]
    missing: int


@dataclass(slots=True, eq=False)
class _Strand:
    """Draws that have been alike so far, with the state behind them."""

    request: _Request
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
        return self.segment.length + self.own


_SEGMENTS = 0.3
"""Share of the cache budget for what waits; the rest is the slots'."""


class Engine:
    """Runs jobs on one policy."""

    def __init__(
        self,
        policy: Policy,
        sampling: Sampling,
        sentence_tokens: int,
        limits: Limits | None = None,
        whole: bool = False,
    ) -> None:
        """Set it up; nothing is computed yet.

        Args:
            policy: the model.
            sampling: how tokens are drawn.
            sentence_tokens: tokens a sentence, at most.
            limits: what it may use.
            whole: a "sentence" is the whole response.
        """
        self.work = Work()
        self._policy, self._sampling = policy, sampling
        self._sentence_tokens, self._whole = sentence_tokens, whole
        self._limits = limits or Limits()
        self._sentences = Sentences(policy.tokenizer)
        self._stops = policy.stop_ids
        self._own_positions = _own_positions(policy.model)
        self._ledger = Ledger()
        self._rows = self._limits.rows
        self._budget = self._limits.cache_bytes
        self._layout: Layout | None = None
        self._slots: Slots | None = None
        self._active: list[_Strand] = []
        self._waiting: list[tuple[int, int, _Strand]] = []
        self._fresh: list[_Request] = []
        self._numbers = itertools.count()
        self._done: dict[int, Any] = {}

    def run(
        self, samples: Iterable[Sample], start: Callable[[Sample, Place], Job[T]]
    ) -> Iterator[T]:
        """Run a job for each sample; results come in the samples' order.

        Samples are taken as they are needed, so they may be a stream.

        Raises:
            ModelError: the model's cache cannot be gathered by row, or a single row does not fit
                into memory.
            ImageError: an image cannot be read.
        """
        import torch

        following = 0
        group = max(1, self._rows // 8)
        with (
            Prompts(self._policy, samples, group, self._limits.prompt_tokens) as prompts,
            torch.inference_mode(),
        ):
            while True:
                self._admit(prompts, start, group)
                if self._active or self._fresh:
                    self._step()
                self._fill()
                while following in self._done:
                    yield self._done.pop(following)
                    following += 1
                if prompts.over and not (self._active or self._fresh or self._waiting):
                    return

    # --- prompts --------------------------------------------------------------------------

    def _admit(
        self, prompts: Prompts, start: Callable[[Sample, Place], Job[Any]], enough: int
    ) -> None:
        """Read new prompts while too little is waiting for the slots."""
        while len(self._waiting) + len(self._fresh) < enough and not self._full():
            with spent("tokenizer"):
                group = prompts.take()
            if group is None:
                return
            arrivals, batch = group
            for arrival, place in zip(arrivals, self._read(prompts, arrivals, batch), strict=True):
                job = start(arrival.sample, place)
                self._advance(_Running(arrival.order, job), None)

    def _full(self) -> bool:
        """Whether what waits has used up its part of the budget; never without work in hand."""
        busy = bool(self._active or self._waiting or self._fresh)
        return busy and bool(self._budget) and self._ledger.held > _SEGMENTS * (self._budget or 0)

    def _read(
        self, prompts: Prompts, group: list[Arrival], batch: dict[str, torch.Tensor]
    ) -> list[Place]:
        """Read a group's prompts; by halves, and with fewer slots, if memory runs out."""
        places, said = attempt(lambda: self._prefill(batch))
        if places is not None:
            return places
        self.work.back_offs += 1
        if len(group) == 1:
            if self._slots is None:
                raise _too_large(said)
            self._back_off(said)
        half = (len(group) + 1) // 2
        parts = [group] if len(group) == 1 else [group[:half], group[half:]]
        return [
            place for part in parts for place in self._read(prompts, part, prompts.encode(part))
        ]

    def _prefill(self, batch: dict[str, torch.Tensor]) -> list[Place]:
        import torch
        from transformers import DynamicCache

        batch = self._policy.place(batch)
        mask = batch["attention_mask"]
        after = mask.sum(dim=1)
        own = self._own_positions
        if own is None:
            # the padding on the left takes no position, neither here nor in what follows
            batch["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache()  # without a config no layer drops what is out of its window
        with spent("model"):
            out = self._policy.model(
                **batch, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        widths = after.tolist()
        if own is not None:
            after = after + own.rope_deltas[:, 0].to(after)
        with spent("cache"):
            if self._layout is None:
                self._layout = Layout(out.past_key_values)
            states = list(self._layout.rows(out.past_key_values, widths))
        self.work.images += len(widths)
        self.work.prompt_tokens += sum(widths)
        self.work.prompt_slots += mask.numel()
        logits = out.logits[:, -1].float()
        histories: list[tuple[int, ...]] = [()] * len(widths)
        if self._sampling.needs_history:
            histories = [
                tuple(torch.masked_select(ids, keep.bool()).tolist())
                for ids, keep in zip(batch["input_ids"], mask, strict=True)
            ]
        return [
            Place(Segment(None, own_states, self._ledger), logits[row], position, history)
            for row, (own_states, position, history) in enumerate(
                zip(states, after.tolist(), histories, strict=True)
            )
        ]

    # --- jobs -----------------------------------------------------------------------------

    def _advance(self, running: _Running, found: list[list[Sentence]] | None) -> None:
        """Give a job what it asked for, and take its next asks or its result."""
        try:
            asks = next(running.job) if found is None else running.job.send(found)
        except StopIteration as end:
            self._done[running.order] = end.value
            return
        running.asks = len(asks)
        running.found = [[] for _ in asks]
        for i, ask in enumerate(asks):
            draws = len(ask.uniforms)
            uniforms = memoryview(np.ascontiguousarray(ask.uniforms).data)
            request = _Request(running, ask.place, uniforms, [None] * draws, draws)
            running.found[i] = request.found  # type: ignore[assignment]
            self._fresh.append(request)

    def _give(self, request: _Request, draws: Sequence[int], sentence: Sentence) -> None:
        for i in draws:
            request.found[i] = sentence
        request.missing -= len(draws)
        if not request.missing:
            owner = request.owner
            owner.asks -= 1
            if not owner.asks:
                self._advance(owner, owner.found)

    # --- a step ---------------------------------------------------------------------------

    def _step(self) -> None:
        """One token for every strand in work, and the first one for every new request."""
        import torch

        parts: list[Any] = []
        if self._active:
            logits = self._forward()
            if logits is None:
                return
            parts.append(logits)
        fresh, self._fresh = self._fresh, []
        rows = list(self._active)
        if fresh:
            parts.append(torch.stack([r.place.logits for r in fresh]))
            rows += [_Strand(r, list(range(r.missing)), r.place.segment, [], 0.0, False)
                     for r in fresh]  # fmt: skip
        self._choose(rows, torch.cat(parts) if len(parts) > 1 else parts[0])

    def _forward(self) -> torch.Tensor | None:
        """Feed every active strand's last token; None if memory ran out and it was put off."""
        import torch

        slots, active = self._slots, self._active
        assert slots is not None
        device = self._policy.device
        starts = torch.tensor([s.length for s in active], device=device)
        columns = torch.arange(slots.begin - slots.end, 1, device=device)
        inputs = {
            "input_ids": torch.tensor([[s.tokens[-1]] for s in active], device=device),
            "attention_mask": (columns >= -starts[:, None]).long(),
            "position_ids": torch.tensor(
                [[s.request.place.position + len(s.tokens) - 1] for s in active], device=device
            ),
        }
        with spent("model"):
            out, said = attempt(
                lambda: self._policy.model(**inputs, past_key_values=slots.cache, use_cache=True)
            )
        if out is None:
            self.work.back_offs += 1
            self._back_off(said)
            return None
        slots.end += 1
        for strand in active:
            strand.own += 1
        self.work.tokens += len(active)
        self.work.steps += 1
        self.work.capacity += self._rows
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits

    def _choose(self, rows: list[_Strand], logits: torch.Tensor) -> None:
        """Draw the next token of every row; end, continue and fork strands accordingly."""
        with spent("sampling"):
            uniforms = []
            for s in rows:
                own, at = s.request.uniforms, len(s.tokens)
                full = at == self._sentence_tokens  # nothing is drawn: the sentence is over
                uniforms.append([0.0] if full else [own[d, at] for d in s.draws])
            histories = None
            if self._sampling.needs_history:
                histories = [(*s.request.place.history, *s.tokens) for s in rows]
            tokens, gained = draw(logits, uniforms, self._sampling, histories)
        closing: list[tuple[int, _Strand, list[int]]] = []
        for i, strand in enumerate(rows):
            if len(strand.tokens) == self._sentence_tokens:
                closing.append((i, strand, strand.draws))
                strand.draws = []
            else:
                self._branch(i, strand, tokens[i], gained[i], closing)
        if closing:
            kept = logits[[i for i, _, _ in closing]]
            for row, (_, strand, draws) in enumerate(closing):
                self._close(strand, draws, kept[row])
        self._active = [s for s in self._active if s.draws]

    def _branch(
        self,
        i: int,
        strand: _Strand,
        tokens: list[int],
        gained: list[float],
        closing: list[tuple[int, _Strand, list[int]]],
    ) -> None:
        """Part a strand's draws by their token."""
        token = tokens[0]
        if tokens.count(token) == len(tokens) and not self._ends(strand, token):
            self._extend(strand, strand.draws, token, gained[0])  # nearly always
            if strand.slot < 0:
                self._queue(strand)
            return
        groups: dict[int, list[int]] = {}
        gains: dict[int, float] = {}
        for d, token, gain in zip(strand.draws, tokens, gained, strict=False):
            groups.setdefault(token, []).append(d)
            gains[token] = gain
        closed: list[int] = []
        going: list[int] = []
        for token, draws in groups.items():
            if token in self._stops:
                ids = (*strand.tokens, token)
                self._finish(strand, draws, ids, strand.logprob + gains[token])
            elif self._closes(strand, token):
                closed += draws
            else:
                going.append(token)
        if closed:
            closing.append((i, strand, closed))
            if going:
                # the place where the sentence ends must not move on with the strand
                self._seal(strand)
                ended = _Strand(strand.request, closed, strand.segment, list(strand.tokens),
                                strand.logprob, True)  # fmt: skip
                closing[-1] = (i, ended, closed)
        if not going:
            strand.draws = []
            return
        for token in going[1:]:
            self._fork(strand, groups[token], token, gains[token])
        self._extend(strand, groups[going[0]], going[0], gains[going[0]])
        if strand.slot < 0:
            self._queue(strand)

    def _ends(self, strand: _Strand, token: int) -> bool:
        return token in self._stops or self._closes(strand, token)

    def _closes(self, strand: _Strand, token: int) -> bool:
        if self._whole or not strand.tokens:
            return False
        if not (strand.marked or self._sentences.marks(token)):
            return False
        return self._sentences.closed_by(token, strand.request.place.last, strand.tokens)

    def _extend(self, strand: _Strand, draws: list[int], token: int, gain: float) -> None:
        strand.draws = draws
        strand.tokens.append(token)
        strand.logprob += gain
        strand.marked = strand.marked or self._sentences.marks(token)

    def _fork(self, strand: _Strand, draws: list[int], token: int, gain: float) -> None:
        """Let some draws of a strand go their own way."""
        self._seal(strand)
        other = _Strand(strand.request, draws, strand.segment, list(strand.tokens),
                        strand.logprob, strand.marked)  # fmt: skip
        self._extend(other, draws, token, gain)
        self._queue(other)

    def _queue(self, strand: _Strand) -> None:
        heapq.heappush(self._waiting, (strand.request.owner.order, next(self._numbers), strand))

    def _seal(self, strand: _Strand) -> None:
        """Make a segment of what a strand has in its slot alone."""
        if strand.own:
            assert self._slots is not None
            with spent("cache"):
                states = self._slots.tail(strand.slot, strand.own)
            strand.segment = Segment(strand.segment, states, self._ledger)
            strand.own = 0

    def _close(self, strand: _Strand, draws: list[int], logits: torch.Tensor) -> None:
        """A sentence ended, and the response goes on."""
        self._seal(strand)
        own, before = strand.tokens, strand.request.place
        history = (*before.history, *own) if self._sampling.needs_history else ()
        position = before.position + len(own)
        place = Place(strand.segment, logits, position, history, own[-1])
        with spent("tokenizer"):
            text = self._sentences.text(before.last, own)
        sentence = Sentence(place, text, strand.logprob, tuple(own), ended=False)
        self._give(strand.request, draws, sentence)

    def _finish(
        self, strand: _Strand, draws: list[int], ids: tuple[int, ...], logprob: float
    ) -> None:
        """The model ended its response."""
        with spent("tokenizer"):
            text = self._sentences.text(strand.request.place.last, ids[:-1])
        self._give(strand.request, draws, Sentence(None, text, logprob, ids, ended=True))

    # --- slots ----------------------------------------------------------------------------

    def _fill(self) -> None:
        """Give free slots to waiting strands, and close the gaps that are left."""
        if not (self._waiting or self._active):
            return
        with spent("cache"):
            joining = self._joining()
            longest = max(s.length for s in itertools.chain(self._active, joining))
            if self._slots is None or longest >= self._slots.columns:
                for strand in joining:
                    self._queue(strand)
                self._empty()
                self._slots, said = attempt(lambda: self._make(longest))
                if self._slots is None:
                    self.work.back_offs += 1
                    self._back_off(said)
                    return
                joining = self._joining()
            slots = self._slots
            # rows that left no longer count
            slots.begin = slots.end - max((s.length for s in self._active), default=0)
            slots.room(longest)
            self._seat(slots, joining)

    def _joining(self) -> list[_Strand]:
        count = min(len(self._waiting), self._rows - len(self._active))
        return [heapq.heappop(self._waiting)[2] for _ in range(count)]

    def _make(self, longest: int) -> Slots:
        """Slots for responses a good deal longer than the longest one so far."""
        assert self._layout is not None
        columns = longest + max(32, longest // 4)
        if self._budget is None:
            self._budget = free_bytes(self._policy.device)
        fits = int((1 - _SEGMENTS) * self._budget / (columns * self._layout.column_bytes))
        self._rows = max(1, min(self._rows, fits))
        return Slots(self._layout, self._rows, columns)

    def _seat(self, slots: Slots, joining: list[_Strand]) -> None:
        taken = {s.slot for s in self._active}
        rows = len(self._active) + len(joining)
        free = iter([i for i in range(rows) if i not in taken])
        # one laid-out response serves all that go on from it
        laid = {id(s.segment): s.slot for s in self._active if not s.own}
        for strand in self._active:
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
        self._active += joining
        self._active.sort(key=lambda s: s.slot)
        slots.rows = rows
        slots.begin = slots.end - max(s.length for s in self._active)

    def _empty(self) -> None:
        """Send all strands in work back into the queue, and free the slots."""
        for strand in self._active:
            self._seal(strand)
            strand.slot = -1
            self._queue(strand)
        self._active = []
        if self._slots is not None:
            self._slots.free()
        self._slots = None
        release()

    def _back_off(self, said: str) -> None:
        """Go on with half as many slots.

        Raises:
            ModelError: there was just one.
        """
        if self._rows <= 1:
            raise _too_large(said)
        self._empty()
        self._rows = max(1, self._rows // 2)


def _too_large(said: str) -> ModelError:
    return ModelError(
        f"the search runs out of memory with a single response in work ({said}): give a smaller "
        "model, policy.dtype=bfloat16, smaller images or a machine with more memory"
    )


def _own_positions(model: Any) -> Any:
    """The part of a model that counts positions itself, as Qwen-VL does, or None.

    There an image takes fewer positions than tokens; `rope_deltas` is each prompt's difference.
    """
    inner = getattr(model, "model", None)
    return inner if hasattr(inner, "get_rope_index") else None
