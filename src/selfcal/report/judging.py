"""How good the judge of a run is: its audit and its held-out check in, charts and tables out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfcal.errors import SelfcalError
from selfcal.judge.audit import FEWEST
from selfcal.judge.label_file import few_labels
from selfcal.people import agreement_of
from selfcal.people.kappa import Agreed, Interval
from selfcal.people.show import LEFT_OUT
from selfcal.report.charts import (
    NUMBERS,
    SHARES,
    Chart,
    Charts,
    Line,
    Look,
    Mark,
    number,
    said,
    share,
)
from selfcal.report.record import Record
from selfcal.view.audit import ABOUT, HELD, audit_run
from selfcal.view.rewards import audit_online, is_online
from selfcal.view.text import amount

Figure = Mapping[str, Any]
"""`value`, `stderr`, `n`; None where there is nothing."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A table of figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    about: str = ""


@dataclass(frozen=True, slots=True)
class Judging:
    """What is known of the judge."""

    about: str
    """What it was held against, or why nothing is said of it."""
    audited: bool
    findings: tuple[str, ...] = ()
    """What is wrong, in words; only of an audit."""
    enough: bool = True
    """Whether there was enough to find anything."""
    notes: tuple[str, ...] = ()
    """What is to be minded of its training and of its held-out check."""
    charts: tuple[Chart, ...] = ()
    tables: tuple[Figures, ...] = ()


def judging(record: Record, charts: Charts) -> Judging:
    """The audit of the judge's judgments, or of the rewards of an online run.

    Raises:
        SelfcalError: a file of the run is damaged.
    """
    return replace(_judging(record, charts), notes=_notes(record))


def _judging(record: Record, charts: Charts) -> Judging:
    held = _held_out(record)
    if is_online(record.planned):
        return _online(record, charts, held)
    judged = [name for name in record.planned if re.fullmatch(r"iter-\d+/judgments", name)]
    if not judged:
        return Judging("The method of this run asks no judge.", False, tables=held)
    if not any(name in record.manifests for name in judged):
        return Judging("The judge has not judged yet.", False, tables=held)
    found: Mapping[str, Any] = audit_run(record.run)
    pairs, samples = amount(found["pairs"], "pairs"), amount(found["samples"], "samples")
    about = f"{pairs} of responses to {samples}, {_held(found['truth'])}."
    if any(name.endswith("/calibration") for name in record.planned):
        about += " As the judge answered, before its verdicts were corrected."
    if _further(record):
        about += " Of the first search of each iteration alone."
    drawn = [
        _reliability(found["reliability"], charts),
        _by_iteration(found["iterations"], charts),
        _lengths(found["length_bins"], charts),
    ]
    parts = (*_people(record), *_by_category(found["categories"]), *held)
    tables = (_figures(found), *parts)
    return Judging(
        about, True, tuple(found["findings"]), found["enough"],
        charts=tuple(c for c in drawn if c), tables=tables,
    )  # fmt: skip


def _held(truth: str | None) -> str:
    return HELD[truth].partition(":")[0]


def _said(figure: Figure) -> str:
    value = figure.get("value")
    return said(math.nan if value is None else value, _error(figure.get("stderr")))


def _n(figure: Figure) -> str:
    return f"{figure['n']:,}"


def _figures(found: Mapping[str, Any]) -> Figures:
    """All figures of an audit; kappa is no share."""
    rows = []
    for name, about in ABOUT.items():
        figure = found[name]
        text = _said(figure)
        if name == "kappa" and figure["value"] is not None:
            text = said(figure["value"], _error(figure["stderr"]), number)
        rows.append((name, text, _n(figure), about))
    return Figures("All figures of the audit", ("", "value", "n", ""), tuple(rows))


def _by_category(parts: Mapping[str, Mapping[str, Figure]]) -> list[Figures]:
    if not parts:
        return []
    names = list(next(iter(parts.values())))
    rows = tuple(
        (part, *(_said(own[name]) for name in names), _n(own["flip_rate"]))
        for part, own in parts.items()
    )
    return [Figures("The judge by category", ("", *names, "pairs"), rows)]


