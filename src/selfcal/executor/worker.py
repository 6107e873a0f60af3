"""Some shards of a stage, done in a process of their own: what a worker of a cluster runs.

A worker opens the run, finds the stage and runs its very function, in a thread. Where that would
part its work into shards, the thread waits for numbers and does one shard after the other, so that
models are loaded once and inputs read once. Every shard is made alone: its records do not hang on
what else the worker did. When nothing more is wanted the function is left; its figures are made by
whoever started the workers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Thread

from selfcal.accounts import said
from selfcal.errors import SelfcalError, StoreError
from selfcal.executor.base import bring_inputs, perform, work_of
from selfcal.planning import RECIPE_FILE, open_run
from selfcal.recipe import Recipe
from selfcal.remote import open_run_place
from selfcal.stage import Todo, Work
from selfcal.store import MARKER


@dataclass(frozen=True, slots=True)
class Share:
    """The stage that workers share."""

    run: str
    """Where the run lies: an address, or a folder that all machines see by this path."""
    directory: str
    """That the run was started in."""
    stage: str
    fingerprint: str
    sizes: tuple[int, ...]
    """Items of each shard."""
    threads: int
    """Of torch."""
    token: str = ""
    """The driver's, for the store (`Place.token`); empty where the run lies in a folder."""


class ShardWorker:
    """Does shards of one stage; not for several threads."""

    def __init__(self, share: Share, opens: Callable[[Share], tuple[Recipe, Work]]) -> None:
        """Nothing is opened yet; `opens` finds recipe and stage, such as `take_up`."""
        self._share, self._opens = share, opens
        self._wanted: SimpleQueue[int | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._failed: BaseException | None = None

    def do(self, i: int) -> int:
        """Make shard `i` and seal it, unless it is whole already; gives its number of items.

        Raises:
            SelfcalError: the stage failed in a foreseen way; it does no more shards.
        """
        if self._failed is None:
            self._wanted.put(i)
            if self._thread is None:
                self._thread = Thread(target=self._run, name="stage", daemon=True)
                self._thread.start()
            self._failed = self._done.get()
        if self._failed is not None:
            raise self._failed
        return self._share.sizes[i]

    def close(self) -> None:
        """Leave the stage, and what it had opened."""
        if self._thread is not None:
            self._wanted.put(None)
            self._thread.join()

    def _run(self) -> None:
        """The stage's function, up to its shards and no further."""
        try:
            recipe, work = self._opens(self._share)
            own = recipe.model_copy(update={"threads": self._share.threads})
            perform(own, replace(work, shards=self._serve))
            raise SelfcalError(f"stage {self._share.stage} has no shards that workers could do")
        except _Left:
            pass
        except BaseException as error:  # whoever waits for a shard is told
            self._done.put(error)

    def _serve(self, work: Work, todo: Todo) -> None:
        """Do the shards that are wanted."""
        if tuple(todo.sizes) != self._share.sizes:
            raise StoreError(
                f"{work.run}: stage {work.stage.name} has shards of other sizes here: every "
                "machine needs the same selfcal"
            )
        while (i := self._wanted.get()) is not None:
            # one that is whole is of a worker that died before it could say so
            if not work.folder.sealed(i):
                with closing(todo.make([i], lambda more: None)) as made:  # type: ignore[type-var]
                    shards = next(made)
                    _insist_on_own(work)
                    work.seal(i, shards)
            self._done.put(None)
        raise _Left


def _insist_on_own(work: Work) -> None:
    """See that the folder is still this work's: a driver that was thought dead may have gone on."""
    found = said(work.folder.path / MARKER).get("fingerprint", work.folder.fingerprint)
    if found != work.folder.fingerprint:
        raise StoreError(
            f"{work.out}: another process has begun this stage with other settings "
            f"({found}, not {work.folder.fingerprint}); let one of the two runs end, then run the "
            "same command again"
        )


class _Left(BaseException):
    """The shards are done, and the rest of the stage is not this worker's: nothing may catch it."""


def take_up(share: Share) -> tuple[Recipe, Work]:
    """Find the run and the stage, and bring what it reads if the run lies on a remote store.

    Raises:
        StoreError: they are not there, or not the same here.
    """
    place = open_run_place(share.run, share.token)
    if not (place.run / RECIPE_FILE).is_file():
        raise StoreError(
            f"{share.run} cannot be seen from every machine of the cluster: put the run on storage "
            "that all of them see by the same path, or on a remote store"
        )
    recipe = open_run(place.run)
    work = work_of(recipe, place.run, share.stage, share.fingerprint)
    bring_inputs(recipe, work)
    return recipe, work
