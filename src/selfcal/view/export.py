"""What was exported: how many of what, what was left out and why, and how to train on it."""

from __future__ import annotations

from rich.console import Console

from selfcal.export import Exported
from selfcal.export.card import REASONS
from selfcal.view.text import amount, heading, safe, table


def show_export(out: Console, done: Exported) -> None:
    """Print an export."""
    contents, pairs = done.contents, done.source.split == "pairs"
    unit = "pairs" if pairs else "examples"
    out.print(heading(f"{amount(contents.examples, unit)} for {done.format.tool}"))
    rows = table("", unit, right=(unit,))
    for t, n in contents.counts.items():
        rows.add_row(f"iteration {t}" if t else "teacher", f"{n:,}")
    out.print(rows)
    if done.source.unfinished:
        open_ = ", ".join(map(str, done.source.unfinished))
        out.print(f"Not finished yet, and not exported: iteration {open_}", style="yellow")
    if contents.drops:
        left = table("left out", unit, "", right=(unit,))
        for reason, n in contents.drops.items():
            left.add_row(safe(reason), f"{n:,}", REASONS.get(reason, ""))
        out.print(left)
    where = safe(str(done.folder))
    out.print(f"{amount(contents.images, 'images')}; all of it lies in {where}", soft_wrap=True)
    if not done.licensed:
        out.print("Before you share it, name a licence in its README.md (or --license).")
    out.print("Train on it:" if done.format.name != "llava" else "Arguments of a LLaVA training:")
    command = done.format.load(str(done.folder), contents.name, pairs)
    for line in safe(command, lines=True).splitlines():
        out.print(f"  {line}".rstrip(), soft_wrap=True)
