"""The same checkpoints as `miniworld.py`, sampled at temperature 1 instead of decoded greedily.

    python benchmarks/sampled.py --out runs/benchmark --seeds 0,1,2,3,4

Greedy decoding shows the likeliest response alone: where habit and truth are about as likely, a
small and aimless change of the policy can turn all answers to a kind of question. One sample for
each test question shows the whole distribution. Needs the runs of `miniworld.py`; prints a Markdown
table with means over seeds and 95 % intervals (Student's t), and as its last line one JSON object.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from miniworld import ROOT, interval, table
from selfcal.miniworld.verifier import Verification, verify
from selfcal.pipeline import locate, open_run, pin
from selfcal.policy import Policy, load_policy
from selfcal.types import Sample

CHECKPOINTS = {
    "rft": "src-{}/rft",
    "src": "src-{}/iter-3/dpo",
    "guess": "guess-{}/iter-3/dpo",
    "sft": "sft-{}/iter-3/sft",
    "verifier": "verifier-{}/iter-3/dpo",
}
BATCH = 200


def samples_of(run: Path) -> list[Sample]:
    """The test split of a run."""
    folders = {p.stage.name: p.folder for p in locate(pin(open_run(run)), run)}
    return [replace(s, image=str(run / s.image)) for s in folders["data"].read("test", Sample)]


def respond(policy: Policy, samples: list[Sample]) -> list[str]:
    """One response to each sample, drawn at temperature 1."""
    batch = policy.encode(samples)
    with torch.inference_mode():
        out = policy.model.generate(
            **batch, do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
            max_new_tokens=120, pad_token_id=policy.pad_id,
        )  # fmt: skip
    new = out[:, batch["input_ids"].shape[1] :]
    return [t.strip() for t in policy.tokenizer.batch_decode(new, skip_special_tokens=True)]


def measure(checkpoint: Path, samples: list[Sample]) -> dict[str, float]:
    """Accuracy, soundness and alignment of sampled responses."""
    policy = load_policy(str(checkpoint / "checkpoint"), "float32", "cpu")
    torch.manual_seed(0)
    found: list[Verification] = []
    for i in range(0, len(samples), BATCH):
        part = samples[i : i + BATCH]
        found += [verify(s, t) for s, t in zip(part, respond(policy, part), strict=True)]
    right = sum(v.correct for v in found)
    return {
        "answer_accuracy": right / len(found),
        "rationale_soundness": sum(v.sound for v in found) / len(found),
        "alignment": sum(v.correct and v.sound for v in found) / max(1, right),
    }


def main() -> None:
    """Sample, print, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    args = parser.parse_args()
    seeds = [int(s) for s in args.seeds.split(",")]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CHECKPOINTS}
    for seed in seeds:
        samples = samples_of(args.out / f"src-{seed}")
        for name, place in CHECKPOINTS.items():
            found[name].append(measure(args.out / place.format(seed), samples))

    def shown(values: list[float]) -> str:
        return "{:.3f} ± {:.3f}".format(*interval(values))

    metrics = list(found["rft"][0])
    table(
        ["metric, sampled", *CHECKPOINTS],
        [[f"`{m}`", *(shown([f[m] for f in found[c]]) for c in CHECKPOINTS)] for m in metrics],
    )

    def gap(a: str, b: str) -> list[float]:
        key = "rationale_soundness"
        return [x[key] - y[key] for x, y in zip(found[a], found[b], strict=True)]

    pairs = [("guess", "rft"), ("src", "rft"), ("src", "sft"), ("src", "verifier")]
    table(
        ["`rationale_soundness`, paired by seed", "difference"],
        [[f"{a} less {b}", shown(gap(a, b))] for a, b in pairs],
    )
    print(json.dumps({f"{a}_less_{b}": interval(gap(a, b))[0] for a, b in pairs}))


if __name__ == "__main__":
    main()
