"""The command that makes a run's report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfcal.cli.base import SETTINGS, a_run, examples, here
from selfcal.errors import SelfcalError

app = typer.Typer(**SETTINGS)
FILE = "report.html"
"""Name of the report in a run's folder."""


@app.command(
    epilog=examples(
        "report runs/demo",
        "report runs/demo --open",
        "report runs/demo --out demo.html --samples 200 --assets demo-images",
    )
)
def report(
    run: Annotated[Path, a_run("images")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help=f"The HTML file; else {FILE} in the run.", parser=here
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, metavar="N", help="Samples it shows at most.")] = (
        1000
    ),
    assets: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write images to this folder, not into the file."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write what a run did, and what came of it, as one HTML file to look at."""
    from selfcal.remote import place_of
    from selfcal.report import write_report
    from selfcal.view.text import console, safe

    file = out or run / FILE
    if file.is_dir():
        raise SelfcalError(f"--out {file}: is a folder; give the path of a file")
    made = write_report(run, file, samples, assets)
    if out is None:
        place_of(run).saved([made])
    words = f"The report lies in {safe(str(made))} ({made.stat().st_size / 1e6:.1f} MB)"
    beside = f", its images in {safe(str(assets))}" if assets else ""
    console().print(f"{words}{beside}", soft_wrap=True)
    if show:
        import webbrowser

        if not webbrowser.open(made.resolve().as_uri()):
            console().print("No browser could be opened: open the file by yourself.")
