"""Train `mini-llava`, the seed: it sees well and reasons badly, on purpose.

It is first taught to *see*: true captions, single facts, short answers, where the things of a kind
are, which facts a question is about, how many there are; sums and directions in words. It never
meets a rationale there. Then it is taught a *habit* of reasoning (`habits.py`), the only rationales
it ever sees, nearly three quarters of them flawed in the same systematic way. So sampling still
finds sound rationales where greedy decoding does not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcal.miniworld.build import scans_of, worlds
from selfcal.miniworld.draw import paint
from selfcal.miniworld.habits import habitual_rap
from selfcal.miniworld.models import build_llava, build_processor, build_tokenizer
from selfcal.miniworld.pretrain import Schedule, fit_phases, padded
from selfcal.miniworld.questions import (
    RELATIONS,
    Premise,
    Query,
    all_premises,
    answer,
    conclude,
    needs,
    random_query,
    say_inference,
    say_premise,
)
from selfcal.miniworld.world import COLORS, PLACES, POSITIONS, SHAPES, World

if TYPE_CHECKING:
    import torch

HABIT_STRENGTH = 0.72
"""Share of the seed's rationales that follow its habit."""
SEE = Schedule(steps=3000, learning_rate=2e-3)
# finding is learned late, and better in many small steps than in few large ones
FIND = Schedule(steps=1500, learning_rate=1.5e-3, stop=500)
PLACE = Schedule(steps=2200, learning_rate=1.5e-3, batch_size=32)
FACTS = Schedule(steps=3000, learning_rate=1.5e-3, batch_size=32)
COUNT = Schedule(steps=1200, learning_rate=1.2e-3, batch_size=32)
HABIT = Schedule(steps=2000, learning_rate=1e-3, batch_size=32)


def _caption(world: World, rng: random.Random) -> tuple[str, str]:
    """A question that asks for facts, and the true facts in sentences."""
    premises = [p for p in all_premises(world) if p[0] != "count"]
    if world.objects:
        names = [f"the {p[1]}" for p in premises]
        if rng.random() < 0.3:
            return _count(world, rng.choice(SHAPES))
    elif world.bars:
        names = [f"the {c} bar" for c, _ in world.bars]
    else:
        names = [f"the {p} digit" for p, _ in world.digits]
    if rng.random() < 0.4:
        i = rng.randrange(len(premises))
        return f"Describe {names[i]}.", say_premise(premises[i])
    return "Describe the image.", " ".join(map(say_premise, premises))


def _count(world: World, shape: str) -> tuple[str, str]:
    return f"State the number of {shape}s.", say_premise(("count", shape, str(world.count(shape))))


def _found(world: World, rng: random.Random) -> tuple[str, str]:
    """A question that asks where something is, and the true facts in sentences."""
    if not world.objects or rng.random() < 0.15:
        return _caption(world, rng)
    draw = rng.random()
    if draw < 0.1:
        return _count(world, rng.choice(SHAPES))
    _, color, shape = rng.choice(world.objects)
    if draw < 0.5:
        own, asked = world.find(shape), f"Describe the {shape}s."
    else:
        own, asked = world.find(shape, color), f"Describe the {color} {shape}."
    return asked, " ".join(say_premise(("object", *o)) for o in own)


def _exercise(rng: random.Random) -> tuple[str, str]:
    """A sum in words; the image beside it does not matter."""
    a, b = sorted((rng.randint(0, 9), rng.randint(0, 9)), reverse=True)
    if rng.random() < 0.5:
        return f"What is {a} minus {b}?", f"{a} minus {b} is {a - b}."
    if rng.random() < 0.5:
        a, b = b, a
    return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."


def _direction(rng: random.Random) -> tuple[str, str]:
    """Where one thing is, seen from another, in words; the image beside it does not matter."""
    things = rng.sample([(c, s) for c in COLORS for s in SHAPES], 2)
    told: list[Premise] = [
        ("object", at, *thing) for at, thing in zip(rng.sample(POSITIONS, 2), things, strict=True)
    ]
    query = Query("relation", (*things[0], *things[1], rng.choice(list(RELATIONS))))
    asked = " ".join([*map(say_premise, told), query.wording(rng.random() < 0.5)])
    return asked, say_inference(query, told, conclude(query, told))


def see_turn(world: World, query: Query, rng: random.Random) -> tuple[str, str]:
    """A training turn of the seeing phase: captions, sums in words, short answers."""
    draw = rng.random()
    if draw < 0.5:
        return _caption(world, rng)
    return _exercise(rng) if draw < 0.56 else _briefly(world, query, rng)


def find_turn(world: World, query: Query, rng: random.Random) -> tuple[str, str]:
    """A training turn of the finding phase: mostly where the things of a kind are."""
    draw = rng.random()
    if draw < 0.8:
        return _found(world, rng)
    return _exercise(rng) if draw < 0.85 else _briefly(world, query, rng)


def facts_turn(world: World, query: Query, rng: random.Random) -> tuple[str, str]:
    """A training turn of the facts phase: as before, and which facts a question is about."""
    if rng.random() < 0.5:
        return find_turn(world, query, rng)
    asked = query.wording(rng.random() < 0.5) + " Describe the facts."
    return asked, " ".join(map(say_premise, needs(query, world)))


