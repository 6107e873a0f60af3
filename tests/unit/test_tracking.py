"""Tracking without a tracker: what is sent, when, under which name, and what a failure does."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from selfcal.recipe import Recipe
from selfcal.stage import Stage
from selfcal.store import StageDir, fingerprint
from selfcal.tracking import Tracked, TrackingError, Watch, check, followed
from selfcal.tracking.lines import Title
from selfcal.tracking.place import handed_over
from selfcal.tracking.stages import figures_of
from selfcal.types import Result

RECIPE = Recipe(name="My recipe/1")


@dataclass
class Lines:
    """A tracker that remembers."""

    opened: list[Title] = field(default_factory=list)
    sent: list[tuple[str, int, dict[str, float]]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    fails: bool = False

    def open(self, title: Title) -> OneLine:
        random.random(), np.random.rand()
        self.opened.append(title)
        return OneLine(self, title.name)


@dataclass
class OneLine:
    lines: Lines
    name: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self.lines.fails:
            raise OSError("no\x1b[31m route to\nhost")
        self.lines.sent.append((self.name, step, dict(values)))

    def lead(self, callback: Any) -> None:
        callback.line = self

    def close(self) -> None:
        self.lines.closed.append(self.name)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    made = Lines()
    monkeypatch.setattr("selfcal.tracking.place.open_line", lambda kind, title: made.open(title))
    return made


def stage(name: str, size: int = 10, unit: str = "samples") -> Stage:
    return Stage(name, (), {}, lambda work: {}, size, unit, "")


def tracked(run: Path, kind: str = "wandb") -> Tracked:
    return Tracked(kind, run, RECIPE)


def watch(run: Path, *names: str, kind: str = "wandb", prints: str = "") -> Watch:
    """A watch over these stages, of which those that have a manifest are done."""
    found = [(stage(n), StageDir(run / n, fingerprint(n, prints))) for n in names]
    return Watch(tracked(run, kind), found)


def finished(run: Path, name: str, prints: str = "", **stats: Any) -> None:
    folder = StageDir(run / name, fingerprint(name, prints))
    folder.open()
    folder.finish(stats, 2.0)


# --- what is sent -----------------------------------------------------------------------------


def folder_of(path: Path, results: list[Result] | None = None) -> StageDir:
    folder = StageDir(path, "print")
    folder.open()
    if results is not None:
        folder.write_shard("results", 0, results, Result)
    folder.finish({}, 1.0)
    return folder


def test_figures_of_iterations_have_one_name(tmp_path: Path) -> None:
    stats = {"pairs": 5, "drops": {"no-gap": 2}, "mean_margin": 1.5, "curve": [{"loss": 1}]}
    for name in ("iter-1/pairs", "iter-12/pairs"):
        found = figures_of(stage(name), folder_of(tmp_path / name), stats, 4.0, None)
        assert found == {
            "pairs/pairs": 5, "pairs/drops/no-gap": 2, "pairs/mean_margin": 1.5, "pairs/seconds": 4,
        }  # fmt: skip


def test_what_is_no_finite_number_is_not_sent(tmp_path: Path) -> None:
    stats = {"a": float("nan"), "b": None, "c": True, "d": "x", "e": float("inf"), "f": 0}
    found = figures_of(stage("judge/quality"), folder_of(tmp_path), stats, 1.0, None)
    assert found == {"judge/quality/f": 0, "judge/quality/seconds": 1}


def test_a_search_has_its_speed(tmp_path: Path) -> None:
    stats = {"candidates": 30}
    found = figures_of(stage("iter-1/candidates"), folder_of(tmp_path), stats, 9.0, 2.0)
    # 2 samples a second, of 10 with 30 candidates together
    assert found["candidates/samples_per_second"] == 2
    assert found["candidates/candidates_per_second"] == 6


def test_a_measurement_sends_the_results_of_both_splits(tmp_path: Path) -> None:
    results = [
        Result("seed", "dev", "all", "alignment", 0.25, 0.1, 8, 0),
        Result("seed", "test", "all", "alignment", 0.5, 0.1, 8, 0),
        Result("seed", "test", "count", "alignment", 0.75, 0.1, 8, 0),
        Result("seed", "test", "all", "grounding", float("nan"), 0.1, 0, 0),
    ]
    folder = folder_of(tmp_path, results)
    found = figures_of(stage("eval/seed"), folder, {"alignment": 0.5}, 3.0, None)
    assert found == {"eval/dev/alignment": 0.25, "eval/test/alignment": 0.5, "eval/seconds": 3}


def test_a_recipe_goes_out_without_addresses() -> None:
    server = {"base_url": "http://localhost:8000/secret/v1", "model": "m", "api_key_env": "MY_KEY"}
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "policy": {"backend": "vllm", "server": server},
            "teacher": {"kind": "endpoint", **server},
            "judge": {"labels": {"kind": "endpoint", **server}},
            "evaluate": {"marker": server},
        }
    )
    found = str(handed_over(recipe))
    assert "secret" not in found and "localhost" not in found and "MY_KEY" not in found
    assert handed_over(recipe)["teacher"]["model"] == "m"


# --- lines ------------------------------------------------------------------------------------


def test_stages_are_sent_over_their_numbers_to_one_line(tmp_path: Path, lines: Lines) -> None:
    w = watch(tmp_path, "data", "rft")
    for number, name in enumerate(("data", "rft"), 1):
        w.begins(stage(name), number, 2)
        finished(tmp_path, name)
        w.ends(stage(name), {"rows": number}, 2.0)
    w.close()
    name = "My recipe/1/stages"
    assert [(line, step) for line, step, _ in lines.sent] == [(name, 1), (name, 2)]
    assert lines.sent[1][2] == {"rft/rows": 2, "rft/seconds": 2}
    assert lines.closed == [name]
    (title,) = lines.opened
    assert title.folder == tmp_path / "tracking" / "My-recipe-1" / "stages"
    assert title.group.startswith("My-recipe-1-") and title.id.endswith("-stages")


def test_a_resumed_run_goes_on_with_its_line_and_sends_nothing_twice(
    tmp_path: Path, lines: Lines
) -> None:
    first = watch(tmp_path, "data", "rft", "dpo")
    finished(tmp_path, "data", rows=1)
    first.ends(stage("data"), {"rows": 1}, 2.0)
    first.close()
    again = watch(tmp_path, "data", "rft", "dpo")
    again.skips(stage("data"), reused=False)
    finished(tmp_path, "rft", rows=5)
    again.skips(stage("rft"), reused=True)  # taken over from another run: not sent yet
    again.close()
    assert [step for _, step, _ in lines.sent] == [1, 2]
    assert lines.sent[1][2] == {"rft/rows": 5, "rft/seconds": 2}
    assert len({title.id for title in lines.opened}) == 1


def test_tensorboard_gets_again_what_it_leaves_out_behind_a_redone_stage(
    tmp_path: Path, lines: Lines
) -> None:
    for kind, expected in (("tensorboard", [1, 2, 3, 2, 3]), ("wandb", [1, 2, 3, 2])):
        run, names = tmp_path / kind, ("data", "facts", "rft")
        lines.sent.clear()
        first = watch(run, *names, kind=kind)
        for name in names:
            finished(run, name)
            first.ends(stage(name), {}, 2.0)
        again = watch(run, *names, kind=kind)
        again.skips(stage("data"), reused=False)
        again.ends(stage("facts"), {}, 2.0)  # done anew, as its settings were changed
        again.skips(stage("rft"), reused=False)
        assert [step for _, step, _ in lines.sent] == expected
        assert lines.opened[-1].begun_at == 2


class Trainer:
    """What of a trainer is needed: it holds callbacks."""

    def __init__(self, *callbacks: Any) -> None:
        self.callbacks = list(callbacks)

    def add_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)


@dataclass
class Callback:
    """In the place of transformers' own."""

    line: Any = None
    told: list[str] = field(default_factory=list)
    fails: bool = False

    def __getattr__(self, event: str) -> Callable[..., None]:
        if not event.startswith("on_"):
            raise AttributeError(event)

        def told(*given: Any, **more: Any) -> None:
            if self.fails:
                raise RuntimeError("gone")
            self.told.append(event)

        return told


