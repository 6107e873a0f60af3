"""Finished runs of two iterations, made by hand out of records, without any model.

A run has one question for each `Item`. Of every calibration sample two responses were searched, and
one more sentence that was pruned; the judge prefers the first, 0.75 to 0.15 with both orders
averaged, and so the first was chosen. Test samples were answered by all four checkpoints: `bad` by
the seed model, then `good`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from selfcal.evaluate import grade, measure
from selfcal.types import (
    Candidate,
    Drop,
    Judgment,
    LabelledPair,
    PreferencePair,
    Response,
    Result,
    Sample,
    SearchNode,
    WrittenRap,
)
from unit.hand_made import RunFolder

EACH = (-0.5, -0.75)
"""Log-probability of a sentence of the better and of the worse response."""
PRUNED = "Perhaps the left digit is 8."
CATEGORIES = ("math", "chart", "perception")
CHECKPOINTS = ("seed", "rft", "iter-1", "iter-2")
FIGURES = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins",
           "rewards/accuracies", "logps/chosen", "logps/rejected")  # fmt: skip
QUALITY = {
    "agreement": {"value": 0.9, "stderr": 0.05, "n": 40},
    "agreement_merged": {"value": 0.95, "stderr": 0.04, "n": 20},
    "flip_rate": {"value": 0.05, "stderr": 0.04, "n": 20},
    "neutral_rate": {"value": 0.4, "stderr": 0.08, "n": 40},
    "ece": {"value": 0.02, "n": 40},
    "length_bias": {"value": 0.03, "stderr": 0.03, "n": 30},
    "unscored": {"value": 0.0, "stderr": 0.0, "n": 40},
}


@dataclass(frozen=True)
class Item:
    """A sample, and a better and a worse response to it."""

    sample: Sample
    good: str
    bad: str
    kept: bool = True
    """False: curation drops it, as one without a gap."""
    detail: str = ""
    """What the drop says."""


def item(number: int, split: str = "calibration", swapped: bool = False, **more: Any) -> Item:
    """A sum of digits, whose numbers follow from `number`.

    The worse response misreads the left digit; `swapped`: it is taken for the better one.
    """
    left, right = number % 10, number // 10 % 10
    name = f"{split}-{number:05d}"
    category, facts = CATEGORIES[number % 3], f"left digit: {left}; right digit: {right}"
    sample = Sample(
        name, f"images/{name}.png", "Add the digits.", str(left + right), (), category, "", facts
    )
    right_one, wrong_one = response(left, right), response((left + 1) % 10, right)
    texts = (wrong_one, right_one) if swapped else (right_one, wrong_one)
    return Item(sample, *texts, **more)


def response(left: int, right: int) -> str:
    """A response that reads these digits and adds them rightly."""
    total = left + right
    return (
        f"Rationale: The left digit is {left}. The right digit is {right}. "
        f"{left} plus {right} is {total}.\nAnswer: {total}"
    )


def finished(
    path: Path, calibration: Sequence[Item], test: Sequence[Item], name: str = "tiny"
) -> Path:
    """Write a finished run; of the pictures only those with a plain name in `images` are made."""
    n = len(calibration)
    sizes = (f"data.calibration={n}", f"data.test={len(test)}")
    run = RunFolder(path, f"name={name!r}", "iterations=2", *sizes)
    rft = item(7, "rft")
    draw(path, [i.sample for i in (rft, item(5, "dev"), *calibration, *test)])
    _begin(run, rft, calibration, test)
    for t in (1, 2):
        _iteration(run, t, calibration)
    for i, checkpoint in enumerate(CHECKPOINTS):
        _measure(run, i, checkpoint, test)
    return path


def draw(path: Path, samples: Sequence[Sample]) -> None:
    """A small picture for each plain name."""
    (path / "images").mkdir(parents=True, exist_ok=True)
    for i, sample in enumerate(samples):
        if re.fullmatch(r"images/[\w-]+\.png", sample.image):
            Image.new("RGB", (24, 24), (i % 256, 90, 160)).save(path / sample.image)


def _begin(run: RunFolder, rft: Item, calibration: Sequence[Item], test: Sequence[Item]) -> None:
    splits = {
        "rft": [rft.sample],
        "calibration": [i.sample for i in calibration],
        "dev": [item(5, "dev").sample],
        "test": [i.sample for i in test],
    }
    lost = [Drop(i.sample.id, "data", "image-broken", i.detail) for i in calibration if i.detail]
    run.finish(
        "data",
        {split: (Sample, own) for split, own in splits.items()} | {"drops": (Drop, lost)},
        {"samples": {split: len(own) for split, own in splits.items()},
         "drops": {"image-broken": len(lost)} if lost else {}},
    )  # fmt: skip
    rap = WrittenRap(rft.sample.id, rft.good)
    run.finish(
        "teacher", {"raps": (WrittenRap, [rap]), "drops": (Drop, [])}, {"raps": 1, "drops": {}}
    )
    run.finish("rft", {"drops": (Drop, [])}, _training(1))
    run.finish("judge/candidates", _searched([rft]), _search_figures(1))
    label = LabelledPair(
        rft.sample.id, rft.sample.question, rft.sample.facts, rft.good, rft.bad, "first"
    )
    kinds = {k: (LabelledPair, [label]) for k in ("labelled", "train", "heldout")}
    run.finish(
        "judge/labels", kinds | {"drops": (Drop, [])}, {"train": 1, "heldout": 1, "drops": {}}
    )
    run.finish("judge/train", {"drops": (Drop, [])}, _training(1))
    run.finish("judge/quality", stats=QUALITY)


def _iteration(run: RunFolder, t: int, items: Sequence[Item]) -> None:
    here = f"iter-{t}"
    run.finish(f"{here}/candidates", _searched(items), _search_figures(len(items)))
    judged = [g for i in items for g in judgments(i.sample.id)]
    stats = {"judgments": len(judged), "unscored": 0, "share_of_all": 1.0}
    run.finish(f"{here}/judgments", {"judgments": (Judgment, judged)}, stats)
    pairs = [PreferencePair(i.sample.id, i.good, i.bad, 0, 1, 1.0, -1.0) for i in items if i.kept]
    drops = [Drop(i.sample.id, "pairs", "no-gap", i.detail) for i in items if not i.kept]
    run.finish(
        f"{here}/pairs",
        {"pairs": (PreferencePair, pairs), "drops": (Drop, drops)},
        {"pairs": len(pairs), "drops": {"no-gap": len(drops)} if drops else {}, "mean_margin": 2.0},
    )
    run.finish(f"{here}/dpo", {"drops": (Drop, [])}, _training(len(pairs)))


def _searched(items: Sequence[Item]) -> dict[str, tuple[type[Any], list[Any]]]:
    said = [candidate(i.sample.id, k, t) for i in items for k, t in enumerate((i.good, i.bad))]
    nodes = [n for i in items for n in tree(i)]
    return {"candidates": (Candidate, said), "nodes": (SearchNode, nodes), "drops": (Drop, [])}


def sentences(text: str) -> tuple[str, ...]:
    """The pieces of a response as a search would have found them."""
    return tuple(re.findall(r"[^.\n]*[.\n]+|[^.\n]+$", text)) or (text,)


def candidate(sample_id: str, index: int, text: str) -> Candidate:
    """A response whose sentences have log-probability -0.5 (the better one) or -0.75 each."""
    own, n = sentences(text), len(sentences(text))
    return Candidate(sample_id, index, text, own, (EACH[index],) * n, (4,) * n, True)


def tree(own: Item) -> list[SearchNode]:
    """Both responses, what they begin with in common, and a sentence that was pruned."""
    nodes: list[SearchNode] = []
    known: dict[tuple[int, str], int] = {}
    for index, text in enumerate((own.good, own.bad)):
        parent, pieces = -1, sentences(text)
        for place, piece in enumerate(pieces):
            last = place == len(pieces) - 1
            if last or (parent, piece) not in known:
                known[parent, piece] = len(nodes)
                nodes.append(
                    SearchNode(own.sample.id, len(nodes), parent, piece, EACH[index], 4, 2, True,
                               index if last else -1)
                )  # fmt: skip
            parent = known[parent, piece]
    return [*nodes, SearchNode(own.sample.id, len(nodes), -1, PRUNED, -4.25, 7, 1, False, -1)]


def judgments(sample_id: str) -> list[Judgment]:
    """Both orders: 0.8 and 0.7 for the first candidate, 0.75 averaged."""
    return [
        Judgment(sample_id, 0, 1, "first", 0.8, 0.1, 0.1),
        Judgment(sample_id, 1, 0, "second", 0.2, 0.7, 0.1),
    ]


def _search_figures(n: int) -> dict[str, Any]:
    engine = {"tokens": 30 * n, "amplification": 1.0, "steps": 9, "rows": 8.0, "occupancy": 0.9}
    return {"candidates": 2 * n, "per_sample": 2.0, "tokens": 30 * n, "merged": n, "drops": {},
            "engine": engine | {"back_offs": 0}}  # fmt: skip


def _training(rows: int) -> dict[str, Any]:
    curve = [{name: round(0.1 * step + 0.01 * k, 3) for k, name in enumerate(FIGURES)}
             | {"step": float(step), "epoch": step / 4} for step in range(1, 9)]  # fmt: skip
    return {"steps": 8, "rows": rows, "drops": {}, "curve": curve}


def _measure(run: RunFolder, number: int, checkpoint: str, test: Sequence[Item]) -> None:
    said = {
        "dev": [answered(item(5, "dev"), number)],
        "test": [answered(i, number) for i in test],
    }
    rows = [r for split, own in said.items() for r in measure(own, checkpoint, split, 0, True)]
    stats = {r.metric: r.value for r in rows if r.category == "all" and r.value == r.value}
    records: dict[str, tuple[type[Any], list[Any]]] = {
        k: (Response, own) for k, own in said.items()
    }
    run.finish(f"eval/{checkpoint}", records | {"results": (Result, rows)}, stats)


def answered(own: Item, number: int) -> Response:
    """What checkpoint `number` said; unlike a run's, also to questions that are not MiniWorld's."""
    text = own.good if number else own.bad
    try:
        return grade(own.sample, text)
    except ValueError:
        flags = (True, bool(number), False, False, True, False, False)
        return Response(own.sample.id, own.sample.category, text, own.sample.answer, *flags, 0, 1)
