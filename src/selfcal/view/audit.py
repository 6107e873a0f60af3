"""The audit of a run's judge: records of finished stages in, tables and findings out.

What the judge is held against is MiniWorld's verifier, or verdicts that people wrote down in a
file. On other data without such a file the figures that need no truth remain.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, Field, ValidationError, model_validator
from rich.console import Console
from rich.text import Text

from selfcal.errors import SelfcalError, StoreError, first_fault
from selfcal.judge.audit import Asked, Truth, audit
from selfcal.judge.labels import known_truth
from selfcal.judge.quality import MIRROR
from selfcal.methods.parts.base import BySample
from selfcal.pipeline import Planned, locate, open_run
from selfcal.rationale import FORMATS, RapFormat
from selfcal.store import JSON, explained
from selfcal.types import Candidate, Judgment, Sample, Verdict
from selfcal.view.findings import figure_cell, show_findings
from selfcal.view.rewards import audit_online, is_online, show_rewards
from selfcal.view.status import command
from selfcal.view.text import amount, console, heading, safe, table


def audit_command(run: Path, as_json: bool, labels: Path | None) -> None:
    """Audit a run's judge and print what was found.

    Raises:
        SelfcalError: the folder is no run or has no judgments yet, or the labels cannot be used.
    """
    planned = {p.stage.name: p for p in locate(open_run(run), run)}
    online = is_online(planned)
    if online and labels:
        raise SelfcalError(
            f"{run}: {labels} has verdicts about candidates, and an online method has none; leave "
            "--labels out"
        )
    found = audit_online(run) if online else audit_run(run, labels)
    if as_json:
        typer.echo(json.dumps(found, indent=1, allow_nan=False))
    elif online:
        show_rewards(console(), found)
    else:
        show_audit(console(), found)


def audit_run(run: Path, labels: Path | None = None) -> dict[str, JSON]:
    """The report of `audit` on a run, and what it was held against (`truth`).

    Raises:
        SelfcalError: as `audit_command`.
    """
    recipe = open_run(run)
    planned = {p.stage.name: p for p in locate(recipe, run)}
    rounds = rounds_of(run, planned)
    by_hand = _Labels(labels) if labels else None
    exact = recipe.data.miniworld
    truth = "labels" if by_hand else "verifier" if exact else None
    samples = {s.id: s for s in planned["data"].folder.read("calibration", Sample)}

    def asked() -> Iterator[Asked]:
        for t in rounds:
            for sample_id, own, given in sample_by_sample(planned, t):
                if (sample := samples.get(sample_id)) is None:
                    raise StoreError(
                        f"{run}: iter-{t}/candidates holds {sample_id[:200]!r}, which is no sample "
                        f"of data/calibration; one of the two is damaged: delete its folder and "
                        f"{command('run', '--out', run)}"
                    )
                known: Truth = _unknown
                if by_hand:
                    known = by_hand.of(t, sample_id, {c.index: c.text for c in own})
                elif exact:
                    known = _verifier(sample, FORMATS[recipe.format])
                yield Asked(t, sample, own, given, known)

    report = audit(asked())
    if by_hand:
        by_hand.check_all_met()
    return {"truth": truth, **report}


_FIRST = re.compile(r"iter-\d+/judgments")
"""The judgments of an iteration's first search; a second, wider one is of weak samples alone."""


def rounds_of(run: Path, planned: Mapping[str, Planned]) -> list[int]:
    """Iterations whose judgments are there.

    Raises:
        StoreError: there are none, or the method asks no judge.
    """
    names = [name for name in planned if _FIRST.fullmatch(name)]
    done = [name for name in names if planned[name].folder.done]
    if not names:
        raise StoreError(f"{run}: its method asks no judge; give a run whose method does")
    if not done:
        raise StoreError(f"{run} has no judgments yet: {command('run', '--out', run)}")
    return [int(name.split("/")[0].removeprefix("iter-")) for name in done]


def sample_by_sample(
    planned: Mapping[str, Planned], t: int
) -> Iterator[tuple[str, list[Candidate], list[Judgment]]]:
    """Candidates and judgments of one sample after the other, a shard of each in memory."""
    found = BySample(planned[f"iter-{t}/candidates"].folder, "candidates", Candidate)
    given = BySample(planned[f"iter-{t}/judgments"].folder, "judgments", Judgment, found)
    for sample_id in found:
        yield sample_id, found.of(sample_id), given.of(sample_id)


