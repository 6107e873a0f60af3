"""Whole small runs whose figures go to a real tracker, which is read afterwards."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from e2e.runs import Told, Undisturbed, outcome, small
from selfcal.pipeline import execute, locate
from selfcal.stage import Stage

NAME = "miniworld-src"
SHORT = ("iterations=1", "evaluate.splits=[test]", "evaluate.followed=0", "judge.kind=verifier")


class Stopped(Exception):
    """A run that is ended in the middle."""


class StopsAt(Told):
    """A reporter that ends the run when a stage begins."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def begins(self, stage: Stage, number: int, of: int) -> None:
        if stage.name == self.name:
            raise Stopped


# --- TensorBoard ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_tensorboard(tmp_path_factory: pytest.TempPathFactory, undisturbed: Undisturbed) -> Path:
    """A run that was ended before its second DPO, and gone on with."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (selfcal[tracking])")
    run = tmp_path_factory.mktemp("tracked") / "run"
    recipe = small("tracking=tensorboard")
    with pytest.raises(Stopped):
        execute(recipe, run, StopsAt("iter-2/dpo"))
    execute(recipe, run)
    return run


def scalars(run: Path, line: str) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tracking" / NAME / line))
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_tracking_changes_no_record_no_weight_and_no_curve(
    on_tensorboard: Path, undisturbed: Undisturbed
) -> None:
    assert outcome(undisturbed.recipe, on_tensorboard) == undisturbed.outcome


def test_each_training_is_one_curve_of_its_own(
    on_tensorboard: Path, undisturbed: Undisturbed
) -> None:
    for stage in ("rft", "judge/train", "iter-1/dpo", "iter-2/dpo"):
        curve = undisturbed.outcome[stage]["stats"]["curve"]
        found = scalars(on_tensorboard, stage)
        assert [step for step, _ in found["train/loss"]] == [1, 2]
        # an event holds single precision
        assert [value for _, value in found["train/loss"]] == [
            pytest.approx(row["loss"], rel=1e-6, abs=1e-6) for row in curve
        ]
    assert "train/rewards/margins" in scalars(on_tensorboard, "iter-1/dpo")


def test_the_stages_are_one_curve_over_both_goes_at_the_run(
    on_tensorboard: Path, undisturbed: Undisturbed
) -> None:
    numbers = {p.stage.name: i for i, p in enumerate(locate(undisturbed.recipe, on_tensorboard), 1)}
    found = scalars(on_tensorboard, "stages")

    def of(kind: str) -> list[int]:
        return [numbers[f"iter-{t}/{kind}"] for t in (1, 2)]

    assert [step for step, _ in found["pairs/mean_margin"]] == of("pairs")
    assert [step for step, _ in found["dpo/seconds"]] == of("dpo")
    assert [step for step, _ in found["eval/test/alignment"]] == [
        numbers[f"eval/{c}"] for c in ("seed", "rft", "iter-1", "iter-2")
    ]
    (_, agreement), *more = found["judge/quality/agreement/value"]
    expected = undisturbed.outcome["judge/quality"]["stats"]["agreement"]["value"]
    assert agreement == pytest.approx(expected, abs=1e-4) and not more
    steps = {tag: [step for step, _ in values] for tag, values in found.items()}
    assert all(len(set(own)) == len(own) for own in steps.values())  # nothing was sent twice


# --- wandb, without a network -----------------------------------------------------------------


def test_wandb_keeps_offline_what_it_would_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed (selfcal[tracking])")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    recipe, run = small("tracking=wandb", *SHORT), tmp_path / "run"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--said-to-nobody"])
    open_before = wandb.init(
        project="mine", dir=str(tmp_path), settings=wandb.Settings(silent=True, console="off")
    )
    try:
        with pytest.raises(Stopped):
            execute(recipe, run, StopsAt("iter-1/dpo"))
        execute(recipe, run)
        assert wandb.run is open_before  # whoever calls keeps the run that is open
    finally:
        open_before.finish()
    known = json.loads((run / "tracking" / "wandb.json").read_text())
    files = sorted(run.glob("tracking/wandb/offline-run-*/run-*.wandb"))
    lines = [f.stem.removeprefix(f"run-{known['id']}-") for f in files]
    assert sorted(lines) == ["iter-1-dpo", "rft", "stages", "stages"]  # the run's, gone on with
    written = {line: f.read_bytes() for line, f in zip(lines, files, strict=True)}
    for line, name in (("rft", f"{NAME}/rft"), ("iter-1-dpo", f"{NAME}/iter-1/dpo")):
        assert name.encode() in written[line] and b"train/loss" in written[line]
        assert f"{NAME}-{known['id']}".encode() in written[line]  # the group
    mine = b"".join(f.read_bytes() for f in files if f.stem.endswith("-stages"))
    assert b"pairs/mean_margin" in mine and b"train/loss" not in mine
    assert recipe.teacher.kind.encode() in mine
    # how it was called may hold a password
    assert not [line for line, said in {**written, "": mine}.items() if b"--said-to" in said]


# --- Trackio, on this machine -----------------------------------------------------------------


def test_trackio_keeps_every_line_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # it reads its folder when it is imported
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed (selfcal[tracking])")
    import trackio.utils

    folder = trackio.utils.TRACKIO_DIR
    if folder != tmp_path / "trackio":
        pytest.skip("trackio was imported before, with another folder")
    recipe, run = small("tracking=trackio", *SHORT), tmp_path / "run"
    with pytest.raises(Stopped):
        execute(recipe, run, StopsAt("iter-1/dpo"))
    execute(recipe, run)
    assert "rackio" not in capsys.readouterr().out  # it would write into selfcal's own progress
    known = json.loads((run / "tracking" / "trackio.json").read_text())
    rows = _logged(folder / "selfcal.db")
    named = {name: f"{NAME}/{name} ({known['id']}-{plain})" for name, plain in PLAIN.items()}
    assert set(rows) == set(named.values())
    for name in ("rft", "iter-1/dpo"):
        steps = [row["train/global_step"] for row in rows[named[name]] if "train/loss" in row]
        assert steps == [1, 2]
    sent = [next(iter(row)).split("/")[0] for row in rows[named["stages"]]]
    planned = [p.stage.name.removeprefix("iter-1/").split("/")[0] for p in locate(recipe, run)]
    assert sent == planned


PLAIN = {"stages": "stages", "rft": "rft", "iter-1/dpo": "iter-1-dpo"}


def _logged(file: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    with sqlite3.connect(file) as database:
        for name, row in database.execute("select run_name, metrics from metrics order by step"):
            found.setdefault(name, []).append(json.loads(row))
    database.close()
    return found
