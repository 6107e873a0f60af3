"""What a stage is, and what it may touch.

A method is a list of `Stage`s. A stage names the stages it reads, the settings its outcome depends
on, and a function that does the work through a `Work`: the only door to files that it has. Records
are read and written by name and kind; long stages go through `map` or `stream`, which part their
items into shards. Who does those is not the stage's business: this process, one after the other,
or workers elsewhere (see `executor`). A killed run loses at most the shards in work.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from selfcal.errors import SelfcalError
from selfcal.stopping import heed
from selfcal.store import JSON, StageDir
from selfcal.types import Drop, GradedResponse, LabelledPair, RankedResponses, Sample

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
Item = TypeVar("Item")
Labelled = TypeVar("Labelled", LabelledPair, GradedResponse, RankedResponses)
_WRITTEN = 10_000
"""Records of a `Writer` in memory, at most."""
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
    spread: Literal["here", "workers", "ranks"] = "here"
    """Who may do it: this process alone; workers elsewhere, each some of its shards; or several
    processes that train together."""


Moved = Callable[[int], None]
"""Told of so many more items done."""


@dataclass(frozen=True)
class Todo:
    """The shards of a stage."""

    sizes: Sequence[int]
    """Items of each."""
    make: Callable[[Sequence[int], Moved], Iterator[Shards]]
    """The records of the shards of these numbers, one after the other. May begin with the next
    before the last is taken, which saves time, and leaves the rounding of sums to what else is in
    work."""


def in_turn(work: Work, todo: Todo) -> None:
    """Do all shards in this process, one after the other.

    Raises:
        Stopped: that was asked for; all finished shards are kept.
    """
    left = work.left(todo)
    moved = work.counting(todo, left)
    made = todo.make(left, moved)
    for i in left:
        work.seal(i, next(made))
        heed()


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
    saved: Callable[[Sequence[Path]], None] = field(default=lambda files: None)
    """Told of files of the stage that are finished, in the order in which they must last."""
    shards: Callable[[Work, Todo], None] = field(default=in_turn)
    """Who does the shards of the stage."""

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

    def column(self, stage: str, name: str, kind: type[T], field: str) -> Iterator[Any]:
        """One field alone of an input stage's records, one shard in memory at a time."""
        return self.inputs[stage].column(name, kind, field)

    def samples(self, stage: str, name: str, most: int | None = None) -> list[Sample]:
        """Samples of an input stage, their image paths resolved against the run; the first ones."""
        at = str(self.run)
        return [
            replace(
                s,
                image=os.path.join(at, s.image),
                more_images=tuple(os.path.join(at, i) for i in s.more_images),
            )
            for s in islice(self.records(stage, name, Sample), most)
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
        self.saved([self.folder.shard(name, 0)])

    def written(self, name: str, kind: type[T]) -> int:
        """How many records of that name the stage has written by now."""
        first = fields(kind)[0].name
        return sum(1 for _ in self.folder.column(name, kind, first))

    def drop_counts(self) -> dict[str, JSON]:
        """The drops that the stage has written by now, by reason."""
        return dict(sorted(Counter(self.folder.column("drops", Drop, "reason")).items()))

    def writer(self, name: str, kind: type[T]) -> Writer[T]:
        """Write records one by one; see `Writer`."""
        return Writer(self, name, kind)

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
        """Do the work shard by shard, leaving out shards that are already there.

        Raises:
            Stopped: that was asked for; all finished shards are kept.
        """
        part = _parts(items, size)

        def make(numbers: Sequence[int], moved: Moved) -> Iterator[Shards]:
            for i in numbers:
                own = part(i)
                yield work(own)
                moved(len(own))

        self._do(items, size, make)

    def stream(
        self,
        items: Sequence[Item],
        size: int,
        kinds: Mapping[str, type[Any]],
        work: Callable[[Iterator[Item]], Iterator[Mapping[str, Sequence[Any]]]],
    ) -> None:
        """As `map`, for work that takes items as it needs them, without a pause between shards.

        `work` gets items of shards that are not there yet and gives the records of one item after
        the other, by name; `kinds` has all names. A worker calls it once for each shard.

        Raises:
            Stopped: that was asked for; all finished shards are kept.
        """
        part = _parts(items, size)

        def make(numbers: Sequence[int], moved: Moved) -> Iterator[Shards]:
            made = work(item for i in numbers for item in part(i))
            for i in numbers:
                rows: dict[str, list[Any]] = {name: [] for name in kinds}
                for n in range(len(part(i))):
                    given = next(made, None)
                    if given is None:
                        raise SelfcalError(
                            f"stage {self.stage.name}: there is no result for item {n + 1} of "
                            f"shard {i}; this is a fault of the stage's code"
                        )
                    for name, records in given.items():
                        rows[name] += records
                    moved(1)
                yield {name: (kinds[name], own) for name, own in rows.items()}

        self._do(items, size, make)

    def _do(
        self,
        items: Sequence[Any],
        size: int,
        make: Callable[[Sequence[int], Moved], Iterator[Shards]],
    ) -> None:
        starts = range(0, max(1, len(items)), size)
        sized = replace(self, folder=replace(self.folder, size=size))
        self.shards(sized, Todo([min(size, len(items) - at) for at in starts], make))

    def left(self, todo: Todo) -> list[int]:
        """The shards that are not there yet, or no longer what they were; nothing is left of these.

        What a kill left of a shard, or a disk made of it, must not be read; nor what another
        selfcal has left, whose shards were of another size.
        """
        left = [i for i in range(len(todo.sizes)) if not self.folder.sealed(i)]
        self.folder.clear(left)
        self.folder.keep_first(len(todo.sizes))
        return left

    def counting(self, todo: Todo, left: Sequence[int]) -> Moved:
        """Tells the stage's progress, as the items of the shards that are left get done."""
        total = sum(todo.sizes)
        done = total - sum(todo.sizes[i] for i in left)

        def moved(more: int) -> None:
            nonlocal done
            done += more
            self.progress(done, total)

        moved(0)
        return moved

    def seal(self, i: int, shards: Shards) -> None:
        """Write the records of shard `i`, and say that they and its images are whole.

        A stage that writes images item by item puts them into `folder.images(i)` before.
        """
        for name, (kind, records) in shards.items():
            self.folder.write_shard(name, i, records, kind)
        names = list(shards)
        self.folder.seal(i, names)
        self.saved([*self.folder.files_of(i, names), self.folder.mark(i)])


class Writer(Generic[T]):
    """Writes records one by one, so that they never fill the memory; `end` writes the last ones."""

    def __init__(self, work: Work, name: str, kind: type[T]) -> None:
        """What a killed run has left by that name is deleted."""
        self._work, self._name, self._kind = work, name, kind
        self._rows, self._shard = list[T](), 0
        for left in work.out.glob(f"{name}-[0-9]*.parquet"):
            left.unlink()

    def add(self, record: T) -> None:
        """Write a record, at the latest in `end`."""
        self._rows.append(record)
        if len(self._rows) == _WRITTEN:
            self._write()

    def end(self) -> None:
        """Write what is left; one empty shard if there was no record."""
        if self._rows or not self._shard:
            self._write()

    def _write(self) -> None:
        self._work.folder.write_shard(self._name, self._shard, self._rows, self._kind)
        self._work.saved([self._work.folder.shard(self._name, self._shard)])
        self._rows, self._shard = [], self._shard + 1


def _parts(items: Sequence[Item], size: int) -> Callable[[int], Sequence[Item]]:
    return lambda i: items[i * size : (i + 1) * size]


def count_drops(drops: Iterable[Drop]) -> dict[str, JSON]:
    """Drops by reason, for a manifest."""
    return dict(sorted(Counter(d.reason for d in drops).items()))
