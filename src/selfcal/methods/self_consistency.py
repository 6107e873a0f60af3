"""Self-consistency as a preference: the majority's answer is the better one.

After self-consistency (Wang et al., ICLR 2023, arXiv 2203.11171), which samples several rationales
and takes the answer that most of them arrive at. Kept: the vote among candidates, by answer alone.
Changed: the paper decodes by it, here it chooses preference pairs, as later work on self-training
does: chosen is the likeliest candidate with the majority's answer, rejected the likeliest with the
rarest one. No judge, no reference answer. Left out: weighting the votes by probability.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from selfcal.methods import parts
from selfcal.rationale import FORMATS, HEADINGS, RapFormat, normalize_answer
from selfcal.recipe import Recipe
from selfcal.stage import Stage
from selfcal.types import Candidate, Drop, PreferencePair, Sample


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of the method."""
    own = partial(decide, form=FORMATS[recipe.format])

    def iteration(t: int, start: str | None) -> list[Stage]:
        return [
            parts.candidates(recipe, t, start),
            parts.pairs_by(recipe, t, own, "majority's answer against the rarest"),
            parts.preference_tuning(recipe, t, start),
        ]

    return parts.loop(recipe, iteration)


def decide(
    sample: Sample, found: Sequence[Candidate], form: RapFormat = HEADINGS
) -> PreferencePair | Drop:
    """The pair of a sample; scores are shares of the votes.

    Dropped as `one-candidate`, `no-answer` (in any), `unanimous`, or `tied`: no answer has more
    votes than all others.
    Candidates without an answer don't vote and are rejected first.
    """
    if len(found) < 2:
        return Drop(sample.id, "pairs", "one-candidate")
    answers = [normalize_answer(form.parse(c.text).answer, sample.choices) for c in found]
    votes = Counter(a for a in answers if a)
    if not votes:
        return Drop(sample.id, "pairs", "no-answer")
    if len(set(answers)) == 1:
        return Drop(sample.id, "pairs", "unanimous")
    most, least = max(votes.values()), min(votes[a] for a in answers)
    if most == least or list(votes.values()).count(most) > 1:
        return Drop(sample.id, "pairs", "tied")
    chosen = parts.likeliest([c for c, a in zip(found, answers, strict=True) if votes[a] == most])
    rejected = parts.likeliest(
        [c for c, a in zip(found, answers, strict=True) if votes[a] == least]
    )
    return parts.pair(chosen, rejected, (most / len(found), least / len(found)))
