"""How a run goes: one live line on a terminal, plain lines everywhere else.

`Track` holds what is known (stage, rate, time left); `LiveProgress` and `PlainProgress` show it.
Both are reporters of the pipeline.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from selfcal.cost.counts import Pace
from selfcal.pipeline import Planned
from selfcal.recipe import Recipe
from selfcal.stage import Stage
from selfcal.store import JSON
from selfcal.view.text import amount, duration, key_figures, large, safe

_INSTANT = 0.05
"""Seconds under which a step forward was no work, but a shard found on disk."""
_PAUSE = 15.0
"""Least seconds between two plain progress lines."""
_NAMES = 3
"""Damaged files that are named."""


class Track:
    """What is known of a run's progress."""

    def __init__(
        self, recipe: Recipe, planned: Sequence[Planned], now: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with nothing begun."""
        self._recipe, self._now = recipe, now
        self._folders = {p.stage.name: p.folder for p in planned}
        self._ahead = {p.stage.name: p.stage for p in planned}
        self._pace = Pace(recipe)
        self.of = len(planned)
        self.number = self.done = self.total = 0
        self.stage: Stage | None = None
        self.taken_over: list[str] = []
        """Stages taken over from other runs that nobody was told of yet."""
        self._began = self._last = self._base = 0.0
        self._base_done = 0

    def skip(self, stage: Stage, reused: bool) -> None:
        """A stage needs no work."""
        self._ahead.pop(stage.name, None)
        self._pace.note(stage, float(self._folders[stage.name].manifest().get("seconds", 0)))
        if reused:
            self.taken_over.append(stage.name)

    def begin(self, stage: Stage, number: int) -> None:
        """A stage starts."""
        self._ahead.pop(stage.name, None)
        self.stage, self.number, self.done, self.total = stage, number, 0, stage.size
        self._began = self._last = self._base = self._now()
        self._base_done = 0

    def move(self, done: int, total: int) -> None:
        """A stage got on."""
        now = self._now()
        if self._base_done == self.done and now - self._last < _INSTANT:
            self._base, self._base_done = now, done  # found on disk: not this session's work
        self.done, self.total, self._last = done, total, now

    def end(self, stage: Stage, seconds: float) -> None:
        """A stage is done."""
        self._pace.note(stage, seconds)
        self.stage = None

    @property
    def rate(self) -> float | None:
        """Items a second in this session."""
        elapsed, moved = self._last - self._base, self.done - self._base_done
        return moved / elapsed if moved > 0 and elapsed > 0 else None

    @property
    def stage_left(self) -> float | None:
        """Seconds left for the stage."""
        if self.stage is None:
            return 0.0
        now = self._now()
        if rate := self.rate:
            return max(0.0, (self.total - self.done) / rate - (now - self._last))
        guess = self._pace.seconds(self.stage)
        return None if guess is None else max(0.0, guess - (now - self._began))

    @property
    def run_left(self) -> float | None:
        """Seconds left for the whole run, roughly."""
        parts = [self.stage_left, *(self._pace.seconds(s) for s in self._ahead.values())]
        known = [p for p in parts if p is not None]
        return sum(known) if len(known) == len(parts) else None

    @property
    def iteration(self) -> str:
        """`iteration 2 of 3`; empty outside of iterations."""
        found = re.search(r"(?:^|/)iter-(\d+)", self.stage.name if self.stage else "")
        return f"iteration {found[1]} of {self._recipe.iterations}" if found else ""

    def said_taken_over(self) -> str:
        """One line on stages taken over since it was last asked; empty if there are none."""
        names, self.taken_over = self.taken_over, []
        return (
            f"{amount(len(names), 'stages')} taken over from another run: {', '.join(names)}"
            if names
            else ""
        )


def _speed(track: Track, unit: str) -> str:
    rate = track.rate
    if rate is None:
        return ""
    return f"{rate:.3g} {unit}/s" if rate < 1000 else f"{rate:,.0f} {unit}/s"


def mending(stage: Stage, names: Sequence[str]) -> str:
    """One line on a finished stage that is not what it was."""
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    said = ", ".join(names[:_NAMES]) + more
    return f"{stage.name}: mended, as this is damaged, missing or made anew: {said}"


def _left(seconds: float | None) -> str:
    return "" if seconds is None or seconds < 1 else f"{duration(seconds)} left"


class PlainProgress:
    """Plain lines, without control codes; progress at most every 15 seconds."""

    def __init__(
        self, out: Console, track: Track, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Show a track."""
        self._out, self._track, self._now = out, track, now
        self._told = 0.0

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Say what is left to say."""
        self._flush()

    def close(self) -> None:
        """Nothing to tidy up."""

    def begins(self, stage: Stage, number: int, of: int) -> None:
        """A stage starts."""
        self._flush()
        self._track.begin(stage, number)
        self._told = self._now()
        self._say(f"{safe(stage.about)}, {amount(stage.size, stage.unit)}")

    def moves(self, done: int, total: int) -> None:
        """A stage got on."""
        self._track.move(done, total)
        stage = self._track.stage
        if stage is None or done >= total or self._now() - self._told < _PAUSE:
            return
        self._told = self._now()
        parts = [
            f"{done:,} of {total:,} {stage.unit}",
            _speed(self._track, stage.unit),
            _left(self._track.stage_left),
        ]
        whole = _left(self._track.run_left)
        parts.append(f"run: about {whole}" if whole else "")
        self._say(", ".join(p for p in parts if p))

    def ends(self, stage: Stage, stats: Mapping[str, JSON], seconds: float) -> None:
        """A stage is done."""
        figures = key_figures(stats)
        self._say(f"done in {duration(seconds)}" + (f": {figures}" if figures else ""))
        self._track.end(stage, seconds)

    def skips(self, stage: Stage, reused: bool) -> None:
        """A stage was done before."""
        self._track.skip(stage, reused)

    def mends(self, stage: Stage, names: Sequence[str]) -> None:
        """A finished stage is not what it was."""
        self.notes(mending(stage, names))

    def notes(self, line: str) -> None:
        """Something happened that people should know of."""
        self._flush()
        self._out.print(safe(line), soft_wrap=True)
        self._out.file.flush()

    def _say(self, text: str) -> None:
        track = self._track
        name = safe(track.stage.name) if track.stage else ""
        self._out.print(f"[{track.number}/{track.of}] {name}: {text}", soft_wrap=True)
        self._out.file.flush()

    def _flush(self) -> None:
        if line := self._track.said_taken_over():
            self._out.print(safe(line), soft_wrap=True)


class LiveProgress:
    """A line for each finished stage, and a live one below."""

    def __init__(self, out: Console, track: Track) -> None:
        """Show a track."""
        self._out, self._track = out, track
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(
            get_renderable=self._render, console=out, refresh_per_second=8, transient=True
        )

    def __enter__(self) -> Self:
        """Start to draw."""
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Stop drawing; the finished lines stay."""
        self._flush()
        self.close()

    def close(self) -> None:
        """Stop drawing and give the cursor back."""
        self._live.stop()

    def begins(self, stage: Stage, number: int, of: int) -> None:
        """A stage starts."""
        self._flush()
        self._track.begin(stage, number)

    def moves(self, done: int, total: int) -> None:
        """A stage got on."""
        self._track.move(done, total)

    def ends(self, stage: Stage, stats: Mapping[str, JSON], seconds: float) -> None:
        """A stage is done."""
        self._track.end(stage, seconds)
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(width=1)
        line.add_column(width=18, no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(justify="right", no_wrap=True)
        line.add_row(
            Text("✓", "green"),
            Text(safe(stage.name)),
            Text(key_figures(stats) or safe(stage.about), "dim"),
            Text(duration(seconds)),
        )
        self._out.print(line)

    def skips(self, stage: Stage, reused: bool) -> None:
        """A stage was done before."""
        self._track.skip(stage, reused)

    def mends(self, stage: Stage, names: Sequence[str]) -> None:
        """A finished stage is not what it was."""
        self.notes(mending(stage, names))

    def notes(self, line: str) -> None:
        """Something happened that people should know of."""
        self._flush()
        self._out.print(Text(safe(line), "yellow"))

    def _flush(self) -> None:
        if line := self._track.said_taken_over():
            self._out.print(Text(safe(line), "dim"))

    def _render(self) -> Table | Group:
        track, stage = self._track, self._track.stage
        if stage is None:
            return Group()
        line = Table.grid(padding=(0, 1))
        total, done = max(1, track.total), min(track.done, max(1, track.total))
        line.add_row(
            self._spinner,
            Text(safe(stage.name), "bold"),
            ProgressBar(total, done, width=24),
            Text(f"{done:,}/{large(track.total)} {stage.unit}"),
            Text(_speed(track, stage.unit), "cyan"),
            Text(_left(track.stage_left)),
        )
        whole = _left(track.run_left)
        parts = [
            f"stage {track.number} of {track.of}",
            track.iteration,
            safe(stage.about),
            f"run: about {whole}" if whole else "",
        ]
        return Group(line, Text("  " + " · ".join(p for p in parts if p), "dim"))


def progress(
    out: Console, recipe: Recipe, planned: Sequence[Planned]
) -> LiveProgress | PlainProgress:
    """The reporter that fits where the output goes."""
    track = Track(recipe, planned)
    live = out.file.isatty() and out.is_terminal and not out.is_dumb_terminal
    return LiveProgress(out, track) if live else PlainProgress(out, track)
