"""Run a method's stages in order, in one folder, and resume where it was left.

A finished stage with the same fingerprint (see `planning`) is never redone unless it is damaged
(see `mending`), and a changed setting redoes just what depends on it. Who does the work of a stage,
this process or others, is the executor's business.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from selfcal import clock, memory, stopping
from selfcal.errors import StoreError
from selfcal.executor import Executor, open_executor
from selfcal.files import sync
from selfcal.lock import LOCK_FILES, RunLock
from selfcal.mending import WEIGHTS, freed_weights, mend, outcomes, redo, stale, survey
from selfcal.planning import FORMAT, RECIPE_FILE, Planned, locate, needed, open_run, pin, plan
from selfcal.recipe import Recipe
from selfcal.remote import Place, Read, place_of
from selfcal.reporting import Both, Reporter, Silent
from selfcal.stage import Work
from selfcal.store import (
    MANIFEST,
    MARKER,
    MARKS,
    PARTIAL,
    StageDir,
    explained,
    read_json,
    write_json,
    write_signed,
)
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
    _refuse_foreign(run, planned)
    place = place_of(run)
    with _heeding(), RunLock(run), place.working(_reads(recipe, planned)):
        _clear_leftovers(run)
        settings = recipe.model_dump(mode="json")
        write_signed(run / RECIPE_FILE, {"format": FORMAT, "recipe": settings})
        place.saved([run / RECIPE_FILE])
        with _tracked(recipe, run, planned, tell) as tell, open_executor(recipe) as executor:
            _go_through(recipe, run, planned, tell, executor, reuse, profile)


def _reads(recipe: Recipe, planned: Sequence[Planned]) -> list[Read]:
    """What each stage reads, for the place of the run."""
    found: dict[str, dict[str, StageDir]] = {}
    for p in planned:
        own = needed(p.stage, planned)
        if recipe.policy.server:  # it serves the adapters of all trainings before
            own |= {k: v for name in p.stage.inputs for k, v in found[name].items()}
        found[p.stage.name] = own
    return [Read(p.folder, list(found[p.stage.name].values())) for p in planned]


@contextmanager
def _heeding() -> Iterator[None]:
    """A wish to stop is fulfilled by the work that it stops, and holds until then."""
    try:
        yield
    except stopping.Stopped:
        stopping.forget()
        raise


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
    """Do the stages that are not done or no longer sound, in their order."""
    folders = {p.stage.name: p.folder for p in planned}
    here = [p for p in planned if not p.folder.done or place_of(run).has(p.folder)]
    faults = survey(here, stopping.heed)
    for number, p in enumerate(planned, start=1):
        why = _mended(p, planned, faults, tell, place_of(run))
        if p.folder.done and not why:
            tell.skips(p.stage, reused=False)
        elif _reuse(p, run, reuse, folders):
            tell.skips(p.stage, reused=True)
        else:
            stopping.heed()
            tell.begins(p.stage, number, len(planned))
            seconds = _perform(recipe, run, p, planned, tell, executor, why)
            if profile:
                _note_profile(run, p, seconds)


def _mended(
    p: Planned,
    planned: Sequence[Planned],
    faults: Mapping[str, Sequence[str]],
    tell: Reporter,
    place: Place,
) -> Sequence[str]:
    """Make a stage ready to be done again where it must be; gives why."""
    damaged = faults.get(p.stage.name)
    if damaged is not None:
        tell.mends(p.stage, damaged or [f"{MANIFEST}, {MARKER} or {MARKS}/"])
    if not p.folder.done:
        return ()
    if damaged is not None and not damaged:
        place.finished(p.folder)
    if damaged:
        mend(p, damaged, planned)
        return damaged
    if why := stale(p, {q.stage.name: q.folder for q in planned}):
        tell.mends(p.stage, why)
        place.sets_aside(p.folder)
        redo(p, planned)
    return why


def _note_profile(run: Path, p: Planned, seconds: float) -> None:
    """Add a stage to the run's profile; a stage that was resumed counts what this process did."""
    path = run / PROFILE_FILE
    known = {}
    with suppress(StoreError):  # missing or damaged: what it said is not worth a stop
        known = read_json(path)
    parts = {name: round(s, 3) for name, s in sorted(clock.take().items())}
    parts["other"] = round(max(0.0, seconds - sum(parts.values())), 3)
    known[p.stage.name] = {"seconds": round(seconds, 3), "parts": parts}
    write_json(path, known)


