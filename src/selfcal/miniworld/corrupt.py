"""Rationales with random faults: what `mini-judge` practises on before it sees a real candidate."""

from __future__ import annotations

import random

from selfcal.miniworld.habits import flawed_rap, gold_rap
from selfcal.miniworld.questions import (
    Premise,
    Query,
    conclude,
    needs,
    say_inference,
    say_premise,
)
from selfcal.miniworld.world import COLORS, MAX_BAR, POSITIONS, SHAPES, World
from selfcal.rationale import render


def practice_rap(query: Query, world: World, rng: random.Random) -> str:
    """A response with no, one or several random faults."""
    draw = rng.random()
    if draw < 0.25:
        return gold_rap(query, world)
    if draw < 0.45:
        return flawed_rap(query, world)
    premises = needs(query, world)
    if draw < 0.49:
        return f"Answer: {conclude(query, premises)}"
    told = list(premises)
    if rng.random() < 0.5:
        i = rng.randrange(len(told))
        told[i] = misread(told[i], rng)
    if len(told) > 1 and rng.random() < 0.3:
        told.pop(rng.randrange(len(told)))
    if rng.random() < 0.08:
        told.append(rng.choice(told))
    if query.kind == "count" and rng.random() < 0.15:
        told.append(misread(rng.choice(premises), rng))
    full = told if len(told) == len(premises) or query.kind == "count" else premises
    result = conclude(query, full)
    said = _wrong(result, query, rng) if rng.random() < 0.25 else result
    inference = say_inference(query, full, said)
    if rng.random() < 0.06:
        inference = _wrong_operator(inference)
    sentences = [*map(say_premise, told), inference]
    if rng.random() < 0.04:
        sentences.pop()
    if rng.random() < 0.12:
        i = rng.randrange(len(sentences))
        sentences[i] = _stutter(sentences[i], rng)
    final = _wrong(said, query, rng) if rng.random() < 0.12 else said
    return render(" ".join(sentences), final)


def _stutter(sentence: str, rng: random.Random) -> str:
    """The sentence with a word twice or left out, which a tuned model may come to write."""
    words = sentence.split()
    i = rng.randrange(1, len(words) - 1)
    return " ".join(words[:i] + [words[i]] * rng.choice((0, 2, 2)) + words[i + 1 :])


def misread(premise: Premise, rng: random.Random) -> Premise:
    """The premise with one thing seen wrongly."""
    kind = premise[0]
    if kind == "object":
        fields = list(premise)
        i, words = rng.choice(((1, POSITIONS), (2, COLORS), (2, COLORS), (3, SHAPES)))
        fields[i] = rng.choice([w for w in words if w != fields[i]])
        return tuple(fields)
    value = int(premise[2])
    top = {"bar": MAX_BAR + 1, "digit": 9, "count": 5}[kind]
    near = [v for v in (value - 1, value + 1) if 0 <= v <= top]
    other = (
        rng.choice(near)
        if rng.random() < 0.7
        else rng.choice([v for v in range(top) if v != value])
    )
    return (kind, premise[1], str(other))


def _wrong(result: str, query: Query, rng: random.Random) -> str:
    if result in ("yes", "no"):
        return "no" if result == "yes" else "yes"
    if result.lstrip("-").isdigit():
        other = max(0, int(result) + rng.choice((-2, -1, -1, 1, 1, 2)))
        return str(other if str(other) != result else other + 1)
    words = SHAPES if query.kind == "shape" else COLORS
    return rng.choice([w for w in words if w != result])


def _wrong_operator(inference: str) -> str:
    if " minus " in inference:
        return inference.replace(" minus ", " plus ")
    return inference.replace(" plus ", " minus ")
