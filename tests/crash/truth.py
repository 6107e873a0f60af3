"""The undisturbed run, and what must hold of a run that was disturbed and has gone on.

Its records, figures and weights are those of the undisturbed run (`e2e.runs.outcome`, whose floats
have the tolerance that batches of other neighbours need), each file once, none half written, and
`selfcal verify` finds nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crash import shim
from crash.attempt import Event, Tell, attempt, going, warm
from e2e.runs import near, outcome, small
from selfcal.recipe import Recipe
from selfcal.store import PARTIAL, read_json, write_text

SAVING = ("rft.save_steps=1", "judge.train.save_steps=1", "dpo.save_steps=1")
"""So that trainings are taken up in the middle, too."""


@dataclass(frozen=True)
class Stretch:
    """What a stage takes when nothing disturbs it."""

    steps: int
    """File system steps."""
    moves: int
    """Times it told of its progress."""
    seconds: float
    shards: int


@dataclass(frozen=True)
class Truth:
    """An undisturbed run."""

    recipe: Recipe
    run: Path
    outcome: Mapping[str, Any]
    stages: Mapping[str, Stretch]
    """By name, in order; `start` is what comes before the first one."""
    modules: Sequence[str]


def undisturbed(folder: Path, overrides: Sequence[str]) -> Truth:
    """Make the undisturbed run in a folder, or take up the one that is there."""
    recipe, run, kept = small(*SAVING, *overrides), folder / "run", folder / "truth.json"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "log"
        # twice: the first goes through the imports, and leaves nothing of its times
        ended = attempt(going(recipe, folder / "first"), log)
        assert ended.code == 0, ended.said
        modules = ended.events[-1]["modules"]
        warm(modules)
        ended = attempt(_counted(recipe, run), log)
        assert ended.code == 0, ended.said
        stages, held = _stretches(ended.events), _held(recipe, run, log)
        found = {"stages": stages, "modules": modules, "outcome": held}
        write_text(kept, json.dumps(found))  # with NaN, which is the share of nothing
        assert differences(recipe, folder / "first", log, read_json(kept)["outcome"]) == []
    found = read_json(kept)
    warm(found["modules"])
    stages = {name: Stretch(**values) for name, values in found["stages"].items()}
    return Truth(recipe, run, found["outcome"], stages, found["modules"])


def _counted(recipe: Recipe, run: Path) -> Any:
    """Go through a run, with the file system steps of each stage."""

    def go(tell: Tell) -> None:
        def begins(stage: str) -> None:
            tell({"event": "steps", "n": shim.taken()})
            shim.arm(run)

        def ends(stage: str) -> None:
            tell({"event": "steps", "n": shim.taken()})
            shim.arm(run)

        going(recipe, run, begins, ends)(tell)

    return go


def _stretches(events: Sequence[Event]) -> dict[str, Any]:
    stages: dict[str, dict[str, Any]] = {"start": dict(steps=0, moves=0, seconds=0.0, shards=0)}
    now = "start"
    for e in events:
        if e["event"] == "begins":
            now = e["stage"]
            stages[now] = dict(steps=0, moves=0, seconds=0.0, shards=0)
        elif e["event"] == "steps":
            stages[now]["steps"] += e["n"]
        elif e["event"] == "moves":
            stages[now]["moves"] += 1
        elif e["event"] == "sealed":
            stages[now]["shards"] += 1
        elif e["event"] == "ends":
            stages[now]["seconds"] = e["seconds"]
    return stages


def _held(recipe: Recipe, run: Path, log: Path) -> dict[str, Any]:
    """What a run holds, read by a child."""
    out = log.with_name(f"{log.name}-outcome")

    def read(tell: Tell) -> None:
        found = outcome(recipe, run)
        for stage in found.values():  # TRL's own files have paths and times in them
            stage["files"] = {k: v for k, v in stage["files"].items() if not k.startswith("trl/")}
            for row in stage["stats"].get("curve", ()):
                row.pop("num_tokens", None)  # TRL counts what this process has seen
        out.write_text(json.dumps(found))

    ended = attempt(read, log)
    if ended.code:
        raise AssertionError(ended.said)
    found: dict[str, Any] = json.loads(out.read_text())
    out.unlink()
    return found


def differences(recipe: Recipe, run: Path, log: Path, truth: Mapping[str, Any]) -> list[str]:
    """In what a run that has gone on is not the undisturbed one, in words."""
    try:
        held = _held(recipe, run, log)
    except AssertionError as error:
        return [f"it cannot be read: {' '.join(str(error).split())[-600:]}"]
    found = [] if list(held) == list(truth) else [f"its stages are {list(held)}"]
    for stage in held:
        found += _differ(stage, held[stage], truth.get(stage, {}))
    return found + _litter(run)


def _differ(stage: str, own: Mapping[str, Any], true: Mapping[str, Any]) -> list[str]:
    files, expected = own["files"], true.get("files", {})
    found = [f"{stage}: {name} is lost" for name in expected if name not in files]
    found += [f"{stage}: {name} is one too many" for name in files if name not in expected]
    for name in files:
        if name in expected and files[name] != near(expected[name]):
            found.append(f"{stage}: {name} is another{_where(files[name], expected[name])}")
    if own["stats"] != near(true.get("stats", {})):
        found.append(f"{stage}: its figures are others")
    return found


def _where(own: Any, true: Any) -> str:
    if not isinstance(own, list):
        return ""
    if len(own) != len(true):
        return f": {len(own)} rows for {len(true)}"
    row = next((i for i, (a, b) in enumerate(zip(own, true, strict=True)) if a != near(b)), 0)
    return f" in row {row}"


_LITTER = re.compile(rf"{re.escape(PARTIAL)}$|^\.tmp")


def _litter(run: Path) -> list[str]:
    """Files that a kill left half written."""
    names = [
        Path(at, name).relative_to(run).as_posix()
        for at, folders, files in os.walk(run)
        for name in [*folders, *files]
        if _LITTER.search(name)
    ]
    return [f"{name} was left behind" for name in sorted(names)]


def verified(run: Path, log: Path) -> tuple[int, str]:
    """Exit code and output of `selfcal verify RUN`."""

    def go(tell: Tell) -> None:
        from selfcal.cli import app

        try:
            app(["verify", str(run)])
        except SystemExit as end:
            tell({"event": "exit", "code": int(end.code or 0)})

    ended = attempt(go, log)
    codes = [e["code"] for e in ended.of("exit")]
    return (codes[0] if codes and not ended.code else ended.code), ended.said
