"""What an online method sampled for a sample, what each response was worth, and why."""

from __future__ import annotations

import math
from collections import Counter
from itertools import groupby

from rich.console import Console
from rich.text import Text

from selfcal.methods.parts.online import signals_of
from selfcal.stage import Stage
from selfcal.train.online import ROLLOUTS
from selfcal.types import Drop, Rollout
from selfcal.view.chain import Chain, indented, reason
from selfcal.view.text import heading


def show_rollouts(out: Console, chain: Chain, stage: Stage) -> None:
    """Print the sample's groups of responses, equal ones once."""
    found = chain.own(stage.name, ROLLOUTS, Rollout)
    drops = chain.own(stage.name, "drops", Drop)
    if not (found or drops) and chain.done(stage.name):
        return  # other samples were asked, or the budget was spent before it
    out.print(heading(f"{stage.name}: {len(found)} responses" if found else stage.name))
    if not chain.done(stage.name):
        out.print(indented(Text("not trained yet", "dim")))
    for drop in drops:
        out.print(reason(drop))
    for step, group in groupby(found, key=lambda r: r.step):
        own = list(group)
        out.print(indented(Text(f"batch {step}, a group of {len(own)}", "dim")))
        times = Counter(r.text for r in own)
        shown = sorted({r.text: r for r in own}.values(), key=lambda r: (-r.advantage, r.index))
        for rollout in shown:
            out.print(indented(_worth(stage, rollout, times[rollout.text])))
            out.print(chain.said(rollout.text))
    out.print()


def _worth(stage: Stage, rollout: Rollout, times: int) -> Text:
    parts = [f"advantage {rollout.advantage:+.3f}", f"reward {rollout.reward:+.3f}"]
    if not math.isnan(rollout.correct):
        parts.append("answer right" if rollout.correct else "answer wrong")
    for name, value in zip(signals_of(stage), rollout.judged, strict=False):
        parts.append(f"{name} -" if math.isnan(value) else f"{name} {value:.3f}")
    style = "green" if rollout.advantage > 0 else "red" if rollout.advantage < 0 else ""
    line = Text(" · ".join(parts), style)
    return line.append(f"  {times} times", "dim") if times > 1 else line
