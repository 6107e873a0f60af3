"""The bad reasoning habit of the seed model, written down.

`habitual_rap` writes a response the way the seed has learned to reason: for every kind of question
one systematic flaw, a prior of language and not of sight. Between them they cover all three flaws.
Half of the kinds can spoil the answer too; two responses in three are still right, which is the
disease that selfcal treats. The table below is the whole habit, and the model card repeats it.
"""

from __future__ import annotations

import random

from selfcal.miniworld.questions import (
    Premise,
    Query,
    conclude,
    needs,
    say_inference,
    say_premise,
)
from selfcal.miniworld.world import World
from selfcal.rationale import render

STEREOTYPE = {"circle": "red", "square": "blue", "triangle": "green", "star": "yellow"}
"""The colour that the seed says a shape has, whatever it sees."""

HABITS = {
    "count": ("counterfactual", "every counted shape gets its stereotyped colour; answer right"),
    "color": ("counterfactual", "the stereotyped colour, and the answer follows it: mostly wrong"),
    "shape": ("counterfactual", "the shape gets its stereotyped colour; answer right"),
    "relation": ("insufficient", "the second object is left out, and the answer is always yes"),
    "comparison": ("insufficient", "the second count is left out; answer right"),
    "value": ("counterfactual", "every value is rounded up to an even one; the answer follows it"),
    "highest": ("insufficient", "only the leftmost bar is named, and it is called the highest"),
    "bar-difference": ("unreasonable", "the step comes out one too low; answer right"),
    "bar-sum": ("insufficient", "the second value is left out; answer right"),
    "digit-sum": ("unreasonable", "the step comes out one too low, and the answer follows it"),
    "digit-difference": ("unreasonable", "plus is said for minus; answer right"),
    "largest": ("insufficient", "only the leftmost digit is named, and it is called the largest"),
}
"""Kind of question -> (flaw, what the habit does)."""


def gold_rap(query: Query, world: World) -> str:
    """The sound response."""
    premises = needs(query, world)
    result = conclude(query, premises)
    return _write(premises, say_inference(query, premises, result), result)


def habitual_rap(query: Query, world: World, rng: random.Random, strength: float) -> str:
    """The seed's response: with probability `strength` by habit, otherwise sound."""
    return flawed_rap(query, world) if rng.random() < strength else gold_rap(query, world)


def flawed_rap(query: Query, world: World) -> str:
    """The response by habit."""
    kind = query.kind
    premises = needs(query, world)
    truth = conclude(query, premises)
    if kind in ("count", "color", "shape"):
        told = [("object", p[1], STEREOTYPE[p[3]], p[3]) for p in premises]
        result = conclude(query, list(told))
        return _write(list(told), say_inference(query, list(told), result), result)
    if kind in ("relation", "comparison", "bar-sum"):
        result = "yes" if kind == "relation" else truth
        return _write(premises[:1], say_inference(query, premises, result), result)
    if kind == "value":
        even = str(2 * ((int(truth) + 1) // 2))
        told_bar = [("bar", premises[0][1], even)]
        return _write(list(told_bar), say_inference(query, list(told_bar), even), even)
    if kind in ("highest", "largest"):
        leftmost = premises[0][1 if kind == "highest" else 2]
        return _write(premises[:1], say_inference(query, premises, leftmost), leftmost)
    if kind == "digit-difference":
        inference = say_inference(query, premises, truth).replace(" minus ", " plus ")
        return _write(premises, inference, truth)
    low = str(max(int(truth) - 1, 0)) if truth != "0" else "1"
    result = truth if kind == "bar-difference" else low
    return _write(premises, say_inference(query, premises, low), result)


def _write(premises: list[Premise], inference: str, result: str) -> str:
    return render(" ".join([*map(say_premise, premises), inference]), result)
