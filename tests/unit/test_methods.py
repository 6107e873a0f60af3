"""What methods decide, by hand; their recipes; and a method from outside of the package."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from selfcal import methods
from selfcal.errors import SelfcalError
from selfcal.judge.independent import compared
from selfcal.methods import answer_only, parts, self_consistency
from selfcal.methods.parts.budget import Budget, before_each, share
from selfcal.methods.parts.scoring import curate_sample
from selfcal.pipeline import execute, plan, results
from selfcal.recipe import Recipe, RecipeError, Settings, load_recipe
from selfcal.stage import Stage
from selfcal.types import Candidate, Drop, Judgment, PreferencePair, Sample

RECIPES = Path(__file__).parents[2] / "recipes"


def sample(answer: str = "3") -> Sample:
    return Sample("s", "image.png", "How many?", answer)


def said(*answers: str, logprobs: tuple[float, ...] = ()) -> list[Candidate]:
    return [
        Candidate("s", i, f"Rationale: {i} things.\nAnswer: {a}", (), (lp,), (1,), True)
        for i, (a, lp) in enumerate(zip(answers, logprobs or [-1.0] * len(answers), strict=True))
    ]


def ends(outcome: PreferencePair | Drop) -> tuple[int, int]:
    assert isinstance(outcome, PreferencePair), outcome
    return outcome.chosen_index, outcome.rejected_index


# --- self-consistency -------------------------------------------------------------------------


def test_the_majoritys_answer_is_chosen_and_the_rarest_rejected() -> None:
    # "three" and "3" are one answer: 3 votes; 4 has 2, 5 has 1
    found = said("3", "4", "three", "5", "4", "3.", logprobs=(-3, -1, -2, -1, -1, -4))
    outcome = self_consistency.decide(sample("7"), found)
    assert ends(outcome) == (2, 3)  # the likeliest of 0, 2 and 5
    assert isinstance(outcome, PreferencePair)
    assert (outcome.chosen_score, outcome.rejected_score) == (0.5, pytest.approx(1 / 6))


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (("3",), "one-candidate"),
        (("3", "3", "three"), "unanimous"),
        (("3", "4"), "tied"),
        (("3", "4", "3", "4", "5"), "tied"),
        (("", ""), "no-answer"),
    ],
)
def test_votes_that_decide_nothing(answers: tuple[str, ...], reason: str) -> None:
    assert self_consistency.decide(sample(), said(*answers)) == Drop("s", "pairs", reason)


def test_a_response_without_an_answer_does_not_vote_and_is_rejected_first() -> None:
    assert ends(self_consistency.decide(sample(), said("3", "3", "4", ""))) == (0, 3)


# --- answers alone ----------------------------------------------------------------------------


def test_right_is_preferred_to_wrong_and_the_likeliest_of_each_is_taken() -> None:
    found = said("4", "3", "5", "three", logprobs=(-2, -5, -1, -4))
    assert ends(answer_only.decide(sample(), found)) == (3, 2)


@pytest.mark.parametrize(
    ("answers", "reference", "reason"),
    [
        (("3", "three"), "3", "all-right"),
        (("4", "5"), "3", "all-wrong"),
        (("3",), "3", "one-candidate"),
        (("3", "4"), "", "no-answer"),
    ],
)
def test_answers_that_decide_nothing(answers: tuple[str, ...], reference: str, reason: str) -> None:
    outcome = answer_only.decide(sample(reference), said(*answers))
    assert outcome == Drop("s", "pairs", reason)


# --- independent scores -----------------------------------------------------------------------


def test_two_grades_make_a_comparison() -> None:
    # good with 0.9 and 0.2: first 0.9 x 0.8, second 0.2 x 0.1
    assert compared(0.9, 0.2) == pytest.approx((0.72, 0.02, 0.26))
    assert compared(1.0, 1.0) == pytest.approx((0.0, 0.0, 1.0))


def test_candidates_end_up_in_the_order_of_their_grades() -> None:
    grades = (0.3, 0.9, 0.05, 0.6)
    recipe = Recipe(name="r", curate={"aggregator": "expected"})
    asked = [
        Judgment("s", i, j, "first" if grades[i] > grades[j] else "second", *compared(a, b))
        for (i, a), (j, b) in itertools.permutations(enumerate(grades), 2)
    ]
    assert ends(curate_sample(recipe, said("1", "2", "3", "4"), asked)) == (1, 2)


# --- facts that are not certain ---------------------------------------------------------------


def test_uncertain_facts_shrink_the_gap() -> None:
    asked = [Judgment("s", 0, 1, "first", 1, 0, 0), Judgment("s", 1, 0, "second", 0, 1, 0)]
    rule = {"margin": 1.0, "weigh_facts": True}
    weighing = Recipe(name="r", curate=rule)
    # the scores are 1 and -1: a gap of 2, of 1.2 at confidence 0.6, of 0.8 at 0.4
    assert ends(curate_sample(weighing, said("1", "2"), asked, 0.6)) == (0, 1)
    dropped = curate_sample(weighing, said("1", "2"), asked, 0.4)
    assert isinstance(dropped, Drop)
    assert dropped.reason == "below-margin"
    heedless = Recipe(name="r", curate=rule | {"weigh_facts": False})
    assert ends(curate_sample(heedless, said("1", "2"), asked, 0.4)) == (0, 1)


# --- budgets ----------------------------------------------------------------------------------


def fed(budget: Budget, samples: list[Sample]) -> Iterator[Sample]:
    return budget.feed(iter(samples))


def test_a_sample_counts_if_those_before_it_left_something() -> None:
    budget = Budget(25)
    samples = [Sample(str(i), "", "?", "") for i in range(5)]
    feed = fed(budget, samples)
    ahead = [next(feed) for _ in range(4)]  # an engine takes samples before it has results
    outcomes = [budget.settle(10)[1] is None for _ in ahead]
    assert outcomes == [True, True, True, False]  # 0, 10 and 20 were spent before the first three
    assert list(feed) == []


def test_what_was_spent_before_counts() -> None:
    before = before_each([Sample("0", "", "?", ""), sample()], {"0": 25})
    assert list(fed(Budget(25, before), [sample()])) == []
    assert list(fed(Budget(26, before), [sample()])) == [sample()]
    assert list(fed(Budget(None, before), [sample()])) == [sample()]


def test_a_gap_among_saved_samples_is_filled_as_if_it_had_never_been() -> None:
    samples = [Sample(str(i), "", "?", "") for i in range(6)]
    # sample 2 was lost, and 4 and 5 are open; 0, 1 and 3 are saved with ten tokens each
    before = before_each(samples, {"0": 10, "1": 10, "3": 10})
    assert before == {"0": 0, "1": 10, "2": 20, "3": 20, "4": 30, "5": 30}
    budget, left = Budget(35, before), iter([samples[2], *samples[4:]])
    feed = budget.feed(left)
    assert [budget.settle(10) for s in feed] == [(samples[2], None)]
    assert [d.sample_id for d in budget.rest(left)] == ["4", "5"]  # 0 to 3 took forty


def test_iterations_share_a_budget_equally() -> None:
    assert share(Recipe(name="r", budget=100, iterations=3)) == 33
    assert share(Recipe(name="r")) is None


# --- recipes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_can_be_planned(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert plan(recipe)


def test_a_recipe_says_only_what_is_different_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: base\nseed: 3\ndpo: {beta: 0.2, batch_size: 8}\n")
    (tmp_path / "own.yaml").write_text("base: base.yaml\nname: own\ndpo: {beta: 0.5}\n")
    recipe = load_recipe(tmp_path / "own.yaml", ["dpo.epochs=2"])
    assert (recipe.name, recipe.seed) == ("own", 3)
    assert (recipe.dpo.beta, recipe.dpo.batch_size, recipe.dpo.epochs) == (0.5, 8, 2)


def test_a_base_that_goes_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(RecipeError, match="own base"):
        load_recipe(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("base: [a]\n")
    with pytest.raises(RecipeError, match="give the path"):
        load_recipe(tmp_path / "c.yaml")


class Options(Settings):
    strength: int = 1


def test_options_are_the_methods_own() -> None:
    assert parts.options(Recipe(name="r", options={"strength": 4}), Options).strength == 4
    with pytest.raises(RecipeError, match=r"recipe r: options: .*did you mean `strength`"):
        parts.options(Recipe(name="r", options={"strenght": 4}), Options)


def test_options_of_a_method_without_any_are_refused() -> None:
    with pytest.raises(SelfcalError, match="'src' has no options"):
        plan(Recipe(name="r", options={"strength": 4}))


# --- from outside -----------------------------------------------------------------------------

METHOD = """
from selfcal.methods import parts
from selfcal.recipe import Settings
from selfcal.types import Drop

