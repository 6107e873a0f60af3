"""The line of the stages: what each of them found and how long it took, over their numbers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from math import isfinite

from selfcal.errors import StoreError
from selfcal.remote import place_of
from selfcal.stage import Stage
from selfcal.store import JSON, StageDir
from selfcal.tracking.lines import Line
from selfcal.tracking.place import Tracked
from selfcal.types import Result

NAME = "stages"


class Watch:
    """A reporter of the pipeline that hands figures to the run's tracker."""

    def __init__(self, tracked: Tracked, stages: Sequence[tuple[Stage, StageDir]]) -> None:
        """Take the run's tracker, and all its stages in their order. Nothing is opened yet."""
        self._tracked = tracked
        self._folders = {stage.name: folder for stage, folder in stages}
        self._numbers = {stage.name: i for i, (stage, _) in enumerate(stages, start=1)}
        self._line: Line | None = None
        self._first = self._last = (0.0, 0)
        tracked.retry()

    def begins(self, stage: Stage, number: int, of: int) -> None:
        """A stage starts."""
        self._first = self._last = (time.monotonic(), 0)

    def moves(self, done: int, total: int) -> None:
        """A stage got on."""
        now = (time.monotonic(), done)
        if self._first[1] == self._last[1] and now[0] - self._last[0] < _INSTANT:
            self._first = now  # found on disk: not this session's work
        self._last = now

    def ends(self, stage: Stage, stats: Mapping[str, JSON], seconds: float) -> None:
        """A stage is done: its figures, and how fast it was."""
        moved, took = self._last[1] - self._first[1], self._last[0] - self._first[0]
        rate = moved / took if moved > 0 and took > 0 else None
        self._send(stage, stats, seconds, rate)

    def skips(self, stage: Stage, reused: bool) -> None:
        """A stage was done before: its figures, if the tracker does not have them yet."""
        manifest = self._folders[stage.name].manifest()
        stats, seconds = manifest.get("stats"), manifest.get("seconds")
        if isinstance(stats, Mapping) and isinstance(seconds, int | float):
            self._send(stage, stats, float(seconds), None, once=True)

    def mends(self, stage: Stage, names: Sequence[str]) -> None:
        """No figure."""

    def notes(self, line: str) -> None:
        """No figure."""

    def close(self) -> None:
        """End the line; a resumed run goes on with it."""
        if self._line is not None:
            self._tracked.attempt(self._line.close)

    def _send(
        self,
        stage: Stage,
        stats: Mapping[str, JSON],
        seconds: float,
        rate: float | None,
        once: bool = False,
    ) -> None:
        folder, number = self._folders[stage.name], self._numbers[stage.name]

        def send() -> None:
            known = self._tracked.known()
            if once and known["sent"].get(stage.name) == folder.fingerprint:
                return
            if self._line is None:
                self._line = self._tracked.line(NAME, begun_at=number)
                if self._tracked.kind == "tensorboard":  # which leaves out what it had from here on
                    known = self._tracked.known()
                    before = {n: i for n, i in self._numbers.items() if i < number}
                    known["sent"] = {n: p for n, p in known["sent"].items() if n in before}
            if stage.name.startswith("eval/"):
                with suppress(StoreError):  # `selfcal status` says that a file is damaged
                    place_of(self._tracked.run).needs(folder)
            self._line.log(figures_of(stage, folder, stats, seconds, rate), number)
            known = self._tracked.known() | {"sent": known["sent"]}
            known["sent"][stage.name] = folder.fingerprint
            self._tracked.keep(known)

        self._tracked.attempt(send)


_INSTANT = 0.05
"""Seconds under which a step forward was no work, but a shard found on disk."""


def figures_of(
    stage: Stage,
    folder: StageDir,
    stats: Mapping[str, JSON],
    seconds: float,
    rate: float | None,
) -> dict[str, float]:
    """The numbers of a finished stage, by names that do not tell iterations apart.

    Args:
        stage: the stage.
        folder: its own; a measurement's results are read from it.
        stats: its figures.
        seconds: that it took.
        rate: items a second, where it was seen at work.
    """
    room = re.sub(r"^iter-\d+/", "", stage.name)
    if stage.name.startswith(("eval/", "reward/")):
        room = stage.name.partition("/")[0]
    found = dict(_results(folder)) if room == "eval" else dict(_numbers(stats))
    found["seconds"] = seconds
    if rate is not None:
        found[f"{stage.unit}_per_second"] = rate
        made = stats.get("candidates")
        if isinstance(made, int) and stage.unit == "samples" and stage.size:
            found["candidates_per_second"] = rate * made / stage.size
    return {f"{room}/{name}": value for name, value in found.items()}


def _numbers(value: Mapping[str, JSON], place: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of nested figures; lists, such as a training's curve, are no figures."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _numbers(inner, f"{place}{name}/")
        elif isinstance(inner, int | float) and not isinstance(inner, bool) and isfinite(inner):
            yield f"{place}{name}", float(inner)


def _results(folder: StageDir) -> Iterator[tuple[str, float]]:
    """What was measured on all samples of each split."""
    with suppress(StoreError):  # `selfcal status` says that a file is damaged
        for r in folder.read("results", Result):
            if r.category == "all" and isfinite(r.value):
                yield f"{r.split}/{r.metric}", r.value
