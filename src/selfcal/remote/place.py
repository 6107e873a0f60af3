"""Where a run lies: a folder of this machine, or a mirror of one on a store.

The pipeline tells a `Place` what it is about to read and what it has finished. For a folder that is
all; a mirror (see `mirror`) brings the one from its store, and takes the other there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from selfcal.store import JSON, StageDir


@dataclass(frozen=True)
class Read:
    """A stage, and the stages that it reads."""

    folder: StageDir
    inputs: Sequence[StageDir]


class Place(Protocol):
    """The folder of a run, and what stands behind it."""

    @property
    def run(self) -> Path:
        """The folder on this machine."""
        ...

    @property
    def where(self) -> str:
        """How another machine opens it with `open_run_place`: an address, or the folder."""
        ...

    @property
    def token(self) -> str:
        """What those who work for this process show there; empty where nothing is asked for."""
        ...

    def working(self, stages: Sequence[Read]) -> AbstractContextManager[None]:
        """For as long as a run is worked on, in its lock: a context manager.

        What unfinished stages read is there when it begins, as far as it is finished.

        Raises:
            StoreError: the store cannot be reached.
        """
        ...

    def fetch(self, folder: StageDir) -> None:
        """See to it that what is finished of a stage is in the folder, each file as it was written.

        A file that is damaged or missing on the store is missing here afterwards.

        Raises:
            StoreError: the store cannot be reached.
        """
        ...

    def needs(self, folder: StageDir) -> None:
        """As `fetch`, of a finished stage that is about to be read.

        Raises:
            StoreError: a file is damaged or missing; or as `fetch`.
        """
        ...

    def has(self, folder: StageDir) -> bool:
        """Whether a finished stage's files are meant to be in the folder."""
        ...

    def sets_aside(self, folder: StageDir) -> None:
        """Called before a finished stage is moved aside, because what it has read has changed."""
        ...

    def takes_up(self, folder: StageDir, inputs: Mapping[str, JSON] | None = None) -> None:
        """Called before a stage is opened for work; `inputs` as `StageDir.open` takes them."""
        ...

    def opened(self, folder: StageDir) -> None:
        """Called when a stage was opened for work."""
        ...

    def saved(self, files: Sequence[Path]) -> None:
        """Called with files that are finished, in the order in which they must last."""
        ...

    def finished(self, folder: StageDir) -> None:
        """Called when a stage is done."""
        ...

    def deletes(self, path: Path) -> None:
        """Called before a file or folder is deleted that nothing needs, and no manifest names."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder of this machine, or one that all machines see by its path."""

    run: Path

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.run.resolve())

    @property
    def token(self) -> str:
        """None is asked for."""
        return ""

    @contextmanager
    def working(self, stages: Sequence[Read]) -> Iterator[None]:
        """Nothing."""
        yield

    def fetch(self, folder: StageDir) -> None:
        """Nothing."""

    def needs(self, folder: StageDir) -> None:
        """Nothing."""

    def has(self, folder: StageDir) -> bool:
        """Yes."""
        return True

    def sets_aside(self, folder: StageDir) -> None:
        """Nothing."""

    def takes_up(self, folder: StageDir, inputs: Mapping[str, JSON] | None = None) -> None:
        """Nothing."""

    def opened(self, folder: StageDir) -> None:
        """Nothing."""

    def saved(self, files: Sequence[Path]) -> None:
        """Nothing."""

    def finished(self, folder: StageDir) -> None:
        """Nothing."""

    def deletes(self, path: Path) -> None:
        """Nothing."""
