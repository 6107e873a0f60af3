"""The benchmarks run, at their smallest, and end with one JSON line of figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from e2e.runs import Undisturbed

ROOT = Path(__file__).parents[2]


def last_line(*command: object) -> dict[str, Any]:
    """Run a benchmark; give its last line."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_search() -> None:
    found = last_line("benchmarks/search.py", "--quick", "--threads", 1)
    assert found["targets"].keys() <= found.keys()
    assert found["token_amplification"] < 1.05
    assert found["vision_passes_per_image"] == 1
    assert set(found["greedy_agreement"].values()) == {1.0}


def test_scoring(undisturbed: Undisturbed) -> None:
    small = ("--samples", 12, "--simulated", 4, "--rounds", 1, "--threads", 1)
    found = last_line("benchmarks/scoring.py", "--run", undisturbed.run, *small)
    assert found["targets"].keys() <= found.keys()
    assert found["greatest_difference"] < 1e-5


def test_scale() -> None:
    found = last_line("benchmarks/scale.py", "--sizes", "4,8", "--threads", 1)
    assert found["targets"].keys() <= found.keys()


def test_data() -> None:
    found = last_line("benchmarks/data.py", "--sizes", "50,100")
    assert found["targets"].keys() <= found.keys()
    assert found["drawn"] == 100  # fewer than asked for, and all there are


def test_full_size_scaled_down() -> None:
    found = last_line("benchmarks/full_size.py", "--threads", 1)
    assert found["scaled_down"]
    assert found["projected_gpu_hours"] is None
    assert {"search", "judge", "dpo", "sft", "evaluation"} <= found["parts"].keys()


def test_soak(tmp_path: Path) -> None:
    short = ("--samples", 50, "--iterations", 1, "--minutes", 0, "--rounds", 3)
    found = last_line(
        "benchmarks/soak.py", "--out", tmp_path, *short, "--every", 0.1, "--stop-every", 3
    )
    assert found["targets"].keys() <= found.keys()
    assert (found["rounds"], found["leaked_processes"]) == (3, 0)
    assert found["lasting"]["files_at_end"]["slope"] == 0  # stopped or not, each leaves the same
    assert {"data", "teacher", "iter-1/judgments"} & found["stages"].keys()
