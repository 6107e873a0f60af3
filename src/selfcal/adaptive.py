"""Fewer comparisons: ask the judge only what can still change who is chosen and who is rejected.

In come a sample's candidates and its judgments so far; out go the ordered pairs to ask next, none
once the outcome is decided. The one idea: what was not asked can be predicted from what was. The
log-odds of a verdict are close to a sum of one term for the first and one for the second response,
so that a Gaussian model with a few spreads (`Noise`) gives every unasked comparison a mean and an
error. The curation's own scores are taken on many plausible completions of the table; when nearly
all end in the same outcome, it is decided, and if not, the comparisons that explain the doubt are
asked. This holds for any aggregator, since it is only called, never looked into.

Asked judgments alone would give biased scores: a candidate's mean would run over other opponents
than its rival's. So the curation reads them together with `imputed`, a pure function of them:
`curate(candidates, asked + imputed(candidates, asked))`. Nothing imputed need ever be written down.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from selfcal.curate import decide
from selfcal.judge.scorer import VERDICTS, Comparison, Judge
from selfcal.types import Candidate, Judgment, Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

Pair = tuple[int, int]
"""Two `Candidate.index`es: the first and second response, or the best and the worst."""

Score = Callable[[Sequence[Judgment]], Mapping[int, float]]
"""Scores of candidates from judgments, such as `lambda g: confidence(merge_orders(g))`."""

_FLOOR = 1e-6
"""Probabilities below it are taken for it: their logarithm says nothing more."""


@dataclass(frozen=True, slots=True)
class Noise:
    """How a judge's log-odds spread: standard deviations, in nats, of normal distributions.

    With i shown first and j second, `log(p_first / p_second) / 2` is `d` and
    `log p_neutral - (log p_first + log p_second) / 2` is `t`:

        d_ij = quality_i - quality_j + place + order_i + order_j + pair + rest
        t_ij = band_i + band_j + band + order_i - order_j + pair + rest

    The defaults are rounded from all ordered comparisons of samples with 5 or 6 candidates by
    MiniWorld's judge. A judge steadier than said is asked too much, a noisier one too little.
    """

    quality: float = 1.7
    """Between candidates; what is to be found."""
    place: float = 0.2
    """A judge's liking for the first place, the same in a whole sample."""
    order: float = 0.24
    """A candidate's own gain by being shown first."""
    pair: float = 0.2
    """What two candidates have to themselves, the same in both orders."""
    rest: float = 0.4
    """What is new in each ordered comparison."""
    band: float = 1.7
    """Between samples: their level of neutrality around `band_mean`."""
    band_mean: float = 3.3
    band_candidate: float = 2.4
    """Between candidates: how far each makes the verdict a neutral one."""
    band_order: float = 0.31
    band_pair: float = 0.5
    band_rest: float = 0.5


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which comparisons to ask next, under the rule that will decide about them."""

    score: Score
    """The curation's scores."""
    margin: float = 0.0
    """Smallest gap that makes a pair."""
    tie: float = 0.0
    """Score difference that counts as a tie (`decide`)."""
    risk: float = 0.03
    """Decided when at most this share of the plausible completions ends otherwise."""
    draws: int = 64
    """Plausible completions looked at, an even number."""
    noise: Noise = Noise()

    def ask(self, candidates: Sequence[Candidate], judgments: Sequence[Judgment]) -> list[Pair]:
        """The ordered pairs of candidate indices to ask next; empty when decided.

        A batch after the first holds at most a tenth of all ordered pairs. Deterministic, and a
        function of this sample alone.
        """
        logprobs = {c.index: c.logprob for c in candidates}
        if len(logprobs) < 2:
            return []
        if not judgments:
            return _opening(logprobs)
        table = _Table(tuple(sorted(logprobs)), judgments)
        if table.asked.all():
            return []
        completions = table.complete(self.noise, self.draws)
        scores = [self.score(g) for g in table.judgments(completions)]
        outcomes = [decide(s, logprobs, self.margin, self.tie) for s in scores]
        if np.mean([o != outcomes[0] for o in outcomes[1:]]) <= self.risk:
            return []
        return _explain(table, completions[1:], _doubts(scores, outcomes))


