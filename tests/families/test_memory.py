"""Ways to take less memory: they reach transformers and TRL, and refuse what cannot be had."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from selfcal.methods.parts import base
from selfcal.policy import ModelError, load_policy
from selfcal.recipe import Dpo, Grpo, RecipeError, Training, load_recipe
from selfcal.testing import tiny_policy, tiny_samples
from selfcal.train import Run, TrainingError, common, sft
from selfcal.types import Sample

RECIPE = Path(__file__).parents[2] / "recipes" / "miniworld-src.yaml"
TEXTS = ["Rationale: The red bar is 7.\nAnswer: red", "Answer: 2"]
Rows = list[tuple[Sample, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return list(zip(tiny_samples(tmp_path_factory.mktemp("data"), 2), TEXTS, strict=True))


def training(**more: object) -> Training:
    values: dict[str, object] = {
        "learning_rate": 1e-2, "batch_size": 2, "steps": 2, "lora": {"rank": 2, "alpha": 4},
        "warmup": 0,
    }  # fmt: skip
    return Training.model_validate(values | more)


def losses(folder: str, rows: Rows, out: Path, dtype: str = "float32", **more: Any) -> list[float]:
    trained = sft(folder, rows, training(**more), Run(out, 7, "cpu", dtype))
    return [row["loss"] for row in trained.curve]


# --- attention and number formats -----------------------------------------------------------


def test_attention_implementations_agree(folder: str, rows: Rows) -> None:
    logits = {}
    for name in ("sdpa", "eager"):
        policy = load_policy(folder, device="cpu", attention=name)
        assert policy.model.config._attn_implementation == name
        assert policy.model.get_decoder().config._attn_implementation == name
        with torch.inference_mode():
            logits[name] = policy.model(**policy.encode([rows[0][0]])).logits
    assert torch.allclose(logits["sdpa"], logits["eager"], atol=1e-4)


@pytest.mark.parametrize("name", ["flash_attention_2", "quick"])
def test_attention_that_cannot_be_had_is_refused_by_name(folder: str, name: str) -> None:
    with pytest.raises(ModelError, match=rf"policy\.attention: {name} .* take `sdpa` or `eager`"):
        load_policy(folder, device="cpu", attention=name)


def test_training_uses_the_attention_of_the_recipe(
    folder: str, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noting(*given: Any, **named: Any) -> Any:
        asked.append(given)
        return load_policy(*given, **named)

    monkeypatch.setattr(common, "load_policy", noting)
    sft(folder, rows, training(steps=1), Run(tmp_path, 7, "cpu", attention="eager"))
    assert asked == [(folder, "float32", "cpu", False, "eager", None, False)]


def test_a_step_in_bfloat16_is_near_that_in_float32(
    folder: str, rows: Rows, tmp_path: Path
) -> None:
    whole = losses(folder, rows, tmp_path / "whole")
    half = losses(folder, rows, tmp_path / "half", "bfloat16")
    assert half == pytest.approx(whole, rel=0.03)
    saved = load_file(tmp_path / "half/checkpoint/model.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.bfloat16}


def test_gradient_checkpointing_does_not_change_the_losses(
    folder: str, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spared = []
    kind = type(load_policy(folder, device="cpu").model)
    known = kind.activation_checkpointing_enable

    def noting(self: Any, *given: Any, **named: Any) -> Any:
        spared.append(1)
        return known(self, *given, **named)

    monkeypatch.setattr(kind, "activation_checkpointing_enable", noting)
    plain = losses(folder, rows, tmp_path / "plain")
    assert not spared  # TRL's own default is to do it
    assert losses(folder, rows, tmp_path / "spared", gradient_checkpointing=True) == pytest.approx(
        plain, rel=1e-5
    )
    assert spared


# --- arguments ------------------------------------------------------------------------------


def test_the_optimizer_is_the_recipes(
    folder: str, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    known = common.finish
    monkeypatch.setattr(
        "selfcal.train.policy.finish", lambda t, *more: made.append(t) or known(t, *more)
    )
    losses(folder, rows, tmp_path, optimizer="sgd", steps=1)
    assert isinstance(made[0].optimizer.optimizer, torch.optim.SGD)
    assert made[0].args.max_length is None  # nothing is cut, image tokens least of all


def test_an_unknown_optimizer_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path / "dpo", 7, "cpu")
    with pytest.raises(TrainingError, match=r"dpo: optimizer: adam_best is unknown; take one of "):
        common.arguments(training(optimizer="adam_best"), run, 4)


@pytest.fixture
def with_packages(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes packages look installed, or missing."""
    known = importlib.util.find_spec

    def say(**there: bool) -> None:
        def find(name: str) -> Any:
            return (object() if there[name] else None) if name in there else known(name)

        for module in ("selfcal.train.common", "selfcal.policy"):
            monkeypatch.setattr(f"{module}.find_spec", find)

    return say


