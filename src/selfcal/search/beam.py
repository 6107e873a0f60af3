"""Sentence-level beam search: samples in, distinct candidates and their search trees out.

The search branches per *sentence*: every live path samples several next sentences, equal ones are
merged, and only some of the paths go on. So candidates differ in what they say and not in how they
say it. Each prompt and image is read once a batch; all paths keep their key/value cache. Which
paths go on is `stochastic` (sampled without replacement in proportion to their probability, by
Gumbel top-k: Kool et al. 2019, arXiv 1903.06059) or `likelihood` (the most likely ones).

Every random number comes from (seed, sample id, level, row), so neither batch size nor the order of
samples changes what is drawn.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from selfcal.policy import Policy
from selfcal.search.decode import Branches, Row, Sentence
from selfcal.types import Candidate, Drop, Sample, SearchNode


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """What a search may do; see `selfcal.recipe.Search`."""

    candidates: int
    branch: int
    keep: str
    temperature: float
    top_p: float
    max_sentences: int
    sentence_tokens: int


@dataclass(slots=True)
class _Path:
    """One response on its way, with the row of the cache that holds it."""

    row: Row
    node: int = -1
    sentences: list[Sentence] = field(default_factory=list)

    @property
    def logprob(self) -> float:
        return sum(s.logprob for s in self.sentences)

    @property
    def text(self) -> str:
        return "".join(s.text for s in self.sentences)


@dataclass(slots=True)
class _Tree:
    """The search of one sample."""

    sample: Sample
    live: list[_Path]
    finished: list[_Path] = field(default_factory=list)
    nodes: list[SearchNode] = field(default_factory=list)
    merged: int = 0

    def grow(self, parent: _Path, sentence: Sentence) -> _Path:
        node = len(self.nodes)
        self.nodes.append(
            SearchNode(
                self.sample.id, node, parent.node, sentence.text, sentence.logprob,
                sentence.tokens, kept=False, candidate=-1,
            )
        )  # fmt: skip
        return _Path(sentence.row, node, [*parent.sentences, sentence])

    def mark(self, path: _Path, candidate: int = -1) -> None:
        old = self.nodes[path.node]
        self.nodes[path.node] = SearchNode(
            old.sample_id, old.node, old.parent, old.text, old.logprob, old.tokens, True, candidate
        )


def search(
    policy: Policy, samples: Sequence[Sample], limits: SearchLimits, seed: str
) -> tuple[list[Candidate], list[SearchNode], list[Drop]]:
    """Search responses to a batch of samples.

    Returns:
        Up to `limits.candidates` distinct candidates a sample, all nodes of the trees, and named
        drops: samples without any candidate (`no-candidate`), and candidates that differed from
        another in white space only (`duplicate`).
    """
    branches = Branches(policy, samples, limits.temperature, limits.top_p, limits.sentence_tokens)
    trees = [_Tree(s, [_Path(row)]) for s, row in zip(samples, branches.roots(), strict=True)]
    for level in range(limits.max_sentences):
        plan = [(t, p, r) for t in trees for p, r in _spread(t, limits)]
        if not plan:
            break
        draws = [_uniform(seed, t.sample.id, level, i, limits) for t, i in _numbered(plan)]
        sentences = branches.sample([p.row for _, p, _ in plan], draws)
        for tree in trees:
            own = [(p, s) for (t, p, _), s in zip(plan, sentences, strict=True) if t is tree]
            last = level == limits.max_sentences - 1
            _select(tree, own, limits, _rng(seed, tree.sample.id, level, "keep"), last)
    found = [_collect(t, limits.candidates) for t in trees]
    return (
        [c for own, _ in found for c in own],
        [n for t in trees for n in t.nodes],
        [d for _, drops in found for d in drops],
    )


def _spread(tree: _Tree, limits: SearchLimits) -> list[tuple[_Path, int]]:
    """The rows of the next level: every live path gets its equal part of the branches."""
    if not tree.live:
        return []
    wanted = (limits.candidates - len(tree.finished)) * limits.branch
    share = math.ceil(wanted / len(tree.live))
    return [(p, i) for p in tree.live for i in range(share)]


def _numbered(plan: list[tuple[_Tree, _Path, int]]) -> list[tuple[_Tree, int]]:
    count: dict[int, int] = {}
    numbered = []
    for tree, _, _ in plan:
        count[id(tree)] = count.get(id(tree), -1) + 1
        numbered.append((tree, count[id(tree)]))
    return numbered


def _rng(*parts: object) -> np.random.Generator:
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _uniform(seed: str, sample: str, level: int, row: int, limits: SearchLimits) -> np.ndarray:
    """One uniform number a token of one row."""
    return _rng(seed, sample, level, row).random(limits.sentence_tokens)


def _select(
    tree: _Tree,
    children: list[tuple[_Path, Sentence]],
    limits: SearchLimits,
    rng: np.random.Generator,
    last: bool,
) -> None:
    """Merge equal children, choose those that go on, and set the finished ones aside."""
    if not children:
        return
    grown: dict[tuple[int, str], _Path] = {}
    for parent, sentence in children:
        key = (parent.node, " ".join(sentence.text.split()))
        if key in grown:
            tree.merged += 1
        else:
            grown[key] = tree.grow(parent, sentence)
    paths = list(grown.values())
    if limits.keep == "stochastic":
        # Gumbel top-k on log-probabilities: sampling without replacement
        keys = [
            p.logprob / limits.temperature + g
            for p, g in zip(paths, rng.gumbel(size=len(paths)), strict=True)
        ]
    else:
        keys = [p.logprob / max(1, sum(s.tokens for s in p.sentences)) for p in paths]
    room = limits.candidates - len(tree.finished)
    order = sorted(range(len(paths)), key=lambda i: (-keys[i], i))[:room]
    kept = [paths[i] for i in order]
    for path in kept:
        tree.mark(path)
    done = [p for p in kept if p.sentences[-1].ended or last]
    tree.finished += done
    tree.live = [] if last else [p for p in kept if not p.sentences[-1].ended]


def _collect(tree: _Tree, limit: int) -> tuple[list[Candidate], list[Drop]]:
    candidates: list[Candidate] = []
    drops: list[Drop] = []
    seen: set[str] = set()
    for path in tree.finished[:limit]:
        plain = " ".join(path.text.split())
        if plain in seen or not plain:
            drops.append(Drop(tree.sample.id, "candidates", "duplicate" if plain else "empty"))
            continue
        seen.add(plain)
        tree.mark(path, len(candidates))
        candidates.append(
            Candidate(
                sample_id=tree.sample.id,
                index=len(candidates),
                text=path.text.strip(),
                sentences=tuple(s.text for s in path.sentences),
                sentence_logprobs=tuple(s.logprob for s in path.sentences),
                token_counts=tuple(s.tokens for s in path.sentences),
                finished=path.sentences[-1].ended,
            )
        )
    if not candidates:
        drops.append(Drop(tree.sample.id, "candidates", "no-candidate"))
    return candidates, drops
