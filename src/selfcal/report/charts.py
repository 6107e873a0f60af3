"""Figures with their errors in, charts out: a drawing, and the same figures as a table.

Each chart is small and a drawing of its own, so that it stays readable on a phone. What is drawn
also stands in its table, in words and numbers; a point tells its own while one points at it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from selfcal.page.svg import inline
from selfcal.view.figures import COLORS, FAINT, GREY, MARKERS, apart, drawing
from selfcal.view.text import safe

Z95 = 1.96
"""Standard errors to either side of a value: its 95 % interval."""
_SIZE = (4.5, 2.55)
"""Inches; of the letters in it a phone still makes readable ones."""
_EDGES = {"left": 0.125, "right": 0.97, "bottom": 0.155, "top": 0.96}
_LONGEST = 18
"""Characters of a name inside a drawing."""
_UNSEEN = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Mark:
    """One point: a value over a place."""

    x: float
    at: str
    """What the place is called, such as `iter-1`."""
    value: float
    stderr: float = math.nan
    n: int | None = None

    @property
    def half(self) -> float:
        """Half of the 95 % interval; NaN where no error is known."""
        return Z95 * self.stderr


@dataclass(frozen=True, slots=True)
class Line:
    """Points that belong together."""

    name: str
    marks: tuple[Mark, ...]
    color: int = 0
    joined: bool = True


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with its table."""

    title: str
    about: str
    """What the figures are."""
    drawing: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Look:
    """How a chart's figures are said and laid out."""

    say: Callable[[float], str]
    """A value in words."""
    tick: Callable[[float], str]
    """The same, short, at an axis."""
    between: tuple[float, float] | None = None
    """Where the axis of values begins and ends; None: where they do."""
    named: bool = True
    """Whether places are named, each one; else they are numbers on an axis."""
    across: str = ""
    """What lies along the axis of places."""
    level: float | None = None
    """A value that is worth a line of its own."""
    diagonal: bool = False


def share(value: float) -> str:
    """A share in percent."""
    return "–" if math.isnan(value) else f"{value * 100:.1f} %"  # noqa: RUF001


def number(value: float) -> str:
    """A number in few digits."""
    return "–" if math.isnan(value) else f"{value:.4g}"  # noqa: RUF001


def said(value: float, stderr: float, say: Callable[[float], str] = share) -> str:
    """A value and half of its 95 % interval: `92.9 % ± 1.8`."""
    if math.isnan(value) or math.isnan(stderr):
        return say(value)
    half = Z95 * stderr
    return f"{say(value)} ± {half * 100:.1f}" if say is share else f"{say(value)} ± {say(half)}"


SHARES = Look(share, lambda v: f"{v:.0%}")
NUMBERS = Look(number, lambda v: f"{v:g}")


def brief(name: str, longest: int = _LONGEST) -> str:
    """A name as a drawing has room for it, its control characters made visible."""
    text = safe(name[: 4 * longest])
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


@dataclass
class Charts:
    """Makes charts, and numbers them, so that no two on a page share an id."""

    key: str = "chart"
    _made: int = field(default=0, init=False)

    def lines(self, title: str, about: str, lines: Sequence[Line], look: Look) -> Chart | None:
        """Lines over places; None where no value is known."""
        lines = [
            Line(w.name, tuple(m for m in w.marks if math.isfinite(m.value)), w.color, w.joined)
            for w in lines
        ]
        lines = [w for w in lines if w.marks]
        if not lines:
            return None
        tips: dict[str, str] = {}
        with drawing(_STYLE):
            figure, axes = _axes(_SIZE)
            for line in lines:
                _draw_line(axes, line, look, tips)
            _frame(axes, lines, look)
            if len(lines) > 1:
                _name_ends(axes, lines)
        svg = self._inline(figure, title, lines, tips)
        return Chart(title, about, svg, *_table(lines, look))

    def bars(self, title: str, about: str, bars: Sequence[Mark], look: Look) -> Chart | None:
        """Bars, one below the other, each with its name; None without any."""
        if not bars:
            return None
        tips = {}
        most = max(b.value for b in bars) or 1.0
        height = 0.24 * len(bars) + 0.25
        with drawing(_STYLE):
            figure, axes = _axes((_SIZE[0], height))
            figure.subplots_adjust(left=0.36, right=0.84, bottom=0.12 / height, top=1)
            for y, bar in enumerate(bars):
                tips[f"tip-{y}"] = f"{safe(bar.at)}: {look.say(bar.value)}"
                axes.barh(y, bar.value, height=0.62, color=COLORS[0], gid=f"tip-{y}")
                axes.annotate(
                    look.say(bar.value), (bar.value, y), (4, 0), textcoords="offset points",
                    va="center", fontsize=9, annotation_clip=False,
                )  # fmt: skip
            axes.set_yticks(range(len(bars)), [brief(b.at, 22) for b in bars])
            axes.set_ylim(len(bars) - 0.4, -0.6)
            axes.set_xlim(0, most)
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=False)
            axes.xaxis.set_visible(False)
            axes.spines[["bottom", "top", "right"]].set_visible(False)
        svg = self._inline(figure, title, [Line("", tuple(bars))], tips)
        rows = tuple((b.at, look.say(b.value)) for b in bars)
        return Chart(title, about, svg, ("", look.across), rows)

    def _inline(
        self, figure: Any, title: str, lines: Sequence[Line], tips: dict[str, str]
    ) -> Markup:
        self._made += 1
        names = ", ".join(brief(w.name, 60) for w in lines if w.name)
        label = f"Chart: {brief(title, 100)}{f' ({names})' if names else ''}"
        return inline(figure, f"{self.key}-{self._made}", label, tips)


