"""What is wrong with a judge? The judgments of a run in, figures and findings out; no model.

A judge may turn round with the order, prefer the response shown first, the longer one or the one
that the policy itself finds likelier, be too sure, contradict itself among three responses, or be
plainly wrong. Each of these is a figure with its standard error over samples; a *finding* is a
figure that is beyond its limit by more than two standard errors, said in a sentence with the way
out. Where the truth is not known, the figures that need it are None with n = 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from selfcal.judge.quality import (
    BINS,
    SIGN,
    Figure,
    Pair,
    Row,
    agreement,
    agreement_merged,
    bigger,
    ece,
    first_bias,
    flip_rate,
    leaning,
    mean,
    neutral_rate,
    reliability,
    unscored,
)
from selfcal.store import JSON
from selfcal.types import Candidate, Judgment, Sample, Verdict

Truth = Callable[[Candidate, Candidate], Verdict | None]
"""The true verdict about two candidates in this order; None: not known."""
FEWEST = 30
"""Of fewer values the standard error is no guide, so they make no finding."""
LENGTHS = (0.0, 0.1, 0.25, 0.5, 1.0)
"""Where the bins begin, by how much longer the longer response is than the other."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a judge was asked about one sample in one iteration."""

    iteration: int
    sample: Sample
    candidates: Sequence[Candidate]
    judgments: Sequence[Judgment]
    truth: Truth


def audit(asked: Iterable[Asked]) -> dict[str, JSON]:
    """The figures of all judgments, by category and iteration too, and the findings.

    Returns:
        The figures of `quality.assess`, where `agreement_merged` counts pairs of which one order
        alone was asked; and `kappa` (Cohen's, of the averaged verdict and the truth),
        `first_bias`, `self_preference`, `transitivity_violations` (share of cycles among three
        responses with three decided verdicts), `drift` (how much less `agreement_merged` is in the
        last iteration than in the first), `reliability` and `length_bins`, `categories` and
        `iterations`, `samples`, `pairs`, `enough` (whether no finding says anything), `findings`.
    """
    pairs: list[Pair] = []
    cycles: list[Row] = []
    categories: dict[str, list[Pair]] = defaultdict(list)
    iterations: dict[int, list[Pair]] = defaultdict(list)
    for one in asked:
        own = _pairs(one)
        cycles += _cycles(one.sample.id, own)
        pairs += own.values()
        categories[one.sample.category] += own.values()
        iterations[one.iteration] += own.values()
    figures = _figures(pairs) | {
        "transitivity_violations": mean(cycles),
        "drift": _drift([iterations[t] for t in sorted(iterations)]),
    }
    return {
        "samples": len({p.sample for p in pairs}),
        "pairs": len(pairs),
        **figures,
        "reliability": _reliability(pairs),
        "length_bins": _length_bins(pairs),
        "categories": {
            name: {"agreement_merged": agreement_merged(own), "flip_rate": flip_rate(own)}
            for name, own in sorted(categories.items())
            if name
        },
        "iterations": {
            str(t): {
                "agreement_merged": agreement_merged(own),
                "flip_rate": flip_rate(own),
                "ece": ece(own),
            }
            for t, own in sorted(iterations.items())
        },
        "enough": enough(f for name, f in figures.items() if name in LIMITS.keys() - {"unscored"}),
        "findings": findings(figures),
    }


def _figures(pairs: Sequence[Pair]) -> dict[str, Figure]:
    return {
        "agreement": agreement(pairs),
        "agreement_merged": agreement_merged(pairs),
        "kappa": kappa(pairs),
        "flip_rate": flip_rate(pairs),
        "first_bias": first_bias(pairs),
        "ece": ece(pairs),
        "length_bias": leaning(pairs, lambda p: p.longer),
        "self_preference": leaning(pairs, lambda p: p.likelier),
        "neutral_rate": neutral_rate(pairs),
        "unscored": unscored(pairs),
    }


# --- pairs ------------------------------------------------------------------------------------


