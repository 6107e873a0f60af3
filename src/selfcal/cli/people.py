"""The command by which people check the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfcal.cli.base import SETTINGS, examples, here

app = typer.Typer(**SETTINGS)


@app.command(
    epilog=examples(
        "audit runs/demo", "audit runs/demo --agreement", "audit runs/demo --export labels.jsonl"
    )
)
def audit(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False, parser=here),
    ],
    pairs: Annotated[int, typer.Option(min=1, help="How many pairs to show.")] = 200,
    iteration: Annotated[
        int | None, typer.Option(min=1, help="Draw them from this iteration; else from all.")
    ] = None,
    annotator: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who judges; else the page asks.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Another name that leads to the pages; repeatable."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The first port to try.")] = 7860,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Show how far people, judge and verifier agree.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the verdicts as judge.labels.")
    ] = None,
) -> None:
    """Let people check the judge of a run, blind, in a browser."""
    from selfcal.people.command import audit_people
    from selfcal.people.pick import Wanted

    wanted = Wanted(pairs, iteration, annotator, host, tuple(name or ()), port, browser)
    audit_people(run, wanted, agreement, as_json, export)
