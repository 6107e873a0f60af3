"""Results in; a headline in words, cards, and charts over the checkpoints out.

Nothing is said that the figures don't say: a value with its interval, and what it was before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from selfcal.evaluate import METRICS
from selfcal.evaluate.marking import ESTIMATED, FLAWS, MARKER_AGREEMENT, MARKER_UNSCORED
from selfcal.evaluate.metrics import READING
from selfcal.report.charts import (
    NUMBERS,
    SHARES,
    Z95,
    Chart,
    Charts,
    Line,
    Look,
    Mark,
    number,
    said,
    share,
    shares_between,
)
from selfcal.report.record import Record
from selfcal.types import Result
from selfcal.view.results import direction
from selfcal.view.text import amount

_CARDS = (
    "alignment", f"{ESTIMATED}alignment", "answer_accuracy",
    "rationale_soundness", f"{ESTIMATED}rationale_soundness",
    "reliable_accuracy", f"{ESTIMATED}reliable_accuracy", "grounding", MARKER_AGREEMENT,
    "format_compliance", "unreadable",
)  # fmt: skip
_BY_CATEGORY = {
    "alignment": "alignment", "answer_accuracy": "accuracy", "rationale_soundness": "soundness",
}  # fmt: skip
"""What is drawn of every category, by a verifier or by a marker, and what it is called there."""
_MOST = 6
"""Cards."""
_FEWEST = 30
"""Of fewer answers no change is called more than chance."""
_CATEGORIES = 12
"""Of more categories, those with the most answers are drawn."""
_MARKER = {
    MARKER_AGREEMENT: "how far the marker agrees with itself when asked twice (Cohen's kappa)",
    MARKER_UNSCORED: "responses that the marker said nothing usable about",
}
_REWARD = {
    "response_reward": "sum over a response's sentences, so that longer ones have more",
    "sentence_reward": "of a sentence: its relevance and likelihood, mixed",
}
Found = Mapping[tuple[str, str], Result]
"""Results by checkpoint and metric."""


@dataclass(frozen=True, slots=True)
class Card:
    """One metric, at the last checkpoint and before."""

    metric: str
    about: str
    value: str
    interval: str
    n: int
    before: str
    """What it was where calibration began; empty if that was not measured."""
    change: str
    """In points; empty if nothing can be said."""
    kind: str
    """`good`, `bad`, or empty where the change may be chance, or has no good side."""


@dataclass(frozen=True, slots=True)
class Panels:
    """Charts that belong together."""

    title: str
    about: str
    charts: tuple[Chart, ...]


def about(metric: str) -> str:
    """What a metric measures, in words."""
    plain = metric.removeprefix(ESTIMATED)
    known = METRICS.get(plain) or READING.get(plain)
    words = known.meaning if known else _MARKER.get(plain, "")
    return f"{words}; the marker's estimate" if plain != metric and words else words


def after(checkpoint: str) -> str:
    """A checkpoint in words."""
    if checkpoint.startswith("iter-"):
        return f"after iteration {checkpoint.removeprefix('iter-')}"
    return {"seed": "before any training", "rft": "after fine-tuning"}.get(
        checkpoint, f"at {checkpoint}"
    )


# --- in words ---------------------------------------------------------------------------------


def headline(record: Record) -> list[str]:
    """What came out, in sentences; the first one is the most important."""
    if not record.planned_measurements:
        return ["This run measures nothing: evaluate.splits is empty."]
    if not record.checkpoints:
        return ["Nothing is measured yet."]
    found = record.found(record.split, "all")
    first, last = _ends(record.checkpoints)
    sentences = [_alignment(found, first, last), _right(found, first, last)]
    n = found[last, "answer_accuracy"].n if (last, "answer_accuracy") in found else 0
    sentences.append(
        f"Measured on {amount(n, 'questions')} of {record.split}; ± is a 95 % interval "
        f"({Z95} standard errors)."
    )
    return [s for s in sentences if s]


def _ends(checkpoints: Sequence[str]) -> tuple[str | None, str]:
    """The checkpoint that calibration starts from, if it was measured, and the last one."""
    last = checkpoints[-1]
    before = [c for c in ("rft", checkpoints[0]) if c in checkpoints and c != last]
    return (before[0] if before else None), last


def _alignment(found: Found, first: str | None, last: str) -> str:
    exact, guessed = (found.get((last, f"{by}alignment")) for by in ("", ESTIMATED))
    now = exact or guessed
    if now is None:
        return (
            "Whether the rationales are sound was not measured: there is no verifier for this "
            "data, and no marker (evaluate.marker)."
        )
    opening = "Right for the right reason" if exact else "Right for the right reason, by estimate"
    if math.isnan(now.value):
        return f"{opening}: not known {after(last)}, as no right answer is there to look at."
    was = found.get((first, now.metric)) if first else None
    text = f"{opening}: {_said(now)} of right answers {after(last)}"
    if first and was and not math.isnan(was.value):
        text += f", from {_said(was)} {after(first)}"
    return f"{text}."


def _right(found: Found, first: str | None, last: str) -> str:
    now = found.get((last, "answer_accuracy"))
    if now is None or math.isnan(now.value):
        return ""
    was = found.get((first, "answer_accuracy")) if first else None
    before = f", from {_said(was)} {after(first)}" if first and was else ""
    return f"Of all answers, {_said(now)} are right {after(last)}{before}."


def _said(result: Result) -> str:
    if math.isnan(result.stderr):
        return said(result.value, math.nan)
    return f"{said(result.value, math.nan)} (± {Z95 * result.stderr * 100:.1f})"


def cards(record: Record) -> list[Card]:
    """The headline metrics, first and last."""
    if not record.checkpoints:
        return []
    found = record.found(record.split, "all")
    first, last = _ends(record.checkpoints)
    shown = [m for m in _CARDS if (last, m) in found][:_MOST]
    return [_card(found.get((first, m)) if first else None, found[last, m]) for m in shown]


def _say(metric: str) -> Callable[[float], str]:
    """How a metric's values are said: agreement beyond chance is no share."""
    return number if metric == MARKER_AGREEMENT else share


