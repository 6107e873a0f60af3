"""How far a run can grow: 12 thousand to 100 million samples on 1 to 4,096 GPUs, simulated.

    python benchmarks/scale_sim.py --check runs/demo

What one GPU takes for a stage is the plan's (`selfcal plan`: data sheets times the shares that are
reached), for LLaVA-1.5-7B by the paper's settings; no GPU of that size was at hand. What the driver
takes for a shard (seal it, look at it again, list it in the manifest, read it for figures), for a
sample in memory and for a curated sample is measured on this machine when the script starts, with
`selfcal`'s own code, in seconds of its processor. What a worker takes for a shard differs by its
samples; how much is measured in the search of a finished run (tokens a shard).

A stage whose shards go to workers is simulated block by block (a shard each, until there are
`BLOCKS`): the next free worker takes the next one. Workers begin when their model is loaded, are
lost at random (spot nodes) with their work half done, and come back after a while. The stage ends
with its last block, and the driver then looks at all shards. With over `_EVENTS` blocks a worker,
the middle is reckoned by its mean and the end is simulated. Trainings are steps one after the
other: a step is as fast as its ranks, of which there are no more than the batch has forward passes
(`dpo.batch_size` / `dpo.micro_batch_size`: what DPO with an SFT term learns depends on the latter),
plus the sum of gradients over the network.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import resource
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from miniworld import ROOT, table
from scale_costs import Costs, measured
from selfcal.cost.machine import machine
from selfcal.cost.needs import Needs
from selfcal.pipeline import Planned, locate, open_run, plan
from selfcal.recipe import Recipe, load_recipe

SAMPLES = (12_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
GPUS = (1, 8, 64, 512, 4_096)
SHARD = {"candidates": 64, "judgments": 64, "eval": 200}
"""Samples a shard, by kind of stage whose shards go to workers."""
FILES = {"candidates": 4, "judgments": 2, "eval": 2}
"""Files a shard, its mark included."""
BLOCKS = 4_096
"""Of a stage on Ray, at most; more shards share them."""
_EVENTS = 40
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Took:
    """What a stage took."""

    seconds: float
    serial: float = 0.0
    """Of these, the driver alone: all GPUs wait."""
    drain: float = 0.0
    """Of these, from the first worker without work to the last shard's end."""
    files: int = 0
    disk: float = 0.0
    busy: float = 0.0
    """GPU-seconds that were worked."""

    @property
    def worked(self) -> float:
        """Seconds in which all workers had work."""
        return self.seconds - self.serial - self.drain


# --- stages -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spread:
    """A stage whose shards go to workers."""

    kind: str
    samples: int
    one: float
    """GPU-seconds a sample."""
    size: float
    """Bytes a sample on disk."""
    held: int
    """Samples that each worker reads when it begins: all of the run."""