class Options(Settings):
    shortest: bool = True

def plan(recipe):
    own = parts.options(recipe, Options)

    def decide(sample, found):
        if len(found) < 2:
            return Drop(sample.id, "pairs", "one-candidate")
        order = sorted(found, key=lambda c: len(c.text), reverse=not own.shortest)
        return parts.pair(order[0], order[-1])

    def iteration(t, start):
        return [
            parts.candidates(recipe, t, start),
            parts.pairs_by(recipe, t, decide, "by length", own),
            parts.preference_tuning(recipe, t, start),
        ]

    return parts.loop(recipe, iteration)
"""


def test_a_method_of_another_package_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "foreign_method.py").write_text(METHOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint("by_length", "foreign_method", "selfcal.methods")
    monkeypatch.setattr(methods, "entry_points", lambda group: [entry])
    small = [
        "name=foreign", "method=by_length", "options.shortest=false", "data.rft=20",
        "data.calibration=16", "data.dev=4", "data.test=4", "rft.steps=1", "dpo.steps=1",
        "iterations=1", "threads=1",
    ]  # fmt: skip
    recipe = load_recipe(RECIPES / "miniworld-src.yaml", small)
    execute(recipe, tmp_path / "run")
    assert {r.checkpoint for r in results(tmp_path / "run")} == {"seed", "rft", "iter-1"}
    with pytest.raises(RecipeError, match="shortest"):
        plan(load_recipe(RECIPES / "miniworld-src.yaml", [*small, "options.shortness=1"]))


def test_a_method_without_a_plan_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "empty_method", ModuleType("empty_method"))
    entry = EntryPoint("empty", "empty_method", "selfcal.methods")
    monkeypatch.setattr(methods, "entry_points", lambda group: [entry])
    with pytest.raises(SelfcalError, match=r"no function plan"):
        methods.load_method("empty")


def test_csr_refuses_a_search_that_does_not_go_by_its_reward() -> None:
    with pytest.raises(RecipeError, match="stochastic does not go by the reward"):
        plan(Recipe(name="r", method="csr"))


def test_methods_without_rationale_fine_tuning_start_from_the_model() -> None:
    prompts = Recipe.model_validate(
        {
            "name": "r", "method": "csr", "rft": None, "iterations": 2,
            "data": {"source": "d", "rft": 0, "dev": 0, "test": 0, "calibration": 10},
            "evaluate": {"splits": []}, "search": {"keep": "top_bottom"},
        }
    )  # fmt: skip
    stages: dict[str, Stage] = {s.name: s for s in plan(prompts)}
    assert list(stages) == [
        "data", "iter-1/candidates", "iter-1/pairs", "iter-1/dpo",
        "iter-2/candidates", "iter-2/pairs", "iter-2/dpo",
    ]  # fmt: skip
    assert stages["iter-1/candidates"].inputs == ("data",)
    assert stages["iter-2/candidates"].inputs == ("data", "iter-1/dpo")
