"""Trainings in several processes of a Ray cluster, on as many nodes as it takes (Ray Train).

Ray starts the processes and joins them as torchrun does on one machine; each does what a rank does
(see `rank`). They talk to the driver through a board, a tiny actor. When one dies, Ray starts all
of them again, on other nodes if it must, and they go on from the last checkpoint.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from selfcal import stopping
from selfcal.executor.base import note
from selfcal.executor.rank import settles, train
from selfcal.executor.ranks import RESTARTS, RankError, figures_of
from selfcal.quiet import PASSED, hush
from selfcal.recipe import RayExecutor, Recipe
from selfcal.remote import place_of
from selfcal.stage import Work
from selfcal.store import JSON

_PATIENCE = 0.5
"""Seconds between two looks at the board."""


@dataclass
class Board:
    """What driver and ranks tell each other."""

    stop: bool = False
    progress: tuple[int, int] = (0, 0)
    outcome: dict[str, Any] = field(default_factory=dict)

    def ask(self) -> None:
        """Wish that they stop."""
        self.stop = True

    def asked(self) -> bool:
        """Whether that is wished."""
        return self.stop

    def tell(self, done: int, total: int) -> None:
        """Say how many steps are done."""
        self.progress = done, total

    def settle(self, outcome: dict[str, Any]) -> None:
        """Say what became of the stage; who comes first has said it."""
        self.outcome = self.outcome or outcome

    def look(self) -> tuple[tuple[int, int], dict[str, Any]]:
        """How far they are, and what became of the stage, if anything yet."""
        return self.progress, self.outcome


def train_on_ray(recipe: Recipe, work: Work, use_gpu: bool) -> Mapping[str, JSON]:
    """Do a stage by `executor.ranks` processes of the cluster; gives its figures.

    The cluster is connected. `use_gpu`: whether each process gets a GPU of its own.

    Raises:
        SelfcalError: the stage failed in a foreseen way, or the processes died too often.
        Stopped: that was asked for; a checkpoint is saved.
    """
    while True:
        found = _fit(recipe, work, use_gpu)
        if "again" not in found:
            return figures_of(found)
        note(str(found["again"]))


def _fit(recipe: Recipe, work: Work, use_gpu: bool) -> dict[str, Any]:
    """Start the ranks and wait for them; gives what became of the stage."""
    import ray

    with _board() as board, ThreadPoolExecutor(1) as beside:
        # in the main thread Ray Train would take Ctrl-C for itself
        job: Future[None] = beside.submit(_job, recipe, work, board, use_gpu)
        seen = (0, 0)
        while not job.done():
            if stopping.asked():
                ray.get(board.ask.remote())
            moved, _ = ray.get(board.look.remote())
            if moved != seen:
                work.progress(*(seen := moved))
            time.sleep(_PATIENCE)
        _, found = ray.get(board.look.remote())
    if found:  # whatever happened afterwards
        return dict(found)
    error = job.exception()
    raise RankError(
        f"{work.stage.name}: {recipe.executor.ranks} processes of Ray Train died, after {RESTARTS} "
        f"restarts at most, or could not be had ({str(error).strip()[:2000]}); run the same "
        "command again to go on from the last checkpoint"
    ) from error


@contextmanager
def _board() -> Iterator[Any]:
    import ray

    board: Any = ray.remote(Board).options(num_cpus=0).remote()
    try:
        yield board
    finally:
        ray.kill(board)


def _job(recipe: Recipe, work: Work, board: Any, use_gpu: bool) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    settings = recipe.executor
    cpus = settings.cpus if isinstance(settings, RayExecutor) else 1
    config = {
        "board": board, "where": place_of(work.run).where, "stage": work.stage.name,
        "fingerprint": work.folder.fingerprint, "folder": str(Path.cwd()),
        "environment": {name: os.environ[name] for name in PASSED if name in os.environ},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="selfcal-ray-train-") as own:
        TorchTrainer(
            _rank,
            train_loop_config=config,
            scaling_config=ScalingConfig(
                num_workers=settings.ranks, use_gpu=use_gpu, resources_per_worker={"CPU": cpus}
                | ({"GPU": 1} if use_gpu else {}),
            ),
            run_config=RunConfig(
                # Ray's own notes; checkpoints are the stage's
                storage_path=own, failure_config=FailureConfig(max_failures=RESTARTS),
            ),
        ).fit()  # fmt: skip


def _rank(config: dict[str, Any]) -> None:
    """What Ray Train runs in each process."""
    import ray

    board = config["board"]
    if ray.get(board.look.remote())[1]:
        return  # started again after the end
    os.environ |= config["environment"]
    hush()
    with suppress(OSError):  # Ray puts a process elsewhere; paths of recipes start here
        os.chdir(config["folder"])
    stopping.forget()

    def heed() -> None:
        while not ray.get(board.asked.remote()):
            time.sleep(_PATIENCE)
        stopping.ask()

    Thread(target=heed, daemon=True).start()
    found = train(
        config["where"], config["stage"], config["fingerprint"],
        lambda done, total: board.tell.remote(done, total),
    )  # fmt: skip
    if settles(found):
        ray.get(board.settle.remote(found))
    if not {"figures", "stopped"} & set(found):
        raise RankError(str(found))  # the others wait for this one: Ray ends them
