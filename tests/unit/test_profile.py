"""The table of where a run's time went."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfcal.errors import StoreError
from selfcal.pipeline import PROFILE_FILE
from selfcal.store import write_json
from selfcal.view.profile import show_profile


def shown(run: Path) -> str:
    out = io.StringIO()
    show_profile(Console(file=out, width=120, markup=False, highlight=False, emoji=False), run)
    return out.getvalue()


def row(text: str, stage: str) -> list[str]:
    """What stands after a stage's name and its time."""
    (line,) = [line for line in text.splitlines() if line.startswith(stage)]
    return line.split()[-7:]


def stage(seconds: float, **parts: float) -> dict[str, Any]:
    return {"seconds": seconds, "parts": parts}


def test_shares_are_of_each_stages_own_time(tmp_path: Path) -> None:
    profile = {
        "rft": stage(200.0, training=150.0, disk=0.8, other=49.2),
        "iter-1/judge": stage(50.0, model=30.0, tokenizer=4.0, cache=0.25, other=15.75),
    }
    write_json(tmp_path / PROFILE_FILE, profile)
    text = shown(tmp_path)
    header = next(line for line in text.splitlines() if line.startswith("stage"))
    assert header.split() == [
        "stage", "time", "model", "training", "tokenizer", "sampling", "cache", "disk", "other",
    ]  # fmt: skip
    # 150 / 200, 0.8 / 200 = 0.4 %, 49.2 / 200 = 24.6 %
    assert row(text, "rft") == ["·", "75%", "·", "·", "·", "·", "25%"]
    # 30 / 50, 4 / 50, 0.25 / 50 = 0.5 %, 15.75 / 50 = 31.5 %
    found = row(text, "iter-1/judge")
    assert (found[:4], found[5]) == (["60%", "·", "8%", "·"], "·")
    assert found[4] != "·" and found[6] in ("31%", "32%")
    assert str(tmp_path / PROFILE_FILE) in text.replace("\n", "")


def test_stages_keep_their_order(tmp_path: Path) -> None:
    write_json(tmp_path / PROFILE_FILE, {name: stage(1.0, other=1.0) for name in "cab"})
    lines = [line for line in shown(tmp_path).splitlines() if "100%" in line]
    assert [line[0] for line in lines] == ["c", "a", "b"]


def test_a_stage_that_took_no_time_has_no_shares(tmp_path: Path) -> None:
    write_json(tmp_path / PROFILE_FILE, {"pairs": stage(0.0)})
    assert row(shown(tmp_path), "pairs") == ["·"] * 7


def test_nothing_ran(tmp_path: Path) -> None:
    assert shown(tmp_path).startswith("Nothing ran")


def test_a_damaged_profile_is_named(tmp_path: Path) -> None:
    (tmp_path / PROFILE_FILE).write_text('{"rft": ')
    with pytest.raises(StoreError, match=PROFILE_FILE):
        shown(tmp_path)


def test_a_stages_name_cannot_harm_the_terminal(tmp_path: Path) -> None:
    write_json(tmp_path / PROFILE_FILE, {"\x1b[31mrft": stage(1.0)})
    assert "\x1b" not in shown(tmp_path) and "\\x1b[31mrft" in shown(tmp_path)
