"""One sample's way through a run: what it is, what was made of it, and why.

Everything is read from the records of finished stages. The verifier's marks are added here, for
people; the calibration loop never saw them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from selfcal.curate import AGGREGATORS, merge_orders
from selfcal.errors import SelfcalError, StoreError
from selfcal.methods.parts.scoring import unasked
from selfcal.miniworld.verifier import Verification, verify
from selfcal.pipeline import Planned, locate, open_run
from selfcal.recipe import Recipe
from selfcal.stage import Stage
from selfcal.store import StageDir
from selfcal.types import (
    Candidate,
    Drop,
    Judgment,
    LabelledPair,
    PreferencePair,
    Response,
    Sample,
    WrittenRap,
)
from selfcal.view.status import command
from selfcal.view.text import heading, safe
from selfcal.view.verdicts import marked, outcome

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
_SPLITS = ("rft", "calibration", "dev", "test")


@dataclass(frozen=True)
class _Chain:
    """A sample, and the door to the records that name it."""

    run: Path
    recipe: Recipe
    planned: Mapping[str, Planned]
    split: str
    sample: Sample

    def own(self, stage: str, name: str, kind: type[T]) -> list[T]:
        """The sample's records of a finished stage; none if it is not planned or not finished."""
        found = self.planned.get(stage)
        if found is None or not _has(found.folder, name):
            return []
        rows = found.folder.read(name, kind)
        return [row for row in rows if getattr(row, "sample_id", None) == self.sample.id]

    def done(self, stage: str) -> bool:
        return stage in self.planned and self.planned[stage].folder.done

    def verified(self, text: str) -> Verification | None:
        if self.recipe.data.source != "miniworld":
            return None
        try:
            return verify(self.sample, text)
        except ValueError:
            return None


def _has(folder: StageDir, name: str) -> bool:
    return folder.done and folder.has(name, 0)


def show_trace(out: Console, run: Path, sample_id: str) -> None:
    """Print a sample's chain.

    Raises:
        SelfcalError: the folder is no run, or it has no such sample.
    """
    recipe = open_run(run)
    planned = {p.stage.name: p for p in locate(recipe, run)}
    for split, sample in _find(run, planned["data"].folder, sample_id):
        chain = _Chain(run, recipe, planned, split, sample)
        _show_sample(out, chain)
        if split == "rft":
            _show_teacher(out, chain)
        for stage in planned.values():
            if stage.stage.name.endswith("/candidates") and _concerns(stage.stage, split):
                _show_search(out, chain, stage.stage.name.removesuffix("/candidates"))
        if split in ("dev", "test"):
            _show_responses(out, chain)


def _concerns(stage: Stage, split: str) -> bool:
    return split == ("rft" if stage.name.startswith("judge/") else "calibration")


def _find(run: Path, data: StageDir, sample_id: str) -> list[tuple[str, Sample]]:
    """The sample and its split; two splits of foreign data may share an id."""
    if not data.done:
        raise StoreError(f"{run} has no samples yet: {command('run', '--out', run)}")
    splits = {s: data.read(s, Sample) for s in _SPLITS if data.has(s, 0)}
    found = [(split, s) for split, own in splits.items() for s in own if s.id == sample_id]
    if not found:
        near = get_close_matches(sample_id, [s.id for own in splits.values() for s in own], n=3)
        hint = f"; near: {', '.join(near)}" if near else ""
        have = ", ".join(
            f"{split} ({len(own):,}, such as {own[0].id})" for split, own in splits.items() if own
        )
        raise SelfcalError(f"sample {sample_id!r}: not in {run}{hint}; its splits: {have}")
    return found


# --- the sample, and the teacher's rationale ------------------------------------------------


def _show_sample(out: Console, chain: _Chain) -> None:
    sample = chain.sample
    out.print(heading(f"{sample.id} · {chain.split} · {sample.category or 'no category'}"))
    image = chain.run / sample.image
    rows = {
        "image": str(image) + ("" if image.exists() else "  (missing)"),
        "question": sample.question,
        "choices": " | ".join(sample.choices),
        "answer": sample.answer,
        "facts": sample.facts,
    }
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, text in rows.items():
        if text:
            grid.add_row(Text(name, "dim"), Text(safe(text), overflow="fold"))
    out.print(grid)
    out.print()


def _show_teacher(out: Console, chain: _Chain) -> None:
    if "teacher" not in chain.planned:
        return
    out.print(heading("The teacher's rationale"))
    raps = chain.own("teacher", "raps", WrittenRap)
    drops = chain.own("teacher", "drops", Drop)
    if not chain.done("teacher"):
        out.print(_indent(Text("not written yet", "dim")))
    for rap in raps:
        out.print(_indent(marked(rap.text, chain.verified(rap.text))))
    for drop in [*drops, *chain.own("rft", "drops", Drop)]:
        out.print(_indent(_reason(drop)))
    out.print()


def _reason(drop: Drop) -> Text:
    detail = f": {safe(drop.detail)}" if drop.detail else ""
    return Text.assemble(
        ("left out ", "yellow"), f"{safe(drop.stage)}, {safe(drop.reason)}{detail}"
    )


def _indent(what: Table | Text, by: int = 2) -> Padding:
    return Padding(what, (0, 0, 0, by), expand=False)


# --- candidates, judgments, pair ------------------------------------------------------------


