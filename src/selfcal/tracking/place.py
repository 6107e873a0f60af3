"""The lines of one run: which there are, what they are called, and whether the tracker works."""

from __future__ import annotations

import os
import random
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from selfcal.errors import SelfcalError
from selfcal.recipe import Recipe
from selfcal.store import read_json, write_json
from selfcal.tracking.lines import Line, Title, open_line

T = TypeVar("T")
PACKAGES = ("tensorboard", "wandb", "trackio")
"""A kind of tracking is called like its package."""
FOLDER = "tracking"
"""In the run: ids of its lines, TensorBoard's files, and what wandb has yet to send."""
_ELSEWHERE = {"base_url", "api_key_env"}
"""Keys of a recipe that are nobody else's business: a server's address may hold a password."""
_FAILED: set[Path] = set()
"""Runs of this process whose tracker has failed, which was told."""


class TrackingError(SelfcalError):
    """Figures cannot be tracked as the recipe wants: the text names the way out."""


def check(recipe: Recipe) -> None:
    """See that a recipe's tracker is there, before anything is run.

    Raises:
        TrackingError: its package is missing, or it would ask for a key.
    """
    kind = recipe.tracking
    if kind == "none":
        return
    if find_spec(kind) is None:
        raise TrackingError(
            f"tracking: the package {kind} is missing; pip install {kind} (or selfcal[tracking]), "
            "or set tracking to none"
        )
    if kind == "wandb" and _sends() and not _knows_a_key():
        raise TrackingError(
            "tracking: wandb has no API key; run `wandb login`, set WANDB_MODE=offline, or set "
            "tracking to none"
        )


def _sends() -> bool:
    """Whether wandb would send what it gets, by its own reading of environment and settings file.

    Raises:
        TrackingError: it cannot make sense of them.
    """
    try:
        mode: str = import_module("wandb").setup().settings.mode
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise TrackingError(
            f"tracking: wandb cannot be set up ({why}); correct its settings (such as WANDB_MODE), "
            "or set tracking to none"
        ) from error
    return mode not in ("offline", "dryrun", "disabled")


def _knows_a_key() -> bool:
    """Whether wandb would not stop to ask for one, in the middle of the progress."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(import_module("wandb").login(prompt=False))
    except Exception:  # it has one, and cannot reach its server to try it
        return True


@dataclass(frozen=True, slots=True)
class Tracked:
    """The place of a run's figures."""

    kind: str
    run: Path
    recipe: Recipe

    @property
    def works(self) -> bool:
        """Whether the tracker has not failed yet."""
        return self.run not in _FAILED

    def retry(self) -> None:
        """Give the tracker another chance, in another go at the run."""
        _FAILED.discard(self.run)

    def attempt(self, do: Callable[[], T]) -> T | None:
        """What a tracker does; None where it has failed. Its first failure is told, and its last.

        The run's random numbers stay where they are.
        """
        if not self.works:
            return None
        try:
            with _apart():
                return do()
        except Exception as error:  # whatever a tracker does, it must not end a run
            _FAILED.add(self.run)
            why = ascii(" ".join(f"{type(error).__name__}: {error}".split())[:300])[1:-1]
            said = f"tracking: {self.kind} has failed, and the run goes on without it ({why})"
            print(said, file=sys.stderr)
            return None

    def line(self, name: str, begun_at: int = 0, anew: bool = False) -> Line:
        """The line of this name.

        Args:
            name: the stage's that trains, or another one of the run.
            begun_at: the step that comes next.
            anew: whether to begin another one than there was.
        """
        known = self.known()
        attempts = known["attempts"]
        attempts[name] = max(1, attempts.get(name, 0) + anew)
        self.keep(known)
        again = f"-{attempts[name]}" if attempts[name] > 1 else ""
        folder = self._room / _plain(self.recipe.name) / name
        if anew:
            shutil.rmtree(folder, ignore_errors=True)
        return open_line(
            self.kind,
            Title(
                name=f"{self.recipe.name}/{name}",
                id=f"{known['id']}-{_plain(name)}{again}",
                group=f"{_plain(self.recipe.name)}-{known['id']}",
                config={"recipe": handed_over(self.recipe), "line": name},
                folder=folder,
                room=self._room,
                begun_at=begun_at,
            ),
        )

    def known(self) -> dict[str, Any]:
        """The run's id, how often each line was begun, and the stages whose figures were sent."""
        if self._file.exists():
            found: dict[str, Any] = read_json(self._file)
            return found
        return {"id": secrets.token_hex(4), "attempts": {}, "sent": {}}

    def keep(self, known: Mapping[str, Any]) -> None:
        """Write down what is known."""
        write_json(self._file, dict(known))

    @property
    def _room(self) -> Path:
        return self.run / FOLDER

    @property
    def _file(self) -> Path:
        return self._room / f"{self.kind}.json"


def handed_over(recipe: Recipe) -> dict[str, Any]:
    """A recipe as a tracker gets it: without addresses of servers. Keys never stand in one."""

    def cleared(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: cleared(v) for k, v in value.items() if k not in _ELSEWHERE}
        return [cleared(v) for v in value] if isinstance(value, list) else value

    found: dict[str, Any] = cleared(recipe.model_dump(mode="json"))
    return found


def _plain(name: str) -> str:
    """A name that can stand in a path or an id."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "x"


@contextmanager
def _apart() -> Iterator[None]:
    """Leave random numbers as they were: those of a training must not hang on who looks on."""
    import numpy as np

    own, numpys = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)
