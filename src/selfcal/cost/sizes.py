"""A model's name in, its sizes out: parameters, layers, and what a token's keys and values take.

Sizes come from the model's configuration: the network is built without memory (torch's `meta`
device), so nothing is loaded and a 72B model takes a blink. Nothing is downloaded, either: where
the configuration is not on this machine, sizes are reckoned from the number of parameters in the
model's name, and say so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from selfcal.errors import SelfcalError
from selfcal.policy import NOT_LOADED, model_path

_NAMED = re.compile(r"(?<![\d.])(\d{1,4}(?:\.\d{1,2})?)([bBmM])(?![a-zA-Z])")
_WIDTH_OF_DEPTH = 128
"""Hidden size a layer has for each layer there is, as Llama 7B, 13B and 65B have it."""
_VOCABULARY = 152_000


class SizeError(SelfcalError):
    """Nothing tells how large a model is: the text names it and the way out."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a model is."""

    parameters: int
    language: int
    """Parameters of the language model alone."""
    layers: int
    hidden: int
    vocabulary: int
    kv_width: int
    """Numbers that a token's keys and values take, over all layers."""
    lora_width: int
    """Parameters of an adapter of rank 1 on the language model's linear layers."""
    exact: bool
    """Read from its configuration; else reckoned from its name."""


@cache
def sizes_of(model: str) -> Sizes:
    """The sizes of a policy, a judge, or any other model that transformers knows.

    Raises:
        SizeError: neither its configuration nor its name tells them.
    """
    try:
        return _configured(model)
    except (*NOT_LOADED, AttributeError) as error:
        if found := _NAMED.findall(model.rpartition("/")[2]):
            number, unit = found[0]
            return named(float(number) * (1e9 if unit in "bB" else 1e6))
        raise SizeError(
            f"model {model}: its configuration is not on this machine, and its name does not say "
            "how many parameters it has; download it, or give a folder"
        ) from error


def named(parameters: float) -> Sizes:
    """Sizes of a usual transformer with so many parameters (12 x layers x hidden^2)."""
    layers = max(1, round((parameters / (12 * _WIDTH_OF_DEPTH**2)) ** (1 / 3)))
    hidden = layers * _WIDTH_OF_DEPTH
    return Sizes(
        round(parameters), round(parameters), layers, hidden, _VOCABULARY,
        kv_width=2 * layers * hidden,
        lora_width=layers * (4 * 2 * hidden + 3 * (hidden + 8 * hidden // 3)),
        exact=False,
    )  # fmt: skip


def _configured(model: str) -> Sizes:
    import torch
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    config: Any = AutoConfig.from_pretrained(
        model_path(model), trust_remote_code=False, local_files_only=True
    )
    network: Any = None
    with torch.device("meta"):
        for kind in (AutoModelForImageTextToText, AutoModelForCausalLM, AutoModel):
            if type(config) in kind._model_mapping:
                network = kind.from_config(config)
                break
    if network is None:
        raise ValueError("no such kind of model")
    text = config.get_text_config()
    decoder = _decoder(network)
    heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return Sizes(
        parameters=_count(network),
        language=_count(decoder),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        kv_width=2 * int(text.num_hidden_layers) * heads * width,
        lora_width=sum(
            m.in_features + m.out_features
            for m in decoder.modules()
            if isinstance(m, torch.nn.Linear)
        ),
        exact=True,
    )


def _decoder(network: Any) -> Any:
    """The language model of a network; the network itself where it is nothing else."""
    found = network.get_decoder() if hasattr(network, "get_decoder") else None
    return network if found is None else found


def _count(module: Any) -> int:
    return sum(int(p.numel()) for p in module.parameters())
