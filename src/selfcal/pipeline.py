"""Run a method's stages in order, in one folder, and resume where it was left.

This is the only place that knows order, paths and fingerprints. A stage's fingerprint covers its
name, its settings, the seed and the fingerprints of all it reads; a finished stage with the same
fingerprint is never redone, and a changed setting redoes just what depends on it.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from selfcal import clock
from selfcal.errors import SelfcalError, StoreError, first_fault
from selfcal.lock import LOCK_FILES, RunLock
from selfcal.methods import load_method
from selfcal.policy import model_digest
from selfcal.prompts import texts
from selfcal.recipe import (
    Data,
    Endpoint,
    FileLabels,
    FileTeacher,
    Judge,
    Labels,
    Local,
    Recipe,
    Settings,
)
from selfcal.reporting import Both, Reporter, Silent
from selfcal.stage import Stage, Work
from selfcal.store import (
    MANIFEST,
    PARTIAL,
    StageDir,
    file_digest,
    fingerprint,
    read_json,
    write_json,
)
from selfcal.tracking import Tracked, Watch, check
from selfcal.types import Result

S = TypeVar("S", bound=Settings)
RECIPE_FILE = "recipe.json"
PROFILE_FILE = "profile.json"
FORMAT = 6
"""Version of what stages write; part of every fingerprint."""


@dataclass(frozen=True)
class Planned:
    """A stage with its place in a run."""

    stage: Stage
    folder: StageDir


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe, checked: every input is a stage before it.

    Raises:
        SelfcalError: unknown method, or a method that reads what it has not planned.
    """
    method = load_method(recipe.method)
    if recipe.options and not hasattr(method, "Options"):
        raise SelfcalError(
            f"recipe {recipe.name}: method {recipe.method!r} has no options; leave out `options`"
        )
    stages = method.plan(recipe)
    known: set[str] = set()
    for stage in stages:
        missing = [name for name in stage.inputs if name not in known]
        if missing or stage.name in known:
            what = (
                f"reads {', '.join(missing)} before it is made" if missing else "is planned twice"
            )
            raise SelfcalError(f"method {recipe.method!r}: stage {stage.name} {what}")
        known.add(stage.name)
    return stages


def pin(recipe: Recipe) -> Recipe:
    """The recipe with all that fingerprints depend on and that lies outside of it.

    That is the digests of local models, of data files and of a teacher's or a label giver's file,
    and the texts of prompts that it names by file: a run keeps them, so that it can be looked at
    when the files are gone.

    Raises:
        SelfcalError: a digest that the recipe names is not that of the model or the file, or a
            prompt or a file of labels cannot be used.
    """
    for name in ("policy", "judge", "reward"):
        part = getattr(recipe, name)
        pinned = part.model_copy(update={"digest": _digest(name, part)})
        recipe = recipe.model_copy(update={name: pinned})
    judge, measure = recipe.judge, recipe.evaluate
    labels = _counted(_pinned(judge.labels, "judge.labels", "labels"), judge)
    marker = _pinned(measure.marker, "evaluate.marker", "marker") if measure.marker else None
    return recipe.model_copy(
        update={
            "data": _pinned_data(recipe.data),
            "teacher": _pinned(recipe.teacher, "teacher", "teacher"),
            "judge": judge.model_copy(update={"labels": labels}),
            "evaluate": measure.model_copy(update={"marker": marker}),
        }
    )


def _pinned(settings: S, place: str, who: str) -> S:
    """The settings of one who is asked, pinned; `who`: as its prompts are found."""
    update: dict[str, Any] = {}
    if isinstance(settings, Local | FileTeacher | FileLabels):
        update["digest"] = _digest(place, settings)
    if isinstance(settings, Endpoint | Local):
        read = texts(who, settings.prompts, f"{place}.prompts")
        update["prompts"] = {name: f"{text.rstrip()}\n" for name, text in read.items()}
    return settings.model_copy(update=update)


def _counted(labels: Labels, judge: Judge) -> Labels:
    """The labels; those of a file checked and counted, before anything is run."""
    if not isinstance(labels, FileLabels):
        return labels
    path = Path(labels.path)
    if labels.pairs is not None and not path.is_file():
        return labels  # of a run whose file is gone
    from selfcal.judge.label_file import read_label_file, split_labels

    pairs = read_label_file(path, judge.sees).pairs
    split_labels(path, pairs, judge.holdout)
    return labels.model_copy(update={"pairs": len(pairs)})


def _digest(place: str, part: Any) -> str | None:
    """The digest of a local model, or of a file; as it was given where there is none here."""
    if isinstance(part, FileTeacher | FileLabels):
        key, name, path = "path", part.path, Path(part.path)
        found = file_digest(path) if path.is_file() else None
    else:
        key, name, found = "model", part.model, model_digest(part.model)
    return _agreed(f"{place}.{key}: {name}", f"{place}.digest", part.digest, found)