def _further(record: Record) -> bool:
    """Whether more was judged than first searches."""
    return any(re.fullmatch(r"iter-\d+/.+/judgments", name) for name in record.planned)


def _people(record: Record) -> list[Figures]:
    """How far people agree with the judge, where some have labelled pairs (`selfcal audit`)."""
    title = "People, the judge and the verifier"
    try:
        found = agreement_of(record.run)
    except SelfcalError as error:  # the rest of the report does not hang on labels
        return [Figures(title, ("", ""), (("not known", str(error)),))]
    if found is None:
        return []
    agreed = [*found.between, *found.with_judge, *found.with_verifier]
    agreed += [a for a in (found.all_people, found.judge_with_verifier) if a]
    about = (
        f"People judged {amount(found.pairs, 'pairs')} of {amount(found.samples, 'samples')}, "
        "blind. The judge is held to the verdict that curation read. Kappa is agreement beyond "
        "chance; in brackets, 95 % intervals over samples, where there are 30 of them or more."
    )
    about += "".join(f" {n:,} {LEFT_OUT[name]}." for name, n in found.left_out.items() if n)
    columns = ("", "kappa", "same verdict", "pairs")
    return [Figures(title, columns, _agreed(agreed), about)]


def _agreed(agreed: Sequence[Agreed]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (_raters(a.raters), _between(a.kappa), _between(a.agreement), f"{a.pairs:,}")
        for a in agreed
    )


def _raters(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) == 2 else f"all {len(names)} people"


def _between(figure: Interval) -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return said(figure.value if figure.value is not None else math.nan, math.nan, number)
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


# --- charts -----------------------------------------------------------------------------------


def _reliability(bins: Sequence[Mapping[str, Any]], charts: Charts) -> Chart | None:
    marks = [
        Mark(
            b["confidence"], f"{b['lower']:.1f} to {b['upper']:.1f} (mean {b['confidence']:.3f})",
            b["hit_rate"], _error(b["stderr"]), b["n"],
        )
        for b in bins
        if b["n"]
    ]  # fmt: skip
    look = Look(
        share, SHARES.tick, (0.0, 1.03), named=False, across="confidence of the verdict",
        diagonal=True,
    )  # fmt: skip
    about = (
        "How often a verdict is right, by how sure the judge was of it. On the dashed line "
        "confidence is what it says; below it the judge is too sure."
    )
    return charts.lines("Reliability", about, [Line("", tuple(marks))], look)


def _by_iteration(parts: Mapping[str, Mapping[str, Figure]], charts: Charts) -> Chart | None:
    names = {"agreement_merged": "agreement", "flip_rate": "flip rate", "ece": "calibration error"}
    lines = [
        Line(words, _over(parts, name), color) for color, (name, words) in enumerate(names.items())
    ]
    about = (
        "Agreement with the truth (both orders averaged), verdicts that turn with the order, and "
        "the gap between confidence and hit rate."
    )
    look = Look(SHARES.say, SHARES.tick, (0.0, 1.03))
    return charts.lines("The judge by iteration", about, lines, look)


def _over(parts: Mapping[str, Mapping[str, Any]], name: str) -> tuple[Mark, ...]:
    """A figure over the iterations, where it is known."""
    own = [(i, t, part[name]) for i, (t, part) in enumerate(parts.items())]
    return tuple(
        Mark(i, f"iteration {t}", f["value"], _error(f.get("stderr")), f["n"])
        for i, t, f in own
        if f["value"] is not None
    )


def _error(stderr: float | None) -> float:
    return math.nan if stderr is None else stderr


def _lengths(bins: Sequence[Mapping[str, Any]], charts: Charts) -> Chart | None:
    filled = [(i, b) for i, b in enumerate(bins) if b["n"]]
    known = any(b["truth"] is not None for _, b in filled)
    judge = [Mark(i, _longer(b), b["judge"], _error(b["stderr"]), b["n"]) for i, b in filled]
    truth = [Mark(i, _longer(b), b["truth"], n=b["n"]) for i, b in filled if b["truth"] is not None]
    lines = [Line("judge" if known else "", tuple(judge)), Line("truth", tuple(truth), 2)]
    about = "How often the longer response wins (neutral counts half), by how much longer it is."
    about += " The interval is that of the difference to the truth." if known else ""
    look = Look(share, SHARES.tick, (0.0, 1.03), across="longer by", level=0.5)
    return charts.lines("Length", about, lines if truth else lines[:1], look)


