"""The commands of selfcal. Thin: arguments in, one call into the package, exit code out.

Everything heavy is imported inside the commands, so that `selfcal --help` is there at once.
"""

from __future__ import annotations

import atexit
import sys
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from selfcal import __version__
from selfcal.cli import (
    base,
    compare,
    data,
    eval,
    export,
    init,
    judge,
    people,
    rehearse,
    report,
    runs,
    upkeep,
    world,
)

app = typer.Typer(
    **base.SETTINGS, epilog=base.examples("run recipes/miniworld-src.yaml --out runs/demo")
)
app.add_typer(runs.app)  # without a name: its commands are selfcal's own
app.add_typer(compare.app)
app.add_typer(eval.app)
app.add_typer(export.app)
app.add_typer(init.app)
app.add_typer(judge.app, name="judge")
app.add_typer(people.app)
app.add_typer(rehearse.app, name="rehearse")
app.add_typer(report.app)
app.add_typer(data.app, name="data")
app.add_typer(upkeep.app)
app.add_typer(world.app, name="miniworld")


def main() -> None:
    """Entry point."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without `±` still shows the rest
    try:
        app()
    except SystemExit as end:
        _leave(end)


def _leave(end: SystemExit) -> NoReturn:
    """End the process; past this point, threads of torch or arrow could still abort it."""
    if "torch" not in sys.modules or not isinstance(end.code, int):
        raise end
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    base.end(end.code)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"selfcal {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Self-calibration for vision-language models: right answers for right reasons."""