_STYLE = {
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
}


def _axes(size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    axes = figure.subplots()
    figure.subplots_adjust(**_EDGES)
    return figure, axes


def _draw_line(axes: Any, line: Line, look: Look, tips: dict[str, str]) -> None:
    color, marker = COLORS[line.color % len(COLORS)], MARKERS[line.color % len(MARKERS)]
    places, values = [m.x for m in line.marks], [m.value for m in line.marks]
    if line.joined:
        axes.plot(places, values, color=color, linewidth=1.8)
    many = len(line.marks) > 12
    for mark in line.marks:
        if not math.isnan(mark.half):
            ends = [mark.value - mark.half, mark.value + mark.half]
            axes.plot([mark.x, mark.x], ends, color=color, linewidth=1.2, solid_capstyle="butt")
        tip = f"tip-{len(tips)}"
        axes.plot(
            mark.x, mark.value, marker, color=color, markersize=2.5 if many else 5.5, gid=tip,
            # an edge that is not seen: one need not hit the point itself
            markeredgecolor=_UNSEEN, markeredgewidth=9, clip_on=False,
        )  # fmt: skip
        name = f"{brief(line.name, 60)}, " if line.name else ""
        tips[tip] = f"{name}{brief(mark.at, 60)}: {cell(mark, look)}"


def cell(mark: Mark, look: Look) -> str:
    """A point in words: value, interval, n."""
    text = said(mark.value, mark.stderr, look.say)
    return text if mark.n is None else f"{text} (n {mark.n:,})"


def _frame(axes: Any, lines: Sequence[Line], look: Look) -> None:
    marks = [m for w in lines for m in w.marks]
    if look.diagonal:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    if look.level is not None:
        axes.axhline(look.level, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    if look.named:
        places = dict(sorted({m.x: m.at for m in marks}.items()))
        kept = list(places)[:: -(-len(places) // 7)]
        longest = max(4, 56 // len(kept))
        axes.set_xticks(kept, [brief(places[x], longest) for x in kept])
        room = 0.3 if len(places) > 1 else 0.8
        axes.set_xlim(min(places) - room, max(places) + room)
    elif look.diagonal:
        axes.set_xlim(0, 1)
        axes.figure.subplots_adjust(right=0.93)  # half of "100%" stands beyond the end
        axes.xaxis.set_major_formatter(lambda x, _: look.tick(x))
    else:
        axes.locator_params(axis="x", nbins=6, integer=True)
    low, high = look.between or _span(marks)
    axes.set_ylim(low, high)
    axes.locator_params(axis="y", nbins=5)
    axes.yaxis.set_major_formatter(lambda y, _: look.tick(round(y, 9)))
    axes.tick_params(length=0, pad=5)
    axes.spines["left"].set_visible(False)
    if look.across:
        axes.set_xlabel(look.across, fontsize=9, color=GREY)
        axes.figure.subplots_adjust(bottom=0.22)


def _span(marks: Sequence[Mark]) -> tuple[float, float]:
    """Where an axis begins and ends that has all of these with their intervals."""
    halves = [0.0 if math.isnan(m.half) else m.half for m in marks]
    low = min(m.value - h for m, h in zip(marks, halves, strict=True))
    high = max(m.value + h for m, h in zip(marks, halves, strict=True))
    room = 0.06 * (high - low) or 0.1 * abs(high) or 0.1
    return low - room, high + room


def shares_between(marks: Sequence[Mark]) -> tuple[float, float]:
    """Of shares, an axis that begins at 0 and ends at 1, or a bit above small ones."""
    top = max((m.value + (0.0 if math.isnan(m.half) else m.half) for m in marks), default=1.0)
    return 0.0, 1.03 if top > 0.5 else max(0.04, 1.12 * top)


def _name_ends(axes: Any, lines: Sequence[Line]) -> None:
    """Write each line's name at its end, apart from the others'."""
    low, high = axes.get_ylim()
    ordered = sorted(lines, key=lambda w: w.marks[-1].value)
    gap = 0.085 * (high - low)
    heights = apart([w.marks[-1].value for w in ordered], gap)
    over = max(0.0, heights[-1] - high)  # of many names, some would stand above the drawing
    right = axes.get_xlim()[1]
    for line, y in zip(ordered, heights, strict=True):
        axes.annotate(
            brief(line.name), (right, y - over), (6, 0), textcoords="offset points", va="center",
            fontsize=9, color=COLORS[line.color % len(COLORS)], annotation_clip=False,
        )  # fmt: skip
    longest = max(len(brief(w.name)) for w in lines)
    axes.figure.subplots_adjust(right=0.95 - 0.0175 * longest)


def _table(
    lines: Sequence[Line], look: Look
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """A row for each place, a column for each line."""
    places = dict(sorted({m.x: m.at for w in lines for m in w.marks}.items()))
    found = {(i, m.x): m for i, w in enumerate(lines) for m in w.marks}
    rows = []
    for x, at in places.items():
        marks = [found.get((i, x)) for i in range(len(lines))]
        rows.append((at, *(cell(m, look) if m else "" for m in marks)))
    names = [w.name or "value" for w in lines]
    return ("", *names), tuple(rows)
