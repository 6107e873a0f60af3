"""Whole runs of the smallest size with a family's tiny model, as users would start them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.runs import Kept
from selfcal.pipeline import execute, pin
from selfcal.recipe import Recipe

RFT = {
    "steps": 2,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "warmup": 0,
    "lora": {"rank": 2, "alpha": 4},
}


def recipe(method: str, model: str, **more: Any) -> Recipe:
    """Every stage once, with the family's model as policy and as a judge that sees."""
    values = {
        "name": "families", "method": method, "iterations": 1, "threads": 1,
        "data": {"rft": 6, "calibration": 4, "dev": 2, "test": 2},
        "policy": {"model": model, "device": "cpu"},
        "teacher": {"kind": "miniworld", "error_rate": 0},
        "rft": RFT | {"batch_size": 6},  # all rows, so that the first loss can be told
        "search": {"candidates": 3, "branch": 2, "max_sentences": 3, "sentence_tokens": 8},
        "judge": {
            "model": model, "sees": True, "samples": 6, "pairs_per_sample": 2, "min_mass": 0.0,
            "train": RFT | {"learning_rate": 1e-5},
        },
        "curate": {"aggregator": "expected"},  # weights drawn at random are never sure
        "dpo": RFT | {"sft_weight": 0.5, "batch_size": 4},
        "grpo": RFT | {"steps": 1, "batch_size": 4, "group": 2, "max_new_tokens": 8},
        "evaluate": {"max_new_tokens": 12},
    }  # fmt: skip
    return pin(Recipe.model_validate(values | more))


@dataclass(frozen=True)
class Ran(Kept):
    """A finished run of a family's tiny model."""

    def losses(self, stage: str) -> list[float]:
        """A training's losses, all finite."""
        found = [row["loss"] for row in self.stats(stage)["curve"]]
        assert all(map(math.isfinite, found))
        return found


def ran(recipe: Recipe, run: Path, *reuse: Path) -> Ran:
    """Run a recipe; stages that another run has are taken from it."""
    execute(recipe, run, reuse=reuse)
    return Ran(recipe, run)
