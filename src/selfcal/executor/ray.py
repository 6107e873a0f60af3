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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from selfcal import stopping
from selfcal.errors import SelfcalError, StoreError
from selfcal.executor.base import perform_again
from selfcal.executor.room import ClusterError, Needs, check_room
from selfcal.executor.worker import ShardWorker, Share, take_up
from selfcal.quiet import PASSED, hush
from selfcal.recipe import RayExecutor, Recipe
from selfcal.remote import Place, is_address, place_of
from selfcal.stage import Todo, Work
from selfcal.store import JSON

_TRIES = 10
"""How often a shard is begun: workers die for no fault of its own, as when a node is taken away."""
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
        ClusterError: it cannot be reached, or has no room for the workers.
    """
    own = not ray.is_initialized()
    if own:
        _connect(settings.address)
    try:
        needs = _needs(settings)
        check_room(needs, *_room())
        yield OnRay(settings, needs)
    finally:
        if own:
            ray.shutdown()


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    named, level = address or os.environ.get("RAY_ADDRESS") or "", logging.ERROR
    try:
        _knock(named)
        with _own_signals():
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=level)
    except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        ray.shutdown()  # what was begun
        raise ClusterError(
            f"executor.address: the Ray cluster {named or 'of this machine'} cannot be reached "
            f"({_first(error)}); see `ray status` there, mend the address, or leave it out for a "
            "cluster on this machine"
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


def _knock(address: str) -> None:
    """See that somebody is there: Ray itself tries for minutes, and then ends this process."""
    if "://" in address:
        raise ValueError("start selfcal on a machine of the cluster, and give auto or HOST:6379")
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def _first(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def _needs(settings: RayExecutor) -> Needs:
    """What the workers take; a GPU each where the cluster has any, if nothing is said."""
    nodes, most = _room()
    any_gpu = any(node.get("GPU", 0) for node in [*nodes, most or {}])
    gpus = settings.gpus if settings.gpus is not None else float(any_gpu)
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

    def run(self, recipe: Recipe, work: Work) -> Mapping[str, JSON]:
        """Run the stage's function, on the cluster as far as the stage lets it.

        Raises:
            ClusterError: workers die again and again, or cannot be had.
            SelfcalError: the stage failed in a foreseen way, here or in a worker.
            Stopped: that was asked for; workers have finished the shards in work.
        """
        if work.stage.spread == "ranks":
            from selfcal.executor.ray_train import train_on_ray

            return train_on_ray(recipe, work, any(node.get("GPU", 0) for node in _room()[0]))
        if work.stage.spread == "workers":
            work = replace(work, shards=partial(self._shards, recipe))
        return perform_again(recipe, work)

    def _shards(self, recipe: Recipe, work: Work, todo: Todo) -> None:
        """Have the shards done that are left."""
        left, place = work.left(todo), place_of(work.run)
        moved = work.counting(todo, left)
        share = Share(
            _where(place), str(Path.cwd()), work.stage.name, work.folder.fingerprint,
            tuple(todo.sizes), recipe.threads or self.settings.cpus,
        )  # fmt: skip
        done: list[int] = []
        failures: list[str] = []
        with _explained(work), _foreman() as foreman:
            for row in self._rows(share, left, foreman) if left else ():
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
        return {"shard": batch["shard"], "items": np.array(items), "error": np.array(errors)}

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


class Foreman:
    """An actor that all workers ask before a shard: whether to begin it."""

    def __init__(self) -> None:
        """Everything may be begun."""
        self._stopped = False
        self._begun: Counter[int] = Counter()

    def stop(self) -> None:
        """Let nothing more be begun."""
        self._stopped = True

    def begins(self, i: int) -> int:
        """How many times shard `i` was begun, with this one; 0: it must not be."""
        if self._stopped:
            return 0
        self._begun[i] += 1
        return self._begun[i]


@contextmanager
def _foreman() -> Iterator[Any]:
    """A foreman that hears of the wish to stop, as this process does."""
    actor: Any = ray.remote(Foreman).options(num_cpus=0, max_restarts=-1).remote()
    over = Event()

    def watch() -> None:
        while not over.wait(0.2):
            if stopping.asked():  # told again and again: it may have been started anew
                with suppress(RayError):
                    ray.get(actor.stop.remote())

    watching = Thread(target=watch, name="foreman", daemon=True)
    watching.start()
    try:
        yield actor
    finally:
        over.set()
        watching.join()
        with suppress(RayError):
            ray.kill(actor)


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
            f"({_first(error)}); see `ray status` and {_LOGS}, then run the same command again: it "
            "resumes"
        ) from error


def _told(error: str) -> SelfcalError:
    """The error of a worker, of the class that it had there."""
    said = json.loads(error)
    kinds = {kind.__qualname__: kind for kind in _kinds(SelfcalError)}
    kind = kinds.get(said["kind"], SelfcalError)
    found = kind.__new__(kind)
    Exception.__init__(found, said["text"])
    return found


def _kinds(kind: type[SelfcalError]) -> Iterator[type[SelfcalError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


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
    logging.getLogger("ray.data").setLevel(logging.ERROR)
