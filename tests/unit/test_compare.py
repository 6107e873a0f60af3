"""Comparing recipes: the statistics by hand, the runs, what is read of them, and what is shown."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

from selfcal import cli, pipeline, planning, stopping
from selfcal.compare import report, runs
from selfcal.compare.collect import Outcome, Spent, read_outcome, spent
from selfcal.compare.runs import Failure, Place, Runner, load_recipes, pick_baseline, read_seeds
from selfcal.compare.statistics import (
    Rows,
    Sums,
    bonferroni,
    draw,
    holm,
    interval,
    p_value,
    resampled,
    spread,
)
from selfcal.errors import SelfcalError
from selfcal.evaluate import METRICS, measure
from selfcal.executor import base as executor
from selfcal.recipe import Recipe, load_recipe
from selfcal.stage import Stage, Work
from selfcal.store import write_json
from selfcal.types import PreferencePair, Response, Sample
from selfcal.types import Result as Measured
from selfcal.view.compare import sheets, show_comparison, write_markdown
from selfcal.view.figures import apart, write_figures

TIMES = 2000


def sums(part: Sequence[float], whole: Sequence[float] | None = None) -> Sums:
    """One ratio; by default, a share of all."""
    wholes = [1.0] * len(part) if whole is None else whole
    return Sums(np.array(part, dtype=float)[:, None], np.array(wholes, dtype=float)[:, None])


def rows(*sizes: int, shared: bool = False) -> Rows:
    """So many answers in each seed; the same questions in all, or other ones in each."""
    seed = [s for s, n in enumerate(sizes) for _ in range(n)]
    question = [i for n in sizes for i in range(n)] if shared else list(range(len(seed)))
    return Rows(np.array(seed), np.array(question))


# --- statistics -----------------------------------------------------------------------------


def test_a_ratio_is_of_sums_not_a_mean_of_ratios() -> None:
    # 3 of 1 + 1 + 4 statements; the mean of the shares 1, 0, 2/4 would be 1/2
    assert sums([1, 0, 2], [1, 1, 4]).ratios().item() == 3 / 6
    # the first drawn twice, the second not at all: (2 x 1 + 2) / (2 x 1 + 4)
    assert sums([1, 0, 2], [1, 1, 4]).ratios(np.array([[2.0, 0.0, 1.0]])).item() == 4 / 6


def test_a_ratio_to_nothing_is_no_number() -> None:
    assert math.isnan(sums([0, 0], [0, 0]).ratios().item())
    draws = np.array([math.nan, 0.5, math.nan, 0.5])
    assert interval(draws, 0.95) == (0.5, 0.5)
    assert all(map(math.isnan, interval(np.array([math.nan]), 0.95)))
    assert math.isnan(spread(np.array([math.nan, 1.0])))


def test_one_seed_draws_its_questions_alone() -> None:
    counts = draw(rows(7), np.random.default_rng(0), 50)
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert len({tuple(c) for c in counts}) > 1


def test_seeds_are_drawn_first_and_questions_within_each() -> None:
    counts = draw(rows(4, 4, 4), np.random.default_rng(0), 200)
    of_seeds = counts.reshape(200, 3, 4).sum(axis=2)
    # three seeds are drawn, and a seed that is drawn k times draws its 4 questions k times
    assert (of_seeds.sum(axis=1) == 12).all()
    assert (of_seeds % 4 == 0).all()
    assert set(np.unique(of_seeds)) == {0, 4, 8, 12}


def test_questions_that_seeds_share_are_drawn_once_for_all() -> None:
    counts = draw(rows(5, 5, shared=True), np.random.default_rng(0), 200).reshape(200, 2, 5)
    for first, second in counts:
        # seed counts (2, 0), (1, 1) or (0, 2) times one and the same resample of 5 questions
        both = first + second
        assert both.sum() == 10
        assert any((first == k * both / 2).all() for k in (0, 1, 2))


def test_sharing_questions_makes_less_sure() -> None:
    # 40 questions, half of them right in both of two seeds: shared, there are 40; else, 80
    answers = sums([1, 0] * 20 + [1, 0] * 20)
    apart_, together = (
        spread(resampled(rows(40, 40, shared=s), [answers], TIMES)[0][:, 0]) for s in (False, True)
    )
    assert apart_ == pytest.approx(math.sqrt(0.25 / 80), rel=0.1)
    assert together == pytest.approx(math.sqrt(0.25 / 40), rel=0.1)


def test_the_error_of_a_share_is_the_binomial_one() -> None:
    (draws,) = resampled(rows(100), [sums([1, 0] * 50)], TIMES)
    assert spread(draws[:, 0]) == pytest.approx(math.sqrt(0.25 / 100), rel=0.1)


def test_a_constant_difference_has_an_interval_of_no_width() -> None:
    a, b = resampled(rows(6, 6), [sums([1] * 12), sums([0] * 12)], TIMES)
    assert interval((a - b)[:, 0], 0.95) == (1.0, 1.0)
    # no draw lies on the other side of 0: twice (0 + 1) of 2000 + 1
    assert p_value((a - b)[:, 0]) == 2 / (TIMES + 1)


def test_equal_answers_differ_by_exactly_nothing() -> None:
    answers = sums([1, 0, 0, 2], [1, 3, 1, 2])
    a, b = resampled(rows(2, 2), [answers, answers], TIMES)
    assert (a - b == 0).all()
    assert interval((a - b)[:, 0], 0.99) == (0.0, 0.0)
    assert p_value((a - b)[:, 0]) == 1.0


def test_both_recipes_get_the_same_draws() -> None:
    # b is right where a is wrong: in every draw, the two shares add up to 1
    a, b = resampled(rows(5, 5), [sums([1, 0, 1, 1, 0] * 2), sums([0, 1, 0, 0, 1] * 2)], TIMES)
    assert a + b == pytest.approx(np.ones((TIMES, 1)))


def test_pairing_makes_surer() -> None:
    # alike but for one answer of 50: the difference varies far less than either recipe does
    a, b = resampled(rows(50), [sums([1, 0] * 25), sums([1, 0] * 24 + [0, 0])], TIMES)
    assert spread((a - b)[:, 0]) < 0.4 * spread(a[:, 0])


def test_seeds_that_differ_widen_the_interval() -> None:
    # all right in one seed, all wrong in the other; seeds are drawn as (0,0), (0,1), (1,0), (1,1),
    # so the mean is 0 or 1 in a quarter of the draws each, and 1/2 in the others
    answers = sums([1] * 30 + [0] * 30)
    two = resampled(rows(30, 30), [answers], TIMES)[0][:, 0]
    assert set(two) == {0.0, 0.5, 1.0}
    assert interval(two, 0.95) == (0.0, 1.0)
    # samples alone: 1/2, and two errors of sqrt(1/4 / 60) on each side
    low, high = interval(resampled(rows(60), [answers], TIMES)[0][:, 0], 0.95)
    assert low == pytest.approx(0.5 - 1.96 * math.sqrt(0.25 / 60), abs=0.04)
    assert high == pytest.approx(0.5 + 1.96 * math.sqrt(0.25 / 60), abs=0.04)


def test_draws_do_not_hang_on_how_many_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    many = resampled(rows(3, 3), [sums([1, 0, 1, 0, 0, 1])], 10)[0]
    again = resampled(rows(3, 3), [sums([1, 0, 1, 0, 0, 1])], 10)[0]
    assert (many == again).all()
    monkeypatch.setattr("selfcal.compare.statistics._CELLS", 12)  # two draws at once
    assert resampled(rows(3, 3), [sums([1, 0, 1, 0, 0, 1])], 9)[0].shape == (9, 1)


def test_interval_and_p_by_hand() -> None:
    assert interval(np.arange(101.0), 0.9) == pytest.approx((5, 95))
    # of 9 draws, 1 is not above 0: 2 x (1 + 1) / (9 + 1)
    assert p_value(np.array([-1.0, 1, 2, 3, 4, 5, 6, 7, 8])) == 0.4
    assert p_value(np.array([-1.0, 1.0])) == 1.0  # 2 x 2 / 3, but no p is above 1


def test_holm_by_hand() -> None:
    # ascending: .005 x 4, .01 x 3, .03 x 2, and .04 x 1, which is less than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_bonferroni_by_hand() -> None:
    assert [bonferroni(m) for m in (1, 2, 5)] == pytest.approx([0.95, 0.975, 0.99])


# --- outcomes -------------------------------------------------------------------------------


def asked(i: int, seed: int | None) -> tuple[int | None, Sample]:
    return seed, Sample(f"test-{i}", f"images/{i}.png", "Add the digits.", "5", category=kind(i))


def kind(i: int) -> str:
    return ("math", "chart")[i % 2]


def answer(i: int, right: bool, sound: bool = True) -> Response:
    return Response(
        f"test-{i}", kind(i), "text", "5", True, right, sound, not sound, False, False, False,
        true_statements=2 if sound else 1, statements=2,
    )  # fmt: skip


def outcome(
    recipe: str,
    seed: int,
    right: Sequence[bool],
    before: Sequence[bool] | None = None,
    own: bool = True,
    **more: Any,
) -> Outcome:
    """A run that answered question i right or not, and sound where right."""
    answers = {
        checkpoint: {asked(i, seed if own else None): answer(i, r, r) for i, r in enumerate(each)}
        for checkpoint, each in (("seed", before or right), ("iter-1", right))
    }
    given = {"pairs": {}, "spent": Spent(100, 10, 5, 2.0)} | more
    return Outcome(recipe, seed, answers, frozenset(METRICS), **given)


def compared(*outcomes: Outcome, **more: Any) -> report.Comparison:
    names = list(dict.fromkeys(o.recipe for o in outcomes))
    given = {"recipes": names, "baseline": (*names, "a")[0], "split": "test", "resamples": 500}
    return report.compare(list(outcomes), **(given | more))


T, F = True, False


def test_values_are_over_all_seeds_and_samples() -> None:
    found = compared(outcome("a", 0, [T, T, F, F]), outcome("a", 1, [T, F, F, F]))
    accuracy = found.value("a", "all", "answer_accuracy")
    assert accuracy is not None
    assert (accuracy.value, accuracy.n, accuracy.checkpoint) == (3 / 8, 8, "iter-1")
    # even questions are math: T, F, T, F
    math_ = found.value("a", "math", "answer_accuracy")
    assert math_ is not None
    assert (math_.value, math_.n) == (2 / 4, 4)
    alignment = found.value("a", "all", "alignment")
    assert alignment is not None
    assert (alignment.value, alignment.stderr, alignment.n) == (1.0, 0.0, 3)  # of the right ones
    assert found.differences == ()
    assert not found.shared


def test_values_equal_those_of_one_run() -> None:
    one = outcome("a", 3, [T, F, T, T, F])
    found = compared(one)
    for r in measure(list(one.answers["iter-1"].values()), "iter-1", "test", 3):
        mine = found.value("a", r.category, r.metric)
        assert mine is not None
        assert mine.value == pytest.approx(r.value, nan_ok=True)
        assert mine.n == r.n


def test_a_difference_is_paired_and_corrected() -> None:
    found = compared(
        outcome("a", 0, [F] * 6), outcome("b", 0, [T] * 6), outcome("c", 0, [T, F] * 3),
    )  # fmt: skip
    b = found.difference("b", "all", "answer_accuracy")
    c = found.difference("c", "all", "answer_accuracy")
    assert b is not None
    assert c is not None
    assert (b.difference, b.low, b.high) == (1.0, 1.0, 1.0)
    assert b.sure
    assert (b.n, b.by_seed, b.comparisons) == (6, {0: 1.0}, 2)
    assert b.level == c.level == pytest.approx(0.975)
    assert b.p == 2 / 501
    # Holm: the smaller p twice, the larger once, but no less than the smaller
    assert b.p_holm == pytest.approx(2 * b.p)
    assert c.p_holm == pytest.approx(max(2 * b.p, c.p))
    assert c.difference == 0.5
    assert c.low < 0.5 < c.high
    # nothing is right in a, so there is no share of sound ones among the right
    assert found.difference("b", "all", "alignment") is None


def test_recipes_with_equal_answers_do_not_differ() -> None:
    both = [outcome(name, s, [T, F, T, F]) for name in ("a", "b") for s in (0, 1)]
    for d in compared(*both).differences:
        assert (d.difference, d.low, d.high, d.p, d.p_holm) == (0, 0, 0, 1, 1)
        assert not d.sure


def test_a_missing_run_leaves_its_seed_out_of_the_difference_alone() -> None:
    found = compared(
        outcome("a", 0, [F] * 4), outcome("a", 1, [F] * 4), outcome("b", 1, [T, T, F, F]),
    )  # fmt: skip
    value = found.value("a", "all", "answer_accuracy")
    d = found.difference("b", "all", "answer_accuracy")
    assert value is not None
    assert d is not None
    assert value.n == 8
    assert (d.difference, d.n, d.by_seed) == (0.5, 4, {1: 0.5})
    assert found.finished == {"a": (0, 1), "b": (1,)}


def test_answers_to_other_questions_are_left_out_and_counted() -> None:
    found = compared(outcome("a", 0, [F, F]), outcome("b", 0, [T, T, T]))
    d = found.difference("b", "all", "answer_accuracy")
    assert d is not None
    assert d.n == 2
    assert found.left_out == {"b": 1}
    assert "left out: b 1." in flat(shown(found))


def test_questions_of_all_seeds_are_told_from_those_of_one() -> None:
    both = [outcome("a", s, [T, F, T, F], own=False) for s in (0, 1)]
    found = compared(*both)
    assert found.shared
    value = found.value("a", "all", "answer_accuracy")
    assert value is not None
    assert value.n == 8


def test_the_trajectory_has_every_checkpoint() -> None:
    found = compared(outcome("a", 0, [T, T, T, F], before=[T, F, F, F]))
    at = {(v.checkpoint, v.metric): v.value for v in found.trajectory}
    assert at["seed", "answer_accuracy"] == 1 / 4
    assert at["iter-1", "answer_accuracy"] == 3 / 4
    assert {v.category for v in found.trajectory} == {"all"}


def test_pairs_are_counted_over_seeds() -> None:
    found = compared(
        outcome("a", 0, [T, F], pairs={"iter-1": Counter(first=5, neutral=1, unknown=2)}),
        outcome("a", 1, [T, F], pairs={"iter-1": Counter(first=1, second=1)}),
        outcome("b", 0, [T, F]),
    )
    (q,) = found.pairs
    assert (q.recipe, q.iteration, q.n, q.unknown) == ("a", "iter-1", 8, 2)
    assert (q.better, q.equal, q.worse) == (6 / 8, 1 / 8, 1 / 8)
    assert q.stderr == pytest.approx(math.sqrt(3 / 4 * 1 / 4 / 8))
    assert "b" in [row[0] for s in sheets(found) if "pairs" in s.columns for row in s.rows]


def test_cost_is_that_of_a_mean_run() -> None:
    found = compared(
        outcome("a", 0, [T], spent=Spent(100, 10, 4, 1.0)),
        outcome("a", 1, [T], spent=Spent(300, 0, 4, 2.0)),
    )
    assert found.costs == (report.Cost("a", 2, 200, 5, 4, 1.5),)


def test_cost_by_what_manifests_say() -> None:
    manifests = [
        {"seconds": 1.5, "stats": {"tokens": 70, "engine": {"tokens": 900}}},
        {"seconds": 2, "stats": {"judgments": 30, "unscored": 2}},
        {"seconds": 0.5, "stats": {"steps": 8, "tokens": 5}},
        {"seconds": 1, "stats": {"answer_accuracy": 0.5}},
    ]
    assert spent(manifests) == Spent(75, 30, 8, 5.0)


def test_what_was_not_verified_is_not_compared() -> None:
    from dataclasses import replace

    plain = frozenset({"answer_accuracy", "format_compliance"})
    found = compared(replace(outcome("a", 0, [T, F]), metrics=plain), outcome("b", 0, [T, T]))
    assert found.metrics == ("answer_accuracy", "format_compliance")


def test_nothing_finished() -> None:
    failed = Failure("a", 0, "logs/a/seed-0.log", "error: \x1b[31mno")
    found = compared(recipes=["a", "b"], baseline="a", failures=[failed])
    assert found.values == found.differences == found.costs == ()
    text = shown(found)
    assert r"a, seed 0, failed: error: \x1b[31mno; see logs/a/seed-0.log" in text
    assert "No differences: no run of a is finished." in flat(text)


def test_json_is_whole_and_has_no_nan() -> None:
    found = compared(outcome("a", 0, [F, F]), outcome("b", 0, [T, T]))
    data = json.loads(json.dumps(report.as_json(found), allow_nan=False))
    assert data["format"] == 1
    alignment = [v for v in data["values"] if v["metric"] == "alignment" and v["recipe"] == "a"]
    assert {(v["value"], v["n"]) for v in alignment} == {(None, 0)}
    accuracy = next(d for d in data["differences"] if d["metric"] == "answer_accuracy")
    assert accuracy["by_seed"] == {"0": 1.0}
    documented = str(report.__doc__)
    assert all(f"`{key}`" in documented for key in data if key != "format")
    for part in ("values", "differences", "costs"):
        assert all(f"`{key}`" in documented for key in data[part][0])


# --- what is shown --------------------------------------------------------------------------


def shown(found: report.Comparison, width: int = 100) -> str:
    out = io.StringIO()
    show_comparison(Console(file=out, width=width, markup=False, highlight=False), found)
    return out.getvalue()


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def several() -> report.Comparison:
    """Three recipes, two seeds."""
    right = {"src": [T, T, T, F], "sft-only": [T, F, T, F], "gu$ess": [F, F, T, F]}
    pairs = {"iter-1": Counter(first=3, second=1)}
    return compared(
        *(
            outcome(name, s, own, before=[T, F, F, F], pairs=pairs if name == "src" else {})
            for name, own in right.items()
            for s in (0, 1)
        )
    )


def test_tables_on_the_terminal(several: report.Comparison) -> None:
    text = shown(several)
    lines = [flat(line) for line in text.splitlines()]
    # src is right in 3 of 4, sft-only in 2, in both seeds
    assert any(line.startswith("↑ answer_accuracy 0.750 ±") for line in lines)
    assert any(line.startswith("↑ answer_accuracy -0.250 [") for line in lines)
    assert "src, iter-1 0.750 ±0.153 0.000 0.250 8" in lines  # sqrt(3/4 x 1/4 / 8)
    assert "src 100 10 5 2 s 2" in lines
    assert max(map(len, text.splitlines())) <= 100
    said = flat(text)
    assert "Corrected for 2 comparisons with src" in said
    assert "each interval is one of 97.5 %" in said
    assert "2 seeds: how much trainings differ is known but roughly" in said
    assert "One seed alone" not in said


def test_narrow_terminals_get_all_columns(several: report.Comparison) -> None:
    text = shown(several, width=60)
    assert max(map(len, text.splitlines())) <= 60
    for name in several.recipes:
        assert name in text


def test_one_seed_is_told() -> None:
    text = flat(shown(compared(outcome("a", 0, [T, F]), outcome("b", 0, [T, T]))))
    assert "resamples of samples, the same for both" in text
    assert "One seed alone (b): training's own randomness is not in the interval." in text


def test_markdown_has_all_tables(several: report.Comparison, tmp_path: Path) -> None:
    file = tmp_path / "compare.md"
    write_markdown(file, several, [tmp_path / "figures" / "cost.svg"])
    text = file.read_text()
    assert text.startswith("# Comparison on test: src, sft-only, gu\\$ess\n")
    assert "|  | src | sft-only | gu\\$ess |" in text
    assert "![cost](figures/cost.svg)" in text
    # every metric of every category
    assert text.count("| ↑ format_compliance |") == 2 * 3
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_markdown_takes_text_literally(tmp_path: Path) -> None:
    failed = Failure("a", 0, "log", "a|b [x](y) <b> *c* \x1b")
    found = compared(outcome("a", 0, [T, F]), failures=[failed])
    write_markdown(tmp_path / "c.md", found, [])
    line = r"| a, seed 0 | log | a\|b \[x](y) \<b\> \*c\* \\x1b |"
    assert line in (tmp_path / "c.md").read_text().splitlines()


def test_figures_are_drawings_that_do_not_change(
    several: report.Comparison, tmp_path: Path
) -> None:
    made = write_figures(tmp_path / "one", several)
    assert [f.name for f in made] == ["differences.svg", "checkpoints.svg", "cost.svg"]
    again = write_figures(tmp_path / "two", several)
    for file, other in zip(made, again, strict=True):
        assert ElementTree.parse(file).getroot().tag.endswith("svg")
        assert file.read_bytes() == other.read_bytes()
        assert "gu$ess" in file.read_text()  # the name, as it was drawn, in a comment


def test_figures_of_nothing(tmp_path: Path) -> None:
    assert write_figures(tmp_path, compared(recipes=["a"], baseline="a")) == []
    assert len(write_figures(tmp_path, compared(outcome("a", 0, [T, F])))) == 2  # no difference


def test_names_are_moved_apart() -> None:
    assert apart([0.0, 5.0], 1) == [0.0, 5.0]
    assert apart([2.0, 2.0], 1) == [1.5, 2.5]
    # 0 and 0.2 spread to -0.4 and 0.6, which is too near to 1: all three around 0.4
    assert apart([0.0, 0.2, 1.0], 1) == pytest.approx([-0.6, 0.4, 1.4])
    assert apart([], 1) == []


# --- what is asked for ----------------------------------------------------------------------

YAML = """
name: {name}
iterations: 1
data: {{rft: 1, calibration: 2, dev: 1, test: 2}}
policy: {{model: "miniworld:mini-llava"}}
judge: {{model: "miniworld:mini-judge"}}
dpo: {{beta: {beta}}}
"""


def recipe_file(folder: Path, name: str, beta: float = 0.1, file: str = "") -> Path:
    path = folder / f"{file or name}.yaml"
    path.write_text(YAML.format(name=name, beta=beta))
    return path


def test_seeds_are_read() -> None:
    assert read_seeds("0") == [0]
    assert read_seeds("0, 3,12") == [0, 3, 12]


@pytest.mark.parametrize("text", ["0,,1", "a", "", "1.5", "-1", "0,", "²"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(SelfcalError, match="write numbers with commas"):
        read_seeds(text)


def test_seeds_twice() -> None:
    with pytest.raises(SelfcalError, match="names a seed twice"):
        read_seeds("1,2,01")


def test_recipes_are_checked_before_anything_runs(tmp_path: Path) -> None:
    a, b = recipe_file(tmp_path, "a"), recipe_file(tmp_path, "b")
    assert [r.name for r in load_recipes([a, b], ["iterations=2"], "test")] == ["a", "b"]
    with pytest.raises(SelfcalError, match="both named 'a'"):
        load_recipes([a, b, recipe_file(tmp_path, "a", file="c")], [], "test")
    with pytest.raises(SelfcalError, match=r"name '\.\./x' is to be a folder's"):
        load_recipes([recipe_file(tmp_path, "../x", file="d")], [], "test")
    with pytest.raises(SelfcalError, match=r"does not measure 'test'"):
        load_recipes([a], ["evaluate.splits=[dev]"], "test")
    with pytest.raises(SelfcalError, match=r"nowhere\.yaml: cannot be read"):
        load_recipes([tmp_path / "nowhere.yaml"], [], "test")
    with pytest.raises(SelfcalError, match="unknown; did you mean `src`"):
        load_recipes([a], ["method=scr"], "test")


def test_the_baseline_is_the_first_or_the_one_named(tmp_path: Path) -> None:
    recipes = [Recipe(name="src"), Recipe(name="guess")]
    assert pick_baseline(None, recipes) == "src"
    assert pick_baseline("guess", recipes) == "guess"
    with pytest.raises(SelfcalError, match=r"no such recipe; did you mean `guess`\?"):
        pick_baseline("gues", recipes)


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    Place(tmp_path / "new").check()
    (tmp_path / "file").touch()
    with pytest.raises(SelfcalError, match="is a file"):
        Place(tmp_path / "file").check()
    with pytest.raises(SelfcalError, match="is not empty and is no comparison"):
        Place(tmp_path).check()
    run = tmp_path / "run"
    write_json(run / "recipe.json", {})
    with pytest.raises(SelfcalError, match="is a run of selfcal and is no comparison"):
        Place(run).check()
    write_json(tmp_path / "other" / "settings.json", ["something else"])
    with pytest.raises(SelfcalError, match="is no comparison"):
        Place(tmp_path / "other").check()


# --- carrying it out ------------------------------------------------------------------------


class World:
    """A fake method in place of SRC, and runs in this process in place of others."""

    def __init__(self) -> None:
        self.done: list[str] = []
        """Stages that were performed, as `NAME of SEED`."""
        self.commands: list[list[str]] = []
        self.broken: set[float] = set()
        """Betas whose training fails."""

    def plan(self, recipe: Recipe) -> list[Stage]:
        def stage(
            name: str, does: Callable[[Work], Mapping[str, Any]], *inputs: str, **settings: Any
        ) -> Stage:
            def run(work: Work) -> Mapping[str, Any]:
                self.done.append(f"{name} of {work.seed}")
                return does(work)

            return Stage(name, inputs, settings, run, 1, "samples", "a fake")

        beta = recipe.dpo.beta
        return [
            stage("data", self._data),
            stage("iter-1/pairs", self._pairs, "data"),
            stage("iter-1/dpo", lambda work: self._train(beta), "iter-1/pairs", beta=beta),
            stage(
                "eval/iter-1", lambda work: self._measure(work, beta > 0.5), "data", "iter-1/dpo"
            ),
        ]

    def _data(self, work: Work) -> Mapping[str, Any]:
        facts = "left digit: 2; right digit: 3"
        for split in ("calibration", "test"):
            found = [
                Sample(f"{split}-{i}", f"{i}.png", "Add the digits.", "5", (), "math", "", facts)
                for i in range(2)
            ]
            work.write(split, found, Sample)
        return {"samples": {"test": 2}}

    def _pairs(self, work: Work) -> Mapping[str, Any]:
        good = "Rationale: The left digit is 2. The right digit is 3. 2 plus 3 is 5.\nAnswer: 5"
        bad = "Rationale: The left digit is 4. The right digit is 3. 4 plus 3 is 7.\nAnswer: 7"
        made = [
            PreferencePair("calibration-0", good, bad, 0, 1, 1.0, 0.0),
            PreferencePair("calibration-1", bad, good, 0, 1, 1.0, 0.0),
        ]
        work.write("pairs", made, PreferencePair)
        return {"pairs": 2, "tokens": 50}

    def _train(self, beta: float) -> Mapping[str, Any]:
        if beta in self.broken:
            raise SelfcalError("the loss is no number")
        return {"steps": 3}

    def _measure(self, work: Work, right: bool) -> Mapping[str, Any]:
        made = [
            Response(f"test-{i}", "math", "x", "5", T, right, right, F, F, F, F, 1, 1)
            for i in range(2)
        ]
        work.write("test", made, Response)
        work.write("results", measure(made, "iter-1", "test", work.seed), Measured)
        return {}

    def call(self, command: Sequence[str], log: Path) -> int:
        self.commands.append(list(command))
        file, out, *others = command[4:5] + command[6:]
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            pipeline.execute(
                load_recipe(Path(file)), Path(out), None, [Path(o) for o in others[1::2]]
            )
        except SelfcalError as error:
            log.write_text(f"begins\nerror: {error}\n")
            return 1
        return 0


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World()
    monkeypatch.setattr(planning, "load_method", lambda name: made)
    monkeypatch.setattr(executor, "_seed_libraries", lambda seed, threads: None)
    monkeypatch.setattr(Runner, "_call", lambda self, command, log: made.call(command, log))
    yield made


def runner(folder: Path, seeds: Sequence[int] = (0, 1), **betas: float) -> Runner:
    files = [recipe_file(folder, name, beta) for name, beta in betas.items()]
    recipes = load_recipes(files, ["threads=1"], "test")
    return Runner(Place(folder / "out"), recipes, seeds, lambda *told: None)


def test_runs_share_what_is_equal_and_are_not_repeated(world: World, tmp_path: Path) -> None:
    work = runner(tmp_path, a=0.1, b=0.9)
    assert work.carry_out() == []
    for seed in (0, 1):
        # data and pairs hang on the seed alone; beta is the training's
        mine = [what for what in world.done if what.endswith(f"of {seed}")]
        assert sorted(Counter(mine).values()) == [1, 1, 2, 2]
        assert Counter(mine)[f"data of {seed}"] == 1
    written = yaml.safe_load((tmp_path / "out/recipes/b/seed-1.yaml").read_text())
    assert (written["seed"], written["threads"], written["dpo"]["beta"]) == (1, 1, 0.9)
    assert world.commands[1][1:5] == ["-m", "selfcal", "run", written_file(tmp_path, "b", 0)]
    assert world.commands[1][-2:] == ["--reuse", str(tmp_path / "out/runs/a/seed-0")]
    before = len(world.commands)
    again = runner(tmp_path, (0, 1, 2), a=0.1, b=0.9)
    assert again.carry_out(jobs=2) == []
    assert len(world.commands) == before + 2  # the new seed's alone


def written_file(folder: Path, name: str, seed: int) -> str:
    return str(folder / "out" / "recipes" / name / f"seed-{seed}.yaml")


def test_a_run_that_fails_does_not_stop_the_others(world: World, tmp_path: Path) -> None:
    world.broken = {0.1}
    work = runner(tmp_path, a=0.1, b=0.9)
    log = str(tmp_path / "out/logs/a/seed-0.log")
    failures = work.carry_out()
    assert failures[0] == Failure("a", 0, log, "error: the loss is no number")
    assert [(f.recipe, f.seed) for f in failures] == [("a", 0), ("a", 1)]
    assert runs.finished(work.place, work.recipes[1], 1)
    assert not runs.finished(work.place, work.recipes[0], 1)
    # what the failed run had finished was taken over by the other
    assert Counter(world.done)["data of 0"] == 1
    world.broken = set()
    assert runner(tmp_path, a=0.1, b=0.9).carry_out() == []


def test_a_run_is_a_process_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "$@"\necho "error: no" >&2\necho\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setattr(runs.sys, "executable", str(program))
    (failure,) = runner(tmp_path, (7,), a=0.1).carry_out()
    assert failure.said == "error: no"
    out = tmp_path / "out"
    words = f"-m selfcal run {written_file(tmp_path, 'a', 7)} --out {out / 'runs/a/seed-7'}"
    assert Path(failure.log).read_text().splitlines()[0] == words
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    (failure,) = runner(tmp_path, (7,), a=0.1).carry_out()
    assert failure.said == "was ended by signal 9"


def test_stopping_ends_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(runs.sys, "executable", str(program))
    work = runner(tmp_path, (0, 1), a=0.1, b=0.9)
    told: list[tuple[str, int, str]] = []

    def tell(name: str, seed: int, state: str) -> None:
        told.append((name, seed, state))

    call = Runner._call

    def stop_soon(self: Runner, command: Sequence[str], log: Path) -> int:
        import threading

        timer = threading.Timer(0.3, self.stop)
        timer.start()
        code = call(self, command, log)
        timer.join()
        return code

    monkeypatch.setattr(Runner, "_call", stop_soon)
    work.tell = tell
    assert work.carry_out() == []  # that is no failure
    assert told == [("a", 0, "begins")]


def test_what_a_run_left_is_read(world: World, tmp_path: Path) -> None:
    work = runner(tmp_path, (4,), a=0.9)
    work.carry_out()
    recipe = runs.seeded(work.recipes[0], 4)
    found = read_outcome(work.place.run("a", 4), recipe, "test")
    assert (found.recipe, found.seed, list(found.answers)) == ("a", 4, ["iter-1"])
    # the images lie in the run, so the questions are those of this seed
    assert {seed for seed, _ in found.answers["iter-1"]} == {4}
    assert [s.id for _, s in found.answers["iter-1"]] == ["test-0", "test-1"]
    # one pair is right way up, one upside down
    assert found.pairs == {"iter-1": Counter(first=1, second=1)}
    assert (found.spent.tokens, found.spent.steps) == (50, 3)
    assert found.metrics == frozenset(METRICS)


# --- the commands ---------------------------------------------------------------------------


def call(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(w) for w in words])


def test_compare(world: World, tmp_path: Path) -> None:
    files = [recipe_file(tmp_path, "a", 0.1), recipe_file(tmp_path, "b", 0.9)]
    out = tmp_path / "out"
    done = call("compare", *files, "--seeds", "0,1", "--out", out, "--threads", 1)
    assert done.exit_code == 0, done.output
    said = flat(done.output)
    assert "a, seed 0: done after" in said
    assert "↑ answer_accuracy +1.000 [+1.000, +1.000] *" in said
    data = json.loads((out / "compare.json").read_text())
    assert data["baseline"] == "a"
    assert [p["better"] for p in data["pairs"]] == [0.5, 0.5]
    assert data["costs"][1]["tokens"] == 50  # taken over, yet counted for both
    assert (out / "compare.md").exists()
    assert f"selfcal report {out}/runs/b/seed-1" in (out / "compare.html").read_text()
    assert (out / "figures" / "differences.svg").exists()
    again = call("compare", *files, "--seeds", "0,1", "--out", out, "--baseline", "b")
    assert "b, seed 1: was finished before" in again.output
    assert "-1.000 [-1.000, -1.000]" in again.output


def test_compare_with_a_failure(world: World, tmp_path: Path) -> None:
    world.broken = {0.1}
    files = [recipe_file(tmp_path, "a", 0.1), recipe_file(tmp_path, "b", 0.9)]
    done = call("compare", *files, "--seeds", "0", "--out", tmp_path / "out")
    assert done.exit_code == 1
    log = tmp_path / "out/logs/a/seed-0.log"
    assert f"a, seed 0, failed: error: the loss is no number; see {log}" in done.output
    assert "↑ answer_accuracy 1.000 ±0.000" in flat(done.output)
    assert json.loads((tmp_path / "out/compare.json").read_text())["failures"][0]["seed"] == 0


def test_a_budget_is_every_recipes(world: World, tmp_path: Path) -> None:
    file, out = recipe_file(tmp_path, "a"), tmp_path / "out"
    done = call("compare", file, "--seeds", "0", "--out", out, "--budget", 9000)
    assert done.exit_code == 0, done.output
    assert yaml.safe_load(Path(written_file(tmp_path, "a", 0)).read_text())["budget"] == 9000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a.yaml", "--seeds", "0,,1"), "write numbers with commas"),
        (("a.yaml", "--seeds", "a"), "write numbers with commas"),
        (("nowhere.yaml", "--seeds", "0"), "nowhere.yaml: cannot be read"),
        (("a.yaml", "a.yaml", "--seeds", "0"), "are both named 'a'"),
        (("a.yaml", "--seeds", "0", "--baseline", "b"), "--baseline 'b': no such recipe"),
        (("a.yaml", "--seeds", "0", "--set", "seed=3"), "give --seeds"),
        (("a.yaml", "--seeds", "0", "--set", "dpo.bta=3"), "did you mean `beta`?"),
        (("a.yaml", "--seeds", "0", "--out", "."), "is no comparison; give another folder"),
    ],
)
def test_compare_says_what_is_wrong(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_file(tmp_path, "a")
    monkeypatch.chdir(tmp_path)
    done = call("compare", "--out", "out", *words)
    assert done.exit_code == 1
    assert said in flat(done.stderr)
    assert not (tmp_path / "out").exists()


def test_judge_audit_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, bool, Path | None]] = []
    audit = types.ModuleType("selfcal.view.audit")
    audit.audit_command = lambda *given: asked.append(given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "selfcal.view.audit", audit)
    assert call("judge", "audit", tmp_path, "--json", "--labels", "f").exit_code == 0
    assert call("judge", "audit", tmp_path).exit_code == 0
    assert asked == [(tmp_path, True, Path("f")), (tmp_path, False, None)]


def test_a_wish_to_stop_is_passed_on_to_the_runs() -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        stopping.ask()
        try:
            assert runs._ended(child) == 7
        finally:
            stopping.forget()
