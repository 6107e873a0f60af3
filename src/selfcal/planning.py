"""Which stages a recipe has, where they lie in a run, and what their content follows from.

A stage's fingerprint covers its name, its settings, the seed and the fingerprints of all it reads:
a changed setting changes just the fingerprints of what depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from selfcal.errors import SelfcalError, StoreError, first_fault
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
from selfcal.stage import Stage
from selfcal.store import StageDir, file_digest, fingerprint, read_signed

S = TypeVar("S", bound=Settings)
RECIPE_FILE = "recipe.json"
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


def needed(stage: Stage, planned: Sequence[Planned]) -> dict[str, StageDir]:
    """The folders from which a stage reads: its inputs, and where the images of its samples are.

    Samples, and what is written of them, name images in the first stages behind them.
    """
    known = {p.stage.name: p for p in planned}
    found, left = dict.fromkeys(stage.inputs), list(stage.inputs)
    while left:
        behind = known[left.pop()].stage.inputs
        left += [name for name in behind if name not in found]
        found |= dict.fromkeys(behind)
    return {
        name: p.folder
        for name, p in known.items()
        if name in stage.inputs or (name in found and not p.stage.inputs and _has_images(p.folder))
    }


def _has_images(folder: StageDir) -> bool:
    return folder.done and any(file.startswith("images/") for file in folder.manifest()["files"])


def open_run(run: Path) -> Recipe:
    """The recipe of a run.

    Raises:
        StoreError: the folder is no run.
    """
    path = run / RECIPE_FILE
    if not path.exists():
        raise StoreError(
            f"{run} is no run of selfcal: it has no {RECIPE_FILE}; if that was deleted, "
            f"`selfcal run RECIPE --out {run}`, with its own recipe and settings, writes it anew"
        )
    try:
        found = read_signed(path)
    except StoreError as error:
        raise StoreError(
            f"{path} was changed, is damaged, or cannot be read; nothing else is lost: `selfcal "
            f"run RECIPE --out {run}`, with the run's own recipe and settings, writes it anew"
        ) from error
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
