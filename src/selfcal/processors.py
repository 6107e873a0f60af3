"""A model's own processor, loaded with what is installed here, and fit for training.

Several families come with a processor for videos as well, which wants packages that images do not
need (torchvision, num2words). Where they are missing, a stand-in keeps the settings of that part,
so that a checkpoint saved here is whole again on a machine that has them. What little is known
about single families stands here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from selfcal.errors import SelfcalError

TEMPLATES = {
    # its processor puts the start mark behind the last image and a line break at the end
    "PaliGemmaProcessor": (
        "{%- for message in messages -%}"
        "{%- if message['content'] is string -%}{{ message['content'] }}"
        "{%- else -%}{%- for part in message['content'] -%}"
        "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
        "{%- endfor -%}{%- endif -%}"
        "{{ eos_token if message['role'] == 'assistant' else '' }}"
        "{%- endfor -%}"
    ),
}
"""Chat templates of processors whose checkpoints have none."""

PREFIX_TYPES = {"paligemma": 1}
"""Type of a response's tokens, by type of model; those of type 0 see what comes after them."""

_LOADING = Lock()
_FORMAT = ("<think>", "</think>", "<rationale>", "</rationale>", "<answer>", "</answer>")
"""Tags that responses are made of; to some tokenizers they are special."""
_MARKS: WeakKeyDictionary[Any, re.Pattern[str]] = WeakKeyDictionary()


class ProcessorError(SelfcalError):
    """A processor cannot do what is asked of it."""


def load(path: str, trust_remote_code: bool = False) -> Any:
    """Load a processor; the part for videos may be a stand-in.

    Raises:
        OSError, ValueError, KeyError, ImportError: as transformers does.
    """
    from transformers import AutoProcessor

    with _LOADING, ExitStack() as stand_ins:
        if find_spec("torchvision") is None:
            stand_ins.enter_context(_without_videos())
        if find_spec("num2words") is None:
            stand_ins.enter_context(_without_number_words())
        try:
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
        except ImportError as error:
            if "PixtralProcessor" not in str(error):
                raise
            stand_ins.enter_context(_unhidden())
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
    for part in ("image_processor", "tokenizer"):
        if not hasattr(processor, part):  # transformers takes a tokenizer alone, if that is there
            raise ValueError(f"its processor has no {part.replace('_', ' ')}")
    # who asks says whether texts become a tensor: Pixtral's does so unasked, and fails without
    # padding, as TRL's GRPO has it
    asks = getattr(processor, "text_kwargs", {})
    if "return_tensors" in asks:
        processor.text_kwargs = {k: v for k, v in asks.items() if k != "return_tensors"}
    return processor


def settle_template(processor: Any, given: str | None) -> bool:
    """Give a processor the chat template to use: the given one, or its own, or a known one.

    Returns whether it has one now.
    """
    known = TEMPLATES.get(type(processor).__name__)
    processor.chat_template = given or getattr(processor, "chat_template", None) or known
    return bool(processor.chat_template)


def inert(text: str, marks: re.Pattern[str]) -> str:
    """Text that others wrote, with every mark in it broken in two, so that it stays text."""
    return marks.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text)


def control_marks(writer: Any) -> re.Pattern[str]:
    """Finds what a model takes for more than text: ends of turns, roles, places of images.

    `writer` is a processor, or a tokenizer alone.
    """
    if writer not in _MARKS:
        _MARKS[writer] = _found_marks(writer)
    return _MARKS[writer]


def _found_marks(writer: Any) -> re.Pattern[str]:
    tokenizer = getattr(writer, "tokenizer", writer)
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {str(token) for token in added if getattr(token, "special", False)}
    found |= {str(token) for token in getattr(tokenizer, "all_special_tokens", ())}
    names = ("image_token", "video_token", "boi_token", "eoi_token", "full_image_sequence")
    found |= {t for n in names if isinstance(t := getattr(writer, n, None), str)}
    # one that is a plain word, or too short to be meant, is none in a text
    marks = [t for t in found - {*_FORMAT} if len(t) > 2 and not t.isalnum()]
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or r"(?!)")


@contextmanager
def _without_videos() -> Iterator[None]:
    """While it lasts, processors for videos are stand-ins."""
    from transformers import ProcessorMixin
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor
    from transformers.video_processing_utils import VideoProcessorMixin

    class NoVideos(VideoProcessorMixin):
        """Settings of a processor for videos, for who saves and loads them."""

        model_input_names = ()

        def __init__(self, **settings: Any) -> None:
            self.settings = settings

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or name == "settings":
                raise AttributeError(name)
            return self.settings.get(name)

        def __call__(self, *_: Any, **__: Any) -> Any:
            raise ProcessorError("videos need torchvision; install it")

        def to_dict(self) -> dict[str, Any]:
            return dict(self.settings)

    def stand_in(path: str, *_: Any, **asked: Any) -> Any:
        try:
            settings, _ = NoVideos.get_video_processor_dict(path, **asked)
        except OSError:  # there are none
            settings = {}
        return NoVideos(**settings)

    def check(self: Any, name: str, part: Any) -> Any:
        return NoVideos if isinstance(part, NoVideos) else checked(self, name, part)

    checked = ProcessorMixin.check_argument_for_proper_class
    with (
        _in_place(AutoVideoProcessor, "from_pretrained", stand_in),
        # without torchvision, transformers does not even know of what class it should be
        _in_place(ProcessorMixin, "check_argument_for_proper_class", check),
    ):
        yield


@contextmanager
def _unhidden() -> Iterator[None]:
    """While it lasts, Pixtral's processor can be had, which transformers hides without torchvision.

    It takes one function from its image processor, which that for Pillow has as well.
    """
    from transformers.models import pixtral
    from transformers.models.pixtral import image_processing_pil_pixtral

    wanted = f"{pixtral.__name__}.image_processing_pixtral"
    sys.modules[wanted] = image_processing_pil_pixtral
    try:
        from transformers.models.pixtral.processing_pixtral import PixtralProcessor
    finally:
        del sys.modules[wanted]
    with _in_place(pixtral, "PixtralProcessor", PixtralProcessor):
        yield


@contextmanager
def _without_number_words() -> Iterator[None]:
    """While it lasts, SmolVLM's processor loads without what spells numbers of video frames."""
    from transformers.models.smolvlm import processing_smolvlm

    with _in_place(processing_smolvlm, "num2words", str):
        yield


@contextmanager
def _in_place(owner: Any, name: str, value: Any) -> Iterator[None]:
    missing = object()
    before = vars(owner).get(name, missing)  # as it stands there: a class method stays one
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@dataclass(frozen=True, slots=True)
class ForTraining:
    """A processor as TRL's collators need it, which ask for prompts and for responses.

    Some processors refuse text without images, or put marks of a prompt's end behind it; a
    response goes to the tokenizer itself. Its type is that of text, or of `PREFIX_TYPES`.
    """

    processor: Any
    response_type: int = 0

    def __getattr__(self, name: str) -> Any:
        """All else is the processor's."""
        return getattr(self.processor, name)

    def __call__(self, **asked: Any) -> Any:
        """A batch of prompts with images, or of responses."""
        if asked.get("images"):
            batch = self.processor(**asked)
            batch.pop("labels", None)  # PaliGemma's, of the prompt alone
            return batch
        import torch

        asked.pop("images", None)
        batch = self.processor.tokenizer(**asked)
        batch["token_type_ids"] = torch.full_like(batch["input_ids"], self.response_type)
        return batch
