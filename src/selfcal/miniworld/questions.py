"""The questions one can ask of a world, what each answer needs, and the sound way to reason to it.

A `Query` is a question read: its kind and arguments. For each kind this module knows two wordings
of the question, the answer, the premises that the answer needs, and the inference that leads from
those premises to the answer. The gold rationale is the premises followed by the inference.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from selfcal.miniworld.world import POSITIONS, SHAPES, World, plural

Premise = tuple[str, ...]
"""A statement about the image as data: ("object", position, colour, shape), ("count", shape, n),
("bar", colour, value) or ("digit", place, value). `premise[:2]` names what it is about."""

RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

# kind -> the question asked, and the same as an order
WORDINGS: dict[str, tuple[str, str]] = {
    "count": ("How many {0}s are there?", "Count the {0}s."),
    "color": ("What color is the {0}?", "Name the color of the {0}."),
    "shape": ("What shape is at the {0}?", "Name the shape at the {0}."),
    "relation": ("Is the {0} {1} {4} the {2} {3}?", "Check if the {0} {1} is {4} the {2} {3}."),
    "comparison": ("Are there more {0}s than {1}s?", "Check if there are more {0}s than {1}s."),
    "value": ("What is the value of the {0} bar?", "Read the value of the {0} bar."),
    "highest": ("Which bar is the highest?", "Name the highest bar."),
    "bar-difference": (
        "How much higher is the {0} bar than the {1} bar?",
        "Subtract the {1} bar from the {0} bar.",
    ),
    "bar-sum": (
        "What is the sum of the {0} bar and the {1} bar?",
        "Add the {0} bar and the {1} bar.",
    ),
    "digit-sum": ("What is the sum of the digits?", "Add the digits."),
    "digit-difference": ("What is the difference of the digits?", "Subtract the digits."),
    "largest": ("What is the largest digit?", "Name the largest digit."),
}  # fmt: skip
KINDS = {
    "perception": ("count", "color", "shape", "relation", "comparison"),
    "chart": ("value", "highest", "bar-difference", "bar-sum"),
    "math": ("digit-sum", "digit-difference", "largest"),
}


@dataclass(frozen=True, slots=True)
class Query:
    """A question read: what is asked of the world."""

    kind: str
    args: tuple[str, ...] = ()

    def wording(self, order: bool = False) -> str:
        """The question, or the same as an order."""
        return WORDINGS[self.kind][order].format(*self.args)


def _pattern(wording: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\d\\\}", r"([a-z-]+(?: of)?)", re.escape(wording)))


# the order in which a wording names its arguments
_READERS = [
    (kind, [int(d) for d in re.findall(r"\{(\d)\}", wording)], _pattern(wording))
    for kind, wordings in WORDINGS.items()
    for wording in wordings
]


def read_question(question: str) -> Query:
    """Read a MiniWorld question.

    Raises:
        ValueError: the question is none that MiniWorld asks.
    """
    for kind, order, pattern in _READERS:
        if match := pattern.fullmatch(question.strip()):
            named = dict(zip(order, match.groups(), strict=True))
            return Query(kind, tuple(named[i] for i in sorted(named)))
    raise ValueError(f"not a MiniWorld question: {question!r}")


def random_query(world: World, rng: random.Random) -> Query:
    """Draw a question that this world can answer."""
    kinds = list(KINDS[world.category])
    if world.digits:
        kinds = ["largest"] if len(world.digits) == 3 else kinds[:2]
    while True:
        query = _try_query(rng.choice(kinds), world, rng)
        if query is not None:
            return query


def _try_query(kind: str, world: World, rng: random.Random) -> Query | None:
    single = [s for s in SHAPES if world.count(s) == 1]
    if kind == "count":
        return Query(kind, (rng.choice([s for s in SHAPES if world.count(s)]),))
    if kind == "color":
        return Query(kind, (rng.choice(single),)) if single else None
    if kind == "shape":
        return Query(kind, (rng.choice(world.objects)[0],))
    if kind == "relation":
        return _relation_query(world, rng)
    if kind == "comparison":
        return Query(kind, tuple(rng.sample(SHAPES, 2)))
    if kind == "value":
        return Query(kind, (rng.choice(world.bars)[0],))
    if kind in ("bar-difference", "bar-sum"):
        (a, va), (b, vb) = rng.sample(world.bars, 2)
        return Query(kind, (b, a) if kind == "bar-difference" and vb > va else (a, b))
    return Query(kind)


def _relation_query(world: World, rng: random.Random) -> Query | None:
    unique = [o for o in world.objects if len(world.find(o[2], o[1])) == 1]
    if len(unique) < 2:
        return None
    a, b = rng.sample(unique, 2)
    return Query("relation", (a[1], a[2], b[1], b[2], rng.choice(list(RELATIONS))))


def needs(query: Query, world: World) -> list[Premise]:
    """The true premises without which the answer is not established, in the order of telling."""
    kind, args = query.kind, query.args
    if kind == "count":
        return [("object", *o) for o in world.find(args[0])]
    if kind == "color":
        return [("object", *world.find(args[0])[0])]
    if kind == "shape":
        return [("object", *o) for o in world.objects if o[0] == args[0]]
    if kind == "relation":
        return [("object", *world.find(s, c)[0]) for c, s in (args[:2], args[2:4])]
    if kind == "comparison":
        return [("count", s, str(world.count(s))) for s in args]
    if kind in ("value", "bar-difference", "bar-sum"):
        values = dict(world.bars)
        return [("bar", c, str(values[c])) for c in args]
    if kind == "highest":
        return [("bar", c, str(v)) for c, v in world.bars]
    return [("digit", p, str(v)) for p, v in world.digits]


def is_related(a: str, relation: str, b: str) -> bool:
    """Whether position `a` stands in this relation to position `b`."""
    i, j = POSITIONS.index(a), POSITIONS.index(b)
    dx, dy = RELATIONS[relation]
    return (i % 3 - j % 3) * dx > 0 if dx else (i // 3 - j // 3) * dy > 0


def conclude(query: Query, premises: list[Premise]) -> str:
    """The answer that follows from premises of the kind that `needs` lists."""
    kind, args = query.kind, query.args
    last = [int(p[2]) for p in premises if p[0] in ("bar", "digit", "count")]
    if kind == "count":
        return str(len(premises))
    if kind in ("color", "shape"):
        return premises[0][2 if kind == "color" else 3]
    if kind == "relation":
        return "yes" if is_related(premises[0][1], args[4], premises[1][1]) else "no"
    if kind == "comparison":
        return "yes" if last[0] > last[1] else "no"
    if kind == "value":
        return premises[0][2]
    if kind == "highest":
        return max(premises, key=lambda p: int(p[2]))[1]
    if kind == "bar-difference":
        return str(last[0] - last[1])
    if kind in ("bar-sum", "digit-sum"):
        return str(sum(last))
    return str(max(last) if kind == "largest" else max(last) - min(last))


def answer(query: Query, world: World) -> str:
    """The true answer."""
    return conclude(query, needs(query, world))


def say_premise(premise: Premise) -> str:
    """A premise as a sentence."""
    what = premise[0]
    if what == "object":
        return f"The {premise[1]} is a {premise[2]} {premise[3]}."
    if what == "count":
        n = int(premise[2])
        return f"There {'is' if n == 1 else 'are'} {n} {plural(premise[1], n)}."
    return f"The {premise[1]} {what} is {premise[2]}."


def all_premises(world: World) -> list[Premise]:
    """All that can be stated about a world and is true."""
    if world.objects:
        objects: list[Premise] = [("object", *o) for o in world.objects]
        return objects + [("count", s, str(world.count(s))) for s in SHAPES]
    bars: list[Premise] = [("bar", c, str(v)) for c, v in world.bars]
    return bars + [("digit", p, str(v)) for p, v in world.digits]


def say_inference(query: Query, premises: list[Premise], result: str) -> str:
    """The step from premises to a result as a sentence; the result need not follow."""
    kind, args = query.kind, query.args
    values = [p[2] for p in premises if p[0] in ("bar", "digit", "count")]
    if kind == "count":
        return f"That makes {result} {plural(args[0], int(result))}."
    if kind in ("color", "value"):
        return f"So it is {result}."
    if kind == "shape":
        return f"So it is a {result}."
    if kind == "relation":
        is_ = "is" if result == "yes" else "is not"
        return f"So the {args[0]} {args[1]} {is_} {args[4]} the {args[2]} {args[3]}."
    if kind == "comparison":
        return f"{values[0]} {'is' if result == 'yes' else 'is not'} more than {values[1]}."
    if kind == "highest":
        return f"So the {result} bar is the highest."
    if kind == "largest":
        return f"So {result} is the largest."
    if kind.endswith("sum"):
        return f"{values[0]} plus {values[1]} is {result}."
    if kind == "digit-difference":
        values = sorted(values, key=int, reverse=True)
    return f"{values[0]} minus {values[1]} is {result}."


def gold_rationale(query: Query, world: World) -> str:
    """The sound rationale: every premise, then the inference."""
    premises = needs(query, world)
    inference = say_inference(query, premises, conclude(query, premises))
    return " ".join([*map(say_premise, premises), inference])
