"""A model and a benchmark's file in, its figures out: what `selfcal eval` does.

The model responds on the search's engine, greedily; its texts are kept as they come, so that a
stopped evaluation goes on. Reading answers, grading and the benchmark's figures are then made anew,
from all texts; so is nothing of what a marker was asked.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfcal.errors import SelfcalError
from selfcal.stopping import heed
from selfcal.store import JSON, file_digest, tree_digest, write_json

if TYPE_CHECKING:
    from selfcal.evaluate.benchmark import Figure, Objects, Prediction
    from selfcal.evaluate.marking import Mark
    from selfcal.evaluate.predict import Text
    from selfcal.recipe import Marker, Recipe
    from selfcal.types import Sample

Metric = Literal["auto", "accuracy", "pope", "chair", "chartqa", "hallusionbench"]
RESULTS = "results.json"
_BY_NAME: Mapping[str, Metric] = {
    "chartqa": "chartqa", "pope": "pope", "hallusion": "hallusionbench",
}  # fmt: skip
_MARKS = 50
"""Responses whose marks are written at once."""
Progress = Callable[[str, int, int], None]
"""Told what is being done, how far it is, and of how much."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be evaluated, and how."""

    model: str
    """A folder, a hub name, `miniworld:NAME`, or a run, whose last checkpoint it is."""
    data: Path
    out: Path | None = None
    """Folder of predictions; None: `eval/MODEL-DATA`."""
    split: str | None = None
    """Of a folder that has a file for each split."""
    limit: int | None = None
    prompt: str | None = None
    """Around a question (`{question}`), or after it; None: the question as it is."""
    form: str | None = None
    """Of responses, for compliance; None: that of the model's run, or `headings`."""
    metric: Metric = "auto"
    objects: Path | None = None
    """Objects and synonyms, for CHAIR."""
    max_new_tokens: int = 1024
    batch_size: int = 64
    dtype: str | None = None
    """None: that of the model's run, or `float32` on a CPU and `bfloat16` elsewhere."""
    device: str = "auto"
    trust_remote_code: bool = False
    marker: Marker | None = None
    images: Path | None = None
    """Folder that image paths are below; None: that of the file."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The column of each field that is called otherwise."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What came out."""

    out: Path
    metric: Metric
    figures: Sequence[Figure]
    predictions: Sequence[Prediction]
    drops: Mapping[str, int]
    """Rows of the file that could not be used, by reason."""
    about: Mapping[str, JSON] = field(default_factory=dict)
    """What the predictions are of."""


def evaluate_model(
    wanted: Wanted, progress: Progress = lambda what, done, total: None
) -> Evaluated:
    """Let a model answer a benchmark's questions, or go on with it, and measure.

    Raises:
        SelfcalError: model or data cannot be used, or the folder has another model's predictions.
    """
    from selfcal.data import open_data
    from selfcal.evaluate.predict import (
        PREDICTIONS,
        graded,
        pin,
        read_questions,
        respond_all,
        write_predictions,
    )
    from selfcal.evaluate.score import exactly, relaxed
    from selfcal.rationale import FORMATS

    model, recipe = find_model(wanted.model)
    data = _data_file(wanted.data, wanted.split)
    out = wanted.out or Path("eval") / f"{_short(wanted.model)}-{data.stem}"
    objects = _objects(wanted)
    about = _about(wanted, model, recipe, data)
    pin(out, about)
    file = open_data(data, wanted.images, wanted.columns)
    samples, drops = read_questions(file, (out / "images").resolve(), wanted.limit)
    metric = _metric(wanted, data, samples)
    texts = respond_all(
        samples, _replies(wanted, model, recipe, str(about["dtype"])), out, wanted.prompt,
        lambda done, total: progress("responses", done, total),
    )  # fmt: skip
    form = FORMATS[wanted.form or (recipe.format if recipe else "headings")]
    predictions = graded(samples, texts, relaxed if metric == "chartqa" else exactly, form)
    write_predictions(out / PREDICTIONS, predictions)
    figures = _figures(metric, predictions, objects)
    if wanted.marker is not None:
        marks = _marks(wanted.marker, samples, texts, out, wanted.device, progress)
        figures += _estimates(predictions, marks)
    reasons = dict(Counter(d.reason for d in drops))
    found = Evaluated(out, metric, figures, predictions, reasons, about)
    write_json(out / RESULTS, as_json(found))
    return found


