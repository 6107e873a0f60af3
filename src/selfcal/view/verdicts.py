"""A response and what the verifier found in it, sentence by sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from selfcal.miniworld.verifier import Finding, Verification
from selfcal.types import Candidate
from selfcal.view.text import indented, safe

Verify: TypeAlias = Callable[[str], Verification | None]
"""What the verifier finds in a response to a sample; None where nobody can tell."""
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
    rows = Table.grid(padding=(0, 2, 0, 0))
    for finding in sorted(found.findings, key=lambda f: f.start):
        place = [Text(f"{finding.start}-{finding.end}", "dim")] if spans else []
        sentence = Text(safe(text[finding.start : finding.end].strip()))
        rows.add_row(*place, Text(*_shown(finding)), sentence)
    _add_answer(rows, text, found, [""] if spans else [])
    return rows


def said(text: str, verified: Verify) -> Padding:
    """A response with its marks, below the line that says what it is."""
    return indented(marked(text, verified(text)), 6)


def _add_answer(rows: Table, text: str, found: Verification, before: Sequence[str]) -> None:
    """Add whether the answer is right, and the text itself if it is not in the format."""
    mark, style = ("✓ right", "green") if found.correct else ("✗ wrong", "red")
    answer = Text.assemble(("answer: ", "dim"), safe(found.answer) or "none")
    rows.add_row(*before, Text(mark, style), answer)
    if not found.compliant:
        rows.add_row(*before, Text("! format", "yellow"), Text(safe(text), "dim"))


def rewarded(candidate: Candidate, found: Verification | None) -> Table:
    """A response as it was searched: each sentence's reward and image relevance (CSR), and mark."""
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_row(*(Text(name, "dim") for name in ("reward", "relevance", "", "")))
    said, seen = candidate.sentences, candidate.sentence_relevances
    end = len(candidate.text) - len("".join(said).rstrip())  # what was stripped off the beginning
    for sentence, reward, relevance in zip(said, candidate.sentence_rewards, seen, strict=True):
        start, end = end, end + len(sentence)
        own = [f for f in found.findings if start <= f.start < end] if found else []
        marks = Text(", ").join(Text(*_shown(f)) for f in own)
        figures = (Text(f"{reward:+.3f}"), Text(f"{relevance:.1f}", justify="right"))
        rows.add_row(*figures, marks, Text(safe(sentence.strip())))
    if found:
        _add_answer(rows, candidate.text, found, ["", ""])
    return rows


def _shown(finding: Finding) -> tuple[str, str]:
    """A finding in a word, and its style."""
    mark, style = _MARKS[finding.status]
    return f"{mark} {finding.status}", style


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
