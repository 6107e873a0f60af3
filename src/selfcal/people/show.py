"""How far people, judge and verifier agree, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfcal.people.agreement import Agreement, Person
from selfcal.people.kappa import FEWEST, Agreed, Interval
from selfcal.view.text import amount, heading, safe, table

LEFT_OUT = {
    "redone": "labels of pairs that the run no longer has in that form: left out",
    "tied": "pairs of which people say different things equally often: most people say nothing",
    "unread": "pairs of which the judge's verdict could not be read",
    "torn": "unfinished last line: left out, and set aside when the next label comes",
}


def show_agreement(out: Console, found: Agreement) -> None:
    """Print the agreement."""
    pairs, people = amount(found.pairs, "pairs"), len(found.people)
    who = "1 person" if people == 1 else f"{people} people"
    out.print(heading(f"{who} judged {pairs} of {amount(found.samples, 'samples')}"))
    right = ["kappa", "same verdict", "pairs"]
    rows = table("", *right, right=right)
    several = (found.all_people,) if found.all_people and people > 2 else ()
    _add(rows, (*found.between, *several))
    _add(rows, found.with_judge)
    _add(rows, found.with_verifier)
    _add(rows, (found.judge_with_verifier,) if found.judge_with_verifier else ())
    out.print(rows)
    out.print(
        "Kappa is agreement beyond chance: 1 is perfect, 0 is chance. In brackets: 95 % intervals, "
        f"where there are {FEWEST} samples or more.",
        style="dim",
    )
    out.print()
    _show_people(out, found.people)
    _show_marks(out, found)
    _show_left_out(out, found.left_out)


def _add(rows: Table, agreed: Sequence[Agreed]) -> None:
    for a in agreed:
        one, other = a.raters[0], a.raters[-1]
        who = f"{one} and {other}" if len(a.raters) == 2 else f"all {len(a.raters)} people"
        n = Text(f"{a.pairs:,}", "dim")
        rows.add_row(safe(who), _cell(a.kappa), _cell(a.agreement), n)


def _cell(figure: Interval) -> Text:
    if figure.value is None:
        return Text("–")  # noqa: RUF001
    value = Text(f"{figure.value:.3f}", "bold")
    if figure.low is not None:
        value.append(f" [{figure.low:.3f}, {figure.high:.3f}]", "not bold dim")
    return value


def _show_people(out: Console, people: Sequence[Person]) -> None:
    right = ["pairs", "equal", "can't tell", "marked", "seconds a pair"]
    rows = table("", *right, right=right)
    for p in people:
        counts = (p.labels, p.neutral, p.cannot_tell, p.marked)
        seconds = "–" if p.seconds is None else f"{p.seconds:.1f}"  # noqa: RUF001
        rows.add_row(safe(p.name), *(f"{n:,}" for n in counts), seconds)
    out.print(rows)
    out.print()


def _show_marks(out: Console, found: Agreement) -> None:
    marks = found.marks
    if not marks.flaws:
        return
    named = ", ".join(f"{flaw or 'without a flaw'} {n:,}" for flaw, n in marks.flaws.items())
    out.print(f"Sentences marked as false: {named}.")
    if marks.checked:
        share = _cell(marks.false)
        text = f"Of {marks.checked:,} that the verifier knows of, it calls false as well: "
        out.print(Text.assemble(text, share))
    out.print()


def _show_left_out(out: Console, counts: Mapping[str, int]) -> None:
    for name, n in counts.items():
        if n:
            out.print(f"{n:,} {LEFT_OUT[name]}", style="yellow", soft_wrap=True)
