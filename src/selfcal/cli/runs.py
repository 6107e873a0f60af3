"""Commands on runs: run, plan, status, results, trace; and doctor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from selfcal.cli.base import (
    SETTINGS,
    Overrides,
    RecipeFile,
    Run,
    a_run,
    accounts,
    accounts_if_any,
    examples,
    stoppable,
    working,
)
from selfcal.errors import SelfcalError

if TYPE_CHECKING:
    from rich.console import Console

    from selfcal.planning import Planned
    from selfcal.recipe import Recipe

app = typer.Typer(**SETTINGS)


@app.command(
    epilog=examples(
        "run recipes/miniworld-src.yaml --out runs/demo",
        "run recipes/miniworld-src.yaml --out runs/seed-1 --set seed=1 --reuse runs/demo",
        "run --out runs/demo",
    )
)
def run(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="RUN",
            help="Folder of the run, or its address on a store (s3://BUCKET/runs/NAME).",
            show_default=False,
            parser=working,
        ),
    ],
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="RECIPE", help="Recipe file (YAML); without it, go on with a run as it is."
        ),
    ] = None,
    overrides: Overrides = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            "--reuse", metavar="RUN", help="Take over equal stages from this run.", parser=accounts
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write and show where the time of each stage went.")
    ] = False,
) -> None:
    """Run a recipe, or go on with it where it was left."""
    from selfcal import pipeline
    from selfcal.view.progress import progress
    from selfcal.view.quiet import quiet
    from selfcal.view.status import command
    from selfcal.view.text import console, safe

    settings = pipeline.pin(_recipe_for(recipe, out, overrides or []))
    others = [_a_run(other) for other in reuse or []]
    screen, planned = console(), pipeline.locate(settings, out)
    _say_what_begins(screen, settings, planned)
    again = _words(recipe, out, {"--set": overrides or [], "--reuse": others}, profile)
    with (
        quiet(settings),
        progress(screen, settings, planned) as tell,
        stoppable(safe(command(*again)), tell.close),
    ):
        _say_who_holds(screen, out)
        pipeline.execute(settings, out, tell, others, profile)
    _show_end(out, profile)


def _words(
    recipe: Path | None, out: Path, many: Mapping[str, Sequence[object]], profile: bool
) -> list[object]:
    """The words of the command that goes on with the run; `many`: options and their values."""
    words: list[object] = ["run", *([recipe] if recipe else []), "--out", out]
    words += [word for name, values in many.items() for value in values for word in (name, value)]
    return words + (["--profile"] if profile else [])


def _say_what_begins(screen: Console, settings: Recipe, planned: Sequence[Planned]) -> None:
    from selfcal.view.plan import show_warnings, title, who
    from selfcal.view.text import heading, safe

    screen.print(heading(title(settings)))
    for line in who(settings, [p.stage for p in planned]):
        screen.print(safe(line), soft_wrap=True)
    if done := sum(p.folder.done for p in planned):
        screen.print(f"{done} of {len(planned)} stages were finished before.")
    show_warnings(screen, settings, planned)


def _say_who_holds(screen: Console, out: Path) -> None:
    """Say why a run on a store may begin with a minute of waiting."""
    from selfcal.lock import lock_holder
    from selfcal.remote import mirror_of
    from selfcal.view.text import safe

    if mirror_of(out) is not None and (holder := lock_holder(out)):
        screen.print(
            f"It is held by {safe(holder)}: waiting for up to a minute, to see whether that works.",
            soft_wrap=True,
        )


def _recipe_for(recipe: Path | None, out: Path, overrides: Sequence[str]) -> Recipe:
    from selfcal import pipeline
    from selfcal.recipe import load_recipe

    if recipe is not None:
        return load_recipe(recipe, overrides)
    if overrides:
        raise SelfcalError("--set changes a recipe: give the recipe file, too")
    if not (out / pipeline.RECIPE_FILE).exists():
        from selfcal.remote import shown

        raise SelfcalError(f"{shown(out)} is no run that could go on: give a recipe file, too")
    return pipeline.open_run(out)


def _a_run(folder: Path) -> Path:
    from selfcal.pipeline import RECIPE_FILE

    if not (folder / RECIPE_FILE).exists():
        raise SelfcalError(f"--reuse {folder}: is no run of selfcal, it has no {RECIPE_FILE}")
    return folder


def _show_end(run: Path, profile: bool) -> None:
    from selfcal import pipeline
    from selfcal.remote import shown
    from selfcal.types import Sample
    from selfcal.view.results import show_results
    from selfcal.view.status import command
    from selfcal.view.text import console

    screen = console()
    screen.print()
    recipe, found = pipeline.open_run(run), pipeline.results(run)
    if found:
        splits = {r.split for r in found}
        show_results(screen, found, ["test"] if "test" in splits else sorted(splits))
    data = {p.stage.name: p.folder for p in pipeline.locate(recipe, run)}.get("data")
    example = data.read("calibration", Sample)[:1] if data and data.has("calibration", 0) else []
    sample_id = example[0].id if example else "SAMPLE_ID"
    looks = ", ".join(
        [command("report", run), command("results", run), command("trace", run, sample_id)]
    )
    screen.print(f"The run lies in {shown(run)}. Look at it: {looks}", soft_wrap=True)
    if profile:
        from selfcal.view.profile import show_profile

        show_profile(screen, run)


@app.command(
    epilog=examples(
        "plan recipes/miniworld-src.yaml --set iterations=1",
        "plan recipes/src-llava15-7b.yaml --gpu h100",
    )
)
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="RUN", help="Also say what this run has.", parser=accounts_if_any
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Plan for this GPU, such as h100, a100-80 or rtx4090."),
    ] = None,
) -> None:
    """Show a recipe's stages, and what they take: memory, disk, tokens, time; nothing is run.

    Ends with an error where a stage cannot fit.
    """
    from selfcal import pipeline
    from selfcal.cost.machine import machine
    from selfcal.recipe import load_recipe
    from selfcal.view.plan import show_plan
    from selfcal.view.text import console

    on = machine(gpu)
    settings = pipeline.pin(load_recipe(recipe, overrides or []))
    planned = pipeline.locate(settings, out or Path())
    if not show_plan(console(), settings, planned, str(out) if out else "", on):
        raise typer.Exit(1)


@app.command()
def status(run: Annotated[Path, a_run("accounts")]) -> None:
    """Show where a run stands, and what to do next."""
    from selfcal.view.status import show_status
    from selfcal.view.text import console

    show_status(console(), run)


@app.command(epilog=examples("results runs/demo", "results runs/demo --json --split all"))
def results(
    run: Run,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array instead.")] = False,
    split: Annotated[
        Literal["test", "dev", "all"], typer.Option(help="Which samples were measured.")
    ] = "test",
) -> None:
    """Show what was measured, for every checkpoint."""
    from selfcal import pipeline
    from selfcal.view import results as view
    from selfcal.view.status import command
    from selfcal.view.text import console

    splits = ["test", "dev"] if split == "all" else [split]
    found = [r for r in pipeline.results(run) if r.split in splits]
    if as_json:
        typer.echo(view.as_json(found))
    elif found:
        view.show_results(console(), found, splits)
    else:
        why = "yet" if pipeline.open_run(run).evaluate.splits else "(evaluate.splits is empty)"
        console().print(f"Nothing was measured {why}; see {command('status', run)}", soft_wrap=True)


@app.command(epilog=examples("trace runs/demo calibration-00007"))
def trace(
    run: Run,
    sample_id: Annotated[
        str, typer.Argument(metavar="SAMPLE_ID", help="Of any split.", show_default=False)
    ],
) -> None:
    """Follow one sample through a run: candidates, judgments, pair, responses."""
    from selfcal.view.text import console
    from selfcal.view.trace import show_trace

    show_trace(console(), run, sample_id)


@app.command()
def doctor() -> None:
    """Check what this machine has of what selfcal needs."""
    from selfcal.view.doctor import show_doctor
    from selfcal.view.text import console

    if not show_doctor(console(), Path()):
        raise typer.Exit(1)
