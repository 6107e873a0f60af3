"""Train the small models from scratch: `mini-llava` (the seed) and `mini-judge`, reproducibly.

`mini-llava` is first taught to *see*: true captions, single facts, short answers, sums in words. It
never meets a rationale there. Then it is taught a *habit* of reasoning (`habits.py`), the only
rationales it ever sees, nearly three quarters of them flawed in the same systematic way. So it
sees well and reasons badly, while sampling still finds sound rationales.

`mini-judge` practises on rationales with random faults (`corrupt.py`): at the end of every sentence
it says what the sentence is worth, at the end of a response how many faults it has, and at the end
which of two responses is better. One verdict a sequence would teach it nothing about looking facts
up; a label on every sentence does. Real candidates it first meets as the R-Scorer.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcal.miniworld.build import scans_of, worlds
from selfcal.miniworld.corrupt import misread, practice_rap
from selfcal.miniworld.draw import paint
from selfcal.miniworld.habits import habitual_rap
from selfcal.miniworld.models import build_judge, build_llava, build_processor, build_tokenizer
from selfcal.miniworld.questions import Premise, Query, answer, needs, read_question, say_premise
from selfcal.miniworld.verifier import Verification, compare, verify
from selfcal.miniworld.world import PLACES, POSITIONS, SHAPES, World, facts
from selfcal.types import Sample

if TYPE_CHECKING:
    import torch

HABIT_STRENGTH = 0.72
"""Share of the seed's rationales that follow its habit."""
MARKS = {"true": "true", "counterfactual": "false", "follows": "follows", "unreasonable": "wrong"}


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length and rate of one phase of a training from scratch."""

    steps: int
    learning_rate: float
    batch_size: int = 64
    stop: int | None = None
    """End early, before the rate has come down: another phase follows."""


SEE = Schedule(steps=3000, learning_rate=2e-3)
HABIT = Schedule(steps=500, learning_rate=6e-4)
PRACTICE = Schedule(steps=2800, learning_rate=2e-3, stop=1000)
DRILL = Schedule(steps=1800, learning_rate=1.5e-3)


def _batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while True:
        yield [next(items) for _ in range(size)]


def fit(
    model: Any,
    batches: Iterator[dict[str, torch.Tensor]],
    schedule: Schedule,
    checkpoint: Path,
    report: Callable[[str], None] = print,
) -> None:
    """Minimise a model's own loss with AdamW and a one-cycle rate; `checkpoint` is kept up to date."""
    import torch
    from safetensors.torch import load_model, save_model

    sight = [p for n, p in model.named_parameters() if "vision" in n or "projector" in n]
    text = [p for n, p in model.named_parameters() if not ("vision" in n or "projector" in n)]
    # a LLaVA projector has no normalization: at the text's rate its activations run away
    groups = [(own, r) for own, r in ((sight, 0.3), (text, 1.0)) if own]
    optimizer = torch.optim.AdamW(
        [{"params": own} for own, _ in groups], betas=(0.9, 0.98), weight_decay=0.02
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [schedule.learning_rate * r for _, r in groups],
        total_steps=schedule.steps,
        pct_start=0.08,
    )
    model.train()
    began, total = time.monotonic(), 0.0
    for step in range(1, (schedule.stop or schedule.steps) + 1):
        loss = model(**next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        total += float(loss.detach())
        if step % 100 == 0:
            rate = step / (time.monotonic() - began)
            report(f"step {step}/{schedule.steps} loss {total / 100:.4f} {rate:.2f} steps/s")
            total = 0.0
        if step % 500 == 0:
            save_model(model, str(checkpoint))
    save_model(model, str(checkpoint))
    load_model(model, str(checkpoint))
    model.eval()


# --- mini-llava -----------------------------------------------------------------------------


def _caption(world: World, rng: random.Random) -> tuple[str, str]:
    """A question that asks for facts, and the true facts in sentences."""
    if world.objects:
        premises = [("object", *o) for o in world.objects]
        names = [f"the {p[1]}" for p in premises]
        if rng.random() < 0.3:
            shape = rng.choice(SHAPES)
            n = world.count(shape)
            return f"Describe the {shape}s.", say_premise(("count", shape, str(n)))
    elif world.bars:
        premises = [("bar", c, str(v)) for c, v in world.bars]
        names = [f"the {c} bar" for c, _ in world.bars]
    else:
        premises = [("digit", p, str(v)) for p, v in world.digits]
        names = [f"the {p} digit" for p, _ in world.digits]
    if rng.random() < 0.4:
        i = rng.randrange(len(premises))
        return f"Describe {names[i]}.", say_premise(premises[i])
    return "Describe the image.", " ".join(map(say_premise, premises))


def _exercise(rng: random.Random) -> tuple[str, str]:
    """A sum in words; the image beside it does not matter."""
    a, b = sorted((rng.randint(0, 9), rng.randint(0, 9)), reverse=True)
    if rng.random() < 0.5:
        return f"What is {a} minus {b}?", f"{a} minus {b} is {a - b}."
    if rng.random() < 0.5:
        a, b = b, a
    return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."


def see_turn(world: World, query: Query, rng: random.Random) -> tuple[str, str]:
    """A training turn of the seeing phase."""
    draw = rng.random()
    if draw < 0.5:
        return _caption(world, rng)
    if draw < 0.56:
        return _exercise(rng)
    return query.wording(rng.random() < 0.5) + " Answer briefly.", f"Answer: {answer(query, world)}"


def habit_turn(world: World, query: Query, rng: random.Random) -> tuple[str, str]:
    """A training turn of the habit phase: questions get habitual RAPs, orders a bare answer."""
    draw = rng.random()
    if draw < 0.65:
        return query.wording(), habitual_rap(query, world, rng, HABIT_STRENGTH)
    if draw < 0.8:
        return query.wording(order=True), f"Answer: {answer(query, world)}"
    return see_turn(world, query, rng)


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
    processor: Any, turn: Turn, size: int, seed: int, images: int = 30_000, name_patches: bool = False
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
    from selfcal.miniworld.questions import random_query

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
    import torch

    prompts = [f"<|user|>{lead}{q}<|end|><|assistant|>" for q, _ in rows]
    responses = [f"{r}<|end|>" for _, r in rows]
    a, b = tokenizer(prompts)["input_ids"], tokenizer(responses)["input_ids"]
    width = max(len(p) + len(r) for p, r in zip(a, b, strict=True))
    pad = tokenizer.pad_token_id
    ids = [p + r + [pad] * (width - len(p) - len(r)) for p, r in zip(a, b, strict=True)]
    labels = [
        [-100] * len(p) + r + [-100] * (width - len(p) - len(r)) for p, r in zip(a, b, strict=True)
    ]
    ids_, labels_ = torch.tensor(ids), torch.tensor(labels)
    return {"input_ids": ids_, "labels": labels_, "attention_mask": (ids_ != pad).long()}


def train_llava(out: Path, seed: int = 0, see: Schedule = SEE, habit: Schedule = HABIT) -> None:
    """Train `mini-llava` and save model and processor to `out`. About 40 minutes on 2 cores."""
    import torch

    from selfcal.miniworld.cards import seed_card

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    model = build_llava(tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    seen = out / "see.safetensors"
    if not seen.exists():
        batches = llava_batches(processor, see_turn, see.batch_size, seed, name_patches=True)
        fit(model, batches, see, out / "see.partial.safetensors")
        (out / "see.partial.safetensors").rename(seen)
    from safetensors.torch import load_model

    load_model(model, str(seen))
    batches = llava_batches(processor, habit_turn, habit.batch_size, seed + 1, images=10_000)
    fit(model, batches, habit, out / "habit.partial.safetensors")
    model.generation_config.do_sample = False
    model.to(torch.float16).save_pretrained(out / "mini-llava")
    processor.save_pretrained(out / "mini-llava")
    (out / "mini-llava" / "README.md").write_text(seed_card(), encoding="utf-8")


# --- mini-judge -----------------------------------------------------------------------------

JUDGE_PROMPT = "Question: {question}\nFacts: {facts}\nFirst: {first}\nSecond: {second}\nBetter:"


class _Marks:
    """Token ids with labels: what is to be predicted *at* a token, not after it."""

    def __init__(self, tokenizer: Any) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self._tokenizer = tokenizer
        self._shapes = {tokenizer(f" {s}")["input_ids"][0] for s in SHAPES}

    def add(self, text: str, label: str | None = None) -> None:
        tokens = self._tokenizer(text)["input_ids"]
        self.ids.extend(tokens)
        self.labels.extend([-100] * len(tokens))
        if label is None:
            return
        self.labels[-1] = self._tokenizer(label)["input_ids"][0]
        if label in ("true", "follows"):  # the words before the period can be looked up
            self.labels[-3] = tokens[-2]
            if tokens[-2] in self._shapes:
                self.labels[-4] = tokens[-3]


def judge_row(tokenizer: Any, sample: Sample, first: str, second: str) -> tuple[list[int], list[int]]:
    """Token ids of one comparison, and a label for every sentence end, response end, verdict."""
    marks = _Marks(tokenizer)
    marks.add(f"<|user|>Question: {sample.question}\nFacts: {sample.facts}\nFirst:")
    for response, then in ((first, "\nSecond:"), (second, "\nBetter:<|end|><|assistant|>")):
        _add_marked(marks, response, verify(sample, response))
        marks.add(then, compare(sample, first, second) if "Better" in then else None)
    return marks.ids, marks.labels


def _add_marked(marks: _Marks, response: str, found: Verification) -> None:
    at = 0
    for finding in found.findings:
        marks.add((" " if at == 0 else "") + response[at : finding.end], MARKS.get(finding.status))
        at = finding.end
    marks.add(response[at:], " " + str(found.faults))


def drill_row(
    tokenizer: Any, sample: Sample, world: World, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Token ids of several statements about one world, some of them false, and their labels."""
    marks = _Marks(tokenizer)
    marks.add(f"<|user|>Question: {sample.question}\nFacts: {sample.facts}\nFirst: Rationale:")
    for _ in range(7):
        premise = rng.choice(_premises(world))
        true = rng.random() < 0.5
        told = premise if true else misread(premise, rng)
        marks.add(f" {say_premise(told)}", "true" if true else "false")
    return marks.ids, marks.labels


def _premises(world: World) -> list[Premise]:
    """All that can be stated about a world and is true."""
    if world.objects:
        counts = [("count", s, str(world.count(s))) for s in SHAPES]
        return [*(("object", *o) for o in world.objects), *counts]
    return [("bar", c, str(v)) for c, v in world.bars] + [
        ("digit", p, str(v)) for p, v in world.digits
    ]


def judge_batches(
    tokenizer: Any, size: int, seed: int, drill: bool = False
) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches of comparisons of rationales with random faults.

    With `drill`, every other batch is of single statements: looking facts up, eased and often.
    """
    import torch

    drilling = False
    rng = random.Random(seed)
    stream = worlds("pretrain", seed)
    pad = tokenizer.pad_token_id
    while True:
        rows = []
        drilling = drill and not drilling
        while len(rows) < size:
            world, query, _ = next(stream)
            sample = Sample("", "", query.wording(rng.random() < 0.5), "", facts=facts(world))
            if drilling:
                rows.append(drill_row(tokenizer, sample, world, rng))
                continue
            first, second = (practice_rap(query, world, rng) for _ in range(2))
            if first != second:
                rows.append(judge_row(tokenizer, sample, first, second))
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([i + [pad] * (width - len(i)) for i, _ in rows])
        labels = torch.tensor([y + [-100] * (width - len(y)) for _, y in rows])
        mask = (ids != pad).long()
        # the model shifts labels by one itself
        labels = torch.cat([torch.full((len(rows), 1), -100), labels[:, :-1]], dim=1)
        # a column more, so that the last token's label is not shifted out
        ids = torch.cat([ids, torch.full((len(rows), 1), pad)], dim=1)
        mask = torch.cat([mask, torch.zeros(len(rows), 1, dtype=torch.long)], dim=1)
        last = torch.full((len(rows), 1), -100)
        for r, (_, y) in enumerate(rows):
            if len(y) == width:
                last[r] = y[-1]
        yield {"input_ids": ids, "labels": torch.cat([labels, last], dim=1), "attention_mask": mask}


def train_judge(
    out: Path, seed: int = 0, practice: Schedule = PRACTICE, drill: Schedule = DRILL
) -> None:
    """Train `mini-judge` and save model and tokenizer to `out`. About an hour on 2 cores."""
    import torch
    from safetensors.torch import load_model

    from selfcal.miniworld.cards import judge_card

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_judge(tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    practised = out / "practice.safetensors"
    if not practised.exists():
        batches = judge_batches(tokenizer, practice.batch_size, seed)
        fit(model, batches, practice, out / "practice.partial.safetensors")
        (out / "practice.partial.safetensors").rename(practised)
    load_model(model, str(practised))
    batches = judge_batches(tokenizer, drill.batch_size, seed + 1, drill=True)
    fit(model, batches, drill, out / "drill.partial.safetensors")
    model.to(torch.float16).save_pretrained(out / "mini-judge")
    tokenizer.save_pretrained(out / "mini-judge")
    (out / "mini-judge" / "README.md").write_text(judge_card(), encoding="utf-8")
