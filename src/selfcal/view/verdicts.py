"""A response and what the verifier found in it, sentence by sentence."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from selfcal.miniworld.verifier import Verification
from selfcal.rationale import parse
from selfcal.view.text import safe

_MARKS = {
    "true": ("✓", "green"),
    "follows": ("✓", "green"),
    "counterfactual": ("✗", "red"),
    "unreasonable": ("✗", "red"),
    "unreadable": ("?", "yellow"),
}


def marked(text: str, found: Verification | None, spans: bool = False) -> Table | Text:
    """A response with a mark for every sentence; plain where there is no verification."""
    if found is None:
        return Text(safe(text, lines=True))
    rap = parse(text)
    rows = Table.grid(padding=(0, 2, 0, 0))
    for finding in sorted(found.findings, key=lambda f: f.start):
        mark, style = _MARKS[finding.status]
        place = [Text(f"{finding.start}-{finding.end}", "dim")] if spans else []
        sentence = Text(safe(text[finding.start : finding.end].strip()))
        rows.add_row(*place, Text(f"{mark} {finding.status}", style), sentence)
    mark, style = ("✓ right", "green") if found.correct else ("✗ wrong", "red")
    place = [Text("")] if spans else []
    answer = Text.assemble(("answer: ", "dim"), safe(rap.answer) or "none")
    rows.add_row(*place, Text(mark, style), answer)
    if not found.compliant:
        rows.add_row(*place, Text("! format", "yellow"), Text(safe(text), "dim"))
    return rows


def outcome(found: Verification) -> Text:
    """`right, sound`, or everything that is wrong."""
    words = ["right" if found.correct else "wrong", *(list(_flaws(found)) or ["sound"])]
    if found.inconsistent:
        words.append("answer is not what was concluded")
    if not found.compliant:
        words.append("not in the format")
    good = found.correct and found.sound and not found.inconsistent
    return Text(", ".join(words), "green" if good else "red")


def _flaws(found: Verification) -> Iterator[str]:
    for name in ("counterfactual", "insufficient", "unreasonable"):
        if getattr(found, name):
            yield name
