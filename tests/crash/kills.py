"""Faults at seeded points of a run: SIGKILL, a full disk, a spent quota, a read-only folder.

A run is disturbed again and again until it finishes. A point belongs to a stage: some time after it
began, some progress, or a file system step inside it, at which the process is killed (before it, or
with half of its bytes written) or refused. Its place is drawn over what the undisturbed stage
takes. A stage that resumes takes less, so that some points are never reached; these don't count.
"""

from __future__ import annotations

import errno
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crash import shim
from crash.attempt import FAILED, Ended, Event, attempt, going
from crash.truth import Stretch, Truth, differences, verified

KILLS = ("time", "progress", "step", "halfway")
REFUSALS = {"full": errno.ENOSPC, "quota": errno.EDQUOT, "readonly": errno.EROFS}
_IN_CHILD = {
    "step": (shim.KILL_BEFORE, 0),
    "halfway": (shim.KILL_HALFWAY, 0),
    **{kind: (shim.REFUSE, number) for kind, number in REFUSALS.items()},
}
_DAYS = 3 * 24 * 3600
"""How far a clock is moved, in seconds, either way."""


@dataclass(frozen=True)
class Point:
    """Where a run is disturbed."""

    stage: str
    kind: str
    amount: float
    """Seconds, times told of progress, or steps, since the stage began."""


@dataclass
class Outcome:
    """What became of a disturbed run."""

    name: str
    fired: list[dict[str, Any]] = field(default_factory=list)
    unreached: int = 0
    attempts: int = 0
    faults: list[str] = field(default_factory=list)
    control: str = ""
    """How selfcal was made careless on purpose, if it was."""
    caught: list[str] = field(default_factory=list)
    """Of a control: the faults, which must be there."""


def points(truth: Truth, rng: random.Random, kinds: Sequence[str], each: int) -> list[Point]:
    """So many points for each stage, in the order of the stages."""
    return [_draw(name, s, rng, kinds) for name, s in truth.stages.items() for _ in range(each)]


def _draw(name: str, stage: Stretch, rng: random.Random, kinds: Sequence[str]) -> Point:
    amounts = {"time": stage.seconds, "progress": stage.moves}
    kind = rng.choice([k for k in kinds if amounts.get(k, stage.steps)])
    if kind == "time":
        return Point(name, kind, rng.uniform(0, stage.seconds))
    return Point(name, kind, rng.randint(1, int(amounts.get(kind, stage.steps))))


@dataclass
class Redone:
    """Watches that what a run has finished is not done again."""

    sealed: set[tuple[str, int]] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def sees(self, event: Event) -> None:
        """Take note of one event."""
        stage, what = event.get("stage", ""), event["event"]
        if what == "begins" and stage in self.ended:
            self.faults.append(f"{stage} was finished, and is done again")
        if what == "ends":
            self.ended.add(stage)
        if what == "sealed":
            if (stage, event["shard"]) in self.sealed:
                self.faults.append(f"{stage}: shard {event['shard']} was whole, and is done again")
            self.sealed.add((stage, event["shard"]))


