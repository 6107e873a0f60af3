"""Who tells workers of a Ray cluster whether to begin a shard, and hears of the wish to stop."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any

import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from selfcal import stopping

_LAST_S = 1800
"""After the wish to stop: a shard that is still in work then is that of a worker that died."""


class Foreman:
    """An actor that all workers ask before a shard: whether to begin it."""

    def __init__(self) -> None:
        """Everything may be begun."""
        self._stopped = False
        self._begun: Counter[int] = Counter()
        self._in_work: set[int] = set()

    def stop(self) -> bool:
        """Let nothing more be begun; gives whether nothing is in work, either."""
        self._stopped = True
        return not self._in_work

    def begins(self, i: int) -> int:
        """How many times shard `i` was begun, with this one; 0: it must not be."""
        if self._stopped:
            return 0
        self._begun[i] += 1
        self._in_work.add(i)
        return self._begun[i]

    def ends(self, i: int) -> None:
        """Hear that shard `i` is over, one way or the other."""
        self._in_work.discard(i)


_idle = Event()
"""Nobody has a shard in work after the wish to stop: there is nothing to wait for."""


class Heeds(ExecutionCallback):
    """Ends the work of Ray Data, which would wait for actors that the cluster has no room for."""

    def on_execution_step(self, executor: Any) -> None:
        """Called some times a second, whether there is any worker or none."""
        if _idle.is_set():
            raise stopping.Stopped


def beside_driver(kind: type[Any], restarts: int = -1) -> Any:
    """An actor on this machine, which Ray starts again so often if it dies; -1: always."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(
        num_cpus=0, max_restarts=restarts, scheduling_strategy=here
    ).remote()  # fmt: skip


@contextmanager
def foreman_beside() -> Iterator[Any]:
    """A foreman that hears of the wish to stop, as this process does."""
    actor: Any = beside_driver(Foreman)
    over = Event()
    _idle.clear()

    def watch() -> None:
        since: float | None = None
        while not over.wait(0.2):
            if not stopping.asked():
                continue
            since = since or time.monotonic()
            with suppress(RayError):  # told again and again: it may have been started anew
                if ray.get(actor.stop.remote()) or time.monotonic() - since > _LAST_S:
                    _idle.set()

    watching = Thread(target=watch, name="foreman", daemon=True)
    watching.start()
    try:
        yield actor
    finally:
        over.set()
        watching.join()
        with suppress(RayError):
            ray.kill(actor)
