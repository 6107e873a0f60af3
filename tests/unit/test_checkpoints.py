"""Checkpoints of trainings: which one is taken up, and which are kept."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from selfcal.digests import file_digest
from selfcal.errors import StoreError
from selfcal.train.checkpoints import (
    DIGESTS,
    carried_by,
    checkpoints,
    drop_after,
    drop_old,
    last_checkpoint,
    seal,
    step_of,
    whole,
)


def carried(loss: float, **other: Any) -> dict[str, Any]:
    return {"loss": loss, "logged": 1, "tokens": 8, "metrics": {"entropy": [0.5, 1]}} | other


def made(trl: Path, step: int, sealed: bool = True) -> Path:
    folder = trl / f"checkpoint-{step}"
    (folder / "deep").mkdir(parents=True)
    (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    (folder / "optimizer.pt").write_bytes(bytes(range(256)) * step)
    (folder / "deep" / "part.bin").write_bytes(b"x" * 10)
    if sealed:
        seal(folder, carried(step / 2))
    return folder


def test_the_newest_whole_checkpoint_is_taken_up_by_its_step_not_its_name(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        made(tmp_path, step)
    made(tmp_path, 200, sealed=False)  # killed while it was written: TRL's last file is there
    found = last_checkpoint(tmp_path)
    assert found == str(tmp_path / "checkpoint-100")
    assert (step_of(found), step_of(None)) == (100, 0)
    assert carried_by(found) == carried(50.0)
    assert carried_by(None) == {}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


DAMAGE = {
    "a flipped bit": lambda c: flip(c / "optimizer.pt"),
    "a cut file": lambda c: (c / "optimizer.pt").write_bytes(b"\0" * 10),
    "an empty file": lambda c: (c / "deep/part.bin").write_bytes(b""),
    "a missing file": lambda c: (c / "deep/part.bin").unlink(),
    "no digests": lambda c: (c / DIGESTS).unlink(),
    "cut digests": lambda c: (c / DIGESTS).write_text('{"files": {'),
    "digests of another kind": lambda c: (c / DIGESTS).write_text("[1]"),
    "odd digests": lambda c: (c / DIGESTS).write_text('{"files": {"optimizer.pt": 3}}'),
    "a changed digit of what is carried": lambda c: (c / DIGESTS).write_text(
        (c / DIGESTS).read_text().replace('"tokens": 8', '"tokens": 9')
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, what: str) -> None:
    before, last = made(tmp_path, 2), made(tmp_path, 4)
    assert whole(last)
    DAMAGE[what](last)
    assert not whole(last)
    assert last_checkpoint(tmp_path) == str(before)
    DAMAGE[what](before)
    assert last_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    "odd",
    [
        {"loss": 1.0},
        carried(float("nan")),
        carried(10**400),
        carried(1.0, tokens="8"),
        carried(1.0, logged=None),
        carried(1.0, metrics=[]),
        carried(1.0, metrics={"entropy": 1}),
        carried(1.0, metrics={"entropy": ["x"]}),
        [],
    ],
)
def test_a_checkpoint_that_carries_something_else_is_passed_over(tmp_path: Path, odd: Any) -> None:
    folder = made(tmp_path, 2)
    said = json.loads((folder / DIGESTS).read_text())
    del said["own_digest"]  # as from before there was one
    (folder / DIGESTS).write_text(json.dumps(said))
    assert whole(folder)
    (folder / DIGESTS).write_text(json.dumps(said | {"carried": odd}))
    assert not whole(folder)


NOTHING = {"sha256": hashlib.sha256().hexdigest(), "size": 0}


@pytest.mark.parametrize(
    "files",
    [
        {"/dev/zero": NOTHING},
        {"link": NOTHING},
        {"pipe": NOTHING},
        {"../beside": NOTHING},
        {"\ud800": NOTHING},
        {"optimizer.pt": {"sha256": NOTHING["sha256"]}},
        ["optimizer.pt"],
    ],
)
def test_digests_that_lead_elsewhere_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Any
) -> None:
    folder = made(tmp_path, 2)
    (tmp_path / "beside").touch()
    (folder / "link").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe")

    def digest(path: Path) -> str:  # who reads a device or a pipe does not come back
        assert path.is_file(), f"{path} is read"
        return file_digest(path)

    monkeypatch.setattr("selfcal.train.checkpoints.file_digest", digest)
    (folder / DIGESTS).write_text(json.dumps({"files": files, "carried": {}}))
    assert not whole(folder)


def test_digests_that_are_no_file_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path, 2)
    (folder / DIGESTS).unlink()
    os.mkfifo(folder / DIGESTS)
    monkeypatch.delattr("selfcal.train.checkpoints.read_signed")
    assert not whole(folder)


def test_the_digests_are_those_of_the_files(tmp_path: Path) -> None:
    folder = made(tmp_path, 1)
    entry = json.loads((folder / DIGESTS).read_text())["files"]["deep/part.bin"]
    # `printf xxxxxxxxxx | sha256sum`
    assert entry["size"] == 10
    assert entry["sha256"].startswith("fc11d6f28e59d3cc")


def test_two_checkpoints_are_kept_and_the_clock_is_not_asked(tmp_path: Path) -> None:
    for i, step in enumerate((30, 20, 10)):
        os.utime(made(tmp_path, step), (i, i))  # as where the clock was put back
    drop_old(tmp_path, 30)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-30", "checkpoint-20"]


def test_one_that_is_known_to_be_good_is_kept_beside_them(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        made(tmp_path, step)
    drop_old(tmp_path, 25)
    left = [step_of(str(p)) for p in checkpoints(tmp_path)]
    assert left == [50, 40, 20]


def test_what_follows_a_step_is_deleted(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        made(tmp_path, step, sealed=step < 30)
    drop_after(tmp_path, 10)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-10"]


def test_nothing_else_in_the_folder_is_taken_for_a_checkpoint(tmp_path: Path) -> None:
    for name in ("checkpoint-x", "checkpoint-", "checkpoint-1.old", "runs"):
        (tmp_path / name).mkdir()
    assert checkpoints(tmp_path) == []
    assert last_checkpoint(tmp_path / "missing") is None


def test_a_checkpoint_that_cannot_be_sealed_is_not_whole(tmp_path: Path) -> None:
    folder = made(tmp_path, 3)
    (folder / "deep/part.bin").unlink()
    (folder / "deep/part.bin").symlink_to(tmp_path / "nowhere")
    seal(folder, {})  # a link to nothing is no file
    assert whole(folder)
    folder.chmod(0o500)
    try:
        with pytest.raises((StoreError, PermissionError)):
            seal(folder, {})
            raise PermissionError  # as root, who may do all
    finally:
        folder.chmod(0o700)
