"""One sample's way through a run, on a terminal: what it is, what was made of it, and why.

The sample's `Story` is printed as it is. The verifier's marks are for people; the calibration loop
never saw them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfcal.story import Part, Records, Rollouts, Round, Story, Taught, Written, find, tell
from selfcal.view.pairs import image, show_search, show_written
from selfcal.view.rollouts import show_rollouts
from selfcal.view.text import heading, indented, reason, safe
from selfcal.view.verdicts import Verify, marked, outcome


def show_trace(out: Console, run: Path, sample_id: str) -> None:
    """Print a sample's story.

    Raises:
        SelfcalError: the folder is no run, or it has no such sample.
    """
    records = Records(run, [sample_id])
    for split, sample in find(records, sample_id):
        story = tell(records, split, sample)
        verified = partial(records.verified, story.sample)
        _show_sample(out, records, story)
        if story.taught:
            _show_teacher(out, story.taught, verified)
        for part in story.parts:
            _show_part(out, part, verified, run)
        if story.answers or split in ("dev", "test"):
            _show_answers(out, story)


def _show_part(out: Console, part: Part, verified: Verify, run: Path) -> None:
    if isinstance(part, Round):
        show_search(out, part)
    elif isinstance(part, Written):
        show_written(out, part, verified, run)
    elif isinstance(part, Rollouts):
        show_rollouts(out, part, verified)
    else:
        out.print(heading(part.stage))
        for drop in part.drops:
            out.print(reason(drop))
        out.print()


# --- the sample, and the teacher's rationale ------------------------------------------------


def _show_sample(out: Console, records: Records, story: Story) -> None:
    sample = story.sample
    out.print(heading(f"{sample.id} · {story.split} · {sample.category or 'no category'}"))
    rows = {
        "image": " | ".join(image(records.run, path) for path in sample.images),
        "question": sample.question,
        "choices": " | ".join(sample.choices),
        "answer": sample.answer,
        "facts": sample.facts,
        "certainty": _certainty(sample.confidence, records.recipe.data.miniworld),
    }
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, text in rows.items():
        if text:
            grid.add_row(Text(name, "dim"), Text(safe(text), overflow="fold"))
    out.print(grid)
    out.print()


def _certainty(confidence: float, verified: bool) -> str:
    """How far the facts can be trusted; nothing where they are certain."""
    if confidence >= 1:
        return ""
    marks = "; marks are wrong where one was misread" if verified else ""
    return f"{confidence:.2f}: facts are uncertain{marks}"


def _show_teacher(out: Console, taught: Taught, verified: Verify) -> None:
    out.print(heading("The teacher's rationale"))
    if not taught.done:
        out.print(indented(Text("not written yet", "dim")))
    for rap in taught.raps:
        out.print(indented(marked(rap.text, verified(rap.text))))
    for drop in taught.drops:
        out.print(reason(drop))
    out.print()


# --- answers --------------------------------------------------------------------------------


def _show_answers(out: Console, story: Story) -> None:
    out.print(heading("Greedy responses"))
    for answer in story.answers:
        found, response = answer.found, answer.response
        said = outcome(found) if found else Text("right" if response.correct else "wrong")
        out.print(Text.assemble(f"  {safe(answer.checkpoint)}: ", said))
        out.print(indented(marked(response.text, found), 6))
    if story.missing:
        out.print(indented(Text(f"not measured yet: {', '.join(map(safe, story.missing))}", "dim")))
    out.print()
