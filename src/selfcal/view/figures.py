"""A comparison in, three drawings (SVG) out: differences, paths over the checkpoints, and cost.

Everything is named where it is drawn. Colours are those of Okabe and Ito, which colour-blind
readers tell apart; names and markers say the same without them. Pages draw in the same style.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfcal.compare.contrast import Value
from selfcal.compare.report import Comparison
from selfcal.store import write_bytes
from selfcal.view.compare import PATHS
from selfcal.view.text import large, safe

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*X"
GREY, FAINT = "#666666", "#cccccc"
_COLUMNS = 3
"""Panels side by side."""
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "text.parse_math": False,  # a `$` in a name is a dollar
    "svg.hashsalt": "selfcal",  # the same figures give the same file
}


@contextmanager
def drawing(settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    """While figures are made and saved: our style, and these settings of matplotlib over it."""
    import matplotlib

    with matplotlib.rc_context({**_STYLE, **(settings or {})}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name with letters that the font does not have
        yield


def write_figures(folder: Path, found: Comparison) -> list[Path]:
    """Write the drawings that there are figures for; returns their paths."""
    metrics = [m for m in PATHS if m in found.metrics]
    made = []
    with drawing():
        for name in DRAWINGS:
            figure = draw(name, found, metrics)
            if figure is not None:
                made.append(folder / f"{name}.svg")
                data = io.BytesIO()
                figure.savefig(data, format="svg", metadata={"Date": None}, bbox_inches="tight")
                write_bytes(made[-1], data.getvalue())
    return made


def draw(name: str, found: Comparison, metrics: Sequence[str]) -> Any:
    """One of `DRAWINGS`, of these metrics, as a matplotlib figure; None without figures for it."""
    from matplotlib.figure import Figure

    return DRAWINGS[name](found, metrics, Figure)


def _look(found: Comparison, recipe: str) -> tuple[str, str]:
    """A recipe's colour and marker, the same in all drawings."""
    i = found.recipes.index(recipe)
    return COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]


def _panels(
    new: Callable[..., Any], metrics: Sequence[str], size: tuple[float, float], **share: bool
) -> tuple[Any, list[Any]]:
    """A figure with a panel for each metric, in rows; `size` is that of a panel, in inches."""
    columns = min(_COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = new(figsize=(size[0] * columns + 1, size[1] * rows + 0.3))
    panels = list(figure.subplots(rows, columns, squeeze=False, **share).flat)
    for unused in panels[len(metrics) :]:
        unused.set_visible(False)
    return figure, panels[: len(metrics)]


def _differences(found: Comparison, metrics: Sequence[str], new: Callable[..., Any]) -> Any:
    """A forest plot: a row for each recipe, a panel for each metric."""
    recipes = [r for r in found.recipes if r in {d.recipe for d in found.differences}]
    if not recipes or not metrics:
        return None
    figure, panels = _panels(new, metrics, (3.3, 0.45 * len(recipes) + 1.0), sharey=True)
    for axes, metric in zip(panels, metrics, strict=True):
        axes.axvline(0, color=GREY, linewidth=0.8)
        for y, recipe in enumerate(recipes):
            d = found.difference(recipe, "all", metric)
            if d is None:
                continue
            color, marker = _look(found, recipe)
            axes.plot([d.low, d.high], [y, y], color=color, linewidth=2, solid_capstyle="butt")
            axes.plot(d.difference, y, marker, color=color, markersize=7)
            axes.annotate(
                f"{d.difference:+.3f}", (d.difference, y), (0, 7), textcoords="offset points",
                ha="center", fontsize=9,
            )  # fmt: skip
        axes.set_title(_words(metric))
        axes.set_ylim(len(recipes) - 0.4, -0.8)
        axes.set_yticks(range(len(recipes)), [safe(r) for r in recipes])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.12)
    figure.supxlabel(
        f"difference to {safe(found.baseline)}, with the interval for all comparisons", fontsize=10
    )
    figure.tight_layout()
    return figure


