"""A run's record in, the values of `overview.html.j2` out: what was run, what came out, its price.

What the figures are is said by the modules that make them (`measures`, `training`, `judging`); here
they are put together, with what is missing where a run is not finished.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel

from selfcal import __version__
from selfcal.compare.collect import spent
from selfcal.recipe import Recipe
from selfcal.report import judging, measures, training
from selfcal.report.charts import NUMBERS, Chart, Charts, Look, Mark
from selfcal.report.record import Record
from selfcal.view.findings import NONE, TOO_FEW
from selfcal.view.status import begun, command, progress_on_disk
from selfcal.view.text import amount, duration, key_figures, large

_DIGEST = 12
"""Characters of a digest that are shown."""
_BARS = 20
"""Stages that the chart of times shows; the others are one bar together."""
_USAGE = ("requests", "prompt_tokens", "reply_tokens", "cached")
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://[^\s\"]+")


@dataclass(frozen=True, slots=True)
class Missing:
    """What an unfinished run has not done."""

    done: int
    of: int
    stages: tuple[str, ...]
    at_work: str
    """The process that works on it; empty: none."""
    command: str
    """What goes on with it."""


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage: how it stands, and its key figures."""

    name: str
    about: str
    state: str
    """`done`, `begun` or `open`."""
    time: str
    figures: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What the run took."""

    totals: tuple[tuple[str, str], ...]
    chart: Chart | None
    servers: tuple[tuple[str, ...], ...]
    """Stage, requests, tokens of prompts and of replies, replies out of the cache."""


def overview_context(record: Record) -> dict[str, Any]:
    """What `overview.html.j2` shows.

    Raises:
        SelfcalError: a file of the run is damaged.
    """
    charts = Charts("overview")
    return {
        "headline": measures.headline(record),
        "missing": _missing(record),
        "cards": measures.cards(record),
        "facts": _facts(record),
        "settings": changed_settings(record.recipe),
        "stages": [_stage(record, name) for name in record.planned],
        "measured": measures.panels(record, charts),
        "tables": measures.tables(record),
        "trainings": training.panels(record, charts),
        "judging": judging.judging(record, charts),
        "told": {"too_few": TOO_FEW, "none": NONE},
        "cost": _cost(record, charts),
    }


# --- what was run -----------------------------------------------------------------------------


def _missing(record: Record) -> Missing | None:
    if not record.missing:
        return None
    left, of = tuple(record.missing), len(record.planned)
    go_on = command("run", "--out", record.run)
    return Missing(of - len(left), of, left, record.holder, go_on)


def _facts(record: Record) -> list[tuple[str, str]]:
    """What was run, a name and a value each."""
    recipe = record.recipe
    times = amount(recipe.iterations, "iterations")
    facts = [
        ("Recipe", recipe.name),
        ("Method", f"{recipe.method}, {times}, seed {recipe.seed}"),
        ("Response format", recipe.format),
        ("Policy", _model(recipe.policy.model, recipe.policy.digest)),
        *_judge(record),
        *_others(record),
        ("Data", _data(record)),
        *_when(record),
        ("Report made by", f"selfcal {__version__}"),
        ("Folder", str(record.run)),
    ]
    return [(name, _public(value)) for name, value in facts]


def _model(name: str, digest: str | None) -> str:
    return f"{name} ({digest[:_DIGEST]})" if digest else name


def _judge(record: Record) -> list[tuple[str, str]]:
    """Who judges, as far as the method asks anybody."""
    judge = record.recipe.judge
    judged = any(name.endswith("/judgments") for name in record.planned)
    trained = any(name.startswith("judge/") for name in record.planned)
    if not judged and not trained:
        return []
    if judge.endpoint is not None:
        return [("Judge", judge.endpoint.model)]
    if judge.kind != "rscorer":
        return [("Judge", f"{judge.kind} (a control)")]
    facts = [("Judge", _model(judge.model, judge.digest) + (", sees" if judge.sees else ""))]
    return [*facts, ("Judge's labels", _who(judge.labels))] if trained else facts


def _others(record: Record) -> list[tuple[str, str]]:
    """Teacher, reward model and marker, as far as they take part."""
    recipe, facts = record.recipe, list[tuple[str, str]]()
    if any(name in record.planned for name in ("teacher", "facts")):
        facts.append(("Teacher", _who(recipe.teacher)))
    settings = (p.stage.settings for p in record.planned.values())
    if any(isinstance(s, Mapping) and "reward" in s for s in settings):
        facts.append(("Reward model", _model(recipe.reward.model, recipe.reward.digest)))
    if recipe.evaluate.marker is not None:
        facts.append(("Marker", _who(recipe.evaluate.marker)))
    return facts


def _who(settings: Any) -> str:
    """Who is asked: the model, the file, or the kind where that says it all."""
    named = getattr(settings, "model", None) or getattr(settings, "path", None)
    kind: str = settings.kind
    return f"{_model(named, getattr(settings, 'digest', None))}, {kind}" if named else kind


def _data(record: Record) -> str:
    data = record.recipe.data
    name = ", ".join(s.path for s in data.sources) or data.source
    counts = record.stats("data").get("samples")
    if not isinstance(counts, Mapping):
        return f"{name}, not read yet"
    read = {split: n for split, n in counts.items() if isinstance(n, int)}
    return f"{name}: " + ", ".join(f"{n:,} {split}" for split, n in read.items())


def _when(record: Record) -> list[tuple[str, str]]:
    """From the first stage's beginning to the last one's end, and what the stages took."""
    if not record.manifests:
        return []
    ends = [(datetime.fromisoformat(m["written"]), m["seconds"]) for m in record.manifests.values()]
    began = min(end - timedelta(seconds=float(s)) for end, s in ends)
    last = max(end for end, _ in ends)
    when = f"{began:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    return [("When", when), ("Cost", _price(record))]


def _price(record: Record) -> str:
    """What the run took so far, in one line."""
    requests = sum(n for _, own in _usage(record) if isinstance(n := own.get("requests"), int))
    time, *counts = _totals(record)
    totals = [f"{time[1]} of work", *(f"{n} {name}" for name, n in counts)]
    if requests:
        totals.append(f"{large(requests)} requests to servers")
    return ", ".join(totals)


def _public(text: str) -> str:
    """Of addresses, the scheme, host, port and path: what else they have may be secret."""
    return _ADDRESS.sub(lambda found: _address(found[0]), text)


def _address(text: str) -> str:
    try:
        url = urlsplit(text)
        _ = url.port  # of a password with a slash or the like, the first half looks like one
    except ValueError:
        return "…"
    _, user, host = url.netloc.rpartition("@")
    shown = urlunsplit((url.scheme, f"…@{host}" if user else host, url.path, "", ""))
    return f"{shown}?…" if url.query or url.fragment else shown


def changed_settings(recipe: Recipe) -> list[tuple[str, str]]:
    """Settings that are not their defaults, as a recipe would spell them; digests left out."""
    found = _changed(recipe, None, "")
    return [
        (key, _public(_spelled(value))) for key, value in found if key not in ("name", "method")
    ]


def _changed(settings: BaseModel, usual: BaseModel | None, place: str) -> list[tuple[str, Any]]:
    """What differs from `usual`, or from the defaults of the settings' own kind."""
    found: list[tuple[str, Any]] = []
    known: dict[str, Any] = {"call_default_factory": True, "validated_data": dict(settings)}
    for name, about in type(settings).model_fields.items():
        own = getattr(settings, name)
        was = getattr(usual, name) if usual else about.get_default(**known)
        if name in ("digest", "digests") or own == was:
            continue
        if not isinstance(own, BaseModel):
            found.append((place + name, own))
            continue
        same = was if type(was) is type(own) else None
        if same is None and (kind := getattr(own, "kind", None)):
            found.append((f"{place}{name}.kind", kind))
        found += _changed(own, same, f"{place}{name}.")
    return found


