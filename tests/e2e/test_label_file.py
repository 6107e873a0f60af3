"""A whole run whose judge learns from a file of labels: those that another run asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from e2e.runs import Finished, Told, Undisturbed, outcome, small
from selfcal.pipeline import Planned, execute, locate, open_run, pin
from selfcal.types import LabelledPair
from unit.hand_made import call


def written(path: Path, pairs: Sequence[LabelledPair]) -> Path:
    """A file of labels with these pairs, and with a key that nobody knows."""
    rows = [
        {
            "sample_id": p.sample_id, "question": p.question, "facts": p.facts, "first": p.first,
            "second": p.second, "verdict": p.verdict, "annotator": "ada",
        }
        for p in pairs
    ]  # fmt: skip
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def asked(undisturbed: Undisturbed) -> list[LabelledPair]:
    there = Finished(undisturbed.recipe, undisturbed.run, undisturbed.told)
    return there.read("judge/labels", "labelled", LabelledPair)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, asked: list[LabelledPair]) -> Finished:
    folder = tmp_path_factory.mktemp("labelled")
    file = written(folder / "people.jsonl", asked)
    recipe, told = small(f"judge.labels={file}", "iterations=1", "judge.calibrate=once"), Told()
    execute(recipe, folder / "run", told)
    file.unlink()  # a run can be looked at, and gone on with, without it
    return Finished(recipe, folder / "run", told)


def test_no_candidates_of_training_samples_are_searched(labelled: Finished) -> None:
    assert [name for name in labelled.told.begun if name.startswith("judge/")] == [
        "judge/labels", "judge/train", "judge/quality", "judge/calibration",
    ]  # fmt: skip


def test_the_judge_is_the_one_that_was_trained_on_labels_asked_for(
    labelled: Finished, undisturbed: Undisturbed
) -> None:
    mine = outcome(labelled.recipe, labelled.run)
    for name in ("train", "heldout", "labelled"):
        found = labelled.read("judge/labels", name, LabelledPair)
        there = Finished(undisturbed.recipe, undisturbed.run, undisturbed.told)
        own = there.read("judge/labels", name, LabelledPair)
        assert found == [replace(p, images=()) for p in own]
    weights = "checkpoint/model.safetensors"
    trained = undisturbed.outcome["judge/train"]
    assert mine["judge/train"]["files"][weights] == trained["files"][weights]
    assert mine["judge/quality"] == undisturbed.outcome["judge/quality"]


def test_sizes_come_from_the_file(labelled: Finished, asked: list[LabelledPair]) -> None:
    sizes = {p.stage.name: (p.stage.size, p.stage.unit) for p in _planned(labelled)}
    assert sizes["judge/labels"] == (len(asked), "pairs")
    assert sizes["judge/quality"] == (round(0.2 * len(asked)), "pairs")


def test_such_a_run_is_shown_and_gone_on_with_without_the_file(labelled: Finished) -> None:
    assert open_run(labelled.run) == labelled.recipe
    for command in (
        ["status"], ["results"], ["trace", "rft-00000"], ["trace", "calibration-00000"],
    ):  # fmt: skip
        done = call(command[0], labelled.run, *command[1:])
        assert done.exit_code == 0, done.output
    told = Told()
    execute(open_run(labelled.run), labelled.run, told)
    assert told.begun == []


def test_the_same_labels_elsewhere_are_no_other_labels(
    labelled: Finished, asked: list[LabelledPair], tmp_path: Path
) -> None:
    def print_of(name: str, pairs: Sequence[LabelledPair]) -> str:
        file = written(tmp_path / name, pairs)
        recipe = small(f"judge.labels={file}", "iterations=1", "judge.calibrate=once")
        return {p.stage.name: p.folder.fingerprint for p in locate(recipe, tmp_path)}[
            "judge/labels"
        ]

    own = {p.stage.name: p.folder.fingerprint for p in _planned(labelled)}["judge/labels"]
    assert print_of("moved.jsonl", asked) == own
    assert print_of("fewer.jsonl", asked[1:]) != own


def _planned(labelled: Finished) -> list[Planned]:
    return locate(pin(labelled.recipe), labelled.run)
