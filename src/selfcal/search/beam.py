"""Sentence-level beam search: samples in, distinct candidates and their search trees out.

The search branches per *sentence*: every live path samples several next sentences, equal ones are
merged, and only some of the paths go on (`keep`). So candidates differ in what they say and not in
how they say it. A search is a job of the `Engine`, which runs many of them at once.

Every random number comes from (seed, sample id), so neither batch size nor the order of samples
changes what is drawn, up to the rounding of the model's arithmetic, which may depend on the batch:
in float32 it moves about one draw in a million, in bfloat16 more.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from selfcal.policy import Policy
from selfcal.search.engine import Ask, Engine, Job, Limits, Place, Sentence
from selfcal.search.keep import KEEP
from selfcal.search.sampling import Sampling
from selfcal.types import Candidate, Drop, Sample, SearchNode


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """What a search may do; see `selfcal.recipe.Search`."""

    candidates: int
    branch: int
    keep: str
    max_sentences: int
    sentence_tokens: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found for one sample."""

    candidates: list[Candidate]
    """Distinct, at most as many as wanted."""
    nodes: list[SearchNode]
    """All nodes of the tree."""
    drops: list[Drop]
    """Named: `duplicate` (differs from another candidate in white space only), `empty`, and
    `no-candidate` for the sample."""


def search(
    policy: Policy,
    samples: Iterable[Sample],
    limits: SearchLimits,
    seed: str,
    may: Limits | None = None,
    engine: Engine | None = None,
) -> Iterator[Found]:
    """Search responses to samples, a stream of them if need be; results come in their order.

    Args:
        policy: who responds.
        samples: to what.
        limits: what the search may do.
        seed: what all random numbers are derived from, with the sample's id.
        may: rows and memory; changes speed, not results.
        engine: one to use, for example to read its counters; made from the others by default.

    Raises:
        ModelError: the model's cache cannot be gathered by row, or memory is too small for one row.
        ImageError: an image cannot be read.
    """
    engine = engine or Engine(policy, limits.sampling, limits.sentence_tokens, may)
    return engine.run(samples, lambda sample, place: _search(sample, place, limits, seed))


@dataclass(slots=True, eq=False)
class _Path:
    """A response on its way, and the node of the tree where it stands."""

    text: str
    logprob: float
    tokens: int
    place: Place | None
    """None where it does not go on: what it held of the cache is free."""
    record: SearchNode | None = None
    before: tuple[SearchNode, ...] = ()
    ended: bool = False
    draws: int = 1
    kept: bool = False
    candidate: int = -1

    @property
    def node(self) -> int:
        return self.record.node if self.record else -1


class _Tree:
    """The search of one sample."""

    def __init__(self, sample: Sample, root: Place) -> None:
        self.sample = sample
        self.live = [_Path("", 0.0, 0, root)]
        self.finished: list[_Path] = []
        self.grown: list[_Path] = []

    def grow(self, parent: _Path, sentence: Sentence) -> _Path:
        record = SearchNode(
            self.sample.id, len(self.grown), parent.node, sentence.text, sentence.logprob,
            sentence.tokens, draws=0, kept=False, candidate=-1,
        )  # fmt: skip
        before = (*parent.before, parent.record) if parent.record else ()
        path = _Path(
            parent.text + sentence.text, parent.logprob + sentence.logprob,
            parent.tokens + sentence.tokens, sentence.place, record, before, sentence.ended,
        )  # fmt: skip
        self.grown.append(path)
        return path

    def nodes(self) -> list[SearchNode]:
        return [
            replace(p.record, draws=p.draws, kept=p.kept, candidate=p.candidate)
            for p in self.grown
            if p.record
        ]


def _search(sample: Sample, root: Place, limits: SearchLimits, seed: str) -> Job[Found]:
    tree, rng = _Tree(sample, root), _rng(seed, sample.id)
    for level in range(limits.max_sentences):
        asks = _asks(tree, limits, rng)
        if not asks:
            break
        # nothing here holds on to sentences while the next level is decoded
        _select(tree, (yield asks), limits, rng, last=level == limits.max_sentences - 1)
    return _collect(tree, limits.candidates)


def _asks(tree: _Tree, limits: SearchLimits, rng: np.random.Generator) -> list[Ask]:
    """The draws of the next level: every live path gets its equal part of the branches."""
    if not tree.live:
        return []
    wanted = (limits.candidates - len(tree.finished)) * limits.branch
    share = math.ceil(wanted / len(tree.live))
    return [
        Ask(p.place, rng.random((share, limits.sentence_tokens)))
        for p in tree.live
        if p.place is not None
    ]


def _rng(*parts: object) -> np.random.Generator:
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _select(
    tree: _Tree,
    found: Sequence[Sequence[Sentence]],
    limits: SearchLimits,
    rng: np.random.Generator,
    last: bool,
) -> None:
    """Merge equal children, choose those that go on, and set the finished ones aside."""
    grown: dict[tuple[int, str], _Path] = {}
    for parent, sentences in zip(tree.live, found, strict=True):
        for sentence in sentences:
            key = (parent.node, " ".join(sentence.text.split()))
            if key in grown:
                grown[key].draws += 1
            else:
                grown[key] = tree.grow(parent, sentence)
        parent.place = None
    paths = list(grown.values())
    room = limits.candidates - len(tree.finished)
    temperature = limits.sampling.temperature or 1.0  # greedy: all draws are alike anyway
    kept = [paths[i] for i in KEEP[limits.keep](paths, room, temperature, rng)]
    for path in kept:
        path.kept = True
    for path in paths:
        if last or not path.kept:
            path.place = None
    tree.finished += [p for p in kept if p.ended or last]
    tree.live = [] if last else [p for p in kept if not p.ended]


def _collect(tree: _Tree, limit: int) -> Found:
    candidates: list[Candidate] = []
    drops: list[Drop] = []
    seen: set[str] = set()
    for path in tree.finished[:limit]:
        plain = " ".join(path.text.split())
        if plain in seen or not plain:
            drops.append(Drop(tree.sample.id, "candidates", "duplicate" if plain else "empty"))
            continue
        seen.add(plain)
        path.candidate = len(candidates)
        sentences = [*path.before, *([path.record] if path.record else [])]
        candidates.append(
            Candidate(
                sample_id=tree.sample.id,
                index=path.candidate,
                text=path.text.strip(),
                sentences=tuple(s.text for s in sentences),
                sentence_logprobs=tuple(s.logprob for s in sentences),
                token_counts=tuple(s.tokens for s in sentences),
                finished=path.ended,
            )
        )
    if not candidates:
        drops.append(Drop(tree.sample.id, "candidates", "no-candidate"))
    return Found(candidates, tree.nodes(), drops)