def _pairs(asked: Asked) -> dict[tuple[int, int], Pair]:
    """The pairs that were asked about in at least one order, by the candidates' numbers."""
    own = {c.index: c for c in asked.candidates}
    said = {(g.first, g.second): g for g in asked.judgments}
    found = {}
    for i, j in combinations(sorted(own), 2):
        ahead, back = said.get((i, j)), said.get((j, i))
        if ahead is None and back is None:
            continue
        one, other = own[i], own[j]
        true = asked.truth(one, other)
        found[i, j] = Pair(
            asked.sample.id, ahead, back, None if true is None else SIGN[true],
            (len(one.text), len(other.text)), _likelier(one, other),
        )  # fmt: skip
    return found


def _likelier(one: Candidate, other: Candidate) -> int:
    """Sign of the one with the higher mean log-probability of a token; 0 if one has no tokens."""
    counts = sum(one.token_counts), sum(other.token_counts)
    return bigger(one.logprob / counts[0], other.logprob / counts[1]) if all(counts) else 0


def _cycles(sample: str, pairs: Mapping[tuple[int, int], Pair]) -> list[Row]:
    """Of every three responses with three decided verdicts: whether each beats the next."""
    decided = {ij: p.merged for ij, p in pairs.items() if p.merged}
    indices = sorted({i for ij in decided for i in ij})
    triples = [((i, j), (j, k), (i, k)) for i, j, k in combinations(indices, 3)]
    # i over j over k over i, or all three the other way round
    return [
        (sample, decided[ij] == decided[jk] == -decided[ik])
        for ij, jk, ik in triples
        if ij in decided and jk in decided and ik in decided
    ]


# --- figures ----------------------------------------------------------------------------------


def kappa(pairs: Sequence[Pair]) -> Figure:
    """Cohen's kappa of averaged verdict and truth; None if both are always neutral.

    Which candidate is the one says nothing, so every pair counts from both sides: agreement by
    chance is `p q + (1 - p) (1 - q) / 2` with the two shares of neutral verdicts. The standard
    error is that of the linear approximation (delta method).
    """
    known = [
        (p.sample, p.merged == p.truth, p.merged == 0, p.truth == 0)
        for p in pairs
        if p.merged is not None and p.truth is not None
    ]
    n = len(known)
    if not n:
        return mean([])
    hits = sum(hit for _, hit, _, _ in known) / n
    p = sum(said for _, _, said, _ in known) / n
    q = sum(true for _, _, _, true in known) / n
    chance = p * q + (1 - p) * (1 - q) / 2
    if chance == 1:
        return {"value": None, "stderr": None, "n": n}
    value = (hits - chance) / (1 - chance)
    slopes = (3 * q - 1) / 2, (3 * p - 1) / 2  # of chance, in p and q
    rows = []
    for sample, hit, said, true in known:
        lucky = slopes[0] * (said - p) + slopes[1] * (true - q)
        rows.append((sample, value + ((hit - hits) - (1 - value) * lucky) / (1 - chance)))
    return mean(rows)


def _drift(iterations: Sequence[Sequence[Pair]]) -> Figure:
    """What merged agreement loses from the first iteration to the last."""
    if len(iterations) < 2:
        return mean([])
    return lost(agreement_merged(iterations[0]), agreement_merged(iterations[-1]))


def lost(first: Figure, last: Figure) -> Figure:
    """The first figure less the last one, as if they were independent."""
    if first["value"] is None or last["value"] is None:
        return mean([])
    error = ((first["stderr"] or 0) ** 2 + (last["stderr"] or 0) ** 2) ** 0.5
    n = (first["n"] or 0) + (last["n"] or 0)
    return {"value": round(first["value"] - last["value"], 4), "stderr": round(error, 4), "n": n}


def _reliability(pairs: Sequence[Pair]) -> list[JSON]:
    """Bins of confidence with their mean confidence and hit rate."""
    made: list[JSON] = []
    for i, rows in enumerate(reliability(pairs)):
        hits = mean([(sample, hit) for sample, _, hit in rows])
        made.append(
            {
                "lower": i / BINS,
                "upper": (i + 1) / BINS,
                "confidence": mean([(sample, sure) for sample, sure, _ in rows])["value"],
                "hit_rate": hits["value"],
                "stderr": hits["stderr"],
                "n": hits["n"],
            }
        )
    return made