def _show_search(out: Console, chain: _Chain, where: str) -> None:
    stage = f"{where}/candidates"
    found = chain.own(stage, "candidates", Candidate)
    drops = chain.own(stage, "drops", Drop)
    if chain.done(stage) and not found and not drops:
        return  # another part of the calibration samples was searched
    out.print(heading(f"{where}: {len(found)} candidates" if found else f"{where}: candidates"))
    if not chain.done(stage):
        out.print(_indent(Text("not searched yet", "dim")))
    for drop in drops:
        out.print(_indent(_reason(drop)))
    judgments = chain.own(f"{where}/judgments", "judgments", Judgment)
    pairs = chain.own(f"{where}/pairs", "pairs", PreferencePair)
    seen = [*judgments, *unasked(chain.recipe, found, judgments)]
    scores = AGGREGATORS[chain.recipe.curate.aggregator](merge_orders(seen))
    for candidate in sorted(found, key=lambda c: c.index):
        _show_candidate(out, chain, candidate, scores, pairs)
    if judgments:
        _show_matrix(out, judgments)
    _show_labels(out, chain, where)
    _show_outcome(out, chain, where, pairs)
    out.print()


def _show_candidate(
    out: Console,
    chain: _Chain,
    candidate: Candidate,
    scores: Mapping[int, float],
    pairs: Sequence[PreferencePair],
) -> None:
    parts = [f"#{candidate.index}"]
    if candidate.index in scores:
        parts.append(f"score {scores[candidate.index]:+.3f}")
    parts.append(f"log-probability {candidate.logprob:.2f}")
    if not candidate.finished:
        parts.append("cut at the length limit")
    line = Text("  " + " · ".join(parts))
    for pair in pairs:
        if candidate.index == pair.chosen_index:
            line.append(" · chosen", "bold green")
        elif candidate.index == pair.rejected_index:
            line.append(" · rejected", "bold red")
    out.print(line)
    out.print(_indent(marked(candidate.text, chain.verified(candidate.text)), 6))


def _show_matrix(out: Console, judgments: Sequence[Judgment]) -> None:
    """Print who beats whom: the judgments of both orders, averaged."""
    players = sorted({i for g in judgments for i in (g.first, g.second)})
    cells = {}
    for c in merge_orders(judgments):
        best = max(c.p_i, c.p_j, c.p_neutral)
        sign = (c.p_i == best) - (c.p_j == best) if c.p_neutral < best else 0
        cells[c.i, c.j] = _CELL[sign] + f"{best:.2f}", _STYLE[sign]
        cells[c.j, c.i] = _CELL[-sign] + f"{best:.2f}", _STYLE[-sign]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row("", *(Text(f"#{j}", "dim", justify="right") for j in players))
    for i in players:
        row = [("", "") if i == j else cells.get((i, j), ("?", "yellow")) for j in players]
        texts = [Text(text, style, justify="right") for text, style in row]
        grid.add_row(Text(f"#{i}", "dim"), *texts)
    unscored = sum(g.verdict is None for g in judgments)
    out.print(
        f"  {len(judgments)} judgments, {unscored} unscored; row against column, "
        "both orders averaged:"
    )
    out.print(_indent(grid, 6))
    out.print(
        "  + row is better, - column is better, = neutral; the number is the verdict's confidence"
        + (
            "; ? was not asked, or not read."
            if len(cells) < len(players) * (len(players) - 1)
            else "."
        ),
        style="dim",
    )


_CELL = {1: "+", -1: "-", 0: "="}
_STYLE = {1: "green", -1: "red", 0: "dim"}


def _show_labels(out: Console, chain: _Chain, where: str) -> None:
    """Print the label-giving judge's verdicts, of samples that the R-Scorer learns from."""
    for pair in chain.own(f"{where}/labels", "labelled", LabelledPair):
        names = {"first": "first is better", "second": "second is better", "neutral": "neutral"}
        out.print(f"  label: {names[pair.verdict]}")
        for name, text in (("first", pair.first), ("second", pair.second)):
            out.print(_indent(Text.assemble((f"{name}  ", "dim"), safe(text)), 6))
    for drop in chain.own(f"{where}/labels", "drops", Drop):
        out.print(_indent(_reason(drop)))


def _show_outcome(out: Console, chain: _Chain, where: str, pairs: Sequence[PreferencePair]) -> None:
    for pair in pairs:
        out.print(
            f"  pair: #{pair.chosen_index} chosen over #{pair.rejected_index}, margin "
            f"{pair.margin:.3f} ({pair.chosen_score:+.3f} against {pair.rejected_score:+.3f})"
        )
        if pair.rejected_image:
            out.print(f"  rejected image: {safe(pair.rejected_image)}", soft_wrap=True)
    for stage in (f"{where}/pairs", f"{where}/dpo"):
        for drop in chain.own(stage, "drops", Drop):
            out.print(_indent(_reason(drop)))


# --- responses ------------------------------------------------------------------------------


def _show_responses(out: Console, chain: _Chain) -> None:
    out.print(heading("Greedy responses"))
    for checkpoint, response in _responses(chain):
        found = chain.verified(response.text)
        said = outcome(found) if found else Text("right" if response.correct else "wrong")
        out.print(Text.assemble(f"  {safe(checkpoint)}: ", said))
        out.print(_indent(marked(response.text, found), 6))
    missing = [
        name.removeprefix("eval/")
        for name in chain.planned
        if name.startswith("eval/") and not chain.done(name)
    ]
    if missing:
        out.print(_indent(Text(f"not measured yet: {', '.join(map(safe, missing))}", "dim")))
    out.print()


def _responses(chain: _Chain) -> Iterator[tuple[str, Response]]:
    for stage in chain.planned:
        if stage.startswith("eval/"):
            for response in chain.own(stage, chain.split, Response):
                yield stage.removeprefix("eval/"), response
