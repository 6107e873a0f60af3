"""What `selfcal plan` says of memory against what trainings take: a LLaVA of 108M random weights.

    python benchmarks/plan.py

Each training runs in a process of its own, for two steps, on rows as long as the plan reckons
with. Measured is the greatest resident size less what the process held once the libraries were
imported; the plan's figure is without the share for a GPU's fragments and runtime. On a CPU memory
is taken in other ways than on a GPU, so this checks the formula, not a card. Prints a Markdown
table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import last_line
from miniworld import table

ROWS = 8
CASES: dict[str, dict[str, Any]] = {
    "SFT, LoRA 64": {"kind": "rft", "lora": {"rank": 64, "alpha": 128}},
    "SFT, LoRA 64, checkpointing": {
        "kind": "rft", "lora": {"rank": 64, "alpha": 128}, "gradient_checkpointing": True,
    },
    "SFT, all weights": {"kind": "rft", "lora": None},
    "DPO, LoRA 64": {"kind": "dpo", "lora": {"rank": 64, "alpha": 128}},
    "DPO, LoRA 64, checkpointing": {
        "kind": "dpo", "lora": {"rank": 64, "alpha": 128}, "gradient_checkpointing": True,
    },
}  # fmt: skip
TARGETS = {"estimate_over_measured_least": 0.8, "estimate_over_measured_most": 1.5}


def peak() -> int:
    """The greatest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train(folder: str, case: str, out: Path) -> dict[str, Any]:
    """Run one training here, and say what it took and what the plan says."""
    import trl  # noqa: F401 (its weight is not the training's)

    from selfcal.cost.machine import Machine
    from selfcal.cost.needs import Needs
    from selfcal.pipeline import plan
    from selfcal.recipe import Recipe
    from selfcal.testing import tiny_samples
    from selfcal.train import Run, dpo, sft
    from selfcal.types import PreferencePair

    given = dict(CASES[case])
    kind = given.pop("kind")
    own = given | {"batch_size": 4, "learning_rate": 1e-4, "steps": 2}
    recipe = Recipe.model_validate(
        {"name": "x", "policy": {"model": folder, "dtype": "float32"}, kind: own}
    )
    name = "rft" if kind == "rft" else "iter-1/dpo"
    stage = next(s for s in plan(recipe) if s.name == name)
    needs = Needs(recipe, Machine("CPU", 2**40))
    said = needs.of(stage).memory / 1.1
    samples = [long_sample(s) for s in tiny_samples(out / "data", ROWS)]
    text = "red " * 150 + "\nAnswer: red"
    here = Run(out, 0, "cpu")
    before = peak()
    if kind == "rft":
        assert recipe.rft is not None
        sft(folder, [(s, text) for s in samples], recipe.rft, here)
    else:
        pairs = [PreferencePair(s.id, text, f"so {text}", 0, 1, 1.0, 0.0) for s in samples]
        dpo(folder, list(zip(samples, pairs, strict=True)), recipe.dpo, here)
    return {"measured": peak() - before, "estimate": said}


def long_sample(sample: Any) -> Any:
    """A sample whose question is as long as the plan takes questions to be."""
    import dataclasses

    return dataclasses.replace(sample, question="red " * 90)


def main() -> None:
    """Run all trainings, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a smaller model, two trainings")
    args = parser.parse_args()
    if args.case:
        with tempfile.TemporaryDirectory() as out:
            print(json.dumps(train(args.model, args.case, Path(out))))
        return
    from search import save_mid

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        name, size = save_mid(Path(folder), args.quick)
        for case in list(CASES)[: 2 if args.quick else None]:
            command = [sys.executable, __file__, "--case", case, "--model", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[case] = json.loads(done.stdout.splitlines()[-1])
    print(f"{size / 1e6:.0f}M parameters\n")
    rows = [
        [c, f"{f['estimate'] / 2**30:.2f}", f"{f['measured'] / 2**30:.2f}",
         f"{f['estimate'] / f['measured']:.2f}"] for c, f in found.items()
    ]  # fmt: skip
    table(["training", "plan, GiB", "measured, GiB", "plan / measured"], rows)
    ratios = [f["estimate"] / f["measured"] for f in found.values()]
    figures = {
        "estimate_over_measured_least": min(ratios),
        "estimate_over_measured_most": max(ratios),
    }
    last_line({"cases": found, **figures, "targets": TARGETS})


if __name__ == "__main__":
    main()
