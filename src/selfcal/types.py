"""The records that travel through selfcal, from the file a sample was read from to its results.

`Sample` -> `Candidate` -> `Judgment` -> `PreferencePair` -> checkpoint -> `Response` -> `Result`.
All are frozen, all fields are typed, and every record names the sample it belongs to, so that one
sample can be followed through a whole run (`selfcal trace`).
"""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

IMAGE_MARK = "<image>"
"""Where in a question an image stands, if it says so."""

Verdict = Literal["first", "second", "neutral"]
"""Outcome of one ordered comparison: which of the two responses is better."""


def sign_of(one: float, other: float, neutral: float) -> int:
    """Which outcome is the most probable: +1 the one, -1 the other, 0 neutral or a tie."""
    best = max(one, other, neutral)
    return 0 if neutral == best else (one == best) - (other == best)


@dataclass(frozen=True, slots=True)
class Sample:
    """One visual question-answering item."""

    id: str
    """Unique within its source."""
    image: str
    """Path of the (first) image file, absolute or relative to the folder of the data file."""
    question: str
    answer: str
    """Short reference answer."""
    choices: tuple[str, ...] = ()
    """Options of a multiple-choice question; empty for an open one."""
    category: str = ""
    rationale: str = ""
    """Reference rationale where the source has one; never shown to the policy."""
    facts: str = ""
    """Visual facts in words (tags, captions, OCR, scene graph), all a text judge sees of the
    image."""
    confidence: float = 1.0
    """How certain the facts are, from 0 to 1."""
    more_images: tuple[str, ...] = ()
    """Paths of the further images of a question about several, in order."""

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of all images, in order."""
        return (self.image, *self.more_images)


def without_marks(text: str) -> str:
    """Text without the marks of images; its line breaks stay."""
    first, *parts = text.split(IMAGE_MARK)
    if not parts:
        return text.strip()
    inner = [part.strip(" \t") for part in parts[:-1]]
    return " ".join([first.rstrip(" \t"), *inner, parts[-1].lstrip(" \t")]).strip()


def question_text(sample: Sample) -> str:
    """The question, with its options by letter where it has some."""
    if not sample.choices:
        return sample.question
    names = ascii_uppercase if len(sample.choices) <= 26 else range(1, len(sample.choices) + 1)
    options = [f"{name}. {choice}" for name, choice in zip(names, sample.choices, strict=False)]
    return "\n".join([sample.question, "Options:", *options])


@dataclass(frozen=True, slots=True)
class Rap:
    """A rationale-answer pair: one response of a model, read."""

    rationale: str
    answer: str
    sentences: tuple[str, ...]
    """The rationale's sentences, in order, without the answer."""
    compliant: bool
    """Whether the text follows the RAP format: a rationale first, one answer last."""


@dataclass(frozen=True, slots=True)
class WrittenRap:
    """A rationale-answer pair that the teacher wrote for one sample."""

    sample_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One complete response found by the search."""

    sample_id: str
    index: int
    """Position among the candidates of its sample; the i and j of the judgments."""
    text: str
    sentences: tuple[str, ...]
    """The sentences as they were searched, one per level of the tree, the answer included."""
    sentence_logprobs: tuple[float, ...]
    """Sum of token log-probabilities (nats, temperature 1) of each sentence."""
    token_counts: tuple[int, ...]
    """Tokens of each sentence."""
    finished: bool
    """Whether the model ended the response itself (rather than a length limit)."""
    sentence_rewards: tuple[float, ...] = ()
    """Calibrated reward of each sentence where the search was guided by one (CSR, Eq. 4)."""
    sentence_relevances: tuple[float, ...] = ()
    """Its image relevance (CSR, Eq. 3), 0 to 100."""

    @property
    def logprob(self) -> float:
        """Log-probability of the whole response, in nats."""
        return sum(self.sentence_logprobs)

    @property
    def reward(self) -> float:
        """Calibrated reward of the whole response: the sum over its sentences (CSR)."""
        return sum(self.sentence_rewards)


@dataclass(frozen=True, slots=True)
class SentenceReward:
    """What a sentence is worth to a search that is guided (CSR)."""

    reward: float
    """Calibrated reward (Eq. 4)."""
    relevance: float
    """Image relevance (Eq. 3), 0 to 100."""


@dataclass(frozen=True, slots=True)
class SearchNode:
    """One sentence in the search tree of a sample, kept or pruned."""

    sample_id: str
    node: int
    parent: int
    """`node` of the parent sentence, -1 for a first sentence."""
    text: str
    logprob: float
    tokens: int
    draws: int
    """How many draws ended as this sentence; equal ones are merged."""
    kept: bool
    """Whether the beam kept it."""
    candidate: int
    """`Candidate.index` for a finished response that became a candidate, else -1."""
    reward: float = 0.0
    """Calibrated reward of the sentence where the search was guided by one."""


@dataclass(frozen=True, slots=True)
class Judgment:
    """One ordered comparison of two candidates of a sample."""

    sample_id: str
    first: int
    second: int
    """`Candidate.index` of the response shown first and second."""
    verdict: Verdict | None
    """None: the judge's answer could not be read; the comparison is unscored, never a tie."""
    p_first: float
    p_second: float
    p_neutral: float
    """Verdict probabilities; all 0 when unscored."""


