"""How an audit shows a figure with its error, and what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from selfcal.view.text import heading, safe, value


def figure_cell(figure: Mapping[str, Any]) -> Text:
    """A figure's value with its standard error, or a mark that there is none."""
    number, error = figure["value"], figure.get("stderr")
    said = value(*(math.nan if x is None else x for x in (number, error)))
    shown, _, rest = said.partition(" ")
    return Text.assemble((shown, "bold"), (f" {rest}" if rest else "", "dim"))


def show_findings(out: Console, findings: Sequence[str]) -> None:
    """Print the findings, or that there are none."""
    out.print(heading("Findings"))
    if not findings:
        out.print("None: no figure is clearly beyond its limit.")
    for text in findings:
        out.print(Text.assemble(("! ", "yellow"), safe(text)), soft_wrap=True)
