"""Who is told how a run goes: the progress on the screen, a tracker, or nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from selfcal.stage import Stage
from selfcal.store import JSON


class Reporter(Protocol):
    """Who is told how a run goes."""

    def begins(self, stage: Stage, number: int, of: int) -> None:
        """A stage starts."""

    def moves(self, done: int, total: int) -> None:
        """A stage got on."""

    def ends(self, stage: Stage, stats: Mapping[str, JSON], seconds: float) -> None:
        """A stage is done."""

    def skips(self, stage: Stage, reused: bool) -> None:
        """A stage was done before, here or in a run that is reused."""

    def mends(self, stage: Stage, names: Sequence[str]) -> None:
        """A finished stage is not what it was: files of it, or stages it has read, by name."""

    def notes(self, line: str) -> None:
        """Something happened that people should know of; said once."""


class Silent:
    """A reporter that says nothing."""

    def begins(self, stage: Stage, number: int, of: int) -> None:
        """Nothing."""

    def moves(self, done: int, total: int) -> None:
        """Nothing."""

    def ends(self, stage: Stage, stats: Mapping[str, JSON], seconds: float) -> None:
        """Nothing."""

    def skips(self, stage: Stage, reused: bool) -> None:
        """Nothing."""

    def mends(self, stage: Stage, names: Sequence[str]) -> None:
        """Nothing."""

    def notes(self, line: str) -> None:
        """Nothing."""


class Both:
    """Two reporters that are told the same, one after the other."""

    def __init__(self, one: Reporter, other: Reporter) -> None:
        """Take them in the order in which they are told."""
        self._every = (one, other)

    def begins(self, stage: Stage, number: int, of: int) -> None:
        """A stage starts."""
        for tell in self._every:
            tell.begins(stage, number, of)

    def moves(self, done: int, total: int) -> None:
        """A stage got on."""
        for tell in self._every:
            tell.moves(done, total)

    def ends(self, stage: Stage, stats: Mapping[str, JSON], seconds: float) -> None:
        """A stage is done."""
        for tell in self._every:
            tell.ends(stage, stats, seconds)

    def skips(self, stage: Stage, reused: bool) -> None:
        """A stage was done before, here or in a run that is reused."""
        for tell in self._every:
            tell.skips(stage, reused)

    def mends(self, stage: Stage, names: Sequence[str]) -> None:
        """A finished stage is not what it was."""
        for tell in self._every:
            tell.mends(stage, names)

    def notes(self, line: str) -> None:
        """Something happened that people should know of."""
        for tell in self._every:
            tell.notes(line)
