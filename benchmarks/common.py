"""What `search.py` and `full_size.py` share: models of random weights, made fast from their shape.

A model is built where it will run and saved to a folder, so that everything opens it as it would a
real one. Weights are drawn from one small normal distribution: their values do not change how long
a multiplication takes, only what is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STD = 0.02


def llava_config(
    vision: Mapping[str, Any], text: Mapping[str, Any], image_id: int, layer: int
) -> Any:
    """A LLaVA of these two parts; `layer` of the tower is what the text model sees."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    return LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**text),
        image_token_index=image_id,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default",
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
    )


def save_random(kind: Any, config: Any, folder: Path, device: str, dtype: Any) -> int:
    """Build a model with random weights on a device and save it; returns its parameters.

    Args:
        kind: one of transformers' auto classes.
        config: of the model.
        folder: to save to; the processor or tokenizer is saved by the caller.
        device: where it is built.
        dtype: of the weights.
    """
    import torch
    from transformers.initialization import no_init_weights

    with no_init_weights(), torch.device(device):
        model = kind.from_config(config, dtype=dtype)
    model.tie_weights()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 or "embed" in name:
                weight.normal_(std=STD)
            else:  # of a norm, or a bias
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    text = config.get_text_config()
    model.generation_config.eos_token_id = text.eos_token_id
    model.generation_config.pad_token_id = text.pad_token_id
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def quiet() -> None:
    """No progress bars and no advice from libraries."""
    import logging
    import warnings

    from transformers.utils import logging as own

    own.disable_progress_bar()
    own.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def last_line(figures: Mapping[str, Any]) -> None:
    """Print the figures as one JSON object, floats to four digits."""
    print(json.dumps({k: _rounded(v) for k, v in figures.items()}))


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
