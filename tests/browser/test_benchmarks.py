"""The benchmark of reports runs, at its smallest, and ends with one JSON line of figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from browser.runs import Runs

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("browser")
def test_report(runs: Runs) -> None:
    command = [sys.executable, "benchmarks/report.py", "--quick", "--run", runs["plain"]]
    done = subprocess.run(
        [*map(str, command), "--times", "1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0 < found["megabytes_20"] < 5
    assert found["first_paint_ms_20"] > 0
    assert found["open_ms_20"] > 0
    assert found["filter_ms_20"] > 0
