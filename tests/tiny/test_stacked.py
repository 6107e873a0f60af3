"""Adapters of several trainings as one: base + stacked adapter is the merged checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from selfcal.policy import ModelError, load_policy
from selfcal.recipe import Lora, Training
from selfcal.search.stacked import CONFIG, WEIGHTS, adapters_of, stack
from selfcal.train import Run, sft
from selfcal.types import Sample


def grown(before: str, stage: Path, config: LoraConfig) -> None:
    """A training's result: an adapter of random weights, and the checkpoint it is merged into."""
    policy = load_policy(before, device="cpu")
    model: Any = get_peft_model(policy.model, config)
    generator = torch.Generator().manual_seed(config.r)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1, generator=generator)
    model.save_pretrained(stage / "adapter")
    model.merge_and_unload().save_pretrained(stage / "checkpoint")
    policy.processor.save_pretrained(stage / "checkpoint")


@pytest.fixture(scope="module")
def run(
    policy_folder: str, samples: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Three trainings: a real one, one with rank-stabilized scaling, one of other modules."""
    run = tmp_path_factory.mktemp("run")
    settings = Training(
        lora=Lora(rank=4, alpha=12), learning_rate=0.05, batch_size=2, steps=2, max_length=4096
    )
    rows = [(s, "The bar is red.") for s in samples[:2]]
    sft(policy_folder, rows, settings, Run(run / "rft", 0, "cpu"))
    only = r".*language_model.*(q_proj|v_proj)"
    one = LoraConfig(r=3, lora_alpha=6, use_rslora=True, target_modules=only)
    grown(str(run / "rft" / "checkpoint"), run / "iter-1/dpo", one)
    other = LoraConfig(r=2, lora_alpha=1, target_modules=r".*language_model.*(q_proj|up_proj)")
    grown(str(run / "iter-1/dpo/checkpoint"), run / "iter-2/dpo", other)
    return run


def logits(policy: Any, samples: list[Sample]) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = policy.model(**policy.encode(samples)).logits
    return out


@pytest.mark.parametrize(
    ("stage", "rank"), [("rft", 4), ("iter-1/dpo", 4 + 3), ("iter-2/dpo", 4 + 3 + 2)]
)
def test_base_and_stacked_adapter_equal_the_merged_checkpoint(
    run: Path, policy_folder: str, samples: list[Sample], tmp_path: Path, stage: str, rank: int
) -> None:
    adapters = adapters_of(run, stage, policy_folder)
    assert adapters.rank == rank
    folder = stack(adapters, tmp_path)
    base = load_policy(policy_folder, device="cpu")
    plain = logits(base, samples[:3])
    adapted = PeftModel.from_pretrained(base.model, str(folder))
    merged = load_policy(str(run / stage / "checkpoint"), device="cpu")
    expected = logits(merged, samples[:3])
    torch.testing.assert_close(logits(base, samples[:3]), expected, rtol=1e-5, atol=1e-5)
    assert (plain - expected).abs().max() > 0.01
    names = load_file(folder / WEIGHTS)
    assert {len(w) for k, w in names.items() if "lora_A" in k} == {rank}
    assert not [k for k in names if "vision" in k or "projector" in k]
    assert adapted is not None


def test_a_run_that_was_moved_still_has_its_chain(
    run: Path, policy_folder: str, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(run, moved)
    here, there = (adapters_of(r, "iter-2/dpo", policy_folder) for r in (run, moved))
    assert [f.relative_to(moved) for f in there.folders] == [
        Path("rft/adapter"), Path("iter-1/dpo/adapter"), Path("iter-2/dpo/adapter"),
    ]  # fmt: skip
    assert here.name == there.name, "one name for one content"


def edited(run: Path, tmp_path: Path, stage: str, **more: Any) -> Path:
    copy = tmp_path / "edited"
    shutil.copytree(run, copy)
    path = copy / stage / "adapter" / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return copy


def test_ranks_that_add_up_too_high_are_refused_with_numbers(
    run: Path, policy_folder: str, tmp_path: Path
) -> None:
    copy = edited(run, tmp_path, "iter-2/dpo", r=506)
    said = r"rank 4 \+ 3 \+ 506 = 513 together, and vLLM takes 512 .*serve the merged checkpoint"
    with pytest.raises(ModelError, match=said):
        adapters_of(copy, "iter-2/dpo", policy_folder)
    assert adapters_of(edited(run, tmp_path / "b", "iter-2/dpo", r=505), "iter-2/dpo",
                       policy_folder).flag == 512  # fmt: skip


def test_a_training_of_all_weights_is_refused_with_the_way_out(
    run: Path, policy_folder: str, tmp_path: Path
) -> None:
    copy = edited(run, tmp_path, "rft")
    shutil.rmtree(copy / "rft" / "adapter")
    with pytest.raises(ModelError, match=r"stage rft trained all weights .*vllm serve"):
        adapters_of(copy, "iter-1/dpo", policy_folder)


def test_an_adapter_on_something_else_is_refused(
    run: Path, policy_folder: str, tmp_path: Path
) -> None:
    copy = edited(run, tmp_path, "rft", base_model_name_or_path="other/model")
    with pytest.raises(ModelError, match=r"trained on other/model, which is neither"):
        adapters_of(copy, "iter-1/dpo", policy_folder)


@pytest.mark.parametrize("odd", [{"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}])
def test_an_adapter_of_another_kind_is_refused(
    run: Path, policy_folder: str, tmp_path: Path, odd: dict[str, Any]
) -> None:
    copy = edited(run, tmp_path, "rft", **odd)
    with pytest.raises(ModelError, match="not a plain LoRA adapter"):
        stack(adapters_of(copy, "rft", policy_folder), tmp_path)