Way = Literal["logprobs", "votes"]
"""How a judge behind a server is read: by log-probabilities of the verdicts, or by votes."""


@dataclass(frozen=True, slots=True)
class Readings:
    """How many comparisons a judge behind a server was read by either way."""

    way: Way
    comparisons: int


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A chosen and a rejected response to one sample."""

    sample_id: str
    chosen: str
    rejected: str
    chosen_index: int
    rejected_index: int
    chosen_score: float
    rejected_score: float
    rejected_image: str = ""
    """Image of the rejected response for methods that spoil the image; empty: the sample's own."""

    @property
    def margin(self) -> float:
        """Score gap of the pair."""
        return self.chosen_score - self.rejected_score


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two responses to one sample with a label-giving judge's verdict: R-Scorer training data."""

    sample_id: str
    question: str
    facts: str
    first: str
    second: str
    verdict: Verdict
    images: tuple[str, ...] = ()
    """Paths of the sample's images, for a judge that sees; as a sample's own, inside the run."""


Aspect = Literal["good", "entailed", "grounded"]
"""What a response is graded for: all in all; does its answer follow from its rationale; is each
statement true of the image."""


@dataclass(frozen=True, slots=True)
class GradedResponse:
    """One response and its grade: training data of a judge that grades one by one."""

    sample_id: str
    question: str
    facts: str
    response: str
    good: bool
    aspect: Aspect = "good"
    images: tuple[str, ...] = ()
    """As of `LabelledPair`."""


@dataclass(frozen=True, slots=True)
class RankedResponses:
    """Several responses to one sample and their ranks: training data of a judge that ranks."""

    sample_id: str
    question: str
    facts: str
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    """Rank of each response, from 1, the best; equal ones share a rank."""
    images: tuple[str, ...] = ()
    """As of `LabelledPair`."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One response that an online method sampled, and what it made of it."""

    sample_id: str
    step: int
    """Batch of responses, from 0; a group is the responses to one sample in one batch."""
    index: int
    """Position in its group."""
    text: str
    tokens: int
    correct: float
    """1 for a right answer, 0 for a wrong one; NaN where the sample has no reference answer."""
    compliant: bool
    judged: tuple[float, ...]
    """What the judge gave, in the order that the stage's figures name; NaN where unscored."""
    reward: float
    advantage: float


@dataclass(frozen=True, slots=True)
class Drop:
    """Something a stage left out, and why; every filter writes these."""

    sample_id: str
    stage: str
    reason: str
    """A short name that can be counted, such as `answer-disagrees`."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """A checkpoint's own (greedy) response to one evaluation sample, with what was found in it."""

    sample_id: str
    category: str
    text: str
    answer: str
    compliant: bool
    correct: bool
    sound: bool
    counterfactual: bool
    insufficient: bool
    unreasonable: bool
    inconsistent: bool
    true_statements: int
    statements: int


@dataclass(frozen=True, slots=True)
class Result:
    """One metric of one checkpoint on one split and category."""

    checkpoint: str
    """`seed`, `rft`, `iter-1`, ..."""
    split: str
    category: str
    """`all` or a category's name."""
    metric: str
    value: float
    stderr: float
    n: int
    seed: int
