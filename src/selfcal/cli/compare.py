"""The command that compares recipes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from selfcal.cli.base import SETTINGS, Overrides, examples, here, stoppable
from selfcal.errors import SelfcalError

if TYPE_CHECKING:
    from selfcal.compare.report import Comparison
    from selfcal.compare.runs import Failure, Runner

app = typer.Typer(**SETTINGS)


@app.command(
    epilog=examples(
        "compare recipes/miniworld-src.yaml my.yaml --seeds 0,1,2,3,4 --out runs/compared",
        "compare a.yaml b.yaml c.yaml --seeds 0,1 --out runs/abc --baseline b --jobs 2 --threads 1",
    )
)
def compare(
    recipes: Annotated[
        list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of the comparison.",
            show_default=False,
            parser=here,
        ),
    ],
    seeds: Annotated[
        str, typer.Option(metavar="N,N,...", help="Seeds to run each with.", show_default=False)
    ],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Recipe to compare with; else the first one."),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(min=1, metavar="TOKENS", help="What calibration may generate in a run."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Seeds to run at the same time.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each run.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    split: Annotated[Literal["test", "dev"], typer.Option(help="Samples to compare on.")] = "test",
) -> None:
    """Run recipes with the same seeds, and compare what they are worth and cost.

    The same command again goes on where it was left; what is finished is not repeated.
    """
    from selfcal.compare import runs
    from selfcal.lock import RunLock
    from selfcal.view.compare import progress, show_comparison
    from selfcal.view.text import console

    numbers = runs.read_seeds(seeds)
    changed = _changes(overrides or [], budget, threads)
    settings = runs.load_recipes(recipes, changed, split)
    base = runs.pick_baseline(baseline, settings)
    place = runs.Place(out)
    place.check()
    runner = runs.Runner(place, settings, numbers, progress(console(), place))
    with RunLock(out), stoppable(shlex.join(["selfcal", *sys.argv[1:]]), runner.stop):
        failures = runner.carry_out(jobs)
        found = _compare(runner, base, split, failures)
    show_comparison(console(), found)
    console().print(f"All of this, and more, lies in {out}: {', '.join(FILES)}", soft_wrap=True)
    if failures:
        raise typer.Exit(1)


FILES = ("compare.html", "compare.md", "compare.json", "figures")


def _changes(overrides: Sequence[str], budget: int | None, threads: int | None) -> list[str]:
    """What is changed in every recipe."""
    if any(text.partition("=")[0].strip() == "seed" for text in overrides):
        raise SelfcalError("--set seed=...: every recipe runs with the same seeds; give --seeds")
    given = {"budget": budget, "threads": threads}
    return [*overrides, *(f"{key}={n}" for key, n in given.items() if n is not None)]


def _compare(runner: Runner, baseline: str, split: str, failures: Sequence[Failure]) -> Comparison:
    """Compare what is finished, and write it."""
    from selfcal.compare.collect import read_outcomes
    from selfcal.compare.report import as_json, compare
    from selfcal.report.comparison import write_comparison
    from selfcal.store import write_json
    from selfcal.view.compare import write_markdown
    from selfcal.view.figures import write_figures

    out, names = runner.place.out, [r.name for r in runner.recipes]
    outcomes = read_outcomes(runner.place, runner.recipes, runner.seeds, split)
    found = compare(outcomes, names, baseline, split, failures)
    page, markdown, data, figures = (out / name for name in FILES)
    write_json(data, as_json(found))
    write_markdown(markdown, found, write_figures(figures, found))
    write_comparison(page, found, runner.place)
    return found
