"""Preference by the answer alone: right against wrong, whatever the rationale.

The naive baseline that SRC argues against (ICML 2025, arXiv 2509.13919), and the habit of
self-training on verifiable answers since STaR (Zelikman et al., NeurIPS 2022, arXiv 2203.14465).
Kept of STaR: a rationale counts as good if it arrives at the reference answer. Changed: pairs for
DPO in place of fine-tuning on what is right; no rationalization with the answer as a hint. It asks
no judge, but it needs reference answers, which SRC does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from selfcal.methods import parts
from selfcal.rationale import FORMATS, HEADINGS, RapFormat, answers_agree
from selfcal.recipe import Recipe
from selfcal.stage import Stage
from selfcal.types import Candidate, Drop, PreferencePair, Sample


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of the method."""
    own = partial(decide, form=FORMATS[recipe.format])

    def iteration(t: int, start: str | None) -> list[Stage]:
        return [
            parts.candidates(recipe, t, start),
            parts.pairs_by(recipe, t, own, "right answer against wrong answer"),
            parts.preference_tuning(recipe, t, start),
        ]

    return parts.loop(recipe, iteration)


def decide(
    sample: Sample, found: Sequence[Candidate], form: RapFormat = HEADINGS
) -> PreferencePair | Drop:
    """The likeliest right candidate against the likeliest wrong one.

    Dropped as `one-candidate`, `all-right`, `all-wrong`, or `no-answer`: the sample has none.
    """
    if not sample.answer.strip():
        return Drop(sample.id, "pairs", "no-answer")
    if len(found) < 2:
        return Drop(sample.id, "pairs", "one-candidate")
    right = [
        c for c in found if answers_agree(form.parse(c.text).answer, sample.answer, sample.choices)
    ]
    wrong = [c for c in found if c not in right]
    if not right or not wrong:
        return Drop(sample.id, "pairs", "all-right" if right else "all-wrong")
    return parts.pair(parts.likeliest(right), parts.likeliest(wrong))
