"""Who is told how a run goes: the progress on the screen, a tracker, or nobody."""

from __future__ import annotations

from collections.abc import Mapping
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