@pytest.mark.parametrize(
    ("setting", "package"),
    [
        ({"liger": True}, "liger_kernel"),
        ({"optimizer": "paged_adamw_8bit"}, "bitsandbytes"),
        ({"deepspeed": "ds.json"}, "deepspeed"),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    with_packages: Callable[..., None],
    setting: dict[str, object],
    package: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ds.json").write_text("{}")
    with_packages(**{package: False})
    (key,) = setting
    with pytest.raises(TrainingError, match=f"rft: {key}: the package {package} is missing; inst"):
        common.arguments(training(**setting), Run(tmp_path / "rft", 7, "cpu"), 4)


def test_liger_without_a_gpu_is_refused(tmp_path: Path, with_packages: Callable[..., None]) -> None:
    with_packages(liger_kernel=True)
    with pytest.raises(TrainingError, match="rft: liger: there is no GPU; set it to false"):
        common.arguments(training(liger=True), Run(tmp_path / "rft", 7, "cpu"), 4)


def test_what_spares_memory_reaches_trl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_packages: Callable[..., None]
) -> None:
    """Names are those of transformers' own arguments."""
    from trl import DPOConfig, GRPOConfig, SFTConfig

    with_packages(liger_kernel=True, deepspeed=True)
    monkeypatch.setattr(common, "pick_device", lambda name: "cuda")
    ds, fsdp = tmp_path / "ds.json", tmp_path / "fsdp.json"
    ds.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    fsdp.write_text(json.dumps({"reshard_after_forward": True}))
    run = Run(tmp_path / "rft", 7)
    one = common.arguments(training(liger=True, deepspeed=str(ds)), run, 4)
    assert (one["use_liger_kernel"], one["deepspeed"]) == (True, str(ds))
    other = common.arguments(training(fsdp=str(fsdp)), run, 4)
    assert (other["fsdp"], other["fsdp_config"]) == (True, str(fsdp))
    for kind in (SFTConfig, DPOConfig, GRPOConfig):
        fields = kind.__dataclass_fields__
        assert not {*one, *other} - {*fields, "max_length"}
    config = SFTConfig(**other | {"use_cpu": True})
    assert config.fsdp is True
    assert config.fsdp_config["reshard_after_forward"] is True


# --- configuration files --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, r"cannot be read as JSON .* give the path of a JSON file"),
        ("{", "cannot be read as JSON"),
        ("[]", "is no JSON object"),
        ('{"optimizer": {}, "scheduler": {}}', "optimizer and scheduler: the recipe says so"),
    ],
)
@pytest.mark.parametrize("key", ["deepspeed", "fsdp"])
def test_a_configuration_file_is_checked_when_the_recipe_is_read(
    tmp_path: Path, key: str, text: str | None, told: str
) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError, match=rf"dpo\.{key}: .*config\.json: {told}"):
        load_recipe(RECIPE, [f"dpo.{key}={path}"])