def _refuse_foreign(run: Path, planned: Sequence[Planned]) -> None:
    """Refuse a folder with files of others; without its recipe a run is known by its stages."""
    if run.is_file():
        raise StoreError(f"{run} is a file; give a folder for the run")
    if not run.is_dir() or (run / RECIPE_FILE).exists() or any(p.folder.begun for p in planned):
        return
    names = {path.name for path in run.iterdir()} - set(LOCK_FILES)
    if any(not name.endswith(PARTIAL) for name in names):  # what a kill left is ours
        raise StoreError(f"{run} is not empty and is no run of selfcal; give another folder")


def _clear_leftovers(run: Path) -> None:
    """Delete what a killed process left half written beside the stages' folders."""
    with explained("clear", run):
        for leftover in run.glob(f".*{PARTIAL}"):
            if leftover.is_file():
                leftover.unlink()


def _perform(
    recipe: Recipe,
    run: Path,
    p: Planned,
    planned: Sequence[Planned],
    tell: Reporter,
    executor: Executor,
    mended: Sequence[str] = (),
) -> float:
    """Do a stage's work; gives the seconds it took."""
    clock.take()
    folders = {q.stage.name: q.folder for q in planned}
    read, place = outcomes(p, folders), place_of(run)
    inputs = {name: folders[name] for name in p.stage.inputs}
    for folder in needed(p.stage, planned).values():
        place.needs(folder)
    place.takes_up(p.folder, read)
    p.folder.open(read)
    place.opened(p.folder)
    work = Work(run, p.stage, p.folder, inputs, recipe.seed, tell.moves, place.saved)
    began = time.monotonic()
    memory.noted()  # a new stage may say again what an earlier one has said
    with memory.told(tell.notes):
        stats = executor.run(recipe, work)
    if lines := memory.noted():
        stats = {**stats, "notes": lines}
    seconds = time.monotonic() - began
    p.folder.finish(stats, round(seconds, 2), read, mended)
    place.finished(p.folder)
    tell.ends(p.stage, stats, seconds)
    return seconds


def _reuse(p: Planned, run: Path, others: Sequence[Path], folders: Mapping[str, StageDir]) -> bool:
    """Take a stage over from another run that has it; whether one had."""
    for other in others:
        stopping.heed()
        there = StageDir(other / p.stage.name, p.folder.fingerprint)
        if there.done:
            place_of(other).fetch(there)
        if other.resolve() != run.resolve() and _sound(Planned(p.stage, there), folders):
            place_of(run).takes_up(p.folder)
            if p.folder.path.exists():
                p.folder.open()  # moves other work aside
                shutil.rmtree(p.folder.path)
            with explained("take over", p.folder.path):
                _take_over(there.path, p.folder.path)
            place_of(run).finished(p.folder)
            return True
    return False


def _take_over(source: Path, target: Path) -> None:
    """Link a stage's folder, or copy it, so that it is there whole or not at all."""
    # under another name at first: a stage that is linked by half must not look begun
    half = target.with_name(f".{target.name}{PARTIAL}")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(
        source,
        half,
        copy_function=_link,
        # nested stages ("iter-1/dpo" in "iter-1") have manifests of their own
        ignore=shutil.ignore_patterns(MANIFEST, f"*{PARTIAL}"),
    )
    _link(source / MANIFEST, half / MANIFEST)
    for folder, _, _ in os.walk(half):
        sync(Path(folder))
    half.rename(target)
    sync(target.parent)


def _sound(there: Planned, folders: Mapping[str, StageDir]) -> bool:
    """Whether a stage of another run is finished, whole, and made of what this run has."""
    folder = there.folder
    if not folder.done or freed_weights(folder):
        return False
    return not folder.verify(WEIGHTS) and not stale(there, folders)


def _link(source: Any, target: Any) -> Any:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
        sync(Path(target))
    return target


def results(run: Path) -> list[Result]:
    """All results of a run so far, in the order of its checkpoints."""
    found: list[Result] = []
    for p in locate(open_run(run), run):
        if p.stage.name.startswith("eval/") and p.folder.done:
            place_of(run).needs(p.folder)
            found += p.folder.read("results", Result)
    return found
