"""The commands of selfcal. Thin: arguments in, one call into the package, exit code out.

Everything heavy is imported inside the commands, so that `selfcal --help` is there at once.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from selfcal import __version__
from selfcal.errors import SelfcalError

if TYPE_CHECKING:
    from selfcal.recipe import Recipe


class _Commands(TyperGroup):
    """Says selfcal's own errors in one line; all others keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SelfcalError as error:
            from selfcal.view.text import console, safe

            text = f"error: {safe(str(error), lines=True)}"
            console(stderr=True).print(text, style="red", soft_wrap=True)
            raise typer.Exit(1) from error


_SETTINGS: dict[str, Any] = {
    "cls": _Commands,
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "rich",
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100},
}


def _examples(*commands: str) -> str:
    """Commands to copy, below a help text."""
    return "\n\n".join(f"[dim]$[/dim] selfcal {command}" for command in commands)


app = typer.Typer(**_SETTINGS, epilog=_examples("run recipes/miniworld-src.yaml --out runs/demo"))
miniworld = typer.Typer(**_SETTINGS, help="The built-in world: its data, its models, its verifier.")
app.add_typer(miniworld, name="miniworld")

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).", show_default=False)
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as dpo.beta=0.2."),
]


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
    _end(end.code)


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


# --- runs -----------------------------------------------------------------------------------


@app.command(
    epilog=_examples(
        "run recipes/miniworld-src.yaml --out runs/demo",
        "run recipes/miniworld-src.yaml --out runs/seed-1 --set seed=1 --reuse runs/demo",
        "run --out runs/demo",
    )
)
def run(
    out: Annotated[
        Path, typer.Option("--out", metavar="RUN", help="Folder of the run.", show_default=False)
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
        typer.Option("--reuse", metavar="RUN", help="Take over equal stages from this run."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write and show where the time of each stage went.")
    ] = False,
) -> None:
    """Run a recipe, or go on with it where it was left."""
    from selfcal import pipeline
    from selfcal.view.plan import title
    from selfcal.view.progress import progress
    from selfcal.view.quiet import quiet
    from selfcal.view.status import command
    from selfcal.view.text import console, heading, safe

    settings = pipeline.pin(_recipe_for(recipe, out, overrides or []))
    others = [_a_run(other) for other in reuse or []]
    planned = pipeline.locate(settings, out)
    screen = console()
    screen.print(heading(title(settings)))
    if done := sum(p.folder.done for p in planned):
        screen.print(f"{done} of {len(planned)} stages were finished before.")
    again: list[object] = ["run", *([recipe] if recipe else []), "--out", out]
    again += [word for text in overrides or [] for word in ("--set", text)]
    again += [word for other in others for word in ("--reuse", other)]
    again += ["--profile"] if profile else []
    with (
        quiet(settings),
        progress(screen, settings, planned) as tell,
        _stoppable(safe(command(*again)), tell.close),
    ):
        pipeline.execute(settings, out, tell, others, profile)
    _show_end(out)
    if profile:
        from selfcal.view.profile import show_profile

        show_profile(screen, out)


def _recipe_for(recipe: Path | None, out: Path, overrides: Sequence[str]) -> Recipe:
    from selfcal import pipeline
    from selfcal.recipe import load_recipe

    if recipe is not None:
        return load_recipe(recipe, overrides)
    if overrides:
        raise SelfcalError("--set changes a recipe: give the recipe file, too")
    if not (out / pipeline.RECIPE_FILE).exists():
        raise SelfcalError(f"{out} is no run that could go on: give a recipe file, too")
    return pipeline.open_run(out)


def _a_run(folder: Path) -> Path:
    from selfcal.pipeline import RECIPE_FILE

    if not (folder / RECIPE_FILE).exists():
        raise SelfcalError(f"--reuse {folder}: is no run of selfcal, it has no {RECIPE_FILE}")
    return folder


@contextmanager
def _stoppable(command: str, close: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run with the command that goes on with it.

    The process is ended on the spot, not by an exception: one that comes up inside of torch's C++
    aborts. Nothing is lost, as all that is written is written atomically.
    """
    said = f"Stopped; what is finished is kept. Go on with:\n  {command}\n"

    def stop(number: int, frame: object) -> None:
        with suppress(Exception):
            close()
        os.write(2, said.encode(errors="replace"))
        _end(130)

    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:  # raised by a library
        typer.echo(said, err=True, nl=False)
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_end = os._exit


def _show_end(run: Path) -> None:
    from selfcal import pipeline
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
    looks = f"{command('results', run)}, {command('trace', run, sample_id)}"
    screen.print(f"The run lies in {run}. Look at it: {looks}", soft_wrap=True)


@app.command(epilog=_examples("plan recipes/miniworld-src.yaml --set iterations=1"))
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="Also say what this run has.")
    ] = None,
) -> None:
    """Show a recipe's stages and rough cost; nothing is run."""
    from selfcal import pipeline
    from selfcal.recipe import load_recipe
    from selfcal.view.plan import show_plan
    from selfcal.view.text import console

    settings = pipeline.pin(load_recipe(recipe, overrides or []))
    planned = pipeline.locate(settings, out or Path())
    show_plan(console(), settings, planned, str(out) if out else "")


@app.command()
def status(run: Run) -> None:
    """Show where a run stands, and what to do next."""
    from selfcal.view.status import show_status
    from selfcal.view.text import console

    show_status(console(), run)


@app.command(epilog=_examples("results runs/demo", "results runs/demo --json --split all"))
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
        console().print(f"Nothing was measured yet; see {command('status', run)}", soft_wrap=True)


@app.command(epilog=_examples("trace runs/demo calibration-00007"))
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


# --- MiniWorld ------------------------------------------------------------------------------

Seed = Annotated[int, typer.Option(help="Another seed, another world.")]


@miniworld.command(epilog=_examples("miniworld build data/mini --size test=200 --size dev=100"))
def build(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder.", show_default=False)],
    seed: Seed = 0,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="SPLIT=N", help="Samples of a split; 0 leaves it out."),
    ] = None,
) -> None:
    """Write MiniWorld's samples and images, the same for the same seed."""
    from selfcal.miniworld import build as world
    from selfcal.view.text import console
    from selfcal.view.world import read_sizes

    sizes = {s: n for s, n in (world.SIZES | read_sizes(size or [])).items() if n}
    there = {split for split in sizes if (out / f"{split}.jsonl").exists()}
    try:
        world.build(out, sizes, seed)
    except OSError as error:
        raise SelfcalError(f"{out}: cannot be written ({error}); give another folder") from error
    for split, n in sizes.items():
        file = out / f"{split}.jsonl"
        said = "was there, left as it is" if split in there else f"{n:,} samples"
        console().print(f"{file}  {said}", soft_wrap=True)


