"""What a stage is, and what it may touch.

A method is a list of `Stage`s. A stage names the stages it reads, the settings its outcome depends
on, and a function that does the work through a `Work`: the only door to files that it has. Records
are read and written by name and kind; long stages go through `map`, which writes one shard after
the other, so that a killed run loses at most the shard in work.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from selfcal.store import JSON, StageDir
from selfcal.types import Drop, Sample

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
Item = TypeVar("Item")
Shards = Mapping[str, tuple[type[Any], Sequence[Any]]]
"""Name of the records -> (their kind, the records)."""


@dataclass(frozen=True)
class Stage:
    """One step of a method."""

    name: str
    """Also its folder in the run: `rft`, `iter-1/candidates`, `eval/iter-1`."""
    inputs: tuple[str, ...]
    """Names of the stages it reads."""
    settings: object
    """All its outcome depends on beside the inputs and the seed: a change redoes the stage."""
    run: Callable[[Work], Mapping[str, JSON]]
    """Does the work; returns figures for the manifest."""
    size: int
    """Items of work, for the plan and the time left."""
    unit: str
    """What these items are, such as `samples`."""
    about: str
    """One line for people."""


@dataclass(frozen=True)
class Work:
    """A stage's door to its run."""

    run: Path
    stage: Stage
    folder: StageDir
    inputs: Mapping[str, StageDir]
    seed: int
    """The run's seed."""
    progress: Callable[[int, int], None] = field(default=lambda done, total: None)

    def rng_key(self) -> str:
        """What every random number of this stage is derived from, with the sample's id."""
        return f"{self.seed}|{self.stage.name}"

    def integer_seed(self) -> int:
        """A seed for libraries that want a small integer."""
        return int.from_bytes(hashlib.sha256(self.rng_key().encode()).digest()[:4], "big")

    def read(self, stage: str, name: str, kind: type[T]) -> list[T]:
        """Records of an input stage."""
        return self.inputs[stage].read(name, kind)

    def samples(self, stage: str, name: str) -> list[Sample]:
        """Samples of an input stage, their image paths resolved against the run."""
        return [replace(s, image=str(self.run / s.image)) for s in self.read(stage, name, Sample)]

    def write(self, name: str, records: Sequence[T], kind: type[T]) -> None:
        """Write records as one shard."""
        self.folder.write_shard(name, 0, records, kind)

    def checkpoint(self, stage: str) -> str:
        """Path of the merged checkpoint that an input stage trained."""
        return str(self.inputs[stage].path / "checkpoint")

    @property
    def out(self) -> Path:
        """The stage's own folder, for trainings."""
        return self.folder.path

    def map(
        self, items: Sequence[Item], size: int, work: Callable[[Sequence[Item]], Shards]
    ) -> None:
        """Do the work shard by shard, leaving out shards that are already there."""
        names = self.out / "shards"
        for i, at in enumerate(range(0, max(1, len(items)), size)):
            mark = names / f"{i:05d}"
            if not mark.exists():
                for name, (kind, records) in work(items[at : at + size]).items():
                    self.folder.write_shard(name, i, records, kind)
                # written last: its existence means that all records of the shard are there
                names.mkdir(exist_ok=True)
                mark.touch()
            self.progress(min(at + size, len(items)), len(items))


def count_drops(drops: Iterable[Drop]) -> dict[str, JSON]:
    """Drops by reason, for a manifest."""
    return dict(sorted(Counter(d.reason for d in drops).items()))