def _spelled(value: Any) -> str:
    if isinstance(value, str):
        return value
    plain = [_plain(v) for v in value] if isinstance(value, tuple) else _plain(value)
    return json.dumps(plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _stage(record: Record, name: str) -> StageRow:
    p = record.planned[name]
    if name in record.manifests:
        manifest = record.manifests[name]
        time = duration(float(manifest["seconds"]))
        return StageRow(name, p.stage.about, "done", time, key_figures(manifest["stats"]))
    if begun(p.folder):
        state = "in work" if record.holder else "was interrupted"
        return StageRow(name, p.stage.about, "begun", "", f"{state}: {progress_on_disk(p)}")
    size = amount(p.stage.size, p.stage.unit)
    return StageRow(name, p.stage.about, "open", "", f"{size} to do")


# --- what it took -----------------------------------------------------------------------------


def _cost(record: Record, charts: Charts) -> Cost:
    servers = []
    for name, own in _usage(record):
        counts = [own.get(figure) for figure in _USAGE]
        if any(isinstance(n, int) for n in counts):
            servers.append((name, *(f"{n:,}" if isinstance(n, int) else "" for n in counts)))
    time, *rest = _totals(record)
    return Cost((*rest, time), _times(record, charts), tuple(servers))


def _totals(record: Record) -> list[tuple[str, str]]:
    """What all stages took together: the time, and what else is above 0."""
    total = spent([dict(m) for m in record.manifests.values()])
    counted = (
        ("tokens generated by searches and trainings", total.tokens),
        ("judgments", total.judgments),
        ("optimizer steps", total.steps),
    )
    time = ("time of all stages", duration(total.seconds))
    return [time, *((name, large(n)) for name, n in counted if n)]


def _usage(record: Record) -> list[tuple[str, Mapping[str, Any]]]:
    """What each stage says of servers; one that was judged by a server has it under `spent`."""
    stats = {name: record.stats(name) for name in record.manifests}
    within = {name: own.get("spent") for name, own in stats.items()}
    return [(n, w if isinstance(w := within[n], Mapping) else own) for n, own in stats.items()]


def _times(record: Record, charts: Charts) -> Chart | None:
    """A bar for each stage, in the order of the run; of many, the longest."""
    times = {name: float(m["seconds"]) for name, m in record.manifests.items()}
    kept = set(sorted(times, key=lambda name: -times[name])[:_BARS])
    bars = [Mark(0, name, s) for name, s in times.items() if name in kept]
    rest = [s for name, s in times.items() if name not in kept]
    if rest:
        bars.append(Mark(0, f"{len(rest)} shorter ones", sum(rest)))
    about = "As measured when the stage ran, beside whatever ran on the machine then."
    look = Look(duration, NUMBERS.tick, across="time")
    return charts.bars("Time of the stages", about, bars, look)


def summary(record: Record) -> str:
    """The run in one line, for the top of the page."""
    recipe = record.recipe
    parts: Sequence[str] = (
        recipe.method, _public(recipe.policy.model), amount(recipe.iterations, "iterations"),
        f"seed {recipe.seed}",
    )  # fmt: skip
    return " · ".join(parts)
