"""The ranker: which of several answer-correct responses is the most reliable?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING

from selfcal.methods.parts import learned
from selfcal.methods.parts.base import form_of, trained_on
from selfcal.methods.parts.facts import facts
from selfcal.methods.parts.judges import candidates_of_training, labels_at_once
from selfcal.methods.parts.online import Rater
from selfcal.rationale import RapFormat, answers_agree
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work
from selfcal.store import JSON
from selfcal.types import Drop, RankedResponses, Sample

if TYPE_CHECKING:
    from selfcal.judge.labels import LabelGiver
    from selfcal.judge.ranker import Ranker
    from selfcal.train import Group, Run, Trained


def ranker(recipe: Recipe, prompt: str | None, orders: int) -> list[Stage]:
    """Candidates of training samples, rankings of those that are right, training, and quality.

    `orders`: training rows made of each ranked group.

    Raises:
        ModelError: the prompt is no Jinja2.
    """
    from selfcal.judge.ranker import RankWriter

    RankWriter(prompt)  # a bad template is told before anything is paid for
    depends = {"prompt": prompt}

    def ask(
        who: LabelGiver, samples: Sequence[Sample], own: learned.Responses
    ) -> tuple[list[RankedResponses], list[Drop]]:
        from selfcal.judge.ranker import NUMBERS
        from selfcal.judge.training import rank_responses

        form = form_of(recipe)
        right = {s.id: dict.fromkeys(t for t in own[s.id] if _right(s, t, form)) for s in samples}
        most = len(NUMBERS)
        shown = {name: [*texts][:most] for name, texts in right.items()}
        return rank_responses(who, samples, shown, labels_at_once(recipe))

    def train(ranked: Sequence[RankedResponses], run: Run) -> Trained:
        from selfcal.train import train_ranker

        j = recipe.judge
        return train_ranker(j.model, ranked, j.train, prompt, orders, run, j.sees)

    def figures(work: Work, heldout: Sequence[RankedResponses]) -> Mapping[str, JSON]:
        return _agreement(_load(recipe, work, prompt), heldout)

    n = trained_on(recipe)
    kept = round(n * recipe.judge.holdout)
    trains = depends | {"orders": orders}
    rows = (n - kept) * orders
    return [
        *facts(recipe),
        candidates_of_training(recipe),
        learned.labels(recipe, "rankings", RankedResponses, ask, {}, ("rank",)),
        learned.training(recipe, "ranker", "rankings", RankedResponses, train, rows, trains),
        learned.check(recipe, "ranker", "rankings", RankedResponses, figures, kept, depends),
    ]


def _right(sample: Sample, text: str, form: RapFormat) -> bool:
    return answers_agree(form.parse(text).answer, sample.answer, sample.choices)


def _load(recipe: Recipe, work: Work, prompt: str | None) -> Ranker:
    from selfcal.judge.ranker import Ranker

    return Ranker(work.checkpoint("judge/ranker"), prompt, learned.reading(recipe))


def _agreement(judge: Ranker, heldout: Sequence[RankedResponses]) -> dict[str, JSON]:
    """How often the first is truly a best one, and how often a better one stands before a worse.

    Groups that cannot be read count as wrong; equal strengths count half.
    """
    from selfcal.judge.asking import sample_of
    from selfcal.judge.quality import mean

    ranked = judge.rank([(sample_of(g), g.responses) for g in heldout])
    best, apart = [], []
    for g, p in zip(heldout, ranked, strict=True):
        found = p or (0.0,) * len(g.ranks)
        top = p is not None and g.ranks[p.index(max(p))] == min(g.ranks)
        best.append((g.sample_id, float(top)))
        for i, j in permutations(range(len(found)), 2):
            if g.ranks[i] < g.ranks[j]:
                won = 0.5 * ((found[i] > found[j]) + (found[i] >= found[j]))
                apart.append((g.sample_id, won if p is not None else 0.0))
    unread = sum(p is None for p in ranked)
    return {"best_agreement": mean(best), "pair_agreement": mean(apart), "unread": unread}


class RankRater(Rater):
    """Ranks the different answer-correct responses of a group in one pass: their strengths."""

    def __init__(self, recipe: Recipe, work: Work, prompt: str | None) -> None:
        """Load the ranker of stage `judge/ranker`."""
        self._ranker = _load(recipe, work, prompt)

    def cost(self, groups: Sequence[Group], correct: Sequence[Sequence[float]]) -> int:
        """One pass for each group with several different right responses."""
        return sum(len(_rivals(g, own)) > 1 for g, own in zip(groups, correct, strict=True))

    def rate(
        self, groups: Sequence[Group], correct: Sequence[Sequence[float]]
    ) -> list[list[tuple[float, ...]]]:
        """The probability to be the best; NaN for wrong, single and unread responses."""
        rivals = [_rivals(g, own) for g, own in zip(groups, correct, strict=True)]
        asked = [i for i, own in enumerate(rivals) if len(own) > 1]
        ranked = self._ranker.rank([(groups[i].sample, rivals[i]) for i in asked])
        strength = {
            (i, text): p
            for i, found in zip(asked, ranked, strict=True)
            if found is not None
            for text, p in zip(rivals[i], found, strict=True)
        }
        return [
            [(strength.get((i, text), float("nan")),) for text in g.texts]
            for i, g in enumerate(groups)
        ]


def _rivals(group: Group, correct: Sequence[float]) -> list[str]:
    """The different right responses of a group."""
    return list(dict.fromkeys(t for t, c in zip(group.texts, correct, strict=True) if c > 0))
