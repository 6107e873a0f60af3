"""The policy: a vision-language model with its processor, loaded from a folder or the hub.

What comes in are samples, what goes out are prompts, tensors and responses. The model's own
processor decides everything about images, tokens and the chat template; nothing here knows a model
family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from selfcal import processors
from selfcal.clock import spent
from selfcal.data import load_image
from selfcal.errors import SelfcalError
from selfcal.rationale import FORMATS, RapFormat, continued
from selfcal.store import sampled_digest
from selfcal.types import IMAGE_MARK, Sample, question_text, without_marks

if TYPE_CHECKING:
    import torch
    from PIL import Image

NOT_LOADED = (OSError, ValueError, KeyError, ImportError, SafetensorError)
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
            ModelError: the chat template does not write a mark for each of its images.
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
        return {k: v for k, v in batch.items() if k != "labels"}  # PaliGemma's, for training

    def place(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch on the policy's device, images in its number format."""
        moved = {k: v.to(self.device) for k, v in batch.items()}
        return {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in moved.items()}


def user_turn(sample: Sample, processor: Any = None) -> list[dict[str, Any]]:
    """The conversation that asks a sample's question.

    Images stand where the question has `<image>` marks, if it has one for each; else before it.
    What else the `processor` would take for more than text is broken in two.
    """
    asked = question_text(sample)
    parts = asked.split(IMAGE_MARK)
    if len(parts) != len(sample.images) + 1:
        parts = [*[""] * len(sample.images), without_marks(asked)]
    if processor is not None:
        marks = processors.control_marks(processor)
        parts = [processors.inert(text, marks) for text in parts]
    content: list[dict[str, Any]] = []
    for i, text in enumerate(parts):
        content += [{"type": "image"}] if i else []
        content += [{"type": "text", "text": text.strip()}] if text.strip() else []
    return [{"role": "user", "content": content}]


def prompt_text(processor: Any, sample: Sample) -> str:
    """The prompt up to where the response begins, by the model's own chat template.

    Raises:
        ModelError: it does not write a mark for each image.
    """
    turn = user_turn(sample, processor)
    text = str(processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    mark = getattr(processor, "image_token", None)
    written = text.count(mark) if mark else len(sample.images)
    if written != len(sample.images):
        raise ModelError(
            f"sample {sample.id}: {len(sample.images)} images, but {written} image marks in what "
            f"the model's chat template writes ({mark!r}); take a model (or policy.chat_template) "
            "for so many images, set data.max_images, or remove such marks from the question"
        )
    return text


def check_opening(processor: Any, form: RapFormat) -> None:
    """Refuse a model whose chat template opens what the format of responses does not have.

    Raises:
        ModelError: it does so.
    """
    prompt = prompt_text(processor, Sample("opening", "", "What is seen?", "")).rstrip()
    for other in FORMATS.values():
        if other.opening and prompt.endswith(other.opening) and form.opening != other.opening:
            raise ModelError(
                f"format: the model's chat template begins every response with `{other.opening}`, "
                f"and `{form.name}` has none; set format: {other.name}, or give a template without "
                "it in policy.chat_template"
            )


_SAID = "(what is said)"


def training_texts(
    processor: Any, sample: Sample, responses: Sequence[str]
) -> tuple[str, list[str]]:
    """The prompt as it is at inference, and responses as they stand after it when trained on.

    The model's own chat template says what separates a response from the prompt and how it ends.
    It does not get the responses themselves: a template for thinking models would take them apart.
    A response that spells an end of turn or an image mark has it broken in two.

    Raises:
        ModelError: the template does not write a mark for each image, or leaves responses out.
    """
    prompt = prompt_text(processor, sample)
    said = [{"role": "assistant", "content": [{"type": "text", "text": _SAID}]}]
    turn = user_turn(sample, processor)
    whole = str(processor.apply_chat_template([*turn, *said], tokenize=False))
    before, written, end = whole.rpartition(_SAID)
    if not written:
        raise ModelError(
            f"sample {sample.id}: the model's chat template leaves the assistant's turn out; give "
            "one that writes it in policy.chat_template"
        )
    space = before.removeprefix(prompt) if before.startswith(prompt) else ""
    space = "" if space.strip() else space
    end = end if end.strip() else processor.tokenizer.eos_token
    marks = processors.control_marks(processor)
    own = (processors.inert(continued(prompt, text), marks) for text in responses)
    return prompt, [f"{space}{text}{end}" for text in own]


def load_processor(
    name: str, trust_remote_code: bool = False, chat_template: str | None = None
) -> Any:
    """Load a vision-language model's processor alone.

    Raises:
        ModelError: it cannot be found, or has no chat template.
    """
    try:
        with spent("disk"):
            processor = processors.load(model_path(name), trust_remote_code)
    except NOT_LOADED as error:
        raise _not_a_policy(name, error) from error
    if not processors.settle_template(processor, chat_template):
        raise ModelError(
            f"policy {name}: its processor ({type(processor).__name__}) has no chat template; give "
            "one in policy.chat_template, or put a chat_template.jinja into the model's folder"
        )
    return processor


def _not_a_policy(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"policy {name}: cannot be loaded as an image-text-to-text model ({_first_line(error)}); "
        "give a folder with model and processor, or a hub name"
    )


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def load_policy(
    name: str,
    dtype: str = "float32",
    device: str = "auto",
    trust_remote_code: bool = False,
    attention: str | None = None,
    chat_template: str | None = None,
    four_bit: bool = False,
) -> Policy:
    """Load a vision-language model and its processor.

    Args:
        name: a folder, a hub name or `miniworld:NAME`.
        dtype: number format of the weights; with `four_bit`, of what is computed.
        device: `auto`, `cpu`, `cuda`, ...
        trust_remote_code: whether code that comes with the model may run.
        attention: attention implementation by transformers' name; None: the model's own.
        chat_template: a Jinja2 template; None: the processor's own.
        four_bit: whether weights are held in 4 bits (NF4), for training an adapter.

    Raises:
        ModelError: it cannot be found, is no image-text-to-text model, or cannot be had that way.
    """
    from transformers import AutoModelForImageTextToText

    path, where = model_path(name), pick_device(device)
    processor = load_processor(name, trust_remote_code, chat_template)
    how: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if attention:
        how["attn_implementation"] = attention
    if four_bit:
        how |= {"quantization_config": _four_bits(dtype, where), "device_map": {"": where}}
    try:
        with spent("disk"):
            model = AutoModelForImageTextToText.from_pretrained(path, **how)
    except NOT_LOADED as error:
        if attention and any(word in str(error).lower() for word in ("attn", "attention", "flash")):
            raise ModelError(
                f"policy.attention: {attention} cannot be used with {name} ({_first_line(error)}); "
                "take `sdpa` or `eager`, or leave it out"
            ) from error
        raise _not_a_policy(name, error) from error
    return Policy((model if four_bit else model.to(where)).eval(), processor, where)


def _four_bits(dtype: str, where: str) -> Any:
    """How transformers holds weights in 4 bits (QLoRA: NF4, its constants quantized as well)."""
    if find_spec("bitsandbytes") is None or not where.startswith("cuda"):
        raise ModelError(
            f"lora.four_bit: needs the package bitsandbytes and a GPU (device is {where}, the "
            f"package is {'there' if find_spec('bitsandbytes') else 'missing'}); install it, or "
            "set four_bit to false"
        )
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
