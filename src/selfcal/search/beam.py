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
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from selfcal.policy import Policy
from selfcal.rationale import HEADINGS, RapFormat
from selfcal.search.engine import Ask, Engine, Job, Limits, Place, Sentence
from selfcal.search.filters import NO_FILTERS, Filters
from selfcal.search.jobs import Runs
from selfcal.search.keep import KEEP
from selfcal.search.sampling import Sampling
from selfcal.types import Candidate, Drop, Sample, SearchNode, SentenceReward


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """What a search may do; see `selfcal.recipe.Search`."""

    candidates: int
    branch: int
    keep: str
    max_sentences: int
    sentence_tokens: int
    sampling: Sampling
    filters: Filters = NO_FILTERS
    form: RapFormat = HEADINGS
    """Of the responses, which says where sentences end."""


class Guide(Protocol):
    """Says what sentences are worth while the search goes on (CSR)."""

    def rate(self, sample: Sample, siblings: Sequence[tuple[str, float]]) -> list[SentenceReward]:
        """Rate the sentences that go on from one path, each given as text and log-probability."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found for one sample."""

    candidates: list[Candidate]
    """Distinct, at most as many as wanted."""
    nodes: list[SearchNode]
    """All nodes of the tree."""
    drops: list[Drop]
    """Named: `duplicate` (differs from another candidate in white space only), `empty`, those of
    `Filters`, and `no-candidate` for the sample."""


def search(
    policy: Policy | None,
    samples: Iterable[Sample],
    limits: SearchLimits,
    seed: str,
    may: Limits | None = None,
    engine: Runs | None = None,
    guide: Guide | None = None,
) -> Iterator[Found]:
    """Search responses to samples, a stream of them if need be; results come in their order.

    Args:
        policy: who responds; None where an engine is given.
        samples: to what.
        limits: what the search may do.
        seed: what all random numbers are derived from, with the sample's id.
        may: rows and memory; changes speed, not results.
        engine: one to use, for example to read its counters; made from the others by default.
        guide: rewards sentences; paths then count by the sum of their sentences' rewards.

    Raises:
        ModelError: the model's cache cannot be gathered by row, or memory is too small for one row.
        ImageError: an image cannot be read.
    """
    if engine is None:
        assert policy is not None, "search needs a policy or an engine"
        engine = Engine(policy, limits.sampling, limits.sentence_tokens, may, form=limits.form)
    return engine.run(samples, lambda sample, place: _search(sample, place, limits, seed, guide))


@dataclass(frozen=True, slots=True)
class _Said:
    """A sentence without its place: what a path may hold on to."""

    text: str
    logprob: float
    tokens: int
    ended: bool


@dataclass(slots=True, eq=False)
class _Path:
    """A response on its way: its last sentence, and the path before it."""

    node: int
    parent: _Path | None
    said: _Said | None
    """The sentence; None at the root."""
    text: str
    logprob: float
    tokens: int
    place: Place | None
    """None where it does not go on: what it held of the cache is free."""
    draws: int = 1
    kept: bool = False
    candidate: int = -1
    worth: SentenceReward | None = None
    reward: float = 0.0
    """Sum over its sentences."""

    @property
    def ended(self) -> bool:
        return self.said is not None and self.said.ended

    @property
    def score(self) -> float:
        return self.logprob / max(1, self.tokens) if self.worth is None else self.reward

    def chain(self) -> list[_Path]:
        """The paths from the first sentence to this one."""
        before = self.parent.chain() if self.parent else []
        return [*before, self] if self.said else []