class Disturbing:
    """The points that are left of a run, as its attempts go through them.

    The same object is used on both sides of the fork: the child arms the steps that it ends at, the
    parent holds the clock and counts the progress.
    """

    def __init__(self, run: Path, left: Sequence[Point], clock: int | None = None) -> None:
        """`clock`: a seed, from which the clock is moved at every stage."""
        self.run, self.left, self._clock = run, list(left), clock
        self.stage, self._moves, self.attempts = "start", 0, 0
        self._pending: Point | None = None

    def _next(self, stage: str) -> Point | None:
        return next((p for p in self.left if p.stage == stage), None)

    def begins(self, stage: str) -> None:
        """In the child: arm the stage's next point, if it is one of steps."""
        if self._clock is not None:
            rng = random.Random(f"{self._clock}|{self.attempts}|{stage}")
            shim.move_clock(rng.randint(-_DAYS, _DAYS))
        p = self._next(stage)
        if p and p.kind in _IN_CHILD:
            shim.arm(self.run, int(p.amount), *_IN_CHILD[p.kind])
        else:
            shim.arm(self.run)

    def ends(self, stage: str) -> None:
        """In the child: a point that was not reached must not fire in the next stage."""
        shim.arm(self.run)

    def watch(self, event: Event) -> float | None:
        """In the parent: seconds until the kill, where it is the parent's."""
        if event["event"] == "begins":
            self.stage, self._moves = event["stage"], 0
            p = self._next(self.stage)
            if p and p.kind == "time":  # which may come when the next stage has begun
                self._pending = p
                return p.amount
        if event["event"] == "moves":
            self._moves += 1
            p = self._next(self.stage)
            if p and p.kind == "progress" and self._moves == p.amount:
                self._pending = p
                return 0.0
        return None

    def over(self, ended: Ended, order: Sequence[str]) -> tuple[dict[str, Any] | None, int]:
        """After an attempt: the point that fired, and how many can no longer be reached."""
        fired = None
        struck = ended.of("died") or ended.of("refused")
        if ended.code == -signal.SIGKILL or struck:
            p = self._next(self.stage) if struck else self._pending
            assert p is not None, (ended.code, ended.events[-3:])
            self.left.remove(p)
            fired = {**asdict(p), "in": self.stage, "at": struck[0]["at"] if struck else ""}
        gone = [p for p in self.left if ended.code == 0 or self._passed(p, order)]
        self.left = [p for p in self.left if p not in gone]
        self.stage, self._pending, self.attempts = "start", None, self.attempts + 1
        return fired, len(gone)

    def _passed(self, p: Point, order: Sequence[str]) -> bool:
        return p.stage != "start" and order.index(p.stage) < order.index(self.stage)


def disturb(
    truth: Truth,
    name: str,
    work: Path,
    planned: Sequence[Point],
    say: Callable[[str], None],
    clock: int | None = None,
) -> Outcome:
    """Disturb a run at these points, let it finish, and look at what it is."""
    run, log, found, redone = work / "run", work / "log", Outcome(name), Redone()
    disturbing, order = Disturbing(run, planned, clock), list(truth.stages)
    while True:
        body = going(truth.recipe, run, disturbing.begins, disturbing.ends)
        ended = attempt(body, log, disturbing.watch)
        found.attempts += 1
        for event in ended.events:
            redone.sees(event)
        fired, gone = disturbing.over(ended, order)
        found.unreached += gone
        if fault := _unclear(ended, fired):
            found.faults.append(f"attempt {found.attempts}: {fault}")
            if not fired:
                return found
        if fired:
            found.fired.append(fired)
            say(f"{name}: {fired['kind']} in {fired['in']} {fired['at']}")
        if clock is not None:
            _move_times(run, random.Random(f"{clock}|{found.attempts}"))
        if ended.code == 0:
            break
    found.faults += redone.faults + sound(truth, run, log)
    found.faults += [f"{p.name} was moved aside" for p in run.rglob("*.old-*")]
    return found


def _unclear(ended: Ended, fired: dict[str, Any] | None) -> str:
    """What is wrong with how an attempt ended: it may finish, be killed, or say the error."""
    if ended.code in (0, -signal.SIGKILL):
        return ""
    where = f"{fired['kind']} {fired['at']}" if fired else "nothing was done to it"
    if fired and ended.code == FAILED and fired["kind"] in REFUSALS:
        why = os.strerror(REFUSALS[fired["kind"]])
        return "" if why in ended.said else f"{where}: the error is not {why!r}: {tail(ended)}"
    return f"{where}, and it ended with {ended.code}: {tail(ended)}"


def _move_times(run: Path, rng: random.Random) -> None:
    """Let files be of the past and of the future."""
    for at, _, names in os.walk(run):
        for name in sorted(names):
            path = Path(at, name)
            stamp = path.stat().st_mtime + rng.randint(-_DAYS, _DAYS)
            os.utime(path, (stamp, stamp))


def sound(truth: Truth, run: Path, log: Path) -> list[str]:
    """What is wrong with a finished run."""
    faults = differences(truth.recipe, run, log, truth.outcome)
    code, said = verified(run, log)
    if code:
        faults.append(f"selfcal verify ends with {code}: {' '.join(said.split())[-500:]}")
    return faults


def tail(ended: Ended) -> str:
    """The end of what an attempt said, in one line."""
    return " ".join(ended.said.split())[-700:]


def by_stage(fired: Sequence[dict[str, Any]]) -> dict[str, Counter[str]]:
    """Faults that fired, by stage and kind."""
    found: dict[str, Counter[str]] = {}
    for f in fired:
        found.setdefault(f["in"], Counter())[f["kind"]] += 1
    return found
