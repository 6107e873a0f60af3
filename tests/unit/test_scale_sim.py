"""The simulation of runs at scale, where its outcome can be said by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import scale_sim as sim
from scale_costs import Costs

CALM = Costs(load=100.0, lost=0.0, spread=0.0, latency=0.0, sample=1000.0, again=1e-5)
JITTER = 60.0
"""Workers do not all begin at the same moment: a few seconds, hardly ever more than this."""


def test_equal_shards_take_as_many_rounds_as_each_worker_gets() -> None:
    end, drain, lost = sim._workers(8, 4, 50.0, CALM, seed=0)
    assert 200 <= end <= 200 + JITTER  # 100 s of loading, two shards of 50 s
    assert drain <= JITTER and lost == 0
    # a ninth shard is done while three workers wait
    end, drain, _ = sim._workers(9, 4, 50.0, CALM, seed=0)
    assert 250 <= end <= 250 + JITTER and 50 - JITTER <= drain <= 50 + JITTER


def test_the_middle_by_its_mean_is_what_all_shards_one_by_one_come_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    costs = replace(CALM, lost=0.5, spread=0.1)
    fast, *_ = sim._workers(20_000, 8, 60.0, costs, seed=1)
    monkeypatch.setattr(sim, "_EVENTS", 10**9)
    whole, *_ = sim._workers(20_000, 8, 60.0, costs, seed=1)
    assert fast == pytest.approx(whole, rel=0.02)


def test_a_training_takes_no_more_ranks_than_a_batch_has_forward_passes() -> None:
    steps = sim.Steps(100, rows=64, micro=4, one=1.0, moved=0.0)
    assert [sim.largest(16, n) for n in (1, 3, 10, 4096)] == [1, 2, 8, 16]
    assert sim.training(steps, 1, CALM).seconds == pytest.approx(100 + 6400)
    assert sim.training(steps, 16, CALM).seconds == pytest.approx(100 + 400)
    assert sim.training(steps, 4096, CALM).seconds == sim.training(steps, 16, CALM).seconds
    # 25 GB of gradients go twice over a network of 25 GB a second: 2 s a step
    summed = replace(steps, moved=25e9)
    assert sim.training(summed, 16, CALM).seconds == pytest.approx(100 + 400 + 200)


def test_what_all_workers_read_first_and_the_driver_does_last_is_told_apart() -> None:
    costs = replace(CALM, finish=1.0, sealed=0.5, figures=0.5, dispatch=0.0)
    stage = sim.Spread("candidates", samples=6400, one=1.0, size=10.0, held=1_000_000)
    took = sim.spread_stage(stage, 10, costs)
    # 100 shards of 64 s on ten workers; before them 10 s of reading, after them 2 s a shard
    assert took.serial == pytest.approx(10 + 200)
    assert took.seconds == pytest.approx(10 + 100 + 640 + 200, abs=JITTER)
    assert took.files == 400 and took.busy == 6400


def test_runs_get_no_slower_with_more_gpus_and_say_what_holds_them_up() -> None:
    hours = [sim.simulate(sim.Plan(100_000, n), CALM).hours for n in (1, 8, 64)]
    assert hours == sorted(hours, reverse=True)
    assert hours[0] / hours[1] == pytest.approx(8, rel=0.1)
    few, many = (sim.simulate(sim.Plan(1_000_000, n), CALM) for n in (1, 4096))
    assert few.limit == "search" and many.limit == "training"
    assert few.worked > 0.98 > 0.1 > many.worked
    # a million samples of 1,000 bytes
    assert few.worker == pytest.approx(1e9 / 2**30)


def test_a_hundred_million_samples_are_ten_runs_of_ten_iterations() -> None:
    plan = sim.planned(100_000_000, 512)
    assert (plan.runs, plan.iterations, plan.repeat) == (10, 10, False)
    whole = sim.simulate(plan, CALM)
    assert whole.files == 4 * 15_625  # a million samples in shards of 64, four files each
    assert whole.memory < 20 < sim.simulate(sim.Plan(100_000_000, 512), CALM).memory
