"""Words on a terminal: one console for all commands, and text that cannot harm it.

What models, teachers and data files wrote is untrusted. It goes through `safe`, which makes control
characters visible; and the console reads no markup, so that a bracket in a response is a bracket.
Style is given by rich's `Text` alone.
"""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from selfcal.store import JSON
from selfcal.types import Drop

WIDTH = 100
"""Columns where the output is no terminal."""
_JOINERS = "\u200c\u200d"  # invisible, yet Persian and many emoji need them; they reorder nothing
_FIGURES = 4


def console(stderr: bool = False) -> Console:
    """A console that takes all text literally."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else WIDTH
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width)


def safe(text: str, lines: bool = False) -> str:
    r"""Untrusted text, fit for a terminal.

    Control characters (ANSI escapes begin with one), bidirectional controls, other invisible
    characters and lone surrogates become visible escapes such as `\x1b` and `\u202e`. A line break
    becomes `\n`, too, so that no text can forge a line of output; `lines` keeps it.
    """
    return "".join(c if _harmless(c) or (lines and c == "\n") else _escape(c) for c in text)


def _harmless(char: str) -> bool:
    hidden = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return not hidden or char in _JOINERS


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table without frame; the columns named in `right` are aligned to the right, unbroken."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        if name in right:
            made.add_column(name, justify="right", no_wrap=True)
        else:
            made.add_column(name)
    return made


def heading(text: str) -> Text:
    """A heading, in one line."""
    return Text(safe(text), style="bold")


def indented(what: Table | Text, by: int = 2) -> Padding:
    """Something moved to the right."""
    return Padding(what, (0, 0, 0, by), expand=False)


def reason(drop: Drop) -> Padding:
    """Why a stage left something out."""
    detail = f": {safe(drop.detail)}" if drop.detail else ""
    said = f"{safe(drop.stage)}, {safe(drop.reason)}{detail}"
    return indented(Text.assemble(("left out ", "yellow"), said))


def duration(seconds: float) -> str:
    """Seconds in words: `< 1 s`, `41 s`, `4 min 20 s`, `2 h 05 min`."""
    if seconds < 1:
        return "< 1 s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def large(number: float) -> str:
    """A large count in few figures: `12,400`, `3.1 M`."""
    for limit, unit in ((1e9, "G"), (1e6, "M")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{round(number):,}"


def amount(n: int, unit: str) -> str:
    """A number of things: `1 step`, `1,200 samples`."""
    return f"{n:,} {unit.removesuffix('s') if n == 1 else unit}"


def value(number: float, error: float) -> str:
    """A value with its standard error; a dash where there is none."""
    if math.isnan(number):
        return "–"  # noqa: RUF001
    return f"{number:.3f}" if math.isnan(error) else f"{number:.3f} ±{error:.3f}"


def key_figures(stats: Mapping[str, JSON]) -> str:
    """What a stage's manifest says, in one line."""
    parts: list[str] = []
    for name, figure in stats.items():
        if (
            name not in ("curve", "drops")
            and len(parts) < _FIGURES
            and (text := _say(name, figure))
        ):
            parts.append(text)
    parts += [text for text in (_loss(stats.get("curve")), _dropped(stats.get("drops"))) if text]
    return " · ".join(parts)


def _say(name: str, figure: JSON) -> str:
    words = safe(name.replace("_", " "))
    if isinstance(figure, bool) or figure is None:
        return f"{words} {figure}".lower() if figure is not None else ""
    if isinstance(figure, int):
        return amount(figure, words)
    if isinstance(figure, float):
        return f"{words} {figure:.3f}"
    if isinstance(figure, Mapping) and "value" in figure:
        number, error = figure["value"], figure.get("stderr")
        if not isinstance(number, int | float):
            return ""
        return f"{words} {value(number, error if isinstance(error, int | float) else math.nan)}"
    if isinstance(figure, Mapping):
        return ", ".join(f"{safe(k)} {v:,}" for k, v in figure.items() if isinstance(v, int))
    return f"{words} {safe(figure)}" if isinstance(figure, str) else ""


def _loss(curve: JSON) -> str:
    rows = curve if isinstance(curve, Sequence) else ()
    losses = [row["loss"] for row in rows if isinstance(row, Mapping) and "loss" in row]
    if not losses or not all(isinstance(x, int | float) for x in losses):
        return ""
    first, last = f"{losses[0]:.3f}", f"{losses[-1]:.3f}"
    return f"loss {first} → {last}" if len(losses) > 1 else f"loss {first}"


def _dropped(drops: JSON) -> str:
    counts = drops if isinstance(drops, Mapping) else {}
    own = {k: v for k, v in counts.items() if isinstance(v, int) and v}
    if not own:
        return ""
    reasons = ", ".join(f"{safe(k)} {v:,}" for k, v in own.items())
    return f"{sum(own.values()):,} dropped ({reasons})"
