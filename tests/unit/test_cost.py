"""What a plan counts up to, for every kind of method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfcal import pipeline
from selfcal.cost.counts import Cost, count, models
from selfcal.recipe import Recipe
from unit.hand_made import call


def test_cost_is_counted_from_the_recipe() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "iterations": 2,
            "data": {"rft": 10, "calibration": 20, "dev": 3, "test": 4},
            "rft": {"learning_rate": 1, "steps": 5},
            "search": {"candidates": 3, "branch": 2, "max_sentences": 4, "sentence_tokens": 10},
            "judge": {
                "samples": 10,
                "pairs_per_sample": 2,
                "train": {"learning_rate": 1, "steps": 7},
            },
            "dpo": {"learning_rate": 1, "steps": 11},
            "evaluate": {"max_new_tokens": 100},
        }
    )
    cost = count(recipe, pipeline.plan(recipe))
    # 4 checkpoints on 7 samples and all 20 of calibration, which are fewer than are followed;
    # 10 + 2 x 20 searches of 3 x 2 paths of 4 x 10 tokens
    assert cost.tokens == 4 * (7 + 20) * 100 + 50 * 240
    # 2 x 20 samples of 3 x 2 ordered pairs; both orders of a fifth of 20 pairs
    assert cost.comparisons == 40 * 6 + 2 * 4
    assert cost.steps == 5 + 7 + 2 * 11
    assert cost.dpo_rows == 40
    assert cost.requests == 0


SMALL = {
    "name": "x",
    "iterations": 2,
    "data": {"rft": 10, "calibration": 20, "dev": 3, "test": 0},
    "rft": None,
    "search": {"candidates": 4, "branch": 2, "max_sentences": 5, "sentence_tokens": 10},
    "judge": {"samples": 10, "pairs_per_sample": 2, "holdout": 0.2},
    "dpo": {"learning_rate": 1, "steps": 11},
    "evaluate": {"splits": [], "max_new_tokens": 100},
}
"""A tree has 4 x 2 paths of 5 x 10 tokens at most: 400."""


def test_followed_samples_are_counted_with_the_measured_ones() -> None:
    def sizes(**evaluate: int) -> list[int]:
        recipe = Recipe.model_validate(
            SMALL | {"iterations": 1, "evaluate": {"splits": ["dev"], **evaluate}}
        )
        return [s.size for s in pipeline.plan(recipe) if s.name.startswith("eval/")]

    assert sizes(followed=0) == [3, 3]
    assert sizes(followed=5) == [8, 8]
    assert sizes(followed=21) == [23, 23]  # there are but 20


def cost_of(**more: Any) -> Cost:
    recipe = Recipe.model_validate({k: v for k, v in SMALL.items() if k not in more} | more)
    return count(recipe, pipeline.plan(recipe))


def test_cost_of_a_reward() -> None:
    search = SMALL["search"] | {"keep": "top_bottom"}
    # 2 x 20 trees, and 3 x 3 single responses of 50 tokens for the reward
    assert cost_of(method="csr", search=search) == Cost(40 * 400 + 9 * 50, 0, 22, 40, 0)


@pytest.mark.parametrize(
    ("method", "tokens", "requests"),
    # 2 x 20 samples; STIC: two greedy responses each, HA-DPO: one, and three requests, POVID: two
    [("stic", 40 * 200, 0), ("ha_dpo", 40 * 100, 40 * 3), ("povid", 0, 40 * 2)],
)
def test_cost_of_written_pairs(method: str, tokens: int, requests: int) -> None:
    asked = cost_of(method=method, teacher={"kind": "endpoint", "model": "m"})
    assert asked == Cost(tokens, 0, 22, 40, requests)


def test_cost_of_fewer_verdicts_and_of_calibration() -> None:
    judge = SMALL["judge"] | {"train": {"learning_rate": 1, "steps": 7}}
    # in each iteration 20 samples of 4 x 3 / 2 pairs in one order; 0.2 x 20 held-out pairs in both
    cost = cost_of(judge=judge | {"schedule": "one_order"})
    assert cost.comparisons == 2 * 20 * 6 + 2 * 4
    once = cost_of(judge=judge | {"calibrate": "once"})
    assert once.comparisons == 2 * 20 * 12 + 2 * 4 + 2 * 4
    labels = {"kind": "endpoint", "model": "m"}
    each = cost_of(judge=judge | {"calibrate": "each", "calibration_samples": 5, "labels": labels})
    # and in each iteration 5 samples of 2 pairs in both orders; 10 samples' labels, too
    assert each.comparisons == 2 * 20 * 12 + 2 * 4 + 2 * 5 * 2 * 2
    assert each.requests == 10 * 2 + 2 * 5 * 2


def test_cost_of_second_tries() -> None:
    judge = {"kind": "verifier"}
    # the judge is no model; the wider search has 8 x 2 paths; a sample has one pair at most
    assert cost_of(judge=judge, curate={"weak": "widen"}) == Cost(40 * (400 + 800), 0, 22, 40, 0)
    assert cost_of(judge=judge, curate={"weak": "teacher"}) == Cost(40 * 400, 0, 22, 40, 0)


def test_cost_is_bounded_by_the_budget() -> None:
    judge = {"kind": "verifier"}
    # 500 tokens an iteration; the sample that spends the last one goes on to its end
    assert cost_of(judge=judge, budget=1000).tokens == 2 * (499 + 400)
    widened = cost_of(judge=judge, budget=1000, curate={"weak": "widen"})
    assert widened.tokens == 2 * (499 + 800)
    assert cost_of(judge=judge, budget=100_000).tokens == 40 * 400


@pytest.mark.parametrize(
    ("method", "also"),
    [
        ("src", ["judge/m"]), ("independent", ["judge/m"]), ("sft_best_of_n", ["judge/m"]),
        ("csr", ["clip/m"]), ("sft_only", []), ("povid", []), ("answer_only", []),
    ],
)  # fmt: skip
def test_models_are_those_that_are_loaded(method: str, also: list[str]) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "method": method,
            "policy": {"model": "policy/m"},
            "judge": {"model": "judge/m"},
            "reward": {"model": "clip/m"},
            "search": {"keep": "top_bottom"},
        }
    )
    assert models(recipe) == ["policy/m", *also]


def test_plan_of_a_method_without_fine_tuning_and_measurement() -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    done = call("plan", recipes / "csr-llava15-7b.yaml", "--gpu", "h100")
    assert done.exit_code == 0, done.output
    # 3 x 13,000 trees of 5 x 5 paths of 16 x 70 tokens; 204 steps of 64 pairs, three times
    assert (
        "Cost of 10 stages: up to 1.09 G generated tokens, 612 optimizer steps, up to 39,000 "
        "preference pairs."
    ) in done.output


def test_requests_to_a_served_judge_and_a_served_marker() -> None:
    server = {"model": "m"}
    judge = {"kind": "endpoint", "endpoint": server | {"votes": 3}}
    # in each iteration 20 samples of 4 x 3 ordered pairs, three votes each
    assert cost_of(judge=judge).requests == 2 * 20 * 12 * 3
    marked = cost_of(
        judge={"kind": "guess"},
        data=SMALL["data"] | {"source": "mine"},
        evaluate={"splits": ["dev"], "marker": server},
    )
    # the seed and two checkpoints on 3 samples, twice
    assert marked.requests == 3 * 3 * 2
