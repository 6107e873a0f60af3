"""The search's engine on a vLLM-compatible server: the same jobs, the model elsewhere.

What comes in are samples and jobs, what goes out are their results, as from `Engine`. A `Place` of
a job is here a `Spot`: the conversation and the text so far, which the server continues. Each ask
becomes one request for as many draws as it has, and the server stops a draw where a sentence may
end. Whether it does end there is decided on the text, by the same rule as in the local engine; a
draw that stopped at "e.g. " is taken up again. What a draw said past its sentence's end is cut, and
neither its tokens nor their log-probabilities count.

A request's seed follows from the ask's random numbers, so a rerun asks the same questions, whatever
is on its way beside them.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from selfcal.clock import spent
from selfcal.image import data_url
from selfcal.policy import user_turn
from selfcal.rationale import HEADINGS, RapFormat
from selfcal.search.jobs import Ask, Job, Place, Sentence
from selfcal.search.probe import BASICS, CONTINUING, Served
from selfcal.search.sampling import Sampling
from selfcal.search.sentences import Sentences
from selfcal.search.server import Connection, Draw, Reply, ServerError
from selfcal.types import Sample

T = TypeVar("T")
Numbers = np.ndarray[Any, np.dtype[np.float64]]
Message = dict[str, Any]

STOPS = (". ", "? ", "。", "\n")
"""Where a draw is looked at. vLLM takes four at most (VLLM_MAX_STOP_STRINGS); other ends are seen a
little later, and what was said in between is cut."""
_BEGINNING = "Aa"
"""What might begin the next sentence."""
_AHEAD = 4
"""So many times as many samples as requests may be begun before the first one is done."""


@dataclass(frozen=True, slots=True, eq=False)
class Spot:
    """Where a response on a server stands."""

    sample: str
    turn: Message
    """The user's turn, with the images."""
    text: str = ""
    last: int | None = None
    """The token before it; None where the response begins."""


@dataclass(slots=True)
class ServedCounts:
    """What was asked of the server."""

    requests: int = 0
    continued: int = 0
    """Requests that took up draws which had stopped before their sentence's end."""
    prompt_tokens: int = 0
    """As the server counts them: of every request, with what its cache already had."""
    tokens: int = 0
    """Of all draws, those cut included."""


