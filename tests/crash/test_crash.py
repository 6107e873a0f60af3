"""A sample of the crash harness, of which `make crash` runs all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crash.shim import compiler

ROOT = Path(__file__).parents[2]
SAMPLE = "kills-00|damage-(finished|notes|in-work)-0|control"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not compiler():
        pytest.skip("no C compiler on PATH")
    out = tmp_path_factory.mktemp("crash")
    command = [
        sys.executable,
        "-m",
        "tests.crash",
        "--points",
        "15",
        "--each",
        "1",
        "--rounds",
        "1",
    ]
    done = subprocess.run(
        [*command, "--seed", "0", "--jobs", "2", "--only", SAMPLE, "--out", out],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert (out / "report.json").exists(), done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def test_runs_that_were_killed_or_damaged_end_as_the_undisturbed_one(
    report: dict[str, Any],
) -> None:
    assert report["faults"] == {}
    names = {o["name"] for o in report["runs"] if not o["control"]}
    assert names == {"kills-00", "damage-finished-0", "damage-notes-0", "damage-in-work-0"}


def test_kills_fired_in_every_part_of_the_run(report: dict[str, Any]) -> None:
    (killed,) = [o for o in report["runs"] if o["name"] == "kills-00"]
    assert killed["attempts"] == len(killed["fired"]) + 1
    assert report["kills"]["fired"] == len(killed["fired"]) >= 12
    assert set(report["kills"]["by_kind"]) == {"time", "progress", "step", "halfway"}


def test_faults_of_a_careless_selfcal_are_found(report: dict[str, Any]) -> None:
    """Else the harness could not tell."""
    assert set(report["controls"]) == {"unchecked", "in-place"}
    assert all(report["controls"].values())


def test_a_report_of_less_than_was_asked_for_says_so(report: dict[str, Any]) -> None:
    kills = report["kills"]
    assert report["complete"] == (kills["fired"] >= 12 and not kills["stages_without"])