class _Tree:
    """The search of one sample."""

    def __init__(self, sample: Sample, root: Place) -> None:
        self.sample = sample
        self.live = [_Path(-1, None, None, "", 0.0, 0, root)]
        self.finished: list[_Path] = []
        self.grown: list[_Path] = []
        self.drops: list[Drop] = []

    def grow(self, parent: _Path, sentence: Sentence) -> _Path:
        said = _Said(sentence.text, sentence.logprob, sentence.tokens, sentence.ended)
        path = _Path(
            len(self.grown), parent, said, parent.text + said.text, parent.logprob + said.logprob,
            parent.tokens + said.tokens, sentence.place,
        )  # fmt: skip
        self.grown.append(path)
        return path

    def nodes(self) -> list[SearchNode]:
        return [
            SearchNode(
                self.sample.id, p.node, p.parent.node, p.said.text, p.said.logprob, p.said.tokens,
                p.draws, p.kept, p.candidate, p.worth.reward if p.worth else 0.0,
            )
            for p in self.grown
            if p.parent and p.said
        ]  # fmt: skip


def _search(
    sample: Sample, root: Place, limits: SearchLimits, seed: str, guide: Guide | None = None
) -> Job[Found]:
    tree, rng = _Tree(sample, root), _rng(seed, sample.id)
    for level in range(limits.max_sentences):
        asks = _asks(tree, limits, rng)
        if not asks:
            break
        # nothing here holds on to sentences' places while the next level is decoded
        paths = _sound(tree, _grow(tree, (yield asks)), limits.filters)
        if guide is not None:
            _rate(tree, paths, guide)
        _select(tree, paths, limits, rng, last=level == limits.max_sentences - 1)
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


def _grow(tree: _Tree, found: Sequence[Sequence[Sentence]]) -> list[_Path]:
    """One path for each distinct sentence after a live path."""
    grown: dict[tuple[int, str], _Path] = {}
    for parent, sentences in zip(tree.live, found, strict=True):
        for sentence in sentences:
            key = (parent.node, " ".join(sentence.text.split()))
            if key in grown:
                grown[key].draws += 1
            else:
                grown[key] = tree.grow(parent, sentence)
        parent.place = None
    return list(grown.values())


def _sound(tree: _Tree, paths: list[_Path], filters: Filters) -> list[_Path]:
    """The paths that pass the filters; the others are counted."""
    passed = []
    for path in paths:
        *before, said = (p.said.text for p in path.chain() if p.said)
        if reason := filters.fault(before, said):
            tree.drops.append(Drop(tree.sample.id, "candidates", reason, said))
            path.place = None
        else:
            passed.append(path)
    return passed


def _rate(tree: _Tree, paths: list[_Path], guide: Guide) -> None:
    """Reward the new sentences, siblings side by side."""
    for parent in tree.live:
        own = [p for p in paths if p.parent is parent]
        said = [(p.said.text, p.said.logprob) for p in own if p.said]
        for path, worth in zip(own, guide.rate(tree.sample, said) if said else (), strict=True):
            path.worth, path.reward = worth, parent.reward + worth.reward


def _select(
    tree: _Tree, paths: list[_Path], limits: SearchLimits, rng: np.random.Generator, last: bool
) -> None:
    """Choose the paths that go on, and set the finished ones aside."""
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
    drops = tree.drops
    seen: set[str] = set()
    for path in tree.finished[:limit]:
        plain = " ".join(path.text.split())
        if plain in seen or not plain:
            drops.append(Drop(tree.sample.id, "candidates", "duplicate" if plain else "empty"))
            continue
        seen.add(plain)
        path.candidate = len(candidates)
        candidates.append(_candidate(tree.sample, path))
    if not candidates:
        drops.append(Drop(tree.sample.id, "candidates", "no-candidate"))
    return Found(candidates, tree.nodes(), drops)


def _candidate(sample: Sample, path: _Path) -> Candidate:
    chain = path.chain()
    said = [p.said for p in chain if p.said]
    worth = [p.worth for p in chain if p.worth]
    return Candidate(
        sample_id=sample.id,
        index=path.candidate,
        text=path.text.strip(),
        sentences=tuple(s.text for s in said),
        sentence_logprobs=tuple(s.logprob for s in said),
        token_counts=tuple(s.tokens for s in said),
        finished=path.ended,
        sentence_rewards=tuple(w.reward for w in worth),
        sentence_relevances=tuple(w.relevance for w in worth),
    )
