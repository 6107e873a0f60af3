"""What an online method sampled for a sample, what each response was worth, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from selfcal.story import Rollouts
from selfcal.types import Rollout
from selfcal.view.text import heading, indented, reason
from selfcal.view.verdicts import Verify, said


def show_rollouts(out: Console, part: Rollouts, verified: Verify) -> None:
    """Print the sample's groups of responses, equal ones once."""
    found = part.rollouts
    out.print(heading(f"{part.stage}: {len(found)} responses" if found else part.stage))
    if not part.done:
        out.print(indented(Text("not trained yet", "dim")))
    for drop in part.drops:
        out.print(reason(drop))
    for step, group in groupby(found, key=lambda r: r.step):
        own = list(group)
        out.print(indented(Text(f"batch {step}, a group of {len(own)}", "dim")))
        times = Counter(r.text for r in own)
        shown = sorted({r.text: r for r in own}.values(), key=lambda r: (-r.advantage, r.index))
        for rollout in shown:
            out.print(indented(_worth(part.signals, rollout, times[rollout.text])))
            out.print(said(rollout.text, verified))
    out.print()


def _worth(signals: Sequence[str], rollout: Rollout, times: int) -> Text:
    parts = [f"advantage {rollout.advantage:+.3f}", f"reward {rollout.reward:+.3f}"]
    if not math.isnan(rollout.correct):
        parts.append("answer right" if rollout.correct else "answer wrong")
    for name, value in zip(signals, rollout.judged, strict=False):
        parts.append(f"{name} -" if math.isnan(value) else f"{name} {value:.3f}")
    style = "green" if rollout.advantage > 0 else "red" if rollout.advantage < 0 else ""
    line = Text(" · ".join(parts), style)
    return line.append(f"  {times} times", "dim") if times > 1 else line