@dataclass(slots=True, eq=False)
class _Running:
    """A sample in work."""

    order: int
    job: Job[Any]
    asks: int = 0
    """Asks of which draws are missing."""
    found: list[list[Sentence]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Request:
    """An ask on its way."""

    owner: _Running
    spot: Spot
    uniforms: Numbers
    found: list[Sentence | None]
    missing: int


@dataclass(frozen=True, slots=True, eq=False)
class _Strand:
    """Draws of an ask that said the same so far."""

    request: _Request
    draws: tuple[int, ...]
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    tokens: int | None = None
    """How many more to ask for; None: up to the longest sentence."""


class ServedEngine:
    """Runs jobs on one model behind a server."""

    def __init__(
        self,
        server: Connection,
        served: Served,
        sampling: Sampling,
        sentence_tokens: int,
        whole: bool = False,
        form: RapFormat = HEADINGS,
    ) -> None:
        """Set it up; nothing is sent yet.

        Args:
            server: where the model is.
            served: the model, by `check_server`.
            sampling: how tokens are drawn.
            sentence_tokens: tokens a sentence, at most.
            whole: a "sentence" is the whole response.
            form: of the responses, which says where sentences end.
        """
        self.counts = ServedCounts()
        self._server, self._served, self._sampling = server, served, sampling
        self._sentence_tokens, self._whole = sentence_tokens, whole
        self._sentences = Sentences(served.processor.tokenizer, form)
        # nothing could be continued that ends in a new line, where the template drops it
        self._stops = [s for s in STOPS if s.strip() or not served.trims]
        self._waiting: list[tuple[int, int, _Strand]] = []
        self._sent: dict[Future[Reply], _Strand] = {}
        self._queued = 0
        self._done: dict[int, Any] = {}

    def run(
        self, samples: Iterable[Sample], start: Callable[[Sample, Place], Job[T]]
    ) -> Iterator[T]:
        """Run a job for each sample; results come in the samples' order.

        Samples are taken as they are needed, so they may be a stream.

        Raises:
            ServerError: the server gave no usable reply, after all tries.
            ImageError: an image cannot be read.
        """
        feed = enumerate(samples)
        following, begun, more = 0, 0, True
        try:
            while True:
                while more and self._idle(begun - following):
                    at = next(feed, None)
                    if at is None:
                        more = False
                    else:
                        begun = at[0] + 1
                        self._begin(*at, start)
                self._send()
                while following in self._done:
                    yield self._done.pop(following)
                    following += 1
                if self._sent:
                    self._receive()
                elif not more and following == begun:
                    return
        finally:  # whoever takes no more results leaves work behind
            for future in self._sent:
                future.cancel()
            self._sent.clear()
            self._waiting.clear()
            self._done.clear()

    def _idle(self, open_samples: int) -> bool:
        """Whether the server could do more than is asked of it."""
        most = self._server.concurrency
        return len(self._waiting) + len(self._sent) < most and open_samples < _AHEAD * most

    # --- jobs -----------------------------------------------------------------------------

    def _begin(
        self, order: int, sample: Sample, start: Callable[[Sample, Place], Job[Any]]
    ) -> None:
        with spent("disk"):
            spot = Spot(sample.id, _turn(sample, self._served.processor))
        # a place means something only to the engine that gave it
        self._advance(_Running(order, start(sample, cast(Place, spot))), None)

    def _advance(self, running: _Running, found: list[list[Sentence]] | None) -> None:
        """Give a job what it asked for, and take its next asks or its result."""
        while not running.asks:
            try:
                asks = next(running.job) if found is None else running.job.send(found)
            except StopIteration as end:
                self._done[running.order] = end.value
                return
            running.found = found = [[] for _ in asks]
            for i, ask in enumerate(asks):
                if len(ask.uniforms):
                    running.found[i] = self._ask(running, ask)
                    running.asks += 1

    def _ask(self, running: _Running, ask: Ask) -> list[Sentence]:
        draws = len(ask.uniforms)
        spot = cast(Spot, ask.place)
        request = _Request(running, spot, ask.uniforms, [None] * draws, draws)
        self._queue(_Strand(request, tuple(range(draws))))
        return cast(list[Sentence], request.found)

    def _give(self, request: _Request, draws: Sequence[int], sentence: Sentence) -> None:
        for i in draws:
            request.found[i] = sentence
        request.missing -= len(draws)
        if not request.missing:
            owner = request.owner
            owner.asks -= 1
            if not owner.asks:
                self._advance(owner, owner.found)

    # --- requests -------------------------------------------------------------------------

    def _queue(self, strand: _Strand) -> None:
        # the oldest sample first: what others found waits for it
        heapq.heappush(self._waiting, (strand.request.owner.order, self._queued, strand))
        self._queued += 1

    def _send(self) -> None:
        while self._waiting and len(self._sent) < self._server.concurrency:
            *_, strand = heapq.heappop(self._waiting)
            self._sent[self._server.ask(self._body(strand))] = strand
            self.counts.requests += 1
            self.counts.continued += bool(strand.ids)

    def _body(self, strand: _Strand) -> dict[str, Any]:
        s, spot = self._sampling, strand.request.spot
        text = spot.text + self._sentences.text(spot.last, strand.ids)
        messages, more = [spot.turn], {}
        if text:
            messages.append({"role": "assistant", "content": self._served.continued(text)})
            more = CONTINUING
        uniforms = strand.request.uniforms[list(strand.draws)]
        greedy = s.temperature == 0
        return {
            "model": self._served.name,
            "messages": messages,
            "max_tokens": self._most(strand),
            **BASICS,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "top_k": s.top_k or -1,
            "repetition_penalty": s.repetition_penalty,
            **({} if greedy else {"n": len(strand.draws), "seed": seed(uniforms, len(strand.ids))}),
            **({} if self._whole else {"stop": self._stops, "include_stop_str_in_output": True}),
            **more,
        }

    def _most(self, strand: _Strand) -> int:
        return min(self._sentence_tokens - len(strand.ids), strand.tokens or self._sentence_tokens)

    def _receive(self) -> None:
        """Wait for replies, and give jobs what they said."""
        with spent("model"):
            ready, _ = wait(self._sent, return_when=FIRST_COMPLETED)
        for future in sorted(ready, key=lambda f: self._sent[f].request.owner.order):
            strand = self._sent.pop(future)
            spot = strand.request.spot
            try:
                reply = future.result()
                groups = self._grouped(strand, reply)
            except ServerError as error:
                raise ServerError(f"sample {spot.sample}: {error}", error.status) from error
            self.counts.prompt_tokens += reply.prompt_tokens or 0
            for draw, draws in groups:
                self._take(strand, draw, draws)

    def _grouped(self, strand: _Strand, reply: Reply) -> list[tuple[Draw, tuple[int, ...]]]:
        """The reply's draws, alike ones once, each with the draws of the ask that it is."""
        greedy = self._sampling.temperature == 0
        if len(reply.draws) != (wanted := 1 if greedy else len(strand.draws)):
            raise ServerError(f"asked for {wanted} draws, got {len(reply.draws)}; {_FAULT}")
        groups: dict[object, tuple[Draw, tuple[int, ...]]] = {}
        whose = [strand.draws] if greedy else [(i,) for i in strand.draws]
        for draw, own in zip(reply.draws, whose, strict=True):
            if not draw.ids or draw.finish not in ("stop", "length"):
                how = f"a draw with {len(draw.ids or ())} tokens that ended by {draw.finish!r}"
                raise ServerError(f"{how}; {_FAULT}")
            if draw.finish == "length" and len(draw.ids) < (most := self._most(strand)):
                raise ServerError(
                    f"a draw was cut after {len(draw.ids)} of {most} tokens: the prompt leaves no "
                    "more room on the server; start it with a higher --max-model-len"
                )
            self.counts.tokens += len(draw.ids)
            key = (draw.ids, draw.ended)
            first, before = groups.get(key, (draw, ()))
            groups[key] = (first, before + own)
        return list(groups.values())

    # --- sentences ------------------------------------------------------------------------

    def _take(self, strand: _Strand, draw: Draw, draws: tuple[int, ...]) -> None:
        """What some draws said: their sentence, or a part of it that must go on."""
        request, last = strand.request, strand.request.spot.last
        ids = strand.ids + (draw.ids or ())
        logprobs = strand.logprobs + draw.logprobs
        most = self._sentence_tokens
        end = None if self._whole else self._end(last, ids[: len(ids) - draw.ended])
        if end is not None:
            self._close(request, draws, ids[:end], logprobs[:end])
        elif draw.ended:
            with spent("tokenizer"):
                text = self._sentences.text(last, ids[:-1])
            self._give(request, draws, Sentence(None, text, sum(logprobs), ids, ended=True))
        elif len(ids) >= most:
            self._close(request, draws, ids[:most], logprobs[:most])
        else:
            over = self._could_end(last, ids)
            if over and self._served.trims:
                self._close(request, draws, ids, logprobs)
                return
            if self._served.trims:
                ids = self._trimmed(last, ids)
                logprobs = logprobs[: len(ids)]
                if len(ids) <= len(strand.ids):  # it would say the same again, without end
                    self._close(request, draws, ids, logprobs)
                    return
            self._queue(_Strand(request, draws, ids, logprobs, 1 if over else None))

    def _end(self, last: int | None, ids: tuple[int, ...]) -> int | None:
        """How many tokens the first sentence has; None if it is not known to be over."""
        marked = False
        for i, token in enumerate(ids):
            marked = marked or self._sentences.marks(token)
            if i and marked and self._sentences.closed_by(token, last, ids[:i]):
                return i
        return None

    def _could_end(self, last: int | None, ids: tuple[int, ...]) -> bool:
        """Whether the sentence would be over if another one began now."""
        return self._sentences.over(self._sentences.text(last, ids) + _BEGINNING)

    def _close(
        self,
        request: _Request,
        draws: tuple[int, ...],
        ids: tuple[int, ...],
        logprobs: tuple[float, ...],
    ) -> None:
        """A sentence ended, and the response goes on."""
        spot = request.spot
        if self._served.trims:
            ids = self._trimmed(spot.last, ids)
        with spent("tokenizer"):
            text = self._sentences.text(spot.last, ids)
        if self._served.trims:
            text = text.rstrip()
        after = Spot(spot.sample, spot.turn, spot.text + text, ids[-1] if ids else spot.last)
        sentence = Sentence(cast(Place, after), text, sum(logprobs[: len(ids)]), ids, ended=False)
        self._give(request, draws, sentence)

    def _trimmed(self, last: int | None, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens without those at the end that are white space.

        Where a template drops white space at the end of a turn, the server draws it anew.
        """
        text = self._sentences.text(last, ids).rstrip()
        while ids and self._sentences.text(last, ids[:-1]).rstrip() == text:
            ids = ids[:-1]
        return ids


_FAULT = "this is a fault of the server: run the same command again, or start it anew"


def seed(uniforms: Numbers, tokens: int) -> int:
    """The seed of a request that stands for random numbers, after so many tokens of them."""
    digest = hashlib.sha256(np.ascontiguousarray(uniforms[:, tokens:]).tobytes()).digest()
    return int.from_bytes(digest[:6], "big")  # servers add to it, so it must not be too large


def _turn(sample: Sample, processor: Any) -> Message:
    """The user's turn as a server takes it: where a picture stands, the picture itself."""
    (turn,) = user_turn(sample, processor)
    images = iter(sample.images)
    return {
        "role": "user",
        "content": [
            _picture(next(images)) if part["type"] == "image" else part for part in turn["content"]
        ],
    }


def _picture(path: str) -> dict[str, Any]:
    url = data_url(Path(path))
    # the server may take a picture that it has seen under this name from its cache
    name = hashlib.sha256(url.encode()).hexdigest()[:32]
    return {"type": "image_url", "image_url": {"url": url}, "uuid": name}
