"""How a sample's pair came to be: candidates, what they count, and why; or what was written for it.

All is taken from the sample's `Story`: scores are those that curation went by.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfcal.story import Ranked, Round, Written
from selfcal.types import PreferencePair
from selfcal.view.text import heading, indented, reason, safe
from selfcal.view.verdicts import Verify, marked, rewarded, said


def show_search(out: Console, found: Round) -> None:
    """Print what a search found for the sample, and what others made of it."""
    n = len(found.candidates)
    out.print(heading(f"{found.place}: {n} candidates" if n else f"{found.place}: candidates"))
    if not found.searched:
        out.print(indented(Text("not searched yet", "dim")))
    _show_dropped(out, found, f"{found.place}/candidates")
    for ranked in found.candidates:
        _show_candidate(out, ranked)
    if found.judgments:
        _show_matrix(out, found)
    _show_labels(out, found)
    _show_outcome(out, found)
    out.print()


def _show_dropped(out: Console, found: Round, *stages: str) -> None:
    for stage in stages:
        for drop in found.dropped.get(stage, ()):
            out.print(reason(drop))


def _show_candidate(out: Console, ranked: Ranked) -> None:
    candidate = ranked.candidate
    parts = [f"#{candidate.index}"]
    if ranked.score is not None:
        parts.append(f"score {ranked.score:+.3f}")
    if candidate.sentence_rewards:
        parts.append(f"reward {candidate.reward:+.3f}")
    parts.append(f"log-probability {candidate.logprob:.2f}")
    if not candidate.finished:
        parts.append("cut at the length limit")
    line = Text("  " + " · ".join(parts))
    if ranked.role:
        line.append(f" · {ranked.role}", _ROLE[ranked.role])
    out.print(line)
    if candidate.sentence_rewards:
        out.print(indented(rewarded(candidate, ranked.found), 6))
    else:
        out.print(indented(marked(candidate.text, ranked.found), 6))


_ROLE = {"chosen": "bold green", "rejected": "bold red", "best": "bold green"}


# --- judgments, labels, grades --------------------------------------------------------------


def _show_matrix(out: Console, found: Round) -> None:
    """Print who beats whom: the judgments of both orders, averaged."""
    players = sorted({i for g in found.judgments for i in (g.first, g.second)})
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row("", *(Text(f"#{j}", "dim", justify="right") for j in players))
    for i in players:
        grid.add_row(Text(f"#{i}", "dim"), *(_cell(found, i, j) for j in players))
    out.print(
        f"  {len(found.judgments)} judgments, {found.unscored} unscored; row against column, "
        f"both orders averaged{_correction(found)}:"
    )
    out.print(indented(grid, 6))
    open_ = len(found.cells) < len(players) * (len(players) - 1)
    out.print(
        "  + row is better, - column is better, = neutral; the number is the verdict's confidence"
        + ("; ? was not asked, or not read." if open_ else "."),
        style="dim",
    )


def _cell(found: Round, i: int, j: int) -> Text:
    cell = found.cells.get((i, j))
    if i == j:
        return Text("")
    if cell is None:
        return Text("?", "yellow", justify="right")
    return Text(f"{_CELL[cell.sign]}{cell.confidence:.2f}", _STYLE[cell.sign], justify="right")


def _correction(found: Round) -> str:
    if found.uncorrected:
        return f", not corrected by {found.uncorrected} yet"
    return f", corrected by {found.corrected}" if found.corrected else ""


_CELL = {1: "+", -1: "-", 0: "="}
_STYLE = {1: "green", -1: "red", 0: "dim"}
_LABEL = {"first": "first is better", "second": "second is better", "neutral": "neutral"}


def _show_labels(out: Console, found: Round) -> None:
    """Print the label-giving judge's verdicts, which a judge or its correction learns from."""
    for pair in found.labels:
        out.print(f"  label: {_LABEL[pair.verdict]}")
        for name, text in (("first", pair.first), ("second", pair.second)):
            out.print(indented(Text.assemble((f"{name}  ", "dim"), safe(text)), 6))
    _show_dropped(out, found, f"{found.place}/labels", f"{found.place}/calibration")
    for graded in found.grades:
        out.print(f"  grade: {'good' if graded.good else 'not good'}")
        out.print(indented(Text(safe(graded.response)), 6))
    _show_dropped(out, found, f"{found.place}/grades")


def _show_outcome(out: Console, found: Round) -> None:
    for pair in found.pairs:
        out.print(
            f"  pair: #{pair.chosen_index} chosen over #{pair.rejected_index}, margin "
            f"{pair.margin:.3f} ({pair.chosen_score:+.3f} against {pair.rejected_score:+.3f}): "
            f"{safe(found.about)}",
            soft_wrap=True,
        )
    _show_dropped(out, found, found.curating)


# --- pairs without a search of their own ----------------------------------------------------


def show_written(out: Console, written: Written, verified: Verify, run: Path) -> None:
    """Print a pair that was written, or what was written in vain."""
    out.print(heading(f"{written.stage.removesuffix('/pairs')}: {written.about}"))
    if not written.done:
        out.print(indented(Text("not written yet", "dim")))
    for pair in written.pairs:
        _show_pair(out, written, pair, verified)
        if pair.rejected_image:
            out.print(f"  rejected image: {image(run, pair.rejected_image)}", soft_wrap=True)
    for text in written.on_the_way:
        out.print("  written on the way" if written.pairs else "  written", style="dim")
        out.print(said(text, verified))
    for drop in written.drops:
        out.print(reason(drop))
    out.print()


def _show_pair(out: Console, written: Written, pair: PreferencePair, verified: Verify) -> None:
    for name, style, text, index, score in (
        ("chosen", "bold green", pair.chosen, pair.chosen_index, pair.chosen_score),
        ("rejected", "bold red", pair.rejected, pair.rejected_index, pair.rejected_score),
    ):
        line = Text.assemble("  ", (name, style))
        line.append(f" · #{index}" if index in written.known else "")
        line.append(f" · score {score:+.3f}" if index >= 0 else "")  # -1: nobody compared them
        out.print(line)
        out.print(said(text, verified))


def image(run: Path, path: str) -> str:
    """Where an image of a run lies, and whether it is there."""
    found = run / path
    return safe(str(found)) + ("" if found.exists() else "  (missing)")
