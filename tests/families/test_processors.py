"""Processors as they are loaded here: without what only videos need, and with a chat template."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

from families.models import FAMILIES, save
from selfcal.errors import SelfcalError
from selfcal.policy import ModelError, load_policy, load_processor
from selfcal.processors import ProcessorError
from selfcal.testing import tiny_judge, tiny_policy, tiny_samples
from selfcal.types import Sample

VIDEO = [f for f in FAMILIES if f.name in ("LLaVA-OneVision", "Qwen2.5-VL", "InternVL3", "SmolVLM")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return tiny_samples(tmp_path_factory.mktemp("data"), 1)[0]


# --- videos ---------------------------------------------------------------------------------

without_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed"
)


@without_torchvision
@pytest.mark.parametrize("family", VIDEO, ids=lambda f: f.name)
def test_what_is_for_videos_is_kept_though_it_cannot_be_loaded(
    family: object, tmp_path: Path
) -> None:
    processor = load_processor(save(family, tmp_path / "model"))  # type: ignore[arg-type]
    processor.save_pretrained(tmp_path / "saved")
    before, after = (
        json.loads((tmp_path / name / "processor_config.json").read_text())["video_processor"]
        for name in ("model", "saved")
    )
    assert before == after
    assert before["fps"] == 2


@without_torchvision
def test_a_video_is_refused_with_the_package_it_needs(tmp_path: Path) -> None:
    processor = load_processor(save(VIDEO[1], tmp_path))
    frames = [[Image.new("RGB", (16, 16))] * 2]
    with pytest.raises(ProcessorError, match="videos need torchvision; install it"):
        processor(text=["<|video_pad|>"], videos=frames)


@without_torchvision
def test_transformers_itself_is_left_as_it_was(tmp_path: Path) -> None:
    """Stand-ins take their places while a processor is loaded, and no longer."""
    from transformers import ProcessorMixin
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor

    before = vars(AutoVideoProcessor)["from_pretrained"]
    check = ProcessorMixin.check_argument_for_proper_class
    load_processor(save(VIDEO[0], tmp_path))
    assert vars(AutoVideoProcessor)["from_pretrained"] is before
    assert ProcessorMixin.check_argument_for_proper_class is check


# --- chat templates -------------------------------------------------------------------------


def _without_template(folder: Path) -> str:
    tiny_policy(folder)
    (folder / "chat_template.jinja").unlink()
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return str(folder)


def test_a_processor_without_a_chat_template_names_the_setting(
    tmp_path: Path, sample: Sample
) -> None:
    folder = _without_template(tmp_path / "policy")
    with pytest.raises(ModelError, match=r"LlavaProcessor\) has no chat template; give one in pol"):
        load_policy(folder, device="cpu")
    template = "{% for m in messages %}<image>{{ m.content[-1].text }}{% endfor %}:"
    policy = load_policy(folder, device="cpu", chat_template=template)
    assert policy.prompt(sample).text == f"<image>{sample.question}:"


def test_a_template_that_leaves_an_image_out_is_refused_by_sample(
    folder: str, sample: Sample
) -> None:
    two = Sample(sample.id, sample.image, "Which?", "", more_images=(sample.image,))
    one_only = "{% for m in messages %}<image>{{ m.content[-1].text }}{% endfor %}"
    policy = load_policy(folder, device="cpu", chat_template=one_only)
    with pytest.raises(ModelError, match=rf"{sample.id}: 2 images, but 1 image marks .*max_images"):
        policy.prompt(two)


def test_a_question_cannot_smuggle_in_an_image(folder: str, sample: Sample) -> None:
    policy = load_policy(folder, device="cpu")
    # marks that are not one for each image are taken out; a template may write others
    spoken = Sample(sample.id, sample.image, "<image><image> Which?", "")
    assert policy.prompt(spoken).text.count("<image>") == 1


def test_a_text_model_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(SelfcalError, match="cannot be loaded as an image-text-to-text"):
        load_policy(tiny_judge(tmp_path), device="cpu")