def _checkpoints(found: Comparison, metrics: Sequence[str], new: Callable[..., Any]) -> Any:
    """A line for each recipe over its checkpoints, a panel for each metric."""
    if not found.trajectory or not metrics:
        return None
    checkpoints = list(dict.fromkeys(v.checkpoint for v in found.trajectory))
    figure, panels = _panels(new, metrics, (4.0, 3.3))
    for axes, metric in zip(panels, metrics, strict=True):
        ends = {}
        for recipe in found.recipes:
            own = [v for v in found.trajectory if (v.recipe, v.metric) == (recipe, metric)]
            own = [v for v in own if not math.isnan(v.value)]
            if own:
                ends[recipe] = own[-1].value
                _line(axes, found, own, checkpoints)
        axes.set_title(_words(metric))
        axes.set_xticks(range(len(checkpoints)), [safe(c) for c in checkpoints])
        axes.set_xlim(-0.2, len(checkpoints) - 0.8)
        _name_ends(axes, found, ends, len(checkpoints) - 1)
    figure.supxlabel("checkpoint", fontsize=10)
    figure.tight_layout()
    return figure


def _line(axes: Any, found: Comparison, own: Sequence[Value], checkpoints: Sequence[str]) -> None:
    color, marker = _look(found, own[0].recipe)
    at = [checkpoints.index(v.checkpoint) for v in own]
    errors = [0.0 if math.isnan(v.stderr) else v.stderr for v in own]
    axes.errorbar(
        at, [v.value for v in own], yerr=errors, color=color, marker=marker, markersize=5,
        linewidth=1.8, elinewidth=1,
    )  # fmt: skip


def _name_ends(axes: Any, found: Comparison, ends: dict[str, float], x: float) -> None:
    """Write each line's name at its end."""
    low, high = axes.get_ylim()
    names = sorted(ends, key=lambda recipe: ends[recipe])
    for recipe, y in zip(names, apart([ends[n] for n in names], 0.07 * (high - low)), strict=True):
        axes.annotate(
            safe(recipe), (x, y), (8, 0), textcoords="offset points", va="center", fontsize=9,
            color=_look(found, recipe)[0], annotation_clip=False,
        )  # fmt: skip


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places, moved as little as it takes to be so far from each other."""
    groups: list[list[float]] = []  # each is laid out around its mean
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _top(groups[-2], gap) + gap > _top(groups[-1], -gap):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_top(own, -gap) + i * gap for own in groups for i in range(len(own))]


def _top(group: Sequence[float], gap: float) -> float:
    """The highest place of a group; the lowest, for a negative gap."""
    return sum(group) / len(group) + gap * (len(group) - 1) / 2


def _cost(found: Comparison, metrics: Sequence[str], new: Callable[..., Any]) -> Any:
    """The first metric against what the searches generated."""
    points = [
        (c, v) for c in found.costs if metrics and (v := found.value(c.recipe, "all", metrics[0]))
    ]
    points = [(c, v) for c, v in points if not math.isnan(v.value)]
    if not points:
        return None
    figure = new(figsize=(6, 3.8))
    axes = figure.subplots()
    for cost, v in points:
        color, marker = _look(found, cost.recipe)
        error = 0.0 if math.isnan(v.stderr) else v.stderr
        axes.errorbar(cost.tokens, v.value, yerr=error, color=color, marker=marker, markersize=7)
    axes.margins(x=0.1, y=0.15)
    points.sort(key=lambda point: point[1].value)
    low, high = axes.get_ylim()
    heights = apart([v.value for _, v in points], 0.05 * (high - low))
    for (cost, _), y in zip(points, heights, strict=True):
        axes.annotate(
            safe(cost.recipe), (cost.tokens, y), (8, 0), textcoords="offset points",
            va="center", fontsize=9, color=_look(found, cost.recipe)[0], annotation_clip=False,
        )  # fmt: skip
    axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    axes.xaxis.set_major_formatter(lambda tokens, _: large(tokens))
    axes.set_xlabel("tokens that a run's searches generated")
    axes.set_ylabel(_words(metrics[0]))
    figure.tight_layout()
    return figure


def _words(metric: str) -> str:
    return metric.replace("_", " ")


DRAWINGS: dict[str, Callable[[Comparison, Sequence[str], Callable[..., Any]], Any]] = {
    "differences": _differences,
    "checkpoints": _checkpoints,
    "cost": _cost,
}
