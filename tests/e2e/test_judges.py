"""Whole runs with a judge that sees the image."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from e2e.runs import Finished, Told, small
from selfcal.judge import seeing
from selfcal.pipeline import execute
from selfcal.recipe import Recipe
from selfcal.testing import tiny_policy
from selfcal.types import GradedResponse, Judgment, LabelledPair, Sample

LESS = (
    "data.rft=16", "data.calibration=6", "data.dev=4", "data.test=4", "data.repeat=true",
    "judge.samples=12", "judge.sees=true", "judge.train.steps=2", "judge.min_mass=0", "rft.steps=1",
    "dpo.steps=1", "iterations=1", "search.candidates=3", "curate.aggregator=expected",
)  # fmt: skip


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_policy(tmp_path_factory.mktemp("judge") / "model", seed=3)


def seeing_recipe(judge_folder: str, *more: str) -> Recipe:
    return small(*LESS, f"judge.model={judge_folder}", *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, judge_folder: str) -> Finished:
    recipe, told = seeing_recipe(judge_folder), Told()
    run = tmp_path_factory.mktemp("seeing") / "run"
    execute(recipe, run, told)
    return Finished(recipe, run, told)


def test_a_run_with_a_judge_that_sees(finished: Finished) -> None:
    assert {"judge/train", "judge/quality", "iter-1/judgments", "iter-1/dpo"} <= set(
        finished.told.ended
    )
    trained = finished.stats("judge/train")
    assert trained["rows"] > 0 and trained["steps"] == 2
    assert (finished.run / "judge/train/checkpoint/preprocessor_config.json").exists() or (
        finished.run / "judge/train/checkpoint/processor_config.json"
    ).exists()
    made = finished.read("iter-1/judgments", "judgments", Judgment)
    assert made and all(g.verdict is not None for g in made)
    assert finished.stats("judge/quality")["agreement"]["n"] > 0


def test_labels_know_the_images_inside_the_run(finished: Finished) -> None:
    pairs = finished.read("judge/labels", "train", LabelledPair)
    images = {s.id: s.images for s in finished.read("data", "rft", Sample)}
    assert pairs
    for p in pairs:
        assert p.images == images[p.sample_id] and not Path(p.images[0]).is_absolute()
        assert (finished.run / p.images[0]).is_file()


def test_a_moved_run_goes_on(
    tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What depends on the labels' images is done anew elsewhere, by the images that are there."""
    moved, told = tmp_path / "run", Told()
    shutil.copytree(finished.run, moved)
    recipe = finished.recipe.model_copy(
        update={"judge": finished.recipe.judge.model_copy(update={"min_mass": 0.001})}
    )
    opened: list[str] = []
    real = seeing.load_image

    def load(path: Path) -> Any:
        opened.append(str(path))
        return real(path)

    monkeypatch.setattr(seeing, "load_image", load)
    execute(recipe, moved, told)
    assert "judge/quality" in told.ended and "judge/labels" in told.skipped
    assert opened and all(path.startswith(str(moved)) for path in opened)


def test_a_grader_that_sees_trains_an_online_method(tmp_path: Path, judge_folder: str) -> None:
    recipe = seeing_recipe(
        judge_folder, "method=faithful_grpo", "judge.prompt=null", "grpo.steps=1",
        "grpo.batch_size=4", "grpo.group=2", "grpo.max_new_tokens=8", "judge.train.max_length=2048",
        "options.entailed_prompt='{{ response }}'", "options.grounded_prompt='{{ response }}'",
    )  # fmt: skip
    run, told = tmp_path / "run", Told()
    execute(recipe, run, told)
    done = Finished(recipe, run, told)
    graded = done.read("judge/grades", "train", GradedResponse)
    assert graded and all((run / g.images[0]).is_file() for g in graded)
    assert done.stats("judge/grader")["rows"] == len(graded)
    assert done.stats("iter-1/grpo")["judgments"] > 0
