"""Commands that look after a run: verify and gc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfcal.cli.base import SETTINGS, a_run, examples

app = typer.Typer(**SETTINGS)


@app.command(epilog=examples("verify runs/demo", "verify runs/demo --json"))
def verify(
    run: Annotated[Path, a_run("all")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Check every checksum, record, fingerprint and reference of a run; exit 1 if any is wrong.

    Nothing is written.
    """
    from selfcal.upkeep.verify import verify_run
    from selfcal.view.text import console, safe
    from selfcal.view.upkeep import show_verified, verified_as_json

    with console(stderr=True).status("verifying") as at:
        found = verify_run(run, lambda stage: at.update(f"verifying {safe(stage)}"))
    if as_json:
        typer.echo(verified_as_json(found))
    else:
        show_verified(console(), run, found)
    if not found.sound:
        raise typer.Exit(1)


@app.command(epilog=examples("gc runs/demo", "gc runs/demo --checkpoints --apply"))
def gc(
    run: Annotated[Path, a_run("sizes")],
    apply: Annotated[bool, typer.Option("--apply", help="Delete; without it, just say.")] = False,
    checkpoints: Annotated[
        bool,
        typer.Option("--checkpoints", help="Merged checkpoints before the last one, too."),
    ] = False,
) -> None:
    """Free what nothing needs: what kills left, what was set aside, trainers' own state."""
    from selfcal.upkeep.gc import find_items, free
    from selfcal.view.status import command
    from selfcal.view.text import console, safe
    from selfcal.view.upkeep import show_freed

    items = (free if apply else find_items)(run, checkpoints)
    words = ["gc", run, *(["--checkpoints"] if checkpoints else []), "--apply"]
    show_freed(console(), run, items, apply, safe(command(*words)))