def _longer(bin_: Mapping[str, Any]) -> str:
    return f"to {bin_['upper']:.0%}" if bin_["upper"] else "more"


# --- online -----------------------------------------------------------------------------------


def _online(record: Record, charts: Charts, held: tuple[Figures, ...]) -> Judging:
    if not any(re.fullmatch(r"iter-\d+/grpo", name) for name in record.manifests):
        return Judging("Nothing was rewarded yet.", False, tables=held)
    found: Mapping[str, Any] = audit_online(record.run)
    iterations = found["iterations"]
    truth = "held against MiniWorld's verifier" if found["truth"] else "the truth is not known"
    lines = [Line("", _over(iterations, "reinforced"))]
    about = "Of the responses with an advantage above 0, how many are right, sound and in form."
    shares = Look(SHARES.say, SHARES.tick, (0.0, 1.03))
    drawn = [charts.lines("Reinforced and reliable", about, lines, shares)]
    for color, signal in enumerate(found["drift"]):
        own = {t: part["signals"][signal] for t, part in iterations.items()}
        for name, words in _SIGNAL.items():
            line = Line("", _over(own, name), color)
            look = shares if name == "order" else NUMBERS
            drawn.append(charts.lines(f"{signal}: {name}", words, [line], look))
    return Judging(
        f"What was rewarded, {truth}.", True, tuple(found["findings"]), found["enough"],
        charts=tuple(c for c in drawn if c), tables=held,
    )  # fmt: skip


_SIGNAL = {
    "order": "Of two responses of a group of which one deserves it, how often that one got more.",
    "overrated": "The judge's mean less the share of responses that deserve it.",
}


# --- held out ---------------------------------------------------------------------------------


def _held_out(record: Record) -> tuple[Figures, ...]:
    """The checks of trained judges against labels that they had not seen."""
    made = []
    for name in record.manifests:
        if re.fullmatch(r"judge/(\w+-)?quality", name):
            rows = [_held_row(k, v) for k, v in record.stats(name).items()]
            about = "Against labels that were held out of its training."
            made.append(Figures(f"Held-out check ({name})", ("", "value", "n"), tuple(rows), about))
    return tuple(made)


def _notes(record: Record) -> tuple[str, ...]:
    """Of a judge that learned to compare: whether it had labels enough, and whether it learned."""
    made, counts = [], record.stats("judge/labels")
    train, heldout = counts.get("train"), counts.get("heldout")
    if isinstance(train, int) and isinstance(heldout, int):
        made.append(few_labels(train, heldout))
    found = record.stats("judge/quality").get("agreement")
    if isinstance(found, Mapping) and _is_figure(found) and not _beyond_chance(found):
        made.append(
            f"Held out, the judge agrees with {_said(found)} of labels (n {_n(found)}): not "
            "clearly more than chance, which is 1 in 3. Way out: label more pairs, train longer "
            "(judge.train.epochs) or take a larger judge.model."
        )
    return tuple(text for text in made if text)


def _beyond_chance(figure: Figure) -> bool:
    value, error = figure["value"], figure.get("stderr")
    if value is None or error is None or figure["n"] < FEWEST:
        return False
    return bool(value - 2 * error > 1 / 3)


def _is_figure(value: Mapping[str, Any]) -> bool:
    """Whether this is a figure indeed, of a manifest that anybody may have changed."""
    numbers = (value.get("value"), value.get("stderr"))
    known = all(isinstance(x, int | float | None) for x in numbers)
    return known and isinstance(value.get("n"), int)


def _held_row(name: str, value: Any) -> tuple[str, str, str]:
    if isinstance(value, Mapping):
        return (name, _said(value), _n(value)) if _is_figure(value) else (name, "", "")
    return name, f"{value:,}" if isinstance(value, int | float) else "", ""
