"""What `scale_sim.py` reckons with: costs that are measured on this machine, and some assumed.

All that is measured is `selfcal`'s own code on the records of a finished run, in processor seconds:
others may use the machine as well.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from selfcal.methods.parts.base import BySample
from selfcal.methods.parts.scoring import curate_sample
from selfcal.pipeline import locate, open_run
from selfcal.recipe import Recipe
from selfcal.store import StageDir
from selfcal.types import Candidate, Drop, Judgment, Sample, SearchNode


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured here, and what is assumed; seconds and bytes."""

    sealed: float = 0.0
    """Looking at a finished shard: its mark is read, its files are hashed."""
    finish: float = 0.0
    """Its part of a stage's end: sync, hash, and decode its files for the manifest."""
    figures: float = 0.0
    """Reading it for the stage's figures."""
    index: float = 0.0
    """Reading its samples' ids, as the next stage does."""
    again: float = 0.0
    """Reading a sample of the run, as every worker does with all of them when a stage begins."""
    entry: float = 0.0
    """Bytes of its files in a manifest (which is written twice)."""
    sample: float = 0.0
    """Bytes in memory of a sample, as the driver and every worker hold all of them."""
    pair: float = 0.0
    """Curating a sample, in the driver."""
    read: float = 1 / 4_600
    """Reading a row of a data file (RESULTS.md, reading data: a million rows in 216 s)."""
    spread: float = 0.05
    """Standard deviation of a shard's work, over its mean."""
    # assumed
    dispatch: float = 0.0047
    """Ray's driver, a block: its processor time for 1,000 empty ones, measured once."""
    load: float = 60.0
    """Starting a worker: process, weights, first batch."""
    lost: float = 0.02
    """Workers lost an hour, each: spot nodes."""
    back: float = 300.0
    """Until a lost worker is replaced."""
    network: float = 25e9
    """Bytes a second between ranks on different nodes."""
    latency: float = 5e-5
    """Of each doubling of the ranks, in a sum over them."""
    request: float = 0.03
    """A request to an object store, and how many go at once in the driver:"""
    at_once: int = 16


def measured(run: Path) -> Costs:
    """Costs of this machine, by a finished run's own records."""
    folders = {p.stage.name: p.folder for p in locate(open_run(run), run)}
    found, judged = folders["iter-1/candidates"], folders["iter-1/judgments"]
    shards = found.count("nodes")
    with tempfile.TemporaryDirectory() as temporary:
        own = StageDir(Path(temporary) / "stage", found.fingerprint)
        own.open()
        for i in range(shards):
            own.write_shard("nodes", i, found.read_shard("nodes", i, SearchNode), SearchNode)
            part = found.read_shard("candidates", i, Candidate)
            own.write_shard("candidates", i, part, Candidate)
            own.write_shard("drops", i, found.read_shard("drops", i, Drop), Drop)
            own.seal(i, ["nodes", "candidates", "drops"])
        sealed = _best(lambda: [own.sealed(i) for i in range(shards)]) / shards
        own.finish({}, 0.0)
        finish = _best(lambda: own.finish({}, 0.0)) / shards
        figures = _best(lambda: [_count(own) for _ in "."]) / shards
        index = _best(lambda: BySample(own, "candidates", Candidate)) / shards
        entry = (own.path / "manifest.json").stat().st_size / shards
    data = folders["data"]
    again = _best(lambda: data.read("calibration", Sample)) / len(data.read("calibration", Sample))
    tokens = [
        sum(n.tokens for n in found.read_shard("nodes", i, SearchNode)) for i in range(shards - 1)
    ]
    return Costs(
        sealed,
        finish,
        figures,
        index,
        again,
        entry,
        _sample_bytes(),
        _curating(open_run(run), found, judged),
        spread=statistics.stdev(tokens) / statistics.mean(tokens),
    )


def _best(work: Callable[[], object], rounds: int = 3) -> float:
    """Processor seconds of the fastest of some rounds: others use this machine as well."""
    took = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took)


def _count(folder: StageDir) -> int:
    found = sum(1 for _ in folder.records("candidates", Candidate))
    return found + sum(n.tokens for n in folder.records("nodes", SearchNode))


def _sample_bytes(n: int = 20_000) -> float:
    """A sample with a question of 12 words and facts of 60, in a list and under its id."""
    rng = random.Random(0)

    def text(words: int) -> str:
        return " ".join(f"{rng.randrange(10**6):06x}" for _ in range(words))

    tracemalloc.start()
    made = [
        Sample(f"s-{i}", f"images/{i:09d}.jpg", text(12), "a", facts=text(60)) for i in range(n)
    ]
    by = {s.id: s for s in made}
    size = tracemalloc.get_traced_memory()[0] / len(by)
    tracemalloc.stop()
    return size


def _curating(recipe: Recipe, found: StageDir, judged: StageDir) -> float:
    by = BySample(judged, "judgments", Judgment)

    def all_of_them() -> None:
        records = found.records("candidates", Candidate)
        for name, own in groupby(records, key=lambda c: c.sample_id):
            curate_sample(recipe, list(own), by.of(name))

    return _best(all_of_them) / sum(1 for _ in by)
