"""Online trainings that another machine goes on with: their responses, and what needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

from selfcal import train
from selfcal.errors import StoreError
from selfcal.pipeline import plan
from selfcal.recipe import load_recipe
from selfcal.remote import doors, place_of, working_folder
from selfcal.remote import objects as stores
from selfcal.stage import Work
from selfcal.stopping import Again
from selfcal.store import StageDir, write_text
from selfcal.train import Ledger
from selfcal.train.checkpoints import checkpoints, last_checkpoint, seal
from selfcal.types import Rollout, Sample

RECIPE = Path(__file__).parents[2] / "recipes" / "miniworld-grpo.yaml"


def rollouts(step: int) -> list[Rollout]:
    return [Rollout("s", step, 0, "text", 5, 1.0, True, (), 1.0, 0.0)]


def filled(folder: Path, batches: int) -> Ledger:
    ledger = Ledger(StageDir(folder, "fingerprint"))
    for step in range(batches):
        ledger.add(step, rollouts(step))
    return ledger


def test_a_ledger_is_whole_up_to_a_gap(tmp_path: Path) -> None:
    ledger = filled(tmp_path, 4)
    assert [ledger.whole(n) for n in (0, 4, 5)] == [0, 4, 4]
    ledger.folder.shard("rollouts", 2).write_bytes(b"PAR1")
    assert ledger.whole(4) == 2
    ledger.folder.shard("rollouts", 1).unlink()
    assert ledger.whole(4) == 1


def test_a_batch_that_the_system_does_not_give_may_be_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    ledger = filled(tmp_path, 1)
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(StoreError, match=r"cannot read .*Permission denied"):
        ledger.whole(1)


def test_what_comes_after_a_checkpoint_is_deleted_over_gaps(tmp_path: Path) -> None:
    ledger = filled(tmp_path, 5)
    ledger.folder.shard("rollouts", 3).unlink()
    again = Ledger(ledger.folder)
    assert list(again.reopen(2)) == [rollouts(0), rollouts(1)]
    assert again.spent == 10
    assert sorted(p.name for p in tmp_path.glob("*.parquet")) == [
        "rollouts-00000.parquet", "rollouts-00001.parquet",
    ]  # fmt: skip


# --- on a store -------------------------------------------------------------------------------


class Lost(BaseException):
    """The machine is gone."""


@dataclass
class Machines:
    """Machines that take up one stage of a run on a store, one after the other."""

    folder: Path
    patch: pytest.MonkeyPatch

    def take_up(self, name: str) -> Work:
        self.patch.setenv("SELFCAL_MIRRORS", str(self.folder / name))
        doors._open.clear()
        run = working_folder("memory://bucket/online")
        (stage,) = [s for s in plan(load_recipe(RECIPE)) if s.name == "iter-1/grpo"]
        data = StageDir(run / "data", "data")
        data.write_shard("calibration", 0, [Sample("s", "a.png", "Who?", "me")], Sample)
        inputs = {"data": data, "rft": StageDir(run / "rft", "rft")}
        place, own = place_of(run), StageDir(run / stage.name, "f")
        place.takes_up(own)
        own.open()
        place.opened(own)
        return Work(run, stage, own, inputs, 0, saved=place.saved)

    def lose(self, work: Work, steps: int) -> None:
        """Train for some steps, with a checkpoint at every other one; then the machine is lost."""

        def grpo(*given: Any) -> None:
            ledger, run = given[4:]
            for step in range(1, steps + 1):
                ledger.add(step - 1, rollouts(step - 1))
                if step % 2 == 0:
                    made = run.out / "trl" / f"checkpoint-{step}"
                    write_text(made / "state", str(step))
                    seal(made, {})
                    run.saved(made)
            raise Lost

        with self.patch.context() as patch:
            patch.setattr(train, "grpo", grpo)
            with pytest.raises(Lost):
                work.stage.run(work)


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    monkeypatch.setattr(stores, "PAUSES", (0.0,))
    yield Machines(tmp_path, monkeypatch)
    fsspec.filesystem("memory").store.clear()


def test_responses_are_on_the_store_before_the_checkpoint_that_needs_them(
    machines: Machines,
) -> None:
    machines.lose(machines.take_up("first"), 3)
    work = machines.take_up("second")
    assert last_checkpoint(work.out / "trl") == str(work.out / "trl" / "checkpoint-2")
    ledger = Ledger(work.folder)
    assert list(ledger.reopen(2)) == [rollouts(0), rollouts(1)]


def lose_first(store: Any) -> None:
    store.rm_file("/bucket/online/iter-1/grpo/rollouts-00000.parquet")


def damage_third(store: Any) -> None:
    store.pipe_file("/bucket/online/iter-1/grpo/rollouts-00002.parquet", b"PAR1")


@pytest.mark.parametrize(
    ("spoil", "said", "left"),
    [
        (lose_first, r"rollouts-00000\.parquet is missing or .* goes on from step 0$", []),
        (damage_third, r"00002\.parquet is missing or damaged, .* goes on from step 2$", [2]),
    ],
)
def test_a_checkpoint_whose_responses_are_lost_is_given_up_on_the_store_too(
    machines: Machines, spoil: Callable[[Any], None], said: str, left: list[int]
) -> None:
    machines.lose(machines.take_up("first"), 4)
    spoil(fsspec.filesystem("memory"))
    work = machines.take_up("second")
    assert len(checkpoints(work.out / "trl")) == 2
    with pytest.raises(Again, match=said):
        work.stage.run(work)
    for name in ("second", "third"):
        again = machines.take_up(name)
        found = checkpoints(again.out / "trl")
        assert [p.name for p in found] == [f"checkpoint-{step}" for step in left]
