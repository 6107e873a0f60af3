"""A comparison in, one HTML page out: the sheets of `compare.md`, drawings, and where the runs lie.

A difference whose interval leaves out 0 is marked; the others show nothing, which is not the same
as no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from selfcal.compare.report import Comparison
from selfcal.compare.runs import Place
from selfcal.page import render
from selfcal.page.svg import inline
from selfcal.report import TEMPLATES
from selfcal.store import write_text
from selfcal.view.compare import PATH, PATHS, Sheet, percent, sheets
from selfcal.view.figures import draw, drawing
from selfcal.view.results import direction
from selfcal.view.status import command
from selfcal.view.text import safe

_TITLES = {
    "differences": "Difference to {}",
    "checkpoints": "From checkpoint to checkpoint",
    "cost": "What it takes",
}
SURE = "*"
"""What a difference that leaves out 0 ends with, in a sheet."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Drawings that belong together; what they show stands in the tables."""

    title: str
    drawings: tuple[Markup, ...]


@dataclass(frozen=True, slots=True)
class Headline:
    """The differences in the metric that counts most."""

    metric: str
    rows: tuple[tuple[str, str, str, str], ...]
    """Recipe, difference with its interval, `good`, `bad` or neither, and that in a word."""
    about: str


@dataclass(frozen=True, slots=True)
class One:
    """A run of the comparison."""

    recipe: str
    seed: int
    folder: str
    report: str
    """The command that makes its report."""


def write_comparison(path: Path, found: Comparison, place: Place) -> None:
    """Write a comparison as a page.

    Raises:
        StoreError: the system refused.
    """
    own = [_in_words(sheet, found) for sheet in sheets(found)]
    single = [sheet for sheet in own if _single(sheet, found)]
    several = len([c for c in found.categories if c != "all"]) > 1  # else it is all once more
    text = render(
        TEMPLATES,
        "comparison.html.j2",
        styles=[(TEMPLATES / "report.css").read_text("utf-8")],
        found=found,
        headline=_headline(found),
        figures=_figures(found),
        sheets=[sheet for sheet in own if sheet not in single],
        categories=single if several else [],
        runs=_runs(found, place),
        sure=SURE,
    )
    write_text(path, text)


def _in_words(sheet: Sheet, found: Comparison) -> Sheet:
    """With names of metrics as the drawings have them."""
    title, rows = sheet.title, sheet.rows
    if (metric := title.removesuffix(PATH)) in found.metrics:
        title = metric.replace("_", " ") + PATH
    elif all(row[0][2:] in found.metrics for row in rows):  # an arrow, a space, the name
        rows = tuple((row[0].replace("_", " "), *row[1:]) for row in rows)
    return replace(sheet, title=title, rows=rows)


def _single(sheet: Sheet, found: Comparison) -> bool:
    """Whether a sheet is of one category alone."""
    return any(sheet.title.endswith(f": {safe(c)}") for c in found.categories if c != "all")


def _headline(found: Comparison) -> Headline | None:
    """What the first metric that has differences says, recipe by recipe."""
    known = {d.metric for d in found.differences if d.category == "all"}
    metric = next((m for m in PATHS if m in known), None)
    if metric is None:
        return None
    own = [d for d in found.differences if (d.category, d.metric) == ("all", metric)]
    way = -1 if direction(metric) == "↓" else 1
    rows = []
    for d in own:
        kind = ("good" if d.difference * way > 0 else "bad") if d.sure else ""
        words = {"good": "better", "bad": "worse"}.get(kind, "nothing shown")
        text = f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        rows.append((d.recipe, text, kind, words))
    about = f"In brackets, the {percent(found.level)} interval; the table of differences says how."
    return Headline(metric, tuple(rows), about)


def _figures(found: Comparison) -> list[Figures]:
    """Each panel is a drawing of its own, so that it stays readable on a phone."""
    metrics = [m for m in PATHS if m in found.metrics]
    made = []
    for name, title in _TITLES.items():
        parts: list[Sequence[str]] = [metrics[:1]] if name == "cost" else [[m] for m in metrics]
        drawn = []
        for i, part in enumerate(parts):
            with drawing():
                figure = draw(name, found, part)
            if figure is not None:
                label = f"Chart: {title.format(safe(found.baseline))}, {', '.join(part)}"
                drawn.append(inline(figure, f"{name}-{i}", label, tight=True))
        if drawn:
            made.append(Figures(title.format(found.baseline), tuple(drawn)))
    return made


def _runs(found: Comparison, place: Place) -> list[One]:
    return [
        One(name, seed, str(place.run(name, seed)), command("report", place.run(name, seed)))
        for name in found.recipes
        for seed in found.finished[name]
    ]
