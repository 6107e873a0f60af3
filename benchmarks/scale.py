"""How time and memory grow with the number of samples: 100, 1,000, 10,000.

    python benchmarks/scale.py

For each size, a process of its own takes fresh MiniWorld samples through search, scoring and
curation, the stages as a run does them, with the shipped policy and judge (untrained for the task:
what they say does not matter here). Time is that of the three stages; memory is the greatest
resident size of the process, the building of the samples included. Prints a Markdown table and, as
its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import last_line
from miniworld import ROOT, table
from selfcal import pipeline, planning
from selfcal.methods import parts
from selfcal.policy import model_path
from selfcal.recipe import Recipe, load_recipe
from selfcal.stage import Stage, Work

SIZES = (100, 1_000, 10_000)
STAGES = ("iter-1/candidates", "iter-1/judgments", "iter-1/pairs")
TARGETS = {"time_growth": 10.5, "memory_growth": 1.10}


def given(name: str, model: str) -> Stage:
    """A stage in place of a training: the shipped model is its checkpoint."""

    def run(work: Work) -> Mapping[str, Any]:
        shutil.copytree(model_path(model), work.out / "checkpoint")
        return {}

    return Stage(name, (), {"model": model}, run, 1, "models", "a shipped model")


def plan(recipe: Recipe) -> list[Stage]:
    """The stages that are timed, and what they need."""
    return [
        parts.data(recipe),
        given("rft", recipe.policy.model),
        given("judge/train", recipe.judge.model),
        parts.candidates(recipe, 1, "rft"),
        parts.judgments(recipe, 1),
        parts.pairs(recipe, 1),
    ]


def measure(samples: int, folder: Path, threads: int) -> dict[str, float]:
    """Run the stages in this process."""
    planning.load_method = lambda name: SimpleNamespace(plan=plan)  # type: ignore[assignment]
    sizes = [f"data.{split}=1" for split in ("rft", "dev", "test")]
    recipe = load_recipe(
        ROOT / "recipes" / "miniworld-src.yaml",
        [*sizes, f"data.calibration={samples}", "iterations=1", f"threads={threads}",
         "search.batch_rows=96"],
    )  # fmt: skip
    pipeline.execute(recipe, folder)
    seconds = {
        p.stage.name: float(p.folder.manifest()["seconds"])
        for p in pipeline.locate(pipeline.open_run(folder), folder)
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {name: seconds[name] for name in STAGES} | {"peak": peak}


def child(samples: int, folder: Path, threads: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--child", str(samples), "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--out", str(folder)], stdout=subprocess.PIPE, check=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run, print, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="where to keep the runs; default: nowhere")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args.out, args.threads)))
        return
    sizes = [int(n) for n in args.sizes.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        root = args.out or Path(temporary)
        found = {n: child(n, root / str(n), args.threads) for n in sizes}
    total = {n: sum(f[s] for s in STAGES) for n, f in found.items()}
    rows = [
        [f"{n:,}", *(f"{found[n][s]:.1f}" for s in STAGES), f"{total[n]:.1f}",
         f"{1e3 * total[n] / n:.1f}", f"{found[n]['peak'] / 2**20:,.0f}"]
        for n in sizes
    ]  # fmt: skip
    table(["samples", *(f"{s}, s" for s in STAGES), "all, s", "ms a sample", "peak, MiB"], rows)
    steps = list(itertools.pairwise(sizes))
    last_line(
        {
            "time_growth": max((total[b] / total[a] for a, b in steps), default=0.0),
            "memory_growth": max(found[n]["peak"] / found[sizes[0]]["peak"] for n in sizes),
            "sizes": sizes,
            "seconds": {str(n): total[n] for n in sizes},
            "peak_mib": {str(n): found[n]["peak"] / 2**20 for n in sizes},
            "threads": args.threads,
            "targets": TARGETS,
        }
    )


if __name__ == "__main__":
    main()
