"""`selfcal audit`: the pages, or what has come of them."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import typer

from selfcal.errors import SelfcalError
from selfcal.people.export import export
from selfcal.people.judged import Judged
from selfcal.people.launch import serve
from selfcal.people.pick import Wanted
from selfcal.view.status import command
from selfcal.view.text import amount, console, safe

_REASONS = {
    "cannot-tell": "nobody could tell",
    "tied": "people say different things equally often",
    "redone": "labels of pairs that the run no longer has in that form",
}


def audit_people(
    run: Path, wanted: Wanted, agreement: bool, as_json: bool, file: Path | None
) -> None:
    """Show pairs to people, or how far they agree, or write what they said into a file.

    Raises:
        SelfcalError: options that do not go together, or what the three raise.
    """
    _check(wanted, agreement, file)
    if as_json and not agreement:
        raise SelfcalError("--json: it goes with --agreement; leave it out")
    if file:
        _export(run, file, wanted.annotator)
    elif agreement:
        _agreement(run, as_json)
    else:
        serve(run, wanted)


def _check(wanted: Wanted, agreement: bool, file: Path | None) -> None:
    """Refuse options of the pages where none are shown."""
    if agreement and file:
        raise SelfcalError("--agreement, --export: give one of them")
    if not agreement and file is None:
        return
    given = [f.name for f in fields(Wanted) if getattr(wanted, f.name) != f.default]
    for name in given:
        if not (file and name == "annotator"):
            option = {"browser": "no-browser", "names": "name"}.get(name, name)
            goes = "--agreement" if agreement else "--export"
            raise SelfcalError(f"--{option}: it does not go with {goes}; leave it out")


def _agreement(run: Path, as_json: bool) -> None:
    from selfcal.people.agreement import agreement_of
    from selfcal.people.show import show_agreement

    found = agreement_of(run)
    if as_json:
        typer.echo(json.dumps(found.to_json() if found else None, indent=1, allow_nan=False))
    elif found is None:
        Judged(run)  # there may be nothing to label
        raise SelfcalError(f"{run} has no labels yet: {command('audit', run)}")
    else:
        show_agreement(console(), found)


def _export(run: Path, file: Path, annotator: str | None) -> None:
    done, out = export(run, file, annotator), console()
    parts = ", ".join(f"{n:,} {verdict}" for verdict, n in sorted(done.verdicts.items()))
    n = amount(sum(done.verdicts.values()), "labelled pairs")
    out.print(f"{n} ({parts}) in {safe(str(done.file))}", soft_wrap=True)
    if done.images:
        out.print(f"{amount(done.images, 'images')} beside it")
    for reason, count in done.left_out.items():
        out.print(f"{count:,} left out: {_REASONS[reason]}", style="yellow")
    out.print("Train a judge on them:")
    trained = command("run", "RECIPE", "--out", "RUN", "--set", f"judge.labels={done.file}")
    out.print(f"  {safe(trained)}", soft_wrap=True)
    out.print("Hold this run's judge against them:")
    held = command("judge", "audit", run, "--labels", done.file)
    out.print(f"  {safe(held)}", soft_wrap=True)
