"""Train `mini-judge`, the base of the R-Scorer.

It practises on rationales with random faults (`corrupt.py`): at the end of every sentence it says
what the sentence is worth, at the end of a rationale if it is sufficient, at the end of a response
if it is reliable, and last of all which of two responses is better. One verdict a sequence would
teach it nothing about looking facts up; a label on every sentence does, and single statements teach
it most. Real candidates it first meets as the R-Scorer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcal.miniworld.build import worlds
from selfcal.miniworld.corrupt import misread, practice_rap
from selfcal.miniworld.models import build_judge, build_tokenizer
from selfcal.miniworld.pretrain import Schedule, fit_phases, padded
from selfcal.miniworld.questions import all_premises, say_premise
from selfcal.miniworld.verifier import Verification, compare, is_true, verify
from selfcal.miniworld.world import SHAPES, World, facts
from selfcal.types import Sample

if TYPE_CHECKING:
    import torch

MARKS = {"true": "true", "counterfactual": "false", "follows": "follows", "unreasonable": "wrong"}
BAD = {False: " 0", True: " 1"}
"""Words for a flag; the tokenizer has no better ones."""
PRACTICE = Schedule(steps=2800, learning_rate=2e-3, stop=1000)
DRILL = Schedule(steps=1800, learning_rate=1.5e-3)
LOOKUP = Schedule(steps=800, learning_rate=1.5e-3)
COMPARE = Schedule(steps=1000, learning_rate=1.2e-3, batch_size=32)

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


def judge_row(
    tokenizer: Any, sample: Sample, first: str, second: str
) -> tuple[list[int], list[int]]:
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
    rest = (" " if at == 0 else "") + response[at:]
    if rest.startswith("\n"):
        marks.add("\n", BAD[found.insufficient])
        rest = rest[1:]
    marks.add(rest, BAD[not found.reliable])


def statements_row(
    tokenizer: Any, sample: Sample, world: World, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Token ids of several statements about one world, some of them false, and their labels."""
    premises = all_premises(world)
    if world.objects and rng.random() < 0.7:  # objects are harder to look up than counts
        premises = [p for p in premises if p[0] == "object"]
    marks = _Marks(tokenizer)
    marks.add(f"<|user|>Question: {sample.question}\nFacts: {sample.facts}\nFirst: Rationale:")
    for _ in range(7):
        premise = rng.choice(premises)
        told = premise if rng.random() < 0.5 else misread(premise, rng)
        marks.add(f" {say_premise(told)}", "true" if is_true(told, world) else "false")
    return marks.ids, marks.labels


def judge_batches(
    tokenizer: Any, size: int, seed: int, turns: tuple[str, ...] = ("pairs",)
) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches, of what `turns` says in turn.

    `pairs` are comparisons of rationales with random faults, `facts` is single statements, `scenes`
    the same of scenes alone, which are the hardest to look up.
    """
    what = cycle(turns)
    rng = random.Random(seed)
    stream = worlds("pretrain", seed)
    pad = tokenizer.pad_token_id
    while True:
        rows: list[tuple[list[int], list[int]]] = []
        turn = next(what)
        while len(rows) < size:
            world, query, _ = next(stream)
            sample = Sample("", "", query.wording(rng.random() < 0.5), "", facts=facts(world))
            if turn == "scenes" and not world.objects:
                continue
            if turn != "pairs":
                rows.append(statements_row(tokenizer, sample, world, rng))
                continue
            first, second = (practice_rap(query, world, rng) for _ in range(2))
            if first != second:
                rows.append(judge_row(tokenizer, sample, first, second))
        # what is predicted at a token is, to the model, the next token's label
        yield padded([([*ids, pad], [-100, *labels]) for ids, labels in rows], pad)


def train_judge(
    out: Path,
    seed: int = 0,
    *,
    practice: Schedule = PRACTICE,
    drill: Schedule = DRILL,
    lookup: Schedule = LOOKUP,
    comparing: Schedule = COMPARE,
) -> None:
    """Train `mini-judge` and save model and tokenizer to `out`. About an hour on one core.

    A finished phase is kept in `out` and not trained again.
    """
    import torch

    from selfcal.miniworld.cards import judge_card

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_judge(tokenizer)
    out.mkdir(parents=True, exist_ok=True)

    def batches(seed: int, size: int, *turns: str) -> Any:
        return lambda: judge_batches(tokenizer, size, seed, turns)

    phases = [
        ("practice", practice, batches(seed, practice.batch_size, "pairs")),
        ("drill", drill, batches(seed + 1, drill.batch_size, "facts", "pairs")),
        ("lookup", lookup, batches(seed + 2, lookup.batch_size, "scenes", "scenes", "pairs")),
        ("compare", comparing, batches(seed + 3, comparing.batch_size, "pairs")),
    ]
    fit_phases(model, phases, out)
    model.to(torch.float16).save_pretrained(out / "mini-judge")
    tokenizer.save_pretrained(out / "mini-judge")
    (out / "mini-judge" / "README.md").write_text(judge_card(), encoding="utf-8")