def _unknown(one: Candidate, other: Candidate) -> Verdict | None:
    return None


def _verifier(sample: Sample, form: RapFormat) -> Truth:
    return lambda one, other: known_truth(sample, one.text, other.text, form)


# --- labels of people -------------------------------------------------------------------------


class _Label(BaseModel, strict=True):
    """One line of a file of labels; other keys are left to who wrote it.

    A line that `selfcal audit --export` wrote has the texts as `first` and `second`, and the
    candidates' numbers beside them.
    """

    sample_id: str
    first: Annotated[int, Field(ge=0)]
    second: Annotated[int, Field(ge=0)]
    verdict: Verdict
    iteration: Annotated[int, Field(ge=1)] = 1
    texts: tuple[str, str] | None = None
    """Of an exported line."""

    @model_validator(mode="before")
    @classmethod
    def _exported(cls, line: Any) -> Any:
        if not isinstance(line, dict):
            return line
        own = {name: value for name, value in line.items() if name != "texts"}
        if "first_index" not in own or "second_index" not in own:
            return own
        texts = own.get("first"), own.get("second")
        return own | {"first": own["first_index"], "second": own["second_index"], "texts": texts}


class _Labels:
    """Verdicts out of a file, one JSON object a line; first and second are candidates' numbers."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            SelfcalError: it cannot be read, or a line is no label or labels a pair again.
        """
        self._path = path
        self._found: dict[tuple[int, str], dict[tuple[int, int], tuple[Verdict, int]]]
        self._found = defaultdict(dict)
        self._texts: dict[int, Mapping[int, str]] = {}
        self._met: set[tuple[int, str]] = set()
        with explained("read", path):
            lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        for number, line in enumerate(lines, start=1):
            if line.strip():
                self._add(self._parse(line, number), number)

    def of(self, t: int, sample_id: str, texts: Mapping[int, str]) -> Truth:
        """The labels of a sample; `texts` are its candidates' by their numbers.

        Raises:
            SelfcalError: one of them names a candidate that is not among these, or is about
                another text.
        """
        own = self._found.get((t, sample_id), {})
        self._met.add((t, sample_id))
        for (i, j), (_, number) in own.items():
            for index in (i, j):
                if index not in texts:
                    raise self._error(
                        number,
                        f"sample {sample_id!r} has no candidate {index} in iteration {t}; "
                        f"`selfcal trace` shows its candidates: {sorted(texts)}",
                    )
                if self._texts.get(number, texts).get(index) != texts[index]:
                    raise self._error(
                        number,
                        f"is about another text than candidate {index} of sample {sample_id!r} in "
                        f"iteration {t}; export the labels of this run, or delete the line",
                    )

        def truth(one: Candidate, other: Candidate) -> Verdict | None:
            i, j = sorted((one.index, other.index))
            verdict = own[i, j][0] if (i, j) in own else None
            return MIRROR[verdict] if verdict and one.index > other.index else verdict

        return truth

    def check_all_met(self) -> None:
        """Check that all samples with labels were there.

        Raises:
            SelfcalError: one was not.
        """
        for (t, sample_id), own in self._found.items():
            if (t, sample_id) not in self._met:
                number = min(number for _, number in own.values())
                raise self._error(
                    number,
                    f"the run has no judgments of a sample {sample_id!r} in iteration {t}; "
                    "correct the id or the iteration (1 if none is given)",
                )

    def _parse(self, line: bytes, number: int) -> _Label:
        try:
            label = _Label.model_validate_json(line)
        except ValidationError as error:
            raise self._error(
                number,
                f"{first_fault(error)}; a line is such as "
                '{"sample_id": "x", "first": 0, "second": 3, "verdict": "first", "iteration": 1}',
            ) from error
        if label.first == label.second:
            raise self._error(number, "first and second are the same candidate; compare two")
        return label

    def _add(self, label: _Label, number: int) -> None:
        own = self._found[label.iteration, label.sample_id]
        i, j = sorted((label.first, label.second))
        if (i, j) in own:
            raise self._error(
                number, f"labels the pair of line {own[i, j][1]} again; keep one of the two"
            )
        own[i, j] = (label.verdict if label.first == i else MIRROR[label.verdict], number)
        if label.texts:
            self._texts[number] = dict(zip((label.first, label.second), label.texts, strict=True))

    def _error(self, number: int, text: str) -> SelfcalError:
        return SelfcalError(f"{self._path}: line {number}: {text}")