@miniworld.command(epilog=_examples("miniworld train build/models --only mini-judge"))
def train(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder.", show_default=False)],
    only: Annotated[
        Literal["mini-llava", "mini-judge"] | None, typer.Option(help="Train just this one.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Train the small models from scratch; about an hour each on one core."""
    from selfcal.miniworld.judge_model import train_judge
    from selfcal.miniworld.seed_model import train_llava

    if only != "mini-judge":
        train_llava(out, seed)
    if only != "mini-llava":
        train_judge(out, seed)


@miniworld.command(
    no_args_is_help=True,
    epilog=_examples(
        "miniworld verify --data data/mini/test.jsonl --id test-00000 --response -",
        "miniworld verify --question 'Add the digits.' --facts 'left digit: 2; right digit: 3' "
        "--response 'Rationale: The left digit is 2. So it is 2. Answer: 2'",
    ),
)
def verify(
    response: Annotated[
        str, typer.Option(help="What a model said; - reads it from standard input.")
    ],
    question: Annotated[str | None, typer.Option(help="With --facts: any sample.")] = None,
    facts: Annotated[str | None, typer.Option(help="What is to be seen.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="With --id: a sample of this file.")
    ] = None,
    sample_id: Annotated[str | None, typer.Option("--id", help="The sample's id.")] = None,
) -> None:
    """Read a rationale sentence by sentence and say what is wrong with it."""
    from selfcal.types import Sample
    from selfcal.view.text import console
    from selfcal.view.world import find_sample, show_verification

    if data is not None and sample_id is not None and question is None and facts is None:
        sample = find_sample(data, sample_id)
    elif question is not None and facts is not None and data is None and sample_id is None:
        sample = Sample("", "", question, "", facts=facts)
    else:
        raise SelfcalError("give either --question and --facts, or --data and --id")
    text = sys.stdin.read() if response == "-" else response
    show_verification(console(), sample, text)


if __name__ == "__main__":
    main()
