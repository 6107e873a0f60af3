"""The small models' training from scratch runs, resumes by phase, and saves what loads."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from selfcal.miniworld import pretrain
from selfcal.miniworld.judge_model import train_judge
from selfcal.miniworld.pretrain import Schedule
from selfcal.miniworld.seed_model import train_llava

SHORT = Schedule(steps=2, learning_rate=1e-3, batch_size=4)
LLAVA = dict.fromkeys(("see", "find", "place", "facts", "count", "habit"), SHORT)
JUDGE = dict.fromkeys(("practice", "drill", "lookup", "comparing"), SHORT)


def test_both_models_train_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_llava(tmp_path, **LLAVA)
    train_judge(tmp_path, **JUDGE)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "mini-llava")
    judge = AutoModelForCausalLM.from_pretrained(tmp_path / "mini-judge")
    assert AutoProcessor.from_pretrained(tmp_path / "mini-llava").patch_size == 16
    assert model.num_parameters() < 1_800_000 and judge.num_parameters() < 1_000_000
    assert not list(tmp_path.rglob("*.bin"))  # weights are safetensors
    for name in ("mini-llava", "mini-judge"):
        assert f"# {name}" in (tmp_path / name / "README.md").read_text()

    def refuse(*_: object) -> None:
        raise AssertionError("a finished phase was trained again")

    monkeypatch.setattr(pretrain, "fit", refuse)
    train_llava(tmp_path, **LLAVA)
    train_judge(tmp_path, **JUDGE)
