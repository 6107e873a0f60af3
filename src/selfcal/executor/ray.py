"""The executor of a Ray cluster: actors with a model each do the shards of a stage (Ray Data).

One row of a dataset is the number of one shard. An actor does it as `worker` says, writes it to the
run's folder and gives back how much it did: no record and no weight goes through Ray. What dies,
an actor or a whole node, is replaced by Ray, and its shards are done again unless they are whole.
Stages that are not for workers are done in this process.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from selfcal import memory, stopping
from selfcal.errors import SelfcalError, StoreError
from selfcal.executor.base import first_line, perform_again, rebuilt
from selfcal.executor.foreman import Heeds, foreman_beside
from selfcal.executor.room import ClusterError, Needs, check_room, largest
from selfcal.executor.worker import ShardWorker, Share, take_up
from selfcal.quiet import PASSED, hush
from selfcal.recipe import RayExecutor, Recipe
from selfcal.remote import Place, is_address, place_of
from selfcal.stage import Todo, Work
from selfcal.store import JSON

_TRIES = 10
"""How often a shard is begun: workers die for no fault of its own, as when a node is taken away."""
_CORE = "RAY_BACKEND_LOG_LEVEL"
_STEPS = "steps"
"""The unit of trainings."""
_LOGS = "the logs in /tmp/ray/session_latest/logs of its machine"
_PATIENCE_S = 6 * 3600
"""Without any shard done in this time, nothing will come of it."""
_VISIBLE_S = 60
"""In which a file that another machine has written is to be seen here: network file systems keep
for a while what they know of a folder."""
_AT_ONCE = 4096
"""Blocks of a dataset, at most; more shards share them."""


@contextmanager
def open_cluster(settings: RayExecutor) -> Iterator[OnRay]:
    """Connect to the cluster, or start one on this machine, for as long as the block runs.

    A connection that this process has already is used, and left as it is.

    Raises:
        ClusterError: it cannot be reached, or has no room for the workers or the ranks.
    """
    own = not ray.is_initialized()
    if own:
        _connect(settings.address)
    try:
        nodes, most = _room()
        # nodes come and go: what they and the autoscaler have at the start holds to the end
        gpu = any(node.get("GPU", 0) for node in [*nodes, most or {}]) or bool(settings.gpus)
        needs = _needs(settings, gpu)
        together = Needs(settings.ranks, settings.cpus, float(gpu), "executor.ranks")
        check_room(needs, nodes, most)
        if settings.ranks > 1:
            check_room(together, nodes, most)
        yield OnRay(settings, needs, together)
    finally:
        if own:
            ray.shutdown()


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    named, level = address or os.environ.get("RAY_ADDRESS") or "", logging.ERROR
    try:
        _knock(named)
        with _own_signals(), _quiet_core():
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=level)
    except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        ray.shutdown()  # what was begun
        raise ClusterError(
            f"executor.address: the Ray cluster {named or 'of this machine'} cannot be reached "
            f"({first_line(error)}); see `ray status` there, mend the address, set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN if it wants a token, or leave the address out "
            "for a cluster on this machine"
        ) from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep SIGTERM: Ray would end this process by it, where it is a wish to stop."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and current_thread() is main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _quiet_core() -> Iterator[None]:
    """Keep Ray's own core from writing to standard error, unless the user has set how it talks.

    It says that actors could not be started again once what they were made from is lost: that lies
    beside this process, for as long as they are wanted.
    """
    if _CORE in os.environ:
        yield
        return
    os.environ[_CORE] = "fatal"
    errors, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # where it would say that it was told so
    try:
        yield
    finally:
        del os.environ[_CORE]
        os.dup2(errors, 2)
        os.close(errors)
        os.close(nowhere)


def _knock(address: str) -> None:
    """See that somebody is there: Ray itself tries for minutes, and then ends this process."""
    if "://" in address:
        raise ValueError("start selfcal on a machine of the cluster, and give auto or HOST:6379")
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def _needs(settings: RayExecutor, gpu: bool) -> Needs:
    """What the workers take; a GPU each where the cluster has any, if nothing is said."""
    gpus = settings.gpus if settings.gpus is not None else float(gpu)
    return Needs(settings.workers, settings.cpus, gpus)


def _room() -> tuple[list[Mapping[str, float]], Mapping[str, float] | None]:
    """What each node has, and what an autoscaler may bring it all to; None: there is none."""
    every: Any = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in every if node["Alive"]]
    with suppress(AttributeError, RayError, RuntimeError):  # no public door to it
        if most := ray._private.state.state.get_max_resources_from_cluster_config():
            return nodes, most
    kuberay = "KUBERNETES_SERVICE_HOST" in os.environ and "RAY_CLUSTER_NAME" in os.environ
    if kuberay or Path("~/ray_bootstrap_config.yaml").expanduser().exists():
        return nodes, {}  # how far it goes is not known
    return nodes, None


@dataclass(frozen=True)
class OnRay:
    """Has the shards of stages done by actors, and everything else here."""

    settings: RayExecutor
    needs: Needs
    """Of the workers."""
    together: Needs
    """Of a training's ranks."""

    def run(self, recipe: Recipe, work: Work) -> Mapping[str, JSON]:
        """Run the stage's function, on the cluster as far as the stage lets it.

        Raises:
            ClusterError: workers die again and again, or cannot be had.
            SelfcalError: the stage failed in a foreseen way, here or in a worker.
            Stopped: that was asked for; workers have finished the shards in work.
        """
        if work.stage.spread == "ranks" or self._is_elsewhere(recipe, work):
            return self._train(recipe, work)
        if work.stage.spread == "workers":
            work = replace(work, shards=partial(self._shards, recipe))
        return perform_again(recipe, work)

    def _is_elsewhere(self, recipe: Recipe, work: Work) -> bool:
        """Whether a training of one process goes to a GPU of the cluster: the driver has none."""
        if work.stage.spread != "here" or work.stage.unit != _STEPS or not self.together.gpus:
            return False
        if recipe.judge.kind == "endpoint" and _is_on_store(work):
            return False  # GRPO may ask it, and the ledger of that is the driver's
        import torch

        return recipe.policy.device != "cpu" and not torch.cuda.is_available()

    def _train(self, recipe: Recipe, work: Work) -> Mapping[str, JSON]:
        from selfcal.executor.ray_train import train_on_ray

        if on_one := _is_on_store(work):  # the ranks have one mirror, and so one machine
            nodes, most = _room()
            check_room(self.together, largest(self.together, nodes), most)
        return train_on_ray(recipe, work, bool(self.together.gpus), on_one)

    def _shards(self, recipe: Recipe, work: Work, todo: Todo) -> None:
        """Have the shards done that are left."""
        left, place = work.left(todo), place_of(work.run)
        moved = work.counting(todo, left)
        share = Share(
            _where(place), str(Path.cwd()), work.stage.name, work.folder.fingerprint,
            tuple(todo.sizes), recipe.threads or self.settings.cpus, place.token,
        )  # fmt: skip
        done: list[int] = []
        failures: list[str] = []
        with _explained(work), foreman_beside() as foreman:
            for row in self._rows(share, left, foreman) if left else ():
                for line in json.loads(row["notes"]):
                    memory.note(line)
                if row["error"]:
                    failures.append(row["error"])
                    ray.get(foreman.stop.remote())  # the others finish what they have begun
                elif row["items"] >= 0:
                    done.append(int(row["shard"]))
                    moved(int(row["items"]))
        if failures:
            raise _told(failures[0])
        if stopping.asked() and len(done) < len(left):
            raise stopping.Stopped
        place.fetch(work.folder)
        work.folder.keep_first(len(todo.sizes))  # `left` deleted them here, not on the store
        _insist(work, left)

    def _rows(self, share: Share, left: Sequence[int], foreman: Any) -> Iterator[Mapping[str, Any]]:
        """What the workers say of each shard, as they get them done."""
        import ray.data

        _quiet_data()
        blocks = min(len(left), _AT_ONCE)
        numbers = ray.data.from_items([{"shard": i} for i in left], override_num_blocks=blocks)
        size = min(self.settings.workers, len(left))
        most = min(self.settings.max_workers or size, len(left))
        # one in work and one in wait: enough to see that more actors are wanted
        pool = ray.data.ActorPoolStrategy(
            min_size=size, max_size=max(size, most), max_tasks_in_flight_per_actor=2
        )
        said = numbers.map_batches(
            StageWorker, batch_size=1, compute=pool, fn_constructor_args=(share, foreman),
            num_cpus=self.needs.cpus, num_gpus=self.needs.gpus or None,
            runtime_env={"env_vars": _environment()},
        )  # fmt: skip
        yield from said.iter_rows()