def _opening(logprobs: Mapping[int, float]) -> list[Pair]:
    """The likeliest candidate, shown first, against all; of five and more, a middling one too.

    One star puts all candidates on one scale, two tell a candidate's quality from its neutrality. A
    judge that reads a shared beginning once gets only two beginnings for the whole batch.
    """
    order = sorted(logprobs, key=lambda i: (-logprobs[i], i))
    pairs = [(order[0], i) for i in order[1:]]
    if len(order) >= 5:
        middle = order[len(order) // 2]
        pairs += [(middle, i) for i in order[1:] if i != middle]
    return pairs


def compare(
    judge: Judge,
    asks: Sequence[tuple[Sample, Sequence[Candidate]]],
    schedule: Schedule,
    rounds: int = 5,
) -> list[Judgment]:
    """Ask about many samples at once, in rounds: one call of the judge a round.

    A sample that is still open after the last round stays with what was asked. Returns the asked
    judgments alone, unscored ones included, sample by sample in the order of `asks`.
    """
    made: list[list[Judgment]] = [[] for _ in asks]
    still = list(range(len(asks)))
    for _ in range(rounds):
        batch: list[tuple[int, Comparison]] = []
        for k in still:
            sample, candidates = asks[k]
            own = {c.index: c for c in candidates}
            pairs = schedule.ask(candidates, made[k])
            batch += [(k, Comparison(sample, own[i], own[j])) for i, j in pairs]
        if not batch:
            break
        answers = judge.judge([c for _, c in batch])
        for (k, _), answer in zip(batch, answers, strict=True):
            made[k].append(answer)
        still = sorted({k for k, _ in batch})
    return [g for own_judgments in made for g in own_judgments]


def imputed(
    candidates: Sequence[Candidate], judgments: Sequence[Judgment], noise: Noise | None = None
) -> list[Judgment]:
    """The most plausible judgment of every ordered pair that was not asked, sample by sample.

    An unscored judgment counts as asked. A sample none of whose judgments could be read gets
    nothing, so that it stays unscored.
    """
    indices: dict[str, list[int]] = defaultdict(list)
    for c in candidates:
        indices[c.sample_id].append(c.index)
    asked: dict[str, list[Judgment]] = defaultdict(list)
    for g in judgments:
        asked[g.sample_id].append(g)
    made: list[Judgment] = []
    for sample_id, own in indices.items():
        if any(g.verdict is not None for g in asked[sample_id]):
            table = _Table(tuple(sorted(own)), asked[sample_id])
            row = table.complete(noise or Noise(), 0)[0]
            open_pairs = [p for p, a in zip(table.pairs, table.asked, strict=True) if not a]
            made += _judgments(sample_id, open_pairs, row[~table.asked])
    return made


class _Table:
    """All ordered pairs of one sample: what was asked, and what the rest may turn out to be."""

    def __init__(self, indices: tuple[int, ...], judgments: Sequence[Judgment]) -> None:
        self.sample_id = judgments[0].sample_id
        self.n = len(indices)
        self.pairs = list(permutations(indices, 2))
        at = {p: k for k, p in enumerate(self.pairs)}
        self.asked: Bools = np.zeros(len(self.pairs), bool)
        self.read: Bools = np.zeros(len(self.pairs), bool)
        self.known: Floats = np.zeros((len(self.pairs), 3))
        for g in judgments:
            k = at[g.first, g.second]
            self.asked[k] = True
            self.read[k] = g.verdict is not None
            self.known[k] = (g.p_first, g.p_second, g.p_neutral)
        # i < j, and where its other order stands
        self._upper = np.array([k for (i, j), k in at.items() if i < j])
        self._mirror = np.array([at[j, i] for i, j in at if i < j])

    def complete(self, noise: Noise, draws: int) -> Floats:
        """Probabilities (draws + 1, pairs, 3) of the full table; the first are the most plausible.

        What was read is the same in all, what could not be read is 0.
        """
        read = np.flatnonzero(self.read)
        rest = np.flatnonzero(~self.asked)
        logs = np.log(np.maximum(self.known[read], _FLOOR))
        gap = (logs[:, 0] - logs[:, 1]) / 2
        band = logs[:, 2] - (logs[:, 0] + logs[:, 1]) / 2
        of_gap, of_band = _kernels(self.n, noise)
        z_gap, z_band = _normals(draws, len(rest))
        d = _draw(of_gap, read, gap, rest, 0.0, z_gap)
        t = _draw(of_band, read, band, rest, noise.band_mean, z_band)
        logits = np.stack([d, -d, t], axis=-1)
        odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
        full = np.repeat(np.where(self.read[:, None], self.known, 0.0)[None], draws + 1, axis=0)
        full[:, rest] = odds / odds.sum(axis=-1, keepdims=True)
        return full

    def judgments(self, completions: Floats) -> list[list[Judgment]]:
        """Each completion as judgments, both orders averaged already to save the curation work."""
        there = self.read | ~self.asked
        weights = np.stack([there[self._upper], there[self._mirror]]).astype(float)
        keep = np.flatnonzero(weights.sum(axis=0))
        upper, mirror = self._upper[keep], self._mirror[keep]
        shown, turned = completions[:, upper], completions[:, mirror][..., [1, 0, 2]]
        a, b = weights[:, keep, None]
        merged = (shown * a + turned * b) / (a + b)
        pairs = [self.pairs[k] for k in upper]
        return [_judgments(self.sample_id, pairs, row) for row in merged]


def _judgments(sample_id: str, pairs: Sequence[Pair], rows: Floats) -> list[Judgment]:
    tops = (rows == rows.max(axis=-1, keepdims=True)).sum(axis=-1)
    # a tie between outcomes is a neutral verdict
    verdicts = np.where(tops == 1, rows.argmax(axis=-1), VERDICTS.index("neutral"))
    return [
        Judgment(sample_id, i, j, VERDICTS[v], *p)
        for (i, j), v, p in zip(pairs, verdicts.tolist(), rows.tolist(), strict=True)
    ]


@cache
def _kernels(n: int, noise: Noise) -> tuple[Floats, Floats]:
    """Covariances of `d` and of `t` between the ordered pairs of n candidates."""
    pairs = np.array(list(permutations(range(n), 2)))
    first, second = np.eye(n)[pairs[:, 0]], np.eye(n)[pairs[:, 1]]
    minus, plus = first - second, first + second
    difference, total = minus @ minus.T, plus @ plus.T
    same = np.eye(len(pairs))
    mirrored = (first @ second.T) * (second @ first.T)
    of_gap = (
        noise.quality**2 * difference
        + noise.place**2
        + noise.order**2 * total
        + noise.pair**2 * (same - mirrored)
        + noise.rest**2 * same
    )
    of_band = (
        noise.band_candidate**2 * total
        + noise.band**2
        + noise.band_order**2 * difference
        + noise.band_pair**2 * (same + mirrored)
        + noise.band_rest**2 * same
    )
    return of_gap, of_band


@cache
def _normals(draws: int, size: int) -> Floats:
    """The same standard normal numbers (2, draws, size) for every sample, in pairs of +z and -z."""
    z = np.random.default_rng(0).standard_normal((2, draws // 2, size))
    return np.concatenate([z, -z], axis=1)


def _draw(
    kernel: Floats,
    read: NDArray[np.intp],
    values: Floats,
    rest: NDArray[np.intp],
    mean: float,
    z: Floats,
) -> Floats:
    """Mean, then draws, of a Gaussian's unread entries, given the read ones: (draws + 1, rest)."""
    cross = kernel[np.ix_(read, rest)]
    gain = np.linalg.solve(kernel[np.ix_(read, read)], cross)
    middle = mean + gain.T @ (values - mean)
    covariance = kernel[np.ix_(rest, rest)] - cross.T @ gain
    # every comparison has its own `rest`, which keeps this positive; the grain is for rounding
    root = np.linalg.cholesky(covariance + 1e-9 * np.eye(len(rest)))
    return np.vstack([middle, middle + z @ root.T])


def _doubts(
    scores: Sequence[Mapping[int, float]], outcomes: Sequence[Pair | None]
) -> list[tuple[int, Floats]]:
    """What is open: score differences over the draws, weighted by how many draws they turn.

    At each end it is the one who holds it against its commonest rivals; where it is open whether
    there is a pair at all, best against worst. The most plausible completion comes first in both.
    """
    held, base = outcomes[0], scores[0]
    ends = (max(base, key=base.__getitem__), min(base, key=base.__getitem__))

    def column(i: int) -> Floats:
        return np.array([s.get(i, 0.0) for s in scores[1:]])

    doubts: list[tuple[int, Floats]] = []
    for end in (0, 1):
        other = Counter(
            o and o[end] for o in outcomes[1:] if (o and o[end]) != (held and held[end])
        )
        for rival, draws in other.most_common(2):
            one, two = ends if held is None or rival is None else (held[end], rival)
            doubts.append((draws, column(one) - column(two)))
    return doubts


def _explain(
    table: _Table, draws: Floats, doubts: Sequence[tuple[int, Floats]], cover: float = 0.8
) -> list[Pair]:
    """The unasked pairs whose draws go with the doubts, up to the share `cover` of all of it."""
    rest = np.flatnonzero(~table.asked)
    own = draws[:, rest]
    weight = np.zeros(len(rest))
    for turns, difference in doubts:
        away = difference - difference.mean()
        explained = np.zeros(len(rest))
        for x in (own[..., 0] - own[..., 1], own[..., 2]):
            x = x - x.mean(axis=0)
            common = (x * away[:, None]).mean(axis=0) ** 2
            explained = np.maximum(explained, common / ((x * x).mean(axis=0) + 1e-12))
        weight += turns * explained / max(float(explained.sum()), 1e-12)
    order = sorted(range(len(rest)), key=lambda k: (-weight[k], k))
    reach = np.cumsum(weight[order]) < cover * weight.sum()
    most = max(2, -(-len(table.pairs) // 10))
    return [table.pairs[rest[k]] for k in order[: min(most, int(reach.sum()) + 1)]]
