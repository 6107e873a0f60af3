"""The policy: a vision-language model with its processor, loaded from a folder or the hub.

What comes in are samples, what goes out are prompts, tensors and responses. The model's own
processor decides everything about images, tokens and the chat template; nothing here knows a model
family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from selfcal.clock import spent
from selfcal.data import load_image
from selfcal.errors import SelfcalError
from selfcal.store import sampled_digest
from selfcal.types import IMAGE_MARK, Sample, question_text

if TYPE_CHECKING:
    import torch
    from PIL import Image

NOT_LOADED = (OSError, ValueError, KeyError, SafetensorError)
"""What transformers raises where a model is missing, broken or of another kind."""
SHIPPED = "miniworld:"
_MODEL_FILES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py")


class ModelError(SelfcalError):
    """A model cannot be loaded or used: the text names it and the way out."""


def model_path(name: str) -> str:
    """Where a model lies: `miniworld:NAME` is shipped with selfcal, all else is left as it is.

    Raises:
        ModelError: no such model is shipped.
    """
    if not name.startswith(SHIPPED):
        return name
    shipped = Path(str(resources.files("selfcal.miniworld") / "assets"))
    path = shipped / Path(name.removeprefix(SHIPPED)).name
    if not path.is_dir():
        have = ", ".join(sorted(p.name for p in shipped.glob("*") if p.is_dir())) or "none"
        raise ModelError(f"{name}: no such model is shipped (shipped: {have})")
    return str(path)


def model_digest(name: str) -> str | None:
    """What changes when a local model does; None for a hub name.

    Large files are sampled: reading all of a 15 GB model whenever a run starts would take minutes.
    """
    folder = Path(model_path(name))
    return sampled_digest(folder, *_MODEL_FILES) if folder.is_dir() else None


def pick_device(name: str) -> str:
    """`auto` is the first GPU, or else the CPU."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked: images and the text up to where the response begins."""

    images: tuple[Image.Image, ...]
    text: str
    tokens: int
    """Of the text alone: with the images' sizes it says how long the prompt will be."""

    @property
    def size(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each image, in pixels."""
        return tuple(image.size for image in self.images)


@dataclass(frozen=True, slots=True)
class Policy:
    """A loaded model, ready for inference."""

    model: Any
    processor: Any
    device: str

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def pad_id(self) -> int:
        """Token id used for padding."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end a response, by the model's own generation settings."""
        eos = self.model.generation_config.eos_token_id
        ids = {self.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])}
        return frozenset(int(i) for i in ids if i is not None)

    def prompt(self, sample: Sample) -> Prompt:
        """What the model is asked for a sample.

        Raises:
            ImageError: its image cannot be read.
        """
        text = prompt_text(self.processor, sample)
        tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return Prompt(tuple(load_image(Path(i)) for i in sample.images), text, tokens)

    def encode(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """Samples as one left-padded batch on the policy's device."""
        return self.place(self.encode_prompts([self.prompt(s) for s in samples]))

    def encode_prompts(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """Prompts as one left-padded batch, on the CPU."""
        batch = self.processor(
            images=[list(p.images) for p in prompts],  # one list a prompt: some families insist
            text=[p.text for p in prompts],
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=False,  # the chat template has written them
        )
        return dict(batch)

    def place(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch on the policy's device, images in its number format."""
        moved = {k: v.to(self.device) for k, v in batch.items()}
        return {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in moved.items()}


def user_turn(sample: Sample) -> list[dict[str, Any]]:
    """The conversation that asks a sample's question.

    Images stand where the question has `<image>` marks, if it has one for each; else before it.
    """
    parts = question_text(sample).split(IMAGE_MARK)
    if len(parts) != len(sample.images) + 1:
        parts = [*[""] * len(sample.images), " ".join(p.strip() for p in parts).strip()]
    content: list[dict[str, Any]] = []
    for i, text in enumerate(parts):
        content += [{"type": "image"}] if i else []
        content += [{"type": "text", "text": text.strip()}] if text.strip() else []
    return [{"role": "user", "content": content}]


def prompt_text(processor: Any, sample: Sample) -> str:
    """The prompt up to where the response begins, by the model's own chat template."""
    text = processor.apply_chat_template(
        user_turn(sample), tokenize=False, add_generation_prompt=True
    )
    return str(text)


def load_processor(name: str, trust_remote_code: bool = False) -> Any:
    """Load a vision-language model's processor alone.

    Raises:
        ModelError: it cannot be found.
    """
    from transformers import AutoProcessor

    try:
        with spent("disk"):
            return AutoProcessor.from_pretrained(
                model_path(name), trust_remote_code=trust_remote_code
            )
    except NOT_LOADED as error:
        raise _not_a_policy(name, error) from error


def _not_a_policy(name: str, error: Exception) -> ModelError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ModelError(
        f"policy {name}: cannot be loaded as an image-text-to-text model ({first}); "
        "give a folder with model and processor, or a hub name"
    )


def load_policy(
    name: str, dtype: str = "float32", device: str = "auto", trust_remote_code: bool = False
) -> Policy:
    """Load a vision-language model and its processor.

    Raises:
        ModelError: it cannot be found or is no image-text-to-text model.
    """
    from transformers import AutoModelForImageTextToText

    path = model_path(name)
    where = pick_device(device)
    processor = load_processor(name, trust_remote_code)
    try:
        with spent("disk"):
            model = AutoModelForImageTextToText.from_pretrained(
                path, dtype=dtype, trust_remote_code=trust_remote_code
            )
    except NOT_LOADED as error:
        raise _not_a_policy(name, error) from error
    return Policy(model.to(where).eval(), processor, where)
