"""The command that measures a model on a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from selfcal.cli.base import SETTINGS, examples, here, stoppable
from selfcal.errors import SelfcalError

if TYPE_CHECKING:
    from selfcal.recipe import Marker

app = typer.Typer(**SETTINGS)

_MARKING = "Marking (an estimate of how sound rationales are)"


@app.command(
    "eval",
    epilog=examples(
        "eval runs/demo --data MMStar.tsv",
        "eval Qwen/Qwen2.5-VL-3B-Instruct --data POPE.tsv --limit 500 --out eval/qwen-pope",
        "eval miniworld:mini-llava --data data/mini --split test",
        "eval runs/demo --data MMStar.tsv --marker endpoint --marker-model gpt-4o "
        "--marker-url https://api.openai.com/v1",
    ),
)
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A run (its last checkpoint; may be on a store), a folder, a hub name, or "
            "miniworld:NAME.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="FILE",
            show_default=False,
            help="VLMEvalKit's .tsv, or any other data file.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of predictions; eval/MODEL-DATA else.",
            parser=here,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of a --data folder with a file for each split.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The first N questions.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="After each question, or around its {question}."),
    ] = None,
    form: Annotated[
        Literal["headings", "xml", "think", "free"] | None,
        typer.Option("--format", help="Of responses, for compliance; the run's own else."),
    ] = None,
    metric: Annotated[
        Literal["auto", "accuracy", "pope", "chair", "chartqa", "hallusionbench"],
        typer.Option(help="The benchmark's own figures; auto goes by the file's name."),
    ] = "auto",
    objects: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CHAIR's objects, a line each: name, synonym, ..."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder that image paths are below.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns", metavar="FIELD=COLUMN", help="A column that is called otherwise."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses at once, at most.")] = 64,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option(help="Of the weights.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes a GPU if any.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    marker: Annotated[
        Literal["endpoint", "local"] | None,
        typer.Option(help="Who marks rationales.", rich_help_panel=_MARKING),
    ] = None,
    marker_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its model.", rich_help_panel=_MARKING)
    ] = None,
    marker_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Of an endpoint, /v1.", rich_help_panel=_MARKING),
    ] = None,
    marker_key_env: Annotated[
        str, typer.Option(metavar="NAME", help="Variable with the key.", rich_help_panel=_MARKING)
    ] = "OPENAI_API_KEY",
    marker_blind: Annotated[
        bool,
        typer.Option(
            "--marker-blind",
            rich_help_panel=_MARKING,
            help="It reads the samples' facts and is shown no image.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Measure a model on a benchmark; run it again to go on where it was stopped."""
    import json
    import shlex
    import sys

    from selfcal.benchmarking import Wanted, evaluate_model
    from selfcal.benchmarking import as_json as whole
    from selfcal.view.evaluation import progress, show_evaluation
    from selfcal.view.quiet import quiet_with
    from selfcal.view.text import console

    model = _brought(model)
    marking = _marker(marker, marker_model, marker_url, marker_key_env, not marker_blind)
    wanted = Wanted(
        model, data, out, split, limit, prompt, form, metric, objects, max_new_tokens, batch_size,
        dtype, device, trust_remote_code, marking, images, _mapping(columns or []),
    )  # fmt: skip
    again = shlex.join(["selfcal", *sys.argv[1:]])
    local = [marker_model] if marker == "local" and marker_model else []
    with (
        quiet_with([model, *local]),
        progress(console(stderr=True)) as tell,
        stoppable(again, tell.close),
    ):
        found = evaluate_model(wanted, tell)
    if as_json:
        typer.echo(json.dumps(whole(found), indent=1, allow_nan=False))
    else:
        show_evaluation(console(), found)


def _brought(model: str) -> str:
    """A run on a store as a folder here, with its last finished checkpoint."""
    from selfcal.remote import is_address, look, place_of

    if not is_address(model):
        return model
    from selfcal.pipeline import locate, open_run

    run = look(model, "accounts")
    done = [p.folder for p in locate(open_run(run), run) if p.folder.done]
    trained = [f for f in done if any(n.startswith("checkpoint/") for n in f.manifest()["files"])]
    for folder in trained[-1:]:
        place_of(run).needs(folder)
    return str(run)


def _mapping(columns: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in columns]
    if bad := next((text for text, pair in zip(columns, pairs, strict=True) if not pair[2]), None):
        raise SelfcalError(f"--columns {bad}: write FIELD=COLUMN, for example answer=label")
    return {field: column for field, _, column in pairs}


def _marker(
    kind: str | None, model: str | None, url: str | None, key_env: str, sees: bool
) -> Marker | None:
    from selfcal.recipe import EndpointMarker, LocalMarker

    if kind is None:
        if model or url:
            raise SelfcalError("--marker-model and --marker-url are for --marker: give it, too")
        return None
    if not model:
        raise SelfcalError(f"--marker {kind}: give its model, too, by --marker-model")
    if kind == "local":
        return LocalMarker(model=model, sees=sees)
    server = EndpointMarker(model=model, api_key_env=key_env, sees=sees)
    return server.model_copy(update={"base_url": url}) if url else server