@pytest.fixture
def callback(monkeypatch: pytest.MonkeyPatch) -> Callback:
    made = Callback()

    def taken_out(trainer: Trainer, kind: str) -> Callback:
        trainer.callbacks.remove(made)
        return made

    monkeypatch.setattr("selfcal.tracking.trainings._taken_out", taken_out)
    return made


def train(run: Path, callback: Callback, name: str, begun_at: int = 0) -> None:
    """A training of two steps that is logged once."""
    trainer = Trainer(callback)
    with followed(trainer, tracked(run), run / name, begun_at):
        for event in ("on_train_begin", "on_step_end", "on_log", "on_train_end"):
            for one in trainer.callbacks:
                getattr(one, event)(None, None, None)


def test_each_training_has_a_line_of_its_own_in_the_runs_group(
    tmp_path: Path, lines: Lines, callback: Callback
) -> None:
    train(tmp_path, callback, "rft")
    train(tmp_path, callback, "iter-1/dpo")
    assert [t.name for t in lines.opened] == ["My recipe/1/rft", "My recipe/1/iter-1/dpo"]
    assert len({t.id for t in lines.opened}) == 2 and len({t.group for t in lines.opened}) == 1
    assert callback.line.name == "My recipe/1/iter-1/dpo"
    assert callback.told == ["on_train_begin", "on_log", "on_train_end"] * 2
    assert lines.closed == [t.name for t in lines.opened]