def _is_on_store(work: Work) -> bool:
    return is_address(place_of(work.run).where)


def _where(place: Place) -> str:
    """A run as other machines find it."""
    return place.where if is_address(place.where) else str(place.run.resolve())


class StageWorker:
    """An actor of Ray Data: numbers of shards in, what became of them out."""

    def __init__(self, share: Share, foreman: Any) -> None:
        """Nothing is opened before the first shard, so that whatever fails is told with it."""
        hush()
        with suppress(OSError):  # a recipe may name models and files by paths from there
            os.chdir(share.directory)
        self._share, self._foreman = share, foreman
        self._worker = ShardWorker(share, take_up)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Do the shards; `items` is -1 for those that were not done."""
        said = [self._do(int(i)) for i in batch["shard"]]
        items, errors = [n for n, _ in said], [error for _, error in said]
        notes = [json.dumps(memory.noted()), *["[]"] * (len(said) - 1)]
        return {
            "shard": batch["shard"], "items": np.array(items), "error": np.array(errors),
            "notes": np.array(notes),
        }  # fmt: skip

    def _do(self, i: int) -> tuple[int, str]:
        """Items of shard `i`, and the error there was, as `_told` reads it."""
        time_of_it = 1
        with suppress(RayError):  # the foreman may have died, and be back soon
            time_of_it = ray.get(self._foreman.begins.remote(i))
        try:
            if time_of_it > _TRIES:
                raise ClusterError(
                    f"stage {self._share.stage}, shard {i}: its worker died {_TRIES} times over "
                    f"it, as it does where memory runs out; see {_LOGS}, and `selfcal plan` for "
                    "what needs less"
                )
            return (self._worker.do(i) if time_of_it else -1), ""
        except SelfcalError as error:
            return -1, json.dumps({"kind": type(error).__qualname__, "text": str(error)})
        finally:
            self._foreman.ends.remote(i)


@contextmanager
def _explained(work: Work) -> Iterator[None]:
    """Turn what Ray says of a lost cause into an error with the way out."""
    from ray.data.exceptions import ExecutionTimeoutError

    try:
        yield
    except (RayError, ExecutionTimeoutError) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, Exception) and not isinstance(cause, RayError):
            raise  # a fault in code, with its own trace
        raise ClusterError(
            f"stage {work.stage.name}: its workers died again and again, or could not be had "
            f"({first_line(error)}); see `ray status` and {_LOGS}, then run the same command "
            "again: it resumes"
        ) from error


def _told(error: str) -> SelfcalError:
    """The error of a worker, of the class that it had there."""
    said = json.loads(error)
    return rebuilt(said["kind"], said["text"])


def _insist(work: Work, shards: Sequence[int]) -> None:
    """See that the shards are here that workers say they have written."""
    until = time.monotonic() + _VISIBLE_S
    missing = [i for i in shards if not work.folder.sealed(i)]
    while missing and time.monotonic() < until:
        time.sleep(0.5)
        missing = [i for i in missing if not work.folder.sealed(i)]
    if missing:
        raise StoreError(
            f"{work.out}: workers have written shards that are not to be seen here (such as "
            f"{missing[0]}): all machines must see the run by the same path; put it on storage "
            "that they share, then run the same command again: it resumes"
        )


def _environment() -> dict[str, str]:
    """What workers are told by their environment, as this process is."""
    return {name: os.environ[name] for name in PASSED if name in os.environ}


def _quiet_data() -> None:
    """No bars and no words of Ray Data beside selfcal's own."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = _PATIENCE_S
    if Heeds not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(Heeds)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # the trace of what is raised as well, or of a stop
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)
