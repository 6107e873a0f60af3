"""An export to TRL, read by `datasets` and trained on by TRL, as its own card says."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image, ImageChops

from selfcal.export import Wanted, export_run
from selfcal.image import load_image
from selfcal.types import PreferencePair, Sample, WrittenRap
from unit.hand_made import BAD, GOOD, RunFolder

TEXTS = [(GOOD, BAD), (BAD, GOOD), ("The left digit is 3.\nAnswer: 3", "7 \u2028 \x85 \\ \"'")]


@pytest.fixture
def run(tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Two questions about one image, and one about two."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made = RunFolder(tmp_path / "run")
    first, second, third = samples[:3]
    both = Sample(
        third.id, third.image, "Add <image> and <image>.", "5", more_images=(first.image,)
    )
    own = [first, second, both]
    made.finish("data", {"calibration": (Sample, own), "rft": (Sample, own)})
    pairs = [PreferencePair(s.id, *t, 0, 1, 1.0, 0.0) for s, t in zip(own, TEXTS, strict=True)]
    made.finish("iter-1/pairs", {"pairs": (PreferencePair, pairs)})
    raps = [WrittenRap(s.id, chosen) for s, (chosen, _) in zip(own, TEXTS, strict=True)]
    made.finish("teacher", {"raps": (WrittenRap, raps)})
    return made


def carried_out(card: Path, model: str, out: Path) -> dict[str, Any]:
    """What the card's program leaves, on a CPU; the trainer is kept."""
    found = re.search(r"```python\n(.*?)```", card.read_text("utf-8"), re.DOTALL)
    assert found
    program = found[1].replace('"FOLDER"', repr(str(card.parent)))
    program = program.replace('"MODEL"', repr(model)).replace('"OUT"', repr(str(out)))
    cpu = "max_length=None, use_cpu=True, bf16=False, max_steps=1, seed=3, report_to='none', "
    cpu += "activation_checkpointing=False, disable_tqdm=True, dataloader_pin_memory=False"
    program = re.sub(r"^(\w+Trainer\(.*)\.train\(\)", r"trainer = \1", program, flags=re.MULTILINE)
    names: dict[str, Any] = {}
    exec(program.replace("max_length=None", cpu), names)
    return names


def said(turns: list[dict[str, Any]]) -> str:
    """The text of one turn of the assistant."""
    (turn,) = turns
    assert turn["role"] == "assistant"
    return str("".join(part["text"] for part in turn["content"]))


def test_trl_trains_on_the_pairs_as_they_are(
    run: RunFolder, policy_folder: str, tmp_path: Path
) -> None:
    export_run(run.path, "trl", tmp_path / "out")
    names = carried_out(tmp_path / "out/README.md", policy_folder, tmp_path / "trained")
    rows = list(names["dataset"])
    assert [(said(r["chosen"]), said(r["rejected"])) for r in rows] == TEXTS
    calibration = run.planned["data"].folder.read("calibration", Sample)
    for row, sample in zip(rows, calibration, strict=True):
        assert len(row["images"]) == len(sample.images)
        for shown, path in zip(row["images"], sample.images, strict=True):
            assert isinstance(shown, Image.Image)
            assert ImageChops.difference(shown, load_image(Path(path))).getbbox() is None
    kinds = [[part["type"] for part in r["prompt"][0]["content"]] for r in rows]
    assert kinds == [
        ["image", "text"], ["image", "text"], ["text", "image", "text", "image", "text"],
    ]  # fmt: skip
    trainer = names["trainer"]
    trainer.train()
    # the policy is still its own reference, so that no pair is won or lost yet
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert trainer.state.global_step == 1


def test_trl_trains_on_what_the_teacher_wrote(
    run: RunFolder, policy_folder: str, tmp_path: Path
) -> None:
    export_run(run.path, "trl", tmp_path / "out", Wanted("sft"))
    names = carried_out(tmp_path / "out/README.md", policy_folder, tmp_path / "trained")
    assert [said(r["completion"]) for r in names["dataset"]] == [chosen for chosen, _ in TEXTS]
    trainer = names["trainer"]
    trainer.train()
    assert trainer.state.global_step == 1
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
