"""Single stages of a recipe, done as a run does them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcal.pipeline import locate, pin
from selfcal.recipe import Recipe
from selfcal.stage import Work
from selfcal.store import StageDir
from selfcal.testing import tiny_samples

SPLITS = {"rft": 6, "calibration": 4}


def foreign(folder: Path, **changes: Any) -> Path:
    """MiniWorld's samples as a user's own data: files of rows, without facts."""
    for split, n in SPLITS.items():
        rows = [
            {"id": s.id, "image": s.image, "question": s.question, "answer": s.answer}
            | ({"choices": list(s.choices)} if s.choices else {})
            | {k: v for k, v in changes.items() if i == 0}
            for i, s in enumerate(tiny_samples(folder / "world", n, split))
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def recipe(data: Path, **more: Any) -> Recipe:
    """A small recipe on such data."""
    sizes = {"source": str(data), "dev": 0, "test": 0, **SPLITS}
    given = {"name": "own", "data": sizes, "evaluate": {"splits": []}, "iterations": 1, **more}
    return Recipe.model_validate(given)


def folders(recipe: Recipe, run: Path) -> Mapping[str, StageDir]:
    """The stages' folders."""
    return {p.stage.name: p.folder for p in locate(pin(recipe), run)}


def do(recipe: Recipe, run: Path, *names: str) -> dict[str, Any]:
    """Do these stages, unless they are done; gives the figures of the last one."""
    planned = {p.stage.name: p for p in locate(pin(recipe), run)}
    for name in names:
        p = planned[name]
        if not p.folder.done:
            p.folder.open()
            inputs = {i: planned[i].folder for i in p.stage.inputs}
            p.folder.finish(p.stage.run(Work(run, p.stage, p.folder, inputs, recipe.seed)), 0.0)
    return dict(planned[names[-1]].folder.manifest()["stats"])
