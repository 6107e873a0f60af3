"""Trainings in several processes of a Ray cluster, on as many nodes as it takes (Ray Train).

Ray starts the processes and joins them as torchrun does on one machine; each does what a rank does
(see `rank`). They talk to the driver through a board, a tiny actor. When one dies, Ray starts all
of them again, on other nodes if it must, and they go on from the last checkpoint.

The job itself is an actor, too, so that it can be ended while it waits for room.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import ray
from ray import PlacementGroupID
from ray.exceptions import RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

from selfcal import stopping
from selfcal.executor.base import first_line, note
from selfcal.executor.foreman import beside_driver
from selfcal.executor.handing import handed_over
from selfcal.executor.rank import settles, train
from selfcal.executor.ranks import RESTARTS, RankError, figures_of
from selfcal.quiet import PASSED, hush
from selfcal.recipe import RayExecutor, Recipe
from selfcal.remote import is_address, place_of
from selfcal.stage import Work
from selfcal.store import JSON

STARTS = 60
"""How often Ray Train tries to find room for all ranks, a minute each, before it gives up."""
_PATIENCE = 0.5
"""Seconds between two looks at the board."""
_BEGIN_S, _SAVE_S = 60, 1800
"""After the wish to stop: seconds for the first word of a rank, and between two later ones."""
_FAREWELL_S = 60
"""For the job to end when all is said."""
_LOOKS = 20
"""At what a job that was ended by force has reserved, at most."""


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


class Job:
    """The actor that has Ray Train do a training: what it starts ends with it."""

    def run(self, plan: Mapping[str, Any], config: dict[str, Any]) -> str:
        """Train; gives what went wrong, in a line."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        hush()
        each = {"CPU": plan["cpus"]} | ({"GPU": 1} if plan["use_gpu"] else {})
        with tempfile.TemporaryDirectory(prefix="selfcal-ray-train-") as own:
            failures = FailureConfig(
                max_failures=RESTARTS,
                controller_failure_limit=STARTS,  # type: ignore[call-arg]  # known at run time
            )
            trainer = TorchTrainer(
                _rank,
                train_loop_config=config,
                scaling_config=ScalingConfig(
                    num_workers=plan["ranks"], use_gpu=plan["use_gpu"], resources_per_worker=each,
                    placement_strategy=plan["strategy"],
                ),
                # Ray's own notes; checkpoints are the stage's
                run_config=RunConfig(storage_path=own, failure_config=failures),
            )  # fmt: skip
            try:
                trainer.fit()
            except Exception as error:
                return str(error).strip()[:2000] or type(error).__name__
        return "without a word"


def train_on_ray(
    recipe: Recipe, work: Work, use_gpu: bool, on_one: bool = False
) -> Mapping[str, JSON]:
    """Do a stage by `executor.ranks` processes of the cluster; gives its figures.

    The cluster is connected.

    Args:
        recipe: of the run.
        work: the stage.
        use_gpu: whether each process gets a GPU of its own.
        on_one: whether all of them must be on one machine.

    Raises:
        SelfcalError: the stage failed in a foreseen way, or the processes died too often.
        Stopped: that was asked for; a checkpoint is saved, if there was a step.
    """
    settings = recipe.executor
    plan = {
        "ranks": settings.ranks, "use_gpu": use_gpu,
        "cpus": settings.cpus if isinstance(settings, RayExecutor) else 1,
        "strategy": "STRICT_PACK" if on_one else "PACK",
    }  # fmt: skip
    while True:
        found = handed_over(work) or _fit(work, plan)
        if "again" not in found:
            return figures_of(found)
        note(str(found["again"]))


