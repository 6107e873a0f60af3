"""Settings of the engines in whole runs: adaptive comparisons, a profile, little memory."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from e2e.runs import Undisturbed, outcome, small
from selfcal.pipeline import PROFILE_FILE, execute, locate
from selfcal.store import read_json
from selfcal.types import Candidate, Judgment
from selfcal.view.trace import show_trace


def test_an_adaptive_run_asks_less_and_pairs_as_much(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    recipe = small("judge.schedule=adaptive", "curate.tie=0.05", "iterations=1")
    execute(recipe, tmp_path / "run", reuse=[undisturbed.run])
    folders = {p.stage.name: p.folder for p in locate(recipe, tmp_path / "run")}
    stats = folders["iter-1/judgments"].manifest()["stats"]
    asked = folders["iter-1/judgments"].read("judgments", Judgment)
    assert 0 < stats["share_of_all"] < 1
    assert len({(g.sample_id, g.first, g.second) for g in asked}) == len(asked)
    several = {c.sample_id for c in folders["iter-1/candidates"].read("candidates", Candidate)
               if c.index}  # fmt: skip
    assert {g.sample_id for g in asked} == several
    pairs = folders["iter-1/pairs"].manifest()["stats"]
    assert pairs["pairs"] + sum(pairs["drops"].values()) == 24

    screen = Console(record=True, width=120)
    sizes = {s: sum(g.sample_id == s for g in asked) for s in several}
    show_trace(screen, tmp_path / "run", max(sizes, key=lambda s: sizes[s]))
    assert "judgments" in screen.export_text()


def test_a_profile_says_where_the_time_of_each_stage_went(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    recipe = small("iterations=1", "search.top_p=0.9", "judge.kind=guess")
    execute(recipe, tmp_path / "run", reuse=[undisturbed.run], profile=True)
    profile = read_json(tmp_path / "run" / PROFILE_FILE)
    assert "rft" not in profile  # taken over
    search = profile["iter-1/candidates"]
    assert {"model", "tokenizer", "sampling", "cache", "disk", "other"} <= search["parts"].keys()
    assert "training" in profile["iter-1/dpo"]["parts"]
    for stage in profile.values():
        assert sum(stage["parts"].values()) <= stage["seconds"] + 0.01


def test_little_memory_changes_nothing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """A cache for a few rows; not part of what a stage depends on, so it is run anew."""
    recipe = small("search.cache_gib=0.0005", "search.batch_rows=5", "judge.batch_size=3")
    execute(recipe, tmp_path / "run")
    assert outcome(recipe, tmp_path / "run") == undisturbed.outcome
