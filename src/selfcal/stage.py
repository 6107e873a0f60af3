"""What a stage is, and what it may touch.

A method is a list of `Stage`s. A stage names the stages it reads, the settings its outcome depends
on, and a function that does the work through a `Work`: the only door to files that it has. Records
are read and written by name and kind; long stages go through `map` or `stream`, which write one
shard after the other, so that a killed run loses at most the shards in work.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from selfcal.errors import SelfcalError
from selfcal.store import JSON, StageDir
from selfcal.types import Drop, GradedResponse, LabelledPair, RankedResponses, Sample

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
Item = TypeVar("Item")
Labelled = TypeVar("Labelled", LabelledPair, GradedResponse, RankedResponses)
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

    def records(self, stage: str, name: str, kind: type[T]) -> Iterator[T]:
        """Records of an input stage, one shard in memory at a time."""
        return self.inputs[stage].records(name, kind)

    def samples(self, stage: str, name: str) -> list[Sample]:
        """Samples of an input stage, their image paths resolved against the run."""
        return [
            replace(
                s,
                image=str(self.run / s.image),
                more_images=tuple(str(self.run / i) for i in s.more_images),
            )
            for s in self.read(stage, name, Sample)
        ]

    def shown(self, labelled: Iterable[Labelled]) -> list[Labelled]:
        """Labelled responses as they were read, their image paths resolved against the run."""
        return [replace(p, images=tuple(str(self.run / i) for i in p.images)) for p in labelled]

    def stored(self, labelled: Iterable[Labelled]) -> list[Labelled]:
        """Labelled responses as they are written, so that the run can be moved."""
        return [replace(p, images=tuple(map(self._inside, p.images))) for p in labelled]

    def _inside(self, image: str) -> str:
        path = Path(image)
        return path.relative_to(self.run).as_posix() if path.is_relative_to(self.run) else image

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
        for i, at in enumerate(range(0, max(1, len(items)), size)):
            if not self._mark(i).exists():
                self._write(i, work(items[at : at + size]))
            self.progress(min(at + size, len(items)), len(items))

    def stream(
        self,
        items: Sequence[Item],
        size: int,
        kinds: Mapping[str, type[Any]],
        work: Callable[[Iterator[Item]], Iterator[Mapping[str, Sequence[Any]]]],
    ) -> None:
        """As `map`, for work that takes items as it needs them, without a pause between shards.

        `work` gets the items of all shards that are not there yet and gives the records of one item
        after the other, by name; `kinds` has all names.
        """
        starts = range(0, max(1, len(items)), size)
        left = [i for i in range(len(starts)) if not self._mark(i).exists()]
        for i, name in product(left, kinds):  # what a kill left of a shard must not be read
            self.folder.shard(name, i).unlink(missing_ok=True)
        sizes = {i: len(items[starts[i] : starts[i] + size]) for i in left}
        done = len(items) - sum(sizes.values())
        self.progress(done, len(items))
        made = work(item for i in left for item in items[starts[i] : starts[i] + size])
        for i in left:
            rows: dict[str, list[Any]] = {name: [] for name in kinds}
            for _ in range(sizes[i]):
                given = next(made, None)
                if given is None:
                    raise SelfcalError(
                        f"stage {self.stage.name}: there is no result for item {done + 1} of "
                        f"{len(items)}; this is a fault of the stage's code"
                    )
                for name, records in given.items():
                    rows[name] += records
                done += 1
                self.progress(done, len(items))
            self._write(i, {name: (kinds[name], own) for name, own in rows.items()})

    def _mark(self, i: int) -> Path:
        return self.out / "shards" / f"{i:05d}"

    def _write(self, i: int, shards: Shards) -> None:
        for name, (kind, records) in shards.items():
            self.folder.write_shard(name, i, records, kind)
        # written last: its existence means that all records of the shard are there
        self._mark(i).parent.mkdir(exist_ok=True)
        self._mark(i).touch()


def count_drops(drops: Iterable[Drop]) -> dict[str, JSON]:
    """Drops by reason, for a manifest."""
    return dict(sorted(Counter(d.reason for d in drops).items()))
