"""An export to LLaMA-Factory, read and trained on by LLaMA-Factory, as its own card says."""

from __future__ import annotations

import json
import math
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from integrations.exports import Made, command

pytestmark = pytest.mark.filterwarnings("default")  # of a library, and of its versions of others

# it would refuse versions that ms-swift needs beside it; what it does with them is tested here
os.environ["DISABLE_VERSION_CHECK"] = "1"
if "torchaudio" not in sys.modules:  # for sound alone, and its wheels want CUDA's libraries
    audio = ModuleType("torchaudio")
    audio.__spec__ = ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = audio
reason = "LLaMA-Factory is not installed; `make integrations` installs it"
# this module of it mends how TRL looks for packages, before any other test imports TRL
pytest.importorskip("llamafactory.extras.packages", reason=reason)

CPU = {
    "--use_cpu": "true",
    "--report_to": "none",
    "--max_steps": "1",
    "--lora_target": "q_proj",
    "--logging_steps": "1",
    "--per_device_train_batch_size": "4",
}


def arguments(made: Made, out: Path, to: Path) -> list[str]:
    words = command(out, MODEL=made.model, TEMPLATE="llava", OUT=str(to))
    assert words[:2] == ["llamafactory-cli", "train"]
    return [*words[2:], *(word for setting in CPU.items() for word in setting)]


def loaded(made: Made, out: Path, to: Path) -> tuple[Any, Any, Any]:
    """Rows as LLaMA-Factory aligns them, rows as it encodes them, and its tokenizer."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.data.loader import _get_merged_dataset
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model, data, training, finetuning, _ = get_train_args(arguments(made, out, to))
    stage = "rm" if finetuning.stage == "dpo" else "sft"
    aligned = _get_merged_dataset(data.dataset, model, data, training, stage)
    tools = load_tokenizer(model)
    template = get_template_and_fix_tokenizer(tools["tokenizer"], data)
    encoded = get_dataset(template, model, data, training, stage=stage, **tools)
    return list(aligned), list(encoded["train_dataset"]), tools["tokenizer"]


def test_llamafactory_reads_the_pairs_as_they_are(made: Made, tmp_path: Path) -> None:
    out = made.export("llamafactory")
    aligned, encoded, tokenizer = loaded(made, out, tmp_path / "trained")
    rows = list(zip(aligned, encoded, made.samples, made.questions, made.pairs, strict=True))
    image = tokenizer.convert_tokens_to_ids("<image>")
    for row, ids, sample, question, pair in rows:
        assert row["_prompt"] == [{"role": "user", "content": question}]
        said = [{"role": "assistant", "content": text} for text in (pair.chosen, pair.rejected)]
        assert row["_response"] == said
        shown = [Path(path).read_bytes() for path in row["_images"]]
        assert shown == [Path(path).read_bytes() for path in sample.images]
        for half in ("chosen", "rejected"):
            # 48 x 48 pixels are 9 patches of 16 x 16
            assert ids[f"{half}_input_ids"].count(image) == 9 * len(sample.images)
            learned = [i for i in ids[f"{half}_labels"] if i >= 0]
            assert tokenizer.decode(learned).startswith(getattr(pair, half))


def test_llamafactory_reads_what_the_teacher_wrote(made: Made, tmp_path: Path) -> None:
    aligned, encoded, _ = loaded(made, made.export("llamafactory", "sft"), tmp_path / "trained")
    assert len(encoded) == len(made.pairs)
    found = [(r["_prompt"][0]["content"], r["_response"][0]["content"]) for r in aligned]
    assert found == list(zip(made.questions, [p.chosen for p in made.pairs], strict=True))


def test_llamafactory_trains_on_the_pairs(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory.train.tuner import run_exp

    out = made.export("llamafactory")
    monkeypatch.setattr(sys, "argv", ["train", *arguments(made, out, tmp_path / "trained")])
    run_exp()
    log = (tmp_path / "trained/trainer_log.jsonl").read_text().splitlines()
    # the policy is still its own reference, so that no pair is won or lost yet
    assert json.loads(log[0])["loss"] == pytest.approx(math.log(2), abs=1e-5)
