"""What `selfcal verify` and `selfcal gc` found, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from selfcal.remote import shown
from selfcal.upkeep.findings import Finding
from selfcal.upkeep.gc import Item
from selfcal.upkeep.verify import Verified
from selfcal.view.text import amount, heading, safe, table

_SHOWN = 20
"""Findings that are shown of a stage."""


def show_verified(out: Console, run: Path, found: Verified) -> None:
    """Print what was looked at, and what is wrong."""
    out.print(heading(f"Verify {safe(shown(run))}"))
    if found.holder:
        out.print(
            f"The run is in work ({safe(found.holder)}): what is not finished was left out.",
            soft_wrap=True,
        )
    rows = table("", "stage", "state", "files", "rows", "findings", right=["files", "rows"])
    for s in found.stages:
        mark = "·" if s.state == "open" else "✗" if s.findings else "✓"
        wrong = Text(f"{s.findings:,}" if s.findings else "", "red")
        counts = (f"{s.files:,}", f"{s.rows:,}") if s.state == "done" else ("", "")
        rows.add_row(mark, Text(safe(s.stage)), s.state, *counts, wrong)
    out.print(rows)
    for stage in (s for s in found.stages if s.findings):
        own = [f for f in found.findings if f.stage == stage.stage]
        for finding in own[:_SHOWN]:
            out.print(Text.assemble(("✗ ", "red"), safe(_said(finding))), soft_wrap=True)
        if stage.findings > len(own[:_SHOWN]):
            more = stage.findings - len(own[:_SHOWN])
            out.print(f"  {safe(stage.stage)}: {more:,} more; --json has more of them")
    if found.sound:
        checked = sum(s.files for s in found.stages), sum(s.rows for s in found.stages)
        out.print(f"Sound: {amount(checked[0], 'files')}, {amount(checked[1], 'rows')} checked.")


def _said(f: Finding) -> str:
    row = "" if f.row is None else f", row {f.row}"
    return f"{f.file}{row}: {f.what}; {f.way_out}"


def verified_as_json(found: Verified) -> str:
    """The same as one JSON object."""
    said = {
        "sound": found.sound,
        "in_work": found.holder,
        "stages": [dataclasses.asdict(s) for s in found.stages],
        "findings": [dataclasses.asdict(f) for f in found.findings],
    }
    return json.dumps(said, indent=1)


def show_freed(out: Console, run: Path, items: Sequence[Item], applied: bool, again: str) -> None:
    """Print what was deleted, or could be."""
    out.print(heading(f"{'Freed' if applied else 'Could be freed'}: {safe(shown(run))}"))
    if not items:
        out.print("Nothing: all that is there is of use.")
        return
    rows = table("what", "size", "freed", "why", right=["size", "freed"])
    for item in items:
        name = Text(safe(item.path.relative_to(run).as_posix()))
        rows.add_row(name, size(item.bytes), size(item.freed), Text(item.reason, "dim"))
    out.print(rows)
    out.print(f"In all {size(sum(i.freed for i in items))} on the disk.")
    if any(i.freed < i.bytes for i in items):
        out.print("What is not freed is shared with other runs, by hard links.")
    if not applied:
        out.print(f"Nothing was deleted. To delete it: {again}", soft_wrap=True)


def size(number: float) -> str:
    """Bytes in words, such as `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
