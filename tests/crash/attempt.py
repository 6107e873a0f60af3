"""One attempt at a run, in a forked process that tells what it does and may die at any moment.

The process that forks has imported the libraries and computed nothing, so that an attempt begins at
once and no thread is lost by the fork. Events come through a pipe, a JSON line each; what was told
before a kill arrives.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from crash import shim
from e2e.runs import PARTS, SHARDS
from selfcal.errors import SelfcalError
from selfcal.recipe import Recipe
from selfcal.stage import Shards, Stage, Work

Event = dict[str, Any]
Tell = Callable[[Event], None]
LIMIT = 900.0
"""Seconds after which an attempt hangs."""
FAILED, CRASHED = 1, 70
"""Exit codes: a foreseen error, as the command line ends with; and a traceback."""


@dataclass
class Ended:
    """How an attempt ended."""

    code: int = 0
    """Exit code; negative: the signal that killed it."""
    events: list[Event] = field(default_factory=list)
    said: str = ""
    """Its output."""

    def of(self, kind: str) -> list[Event]:
        return [e for e in self.events if e["event"] == kind]


class Teller:
    """A reporter that tells the parent, and arms what is planned for a stage."""

    def __init__(self, tell: Tell, begins: Callable[[str], None], ends: Callable[[str], None]):
        self._tell, self._begins, self._ends, self._stage = tell, begins, ends, ""

    def begins(self, stage: Stage, number: int, of: int) -> None:
        self._stage = stage.name
        self._begins(stage.name)
        self._tell({"event": "begins", "stage": stage.name})

    def moves(self, done: int, total: int) -> None:
        self._tell({"event": "moves", "stage": self._stage, "done": done, "of": total})

    def ends(self, stage: Stage, stats: Mapping[str, Any], seconds: float) -> None:
        self._ends(stage.name)
        self._tell({"event": "ends", "stage": stage.name, "seconds": seconds})

    def skips(self, stage: Stage, reused: bool) -> None:
        self._tell({"event": "skips", "stage": stage.name})

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Whatever else a reporter may be told."""
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *told: self._tell({"event": name, "told": [str(t) for t in told]})


def nothing(*_: str) -> None:
    """For an attempt that has nothing planned."""


spoil: Callable[[], None] = nothing
"""Called in every child that goes on with a run: what a control makes of selfcal."""


def going(
    recipe: Recipe,
    run: Path,
    begins: Callable[[str], None] = nothing,
    ends: Callable[[str], None] = nothing,
) -> Callable[[Tell], None]:
    """What a child does to go on with a run."""

    def go(tell: Tell) -> None:
        from selfcal.pipeline import execute

        for name, size in SHARDS.items():
            import_module(f"{PARTS}.{name}")._SHARD = size
        spoil()
        _tell_of_shards(tell)
        begins("start")
        execute(recipe, run, Teller(tell, begins, ends))
        tell({"event": "finished", "modules": sorted(sys.modules)})

    return go


def _tell_of_shards(tell: Tell) -> None:
    seal = Work.seal

    def sealing(self: Work, i: int, shards: Shards) -> None:
        seal(self, i, shards)
        tell({"event": "sealed", "stage": self.stage.name, "shard": i})

    Work.seal = sealing  # type: ignore[method-assign]


def attempt(
    body: Callable[[Tell], Any], log: Path, watch: Callable[[Event], float | None] | None = None
) -> Ended:
    """Do something in a forked child.

    Args:
        body: what it does; a `SelfcalError` is said and ends with `FAILED`, any other with
            `CRASHED`, as a command would.
        log: gets its output.
        watch: told of each event; may give seconds after which the child is killed (0: at once).

    Raises:
        TimeoutError: it hangs.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_child(body, log, writing)
    os.close(writing)
    ended = Ended()
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        _follow(child, pipe, ended, watch)
    _, status = os.waitpid(child, 0)
    ended.code = os.waitstatus_to_exitcode(status)
    ended.said = log.read_text(errors="replace")[-4000:]
    return ended


def _be_child(body: Callable[[Tell], Any], log: Path, pipe: int) -> None:
    """Never returns: what a fork shares with its parent must not be closed twice."""
    code = CRASHED
    try:
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)

        shim.told = pipe

        def tell(event: Event) -> None:
            os.write(pipe, json.dumps(event).encode() + b"\n")

        body(tell)
        code = 0
    except SelfcalError as error:
        print(f"error: {error}", file=sys.stderr)
        code = FAILED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@dataclass
class _Due:
    """When a child is killed, on the monotonic clock."""

    at: float = float("inf")
    hangs: float = field(default_factory=lambda: time.monotonic() + LIMIT)

    def left(self) -> float:
        """Seconds until then."""
        return min(self.at, self.hangs) - time.monotonic()


def _follow(
    child: int, pipe: Any, ended: Ended, watch: Callable[[Event], float | None] | None
) -> None:
    """Read events until the child is gone; kill it when `watch` says so."""
    due = _Due()
    for line in _lines(pipe, due):
        if line is not None:
            ended.events.append(event := _event(line))
            if watch and (wait := watch(event)) is not None:
                due.at = time.monotonic() + wait
            continue
        os.kill(child, signal.SIGKILL)
        if due.at > due.hangs:
            os.waitpid(child, 0)
            raise TimeoutError(f"an attempt hangs: {ended.events[-3:]}")
        ended.events.append({"event": "killed"})
        due.at = due.hangs = float("inf")


def _lines(pipe: Any, due: _Due) -> Iterator[bytes | None]:
    """Lines as they come; None when the time has come to kill."""
    rest = b""
    while True:
        wait = due.left()
        if wait <= 0 or not select.select([pipe], [], [], min(wait, 3600.0))[0]:
            yield None
            continue
        if not (data := pipe.read(65536)):
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from (line for line in lines if line)


def _event(line: bytes) -> Event:
    if line[:2] in (b"K ", b"R "):  # of `steps.c`
        n, _, rest = line.decode(errors="replace")[2:].partition(" ")
        what = "died" if line.startswith(b"K") else "refused"
        return {"event": what, "step": int(n), "at": rest}
    return dict(json.loads(line))


def warm(modules: list[str]) -> int:
    """Import what an attempt imported, so that the next ones have it; gives how many."""
    own = ("torch", "transformers", "trl", "peft", "datasets", "sklearn", "accelerate", "selfcal",
           "safetensors", "pyarrow", "PIL", "scipy")  # fmt: skip
    found = 0
    for name in modules:
        if name.partition(".")[0] in own and name not in sys.modules:
            # some are made, not imported
            with suppress(Exception), warnings.catch_warnings(action="ignore"):
                import_module(name)
                found += 1
    import torch

    torch.set_num_threads(1)
    return found


__all__ = ["CRASHED", "FAILED", "Ended", "Event", "Tell", "attempt", "going", "shim", "warm"]
