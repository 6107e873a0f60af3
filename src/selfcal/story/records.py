"""The records of some samples, out of a whole run: each file is read once, and only theirs is kept.

A run has tens of thousands of records, a page shows a thousand samples: so files are streamed shard
by shard, what names a wanted sample is kept by its id, and nothing is read that nobody asks for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from selfcal.methods.parts.correcting import Correct, correction
from selfcal.miniworld.verifier import Verification, verify
from selfcal.pipeline import Planned, locate, open_run
from selfcal.rationale import FORMATS
from selfcal.types import Sample

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


class Records:
    """What a run's finished stages have of the wanted samples.

    What was read is kept, and so is which stages were finished when they were first asked for: it
    is a picture of the run at one time. Make a new one to see what has come since.
    """

    def __init__(self, run: Path, wanted: Collection[str]) -> None:
        """Open a run; `wanted`: the ids of the samples whose records are kept.

        Raises:
            StoreError: the folder is no run.
        """
        self.run = run
        self.recipe = open_run(run)
        self.planned: Mapping[str, Planned] = {p.stage.name: p for p in locate(self.recipe, run)}
        self.wanted = frozenset(wanted)
        self._read: dict[tuple[str, str], Mapping[str, list[Any]]] = {}
        self._done: dict[str, bool] = {}
        self._corrections: dict[str, Correct] = {}

    def own(self, stage: str, name: str, kind: type[T], sample_id: str) -> list[T]:
        """A sample's records of a finished stage; none if it is not planned or not finished.

        Raises:
            StoreError: a file is damaged.
            ValueError: the sample is none of the wanted ones.
        """
        if sample_id not in self.wanted:
            raise ValueError(f"records of {sample_id!r} are not kept: name it in `wanted`")
        if (stage, name) not in self._read:
            self._read[stage, name] = self._grouped(stage, name, kind)
        return list(self._read[stage, name].get(sample_id, ()))

    def _grouped(self, stage: str, name: str, kind: type[T]) -> Mapping[str, list[T]]:
        """The wanted samples' records by id."""
        if not self.done(stage) or not self.planned[stage].folder.has(name, 0):
            return {}
        own: dict[str, list[T]] = defaultdict(list)
        for row in self.planned[stage].folder.records(name, kind):
            if (sample_id := _named(row)) in self.wanted:
                own[sample_id].append(row)
        return dict(own)

    def done(self, stage: str) -> bool:
        """Whether a stage is planned and finished."""
        if stage not in self._done:  # each look reads a manifest, which may name thousands of files
            self._done[stage] = stage in self.planned and self.planned[stage].folder.done
        return self._done[stage]

    def correction(self, stage: str) -> Correct:
        """What a finished stage fitted to correct the judgments of a sample.

        Raises:
            StoreError: it has not kept what it fitted.
        """
        if stage not in self._corrections:
            folders = {name: p.folder for name, p in self.planned.items()}
            self._corrections[stage] = correction(folders, stage)
        return self._corrections[stage]

    def verified(self, sample: Sample, text: str) -> Verification | None:
        """What the verifier finds in a response; None where nobody can tell."""
        if not self.recipe.data.miniworld:
            return None
        try:
            return verify(sample, text, FORMATS[self.recipe.format])
        except ValueError:  # facts that leave the question open
            return None


def _named(row: object) -> str:
    """The id of the sample that a record names, or that it is."""
    return row.id if isinstance(row, Sample) else str(getattr(row, "sample_id", ""))