# --- on a terminal ----------------------------------------------------------------------------

ABOUT = {
    "agreement": "right verdicts, each order by itself",
    "agreement_merged": "right verdicts, both orders averaged",
    "kappa": "the same beyond chance (Cohen)",
    "drift": "what it loses from the first to the last iteration",
    "flip_rate": "pairs whose verdict turns with the order",
    "first_bias": "preference for the first place over the second",
    "length_bias": "preference for the longer response, beyond the truth's",
    "self_preference": "preference for what the policy finds likelier, beyond the truth's",
    "transitivity_violations": "cycles among three responses",
    "ece": "gap between confidence and hit rate",
    "neutral_rate": "neutral verdicts",
    "unscored": "judgments that could not be read",
}
"""What the figures are."""
HELD = {
    "verifier": "held against MiniWorld's verifier",
    "labels": "held against the labels given",
    None: "the truth is not known: give --labels FILE for what needs it",
}
"""What stands behind the figures, by `truth`."""
_BAR = 20


def show_audit(out: Console, found: Mapping[str, Any]) -> None:
    """Print a report."""
    amounts = f"{amount(found['pairs'], 'pairs')} of {amount(found['samples'], 'samples')}"
    out.print(heading(f"The judge: {amounts}, {HELD[found['truth']]}"))
    rows = table("", "value", "n", "", right=["value", "n"])
    for name, about in ABOUT.items():
        figure = found[name]
        n = Text(f"{figure['n']:,}", "dim")
        rows.add_row(name, figure_cell(figure), n, Text(about, "dim"))
    out.print(rows)
    out.print()
    _show_parts(out, "By category", found["categories"])
    if len(found["iterations"]) > 1:
        _show_parts(out, "By iteration", found["iterations"])
    _show_reliability(out, found["reliability"])
    _show_lengths(out, found["length_bins"])
    show_findings(out, found)


def _show_parts(out: Console, title: str, parts: Mapping[str, Mapping[str, Any]]) -> None:
    if not parts:
        return
    names = list(next(iter(parts.values())))
    out.print(heading(title))
    rows = table("", *names, "pairs", right=[*names, "pairs"])
    for part, own in parts.items():
        n = Text(f"{own['flip_rate']['n']:,}", "dim")
        rows.add_row(safe(part), *(figure_cell(own[name]) for name in names), n)
    out.print(rows)
    out.print()


def _show_reliability(out: Console, bins: list[Mapping[str, Any]]) -> None:
    filled = [b for b in bins if b["n"]]
    if not filled:
        return
    out.print(heading("Confidence against hit rate"))
    right = ["confidence", "hit rate", "n"]
    rows = table("bin", *right, "", right=right)
    for b in filled:
        hits = figure_cell({"value": b["hit_rate"], "stderr": b["stderr"]})
        rows.add_row(
            f"{b['lower']:.1f} to {b['upper']:.1f}", f"{b['confidence']:.3f}", hits,
            Text(f"{b['n']:,}", "dim"), _bar(b["hit_rate"], b["confidence"]),
        )  # fmt: skip
    out.print(rows)
    out.print("The bar is the hit rate; │ is where the confidence would have it.", style="dim")
    out.print()


def _bar(hits: float, confidence: float) -> Text:
    filled, mark = round(hits * _BAR), min(round(confidence * _BAR), _BAR - 1)
    cells = ["━" if i < filled else " " for i in range(_BAR)]
    cells[mark] = "│"
    return Text("".join(cells))


def _show_lengths(out: Console, bins: list[Mapping[str, Any]]) -> None:
    filled = [b for b in bins if b["n"]]
    if not filled:
        return
    out.print(heading("How often the longer response wins (neutral counts half)"))
    right = ["judge", "truth", "judge - truth", "n"]
    rows = table("longer by", *right, right=right)
    for b in filled:
        known = b["truth"] is not None
        gap = {"value": b["judge"] - b["truth"] if known else None, "stderr": b["stderr"]}
        upper = f"to {b['upper']:.0%}" if b["upper"] else "and more"
        truth = f"{b['truth']:.3f}" if known else ""
        longer = f"{b['lower']:.0%} {upper}"
        rows.add_row(
            longer, f"{b['judge']:.3f}", truth, figure_cell(gap), Text(f"{b['n']:,}", "dim")
        )
    out.print(rows)
    out.print()
