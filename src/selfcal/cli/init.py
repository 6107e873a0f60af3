"""The command that drafts a first recipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfcal.cli.base import SETTINGS, examples
from selfcal.errors import SelfcalError

if TYPE_CHECKING:
    from selfcal.data import DataFile

app = typer.Typer(**SETTINGS)


@app.command(
    epilog=examples(
        "init my-run",
        "init my-run --model Qwen/Qwen2.5-VL-7B-Instruct --data photos/questions.jsonl "
        "--teacher http://127.0.0.1:8000/v1 --teacher-model Qwen/Qwen2-VL-72B-Instruct",
        "init my-run --model MODEL --data FOLDER --method csr",
    )
)
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Writes NAME.yaml.")],
    model: Annotated[
        str | None, typer.Option(help="The model to calibrate: a folder, or a name on the hub.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A data file, or a folder with a file for each split.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="`src` or `csr`.")] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Who writes rationales: a server's URL, a model, or a file of them."),
    ] = None,
    teacher_model: Annotated[str | None, typer.Option(help="The model on that server.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Who labels pairs for the judge: a URL or a model; else the teacher."),
    ] = None,
    labels_model: Annotated[str | None, typer.Option(help="The model on that server.")] = None,
    judge: Annotated[
        str, typer.Option(help="The text model that becomes the judge.")
    ] = "Qwen/Qwen2.5-1.5B-Instruct",
    clip: Annotated[
        str, typer.Option(help="The CLIP model that csr rewards sentences by.")
    ] = "openai/clip-vit-large-patch14-336",
    form: Annotated[
        str, typer.Option("--format", help="How rationale and answer stand in a response.")
    ] = "headings",
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The GPU it will run on; else what is here."),
    ] = None,
) -> None:
    """Draft a recipe for your own model and data.

    Asks for what is not given, where there is somebody to ask.
    """
    from selfcal.cost.machine import machine
    from selfcal.draft import METHODS, Answers, draft
    from selfcal.view.text import console, safe

    out = Path(f"{name}.yaml")
    if out.exists():
        raise SelfcalError(f"{out} is there already; give another name, or delete it")
    asks = _Asks(sys.stdin.isatty())
    model = asks.of("--model", model, "The model to calibrate (a folder, or a name on the hub)")
    path = Path(asks.of("--data", str(data) if data else None, "Your data (a file or a folder)"))
    rows, prompts = _rows(path)
    method = method or asks.choice("How is it calibrated", METHODS)
    if method not in METHODS:
        raise SelfcalError(
            f"--method {method}: init drafts {' and '.join(METHODS)}; for other methods take a "
            "recipe of recipes/ as the `base` of yours"
        )
    src = method == "src" and not prompts  # prompts are refused by `draft`: nothing need be asked
    teaches = _teacher(asks, teacher, teacher_model) if src else None
    judges = _labels(asks, labels, labels_model, teaches) if teaches else None
    answers = Answers(
        Path(name).name, model, str(path), rows, method, form, teaches, judges, judge, clip, prompts
    )
    on = machine(gpu)
    text = draft(answers, on)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    said = ", ".join(f"{n:,} {'rows' if s == 'all' else s}" for s, n in rows.items())
    screen = console()
    screen.print(f"Wrote {safe(str(out))} for {said} on {on.name}.")
    screen.print("Read it, and then:")
    for command in (f"data check {path}", f"plan {out}", f"run {out} --out runs/{answers.name}"):
        screen.print(f"  selfcal {safe(command)}", soft_wrap=True)


@dataclass(frozen=True)
class _Asks:
    """Questions to a person, if there is one."""

    person: bool

    def of(self, flag: str, given: str | None, question: str) -> str:
        """What was given, or what the person says."""
        if given:
            return given
        if not self.person:
            raise SelfcalError(f"{flag} is missing, and there is nobody to ask; give it")
        return str(typer.prompt(question)).strip()

    def choice(self, question: str, known: dict[str, str]) -> str:
        """One of several names; the first one where there is nobody to ask."""
        first = next(iter(known))
        if not self.person:
            return first
        for name, meaning in known.items():
            typer.echo(f"  {name}: {meaning}")
        return str(typer.prompt(question, default=first)).strip()


def _teacher(asks: _Asks, who: str | None, model: str | None) -> dict[str, str]:
    """Settings of the teacher."""
    question = "Who writes the rationales (a server's URL, a model, or a file of rationales)"
    who = asks.of("--teacher", who, question)
    return _settings(who, lambda: asks.of("--teacher-model", model, "Its model"))


def _labels(
    asks: _Asks, who: str | None, model: str | None, teacher: dict[str, str]
) -> dict[str, str]:
    """Settings of the label giver: the teacher's, if nobody else is named and it can be asked."""
    if who is None and teacher["kind"] != "file":
        return teacher
    who = asks.of("--labels", who, "Who labels pairs for the judge (a URL or a model)")
    return _settings(who, lambda: asks.of("--labels-model", model, "Its model"))


def _settings(who: str, model: Callable[[], str]) -> dict[str, str]:
    """A server by its URL, a file by its ending, else a model on this machine."""
    if who.startswith(("http://", "https://")):
        return {"kind": "endpoint", "base_url": who, "model": model()}
    if _is_file(who):
        return {"kind": "file", "path": who}
    return {"kind": "local", "model": who}


def _is_file(who: str) -> bool:
    return who.endswith((".jsonl", ".parquet"))


def _rows(path: Path) -> tuple[dict[str, int], bool]:
    """Rows of the data, by split where each has its own file; whether they are prompts alone."""
    from selfcal.data import open_data, split_files

    if path.is_dir() and (files := split_files(path)):
        return {split: _usable(open_data(f)) for split, f in files.items()}, False
    file = open_data(path)
    return {"all": _usable(file)}, not file.answered


def _usable(file: DataFile) -> int:
    """Rows of a file but for those that its reader leaves out, such as later turns."""
    return sum(1 for row in file.rows() if not row.left_out)
