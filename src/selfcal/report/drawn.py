"""Which samples a report shows: those followed, a uniform draw, and some for each reason.

Reasons for which samples were left out are often rare, so that a uniform draw would show none of
them. So a part of it gives way to samples that show a reason, and the page says how many did.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import zip_longest

from selfcal.pipeline import Planned
from selfcal.types import Drop, Response, Sample

_SPLITS = ("calibration", "test", "dev", "rft")
"""In the order in which the page lists them."""
_EXAMPLES = 5
"""Samples that are wanted of each stage and reason."""


def ids_of(planned: Mapping[str, Planned]) -> dict[str, list[str]]:
    """The samples of each split; none of a run whose data is not there yet."""
    data = planned["data"].folder
    have = [split for split in _SPLITS if data.done and data.has(split, 0)]
    return {split: [s.id for s in data.records(split, Sample)] for split in have}


def followed_of(planned: Mapping[str, Planned]) -> set[tuple[str, str]]:
    """Calibration samples, by split and id, that checkpoints were asked about."""
    folders = [p.folder for name, p in planned.items() if name.startswith("eval/")]
    own = [f for f in folders if f.done and f.has("calibration", 0)]
    answered = (r.sample_id for f in own for r in f.records("calibration", Response))
    return {("calibration", sample_id) for sample_id in answered}


def draw(
    ids: Mapping[str, Sequence[str]],
    followed: Collection[tuple[str, str]],
    limit: int,
    seed: int,
) -> dict[str, list[str]]:
    """Which samples are shown, by split: followed ones, and the others by a uniform draw.

    The splits share the limit evenly; what one of them has too few for goes to the others. The draw
    depends on the seed and the samples' ids alone, so a smaller limit shows some of the same.
    """
    shares = _shares({split: len(own) for split, own in ids.items()}, limit)

    def place(split: str, sample_id: str) -> tuple[bool, bytes]:
        return (split, sample_id) not in followed, _lot(seed, split, sample_id)

    return {
        split: sorted(own, key=partial(place, split))[: shares[split]] for split, own in ids.items()
    }


def _lot(seed: int, split: str, sample_id: str) -> bytes:
    return hashlib.sha256(f"report\n{seed}\n{split}\n{sample_id}".encode()).digest()


def _shares(sizes: Mapping[str, int], limit: int) -> dict[str, int]:
    """How many samples of each split are shown; what is left over goes to the first ones."""
    shares = dict.fromkeys(sizes, 0)
    left = max(0, limit)
    while left and (short := [s for s in sizes if shares[s] < sizes[s]]):
        for i, split in enumerate(short):
            more = min(sizes[split] - shares[split], left // len(short) + (i < left % len(short)))
            shares[split] += more
        left = max(0, limit) - sum(shares.values())
    return shares


# --- a few for each reason ------------------------------------------------------------------


def split_of(stage: str, sample_id: str, ids: Mapping[str, Collection[str]]) -> str:
    """The split of a sample that a stage left out; empty: it is in none that is trained on."""
    order = ("calibration", "rft") if stage.startswith("iter-") else ("rft", "calibration")
    return next((s for s in order if stage != "data" and sample_id in ids.get(s, ())), "")


def examples(
    planned: Mapping[str, Planned], ids: Mapping[str, Sequence[str]], seed: int
) -> list[tuple[str, str]]:
    """Samples, by split and id, that show why samples were left out: first one of each reason."""
    known = {split: set(own) for split, own in ids.items()}
    left: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for name, p in planned.items():
        if p.folder.done and p.folder.has("drops", 0):
            for drop in p.folder.records("drops", Drop):
                if split := split_of(name, drop.sample_id, known):
                    left[name, drop.reason].add((split, drop.sample_id))
    wanted = [sorted(own, key=lambda one: _lot(seed, *one))[:_EXAMPLES] for own in left.values()]
    by_turns = (one for turn in zip_longest(*wanted) for one in turn if one)
    return list(dict.fromkeys(by_turns))


def exchange(
    drawn: Mapping[str, Sequence[str]],
    followed: Collection[tuple[str, str]],
    wanted: Sequence[tuple[str, str]],
) -> tuple[dict[str, list[str]], int]:
    """The draw with as many of the wanted as half of it has room for, and how many gave way.

    Those that gave way are the last ones that nobody followed or wanted; the others' order stays,
    and what came in their place stands behind it.
    """
    made: dict[str, list[str]] = {}
    for split, own in drawn.items():
        keep = {i for s, i in (*followed, *wanted) if s == split}
        free = [i for i in own if i not in keep]
        have = set(own)
        more = [i for s, i in wanted if s == split and i not in have]
        more = more[: min(len(own) // 2, len(free))]
        gone = set(free[len(free) - len(more) :])
        made[split] = [*(i for i in own if i not in gone), *more]
    return made, sum(len(set(own) - set(drawn[split])) for split, own in made.items())
