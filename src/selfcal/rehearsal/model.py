"""A Qwen2-VL so small that it is made on the spot, with random weights.

It is a real one to everything that loads it: its own configuration, image processor, chat template
and processor. Its vocabulary is MiniWorld's, which spells every text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfcal.errors import SelfcalError
from selfcal.miniworld.models import build_tokenizer

_HIDDEN = 64
_MARKS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{{ message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' "
    "else part['text'] }}"
    "{%- endfor -%}{%- endif -%}<|im_end|>{{ '\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)


def make_model(folder: Path, seed: int = 0) -> None:
    """Save a Qwen2-VL of random weights, with its processor.

    Raises:
        SelfcalError: there is something in the folder, or it cannot be written.
    """
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise SelfcalError(f"{folder} is not empty; give another folder")
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    model: Any = Qwen2VLForConditionalGeneration(_config(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    _talkative(model, tokenizer)
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _save_processor(folder)
    except OSError as error:
        raise SelfcalError(f"{folder}: cannot be written ({error}); give another folder") from error


def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    words = build_tokenizer().backend_tokenizer
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(words.to_str()), pad_token="<pad>",
        eos_token="<|im_end|>", extra_special_tokens=_MARKS | {"turn_token": "<|im_start|>"},
    )  # fmt: skip
    made.padding_side = "left"
    made.chat_template = _TEMPLATE
    return made


def _config(tokenizer: Any) -> Any:
    from transformers import Qwen2VLConfig

    ids = {name: int(tokenizer.convert_tokens_to_ids(mark)) for name, mark in _MARKS.items()}
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
    return Qwen2VLConfig(
        text_config={
            "hidden_size": _HIDDEN, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": rope,
            "vocab_size": len(tokenizer), "max_position_embeddings": 4096,
            "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 2, "embed_dim": _HIDDEN, "hidden_size": _HIDDEN, "num_heads": 2,
            "mlp_ratio": 2, "patch_size": 8,
        },
        image_token_id=ids["image_token"], video_token_id=ids["video_token"],
        vision_start_token_id=ids["vision_start_token"],
        vision_end_token_id=ids["vision_end_token"], tie_word_embeddings=False,
    )  # fmt: skip


def _talkative(model: Any, tokenizer: Any) -> None:
    """Let it say words, end sentences and responses now and then, and never a mark.

    All inputs share a direction, which the rows of the output go along or against.
    """
    import torch

    shared = torch.ones(_HIDDEN) / _HIDDEN**0.5
    words = tokenizer.get_vocab().items()
    said = [i for t, i in words if t.startswith("Ġ") and t[1:].isalpha()]
    stops = [tokenizer(s, add_special_tokens=False)["input_ids"][-1] for s in (".", "\n")]
    never = torch.full((len(tokenizer),), True)
    never[said] = False
    with torch.no_grad():
        out = model.get_output_embeddings().weight
        out.normal_(std=0.3)
        model.get_input_embeddings().weight.normal_(std=0.5).add_(2 * shared)
        out[never] = -4 * shared
        out[stops] = 1.2 * shared
        out[tokenizer.eos_token_id] = 1.1 * shared


def _save_processor(folder: Path) -> None:
    """The processor's file; without torchvision it can be loaded, but not made."""
    parts = {
        "processor_class": "Qwen2VLProcessor",
        "image_processor": {
            "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 8, "merge_size": 2,
            "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
            # said outright, because not every server takes transformers' defaults
            "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
            "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        },
        "video_processor": {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 8},
    }  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(parts, indent=2), encoding="utf-8")
