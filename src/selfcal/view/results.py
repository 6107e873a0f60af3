"""Results in, tables or JSON rows out.

Rows are metrics, columns checkpoints, each cell a value and its standard error.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfcal.evaluate import METRICS
from selfcal.evaluate.marking import ESTIMATED, MARKER_AGREEMENT, MARKER_UNSCORED
from selfcal.types import Result
from selfcal.view.text import heading, safe, table, value

LEGEND = (
    "Each cell is a share ± its standard error; ↑ higher is better, ↓ lower is better; "
    "n is the last checkpoint's."
)
BY_CATEGORY = ("answer_accuracy", "rationale_soundness", "alignment", "grounding")
"""What is shown of every category; `--json` gives all."""
_CELL, _MARGIN = 14, 34
_LOWER = ("lucky_answers", "inconsistency", "unreadable", MARKER_UNSCORED)
"""Metrics of which less is better, beside the flaws."""


def as_json(results: Sequence[Result]) -> str:
    """One JSON array; what is not a number is null."""
    rows = [dataclasses.asdict(r) for r in results]
    clean = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]
    return json.dumps(clean, indent=1, allow_nan=False)


def show_results(out: Console, results: Sequence[Result], splits: Sequence[str]) -> None:
    """Print the tables of these splits: overall, then by category."""
    for split in splits:
        own = [r for r in results if r.split == split]
        if not own:
            out.print(f"No results on {safe(split)} yet.")
            continue
        out.print(heading(f"Results on {split}"))
        _print(out, [r for r in own if r.category == "all"], list(METRICS))
        categories = list(dict.fromkeys(r.category for r in own if r.category != "all"))
        if len(categories) > 1:
            for category in categories:
                out.print(heading(f"Results on {split}: {category}"))
                _print(out, [r for r in own if r.category == category], BY_CATEGORY)
    out.print(LEGEND, style="dim", soft_wrap=True)


def _print(out: Console, results: Sequence[Result], metrics: Sequence[str]) -> None:
    for part in _fitting(list(dict.fromkeys(r.checkpoint for r in results)), out.width):
        out.print(_table(results, part, metrics))
        out.print()


def _fitting(checkpoints: list[str], width: int) -> Iterator[list[str]]:
    """Checkpoints in groups that fit beside each other."""
    at_once = max(1, (width - _MARGIN) // _CELL + 1)
    for i in range(0, len(checkpoints), at_once):
        yield checkpoints[i : i + at_once]


def _table(results: Sequence[Result], checkpoints: list[str], metrics: Sequence[str]) -> Table:
    found = {(r.checkpoint, r.metric): r for r in results}
    known = [m for m in metrics if any((c, m) in found for c in checkpoints)]
    foreign = sorted({r.metric for r in results} - set(METRICS)) if len(metrics) > 4 else []
    columns = [safe(c) for c in checkpoints]
    made = table("", *columns, "n", right=[*columns, "n"])
    for metric in [*known, *foreign]:
        own = [found.get((c, metric)) for c in checkpoints]
        cells = [_cell(r, last=i == len(own) - 1) for i, r in enumerate(own)]
        n = f"{own[-1].n:,}" if own[-1] else ""
        made.add_row(Text(f"{direction(metric)} {safe(metric)}"), *cells, Text(n, style="dim"))
    return made


def _cell(result: Result | None, last: bool) -> Text:
    if result is None:
        return Text("")
    number, _, error = value(result.value, result.stderr).partition(" ")
    return Text.assemble((number, "bold" if last else ""), (f" {error}" if error else "", "dim"))


def direction(metric: str) -> str:
    """An arrow towards the better values of a metric."""
    plain = metric.removeprefix(ESTIMATED)
    if plain not in METRICS and plain not in (*_LOWER, MARKER_AGREEMENT):
        return " "
    lower = plain.startswith("flaw/") or plain in _LOWER
    return "↓" if lower else "↑"
