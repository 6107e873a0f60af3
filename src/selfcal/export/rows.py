"""The examples of a run: preference pairs that its policy was tuned on, or the teacher's RAPs.

Pairs come from every stage `iter-N/.../pairs`, which is what the iteration's DPO reads: those of
curation, and those that the teacher or a wider search won from samples without one. Only finished
iterations count, so that what is exported is what was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfcal.errors import SelfcalError
from selfcal.pipeline import Planned, locate, open_run
from selfcal.recipe import Recipe
from selfcal.stage import Work
from selfcal.types import PreferencePair, Sample, WrittenRap

Split = Literal["pairs", "sft"]
"""Preference pairs, or the teacher's rationale-answer pairs (for fine-tuning)."""

PAIRING = (
    "answer_only", "csr", "ha_dpo", "independent", "povid", "self_consistency", "src", "stic",
)  # fmt: skip
"""Methods that make preference pairs, for the message to who has a run of another one."""
_PAIRS = re.compile(r"iter-(\d+)/(?:.+/)?pairs")
_TEACHER = "teacher"


class ExportError(SelfcalError):
    """There is nothing to export, or it cannot go where it should."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example of a run, its image paths such that they can be opened."""

    sample: Sample
    iteration: int
    """Counted from 1; 0 for what the teacher wrote before the first."""
    chosen: str
    """The response to learn."""
    rejected: str | None = None
    """None: an example for fine-tuning."""
    rejected_image: str = ""
    """In the place of the sample's first image, with the rejected response (POVID)."""


@dataclass(frozen=True)
class Source:
    """Where the examples of a run are."""

    run: Path
    recipe: Recipe
    split: Split
    iterations: tuple[int, ...]
    """Those that are exported; empty for the teacher's RAPs."""
    unfinished: tuple[int, ...]
    """Those that are left out, as they have no pairs yet."""

    def rows(self) -> Iterator[Row]:
        """The examples, in order.

        Raises:
            StoreError: records are missing or damaged.
            ExportError: there is an example of a sample that the run does not have.
        """
        planned = {p.stage.name: p for p in locate(self.recipe, self.run)}
        name = "calibration" if self.split == "pairs" else "rft"
        samples = {s.id: s for s in _samples(self.run, self.recipe.seed, planned["data"], name)}
        if self.split == "sft":
            for rap in planned[_TEACHER].folder.records("raps", WrittenRap):
                yield Row(_own(samples, rap.sample_id, _TEACHER), 0, rap.text)
            return
        for t, stages in _pair_stages(list(planned.values())).items():
            for stage in stages if t in self.iterations else []:
                for pair in stage.folder.records("pairs", PreferencePair):
                    sample = _own(samples, pair.sample_id, stage.stage.name)
                    image = str(self.run / pair.rejected_image) if pair.rejected_image else ""
                    yield Row(sample, t, pair.chosen, pair.rejected, image)


def find_rows(run: Path, split: Split = "pairs", iteration: int | None = None) -> Source:
    """Where the examples of a run are.

    Args:
        run: the run's folder.
        split: what to export.
        iteration: whose pairs, counted from 1; None: those of all finished iterations.

    Raises:
        StoreError: the folder is no run.
        ExportError: the run has no such examples, or not yet.
    """
    recipe = open_run(run)
    planned = locate(recipe, run)
    if split == "sft":
        if iteration is not None:
            raise ExportError("--iteration is for pairs: the teacher writes before the first one")
        _check_taught(run, recipe, planned)
        return Source(run, recipe, split, (), ())
    stages = _pair_stages(planned)
    if not stages:
        raise ExportError(
            f"{run}: method {recipe.method!r} makes no preference pairs (these do: "
            f"{', '.join(PAIRING)}){_instead(planned)}"
        )
    if iteration is not None and iteration not in stages:
        raise ExportError(
            f"{run} has the iterations {', '.join(map(str, stages))}, not {iteration}"
        )
    done = [t for t, own in stages.items() if all(p.folder.done for p in own)]
    wanted = [t for t in done if iteration in (None, t)]
    if not wanted:
        which = "no iteration has" if iteration is None else f"iteration {iteration} has not"
        raise ExportError(
            f"{run}: {which} got all its pairs yet; go on with `selfcal run --out {run}`"
        )
    open_ = () if iteration else tuple(t for t in stages if t not in done)
    return Source(run, recipe, split, tuple(wanted), open_)


def _check_taught(run: Path, recipe: Recipe, planned: Sequence[Planned]) -> None:
    teacher = next((p for p in planned if p.stage.name == _TEACHER), None)
    if teacher is None:
        raise ExportError(
            f"{run}: no teacher wrote rationale-answer pairs (method {recipe.method!r}"
            f"{'' if recipe.rft else ', `rft` is null'}); leave out `--split sft`"
        )
    if not teacher.folder.done:
        raise ExportError(f"{run}: the teacher is not done; go on with `selfcal run --out {run}`")


def _instead(planned: Sequence[Planned]) -> str:
    taught = any(p.stage.name == _TEACHER for p in planned)
    return "; `--split sft` exports what the teacher wrote" if taught else ""


def _pair_stages(planned: Sequence[Planned]) -> dict[int, list[Planned]]:
    """The stages that have pairs, by iteration."""
    found: dict[int, list[Planned]] = {}
    for p in planned:
        if match := _PAIRS.fullmatch(p.stage.name):
            found.setdefault(int(match[1]), []).append(p)
    return found


def _samples(run: Path, seed: int, data: Planned, name: str) -> list[Sample]:
    """Samples of a split, as a stage would read them."""
    folder = data.folder
    return Work(run, data.stage, folder, {"data": folder}, seed).samples("data", name)


def _own(samples: dict[str, Sample], sample_id: str, stage: str) -> Sample:
    if sample_id not in samples:
        raise ExportError(f"{stage} has a record of sample {sample_id!r}, which the run has not")
    return samples[sample_id]
