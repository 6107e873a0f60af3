"""Commands on data files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from selfcal.cli.base import SETTINGS, examples

app = typer.Typer(**SETTINGS, help="Data of your own.")


@app.callback()
def _data() -> None:
    """Data of your own."""  # one command alone would else be the group itself


@app.command(
    no_args_is_help=True,
    epilog=examples(
        "data check train.json --images coco/train2017",
        "data check chartqa/ --columns question=query --columns answer=label",
        "data check MMBench_DEV_EN.tsv --json",
    ),
)
def check(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A data file, a dataset folder, or a folder with a file for each split.",
            show_default=False,
        ),
    ],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder that image paths are below.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=COLUMN", help="Column of a field, such as answer=label."),
    ] = None,
    turns: Annotated[
        Literal["first", "all"], typer.Option(help="Turns of a conversation that become samples.")
    ] = "first",
    min_side: Annotated[
        int, typer.Option(min=0, metavar="PIXELS", help="Least width and height of an image.")
    ] = 0,
    max_images: Annotated[
        int, typer.Option(min=1, metavar="N", help="Images that a sample may have.")
    ] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Say what is in your data, and what would be left out and why, before anything runs."""
    from selfcal.data import Rules
    from selfcal.data.report import inspect_data
    from selfcal.view.data import read_columns, show_data, show_data_json
    from selfcal.view.text import console

    rules = Rules(min_side, None, max_images)
    report = inspect_data(file, images, read_columns(columns or []), turns, rules)
    if as_json:
        show_data_json(report)
    else:
        show_data(console(), report)
    if not report.usable:
        raise typer.Exit(1)
