"""An evaluation on a terminal: how far it is, and what came out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from selfcal.benchmarking import RESULTS, Evaluated
from selfcal.evaluate.benchmark import Figure
from selfcal.evaluate.marking import ESTIMATED, MARKER_AGREEMENT, MARKER_UNSCORED
from selfcal.evaluate.predict import PREDICTIONS
from selfcal.view.text import amount, heading, safe, table, value

_PAUSE = 15.0
"""Least seconds between two lines where the output is no terminal."""


class Tell:
    """Says how far an evaluation is: a bar on a terminal, else a line now and then."""

    def __init__(self, out: Console) -> None:
        """Start with nothing said."""
        self._out, self._last = out, 0.0
        self._tasks: dict[str, int] = {}
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), console=out, transient=True,
        )  # fmt: skip

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say that `done` of `total` are done."""
        if not self._out.is_terminal:
            if done < total and time.monotonic() - self._last >= _PAUSE:
                self._last = time.monotonic()
                self._out.print(f"{what}: {done:,} of {total:,}")
            return
        if what not in self._tasks:
            self._bar.start()
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done)  # type: ignore[arg-type]

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()


@contextmanager
def progress(out: Console) -> Iterator[Tell]:
    """Progress for as long as the block runs."""
    tell = Tell(out)
    try:
        yield tell
    finally:
        tell.close()


def show_evaluation(out: Console, found: Evaluated) -> None:
    """Print the tables of an evaluation: all figures overall, then accuracy by group."""
    n = len(found.predictions)
    model, data = safe(str(found.about.get("model", ""))), safe(str(found.about.get("data", "")))
    out.print(heading(f"{model} on {data}: {amount(n, 'questions')}"))
    marked = [f for f in found.figures if _estimate(f)]
    plain = [f for f in found.figures if not _estimate(f)]
    _overall(out, [f for f in plain if f.group == "all"])
    _groups(out, plain)
    if marked:
        out.print()
        out.print(heading("Estimated by a marker, which no verifier has checked"))
        _overall(out, [f for f in marked if f.group == "all"])
    out.print()
    if found.drops:
        reasons = ", ".join(f"{safe(k)} {v:,}" for k, v in sorted(found.drops.items()))
        out.print(f"{sum(found.drops.values()):,} rows could not be used ({reasons})")
    out.print(
        f"Texts and figures: {found.out / PREDICTIONS}, {found.out / RESULTS}", soft_wrap=True
    )


def _estimate(figure: Figure) -> bool:
    return figure.name.startswith(ESTIMATED) or figure.name in (MARKER_AGREEMENT, MARKER_UNSCORED)


def _overall(out: Console, figures: Sequence[Figure]) -> None:
    made = table("", "value", "n", right=["value", "n"])
    for f in figures:
        made.add_row(safe(f.name), value(f.value, f.stderr), f"{f.n:,}")
    out.print(made)


def _groups(out: Console, figures: Sequence[Figure]) -> None:
    """By category and kind of question, where there are several."""
    groups = list(dict.fromkeys(f.group for f in figures if f.group != "all"))
    names = list(dict.fromkeys(f.name for f in figures if f.group != "all" and f.name != "cut"))
    if len(groups) < 2:
        return
    found = {(f.group, f.name): f for f in figures}
    made = table("", *names, "n", right=[*names, "n"])
    for group in groups:
        cells = [found.get((group, name)) for name in names]
        n = max((f.n for f in cells if f is not None), default=0)
        said = [value(f.value, f.stderr) if f else "" for f in cells]
        made.add_row(safe(group), *said, f"{n:,}")
    out.print()
    out.print(made)
