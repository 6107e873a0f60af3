"""A sample's search as a tree of sentences: branches, and what became of each of them.

Sentences that follow each other without a choice stand in one branch, so a tree is as deep as there
were choices. The verifier reads each way from the root to a leaf, pruned ones included, as the
response that it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfcal.miniworld.verifier import Verification
from selfcal.page import shortened
from selfcal.report.reader import Reader
from selfcal.story import Ranked, Round
from selfcal.types import SearchNode
from selfcal.view.text import safe

MOST = 1_200
"""Sentences of a tree that is shown."""
_DEEPEST = 40
"""Choices after which a tree is no longer indented."""
_LONGEST = 2_000
"""Characters of a sentence that a tree shows."""


@dataclass(frozen=True, slots=True)
class Twig:
    """A sentence in the tree."""

    text: str
    status: str
    """The verifier's word for it, `right` or `wrong` for an answer; empty: nobody can tell."""
    logprob: float
    tokens: int
    draws: int
    reward: float | None
    """None: the search was not guided."""
    kept: bool
    leaf: Ranked | None
    """The candidate that it ends."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Sentences that follow each other, and the branches that go on from the last one."""

    twigs: tuple[Twig, ...]
    branches: tuple[Branch, ...]
    pruned: bool
    """Whether nothing in it was kept."""


def tree_of(told: Round, reader: Reader) -> tuple[Branch, ...]:
    """The search tree of a round; nothing where there is none, or more of it than can be read."""
    if len(told.nodes) > MOST:
        return ()
    # whatever a file says, it is a tree: each number once, and above it a smaller one or none
    nodes = {n.node: n for n in told.nodes if n.node >= 0}
    below: dict[int, list[SearchNode]] = defaultdict(list)
    for n in nodes.values():
        known = n.parent in nodes and n.parent < n.node
        below[n.parent if known else -1].append(n)
    leaves = {r.candidate.index: r for r in told.candidates}
    status = _statuses(below, reader)
    guided = any(r.candidate.sentence_rewards for r in told.candidates)
    twigs = {
        n.node: Twig(
            safe(shortened(n.text.strip(), _LONGEST)), status.get(n.node, ""),
            n.logprob, n.tokens, n.draws,
            n.reward if guided else None, n.kept, leaves.get(n.candidate),
        )
        for n in nodes.values()
    }  # fmt: skip
    return tuple(_branch(n, below, twigs, 0) for n in _in_order(below[-1]))


def _branch(
    node: SearchNode, below: Mapping[int, list[SearchNode]], twigs: Mapping[int, Twig], depth: int
) -> Branch:
    own, more = [node], list(below.get(node.node, ()))
    while len(more) == 1 and (more[0].kept or not own[-1].kept):
        own.append(more[0])
        more = list(below.get(more[0].node, ()))
    if depth >= _DEEPEST:  # what is deeper stands in one line
        while more:
            own.append(more.pop())
            more += below.get(own[-1].node, ())
    branches = [_branch(n, below, twigs, depth + 1) for n in _in_order(more)]
    pruned = not any(n.kept for n in own)
    return Branch(tuple(twigs[n.node] for n in own), tuple(branches), pruned)


def _in_order(nodes: Sequence[SearchNode]) -> list[SearchNode]:
    """Kept ones first, then by how likely they are."""
    return sorted(nodes, key=lambda n: (not n.kept, -n.logprob, n.node))


def _statuses(below: Mapping[int, list[SearchNode]], reader: Reader) -> dict[int, str]:
    """What the verifier says of each sentence, read in its place."""
    found: dict[int, str] = {}
    ways: list[tuple[SearchNode, tuple[SearchNode, ...]]] = [
        (n, (n,)) for n in reversed(below.get(-1, ()))
    ]
    while ways:
        node, way = ways.pop()
        more = below.get(node.node, ())
        ways += [(n, (*way, n)) for n in reversed(more)]
        if not more:
            for own, status in _read(way, reader).items():
                found.setdefault(own, status)
    return found


def _read(way: Sequence[SearchNode], reader: Reader) -> dict[int, str]:
    """The statuses along a way from the root to a leaf."""
    text = "".join(n.text for n in way)
    found = reader.check(text)
    if found is None:
        return {}
    read: dict[int, str] = {}
    end = 0
    for n in way:
        start, end = end, end + len(n.text)
        own = [f.status for f in found.findings if start <= f.start < end]
        if own:
            read[n.node] = own[0]
        elif n is way[-1] and found.answer:
            read[n.node] = _answer(found)
    return read


def _answer(found: Verification) -> str:
    return "right" if found.correct else "wrong"


def sentences(branches: Sequence[Branch]) -> tuple[int, int]:
    """How many sentences a tree has, and how many of them were pruned."""
    count = pruned = 0
    left = list(branches)
    while left:
        branch = left.pop()
        count += len(branch.twigs)
        pruned += sum(not t.kept for t in branch.twigs)
        left += branch.branches
    return count, pruned