def _card(was: Result | None, now: Result) -> Card:
    words, say = about(now.metric), _say(now.metric)
    value, _, half = said(now.value, now.stderr, say).partition(" ±")
    half = f"±{half}" if half else ""
    if was is None:
        return Card(now.metric, words, value, half, now.n, "", "", "")
    before = f"{said(was.value, was.stderr, say)} {after(was.checkpoint)}"
    gap = now.value - was.value
    change = f"{gap * 100:+.1f} points" if say is share else f"{gap:+.3f}"
    change = "" if math.isnan(gap) else change
    error = Z95 * math.hypot(now.stderr, was.stderr)
    way = {"↑": 1, "↓": -1}.get(direction(now.metric), 0) * gap
    # of errors that are not known nothing is sure: no comparison with NaN holds
    sure = way and abs(gap) > error and min(was.n, now.n) >= _FEWEST
    kind = ("good" if way > 0 else "bad") if sure else ""
    return Card(now.metric, words, value, half, now.n, before, change, kind)


# --- charts -----------------------------------------------------------------------------------


def panels(record: Record, charts: Charts) -> list[Panels]:
    """All charts over the checkpoints: metrics, categories, flaws."""
    made = [
        _overall(record, charts), _categories(record, charts), _flaws(record, charts),
        _rewards(record, charts),
    ]  # fmt: skip
    return [p for p in made if p.charts]


def _rewards(record: Record, charts: Charts) -> Panels:
    """CSR's reward of what each iteration began with, and how it was mixed."""
    stages = [name for name in record.manifests if name.startswith("reward/")]
    drawn = []
    for name, words in _REWARD.items():
        own = [(x, s, record.stats(s)) for x, s in enumerate(stages)]
        marks = [
            Mark(x, s.removeprefix("reward/"), float(v), n=n if isinstance(n, int) else None)
            for x, s, stats in own
            if isinstance(v := stats.get(name), int | float)
            for n in [stats.get("responses")]
        ]
        title = name.replace("_", " ").capitalize()
        drawn.append(charts.lines(title, words, [Line("", tuple(marks))], NUMBERS))
    return Panels(
        "Calibrated reward of own responses",
        "CSR's reward (Eq. 4, raw) of one response to each of some dev samples, as the policy "
        "draws it before each iteration's tuning; means, whose errors are not recorded.",
        tuple(c for c in drawn if c),
    )


def _overall(record: Record, charts: Charts) -> Panels:
    metrics = list(dict.fromkeys(r.metric for r in record.results if r.category == "all"))
    found = record.found(record.split, "all")
    drawn = []
    for metric in metrics:
        if "flaw/" not in metric:
            marks = _marks(record, found, metric)
            look = NUMBERS if metric == MARKER_AGREEMENT else _shares(marks)
            drawn.append(
                charts.lines(
                    f"{direction(metric).strip()} {_words(metric)}".strip(), about(metric),
                    [Line("", marks)], look,
                )
            )  # fmt: skip
    return Panels(
        "From checkpoint to checkpoint",
        f"Shares of the answers to {record.split}, with their 95 % intervals. ↑ higher is better, "
        "↓ lower is better.",
        tuple(c for c in drawn if c),
    )


