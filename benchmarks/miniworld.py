"""SRC on MiniWorld with its controls, over several seeds: the table of `RESULTS.md`.

    python benchmarks/miniworld.py --out runs/benchmark --seeds 0,1,2,3,4

For every seed it runs the recipe as it is (`src`), and with the same rationale-fine-tuned policy
three controls: a judge that guesses (`guess`), SFT alone for as many steps (`sft`), and MiniWorld's
verifier as the judge (`verifier`, meant as the upper bound). Runs are resumed where they were left;
stages that runs share are done once. Prints a Markdown table with means over seeds and 95 %
intervals (Student's t), and as its last line one JSON object with the figures and the targets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTROLS = {
    "src": [],
    "guess": ["judge.kind=guess"],
    "sft": ["method=sft_only"],
    "verifier": ["judge.kind=verifier"],
}
# quantile 0.975 of Student's t, by degrees of freedom
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
CATEGORIES = ("perception", "chart", "math")
METRICS = (
    "answer_accuracy",
    "rationale_soundness",
    "alignment",
    "reliable_accuracy",
    "lucky_answers",
    "grounding",
    "inconsistency",
    "flaw/counterfactual",
    "flaw/insufficient",
    "flaw/unreasonable",
    "format_compliance",
)


def run(recipe: Path, out: Path, seed: int, kind: str, threads: int, extra: list[str]) -> None:
    """Run one recipe (or go on with it) as a user would."""
    sets = [f"seed={seed}", f"threads={threads}", *CONTROLS[kind], *extra]
    command = [sys.executable, "-m", "selfcal", "run", str(recipe)]
    command += ["--out", str(out / f"{kind}-{seed}")]
    if kind != "src":
        command += ["--reuse", str(out / f"src-{seed}")]
    command += [word for s in sets for word in ("--set", s)]
    log = out / f"{kind}-{seed}.log"
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code:
        raise SystemExit(f"{kind}, seed {seed}: failed, see {log}")
    print(f"done: {kind}, seed {seed}", file=sys.stderr, flush=True)


Figures = dict[tuple[str, str, str], tuple[float, int]]
"""(category, checkpoint, metric) -> (value, n)"""


def collect(out: Path, kind: str, seed: int) -> Figures:
    """The figures of one run on the test split."""
    command = [sys.executable, "-m", "selfcal", "results", str(out / f"{kind}-{seed}"), "--json"]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {
        (r["category"], r["checkpoint"], r["metric"]): (r["value"], r["n"])
        for r in rows
        if r["split"] == "test" and r["value"] is not None
    }


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval."""
    if len(values) < 2:
        return values[0], math.nan
    half = T975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


def quality(out: Path, seed: int) -> dict[str, float]:
    """The R-Scorer's quality report of one run."""
    manifest = json.loads((out / f"src-{seed}" / "judge" / "quality" / "manifest.json").read_text())
    return {k: v["value"] for k, v in manifest["stats"].items() if v["value"] is not None}


def table(header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def gaps(found: dict[str, list[Figures]], control: str, at: str, metric: str) -> list[float]:
    """What src has more than a control at a checkpoint, seed by seed."""
    pairs = zip(found["src"], found[control], strict=True)
    return [a["all", at, metric][0] - b["all", at, metric][0] for a, b in pairs]


def report(out: Path, seeds: list[int], iterations: int) -> dict[str, float]:
    """Print the tables; return the figures of the targets."""
    found = {kind: [collect(out, kind, s) for s in seeds] for kind in CONTROLS}
    last = f"iter-{iterations}"
    path = ["seed", "rft", *(f"iter-{t}" for t in range(1, iterations + 1))]

    def cell(kind: str, checkpoint: str, metric: str, part: str = "all") -> tuple[float, float]:
        return interval([run[part, checkpoint, metric][0] for run in found[kind]])

    def shown(kind: str, checkpoint: str, metric: str, part: str = "all") -> str:
        mean, half = cell(kind, checkpoint, metric, part)
        return f"{mean:.3f} ± {half:.3f}"

    n = sum(run["all", last, "answer_accuracy"][1] for run in found["src"])
    print(f"Test split, mean of {len(seeds)} seeds ± 95 % interval, n = {n} responses in all\n")
    columns = [*path, *(f"{k}: {last}" for k in CONTROLS if k != "src")]
    rows = [
        [m, *(shown("src", c, m) for c in path)]
        + [shown(k, last, m) for k in CONTROLS if k != "src"]
        for m in METRICS
    ]
    table(["metric", *columns], rows)
    print(f"src less control at {last}, paired by seed\n")
    controls = [k for k in CONTROLS if k != "src"]
    rows = [
        [m, *("{:+.3f} ± {:.3f}".format(*interval(gaps(found, k, last, m))) for k in controls)]
        for m in METRICS[:4]
    ]
    table(["metric", *controls], rows)
    print("By category, src\n")
    parts = [(p, m) for p in CATEGORIES for m in METRICS[:3]]
    rows = [[p, m, *(shown("src", c, m, p) for c in path)] for p, m in parts]
    table(["category", "metric", *path], rows)
    reports = [quality(out, s) for s in seeds]
    table(
        ["R-Scorer on held-out pairs", "mean ± 95 %"],
        [[k, "{:.3f} ± {:.3f}".format(*interval([r[k] for r in reports]))] for k in reports[0]],
    )
    accuracy = {c: cell("src", c, "answer_accuracy")[0] for c in path}
    soundness = [cell("src", c, "rationale_soundness")[0] for c in path[1:]]
    alignment = {c: cell("src", c, "alignment")[0] for c in path}
    return {
        "alignment": alignment[last],
        "alignment_gain": alignment[last] - alignment["rft"],
        "answer_accuracy_gain_relative": accuracy[last] / accuracy["rft"] - 1,
        "soundness_least_step": min(b - a for a, b in itertools.pairwise(soundness)),
        "inconsistency": cell("src", last, "inconsistency")[0],
        "soundness_over_sft": statistics.mean(gaps(found, "sft", last, "rationale_soundness")),
        "guess_soundness_gain": cell("guess", last, "rationale_soundness")[0] - soundness[0],
        "judge_agreement": interval([r["agreement"] for r in reports])[0],
        "judge_flip_rate": interval([r["flip_rate"] for r in reports])[0],
        "n": n,
    }


def main() -> None:
    """Run, print, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "miniworld-src.yaml")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--set", action="append", default=[], help="as for `selfcal run`")
    args = parser.parse_args()
    seeds = [int(s) for s in args.seeds.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    for kinds in (["src"], [k for k in CONTROLS if k != "src"]):  # controls reuse src's stages
        with ThreadPoolExecutor(args.jobs) as pool:
            jobs = [
                pool.submit(run, args.recipe, args.out, seed, kind, args.threads, args.set)
                for seed in seeds
                for kind in kinds
            ]
            for job in jobs:
                job.result()
    print(json.dumps(report(args.out, seeds, iterations=3)))


if __name__ == "__main__":
    main()
