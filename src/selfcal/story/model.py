"""What a story is made of: plain frozen records, without a way of showing them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from selfcal.miniworld.verifier import Verification
from selfcal.types import (
    Candidate,
    Drop,
    GradedResponse,
    Judgment,
    LabelledPair,
    PreferencePair,
    Response,
    Rollout,
    Sample,
    SearchNode,
    WrittenRap,
)

Role = Literal["chosen", "rejected", "best", ""]
"""What became of a candidate; `best`: a method without pairs trains on it."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate, what it counted in curation, and what became of it."""

    candidate: Candidate
    score: float | None
    """None: no judgments decide, or what corrects them is not there yet."""
    role: Role
    found: Verification | None
    """None: nobody can tell (no verifier for this data, or facts that leave the question open)."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What the judge said of one candidate against another, both orders averaged."""

    sign: int
    """+1 the row is better, -1 the column, 0 neutral."""
    confidence: float
    """Probability of the averaged verdict."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one search made for the sample, and what came of it."""

    place: str
    """What stands before the stages' names: `iter-1`, `judge`, `iter-1/wide`, ..."""
    about: str
    """What the curating stage does, in words; empty where no stage chooses."""
    curating: str
    """Name of the stage that chooses, such as `iter-1/pairs`; empty where none does."""
    searched: bool
    """Whether the search is finished; False: `candidates` is empty."""
    candidates: tuple[Ranked, ...]
    """In the order of their index."""
    nodes: tuple[SearchNode, ...]
    """The whole search tree, pruned sentences included."""
    judgments: tuple[Judgment, ...]
    """Every ordered comparison as curation read it: corrected, where a correction was fitted."""
    corrected: str
    """Name of the stage whose correction `judgments` went through; empty: none."""
    uncorrected: str
    """Name of a stage that is to correct them and is not finished; empty: none."""
    cells: Mapping[tuple[int, int], Cell]
    """(row, column) by `Candidate.index`, both ways round; a pair that is missing was not asked, or
    not read."""
    labels: tuple[LabelledPair, ...]
    """Verdicts of the label-giving judge."""
    grades: tuple[GradedResponse, ...]
    pairs: tuple[PreferencePair, ...]
    dropped: Mapping[str, tuple[Drop, ...]]
    """What each of these stages left out, by its name (`iter-1/candidates`), in their order."""

    @property
    def drops(self) -> tuple[Drop, ...]:
        """Of all these stages, in their order."""
        return tuple(drop for own in self.dropped.values() for drop in own)

    @property
    def unscored(self) -> int:
        """Comparisons whose verdict could not be read."""
        return sum(g.verdict is None for g in self.judgments)


@dataclass(frozen=True, slots=True)
class Written:
    """A pair that was written rather than searched, or what was written in vain."""

    stage: str
    about: str
    done: bool
    pairs: tuple[PreferencePair, ...]
    known: frozenset[int]
    """Indices of candidates of an earlier search, which a pair may name."""
    on_the_way: tuple[str, ...]
    """Texts that were written and are in no pair."""
    drops: tuple[Drop, ...]


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What an online method sampled for the sample."""

    stage: str
    done: bool
    signals: tuple[str, ...]
    """Names of what the judge gave, in the order of `Rollout.judged`."""
    rollouts: tuple[Rollout, ...]
    """By batch (`step`) and position."""
    drops: tuple[Drop, ...]


@dataclass(frozen=True, slots=True)
class TrainingDrops:
    """Why a training left the sample out."""

    stage: str
    drops: tuple[Drop, ...]


Part: TypeAlias = Round | Written | Rollouts | TrainingDrops


@dataclass(frozen=True, slots=True)
class Taught:
    """The teacher's rationale for the sample."""

    done: bool
    raps: tuple[WrittenRap, ...]
    drops: tuple[Drop, ...]
    """The teacher's and those of the fine-tuning."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A checkpoint's own greedy response to the sample."""

    checkpoint: str
    """`seed`, `rft`, `iter-1`, ..."""
    response: Response
    found: Verification | None


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that a run has of one sample."""

    split: str
    """`rft`, `calibration`, `dev` or `test`."""
    sample: Sample
    """With the facts that the teacher wrote, if it did."""
    taught: Taught | None
    """None: no teacher writes for this sample."""
    parts: tuple[Part, ...]
    """In the order of the run."""
    answers: tuple[Answer, ...]
    """In the order of the checkpoints; none of a sample that is not measured."""
    missing: tuple[str, ...]
    """Checkpoints that are to be measured on the sample and are not yet."""
