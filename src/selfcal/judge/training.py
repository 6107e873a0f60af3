"""The R-Scorer's training data: candidates in, labelled pairs out, balanced in outcome.

Pairs of candidates of training samples are drawn, a label-giving judge says which is better, and
the outcomes are brought to equal numbers. The order of a pair is random; the training shows each
pair in both orders. Some samples are held out, as a whole, for the quality report.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, TypeVar

from selfcal.types import (
    Aspect,
    Candidate,
    Drop,
    GradedResponse,
    LabelledPair,
    RankedResponses,
    Sample,
    question_text,
)

if TYPE_CHECKING:
    from selfcal.judge.labels import LabelGiver

Ask = TypeVar("Ask", bound=tuple[Any, ...])
Answer = TypeVar("Answer")
Labelled = TypeVar("Labelled", LabelledPair, GradedResponse, RankedResponses)


def label_pairs(
    judge: LabelGiver,
    samples: Sequence[Sample],
    candidates: Mapping[str, Sequence[Candidate]],
    per_sample: int,
    seed: str,
    workers: int = 1,
) -> tuple[list[LabelledPair], list[Drop]]:
    """Draw pairs of candidates and have them labelled.

    Args:
        judge: gives the labels.
        samples: whose candidates are compared.
        candidates: the candidates of each sample, by its id.
        per_sample: pairs drawn from each sample at most.
        seed: with the sample's id, decides which pairs, and their order.
        workers: how many requests the judge gets at the same time.

    Returns:
        The labelled pairs; and a drop `unreadable-label` for each label that could not be read,
        `one-candidate` for each sample without a pair.
    """
    asks: list[tuple[Sample, str, str]] = []
    pairs: list[LabelledPair] = []
    drops: list[Drop] = []
    for sample in samples:
        rng = random.Random(f"{seed}|{sample.id}")
        own = list(combinations(candidates.get(sample.id, ()), 2))
        if not own:
            drops.append(Drop(sample.id, "judge/labels", "one-candidate"))
        for pair in rng.sample(own, min(per_sample, len(own))):
            first, second = rng.sample(pair, 2)
            asks.append((sample, first.text, second.text))
    for (s, one, other), verdict in _answered(judge.compare, asks, workers):
        if verdict is None:
            drops.append(Drop(s.id, "judge/labels", "unreadable-label"))
        else:
            pairs.append(
                LabelledPair(s.id, question_text(s), s.facts, one, other, verdict, s.images)
            )
    return pairs, drops


def grade_responses(
    judge: LabelGiver,
    samples: Sequence[Sample],
    responses: Mapping[str, Iterable[str]],
    aspects: Sequence[Aspect] = ("good",),
    workers: int = 1,
) -> tuple[list[GradedResponse], list[Drop]]:
    """Have responses graded one by one, equal ones of a sample once.

    Args:
        judge: gives the labels.
        samples: whose responses are graded.
        responses: the responses to each sample, by its id.
        aspects: what each is graded for.
        workers: how many requests the judge gets at the same time.

    Returns:
        The graded responses; and a drop `unreadable-label` for each grade that could not be read.
    """
    graded: list[GradedResponse] = []
    drops: list[Drop] = []
    asks = [
        (s, text, aspect)
        for s in samples
        for text, aspect in product(dict.fromkeys(responses.get(s.id, ())), aspects)
    ]
    for (s, text, aspect), good in _answered(judge.grade, asks, workers):
        if good is None:
            drops.append(Drop(s.id, "judge/grades", "unreadable-label"))
        else:
            question = question_text(s)
            graded.append(GradedResponse(s.id, question, s.facts, text, good, aspect, s.images))
    return graded, drops


def rank_responses(
    judge: LabelGiver,
    samples: Sequence[Sample],
    responses: Mapping[str, Sequence[str]],
    workers: int = 1,
) -> tuple[list[RankedResponses], list[Drop]]:
    """Have the different responses to each sample ranked; `workers` requests at the same time.

    Returns:
        The ranked groups; and drops: `one-response` for a sample with fewer than two different
        ones, `unreadable-label`, and `all-equal` for a group that would teach nothing.
    """
    ranked: list[RankedResponses] = []
    drops: list[Drop] = []
    every = [(s, tuple(dict.fromkeys(responses.get(s.id, ())))) for s in samples]
    asks = [(s, own) for s, own in every if len(own) > 1]
    drops += [Drop(s.id, "judge/rankings", "one-response") for s, own in every if len(own) < 2]
    for (s, own), ranks in _answered(judge.rank, asks, workers):
        if ranks is None:
            drops.append(Drop(s.id, "judge/rankings", "unreadable-label"))
        elif len(set(ranks)) < 2:
            drops.append(Drop(s.id, "judge/rankings", "all-equal"))
        else:
            ranked.append(RankedResponses(s.id, question_text(s), s.facts, own, ranks, s.images))
    return ranked, drops


def _answered(
    judge: Callable[..., Answer], asks: Sequence[Ask], workers: int
) -> Iterator[tuple[Ask, Answer]]:
    """Each question with its answer, in order; so many are asked at the same time."""
    with ThreadPoolExecutor(workers) as pool:
        yield from zip(asks, pool.map(lambda ask: judge(*ask), asks), strict=True)


def held_out(pairs: Sequence[Labelled], share: float) -> tuple[list[Labelled], list[Labelled]]:
    """Split by sample (by a hash of its id) into training data and held-out data."""
    train: list[Labelled] = []
    test: list[Labelled] = []
    for pair in pairs:
        digest = hashlib.sha256(f"held out {pair.sample_id}".encode()).digest()
        place = int.from_bytes(digest[:4], "big") / 2**32
        (test if place < share else train).append(pair)
    return train, test


def balance(pairs: Sequence[LabelledPair], seed: str) -> list[LabelledPair]:
    """As many neutral pairs as there are of one side, by leaving out at random.

    A pair that is not neutral is shown in both orders, so first and second are balanced already:
    neutral pairs may be half as many as all the others (at least one). Other pairs are never left
    out.
    """
    neutral = [p for p in pairs if p.verdict == "neutral"]
    decided = [p for p in pairs if p.verdict != "neutral"]
    rng = random.Random(f"{seed}|balance")
    kept = rng.sample(neutral, min(len(neutral), max(1, len(decided) // 2)))
    mixed = decided + kept
    rng.shuffle(mixed)
    return mixed