def test_a_resumed_training_goes_on_and_one_that_starts_over_does_not(
    tmp_path: Path, lines: Lines, callback: Callback
) -> None:
    for begun_at in (0, 30, 0):
        train(tmp_path, callback, "rft", begun_at)
    first, resumed, over = lines.opened
    assert resumed.id == first.id and resumed.begun_at == 31
    assert over.id == f"{first.id}-2" and over.begun_at == 0


def test_without_a_tracker_a_training_is_left_alone(tmp_path: Path) -> None:
    trainer = Trainer("callback")
    with followed(trainer, None, tmp_path, 0):
        assert trainer.callbacks == ["callback"]


# --- what may not happen ----------------------------------------------------------------------


def test_random_numbers_are_left_where_they_were(
    tmp_path: Path, lines: Lines, callback: Callback
) -> None:
    random.seed(1), np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1), np.random.seed(1)
    train(tmp_path, callback, "rft")
    w = watch(tmp_path, "data")
    w.ends(stage("data"), {"rows": 1}, 1.0)
    assert (random.random(), np.random.rand()) == expected


def test_a_failure_is_said_once_and_ends_nothing(
    tmp_path: Path, lines: Lines, callback: Callback, capsys: pytest.CaptureFixture[str]
) -> None:
    lines.fails = True
    w = watch(tmp_path, "data", "rft")
    w.ends(stage("data"), {}, 1.0)
    train(tmp_path, callback, "rft")
    w.ends(stage("rft"), {}, 1.0)
    w.close()
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "tracking: wandb has failed, and the run goes on without it "
        "(OSError: no\\x1b[31m route to host)"
    ]
    assert callback.told == [] and lines.sent == []


def test_a_failure_in_a_training_ends_nothing(
    tmp_path: Path, lines: Lines, callback: Callback, capsys: pytest.CaptureFixture[str]
) -> None:
    callback.fails = True
    train(tmp_path, callback, "rft")
    assert capsys.readouterr().err.count("\n") == 1
    watch(tmp_path, "data")  # another go at the run is another chance
    callback.fails = False
    train(tmp_path, callback, "rft")
    assert callback.told


def test_an_error_of_the_training_goes_through(
    tmp_path: Path, lines: Lines, callback: Callback
) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        followed(Trainer(callback), tracked(tmp_path), tmp_path / "rft", 0),
    ):
        _ = 1 / 0
    assert lines.closed == ["My recipe/1/rft"]


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_told_before_anything_runs(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfcal.tracking.place.find_spec", lambda name: None)
    with pytest.raises(TrackingError, match=rf"the package {kind} is missing; pip install {kind} "):
        check(Recipe.model_validate({"name": "x", "tracking": kind}))
    check(RECIPE)


def wandb_of(mode: str, login: Any = None) -> SimpleNamespace:
    """wandb, set up in a mode."""
    return SimpleNamespace(
        setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode=mode)), login=login
    )


def test_a_key_that_cannot_be_tried_now_is_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(prompt: bool) -> bool:
        raise OSError("no network")

    recipe = Recipe.model_validate({"name": "x", "tracking": "wandb"})
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("selfcal.tracking.place.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "wandb", wandb_of("online", unreachable))
    check(recipe)
    monkeypatch.setitem(sys.modules, "wandb", wandb_of("online", lambda prompt: False))
    with pytest.raises(TrackingError, match="no API key"):
        check(recipe)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    check(recipe)


def test_wandb_without_a_key_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcal.tracking.place.find_spec", lambda name: name)
    monkeypatch.setattr("selfcal.tracking.place._knows_a_key", lambda: False)
    recipe = Recipe.model_validate({"name": "x", "tracking": "wandb"})
    for mode in ("online", "run", "shared"):
        monkeypatch.setitem(sys.modules, "wandb", wandb_of(mode))
        with pytest.raises(TrackingError, match="no API key; run `wandb login`, set WANDB_MODE=o"):
            check(recipe)
    for mode in ("offline", "dryrun", "disabled"):
        monkeypatch.setitem(sys.modules, "wandb", wandb_of(mode))
        check(recipe)


def test_a_mode_that_wandb_does_not_know_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def setup() -> None:
        raise ValueError("mode: Input should be\n 'online' or 'offline'")

    monkeypatch.setattr("selfcal.tracking.place.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(setup=setup))
    recipe = Recipe.model_validate({"name": "x", "tracking": "wandb"})
    with pytest.raises(TrackingError, match="Input should be 'online' or 'offline'"):
        check(recipe)
