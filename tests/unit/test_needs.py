"""What a recipe's stages take: memory, disk and time, by formulas worked out by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfcal import pipeline
from selfcal.cost.machine import GIB, GPUS, Machine, MachineError, machine
from selfcal.cost.needs import (
    JUDGE_TOKENS,
    LAYER_BYTES,
    QUESTION_TOKENS,
    RESPONSE_TOKENS,
    Need,
    Needs,
)
from selfcal.cost.sizes import SizeError, named, sizes_of
from selfcal.recipe import Recipe, load_recipe
from selfcal.testing import tiny_policy
from selfcal.view.plan import show_plan

RECIPES = Path(__file__).parents[2] / "recipes"
POLICY = {"model": "x-7b", "dtype": "bfloat16"}
NOWHERE = Machine("nowhere", 10**15)
"""So large that all fits, of unknown speed: what stages take is the bare formula times 1.1."""


def needs_of(on: Machine = NOWHERE, **more: Any) -> dict[str, Need]:
    recipe = Recipe.model_validate({"name": "x", "policy": POLICY, **more})
    needs = Needs(recipe, on)
    return {s.name: needs.of(s) for s in pipeline.plan(recipe)}


# --- sizes ----------------------------------------------------------------------------------


def test_sizes_come_from_the_configuration(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    folder = tiny_policy(tmp_path / "policy")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    found, text = sizes_of(folder), model.config.get_text_config()
    assert found.exact
    assert found.parameters == sum(p.numel() for p in model.parameters())
    head = text.hidden_size // text.num_attention_heads
    assert found.kv_width == 2 * text.num_hidden_layers * text.num_key_value_heads * head
    wide, narrow, inner = text.hidden_size, text.num_key_value_heads * head, text.intermediate_size
    # query and output, key and value, gate, up and down
    a_layer = 2 * (wide + wide) + 2 * (wide + narrow) + 3 * (wide + inner)
    assert found.lora_width == text.num_hidden_layers * a_layer


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", 7),
        ("llava-hf/llava-1.5-13b-hf", 13),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.5),
        ("HuggingFaceTB/SmolVLM-500M-Instruct", 0.5),
    ],
)
def test_else_they_are_reckoned_from_the_name(name: str, billions: float) -> None:
    found = sizes_of(name)
    assert not found.exact
    assert found.parameters == billions * 1e9


def test_a_name_that_says_nothing_is_refused() -> None:
    with pytest.raises(SizeError, match=r"me/nothing: .*download it, or give a folder"):
        sizes_of("me/nothing")


def test_a_usual_transformer_of_7b_is_llamas() -> None:
    found = named(7e9)
    assert abs(found.layers - 32) <= 1 and abs(found.hidden - 4096) <= 128
    # Llama 2 7B: 32 x (4 x 2 x 4,096 + 3 x (4,096 + 11,008))
    assert found.lora_width == pytest.approx(32 * (8 * 4096 + 3 * 15104), rel=0.1)


# --- needs ----------------------------------------------------------------------------------

P7 = named(7e9)
ROW = 1024 + QUESTION_TOKENS + RESPONSE_TOKENS


def test_an_adapter_takes_16_bytes_a_parameter_and_the_weights_2() -> None:
    dpo = {"lora": {"rank": 8, "alpha": 8}, "batch_size": 4, "micro_batch_size": 1}
    found = needs_of(dpo=dpo)["iter-1/dpo"]
    held = 2 * 7e9 + 16 * 8 * P7.lora_width
    worked = 2 * ROW * (LAYER_BYTES * P7.layers * P7.hidden + 10 * P7.vocabulary)
    assert found.memory == pytest.approx(1.1 * (held + worked), rel=1e-6)
    # with checkpointing only the inputs of layers are kept, and one layer's worth of the rest
    less = needs_of(dpo=dpo | {"gradient_checkpointing": True})["iter-1/dpo"]
    worked = 2 * ROW * ((2 * P7.layers + LAYER_BYTES) * P7.hidden + 10 * P7.vocabulary)
    assert less.memory == pytest.approx(1.1 * (held + worked), rel=1e-6)
    assert less.hint == "hold the frozen weights in 4 bits (lora.four_bit)"


def test_all_weights_take_four_times_their_size_and_a_reference() -> None:
    more = {"dpo": {"lora": None, "batch_size": 1}, "policy": {"model": "x-7b"}}
    found = needs_of(**more)["iter-1/dpo"]
    held = 7e9 * 4 * 5  # weights, gradients, two moments; the reference policy
    worked = 2 * ROW * (2 * LAYER_BYTES * P7.layers * P7.hidden + 10 * P7.vocabulary)
    assert found.memory == pytest.approx(1.1 * (held + worked), rel=1e-6)
    assert found.hint == "train an adapter (lora)"


def test_a_search_needs_one_row_and_would_use_all() -> None:
    found = needs_of()["iter-1/candidates"]
    row = ROW * P7.kv_width * 2
    assert found.memory == pytest.approx(1.1 * (2 * 7e9 + row), rel=1e-6)
    assert found.useful > 1.1 * (2 * 7e9 + 192 * row)


def local(model: str, **more: object) -> dict[str, object]:
    return {"kind": "local", "model": model, **more}


def test_teachers_label_givers_and_markers_of_this_machine_count() -> None:
    judge = {"model": "y-1.5B", "labels": local("l-32B")}
    found = needs_of(
        data={"source": "folder"},
        teacher=local("t-72B"),
        judge=judge,
        evaluate={"marker": local("m-34B", dtype="float32")},
    )
    for stage, weights in [
        ("teacher", 72e9 * 2), ("facts", 72e9 * 2), ("judge/labels", 32e9 * 2),
        ("eval/seed", 34e9 * 4), ("eval/iter-1", 34e9 * 4),
    ]:  # fmt: skip
        assert found[stage].memory == pytest.approx(1.1 * weights, rel=1e-6), stage
        assert "behind a server (kind `endpoint`)" in found[stage].hint
    rankings = {"method": "groupwise_grpo", "judge": judge}
    assert needs_of(**rankings)["judge/rankings"].memory == found["judge/labels"].memory
    small = needs_of(data={"source": "folder"}, teacher=local("t-1B"), judge=judge,
                     evaluate={"marker": local("m-1B")})  # fmt: skip
    assert small["eval/seed"] == needs_of()["eval/seed"]  # the policy takes more


@pytest.mark.parametrize(
    ("stage", "more", "asked"),
    [
        ("iter-1/taught/pairs", {"curate": {"weak": "teacher"}}, {"teacher": local("t-72B")}),
        ("iter-1/pairs", {"method": "ha_dpo"}, {"teacher": local("t-72B")}),
        ("iter-1/calibration", {"judge": {"model": "y-1.5B", "calibrate": "each"}}, {}),
    ],
)
def test_where_both_stay_loaded_they_add_up(
    stage: str, more: dict[str, Any], asked: dict[str, Any]
) -> None:
    without = needs_of(**more)[stage]
    if not asked:
        asked = {"judge": more["judge"] | {"labels": local("l-72B")}}
    both = needs_of(**more | asked)[stage]
    assert without.memory > 0
    assert both.memory == pytest.approx(without.memory + 1.1 * 2 * 72e9, rel=1e-6)


def test_who_is_not_asked_takes_nothing() -> None:
    judge = {"model": "y-1.5B", "calibrate": "once"}  # by labels that are there
    plain, more = needs_of(judge=judge), needs_of(judge=judge | {"labels": local("l-72B")})
    assert more["judge/calibration"] == plain["judge/calibration"]
    marked = needs_of(evaluate={"marker": local("m-72B")})  # the verifier knows this world
    assert marked["eval/seed"] == needs_of()["eval/seed"]


def test_a_served_policy_takes_no_memory_here() -> None:
    policy = POLICY | {"backend": "vllm", "server": {}}
    assert needs_of(policy=policy)["iter-1/candidates"].memory == 0


def test_time_is_arithmetic_over_the_data_sheet() -> None:
    h100 = machine("h100")
    rft = {"batch_size": 10, "steps": 7}
    found = needs_of(h100, rft=rft)["rft"]
    assert found.seconds == pytest.approx(6 * 7e9 * 70 * ROW / (989e12 * 0.35), rel=1e-6)
    judge = needs_of(h100, judge={"model": "y-1.5B"})["iter-1/judgments"]
    asked = 12_000 * 6 * 5 * JUDGE_TOKENS
    assert judge.seconds == pytest.approx(2 * 1.5e9 * asked / (989e12 * 0.4), rel=1e-6)
    assert not needs_of()["rft"].seconds


# --- what a plan says of it -----------------------------------------------------------------


def said(recipe: Recipe, on: Machine) -> tuple[bool, str]:
    out = Console(width=200, record=True, file=io.StringIO())
    fits = show_plan(out, recipe, pipeline.locate(recipe, Path("nowhere")), on=on)
    return fits, out.export_text()


def test_a_paper_recipe_fits_into_80_gib() -> None:
    fits, text = said(load_recipe(RECIPES / "src-llava15-7b.yaml"), machine("h100"))
    assert fits
    assert "GPU-hours" in text and "from the number in the model's name" in text


def test_what_cannot_fit_is_refused_with_numbers_and_a_way_out() -> None:
    fits, text = said(load_recipe(RECIPES / "src-llava15-7b.yaml"), machine("rtx4090"))
    assert not fits
    line = next(x for x in text.splitlines() if x.startswith("iter-1/dpo and iter-2/dpo"))
    assert "GiB are too much for rtx4090, which has 24.0 GiB; " in line


def test_a_full_disk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcal.view.plan.disk_free", lambda folder: GIB)
    here = Machine("here", 10**15, here=True)
    fits, text = said(load_recipe(RECIPES / "src-llava15-7b.yaml"), here)
    assert not fits and "has 1.0 GiB free; give a folder on a larger disk" in text


def test_without_a_size_the_plan_stands_and_says_so() -> None:
    recipe = Recipe.model_validate({"name": "x", "policy": {"model": "me/nothing"}})
    fits, text = said(recipe, NOWHERE)
    assert fits and "cannot be told: model me/nothing" in text


@pytest.mark.parametrize("place", ["teacher", "judge.labels"])
def test_a_guest_without_a_size_leaves_the_plan_as_it_is(place: str) -> None:
    who = {"kind": "local", "model": "me/nothing"}
    more = {"teacher": who} if place == "teacher" else {"judge": {"labels": who}}
    fits, text = said(Recipe.model_validate({"name": "x", "policy": POLICY, **more}), NOWHERE)
    assert fits and "cannot be told: model me/nothing" in text and "iter-1/candidates" in text


def test_an_unknown_gpu_is_refused_by_name() -> None:
    with pytest.raises(MachineError, match=r"--gpu v100: not known; take one of .*h100"):
        machine("v100")
    assert all(machine(name).gpu for name in GPUS)
