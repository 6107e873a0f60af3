"""Where the time of a run went, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfcal.pipeline import PROFILE_FILE
from selfcal.store import read_json
from selfcal.view.text import duration, heading, safe

_PARTS = ("model", "training", "tokenizer", "sampling", "cache", "disk", "other")
"""Columns: forward passes; TRL's trainings; texts and images to tensors and back; drawing tokens;
moving keys and values; files; all else."""


def show_profile(out: Console, run: Path) -> None:
    """Print the shares of each stage's time, for stages that ran under `--profile`.

    Raises:
        StoreError: the profile is damaged.
    """
    path = run / PROFILE_FILE
    if not path.exists():
        out.print("Nothing ran, so there is nothing to show of where the time went.")
        return
    known: dict[str, Any] = read_json(path)
    out.print()
    out.print(heading("Where the time went"))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage")
    for name in ("time", *_PARTS):
        table.add_column(name, justify="right")
    for stage, row in known.items():
        seconds = float(row["seconds"])
        shares = [float(row["parts"].get(name, 0.0)) / max(seconds, 1e-9) for name in _PARTS]
        cells = [Text(f"{s:.0%}" if s >= 0.005 else "·", "" if s >= 0.1 else "dim") for s in shares]
        table.add_row(safe(stage), duration(seconds), *cells)
    out.print(table)
    out.print(f"Written to {path}.", soft_wrap=True)
