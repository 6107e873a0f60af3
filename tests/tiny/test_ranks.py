"""Trainings in two processes (gloo, CPU): as one process trains, and whatever happens to a rank."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from selfcal import pipeline, stopping
from selfcal.executor.base import perform_again
from selfcal.executor.ranks import train_on_ranks
from selfcal.pipeline import locate, pin
from selfcal.recipe import load_recipe
from selfcal.stage import Stage, Work
from selfcal.store import write_json
from selfcal.types import Sample

HERE = Path(__file__).parent
RECIPE = HERE.parents[1] / "recipes" / "miniworld-sft-only.yaml"
_LIMIT = 900.0
"""Seconds; a rank that waits for another would wait for half an hour."""
COMPARED = ("sft", "all-weights", "frugal", "dpo", "judge", "fsdp", "fsdp-dpo")


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    policy_folder: str,
    judge_folder: str,
    samples: list[Sample],
) -> dict[str, Path]:
    """The same trainings by one process and by two, which are started together."""
    folder = tmp_path_factory.mktemp("ranks")
    images = str(Path(samples[0].image).parent)
    script = [str(HERE / "together.py")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    running: dict[str, subprocess.Popen[bytes]] = {}
    for name, how in (("one", []), ("two", launch)):
        names = [n for n in COMPARED if how or "fsdp" not in n]
        words = [*how, *script, str(folder / name), policy_folder, judge_folder, images, *names]
        with (folder / f"{name}.log").open("wb") as said:
            running[name] = subprocess.Popen(
                [sys.executable, *words], stdout=said, stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
    try:
        codes = {name: process.wait(_LIMIT) for name, process in running.items()}
    finally:
        for process in running.values():
            process.terminate()  # torchrun then ends its ranks
            process.wait(60)
    said = "\n".join((folder / f"{n}.log").read_text()[-3000:] for n in codes if codes[n])
    assert not any(codes.values()), said
    return {name: folder / name for name in running}


@pytest.mark.parametrize("name", COMPARED)
def test_two_ranks_learn_what_one_process_learns(trained: dict[str, Path], name: str) -> None:
    """To 1e-6: the weights of the merged checkpoint, and each loss."""
    alone = name.removeprefix("fsdp-") if name != "fsdp" else "sft"
    one, two = trained["one"] / alone, trained["two"] / name
    a, b = (load_file(out / "checkpoint/model.safetensors") for out in (one, two))
    assert a.keys() == b.keys()
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-6
    told = [json.loads((out / "trained.json").read_text()) for out in (one, two)]
    losses = [[row["loss"] for row in t["curve"]] for t in told]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert len({round(x, 4) for x in losses[0]}) > 1  # something was learned
    assert (told[0]["steps"], told[0]["rows"]) == (told[1]["steps"], told[1]["rows"])
    assert [t["ranks"] for t in told] == [1, 2]
    assert (one / "checkpoint/tokenizer.json").exists() == (
        two / "checkpoint/tokenizer.json"
    ).exists()


# --- ranks that selfcal starts --------------------------------------------------------------


@dataclass
class Prepared:
    """A run that is finished up to its first training."""

    run: Path
    overrides: tuple[str, ...]

    def work(self, *more: str, **hooks: Any) -> tuple[Any, Work]:
        recipe = pin(load_recipe(RECIPE, [*self.overrides, *more]))
        planned = locate(recipe, self.run)
        folders = {p.stage.name: p.folder for p in planned}
        (p,) = [p for p in planned if p.stage.name == "rft"]
        write_json(
            self.run / "recipe.json",
            {"format": pipeline.FORMAT, "recipe": recipe.model_dump(mode="json")},
        )
        p.folder.open()
        inputs = {name: folders[name] for name in p.stage.inputs}
        return recipe, Work(self.run, p.stage, p.folder, inputs, recipe.seed, **hooks)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.run / "rft/checkpoint/model.safetensors")


class _Enough(Exception):
    pass


@dataclass
class _UpTo:
    """A reporter that ends the run where a stage begins."""

    stage: str
    begun: list[str] = field(default_factory=list)

    def begins(self, stage: Stage, number: int, of: int) -> None:
        if stage.name == self.stage:
            raise _Enough

    def __getattr__(self, name: str) -> Any:
        return lambda *told, **more: None


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, policy_folder: str) -> Prepared:
    run = tmp_path_factory.mktemp("run") / "run"
    overrides = (
        f"policy.model={policy_folder}", "policy.device=cpu", "iterations=1", "threads=1",
        "data.rft=64", "data.calibration=4", "data.dev=4", "data.test=4",
        "evaluate.followed=0", "rft.batch_size=2", "rft.steps=31", "rft.save_steps=2",
        "rft.learning_rate=1e-3",
    )  # fmt: skip
    recipe = load_recipe(RECIPE, overrides)
    with pytest.raises(_Enough):
        pipeline.execute(recipe, run, _UpTo("rft"))
    return Prepared(run, overrides)


def ranks() -> list[psutil.Process]:
    """The ranks that this process has started, the oldest first."""
    found = []
    for p in psutil.Process().children(recursive=True):
        words = p.cmdline()
        if "selfcal.executor.rank" in words and "torch.distributed.run" not in words:
            found.append(p)
    return sorted(found, key=lambda p: p.pid)


def test_a_killed_rank_and_a_stop_leave_the_training_as_it_would_have_been(
    prepared: Prepared, tmp_path: Path
) -> None:
    """A rank is killed after step 3; after step 5 the driver is asked to stop; then it goes on.

    All steps are in one epoch: the last batch of an epoch is filled up where ranks part it.
    """
    recipe, work = prepared.work()
    alone = perform_again(recipe, work)
    undisturbed = prepared.weights
    (prepared.run / "rft").rename(tmp_path / "alone")

    killed: list[int] = []
    steps: list[int] = []

    def disturb(done: int, total: int) -> None:
        steps.append(done)
        if done >= 3 and not killed:
            victim = ranks()[-1]
            victim.send_signal(signal.SIGKILL)
            gone, _ = psutil.wait_procs([victim], timeout=30)
            killed.extend(p.pid for p in gone)
        elif killed and done >= 5:
            stopping.ask()

    recipe, work = prepared.work("executor.ranks=2", progress=disturb)
    try:
        with pytest.raises(stopping.Stopped):
            train_on_ranks(recipe, work)
    finally:
        stopping.forget()
    assert len(killed) == 1
    assert not psutil.pid_exists(killed[0])
    assert ranks() == []
    assert not (prepared.run / "rft/checkpoint").exists()
    kept = sorted((prepared.run / "rft/trl").glob("checkpoint-*/digests.json"))
    assert kept

    # any number of processes may go on
    steps.clear()
    recipe, work = prepared.work(progress=lambda done, total: steps.append(done))
    found = perform_again(recipe, work)
    assert steps[0] > 5
    assert steps[-1] == 31
    after = prepared.weights
    assert max(float((after[k] - undisturbed[k]).abs().max()) for k in after) < 1e-6
    assert (found["steps"], found["rows"]) == (alone["steps"], alone["rows"])
    (prepared.run / "rft").rename(tmp_path / "again")


def test_an_error_of_ranks_is_the_drivers_and_none_of_them_stays(prepared: Prepared) -> None:
    recipe, work = prepared.work("executor.ranks=2", "rft.max_length=3")
    with pytest.raises(Exception, match="rows longer than max_length 3") as told:
        train_on_ranks(recipe, work)
    assert type(told.value).__name__ == "TrainingError"
    assert ranks() == []
