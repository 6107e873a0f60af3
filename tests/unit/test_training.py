"""Trainings: how a batch is parted, who does them, and when one has gone wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfcal import stopping
from selfcal.errors import SelfcalError
from selfcal.executor import rank
from selfcal.executor import ranks as executor_ranks
from selfcal.executor.ranks import RankError, figures_of, train_on_ranks
from selfcal.pipeline import plan
from selfcal.recipe import Dpo, Recipe, RecipeError, Training, load_recipe
from selfcal.stage import Stage, Work
from selfcal.stopping import Again, Stopped
from selfcal.store import StageDir
from selfcal.train import TrainingError
from selfcal.train.common import Run, less_memory, memory_limit
from selfcal.train.watch import exploded, finite, last_good, limit_of

RECIPES = Path(__file__).parents[2] / "recipes"


def training(batch: int, micro: int | None = None) -> Training:
    return Training(learning_rate=1, batch_size=batch, micro_batch_size=micro)


# --- how a batch is parted ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "limit", "expected"),
    [
        (16, None, 1, None, 16),
        (16, None, 4, None, 4),  # 4 processes of 4
        (16, 8, 4, None, 4),
        (16, 2, 4, None, 2),  # and 2 passes each
        (16, 3, 1, None, 2),  # 3 does not divide 16
        (12, 4, 2, None, 3),  # 4 does not divide 6
        (16, None, 1, 8, 8),
        (16, None, 2, 5, 4),
        (6, None, 1, 3, 3),
        (7, None, 1, 3, 1),
    ],
)
def test_a_pass_has_as_many_samples_as_the_batch_can_be_parted_into(
    batch: int, micro: int | None, ranks: int, limit: int | None, expected: int
) -> None:
    assert training(batch, micro).micro_for(ranks, limit) == expected


def test_a_batch_that_cannot_be_parted_among_the_processes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size: 16 samples .* among 3 processes"):
        training(16).micro_for(3)


def test_the_sft_term_hangs_on_the_samples_of_a_pass() -> None:
    assert Dpo().by_micro
    assert not Dpo(sft_weight=0).by_micro
    assert not training(4).by_micro


# --- who does them --------------------------------------------------------------------------


def spreads(name: str, *overrides: str) -> dict[str, str]:
    recipe = load_recipe(RECIPES / name, overrides)
    return {s.name: s.spread for s in plan(recipe) if s.spread != "workers"}


def test_trainings_alone_are_for_ranks() -> None:
    one = spreads("miniworld-src.yaml")
    assert "ranks" not in one.values()
    two = spreads("miniworld-src.yaml", "executor.ranks=2", "dpo.micro_batch_size=4")
    own = ["rft", "judge/train", "iter-1/dpo", "iter-2/dpo", "iter-3/dpo"]
    assert [name for name, who in two.items() if who == "ranks"] == own


@pytest.mark.parametrize(
    ("recipe", "overrides", "told"),
    [
        ("miniworld-src.yaml", ["executor.ranks=5"], r"judge\.train\.batch_size: 64 .* among 5"),
        # the whole batch in one pass is not to be had by two processes
        (
            "miniworld-src.yaml",
            ["executor.ranks=2", "dpo.batch_size=8", "dpo.micro_batch_size=null"],
            r"dpo\.micro_batch_size: .* set it to 4",
        ),
        ("miniworld-grpo.yaml", ["executor.ranks=2"], r"executor\.ranks: .* one process \(GRPO\)"),
        ("miniworld-src.yaml", ["dpo.fsdp={fsdp}"], r"dpo\.fsdp: .* executor\.ranks is 1"),
        (
            "miniworld-src.yaml",
            ["executor.ranks=2", "policy.device=cuda:0"],
            r"policy\.device: cuda:0 puts all 2 .* onto one GPU; set it to `cuda` or `auto`",
        ),
    ],
)
def test_what_would_change_the_outcome_is_refused_before_anything_runs(
    tmp_path: Path, recipe: str, overrides: list[str], told: str
) -> None:
    (tmp_path / "fsdp.json").write_text("{}")
    given = [o.format(fsdp=tmp_path / "fsdp.json") for o in overrides]
    with pytest.raises(RecipeError, match=told):
        spreads(recipe, *given)


def test_deepspeed_is_launched_for_one_process_too(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{}")
    found = spreads("miniworld-src.yaml", f"dpo.deepspeed={tmp_path / 'ds.json'}")
    assert [name for name, who in found.items() if who == "ranks"] == [
        "iter-1/dpo", "iter-2/dpo", "iter-3/dpo",
    ]  # fmt: skip


# --- what became of a stage that ranks did --------------------------------------------------


def test_what_ranks_say_reaches_the_driver_as_it_was() -> None:
    assert figures_of({"figures": {"steps": 3}}) == {"steps": 3}
    with pytest.raises(Stopped):
        figures_of({"stopped": True})
    with pytest.raises(TrainingError, match=r"^lower it$"):
        figures_of({"error": "TrainingError", "text": "lower it"})
    with pytest.raises(RankError, match=r"^odd$"):  # not any class by its name
        figures_of({"error": "SystemExit", "text": "odd"})


@pytest.fixture
def asked() -> Iterator[None]:
    stopping.ask()
    yield
    stopping.forget()


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Work:
    """A training whose ranks are gone before they say anything."""

    @contextmanager
    def started(*_: object) -> Iterator[Any]:
        yield SimpleNamespace(poll=lambda: -15, returncode=-15)

    monkeypatch.setattr(executor_ranks, "_started", started)
    monkeypatch.setattr(executor_ranks, "_said", lambda room: "their last words")
    stage = Stage("rft", (), None, lambda work: {}, 2, "steps", "")
    return Work(Path("run"), stage, StageDir(Path("run/rft"), "f"), {}, 0)


def test_ranks_that_die_are_an_error(dying: Work) -> None:
    with pytest.raises(RankError, match=r"exit code -15, .*\ntheir last words"):
        train_on_ranks(Recipe(name="r"), dying)


def test_ranks_that_die_after_the_wish_to_stop_have_stopped(dying: Work, asked: None) -> None:
    """A scheduler signals torchrun as well, which kills ranks that save for too long."""
    with pytest.raises(Stopped):
        train_on_ranks(Recipe(name="r"), dying)


@pytest.mark.parametrize("number", ["0", "1"])
def test_a_rank_that_is_stopped_while_it_brings_its_inputs_says_so_itself(
    number: str, dying: Work, monkeypatch: pytest.MonkeyPatch, asked: None
) -> None:
    """The others may wait for it at the first step."""
    monkeypatch.setenv("RANK", number)
    monkeypatch.setattr(rank, "open_run", lambda run: Recipe(name="r"))
    monkeypatch.setattr(rank, "work_of", lambda *_: dying)
    monkeypatch.setattr(rank, "bring_inputs", lambda *_: stopping.heed())
    found = rank.train("run", "rft", "f", lambda done, total: None, apart=True)
    assert rank.settles(found)
    with pytest.raises(Stopped):
        figures_of(found)
    assert rank.settles({"stopped": True}) is (number == "0")  # all of them, at one step


# --- trainings that go wrong ----------------------------------------------------------------


def test_of_spread_weights_the_part_that_lies_here_is_looked_at() -> None:
    import torch

    weight = torch.nn.Parameter(torch.empty(0))  # as ZeRO-3 leaves it between two passes
    assert finite([weight])
    weight.ds_tensor = torch.tensor([1.0, float("nan")])
    assert not finite([weight])


def test_the_limit_is_twice_the_worst_up_to_the_best_and_two_nats() -> None:
    assert limit_of([0.7]) == pytest.approx(3.4)
    assert limit_of([0.7, 0.5, 0.6, 0.9]) == pytest.approx(3.4)  # the best came second
    assert limit_of([4.2, 1.0, 0.5, 0.4]) == pytest.approx(10.4)
    assert limit_of([0.1, 0.1, 1.5, 1.4]) == pytest.approx(5.0)  # a lucky first figure


@pytest.mark.parametrize(
    ("losses", "wrong"),
    [
        ([0.7, 0.6, 0.5, 5, 6, 7], True),
        ([0.7, 0.6, 0.5, 5, 6, 3.3], False),  # it came back
        ([0.7, 0.6, 0.5, 5, 6], False),  # not three yet
        ([0.7, 0.6, 0.5, 1, 2, 4, 8, 16], True),  # step by step
        ([4.2, 2.0, 1.0, 0.5, 2.0, 2.0, 2.0], False),  # no worse than where it came from
        ([0.01, 1.2, 1.3, 1.2, 1.4, 1.3], False),  # a first batch of one easy row
        ([6, 7, 8], False),  # nothing to compare with
        ([], False),
    ],
)
def test_a_loss_has_exploded_when_three_figures_are_far_beyond_all_before(
    losses: list[float], wrong: bool
) -> None:
    assert exploded(losses) is wrong


def test_the_last_good_figure_is_the_last_one_within_the_limit() -> None:
    assert last_good({5: 0.7, 10: 0.6, 15: 0.5, 20: 5.0, 25: 6.0}) == 15
    assert last_good({5: 0.7, 10: 0.6, 15: 5.0, 20: 0.5}) == 20
    assert last_good({5: 0.7}) == 5
    assert last_good({}) == 0


# --- memory ---------------------------------------------------------------------------------


def test_memory_that_ran_out_is_noted_and_halves_the_pass(tmp_path: Path) -> None:
    run = Run(tmp_path / "dpo", 0)
    assert memory_limit(run) is None
    again = less_memory(run, 6, 12, "tried to allocate")
    assert isinstance(again, Again)
    assert "dpo: out of memory with 6 samples a forward pass: goes on from step 0 with 3" in str(
        again
    )
    assert memory_limit(run) == 3
    assert "15 samples a forward pass: goes on from step 0 with 5" in str(
        less_memory(run, 15, 15, "tried to allocate")  # 7 and 6 do not divide 15
    )
    assert memory_limit(run) == 5 == training(15).micro_for(1, 5)


def test_memory_that_does_not_suffice_for_one_sample_is_an_error(tmp_path: Path) -> None:
    error = less_memory(Run(tmp_path / "dpo", 0), 1, 4, "tried to allocate")
    assert isinstance(error, TrainingError)
    for way_out in ("gradient_checkpointing", "max_length", "lora.four_bit"):
        assert way_out in str(error)
    assert memory_limit(Run(tmp_path / "dpo", 0)) is None


@pytest.mark.parametrize("text", ['{"micro_batch_size": 0}', "[]", '{"micro_batch_size": "8"}'])
def test_a_damaged_note_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.json").write_text(text)
    with pytest.raises(SelfcalError, match=r"memory\.json is damaged: delete it"):
        memory_limit(Run(tmp_path, 0))