def spread_stage(s: Spread, gpus: int, c: Costs, seed: int = 0) -> Took:
    """A stage on workers of a GPU each."""
    shards = -(-s.samples // SHARD[s.kind])
    blocks = min(shards, BLOCKS) if gpus > 1 else shards
    each = shards / blocks
    own = replace(c, spread=c.spread / each**0.5)
    mean = s.one * s.samples / blocks
    work, drain, lost = _workers(blocks, min(gpus, blocks), mean, own, seed)
    # in each worker, all at the same time
    before = c.again * s.held + (c.index * shards if s.kind == "judgments" else 0.0)
    feed = c.dispatch * blocks if gpus > 1 else 0.0
    after = shards * (c.sealed * (gpus > 1) + c.finish + c.figures)
    size = s.samples * s.size + 2 * c.entry * shards
    serial = before + max(0.0, feed - work) + after
    busy = s.one * s.samples + lost
    return Took(before + max(work, feed) + after, serial, drain, shards * FILES[s.kind], size, busy)


def _workers(shards: int, workers: int, mean: float, c: Costs, seed: int) -> tuple[float, ...]:
    """Seconds until the last shard, of the drain, and of GPUs lost to shards that were redone."""
    rng = random.Random(seed)
    skipped = max(0, shards // workers - _EVENTS)  # rounds in the middle, by their mean
    losing = c.lost / HOUR
    pace = mean + losing * mean * (mean / 2 + c.back)  # with what losses cost
    start = c.load + skipped * pace
    free = [start + rng.expovariate(1 / 5.0) for _ in range(workers)]
    heapq.heapify(free)
    lost = skipped * workers * losing * mean * mean / 2
    end, left = start, shards - skipped * workers
    while left:
        at = heapq.heappop(free)
        takes = max(mean / 4, rng.gauss(mean, c.spread * mean))
        if rng.random() < losing * takes:  # another worker will do it
            half = rng.random() * takes
            lost += half
            heapq.heappush(free, at + half + c.back)
            continue
        end = max(end, at + takes)
        heapq.heappush(free, at + takes)
        left -= 1
    return end, end - min(free), lost


@dataclass(frozen=True, slots=True)
class Steps:
    """A training: its steps, one after the other."""

    steps: int
    rows: int
    """Samples, or pairs, a step."""
    micro: int
    """Of these, a forward pass."""
    one: float
    """GPU-seconds a row."""
    moved: float
    """Bytes of gradients that are summed over all ranks at each step."""


def training(t: Steps, gpus: int, c: Costs) -> Took:
    """A training on as many ranks as a batch has whole forward passes for."""
    ranks = largest(t.rows // t.micro, gpus)
    summed = 2 * t.moved / c.network + (ranks - 1).bit_length() * c.latency if ranks > 1 else 0.0
    seconds = c.load + t.steps * (t.rows / ranks * t.one + summed)
    return Took(seconds, 0.0, 0.0, 40, 23 * 2**30, t.steps * t.rows * t.one)


def largest(passes: int, gpus: int) -> int:
    """Most ranks among which a batch of so many forward passes can be parted evenly."""
    return max(r for r in range(1, min(passes, gpus) + 1) if passes % r == 0)


# --- a run ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Given:
    """What the plan says of one iteration and what is around it, for one GPU."""

    candidates: float
    """GPU-seconds a sample."""
    found: float
    """Bytes on disk of its candidates and search nodes."""
    judgments: float
    judged: float
    """Bytes on disk of its judgments."""
    rated: float
    """GPU-seconds of an evaluated sample."""
    pair: float
    """GPU-seconds of a DPO pair."""
    batch: int
    micro: int
    """Pairs a forward pass."""
    kept: float
    """Pairs a sample."""
    gradients: float
    """Bytes of an adapter's gradients."""
    before: float
    """GPU-seconds before the first iteration that do not grow with the samples."""
    evaluated: int


@cache
def given(gpu: str) -> Given:
    """LLaVA-1.5-7B by the paper's settings."""
    recipe = load_recipe(ROOT / "recipes" / "src-llava15-7b.yaml", [])
    needs = Needs(recipe, machine(gpu))
    stages = {s.name: s for s in plan(recipe)}
    all_needs = {name: needs.of(s) for name, s in stages.items()}
    seconds = {name: need.seconds for name, need in all_needs.items()}
    n = recipe.data.calibration
    dpo = stages["iter-1/dpo"]
    rank = recipe.dpo.lora.rank if recipe.dpo.lora else 0
    before = sum(v for k, v in seconds.items() if not k.startswith(("iter", "eval/iter")))
    rated = recipe.data.dev + recipe.data.test
    return Given(
        seconds["iter-1/candidates"] / n, all_needs["iter-1/candidates"].disk / n,
        seconds["iter-1/judgments"] / n, all_needs["iter-1/judgments"].disk / n,
        seconds["eval/iter-1"] / stages["eval/iter-1"].size,
        seconds["iter-1/dpo"] / (dpo.size * recipe.dpo.batch_size), recipe.dpo.batch_size,
        recipe.dpo.micro_batch_size or 1, 0.8,
        4.0 * rank * needs.policy.lora_width, before, rated,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run is set up."""

    samples: int
    gpus: int
    iterations: int = 3
    repeat: bool = True
    """Every iteration searches all samples, as in the paper; else its own part of them."""
    batch: int = 0
    """Pairs a step; 0: the recipe's."""
    runs: int = 1
    """Runs one after the other, each of its own part, that begin with the last one's checkpoint."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run took."""

    hours: float
    worked: float
    """Share of the GPUs' time that was worked."""
    parts: Mapping[str, float]
    """Hours by what they went to: search, judging, training, evaluation, driver, drain, reading."""
    tebibytes: float
    requests: float
    files: int
    """Most files in one folder."""
    memory: float
    """GiB of the driver."""
    worker: float
    """GiB of a worker beside its model: it holds all samples of the run."""

    @property
    def limit(self) -> str:
        """What most of the time goes to."""
        return max(self.parts, key=lambda k: self.parts[k])


def simulate(p: Plan, c: Costs, gpu: str = "h100", seed: int = 0) -> Outcome:
    """A run, or several one after the other."""
    g = given(gpu)
    held = p.samples // p.runs
    part = held if p.repeat else held // p.iterations
    search = spread_stage(Spread("candidates", part, g.candidates, g.found, held), p.gpus, c, seed)
    judge = spread_stage(
        Spread("judgments", part, g.judgments, g.judged, held), p.gpus, c, seed + 1
    )
    rated = spread_stage(Spread("eval", g.evaluated, g.rated, 600.0, 0), p.gpus, c, seed + 2)
    batch = p.batch or g.batch
    steps = max(1, round(part * g.kept / batch))
    dpo = training(Steps(steps, batch, g.micro, g.pair, g.gradients), p.gpus, c)
    own, rounds = (search, judge, rated, dpo), p.iterations * p.runs
    parts = {
        "search": rounds * search.worked, "judging": rounds * judge.worked,
        "evaluation": rounds * rated.worked, "training": rounds * dpo.seconds,
        "driver": rounds * (part * c.pair + sum(t.serial for t in own)),
        "last shards": rounds * sum(t.drain for t in own),
        "reading data": p.samples * c.read, "before": p.runs * g.before / min(p.gpus, 64),
    }  # fmt: skip
    files = rounds * sum(t.files for t in own)
    total = sum(parts.values())
    # uploads go on beside the work
    parts["object store"] = max(0.0, files * c.request / c.at_once - total)
    total += parts["object store"]
    busy = rounds * sum(t.busy for t in own) + p.runs * g.before
    shards = search.files // FILES["candidates"]
    memory = held * c.sample + 4 * c.entry * shards + 2**30
    return Outcome(
        total / HOUR, busy / (total * p.gpus), {k: v / HOUR for k, v in parts.items()},
        rounds * sum(t.disk for t in own) / 2**40, 2.0 * files, max(search.files, judge.files),
        memory / 2**30, held * c.sample / 2**30,
    )  # fmt: skip


def planned(samples: int, gpus: int) -> Plan:
    """How a run of that size should be set up, by what the tables show.

    Up to 100,000 samples as the paper has it. Beyond, every iteration takes its own part of the
    samples, of a million at most; batches grow with the pairs, up to 1,024; and a run has ten
    million samples at most.
    """
    if samples <= 100_000:
        return Plan(samples, gpus, batch=256 if samples == 100_000 else 0)
    runs = max(1, samples // 10_000_000)
    iterations = max(3, samples // runs // 1_000_000)
    return Plan(samples, gpus, iterations, repeat=False, batch=1024, runs=runs)


# --- against a real run -----------------------------------------------------------------------


def check(run: Path) -> tuple[list[list[str]], float]:
    """Predict the stages of iterations 2 and 3 by rates of iteration 1, as the simulation does.

    A stage is its steps, samples, tokens (search) or comparisons times what one took in the
    iteration before.
    """
    recipe: Recipe = open_run(run)
    found = {p.stage.name: p for p in locate(recipe, run)}
    rows, errors = [], []
    for t in range(2, recipe.iterations + 1):
        for what in ("candidates", "judgments", "pairs", "dpo", "eval"):
            name = f"eval/iter-{t}" if what == "eval" else f"iter-{t}/{what}"
            base = f"eval/iter-{t - 1}" if what == "eval" else f"iter-{t - 1}/{what}"
            took, given_ = (float(found[n].folder.manifest()["seconds"]) for n in (name, base))
            guess = given_ * _work(found, name) / _work(found, base)
            if took >= 1:
                errors.append(abs(guess - took) / took)
            rows.append(
                [name, f"{guess:.1f}", f"{took:.1f}", f"{100 * (guess - took) / took:+.0f}"]
            )
    return rows, statistics.median(errors)


def _work(found: Mapping[str, Planned], name: str) -> float:
    """Tokens of a search, comparisons of a judge, or else samples or steps."""
    p = found[name]
    stats = p.folder.manifest()["stats"]
    return float(stats.get("tokens") or stats.get("judgments") or p.stage.size)


def main() -> None:
    """Measure, simulate, print; end with one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo", help="is measured")
    parser.add_argument("--check", type=Path, help="a finished run to be predicted")
    parser.add_argument("--gpu", default="h100")
    args = parser.parse_args()
    costs = measured(args.run)
    table(["measured here, or assumed", ""], [[k, f"{v:.3g}"] for k, v in asdict(costs).items()])
    for title, make in (("As in the paper", Plan), ("As it should be set up", planned)):
        print(f"{title}: hours, GPUs at work in percent, and what most time goes to\n")
        rows = []
        for n in SAMPLES:
            outcomes = [simulate(make(n, g), costs, args.gpu) for g in GPUS]
            rows.append([f"{n:,}", *(_cell(o) for o in outcomes)])
        table(["samples", *(f"{g:,} GPUs" for g in GPUS)], rows)
    _sizes(costs, args.gpu)
    found = {}
    if args.check:
        rows, median = check(args.check)
        table(["stage", "predicted, s", "took, s", "error, %"], rows)
        found["median_error"] = round(median, 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    line = {"costs": asdict(costs), "gpu": args.gpu, "peak_mib": round(peak), **found}
    print(json.dumps(line))


def _cell(o: Outcome) -> str:
    return f"{_time(o.hours)}, {100 * o.worked:.0f} %, {o.limit}"


def _time(hours: float) -> str:
    if hours < 48:
        return f"{hours:.1f} h"
    return f"{hours / 24:,.0f} d" if hours < 24 * 730 else f"{hours / 8766:,.0f} years"


def _sizes(costs: Costs, gpu: str) -> None:
    rows = []
    for n in SAMPLES:
        for title, p in (("paper", Plan(n, 64)), ("set up", planned(n, 64))):
            o = simulate(p, costs, gpu)
            rows.append([
                f"{n:,}", title, f"{p.runs} x {p.iterations}", f"{o.tebibytes:,.2f}",
                f"{o.files:,}", f"{o.requests:,.0f}", f"{o.memory:,.1f}", f"{o.worker:,.1f}",
            ])  # fmt: skip
    head = ["samples", "how", "runs x iterations", "disk, TiB", "files in one folder",
            "requests to a store", "driver, GiB", "each worker, GiB"]  # fmt: skip
    table(head, rows)


if __name__ == "__main__":
    main()
