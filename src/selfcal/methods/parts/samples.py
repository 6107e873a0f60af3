"""Samples, from MiniWorld or from the user's files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcal.methods.parts.base import SPLITS, part_of
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work
from selfcal.store import JSON
from selfcal.types import Drop, Sample

if TYPE_CHECKING:
    from selfcal.data import Checker, Kept, Rules

_TRAIN, _HELD_OUT = ("rft", "calibration"), ("dev", "test")


def data(recipe: Recipe) -> Stage:
    """Samples of all splits, from MiniWorld or from the user's files."""
    sizes = {s: n for s in SPLITS if (n := getattr(recipe.data, s))}

    def run(work: Work) -> Mapping[str, JSON]:
        drops = work.writer("drops", Drop)
        stats: dict[str, JSON] = {}
        if recipe.data.sources:
            drawn = _from_sources(recipe, work, sizes, drops.add, stats)
        else:
            drawn = _from_folder(recipe, work, sizes, drops.add, stats)
        inside = _inside(work.run)
        for split, samples in drawn.items():
            out = work.writer(split, Sample)
            for sample in samples:
                out.add(inside(sample))
            out.end()
        drops.end()
        counts: dict[str, JSON] = {split: len(samples) for split, samples in drawn.items()}
        return {"samples": counts, **stats, "drops": work.drop_counts()}

    return Stage(
        "data", (), _settings(recipe), run, sum(sizes.values()), "samples", "read the samples"
    )


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What samples depend on; without digests where there are none."""
    depends = part_of(recipe, "data")
    own = depends["data"]
    for settings, name in ((own, "digests"), *((source, "digest") for source in own["sources"])):
        if not settings[name]:
            del settings[name]
    return depends


Told = Callable[[Drop], None]


def _from_sources(
    recipe: Recipe, work: Work, sizes: Mapping[str, int], told: Told, stats: dict[str, JSON]
) -> dict[str, list[Sample]]:
    from selfcal.data.sources import mix_sources

    d = recipe.data
    mixed = mix_sources(
        d.sources, sizes, d.mix, work.rng_key(), _rules(recipe), work.out / "images", told
    )
    stats["kept"] = mixed.kept
    return mixed.splits


def _from_folder(
    recipe: Recipe, work: Work, sizes: Mapping[str, int], told: Told, stats: dict[str, JSON]
) -> dict[str, list[Sample]]:
    """Every split from the file of its name, as MiniWorld writes them too."""
    from selfcal.data import Checker, DataError, split_files

    folder = work.out if recipe.data.miniworld else Path(recipe.data.source)
    if recipe.data.miniworld:
        from selfcal.miniworld.build import build

        build(work.out, sizes, work.seed)
    elif folder.is_file():
        raise DataError(
            f"data.source: {folder} is a file; give a folder with a file for each of "
            f"{', '.join(sizes)}, or list the file under data.sources"
        )
    files = split_files(folder)
    drawn: dict[str, list[Kept]] = {}
    with Checker(_rules(recipe)) as checker:
        for split in sizes:
            path = files.get(split, folder / f"{split}.jsonl")
            drawn[split] = _draw(recipe, work, split, path, checker, told)
    if not recipe.data.miniworld:
        stats["leaked_images"] = _leaked(drawn)
    samples = {split: [k.sample for k in kept] for split, kept in drawn.items()}
    if recipe.data.uncertain:
        samples["calibration"] = _doubtful(samples["calibration"], work, recipe.data.uncertain)
    return samples


def _draw(
    recipe: Recipe, work: Work, split: str, path: Path, checker: Checker, told: Told
) -> list[Kept]:
    """The samples of a split, drawn while its file streams by."""
    from selfcal.data import Draw, Kept, insist, open_data, order, read, save_embedded

    file = open_data(path, Path(root) if (root := recipe.data.images) is not None else None)
    if split != "calibration":  # the others are trained on, or held against, answers
        file = replace(file, answered=True)
    draw = Draw[Kept](getattr(recipe.data, split), recipe.data.mix)
    for found in insist(path, read(file, checker, work.out / "images")):
        if isinstance(found, Drop):
            told(found)
        else:
            key = order(f"{work.rng_key()}|{split}", found.sample.id)
            draw.add(found, key, found.sample.category)
    drawn = draw.take()
    save_embedded(file, {kept.number: kept for kept in drawn})
    return drawn


def _leaked(drawn: Mapping[str, Sequence[Kept]]) -> int:
    """Images, by content, that training and measurement share."""
    sides = [
        {image for split in own for kept in drawn.get(split, ()) for image in kept.contents}
        for own in (_TRAIN, _HELD_OUT)
    ]
    return len(sides[0] & sides[1])


def _rules(recipe: Recipe) -> Rules:
    from selfcal.data import Rules

    return Rules(recipe.data.min_side, recipe.data.max_pixels, recipe.data.max_images)


def _doubtful(samples: list[Sample], work: Work, share: float) -> list[Sample]:
    from selfcal.miniworld.uncertain import spoil

    return spoil(samples, work.out / "images" / "uncertain", share, work.rng_key())


def _inside(run: Path) -> Callable[[Sample], Sample]:
    """Names images relative to the run where they lie inside, so that the run can be moved."""
    root = f"{run.resolve()}{os.sep}"
    folder_of = cache(os.path.realpath)  # they share a few

    def within(image: str) -> str:
        folder, name = os.path.split(image)
        path = os.path.join(folder_of(folder), name)
        path = os.path.realpath(path) if os.path.islink(path) else path
        return Path(path[len(root) :]).as_posix() if path.startswith(root) else path

    return lambda s: replace(
        s, image=within(s.image), more_images=tuple(within(i) for i in s.more_images)
    )
