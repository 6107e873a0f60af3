"""Samples, from MiniWorld or from the user's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from selfcal.methods.parts.base import SPLITS, part_of
from selfcal.recipe import Recipe
from selfcal.stage import Stage, Work, count_drops
from selfcal.store import JSON
from selfcal.types import Drop, Sample


def data(recipe: Recipe) -> Stage:
    """Samples of all splits, from MiniWorld or from the user's files."""
    sizes = {s: n for s in SPLITS if (n := getattr(recipe.data, s))}

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.data import draw_mix, read_samples

        mine = not recipe.data.miniworld
        folder = Path(recipe.data.source) if mine else work.out
        if not mine:
            from selfcal.miniworld.build import build

            build(work.out, sizes, work.seed)
        counts: dict[str, JSON] = {}
        dropped: list[Drop] = []
        for split in sizes:
            samples, drops = read_samples(_split_file(folder, split))
            mix = recipe.data.mix or None
            drawn = draw_mix(samples, sizes[split], mix, f"{work.rng_key()}|{split}")
            if split == "calibration" and recipe.data.uncertain:
                drawn = _doubtful(drawn, work, recipe.data.uncertain)
            inside = [replace(s, image=_within(work.run, s.image)) for s in drawn]
            work.write(split, inside, Sample)
            dropped += drops
            counts[split] = len(drawn)
        work.write("drops", dropped, Drop)
        return {"samples": counts, "drops": count_drops(dropped)}

    return Stage(
        "data", (), part_of(recipe, "data"), run, sum(sizes.values()), "samples", "read the samples"
    )


def _doubtful(samples: list[Sample], work: Work, share: float) -> list[Sample]:
    from selfcal.miniworld.uncertain import spoil

    return spoil(samples, work.out / "images" / "uncertain", share, work.rng_key())


def _split_file(folder: Path, split: str) -> Path:
    prompts = ("json",) if split == "calibration" else ()  # they have no answers
    kinds = [folder / f"{split}.{kind}" for kind in ("parquet", "jsonl", *prompts)]
    return next((path for path in kinds if path.exists()), kinds[1])


def _within(run: Path, image: str) -> str:
    """An image's path relative to the run where it lies inside, so that the run can be moved."""
    path, root = Path(image).resolve(), run.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
