"""A comparison in; tables on the terminal and in Markdown out.

Both are the same sheets: a title, rows of text, and a caption that says what the figures are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from selfcal.compare.contrast import Difference, Value
from selfcal.compare.report import Comparison
from selfcal.compare.runs import Place, State, Tell
from selfcal.compare.statistics import bonferroni
from selfcal.store import write_text
from selfcal.view.results import BY_CATEGORY, direction
from selfcal.view.text import duration, heading, large, safe, table, value

PATHS = (
    "alignment", "reliable_accuracy", "rationale_soundness", "answer_accuracy", "grounding",
    "inconsistency",
)  # fmt: skip
"""What is followed over the checkpoints, and drawn."""
PATH = " from checkpoint to checkpoint"
"""What the title of a metric's path ends with."""
_GAP = 2
"""Spaces between columns."""
_FEW = 10
"""Seeds below which the spread between trainings is known but roughly."""


@dataclass(frozen=True)
class Sheet:
    """One table; its first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


def show_comparison(out: Console, found: Comparison) -> None:
    """Print the tables; of single categories, what matters most."""
    for sheet in sheets(found, BY_CATEGORY):
        out.print(heading(sheet.title))
        for part in _fitting(sheet, out.width):
            rows = table(*part.columns, right=part.columns[1:])
            for name, *cells in part.rows:
                rows.add_row(name, *(Text(c, "bold" if c.endswith("*") else "") for c in cells))
            out.print(rows)
            out.print()
        if sheet.caption:
            out.print(sheet.caption, style="dim")
            out.print()
    for f in found.failures:
        text = f"{f.recipe}, seed {f.seed}, failed: {safe(f.said)}; see {safe(f.log)}"
        out.print(text, style="red", soft_wrap=True)


def progress(out: Console, place: Place) -> Tell:
    """Tells how the runs stand, a line each."""
    began: dict[tuple[str, int], float] = {}

    def tell(recipe: str, seed: int, state: State) -> None:
        who, log = f"{recipe}, seed {seed}", place.log(recipe, seed)
        if state == "begins":
            began[recipe, seed] = time.monotonic()
            out.print(f"{who}: runs, its log is {safe(str(log))}", soft_wrap=True)
        elif state == "was finished":
            out.print(f"{who}: was finished before")
        else:
            took = duration(time.monotonic() - began[recipe, seed])
            said = "done" if state == "ends" else "failed"
            style = "" if state == "ends" else "red"
            out.print(f"{who}: {said} after {took}", style=style)

    return tell


def write_markdown(path: Path, found: Comparison, figures: Sequence[Path]) -> None:
    """Write all tables, and links to the figures beside them."""
    parts = [f"# Comparison on {_plain(found.split)}: {_listed(map(str, found.recipes))}"]
    parts += [_markdown(sheet) for sheet in sheets(found)]
    if found.failures:
        rows = tuple((f"{f.recipe}, seed {f.seed}", f.log, f.said) for f in found.failures)
        parts.append(_markdown(Sheet("Runs that failed", ("", "log", "its last line"), rows)))
    parts += [f"![{f.stem}]({f.relative_to(path.parent).as_posix()})" for f in figures]
    write_text(path, "\n\n".join(parts) + "\n")


def _markdown(sheet: Sheet) -> str:
    lines = [f"## {_plain(sheet.title)}", ""]
    lines.append("| " + " | ".join(map(_plain, sheet.columns)) + " |")
    lines.append("|---" + "|---:" * (len(sheet.columns) - 1) + "|")
    lines += ["| " + " | ".join(map(_plain, row)) + " |" for row in sheet.rows]
    return "\n".join([*lines, "", _plain(sheet.caption)] if sheet.caption else lines)


_MARKS = re.compile(r"[\\`*\[<>|#&~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
"""What Markdown could take for a mark; an underscore inside of a word is none."""


def _plain(text: str) -> str:
    """Text that Markdown takes literally."""
    return _MARKS.sub(lambda found: "\\" + found[0], safe(text))


def _listed(names: Iterator[str]) -> str:
    return ", ".join(_plain(n) for n in names)


def _fitting(sheet: Sheet, width: int) -> Iterator[Sheet]:
    """The sheet in parts whose columns fit beside each other."""
    widths = [max(map(len, own)) + _GAP for own in zip(sheet.columns, *sheet.rows, strict=True)]
    at = 1
    while at < len(widths):
        end = at + 1
        while end < len(widths) and widths[0] + sum(widths[at : end + 1]) - _GAP <= width:
            end += 1
        rows = tuple((row[0], *row[at:end]) for row in sheet.rows)
        yield replace(sheet, columns=(sheet.columns[0], *sheet.columns[at:end]), rows=rows)
        at = end


# --- the sheets -----------------------------------------------------------------------------


def sheets(found: Comparison, by_category: Sequence[str] = ()) -> Iterator[Sheet]:
    """All tables; of single categories these metrics, or all if none are named."""
    for category in found.categories:
        some = by_category if category != "all" else ()
        metrics = [m for m in found.metrics if not some or m in some]
        yield _values(found, category, metrics)
        if any(d.category == category for d in found.differences):
            yield _differences(found, category, metrics)
    for metric in PATHS:
        if metric in found.metrics:
            yield _trajectory(found, metric)
    if found.pairs:
        yield _pairs(found)
    yield _costs(found)


def _values(found: Comparison, category: str, metrics: Sequence[str]) -> Sheet:
    rows = tuple(
        (
            f"{direction(m)} {m}",
            *(_value(found.value(r, category, m)) for r in found.recipes),
        )
        for m in metrics
    )
    seeds = ", ".join(f"{r} {len(found.finished[r])}" for r in found.recipes)
    caption = (
        "Each cell is the share over the answers of all finished seeds at the last checkpoint, "
        f"± its bootstrap standard error. Seeds: {seeds}. ↑ higher is better, ↓ lower is better."
    )
    if not found.finished[found.baseline]:
        caption += f" No differences: no run of {found.baseline} is finished."
    title = f"Results on {found.split}" + _of(category)
    return Sheet(title, ("", *found.recipes), rows, caption if category == "all" else "")


def _differences(found: Comparison, category: str, metrics: Sequence[str]) -> Sheet:
    others = [r for r in found.recipes if r != found.baseline]
    rows = tuple(
        (f"{direction(m)} {m}", *(_difference(found.difference(r, category, m)) for r in others))
        for m in metrics
    )
    title = f"Difference to {found.baseline} on {found.split}" + _of(category)
    caption = difference_caption(found) if category == "all" else ""
    return Sheet(title, ("", *others), rows, caption)


def difference_caption(found: Comparison) -> str:
    """What a difference and its interval are."""
    own = {d.recipe: d for d in found.differences if d.category == "all"}
    comparisons = max((d.comparisons for d in own.values()), default=1)
    seeds = {name: len(d.by_seed) for name, d in own.items()}
    drawn = "seeds, and within each of samples" if max(seeds.values(), default=1) > 1 else "samples"
    answers = ", ".join(f"{name} {d.n:,}" for name, d in own.items())
    said = [
        f"In brackets, the {percent(found.level)} interval: {found.resamples:,} resamples of "
        f"{drawn}, the same for both recipes, as they answered the same questions.",
        f"Corrected for {_amount(comparisons, 'comparison')} with {found.baseline} for each "
        "metric and category (Bonferroni: each interval is one of "
        f"{percent(bonferroni(comparisons))}).",
        f"* the interval leaves out 0. Answers compared: {answers}.",
    ]
    if found.shared:
        said.append("Seeds asked the same questions, so that a resample of them is that of all.")
    if alone := [name for name, n in seeds.items() if n == 1]:
        names = ", ".join(alone)
        said.append(f"One seed alone ({names}): training's own randomness is not in the interval.")
    if few := [n for n in seeds.values() if 1 < n < _FEW]:
        said.append(
            f"{min(few)} seeds: how much trainings differ is known but roughly, and resampling "
            "so few can understate it."
        )
    if left := {r: n for r, n in found.left_out.items() if n}:
        lost = ", ".join(f"{r} {n:,}" for r, n in left.items())
        said.append(f"Answers without a partner, left out: {lost}.")
    return " ".join(said)


def percent(share: float) -> str:
    """A share in percent, in as many digits as it needs: `95 %`, `98.33 %`."""
    return f"{100 * share:.4g} %"


def _trajectory(found: Comparison, metric: str) -> Sheet:
    own = [v for v in found.trajectory if v.metric == metric]
    checkpoints = list(dict.fromkeys(v.checkpoint for v in own))
    at = {(v.recipe, v.checkpoint): v for v in own}
    rows = tuple((r, *(_value(at.get((r, c))) for c in checkpoints)) for r in found.recipes)
    return Sheet(f"{metric}{PATH}", ("", *checkpoints), rows)


def _pairs(found: Comparison) -> Sheet:
    rows = tuple(
        (
            f"{q.recipe}, {q.iteration}",
            value(q.better, q.stderr),
            *(value(share, float("nan")) for share in (q.equal, q.worse)),
            f"{q.n:,}",
            f"{q.unknown:,}" if q.unknown else "",
        )
        for q in found.pairs
    )
    without = [r for r in found.recipes if r not in {q.recipe for q in found.pairs}]
    rows += tuple((r, "", "", "", "", "") for r in without)
    caption = (
        "What MiniWorld's verifier says of the preference pairs, which it did not choose (unless "
        "judge.kind is verifier): the share whose chosen response is truly better than the "
        "rejected one (± its standard error over pairs), equal, or worse."
    )
    columns: tuple[str, ...] = ("", "truly better", "equal", "worse", "pairs", "unknown")
    if without:
        caption += " A row without figures: its method makes no pairs."
    if any(q.unknown for q in found.pairs):
        caption += " Unknown: the facts are uncertain, so the verifier cannot tell."
    else:
        columns, rows = columns[:-1], tuple(row[:-1] for row in rows)
    return Sheet("Preference pairs against the truth", columns, rows, caption)


def _costs(found: Comparison) -> Sheet:
    rows = tuple(
        (
            c.recipe,
            *(large(n) if n else "0" for n in (c.tokens, c.judgments, c.steps)),
            duration(c.seconds),
            str(c.runs),
        )
        for c in found.costs
    )
    caption = (
        "A mean run's, as if it had run alone: stages that recipes share count for each. Tokens "
        "are those of all searches, a judge's training included, which no budget limits; times "
        "are as measured, beside what else ran."
    )
    columns = ("", "generated tokens", "judge comparisons", "optimizer steps", "time", "runs")
    return Sheet("Cost", columns, rows, caption)


def _value(found: Value | None) -> str:
    return value(found.value, found.stderr) if found else ""


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    mark = " *" if found.sure else "  "
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]{mark}"


def _of(category: str) -> str:
    return "" if category == "all" else f": {safe(category)}"


def _amount(n: int, unit: str) -> str:
    return f"{n} {unit}" if n == 1 else f"{n} {unit}s"