def test_zero_3_and_four_bits_do_not_go_together(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    asked = [f"dpo.deepspeed={path}", "dpo.lora.four_bit=true"]
    path.write_text('{"zero_optimization": {"stage": 2}}')
    assert load_recipe(RECIPE, asked).dpo.deepspeed == str(path)
    path.write_text('{"zero_optimization": {"stage": 3}}')
    with pytest.raises(RecipeError, match=r"ZeRO stage 3 cannot be had with lora\.four_bit"):
        load_recipe(RECIPE, asked)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"deepspeed": "a", "fsdp": "b"}, "deepspeed, fsdp: give one of them"),
        ({"fsdp": "b", "lora": {"rank": 1, "alpha": 1, "four_bit": True}}, "not with fsdp"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    more: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        training(**more)


# --- four bits ------------------------------------------------------------------------------


def test_four_bits_want_a_gpu_and_bitsandbytes(
    folder: str, with_packages: Callable[..., None]
) -> None:
    with_packages(bitsandbytes=False)
    with pytest.raises(
        ModelError, match=r"lora\.four_bit: .* package is missing\); install it, or"
    ):
        load_policy(folder, device="cpu", four_bit=True)
    with_packages(bitsandbytes=True)
    with pytest.raises(ModelError, match=r"lora\.four_bit: .* a GPU \(device is cpu"):
        load_policy(folder, device="cpu", four_bit=True)


def test_an_adapter_is_merged_into_weights_of_full_precision(
    folder: str, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is trained is rounded, as weights in 4 bits are; the checkpoint must not be."""

    def rounded(model: str, settings: Training, run: Run) -> Any:
        policy = load_policy(model, run.dtype, run.device)
        with torch.no_grad():
            for weight in policy.model.parameters():
                weight.copy_((weight * 8).round() / 8)
        return policy

    monkeypatch.setattr("selfcal.train.policy.starting_point", rounded)
    lora = {"rank": 2, "alpha": 4, "four_bit": True}
    sft(folder, rows, training(lora=lora), Run(tmp_path, 7, "cpu"))
    base_model = AutoModelForImageTextToText.from_pretrained(folder)
    whole = PeftModel.from_pretrained(base_model, tmp_path / "adapter").merge_and_unload()
    saved = load_policy(str(tmp_path / "checkpoint"), device="cpu").model.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(saved[name], value), name


@pytest.mark.parametrize("lora", [{"rank": 2, "alpha": 4}, None], ids=["lora", "all-weights"])
def test_weights_that_are_spread_are_saved_as_those_that_are_not(
    folder: str, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Any
) -> None:
    """DeepSpeed's and FSDP's way to the checkpoint goes by way of what accelerate gathers."""
    losses(folder, rows, tmp_path / "whole", lora=lora)
    monkeypatch.setattr("selfcal.train.policy.apart", lambda settings: True)
    losses(folder, rows, tmp_path / "spread", lora=lora)
    one, other = (
        load_file(tmp_path / name / "checkpoint/model.safetensors") for name in ("whole", "spread")
    )
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[k], other[k], atol=1e-6) for k in one)
    assert load_policy(str(tmp_path / "spread/checkpoint"), device="cpu")


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None,
    reason="QLoRA needs a GPU and the package bitsandbytes",
)
def test_qlora_trains_an_adapter_on_weights_of_four_bits(
    folder: str, rows: Rows, tmp_path: Path
) -> None:
    policy = load_policy(folder, "bfloat16", "cuda", four_bit=True)
    assert policy.model.is_loaded_in_4bit
    lora = {"rank": 2, "alpha": 4, "four_bit": True}
    trained = sft(folder, rows, training(lora=lora), Run(tmp_path, 7, "cuda", "bfloat16"))
    assert trained.curve[-1]["loss"] < trained.curve[0]["loss"]
    saved = load_file(tmp_path / "checkpoint/model.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.bfloat16}
    before = load_policy(folder, "bfloat16", "cpu").model.state_dict()
    after = load_policy(str(tmp_path / "checkpoint"), "bfloat16", "cpu").model.state_dict()
    seen = [n for n in before if "vision" in n or "projector" in n]
    assert seen and all(torch.equal(before[n], after[n]) for n in seen)


# --- resuming -------------------------------------------------------------------------------


def test_what_changes_speed_alone_is_in_no_fingerprint() -> None:
    plain = Dpo(lora=None, sft_weight=0)  # TRL's SFT term is a mean over each micro batch
    spared = plain.model_copy(
        update={
            "gradient_checkpointing": True, "liger": True, "deepspeed": "x", "fsdp": "y",
            "micro_batch_size": 1, "save_steps": 5,
        }
    )  # fmt: skip
    assert base.outcome_of(plain) == base.outcome_of(spared)
    for change in ({"optimizer": "sgd"}, {"learning_rate": 1.0}, {"beta": 0.2}):
        assert base.outcome_of(plain) != base.outcome_of(plain.model_copy(update=change))
    sampled = Grpo(micro_batch_size=8)
    assert base.outcome_of(sampled) != base.outcome_of(Grpo())


def test_the_recipe_s_policy_is_loaded_as_it_says(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}<image>{{ m.content[-1].text }}{% endfor %}"
    recipe = load_recipe(RECIPE)
    how = {"model": folder, "device": "cpu", "attention": "eager", "chat_template": template}
    recipe = recipe.model_copy(update={"policy": recipe.policy.model_copy(update=how)})
    policy = base.policy_at(recipe, SimpleNamespace(), None)  # type: ignore[arg-type]
    assert policy.processor.chat_template == template
    assert policy.model.config._attn_implementation == "eager"
    assert base.given(recipe, None)["chat_template"] == template
    assert "attention" not in base.given(recipe, None)
