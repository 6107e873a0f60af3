"""One sample's way through a run: what it is, what was made of it, and why.

Everything is read from the records of finished stages. The verifier's marks are added here, for
people; the calibration loop never saw them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfcal.errors import SelfcalError, StoreError
from selfcal.pipeline import Planned, locate, open_run
from selfcal.stage import Stage
from selfcal.store import StageDir
from selfcal.types import Drop, Response, Sample, WrittenRap
from selfcal.view.chain import Chain, indented, reason
from selfcal.view.pairs import show_search, show_written
from selfcal.view.rollouts import show_rollouts
from selfcal.view.status import command
from selfcal.view.text import heading, safe
from selfcal.view.verdicts import marked, outcome

_SPLITS = ("rft", "calibration", "dev", "test")


def show_trace(out: Console, run: Path, sample_id: str) -> None:
    """Print a sample's chain.

    Raises:
        SelfcalError: the folder is no run, or it has no such sample.
    """
    recipe = open_run(run)
    planned = {p.stage.name: p for p in locate(recipe, run)}
    for split, sample in _find(run, planned["data"].folder, sample_id):
        chain = Chain(run, recipe, planned, split, _told(planned, split, sample))
        _show_sample(out, chain)
        if split == "rft":
            _show_teacher(out, chain)
        for p in planned.values():
            if _concerns(p.stage, split):
                _show_stage(out, chain, p.stage)
        if split in ("dev", "test"):
            _show_responses(out, chain)


def _concerns(stage: Stage, split: str) -> bool:
    """Whether a stage's samples are those of a split, as far as it is shown by `_show_stage`."""
    taught = stage.name.startswith("judge/") or "teacher" in stage.inputs
    return split == ("rft" if taught else "calibration")


def _show_stage(out: Console, chain: Chain, stage: Stage) -> None:
    where, _, kind = stage.name.rpartition("/")
    if kind == "candidates":
        show_search(out, chain, stage)
    elif kind == "pairs" and f"{where}/candidates" not in chain.planned:
        show_written(out, chain, stage)
    elif kind == "grpo":
        show_rollouts(out, chain, stage)
    elif kind in ("dpo", "sft") and (drops := chain.own(stage.name, "drops", Drop)):
        out.print(heading(stage.name))
        for drop in drops:
            out.print(reason(drop))
        out.print()


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


def _told(planned: Mapping[str, Planned], split: str, sample: Sample) -> Sample:
    """The sample with the facts that the teacher wrote for it, if it did."""
    facts = planned.get("facts")
    if facts is None or not facts.folder.done or not facts.folder.has(split, 0):
        return sample
    return next((s for s in facts.folder.records(split, Sample) if s.id == sample.id), sample)


# --- the sample, and the teacher's rationale ------------------------------------------------


def _show_sample(out: Console, chain: Chain) -> None:
    sample = chain.sample
    out.print(heading(f"{sample.id} · {chain.split} · {sample.category or 'no category'}"))
    rows = {
        "image": " | ".join(map(chain.image, sample.images)),
        "question": sample.question,
        "choices": " | ".join(sample.choices),
        "answer": sample.answer,
        "facts": sample.facts,
        "certainty": _certainty(chain),
    }
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, text in rows.items():
        if text:
            grid.add_row(Text(name, "dim"), Text(safe(text), overflow="fold"))
    out.print(grid)
    out.print()


def _certainty(chain: Chain) -> str:
    """How far the facts can be trusted; nothing where they are certain."""
    if chain.sample.confidence >= 1:
        return ""
    verified = chain.recipe.data.miniworld
    marks = "; marks are wrong where one was misread" if verified else ""
    return f"{chain.sample.confidence:.2f}: facts are uncertain{marks}"


def _show_teacher(out: Console, chain: Chain) -> None:
    if "teacher" not in chain.planned:
        return
    out.print(heading("The teacher's rationale"))
    raps = chain.own("teacher", "raps", WrittenRap)
    drops = chain.own("teacher", "drops", Drop)
    if not chain.done("teacher"):
        out.print(indented(Text("not written yet", "dim")))
    for rap in raps:
        out.print(indented(marked(rap.text, chain.verified(rap.text))))
    for drop in [*drops, *chain.own("rft", "drops", Drop)]:
        out.print(reason(drop))
    out.print()


# --- responses ------------------------------------------------------------------------------


def _show_responses(out: Console, chain: Chain) -> None:
    out.print(heading("Greedy responses"))
    for checkpoint, response in _responses(chain):
        found = chain.verified(response.text)
        said = outcome(found) if found else Text("right" if response.correct else "wrong")
        out.print(Text.assemble(f"  {safe(checkpoint)}: ", said))
        out.print(indented(marked(response.text, found), 6))
    missing = [
        name.removeprefix("eval/")
        for name in chain.planned
        if name.startswith("eval/") and not chain.done(name)
    ]
    if missing:
        out.print(indented(Text(f"not measured yet: {', '.join(map(safe, missing))}", "dim")))
    out.print()


def _responses(chain: Chain) -> Iterator[tuple[str, Response]]:
    for stage in chain.planned:
        if stage.startswith("eval/"):
            for response in chain.own(stage, chain.split, Response):
                yield stage.removeprefix("eval/"), response
