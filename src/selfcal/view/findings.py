"""How an audit shows a figure with its error, and what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from selfcal.judge.audit import FEWEST
from selfcal.view.text import heading, safe, value


def figure_cell(figure: Mapping[str, Any]) -> Text:
    """A figure's value with its standard error, or a mark that there is none."""
    number, error = figure["value"], figure.get("stderr")
    said = value(*(math.nan if x is None else x for x in (number, error)))
    shown, _, rest = said.partition(" ")
    return Text.assemble((shown, "bold"), (f" {rest}" if rest else "", "dim"))


TOO_FEW = f"No figure that has a limit has {FEWEST} values or more."
NONE = "No figure is clearly beyond its limit."


def show_findings(out: Console, found: Mapping[str, Any]) -> None:
    """Print the findings of an audit, or that there are none, or that nobody could tell."""
    out.print(heading("Findings"))
    if not found["enough"]:
        out.print(f"Too few to tell: {TOO_FEW[0].lower()}{TOO_FEW[1:]}")
    elif not found["findings"]:
        out.print(f"None: {NONE[0].lower()}{NONE[1:]}")
    for text in found["findings"]:
        out.print(Text.assemble(("! ", "yellow"), safe(text)), soft_wrap=True)
