"""Run a method's stages in order, in one folder, and resume where it was left.

A finished stage with the same fingerprint (see `planning`) is never redone, and a changed setting
redoes just what depends on it. Who does the work of a stage, this process or others, is the
executor's business.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfcal import clock, stopping
from selfcal.errors import StoreError
from selfcal.executor import Executor, open_executor
from selfcal.lock import LOCK_FILES, RunLock
from selfcal.planning import FORMAT, RECIPE_FILE, Planned, locate, open_run, pin, plan
from selfcal.recipe import Recipe
from selfcal.reporting import Both, Reporter, Silent
from selfcal.stage import Work
from selfcal.store import MANIFEST, PARTIAL, StageDir, read_json, write_json
from selfcal.tracking import Tracked, Watch, check
from selfcal.types import Result

__all__ = [
    "FORMAT", "PROFILE_FILE", "RECIPE_FILE", "Planned", "execute", "locate", "open_run", "pin",
    "plan", "results",
]  # fmt: skip

PROFILE_FILE = "profile.json"


def execute(
    recipe: Recipe,
    run: Path,
    reporter: Reporter | None = None,
    reuse: Sequence[Path] = (),
    profile: bool = False,
) -> None:
    """Run a recipe, or go on with it.

    Args:
        recipe: what to run.
        run: the folder of the run; made if missing.
        reporter: who is told.
        reuse: other runs, whose finished stages with the same fingerprint are linked, not redone.
        profile: whether to write where the time of each stage went (`PROFILE_FILE`).

    Raises:
        SelfcalError: another process works in the folder, or a stage failed in a foreseen way.
        Stopped: that was asked for (see `stopping`); what is finished is kept.
    """
    tell, recipe = reporter or Silent(), pin(recipe)
    check(recipe)
    clock.exact = profile
    planned = locate(recipe, run)
    _refuse_foreign(run)
    stopping.forget()
    with RunLock(run):
        write_json(run / RECIPE_FILE, {"format": FORMAT, "recipe": recipe.model_dump(mode="json")})
        with _tracked(recipe, run, planned, tell) as tell, open_executor(recipe) as executor:
            _go_through(recipe, run, planned, tell, executor, reuse, profile)


@contextmanager
def _tracked(
    recipe: Recipe, run: Path, planned: Sequence[Planned], tell: Reporter
) -> Iterator[Reporter]:
    """Who is told, and the recipe's tracker beside, where it names one."""
    if recipe.tracking == "none":
        yield tell
        return
    stages = [(p.stage, p.folder) for p in planned]
    watch = Watch(Tracked(recipe.tracking, run, recipe), stages)
    try:
        yield Both(tell, watch)
    finally:
        watch.close()


def _go_through(
    recipe: Recipe,
    run: Path,
    planned: Sequence[Planned],
    tell: Reporter,
    executor: Executor,
    reuse: Sequence[Path],
    profile: bool,
) -> None:
    """Do the stages that are not done, in their order."""
    folders = {p.stage.name: p.folder for p in planned}
    for number, p in enumerate(planned, start=1):
        if p.folder.done:
            tell.skips(p.stage, reused=False)
        elif _reuse(p, run, reuse):
            tell.skips(p.stage, reused=True)
        else:
            stopping.heed()
            tell.begins(p.stage, number, len(planned))
            seconds = _perform(recipe, run, p, folders, tell, executor)
            if profile:
                _note_profile(run, p, seconds)


def _note_profile(run: Path, p: Planned, seconds: float) -> None:
    """Add a stage to the run's profile; a stage that was resumed counts what this process did."""
    path = run / PROFILE_FILE
    known = read_json(path) if path.exists() else {}
    parts = {name: round(s, 3) for name, s in sorted(clock.take().items())}
    parts["other"] = round(max(0.0, seconds - sum(parts.values())), 3)
    known[p.stage.name] = {"seconds": round(seconds, 3), "parts": parts}
    write_json(path, known)


def _refuse_foreign(run: Path) -> None:
    if run.is_file():
        raise StoreError(f"{run} is a file; give a folder for the run")
    if run.is_dir() and any(run.iterdir()) and not (run / RECIPE_FILE).exists():
        names = {p.name for p in run.iterdir()} - set(LOCK_FILES)
        if names:
            raise StoreError(f"{run} is not empty and is no run of selfcal; give another folder")


def _perform(
    recipe: Recipe,
    run: Path,
    p: Planned,
    folders: Mapping[str, StageDir],
    tell: Reporter,
    executor: Executor,
) -> float:
    """Do a stage's work; gives the seconds it took."""
    clock.take()
    p.folder.open()
    inputs = {name: folders[name] for name in p.stage.inputs}
    work = Work(run, p.stage, p.folder, inputs, recipe.seed, tell.moves)
    began = time.monotonic()
    stats = executor.run(recipe, work)
    seconds = time.monotonic() - began
    p.folder.finish(stats, round(seconds, 2))
    tell.ends(p.stage, stats, seconds)
    return seconds


def _reuse(p: Planned, run: Path, others: Sequence[Path]) -> bool:
    for other in others:
        there = StageDir(other / p.stage.name, p.folder.fingerprint)
        if there.done and other.resolve() != run.resolve():
            if p.folder.path.exists():
                p.folder.open()  # moves other work aside
                shutil.rmtree(p.folder.path)
            # under another name at first: a stage that is linked by half must not look begun
            half = p.folder.path.with_name(f".{p.folder.path.name}{PARTIAL}")
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(
                there.path,
                half,
                copy_function=_link,
                # nested stages ("iter-1/dpo" in "iter-1") have manifests of their own
                ignore=shutil.ignore_patterns(MANIFEST, f"*{PARTIAL}"),
            )
            _link(there.path / MANIFEST, half / MANIFEST)
            half.rename(p.folder.path)
            return True
    return False


def _link(source: Any, target: Any) -> Any:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
    return target


def results(run: Path) -> list[Result]:
    """All results of a run so far, in the order of its checkpoints."""
    recipe = open_run(run)
    return [
        r
        for p in locate(recipe, run)
        if p.stage.name.startswith("eval/") and p.folder.done
        for r in p.folder.read("results", Result)
    ]
