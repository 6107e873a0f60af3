"""Continuous batching for branching responses: many samples in flight, no token computed twice.

What comes in are samples and, for each, a *job*: a generator that asks for continuations of places
in its response and gets sentences back. What goes out are the jobs' results, in the order of the
samples. In between:

- Every image is encoded and every prompt read once. A `Place` remembers where a response stands:
  its keys and values as `Segment`s, shared by all that goes on from there, and the next logits.
- Draws that begin alike are one `Strand`: it is decoded once, until its draws differ; then it
  forks. So a step computes distinct tokens only, though each draw has random numbers of its own.
- A strand leaves its slot when its sentences end, and a waiting one takes the slot in the next
  step. New samples are read when too few are waiting.
- The slots' number is set by a budget in bytes. If memory runs out all the same, the strands in
  work go back into the queue, with all they have decoded, and half as many slots go on.

The end of a sentence is seen in the text, one token too late: the token that begins the next
sentence is drawn but never fed to the model, and its logits are kept for the next draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from selfcal.clock import spent
from selfcal.kv import own_positions, unfit_layer, whole_cache
from selfcal.memory import attempt
from selfcal.policy import Policy
from selfcal.rationale import HEADINGS, RapFormat
from selfcal.search.cache import Layout, Segment, not_by_row
from selfcal.search.jobs import Ask, Counts, Job, Limits, Place, Sentence
from selfcal.search.prompts import Arrival, Prompts
from selfcal.search.rows import Request, Rows, Running, Strand, too_large
from selfcal.search.sampling import Sampling, draw
from selfcal.search.sentences import Sentences
from selfcal.types import Sample

__all__ = ["Ask", "Counts", "Engine", "Job", "Limits", "Place", "Sentence"]

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Engine:
    """Runs jobs on one policy."""

    def __init__(
        self,
        policy: Policy,
        sampling: Sampling,
        sentence_tokens: int,
        limits: Limits | None = None,
        whole: bool = False,
        form: RapFormat = HEADINGS,
    ) -> None:
        """Set it up; nothing is computed yet.

        Args:
            policy: the model.
            sampling: how tokens are drawn.
            sentence_tokens: tokens a sentence, at most.
            limits: what it may use.
            whole: a "sentence" is the whole response.
            form: of the responses, which says where sentences end.

        Raises:
            ModelError: the model's cache cannot be gathered by row.
        """
        if why := unfit_layer(policy.model.config):
            raise not_by_row(why)
        self.counts = Counts()
        self._policy, self._sampling = policy, sampling
        self._sentence_tokens, self._whole = sentence_tokens, whole
        self._limits = limits or Limits()
        self._sentences = Sentences(policy.tokenizer, form)
        self._stops = policy.stop_ids
        self._own_positions = own_positions(policy.model)
        self._rows = Rows(self._limits, policy.device, self.counts)
        self._fresh: list[Request] = []
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
        try:
            with Prompts(self._policy, samples, self._limits.prompt_tokens) as prompts:
                while not self._over(prompts):
                    with torch.inference_mode():
                        self._admit(prompts, start)
                        if self._rows.active or self._fresh:
                            self._step()
                        self._rows.fill()
                    while following in self._done:
                        yield self._done.pop(following)
                        following += 1
        finally:  # whoever takes no more results leaves work behind
            self._rows.clear()
            self._fresh.clear()
            self._done.clear()

    def _over(self, prompts: Prompts) -> bool:
        rows = self._rows
        return prompts.over and not (rows.active or rows.waiting or self._fresh)

    # --- prompts --------------------------------------------------------------------------

    def _admit(self, prompts: Prompts, start: Callable[[Sample, Place], Job[Any]]) -> None:
        """Read new prompts while too little is waiting for the slots."""
        while len(self._rows.waiting) + len(self._fresh) < max(1, self._rows.most // 8):
            busy = self._rows.active or self._rows.waiting or self._fresh
            if busy and self._rows.crowded:
                return
            with spent("tokenizer"):
                group = prompts.take()
            if group is None:
                return
            arrivals, batch = group
            places = self._read(prompts, arrivals, batch)
            if not prompts.sized:
                prompts.size(self._rows.prompts(places[0].segment.length))
            for arrival, place in zip(arrivals, places, strict=True):
                job = start(arrival.sample, place)
                self._advance(Running(arrival.order, job), None)

    def _read(
        self, prompts: Prompts, group: list[Arrival], batch: dict[str, torch.Tensor]
    ) -> list[Place]:
        """Read a group's prompts; by halves, and with fewer slots, if memory runs out."""
        places, said = attempt(lambda: self._prefill(batch))
        if places is not None:
            return places
        if len(group) == 1:
            if self._rows.slots is None:
                raise too_large(said)
            self._rows.back_off(said)
        else:
            self.counts.back_offs += 1
        half = (len(group) + 1) // 2
        parts = [group] if len(group) == 1 else [group[:half], group[half:]]
        return [
            place for part in parts for place in self._read(prompts, part, prompts.encode(part))
        ]

    def _prefill(self, batch: dict[str, torch.Tensor]) -> list[Place]:
        import torch

        batch = self._policy.place(batch)
        mask = batch["attention_mask"]
        after = mask.sum(dim=1)
        own = self._own_positions
        if own is None:
            # the padding on the left takes no position, neither here nor in what follows
            batch["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        with spent("model"):
            out = self._policy.model(
                **batch, past_key_values=whole_cache(), use_cache=True, logits_to_keep=1
            )
        widths = after.tolist()
        if own is not None:
            after = after + own.rope_deltas[:, 0].to(after)
        with spent("cache"):
            if self._rows.layout is None:
                self._rows.layout = Layout(out.past_key_values)
            states = list(self._rows.layout.rows(out.past_key_values, widths, mask.shape[1]))
        self.counts.images += len(widths)
        self.counts.prompt_tokens += sum(widths)
        self.counts.prompt_slots += mask.numel()
        logits = out.logits[:, -1].float()
        histories: list[tuple[int, ...]] = [()] * len(widths)
        if self._sampling.needs_history:
            histories = [
                tuple(torch.masked_select(ids, keep.bool()).tolist())
                for ids, keep in zip(batch["input_ids"], mask, strict=True)
            ]
        return [
            Place(Segment(None, own_states, self._rows.ledger), logits[row], position, history)
            for row, (own_states, position, history) in enumerate(
                zip(states, after.tolist(), histories, strict=True)
            )
        ]

    # --- jobs -----------------------------------------------------------------------------

    def _advance(self, running: Running, found: list[list[Sentence]] | None) -> None:
        """Give a job what it asked for, and take its next asks or its result."""
        while not running.asks:
            try:
                asks = next(running.job) if found is None else running.job.send(found)
            except StopIteration as end:
                self._done[running.order] = end.value
                return
            running.found = found = [[] for _ in asks]
            for i, ask in enumerate(asks):
                if draws := len(ask.uniforms):
                    uniforms = memoryview(np.ascontiguousarray(ask.uniforms).data)
                    request = Request(running, ask.place, uniforms, [None] * draws, draws)
                    running.found[i] = request.found  # type: ignore[assignment]
                    running.asks += 1
                    self._fresh.append(request)

    def _give(self, request: Request, draws: Sequence[int], sentence: Sentence) -> None:
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
        if self._rows.active:
            logits = self._forward()
            if logits is None:
                return
            parts.append(logits)
        fresh, self._fresh = self._fresh, []
        rows = list(self._rows.active)
        if fresh:
            parts.append(torch.stack([r.place.logits for r in fresh]))
            rows += [Strand(r, list(range(r.missing)), r.place.segment, [], 0.0, False)
                     for r in fresh]  # fmt: skip
        self._choose(rows, torch.cat(parts) if len(parts) > 1 else parts[0])

    def _forward(self) -> torch.Tensor | None:
        """Feed every active strand's last token; None if memory ran out and it was put off."""
        import torch

        slots, active = self._rows.slots, self._rows.active
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
            logits, said = attempt(lambda: self._logits(inputs))
        if logits is None:
            self._rows.back_off(said)
            return None
        slots.end += 1
        for strand in active:
            strand.own += 1
        self.counts.tokens += len(active)
        self.counts.steps += 1
        self.counts.capacity += self._rows.most
        return logits

    def _logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        assert self._rows.slots is not None
        cache = self._rows.slots.cache
        out = self._policy.model(**inputs, past_key_values=cache, use_cache=True)
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits

    def _choose(self, rows: list[Strand], logits: torch.Tensor) -> None:
        """Draw the next token of every row; end, continue and fork strands accordingly."""
        with spent("sampling"):
            uniforms: list[list[float]] = []
            for s in rows:
                own, at = s.request.uniforms, len(s.tokens)
                full = at == self._sentence_tokens  # nothing is drawn: the sentence is over
                uniforms.append([0.0] if full else [own[d, at] for d in s.draws])
            histories = None
            if self._sampling.needs_history:
                histories = [(*s.request.place.history, *s.tokens) for s in rows]
            tokens, gained = _draw(logits, uniforms, self._sampling, histories)
        closing: list[tuple[int, Strand, list[int]]] = []
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
        self._rows.active = [s for s in self._rows.active if s.draws]

    def _branch(
        self,
        i: int,
        strand: Strand,
        tokens: list[int],
        gained: list[float],
        closing: list[tuple[int, Strand, list[int]]],
    ) -> None:
        """Part a strand's draws by their token."""
        token = tokens[0]
        if tokens.count(token) == len(tokens) and not self._ends(strand, token):
            self._extend(strand, strand.draws, token, gained[0])  # nearly always
            if strand.slot < 0:
                self._rows.queue(strand)
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
                self._rows.seal(strand)
                ended = Strand(strand.request, closed, strand.segment, list(strand.tokens),
                                strand.logprob, True)  # fmt: skip
                closing[-1] = (i, ended, closed)
        if not going:
            strand.draws = []
            return
        for token in going[1:]:
            self._fork(strand, groups[token], token, gains[token])
        self._extend(strand, groups[going[0]], going[0], gains[going[0]])
        if strand.slot < 0:
            self._rows.queue(strand)

    def _ends(self, strand: Strand, token: int) -> bool:
        return token in self._stops or self._closes(strand, token)

    def _closes(self, strand: Strand, token: int) -> bool:
        if self._whole or not strand.tokens:
            return False
        if not (strand.marked or self._sentences.marks(token)):
            return False
        return self._sentences.closed_by(token, strand.request.place.last, strand.tokens)

    def _extend(self, strand: Strand, draws: list[int], token: int, gain: float) -> None:
        strand.draws = draws
        strand.tokens.append(token)
        strand.logprob += gain
        strand.marked = strand.marked or self._sentences.marks(token)

    def _fork(self, strand: Strand, draws: list[int], token: int, gain: float) -> None:
        """Let some draws of a strand go their own way."""
        self._rows.seal(strand)
        other = Strand(strand.request, draws, strand.segment, list(strand.tokens),
                        strand.logprob, strand.marked)  # fmt: skip
        self._extend(other, draws, token, gain)
        self._rows.queue(other)

    def _close(self, strand: Strand, draws: list[int], logits: torch.Tensor) -> None:
        """A sentence ended, and the response goes on."""
        self._rows.seal(strand)
        own, before = strand.tokens, strand.request.place
        history = (*before.history, *own) if self._sampling.needs_history else ()
        position = before.position + len(own)
        place = Place(strand.segment, logits, position, history, own[-1])
        with spent("tokenizer"):
            text = self._sentences.text(before.last, own)
        sentence = Sentence(place, text, strand.logprob, tuple(own), ended=False)
        self._give(strand.request, draws, sentence)

    def _finish(
        self, strand: Strand, draws: list[int], ids: tuple[int, ...], logprob: float
    ) -> None:
        """The model ended its response."""
        with spent("tokenizer"):
            text = self._sentences.text(strand.request.place.last, ids[:-1])
        self._give(strand.request, draws, Sentence(None, text, logprob, ids, ended=True))


def _draw(
    logits: torch.Tensor,
    uniforms: list[list[float]],
    sampling: Sampling,
    histories: list[tuple[int, ...]] | None,
) -> tuple[list[list[int]], list[list[float]]]:
    """As `draw`; by halves, if memory runs out."""
    found, said = attempt(lambda: draw(logits, uniforms, sampling, histories))
    if found is not None:
        return found
    if len(uniforms) == 1:
        raise too_large(said)
    half = len(uniforms) // 2
    parts = [
        _draw(logits[at], uniforms[at], sampling, histories and histories[at])
        for at in (slice(half), slice(half, None))
    ]
    return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
