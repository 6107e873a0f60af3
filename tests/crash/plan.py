"""All disturbed runs, by name; what is done to each follows from the seed and its name."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from crash import attempt
from crash.controls import CONTROLS
from crash.damage import Case, cases, copy, damage
from crash.kills import KILLS, REFUSALS, Outcome, Point, disturb, points
from crash.space import fill
from crash.truth import Truth

Say = Callable[[str], None]
Run = Callable[[Path, Say], Outcome]
_MOST = 4
"""Times as many killed runs as would do if every point was reached."""
_FULL = 6
"""Times that a disk is full in one run."""


@dataclass(frozen=True)
class Asked:
    """What the command was asked for."""

    points: int
    seed: int
    each: int
    """Points a stage, in a run that is killed."""
    rounds: int
    """Of damage, refusals, full disks and moved clocks."""
    only: str = ""
    """Pattern of names; others are left out."""

    def wants(self, name: str) -> bool:
        """Whether a run of that name is asked for."""
        return re.search(self.only, name) is not None


def others(truth: Truth, asked: Asked, disk: bool) -> dict[str, Run]:
    """The runs that are not just killed, and the controls; `disk`: one can be mounted."""
    found: dict[str, Run] = {}
    for case in cases(truth, asked.seed, asked.rounds):
        found[case.name] = partial(_damaged, truth, case, asked.seed)
    for n in range(asked.rounds):
        clocked, refused, disked = f"clock-{n}", f"refused-{n}", f"disk-{n}"
        found[refused] = partial(_pointed, truth, asked, refused, tuple(REFUSALS), 1, None)
        found[clocked] = partial(_pointed, truth, asked, clocked, KILLS, 1, asked.seed + n)
        if disk:
            found[disked] = partial(_filled, truth, asked, disked)
    found |= _controls(truth, asked)
    return {name: run for name, run in found.items() if asked.wants(name)}


def _controls(truth: Truth, asked: Asked) -> dict[str, Run]:
    case = next(c for c in cases(truth, asked.seed, 1) if c.until and c.exact)
    bad = partial(_damaged, truth, replace(case, name="control-unchecked"), asked.seed)
    return {
        "control-unchecked": partial(_control, "unchecked", bad),
        "control-in-place": partial(_control, "in-place", partial(_torn, truth, asked)),
    }


def _torn(truth: Truth, asked: Asked, work: Path, say: Say) -> Outcome:
    """Kills inside the writes of one stage with shards, of which the first is there."""
    stage, name = "iter-1/judgments", "control-in-place"
    copy(truth, work / "run", stage, 1)
    rng = random.Random(f"{asked.seed}|{name}")
    # after some seven steps of opening, careless writes take two a file, six a shard
    own = [Point(stage, rng.choice(["step", "halfway"]), rng.randint(8, 14)) for _ in range(4)]
    return disturb(truth, name, work, own, say)


def kills(truth: Truth, asked: Asked) -> Iterator[tuple[str, Run]]:
    """Runs that are killed; as many as it may take until enough points have fired."""
    for n in range(_MOST * -(-asked.points // (asked.each * len(truth.stages)))):
        if asked.wants(name := f"kills-{n:02d}"):
            yield name, partial(_pointed, truth, asked, name, KILLS, asked.each, None)


def _pointed(
    truth: Truth,
    asked: Asked,
    name: str,
    kinds: tuple[str, ...],
    each: int,
    clock: int | None,
    work: Path,
    say: Say,
) -> Outcome:
    rng = random.Random(f"{asked.seed}|{name}")
    return disturb(truth, name, work, points(truth, rng, kinds, each), say, clock)


def _damaged(truth: Truth, case: Case, seed: int, work: Path, say: Say) -> Outcome:
    say(f"{case.name}: {', '.join(f'{d.file} {d.how}' for d in case.damages)}")
    return damage(truth, case, work, seed)


def _filled(truth: Truth, asked: Asked, name: str, work: Path, say: Say) -> Outcome:
    return fill(truth, name, work, random.Random(f"{asked.seed}|{name}"), say, _FULL)


def _control(control: str, run: Run, work: Path, say: Say) -> Outcome:
    """Do that to a selfcal that is careless: here the harness must find faults."""
    attempt.spoil = CONTROLS[control]
    found = run(work, say)
    found.control, found.caught, found.faults = control, found.faults, []
    if not found.caught or not found.fired:
        found.faults = [f"selfcal was made careless ({control}), and no fault was found"]
    return found
