"""Build MiniWorld's splits: images and one JSON line per sample, the same for the same seed.

Splits are disjoint by construction, not by luck: scenes and charts belong to a split by a hash of
their facts, digit scans by their number, so no image of one split can appear in another.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from selfcal.errors import SelfcalError
from selfcal.miniworld.draw import load_scans, paint
from selfcal.miniworld.questions import Query, answer, gold_rationale, random_query
from selfcal.miniworld.world import CATEGORIES, World, facts, random_world
from selfcal.types import Sample

SPLITS = {"pretrain": 50, "rft": 10, "calibration": 20, "dev": 8, "test": 12}
"""Share (percent) of all worlds and of all digit scans that belongs to each split."""
MIX = (2, 1, 1)
"""Perception : chart : math, as in SRC."""
SIZES = {"rft": 800, "calibration": 1600, "dev": 400, "test": 800}


def split_of(key: str) -> str:
    """The split that a world or scan belongs to, by hash."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100
    for split, share in SPLITS.items():
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError("shares add up to 100")


def scans_of(split: str) -> dict[int, list[int]]:
    """The digit scans that belong to a split, by value."""
    scans: dict[int, list[int]] = {v: [] for v in range(10)}
    for i, value in enumerate(load_scans()[1]):
        if split_of(f"scan {i}") == split:
            scans[int(value)].append(i)
    return scans


def worlds(split: str, seed: int) -> Iterator[tuple[World, Query, random.Random]]:
    """Endless worlds of a split in the paper's mix, each with a question and its own generator."""
    rng = random.Random(f"miniworld {split} {seed}")
    cycle = [c for c, n in zip(CATEGORIES, MIX, strict=True) for _ in range(n)]
    i = 0
    while True:
        world = random_world(cycle[i % len(cycle)], rng)
        if not world.digits and split_of(facts(world)) != split:
            continue
        i += 1
        yield world, random_query(world, rng), random.Random(rng.getrandbits(64))


def build(out: Path, sizes: Mapping[str, int] = SIZES, seed: int = 0) -> dict[str, int]:
    """Write `out/SPLIT.jsonl` and `out/images/SPLIT/*.png`; returns the number of samples a split.

    A split that is there with the same samples is left alone.

    Raises:
        ValueError: a size is negative or the split unknown.
        SelfcalError: a split is there with other samples, of another size or seed. Nothing is
            written then.
    """
    drawn = {split: _draw(split, size, seed) for split, size in sizes.items()}
    missing = [split for split in sizes if not _is_there(out, split, drawn[split], seed)]
    for split in missing:
        (out / "images" / split).mkdir(parents=True, exist_ok=True)
        scans = scans_of(split)
        for sample, world, rng in drawn[split]:
            paint(world, rng, scans).save(out / sample.image)
        index = out / f"{split}.jsonl"
        partial = index.with_suffix(".partial")
        partial.write_text(_lines(drawn[split]), encoding="utf-8")
        os.replace(partial, index)  # written last: its existence means the images are there
    return dict(sizes)


_Drawn = list[tuple[Sample, World, random.Random]]


def _draw(split: str, size: int, seed: int) -> _Drawn:
    if split not in SPLITS or size < 0:
        raise ValueError(f"split {split!r} of size {size}: splits are {', '.join(SPLITS)}")
    return [
        (_sample(f"{split}-{i:05d}", world, query, rng.random() < 0.5), world, rng)
        for i, (world, query, rng) in zip(range(size), worlds(split, seed), strict=False)
    ]


def _lines(drawn: _Drawn) -> str:
    rows = (asdict(sample) for sample, _, _ in drawn)
    return "".join(json.dumps({k: v for k, v in r.items() if k != _MORE}) + "\n" for r in rows)


_MORE = "more_images"
"""A field that says nothing here: a MiniWorld question is about one image."""


def _is_there(out: Path, split: str, drawn: _Drawn, seed: int) -> bool:
    index = out / f"{split}.jsonl"
    if not index.exists():
        return False
    if index.read_text(encoding="utf-8") != _lines(drawn):
        raise SelfcalError(
            f"{index} holds other samples than the {len(drawn)} of seed {seed}; give another folder"
        )
    return True


def _sample(name: str, world: World, query: Query, order: bool) -> Sample:
    split = name.split("-")[0]
    return Sample(
        id=name,
        image=f"images/{split}/{name}.png",
        question=query.wording(order),
        answer=answer(query, world),
        category=world.category,
        rationale=gold_rationale(query, world),
        facts=facts(world),
    )
