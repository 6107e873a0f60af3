"""The command that makes a run's data another tool's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from selfcal.cli.base import SETTINGS, a_run, examples, here
from selfcal.errors import SelfcalError

app = typer.Typer(**SETTINGS)

Tool = Literal["trl", "llamafactory", "swift", "llava"]


@app.command(
    epilog=examples(
        "export runs/demo --format trl --out data/pairs",
        "export runs/demo --format llamafactory --out data/pairs --iteration 3",
        "export runs/demo --format swift --out data/pairs --push-to-hub me/pairs --private",
    )
)
def export(
    run: Annotated[Path, a_run("images")],
    tool: Annotated[Tool, typer.Option("--format", help="Whose format.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="Folder to write.", show_default=False, parser=here
        ),
    ],
    iteration: Annotated[
        str, typer.Option(metavar="N|all", help="Whose pairs; all: of every finished iteration.")
    ] = "all",
    split: Annotated[
        Literal["pairs", "sft"],
        typer.Option(help="Preference pairs, or what the teacher wrote for fine-tuning."),
    ] = "pairs",
    images: Annotated[
        Literal["copy", "link", "path"],
        typer.Option(help="Copy images, link them, or leave them where they are."),
    ] = "copy",
    license: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Licence for the dataset card, such as cc-by-4.0."),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Also upload it as this dataset (USER/NAME)."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="For nobody else to see.")] = False,
) -> None:
    """Write a run's preference pairs, or its teacher's responses, for another tool."""
    from selfcal.export import Wanted, check_push, export_run, push
    from selfcal.view.export import show_export
    from selfcal.view.text import console, safe

    if private and not push_to_hub:
        raise SelfcalError("--private is for --push-to-hub: give it, too")
    if push_to_hub:
        check_push(push_to_hub, images)
    wanted = Wanted(split, _number(iteration), images, license)
    done = export_run(run, tool, out, wanted)
    screen = console()
    show_export(screen, done)
    if push_to_hub:
        address = push(done, push_to_hub, private)
        screen.print(f"Uploaded: {safe(address)}", soft_wrap=True)


def _number(iteration: str) -> int | None:
    if iteration == "all":
        return None
    if not iteration.isascii() or not iteration.isdigit() or int(iteration) < 1:
        raise SelfcalError(f"--iteration {iteration}: give a number from 1, or `all`")
    return int(iteration)
