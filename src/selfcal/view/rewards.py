"""The audit of an online method's rewards: its responses in, tables and findings out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from selfcal.errors import StoreError
from selfcal.judge.labels import LabelError, VerifierLabels
from selfcal.judge.rewards import audit_rewards
from selfcal.methods.parts.online import signals_of
from selfcal.pipeline import Planned, locate, open_run
from selfcal.rationale import FORMATS
from selfcal.store import JSON
from selfcal.train.online import ROLLOUTS
from selfcal.types import Aspect, Rollout, Sample
from selfcal.view.findings import figure_cell, show_findings
from selfcal.view.status import command
from selfcal.view.text import heading, safe, table

_ONLINE = re.compile(r"iter-(\d+)/grpo")


def is_online(planned: Mapping[str, Planned]) -> bool:
    """Whether a run is of an online method."""
    return any(_ONLINE.fullmatch(name) for name in planned)


def audit_online(run: Path) -> dict[str, JSON]:
    """The report of `audit_rewards` on a run, and what it was held against (`truth`).

    Raises:
        SelfcalError: the folder is no run of an online method, or has no responses yet.
    """
    recipe = open_run(run)
    planned = {p.stage.name: p for p in locate(recipe, run)}
    stages = {int(m[1]): p for name, p in planned.items() if (m := _ONLINE.fullmatch(name))}
    done = {t: p for t, p in stages.items() if p.folder.done}
    if not done:
        raise StoreError(f"{run} has no responses yet: {command('run', '--out', run)}")
    exact = recipe.data.miniworld
    samples = {s.id: s for s in planned["data"].folder.read("calibration", Sample)}
    labels = VerifierLabels(FORMATS[recipe.format])

    def truth(rollout: Rollout, aspect: Aspect) -> bool | None:
        sample = samples[rollout.sample_id]
        if not exact or (aspect != "entailed" and sample.confidence < 1):
            return None
        try:
            return labels.grade(sample, rollout.text, aspect)
        except LabelError:  # facts that leave the question open
            return None

    responses = {t: partial(p.folder.read, ROLLOUTS, Rollout) for t, p in done.items()}
    signals = signals_of(next(iter(done.values())).stage)
    return {"truth": "verifier" if exact else None, **audit_rewards(responses, signals, truth)}


def show_rewards(out: Console, found: Mapping[str, Any]) -> None:
    """Print a report."""
    held = "held against MiniWorld's verifier" if found["truth"] else "the truth is not known"
    out.print(heading(f"What was rewarded, {held}"))
    right = ["responses", "reinforced and reliable", "n"]
    rows = table("iteration", *right, right=right)
    for t, own in found["iterations"].items():
        up = own["reinforced"]
        n = Text(f"{up['n']:,}", "dim")
        rows.add_row(t, f"{own['responses']:,}", figure_cell(up), n)
    out.print(rows)
    out.print(
        "Reinforced: of the responses with an advantage above 0, how many are right, sound and in "
        "form.", style="dim",
    )  # fmt: skip
    out.print()
    for signal in found["drift"]:
        _show_signal(out, signal, found["iterations"])
    show_findings(out, found)


def _show_signal(out: Console, signal: str, iterations: Mapping[str, Any]) -> None:
    shown = ["mean", "deserved", "overrated", "order"]
    right = [*shown, "pairs"]
    out.print(heading(f"The judge's signal: {safe(signal)}"))
    rows = table("iteration", *right, right=right)
    for t, own in iterations.items():
        found = own["signals"][signal]
        cells = [figure_cell(found[name]) for name in shown]
        rows.add_row(t, *cells, Text(f"{found['order']['n']:,}", "dim"))
    out.print(rows)
    out.print(
        "Deserved: how many truly deserve a yes. Overrated: the mean less that. Order: of two "
        "responses of a group of which one does, how often it got more.", style="dim",
    )  # fmt: skip
    out.print()