def _length_bins(pairs: Sequence[Pair]) -> list[JSON]:
    """How often the longer response wins (neutral counts half), by judge and by truth.

    Over judgments whose truth is known, or over all where none is. The standard error is that of
    the judge's win rate minus the truth's, or of the judge's alone.
    """
    bins: list[list[Pair]] = [[] for _ in LENGTHS]
    for p in [p for p in pairs if p.truth is not None] or pairs:
        if p.longer:
            short, long = sorted(p.lengths)
            bins[sum(long > (1 + edge) * short for edge in LENGTHS[1:])].append(p)
    ends = [*LENGTHS[1:], None]
    return [
        {"lower": lower, "upper": upper, **_wins(own)}
        for lower, upper, own in zip(LENGTHS, ends, bins, strict=True)
    ]


def _wins(pairs: Sequence[Pair]) -> dict[str, float | None]:
    said = [(p.sample, (1 + s * p.longer) / 2) for p in pairs for s, _ in p.read]
    true = [
        (p.sample, (1 + p.truth * p.longer) / 2)
        for p in pairs
        if p.truth is not None
        for _ in p.read
    ]
    judge, gap = mean(said), leaning(pairs, lambda p: p.longer)
    error = (gap if true else judge)["stderr"]
    return {
        "judge": judge["value"], "truth": mean(true)["value"], "stderr": error, "n": judge["n"],
    }  # fmt: skip


# --- findings ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limit:
    """From where on a figure is a finding."""

    limit: float
    says: str
    """`{}` is the figure."""
    way_out: str
    signed: bool = True
    """False: it is the figure's size that counts."""
    below: bool = False
    """True: small figures are the finding."""

    def passed(self, figure: Figure) -> bool:
        """Whether the figure is beyond the limit by more than two standard errors."""
        value, error, n = figure["value"], figure["stderr"], figure["n"]
        if value is None or error is None or n is None or n < FEWEST:
            return False
        if self.below:
            return value + 2 * error < self.limit
        return (value if self.signed else abs(value)) - 2 * error > self.limit


_LABEL_MORE = "label more pairs (judge.samples, judge.pairs_per_sample)"
_FULL = "ask all pairs in both orders, so that curation averages them (judge.schedule=full)"
LIMITS = {
    "unscored": Limit(
        0.02, "{} of the judgments could not be read.",
        f"train longer (judge.train.epochs), {_LABEL_MORE}, or lower judge.min_mass.",
    ),
    "agreement_merged": Limit(
        0.80, "The judge agrees with the truth in {} of pairs, both orders averaged.",
        f"{_LABEL_MORE}, train longer (judge.train.epochs) or take a larger judge.model.",
        below=True,
    ),
    "flip_rate": Limit(
        0.10, "The verdict turns with the order in {} of pairs.",
        f"{_FULL}; {_LABEL_MORE}.",
    ),
    "first_bias": Limit(
        0.05, "First minus second place is preferred by {}, whatever stands there.",
        f"{_FULL}.", signed=False,
    ),
    "ece": Limit(
        0.05, "The judge's confidence is off its hit rate by {}.",
        "calibrate (judge.calibrate=each).",
    ),
    "length_bias": Limit(
        0.10, "The longer response is preferred by {} more than is right.",
        f"{_LABEL_MORE} and see length_bins.",
    ),
    "self_preference": Limit(
        0.10, "The response that the policy finds likelier is preferred by {} more than is right.",
        f"{_LABEL_MORE}; a judge.model of another family than the policy's shares fewer tastes.",
    ),
    "transitivity_violations": Limit(
        0.05, "Of three responses, each beats the next in {} of triples.",
        f"{_FULL}; {_LABEL_MORE}.",
    ),
    "drift": Limit(
        0.02, "The judge agrees with the truth by {} less in the last iteration than in the first.",
        "the policy has left what the judge was trained on: take fewer iterations, or train and "
        "calibrate the judge on candidates of the later ones.",
    ),
}  # fmt: skip


def enough(figures: Iterable[Figure]) -> bool:
    """Whether any of these has as many values as a finding needs."""
    return any((figure["n"] or 0) >= FEWEST for figure in figures)


def findings(figures: Mapping[str, Figure]) -> list[str]:
    """A sentence for each figure that is clearly beyond its limit, with the way out."""
    found = []
    for name, limit in LIMITS.items():
        figure = figures[name]
        if limit.passed(figure):
            text = f"{figure['value']:.3f} ±{figure['stderr']:.3f}"
            found.append(f"{name}: {limit.says.format(text)} Way out: {limit.way_out}")
    return found