def find_model(name: str) -> tuple[str, Recipe | None]:
    """Where a model lies, and the recipe of the run that made it, if it lies in one.

    A run is its last finished checkpoint; a folder of one is that checkpoint.

    Raises:
        SelfcalError: it is a run without any checkpoint yet.
    """
    from selfcal import pipeline

    folder = Path(name)
    if not folder.is_dir() or (folder / "config.json").exists():
        run = _run_of(folder) if folder.is_dir() else None
        return name, pipeline.open_run(run) if run else None
    if (folder / pipeline.RECIPE_FILE).exists():
        recipe = pipeline.open_run(folder)
        done = [p.folder for p in pipeline.locate(recipe, folder) if p.folder.done]
        kept = [f.path / "checkpoint" for f in done if (f.path / "checkpoint").is_dir()]
        if not kept:
            raise SelfcalError(f"{name}: this run has no finished checkpoint yet; go on with it")
        return str(kept[-1]), recipe
    own = [p for p in (folder, *sorted(folder.iterdir())) if (p / "checkpoint").is_dir()]
    if len(own) == 1:
        return find_model(str(own[0] / "checkpoint"))
    return name, None


def _run_of(folder: Path) -> Path | None:
    """The run that a checkpoint lies in."""
    from selfcal.pipeline import RECIPE_FILE

    return next((p for p in folder.resolve().parents if (p / RECIPE_FILE).exists()), None)


def _short(model: str) -> str:
    """A model's name, fit for a folder."""
    parts = [p for p in model.replace(":", "/").split("/") if p not in ("", ".", "..")]
    return "-".join(parts[-2:]) or "model"


def _data_file(path: Path, split: str | None) -> Path:
    from selfcal.data import split_files

    if split is None:
        return path
    found = split_files(path) if path.is_dir() else {}
    if split not in found:
        have = ", ".join(found) or "none"
        raise SelfcalError(
            f"--split {split}: {path} has no file of that name (it has: {have}); leave --split "
            "out to evaluate on the whole of --data"
        )
    return found[split]


def _objects(wanted: Wanted) -> Objects | None:
    from selfcal.evaluate.benchmark import read_objects

    if wanted.metric == "chair" and wanted.objects is None:
        raise SelfcalError("--metric chair: needs --objects, a file of object names and synonyms")
    return read_objects(wanted.objects) if wanted.objects else None


def _about(wanted: Wanted, model: str, recipe: Recipe | None, data: Path) -> dict[str, JSON]:
    """What responses depend on."""
    from selfcal.policy import model_digest, pick_device

    on_cpu = pick_device(wanted.device) == "cpu"
    usual = recipe.policy.dtype if recipe else ("float32" if on_cpu else "bfloat16")
    return {
        "model": wanted.model if model == wanted.model else model,
        "digest": model_digest(model),
        "data": data.name,
        "data_digest": tree_digest(data) if data.is_dir() else file_digest(data),
        "prompt": wanted.prompt,
        "max_new_tokens": wanted.max_new_tokens,
        "dtype": wanted.dtype or usual,
    }


def _metric(wanted: Wanted, data: Path, samples: Sequence[Sample]) -> Metric:
    """The metric asked for; `auto` goes by the file's name, and by whether its rows fit."""
    from selfcal.evaluate.benchmark import has_figures

    if wanted.metric != "auto":
        return wanted.metric
    if wanted.objects is not None:
        return "chair"
    named = next((m for n, m in _BY_NAME.items() if n in data.name.lower()), None)
    polar = all(s.answer.lower() in ("yes", "no") for s in samples)
    fits = {
        "chartqa": True, "pope": polar, "hallusionbench": has_figures(s.id for s in samples),
    }  # fmt: skip
    return named if named and fits[named] else "accuracy"