def _categories(record: Record, charts: Charts) -> Panels:
    names, left = _largest(record)
    drawn = []
    for own in names:
        found = record.found(record.split, own)
        lines = [
            Line(name, _marks(record, found, metric), color)
            for color, (plain, name) in enumerate(_BY_CATEGORY.items())
            if (metric := _measured(found, plain))
        ]
        n = max((r.n for (_, m), r in found.items() if m == "answer_accuracy"), default=0)
        look = Look(SHARES.say, SHARES.tick, (0.0, 1.03))
        drawn.append(charts.lines(own, f"{amount(n, 'questions')}", lines, look))
    words = "Right answers (accuracy), rationales without any flaw (soundness), and right answers "
    words += "with a sound rationale (alignment), with their 95 % intervals."
    if left:
        words += f" The {len(names)} largest of {len(names) + left:,} categories are drawn."
    return Panels("By category", words, tuple(c for c in drawn if c))


def _largest(record: Record) -> tuple[list[str], int]:
    """The categories that are drawn, in the order of the results, and how many are not."""
    sizes: dict[str, int] = {}
    for r in record.results:
        if r.split == record.split and r.category != "all" and r.metric == "answer_accuracy":
            sizes[r.category] = r.n
    if len(sizes) < 2:  # a single one would be all answers once more
        return [], 0
    kept = set(sorted(sizes, key=lambda c: -sizes[c])[:_CATEGORIES])
    return [c for c in sizes if c in kept], len(sizes) - len(kept)


def _flaws(record: Record, charts: Charts) -> Panels:
    drawn, shorter = [], False
    for name in ("all", *_largest(record)[0]):
        found = record.found(record.split, name)
        lines = [
            Line(flaw, _marks(record, found, metric), color + 1)
            for color, flaw in enumerate(FLAWS)
            if (metric := _measured(found, f"flaw/{flaw}"))
        ]
        look = _shares([m for line in lines for m in line.marks])
        shorter |= look.between is not None and look.between[1] < 1
        title = "All answers" if name == "all" else name
        drawn.append(charts.lines(title, "", lines, look))
    meanings = "; ".join(f"{flaw}: {METRICS[f'flaw/{flaw}'].meaning}" for flaw in FLAWS)
    by = "" if record.recipe.data.miniworld else " As the marker estimates them."
    return Panels(
        "What is wrong with the rationales",
        f"Share of responses with each kind of flaw ({meanings}). A response may have several."
        f"{by}{' Note the axes: some end below 100 %.' if shorter else ''}",
        tuple(c for c in drawn if c),
    )


def _measured(found: Found, metric: str) -> str | None:
    """The metric as the verifier has it, or else as a marker estimates it."""
    own = {m for _, m in found}
    return next((m for m in (metric, f"{ESTIMATED}{metric}") if m in own), None)


def _shares(marks: Sequence[Mark]) -> Look:
    known = [m for m in marks if math.isfinite(m.value)]
    return Look(SHARES.say, SHARES.tick, shares_between(known))


def _marks(record: Record, found: Found, metric: str) -> tuple[Mark, ...]:
    own = [(x, c, found.get((c, metric))) for x, c in enumerate(record.checkpoints)]
    return tuple(Mark(x, c, r.value, r.stderr, r.n) for x, c, r in own if r)


def _words(metric: str) -> str:
    return metric.removeprefix(ESTIMATED).replace("_", " ")


# --- tables -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sheet:
    """All metrics of one split."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(record: Record) -> list[Sheet]:
    """Every metric of every split over all answers, checkpoint by checkpoint."""
    made = []
    for split in dict.fromkeys(r.split for r in record.results):
        found = record.found(split, "all")
        checkpoints = [c for c in record.checkpoints if any(c == own for own, _ in found)]
        rows = []
        for metric in dict.fromkeys(m for _, m in found):
            own = [found.get((c, metric)) for c in checkpoints]
            cells = [said(r.value, r.stderr, _say(metric)) if r else "" for r in own]
            n = f"{own[-1].n:,}" if own[-1] else ""
            rows.append((f"{direction(metric)} {metric}".strip(), *cells, n))
        made.append(Sheet(f"All metrics on {split}", ("", *checkpoints, "n"), tuple(rows)))
    return made