def _pinned_data(data: Data) -> Data:
    """The data, with the digest of each file that samples are read from."""
    if data.miniworld:
        return data
    from selfcal.data.door import data_digest, split_files

    sources = []
    for i, s in enumerate(data.sources):
        place = f"data.sources[{i}]"
        found = data_digest(Path(s.path))
        digest = _agreed(f"{place}.path: {s.path}", f"{place}.digest", s.digest, found)
        sources.append(s.model_copy(update={"digest": digest}))
    own, folder = dict(data.digests), Path(data.source)
    files = {} if sources else split_files(folder)
    for split, path in files.items():
        found = data_digest(path) if getattr(data, split) else None
        place = f"data.digests.{split}"
        if digest := _agreed(f"data.source: {path}", place, own.get(split), found):
            own[split] = digest
    return data.model_copy(update={"sources": tuple(sources), "digests": own})


def _agreed(what: str, place: str, given: str | None, found: str | None) -> str | None:
    """The digest that was found, which must be the given one; the given one if none was."""
    if given and found and given != found:
        raise SelfcalError(
            f"{what} has changed ({place} is {given[:12]}, its files give {found[:12]}); put the "
            "old files back, or run the recipe without the digest to redo what depends on it"
        )
    return found or given


def locate(recipe: Recipe, run: Path) -> list[Planned]:
    """The stages of a pinned recipe with their folders and fingerprints in a run."""
    prints: dict[str, str] = {}
    planned = []
    for stage in plan(recipe):
        inputs = {name: prints[name] for name in stage.inputs}
        prints[stage.name] = fingerprint(FORMAT, stage.name, stage.settings, recipe.seed, inputs)
        planned.append(Planned(stage, StageDir(run / stage.name, prints[stage.name])))
    return planned


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
    """
    tell, recipe = reporter or Silent(), pin(recipe)
    check(recipe)
    clock.exact = profile
    planned = locate(recipe, run)
    _refuse_foreign(run)
    with RunLock(run):
        write_json(run / RECIPE_FILE, {"format": FORMAT, "recipe": recipe.model_dump(mode="json")})
        with _tracked(recipe, run, planned, tell) as tell:
            _go_through(recipe, run, planned, tell, reuse, profile)


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
            tell.begins(p.stage, number, len(planned))
            seconds = _perform(recipe, run, p, folders, tell)
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
    recipe: Recipe, run: Path, p: Planned, folders: Mapping[str, StageDir], tell: Reporter
) -> float:
    """Do a stage's work; gives the seconds it took."""
    clock.take()
    p.folder.open()
    inputs = {name: folders[name] for name in p.stage.inputs}
    work = Work(run, p.stage, p.folder, inputs, recipe.seed, tell.moves)
    _seed_libraries(work.integer_seed(), recipe.threads)
    began = time.monotonic()
    stats = p.stage.run(work)
    seconds = time.monotonic() - began
    p.folder.finish(stats, round(seconds, 2))
    tell.ends(p.stage, stats, seconds)
    return seconds


def _seed_libraries(seed: int, threads: int | None) -> None:
    """Seed what libraries draw from globally, so that a resumed run equals an undisturbed one."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)


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


# --- looking at a run -----------------------------------------------------------------------


def open_run(run: Path) -> Recipe:
    """The recipe of a run.

    Raises:
        StoreError: the folder is no run.
    """
    path = run / RECIPE_FILE
    if not path.exists():
        raise StoreError(f"{run} is no run of selfcal: it has no {RECIPE_FILE}")
    found = read_json(path)
    try:
        values = found["recipe"]
        if isinstance(own := values.get("evaluate"), dict):
            own.setdefault("followed", 0)  # nothing was, in runs from before it
        return Recipe.model_validate(values)
    except ValidationError as error:
        why = first_fault(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path}: is no record of a run; run the recipe again") from error
    raise StoreError(f"{path}: {why}; {_other_version(found.get('format'))}")


def _other_version(written: Any) -> str:
    """Who may have written a recipe that cannot be read, and the way out."""
    what = "it was changed by hand, or another version of selfcal wrote it"
    if written != FORMAT:
        what = f"another version of selfcal wrote it (format {written!r}; this one's is {FORMAT})"
    return f"{what}: look at the run with that one, or run its recipe again in another folder"


def results(run: Path) -> list[Result]:
    """All results of a run so far, in the order of its checkpoints."""
    recipe = open_run(run)
    return [
        r
        for p in locate(recipe, run)
        if p.stage.name.startswith("eval/") and p.folder.done
        for r in p.folder.read("results", Result)
    ]