def _replies(wanted: Wanted, model: str, recipe: Recipe | None, dtype: str) -> Any:
    """What responds; the model is loaded when the first response is wanted."""

    def reply(samples: Iterator[Sample]) -> Iterator[tuple[str, bool]]:
        from selfcal.policy import load_policy
        from selfcal.search import Limits, respond_ended

        own = recipe.policy if recipe else None
        policy = load_policy(
            model, dtype, wanted.device, wanted.trust_remote_code,
            own.attention if own else None, own.chat_template if own else None,
        )  # fmt: skip
        yield from respond_ended(policy, samples, wanted.max_new_tokens, Limits(wanted.batch_size))

    return reply


def _figures(
    metric: Metric, predictions: Sequence[Prediction], objects: Objects | None
) -> list[Figure]:
    from selfcal.evaluate import benchmark

    if metric == "chair":
        assert objects is not None, "read before the model was asked"
        return benchmark.chair(predictions, objects)
    accuracy = "relaxed_accuracy" if metric == "chartqa" else "accuracy"
    found = benchmark.overall(predictions, accuracy)
    if metric == "pope":
        return benchmark.pope(predictions) + found
    if metric == "hallusionbench":
        return benchmark.hallusionbench(predictions) + found
    return found


# --- marks ------------------------------------------------------------------------------------


def _marks(
    settings: Marker, samples: Sequence[Sample], texts: Sequence[Text], out: Path, device: str,
    progress: Progress,
) -> list[Mark]:  # fmt: skip
    """Marks of all responses, in their order; those that are there already are kept."""
    from selfcal.evaluate.marking import Mark, mark_all
    from selfcal.evaluate.predict import add_rows, pin, read_rows
    from selfcal.methods.parts.marks import at_once, marker_for, what_marks

    folder = out / "marks"
    pin(folder, what_marks(settings))
    rows = [(row["sample_id"], row["forward"], row["backward"]) for row in read_rows(folder)]
    known = {name: Mark(name, tuple(one), tuple(other)) for name, one, other in rows}
    left = [(s, t.text) for s, t in zip(samples, texts, strict=True) if s.id not in known]
    progress("marks", len(samples) - len(left), len(samples))
    if left:
        with marker_for(settings, device=device) as marker:
            for i in range(0, len(left), _MARKS):
                marks = list(mark_all(marker, left[i : i + _MARKS], at_once(settings)))
                add_rows(folder, map(dataclasses.asdict, marks))
                known |= {m.sample_id: m for m in marks}
                heed()
                progress("marks", len(samples) - len(left) + i + len(marks), len(samples))
    return [known[s.id] for s in samples]


def _estimates(predictions: Sequence[Prediction], marks: Sequence[Mark]) -> list[Figure]:
    from selfcal.evaluate.benchmark import Figure, by_category
    from selfcal.evaluate.marking import estimates

    mark = {m.sample_id: m for m in marks}
    return [
        Figure(name, group, number, error, n)
        for group, own in by_category(predictions).items()
        for name, number, error, n in estimates((p.correct, mark[p.id]) for p in own)
    ]


def as_json(found: Evaluated) -> dict[str, JSON]:
    """All figures for `results.json`; what is not a number is null."""
    from selfcal.evaluate.benchmark import finite

    rows: list[JSON] = [
        dataclasses.asdict(f) | {"value": finite(f.value), "stderr": finite(f.stderr)}
        for f in found.figures
    ]
    return {
        **found.about,
        "metric": found.metric,
        "n": len(found.predictions),
        "drops": dict(found.drops),
        "figures": rows,
    }
