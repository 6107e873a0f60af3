"""Which samples a report shows."""

from __future__ import annotations

from pathlib import Path

from selfcal.report.drawn import draw, examples, exchange
from selfcal.report.samples import samples_context
from selfcal.types import Candidate, Drop, Sample
from unit.hand_made import RunFolder, sample


def test_splits_share_a_limit_evenly_where_they_can() -> None:
    ids = {s: [f"{s}-{i}" for i in range(n)] for s, n in (("a", 100), ("b", 100), ("c", 3))}
    drawn = draw(ids, (), 21, seed=0)
    assert {split: len(own) for split, own in drawn.items()} == {"a": 9, "b": 9, "c": 3}
    assert len(set(drawn["a"])) == 9 and drawn["a"] != ids["a"][:9]
    everyone = draw(ids, (), 1_000, seed=0)
    assert {s: sorted(own) for s, own in everyone.items()} == {s: sorted(o) for s, o in ids.items()}
    assert all(not own for own in draw(ids, (), 0, seed=0).values())


def test_a_draw_depends_on_seed_and_names_alone() -> None:
    ids = {"a": [f"a-{i}" for i in range(50)]}
    drawn = draw(ids, (), 10, seed=0)["a"]
    assert draw({"a": ids["a"][::-1]}, (), 10, seed=0)["a"] == drawn
    assert draw(ids, (), 5, seed=0)["a"] == drawn[:5]
    assert draw(ids, (), 10, seed=1)["a"] != drawn


def test_followed_samples_come_first() -> None:
    ids = {"calibration": [f"c-{i}" for i in range(50)], "dev": ["c-7", "d"]}
    followed = {("calibration", "c-7"), ("calibration", "c-30")}
    drawn = draw(ids, followed, 12, seed=0)
    assert {*drawn["calibration"][:2]} == {"c-7", "c-30"}


# --- a few for each reason ------------------------------------------------------------------


def test_each_reason_has_examples_and_the_page_counts_those_that_gave_way(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    calibration = [sample(f"c-{i}") for i in range(200)]
    run.finish("data", {"calibration": (Sample, calibration), "rft": (Sample, [sample("r")])})
    reasons = ["rare" if i >= 197 else "common" for i in range(100, 200)]
    drops = [Drop(f"c-{100 + i}", "candidates", reason) for i, reason in enumerate(reasons)]
    run.finish("iter-1/candidates", {"candidates": (Candidate, []), "drops": (Drop, drops)})
    ids = {"calibration": [s.id for s in calibration], "rft": ["r"]}
    wanted = examples(run.planned, ids, seed=0)
    assert len(wanted) == 5 + 3
    assert {"c-197", "c-198", "c-199"} <= {i for _, i in wanted}
    before = draw(ids, (), 20, seed=0)
    after, gone = exchange(before, (), wanted)
    assert {i for _, i in wanted} <= set(after["calibration"])
    assert [len(own) for own in after.values()] == [len(own) for own in before.values()]
    assert gone == len(set(before["calibration"]) - set(after["calibration"])) > 0

    made = samples_context(run.path, 20, None)
    assert made["links"]("iter-1/candidates", "c-199") == "#samples?id=c-199&of=calibration"
    assert made["links"]("teacher", "nobody") == made["links"]("data", "c-199") == ""


def test_a_small_draw_gives_way_by_half_and_keeps_what_was_followed() -> None:
    followed = {("calibration", "a"), ("calibration", "b")}
    wanted = [("calibration", i) for i in "wxyz"]
    drawn, gone = exchange({"calibration": ["a", "b", "c", "d"]}, followed, wanted)
    assert (drawn, gone) == ({"calibration": ["a", "b", "w", "x"]}, 2)