def count_turn(world: World, query: Query, rng: random.Random) -> tuple[str, str]:
    """A training turn of the counting phase: as before, counts, and directions in words."""
    draw = rng.random()
    if draw < 0.3:
        return _direction(rng)
    if draw < 0.6 and world.objects:
        return _count(world, rng.choice(SHAPES))
    return facts_turn(world, query, rng)


def _briefly(world: World, query: Query, rng: random.Random) -> tuple[str, str]:
    return query.wording(rng.random() < 0.5) + " Answer briefly.", f"Answer: {answer(query, world)}"


def habit_turn(world: World, query: Query, rng: random.Random) -> tuple[str, str]:
    """A training turn of the habit phase: habitual RAPs, and to most orders a bare answer."""
    draw = rng.random()
    if draw < 0.45:
        return query.wording(), habitual_rap(query, world, rng, HABIT_STRENGTH)
    if draw < 0.65:
        return query.wording(order=True), habitual_rap(query, world, rng, HABIT_STRENGTH)
    if draw < 0.85:
        return query.wording(order=True), f"Answer: {answer(query, world)}"
    return facts_turn(world, query, rng)


Turn = Callable[[World, Query, random.Random], tuple[str, str]]


def patch_words(world: World, rng: random.Random) -> list[str]:
    """A word for what each of the nine patches shows: a colour, shape or number, or `no`."""
    words = ["no"] * 9
    for position, *attributes in world.objects:
        words[POSITIONS.index(position)] = rng.choice(attributes)
    for column, (color, value) in enumerate(world.bars):
        for row in range(3):
            words[3 * row + column] = rng.choice((color, str(value)))
    for place, value in world.digits:
        words[3 + PLACES.index(place)] = str(value)
    return words


def llava_batches(
    processor: Any,
    turn: Turn,
    size: int,
    seed: int,
    images: int = 30_000,
    name_patches: bool = False,
) -> Iterator[dict[str, torch.Tensor]]:
    """Endless training batches; the loss is on the response tokens.

    With `name_patches` the model is also to name, at every image token, what its patch shows. This
    opens its eyes within hundreds of steps; nothing is ever generated there.
    """
    import numpy as np
    import torch

    scans = scans_of("pretrain")
    pool: list[tuple[World, np.ndarray[Any, Any]]] = []
    rng = random.Random(seed)
    stream = worlds("pretrain", seed)
    mean = np.array(processor.image_processor.image_mean, dtype=np.float32)
    std = np.array(processor.image_processor.image_std, dtype=np.float32)
    while True:
        rows, pixels, names = [], [], []
        for _ in range(size):
            if len(pool) < images:
                world, query, paint_rng = next(stream)
                pool.append((world, np.asarray(paint(world, paint_rng, scans))))
                image = pool[-1][1]
            else:
                world, image = pool[rng.randrange(images)]
                query = random_query(world, rng)
            rows.append(turn(world, query, rng))
            names.append(patch_words(world, rng))
            pixels.append((image.astype(np.float32) / 255 - mean) / std)
        tokens = _encode(processor.tokenizer, rows, "<image>" * 9 + "\n")
        if name_patches:
            ids = [[processor.tokenizer(f" {w}")["input_ids"][0] for w in own] for own in names]
            # <|user|> stands at 0, image tokens at 1 to 9; a label belongs one place after
            tokens["labels"][:, 2:11] = torch.tensor(ids)
        tokens["pixel_values"] = torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2).copy())
        yield tokens


def _encode(tokenizer: Any, rows: list[tuple[str, str]], lead: str) -> dict[str, torch.Tensor]:
    prompts = [f"<|user|>{lead}{q}<|end|><|assistant|>" for q, _ in rows]
    responses = [f"{r}<|end|>" for _, r in rows]
    a, b = tokenizer(prompts)["input_ids"], tokenizer(responses)["input_ids"]
    both = [(p + r, [-100] * len(p) + r) for p, r in zip(a, b, strict=True)]
    return padded(both, tokenizer.pad_token_id)


def train_llava(
    out: Path,
    seed: int = 0,
    *,
    see: Schedule = SEE,
    find: Schedule = FIND,
    place: Schedule = PLACE,
    facts: Schedule = FACTS,
    count: Schedule = COUNT,
    habit: Schedule = HABIT,
) -> None:
    """Train `mini-llava` and save model and processor to `out`. About an hour on one core.

    A finished phase is kept in `out` and not trained again.
    """
    import torch

    from selfcal.miniworld.cards import seed_card

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    model = build_llava(tokenizer)
    out.mkdir(parents=True, exist_ok=True)

    def batches(turn: Turn, number: int, size: int, images: int, patches: bool = False) -> Any:
        return lambda: llava_batches(processor, turn, size, seed + number, images, patches)

    phases = [
        ("see", see, batches(see_turn, 0, see.batch_size, 30_000, patches=True)),
        ("find", find, batches(find_turn, 1, find.batch_size, 30_000)),
        ("place", place, batches(find_turn, 2, place.batch_size, 30_000)),
        ("facts", facts, batches(facts_turn, 3, facts.batch_size, 30_000)),
        ("count", count, batches(count_turn, 4, count.batch_size, 30_000)),
        ("habit", habit, batches(habit_turn, 5, habit.batch_size, 10_000)),
    ]
    fit_phases(model, phases, out)
    model.generation_config.do_sample = False
    model.to(torch.float16).save_pretrained(out / "mini-llava")
    processor.save_pretrained(out / "mini-llava")
    (out / "mini-llava" / "README.md").write_text(seed_card(), encoding="utf-8")
