"""What trainings logged in; a chart for each figure, a line for each iteration, out.

TRL logs no divergence for DPO. Its implicit reward of a response is `beta` times the log-ratio of
policy and reference, so that `-(chosen + rejected) / (2 beta)` is, in nats a response, the mean of
log(reference / policy) over both responses of the pairs: the k1 estimate of KL(reference || policy)
as far as the pairs are draws of the reference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from selfcal.report.charts import NUMBERS, SHARES, Chart, Charts, Line, Look, Mark
from selfcal.report.measures import Panels
from selfcal.report.record import Record

Row = Mapping[str, Any]
_STAGE = re.compile(r"iter-(\d+)/([\w-]+)")


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure that a training logs."""

    title: str
    about: str
    read: Callable[[Row], Any]
    """Its value in a row of the log; None where there is none."""
    look: Look = NUMBERS
    level: float | None = None


def _logged(key: str) -> Callable[[Row], Any]:
    return lambda row: row.get(key)


_LOSS = Plot("Loss", "", _logged("loss"))
_TOKENS = Plot(
    "Token accuracy", "the model's likeliest token is the one that stands there",
    _logged("mean_token_accuracy"), SHARES,
)  # fmt: skip
_SFT = (_LOSS, _TOKENS)
_DPO = (
    replace(_LOSS, about="of DPO, with its SFT term"),
    Plot(
        "rewards/margins",
        "implicit reward of the chosen response less that of the rejected one",
        _logged("rewards/margins"), level=0,
    ),
    Plot(
        "rewards/accuracies",
        "pairs whose chosen response has the higher implicit reward; at first all are equal, and "
        "equal counts as a miss",
        _logged("rewards/accuracies"), Look(SHARES.say, SHARES.tick, (0.0, 1.03)), level=0.5,
    ),
    Plot(
        "rewards/chosen",
        "implicit reward of the chosen response",
        _logged("rewards/chosen"), level=0,
    ),
    Plot(
        "rewards/rejected", "the same of the rejected response",
        _logged("rewards/rejected"), level=0,
    ),
)  # fmt: skip
_GRPO = (
    Plot("Mean reward", "of the sampled responses", _logged("group_reward")),
    replace(_LOSS, about="of GRPO; no measure of progress, as advantages are relative"),
    Plot("KL", "from the iteration's first policy, nats a token (TRL's estimate)", _logged("kl")),
    Plot("Length", "tokens of a sampled response, mean", _logged("completions/mean_length")),
    Plot("Entropy", "of the next token, nats", _logged("entropy")),
)


def panels(record: Record, charts: Charts) -> list[Panels]:
    """Charts of all trainings that are finished, by their kind."""
    logs = {
        name: rows for name in record.manifests if (rows := _rows(record.stats(name).get("curve")))
    }
    kinds: dict[str, dict[str, Sequence[Row]]] = {}
    for name, rows in logs.items():
        found = _STAGE.fullmatch(name)
        own = f"iteration {found[1]}" if found else ""
        kinds.setdefault(found[2] if found else name, {})[own] = rows
    made = [_kind(record, charts, kind, own) for kind, own in kinds.items() if "" not in own]
    once = [_kind(record, charts, kind, own) for kind, own in kinds.items() if "" in own]
    others = tuple(
        replace(c, title=f"{one.title}: {c.title.lower()}") for one in once for c in one.charts
    )
    return [p for p in (Panels("Training before the iterations", "", others), *made) if p.charts]


def _rows(curve: Any) -> list[Row]:
    rows = curve if isinstance(curve, Sequence) and not isinstance(curve, str) else ()
    return [row for row in rows if isinstance(row, Mapping) and _is_number(row.get("step"))]


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


_TITLES = {
    "rft": "Rationale fine-tuning",
    "sft": "Fine-tuning",
    "dpo": "Preference tuning (DPO)",
    "grpo": "Online training (GRPO)",
    "judge/train": "R-Scorer",
}


def _kind(record: Record, charts: Charts, kind: str, logs: Mapping[str, Sequence[Row]]) -> Panels:
    plots: tuple[Plot, ...] = {"dpo": _DPO, "grpo": _GRPO}.get(kind, _SFT)
    about = ""
    if kind == "dpo" and (estimate := _divergence(record)):
        plots, about = (*plots[:3], estimate, *plots[3:]), _how_estimated(record)
    if kind == "grpo":
        plots += _learned(record)
    drawn = [_chart(charts, plot, logs) for plot in plots]
    return Panels(_TITLES.get(kind, kind), about, tuple(c for c in drawn if c))


def _divergence(record: Record) -> Plot | None:
    """The estimate for DPO; None where pairs are not the reference policy's own responses."""
    own = [p for name, p in record.planned.items() if re.fullmatch(r"iter-\d+/(.+/)?pairs", name)]
    searched = [p for p in own if any(i.endswith("/candidates") for i in p.stage.inputs)]
    if not own or len(searched) < len(own):
        return None
    beta = record.recipe.dpo.beta

    def estimate(row: Row) -> float | None:
        chosen, rejected = row.get("rewards/chosen"), row.get("rewards/rejected")
        if not (_is_number(chosen) and _is_number(rejected)):
            return None
        return -(float(chosen) + float(rejected)) / (2 * beta) + 0.0  # not -0

    about = "of reference and policy, nats a response; estimated as said above"
    return Plot("KL, estimated", about, estimate, level=0)


def _how_estimated(record: Record) -> str:
    return (
        "The implicit reward of a response is beta times the log of how much likelier the policy "
        "finds it than its reference, the policy that the iteration began with. KL(reference ‖ "
        "policy) is not logged but estimated (k1) on the pairs' own responses: half of "
        f"rewards/chosen + rewards/rejected, over minus beta ({record.recipe.dpo.beta:g}). Best "
        "and worst of a search are no random draw: take its course, not its value."
    )


def _learned(record: Record) -> tuple[Plot, ...]:
    """What an online method learned beside the policy, such as multipliers."""
    found = [record.stats(name).get("learned") for name in record.manifests]
    names = dict.fromkeys(k for own in found if isinstance(own, Mapping) for k in own)
    return tuple(Plot(str(n), "learned with the policy", _logged(n)) for n in names)


def _chart(charts: Charts, plot: Plot, logs: Mapping[str, Sequence[Row]]) -> Chart | None:
    lines = [Line(name, _marks(plot, rows), i) for i, (name, rows) in enumerate(logs.items())]
    look = replace(plot.look, named=False, across="optimizer step", level=plot.level)
    return charts.lines(plot.title, plot.about, lines, look)


def _marks(plot: Plot, rows: Iterable[Row]) -> tuple[Mark, ...]:
    read = [(float(row["step"]), plot.read(row)) for row in rows]
    return tuple(Mark(x, f"step {x:g}", float(v)) for x, v in read if _is_number(v))
