"""What a harness run has found: a table for people, JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from crash.kills import KILLS, by_stage

_CALLED = {
    "full": "disk full, injected",
    "quota": "quota spent, injected",
    "readonly": "folder read-only, injected",
    "full disk": "disk full, a real one",
    "read-only disk": "disk read-only, a real one",
}


def summed(
    outcomes: Sequence[Mapping[str, Any]], stages: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The report as JSON. `settings`: what was asked for, and on what."""
    fired = [f for o in outcomes if not o["control"] for f in o["fired"]]
    killed = [f for f in fired if f["kind"] in KILLS]
    table = by_stage(killed)
    return {
        **settings,
        "kills": {
            "fired": len(killed),
            "unreached": sum(o["unreached"] for o in outcomes),
            "by_kind": dict(Counter(f["kind"] for f in killed)),
            "by_stage": {name: dict(table.get(name, {})) for name in stages},
            "stages_without": [name for name in stages if name not in table],
        },
        "other_faults": dict(Counter(f["kind"] for f in fired if f["kind"] not in KILLS)),
        "controls": {o["control"]: o["caught"] for o in outcomes if o["control"]},
        "sources": sorted({o["source"] for o in outcomes}),
        "faults": {o["name"]: o["faults"] for o in outcomes if o["faults"]},
        "runs": list(outcomes),
    }


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    kills = report["kills"]
    lines = [
        f"{kills['fired']} kills fired of {report['points']} asked for, in {len(report['runs'])} "
        f"disturbed runs (seed {report['seed']}); {kills['unreached']} points were not reached.",
        "",
        f"| stage | {' | '.join(KILLS)} | all |",
        f"|---|{'--:|' * (len(KILLS) + 1)}",
    ]
    for name, own in kills["by_stage"].items():
        counts = " | ".join(str(own.get(kind, 0)) for kind in KILLS)
        lines.append(f"| {name} | {counts} | {sum(own.values())} |")
    counts = " | ".join(str(kills["by_kind"].get(kind, 0)) for kind in KILLS)
    lines += [f"| all | {counts} | {kills['fired']} |", "", "| other fault | times |", "|---|--:|"]
    lines += [
        f"| {_CALLED.get(kind, f'file {kind}')} | {n} |"
        for kind, n in sorted(report["other_faults"].items())
    ]
    lines += ["", _verdict(report)]
    lines += [
        f"Control {name}: {len(caught)} faults found, as there must be."
        for name, caught in report["controls"].items()
        if caught
    ]
    lines += [f"- {name}: {f}" for name, found in report["faults"].items() for f in found]
    return "\n".join(lines)


def _verdict(report: Mapping[str, Any]) -> str:
    """How it ended, in words."""
    found = [] if report["complete"] else ["PARTIAL: not all that was asked for has been done."]
    if len(report["sources"]) > 1:
        found.append(f"selfcal changed while it ran: {len(report['sources'])} versions of it.")
    if not report["disk"]:
        found.append("No file system could be mounted: full disks were injected alone.")
    wrong, runs = len(report["faults"]), len(report["runs"])
    found.append(
        f"{wrong} of {runs} runs are not what they should be:" if wrong
        else f"All {runs} runs ended as the undisturbed one."
    )  # fmt: skip
    return " ".join(found)