def _fit(work: Work, plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """Start the ranks and wait for them; gives what became of the stage."""
    try:
        with _room_given_back(), _actor(Board) as board, _actor(Job) as job:
            over = job.run.remote(plan, _config(work, board))
            said = _wait(work, board, over)
            done, _ = ray.wait([over], timeout=_FAREWELL_S if said else None)
            error = ray.get(over) if done else ""
    except RayError as broken:  # the job's own process
        said, error = {}, first_line(broken)
    if "figures" in said or not said:  # whatever happened afterwards
        said = handed_over(work, bool(said)) or {}
    if said:
        return said
    raise RankError(
        f"{work.stage.name}: {plan['ranks']} processes of Ray Train died, after {RESTARTS} "
        f"restarts at most, or could not be had ({error}); see `ray status`, and run the same "
        "command again to go on from the last checkpoint"
    )


def _wait(work: Work, board: Any, over: Any) -> dict[str, Any]:
    """Follow a job until it is over, or it is said what became of the stage; gives that.

    Raises:
        Stopped: that was asked for, and no rank is there that could heed it.
    """
    seen, heard = (0, 0), time.monotonic()
    asked: float | None = None
    while True:
        ended = bool(ray.wait([over], timeout=_PATIENCE)[0])
        if stopping.asked():
            asked = asked or time.monotonic()
        moved, said = _look(board, asked is not None)
        if ended or said:
            return said
        if moved not in (seen, (0, 0)):
            seen, heard = moved, time.monotonic()
            work.progress(*seen)
        limit = _SAVE_S if seen != (0, 0) else _BEGIN_S
        if asked and time.monotonic() - max(asked, heard) > limit:
            raise stopping.Stopped


def _look(board: Any, asked: bool) -> tuple[tuple[int, int], dict[str, Any]]:
    """What is on the board; nothing while it is started anew, by which it forgets."""
    with suppress(RayError):
        if asked:
            ray.get(board.ask.remote())
        found: tuple[tuple[int, int], dict[str, Any]] = ray.get(board.look.remote())
        return found
    return (0, 0), {}


@contextmanager
def _actor(kind: type[Any]) -> Iterator[Any]:
    actor = beside_driver(kind, restarts=-1 if kind is Board else 0)
    try:
        yield actor
    finally:
        with suppress(RayError):
            ray.kill(actor)


@contextmanager
def _room_given_back() -> Iterator[None]:
    """Remove what a job has reserved that was ended by force, as where a stop is not heeded.

    Ray's own cleaner asks the dashboard whether the job lives, which many clusters do without: the
    next training would wait for ever for room that nobody uses.
    """
    before = _reserved()
    try:
        yield
    finally:
        with suppress(RayError):
            for _ in range(_LOOKS):  # what is left of the job may be about to reserve more
                if not (left := _reserved() - before):
                    break
                for group in left:
                    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
                time.sleep(_PATIENCE)


def _reserved() -> set[str]:
    """Placement groups of this driver that are there or waited for."""
    own = ray.get_runtime_context().get_job_id()  # which their ids end with
    groups = placement_group_table().items()
    return {name for name, group in groups if name.endswith(own) and group["state"] != "REMOVED"}


def _config(work: Work, board: Any) -> dict[str, Any]:
    """What each rank is told."""
    place = place_of(work.run)
    where = place.where if is_address(place.where) else str(place.run.resolve())
    return {
        "board": board, "where": where, "token": place.token, "stage": work.stage.name,
        "fingerprint": work.folder.fingerprint, "folder": str(Path.cwd()),
        "environment": {name: os.environ[name] for name in PASSED if name in os.environ},
    }  # fmt: skip


def _heeds(board: Any) -> bool:
    """Pass the wish to stop on, if there is one; gives whether there is."""
    with suppress(RayError):  # it may be started anew
        if ray.get(board.asked.remote()):
            stopping.ask()
    return stopping.asked()


def _heed(board: Any) -> None:
    while not _heeds(board):
        time.sleep(_PATIENCE)


def _rank(config: dict[str, Any]) -> None:
    """What Ray Train runs in each process."""
    board = config["board"]
    if _look(board, False)[1]:
        return  # started again after the end
    os.environ |= config["environment"]
    hush()
    with suppress(OSError):  # Ray puts a process elsewhere; paths of recipes start here
        os.chdir(config["folder"])
    stopping.forget()
    if not _heeds(board):
        Thread(target=_heed, args=[board], daemon=True).start()
    found = train(
        config["where"], config["stage"], config["fingerprint"],
        lambda done, total: board.tell.remote(done, total), config["token"], apart=True,
    )  # fmt: skip
    if settles(found):
        with suppress(RayError):  # figures are in the stage's folder as well
            ray.get(board.settle.remote(found))
    if not {"figures", "stopped"} & set(found):
        raise RankError(str(found))  # the others wait for this one: Ray ends them
