"""Commands for a dry run: a model of no use, and a server that makes its replies up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfcal.cli.base import SETTINGS, examples
from selfcal.errors import SelfcalError

app = typer.Typer(**SETTINGS, help="Stand-ins for model and teacher, for a dry run.")


@app.command(epilog=examples("rehearse model models/stand-in"))
def model(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder.", show_default=False)],
) -> None:
    """Write a tiny Qwen2-VL of random weights: real to load, search and train, good for nothing."""
    from selfcal.rehearsal.model import make_model
    from selfcal.view.quiet import quiet_with
    from selfcal.view.text import console, safe

    with quiet_with([]):
        make_model(out)
    console().print(f"Wrote a Qwen2-VL of random weights to {safe(str(out))}.", soft_wrap=True)


@app.command(epilog=examples("rehearse server --answers photos/questions.jsonl"))
def server(
    answers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Samples whose answers its rationales arrive at."),
    ] = None,
    port: Annotated[int, typer.Option(help="On this machine alone.")] = 8000,
) -> None:
    """Answer as a teacher and label giver would, with made-up replies, until it is stopped."""
    from selfcal.data import read_samples
    from selfcal.rehearsal.server import NAME, answers_of, serve
    from selfcal.view.text import console

    known = answers_of(read_samples(answers)[0]) if answers else {}
    try:
        running = serve("127.0.0.1", port, known)
    except OSError as error:
        raise SelfcalError(f"port {port}: {error}; give another one with --port") from error
    console().print(
        f"Model {NAME!r} on http://127.0.0.1:{running.server_port}/v1; end it with Ctrl-C.",
        soft_wrap=True,
    )
    try:
        running.serve_forever()
    except KeyboardInterrupt:
        running.server_close()
