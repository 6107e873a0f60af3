"""Tiny models of several families, with random weights, and a stand-in for their processors.

Every family writes an image as four or more placeholders into the prompt and sees it through its
own vision tower. Token 10 is read as " w10", token 30 as " W30", tokens 20 to 24 as full stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from selfcal.policy import Prompt
from selfcal.testing import _randomize
from selfcal.types import Sample

VOCABULARY = 60
PAD, END, IMAGE, BEFORE, AFTER = 0, 1, 4, 6, 7
STOPS = range(20, 25)

TEXTS = {
    "long": ([10, 11, 12, 13, 14], [15, 16, 17, 18, 19, 25, 26]),
    "short": ([], [30]),
    "middle": ([27, 28], [29, 31]),
}
"""What stands before and after the image of each sample."""
SAMPLES = [Sample(name, "", "", "") for name in TEXTS]


class Words:
    """A tokenizer that can only decode."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(map(self._word, ids))

    def _word(self, token: int) -> str:
        if token in (PAD, END):
            return ""
        return "." if token in STOPS else f" {'W' if token >= 30 else 'w'}{token}"


@dataclass
class FakePolicy:
    """What the search asks of a policy; prompts of different length go into one batch."""

    model: Any
    image: list[int]
    """Tokens of an image."""
    pixels: Callable[[Sequence[str]], dict[str, torch.Tensor]]
    """What the model gets of the samples' images."""
    types: str = ""
    """Name of the input that tells kinds of tokens apart, if there is one."""
    image_type: int = 1
    response_type: int = 0
    tokenizer: Any = field(default_factory=Words)
    device: str = "cpu"
    pad_id: int = PAD
    stop_ids: frozenset[int] = frozenset([END])

    def prompt(self, sample: Sample) -> Prompt:
        return Prompt((Image.new("RGB", (4, 4)),), sample.id, tokens=1)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        names = [p.text for p in prompts]
        rows = [[*TEXTS[n][0], *self.image, *TEXTS[n][1]] for n in names]
        width = max(map(len, rows))
        ids = torch.tensor([[PAD] * (width - len(r)) + r for r in rows])
        batch = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
        if self.types:
            batch[self.types] = (ids == IMAGE).int() * self.image_type
        return batch | self.pixels(names)

    def place(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in batch.items()}


def squares(*shape: int) -> Callable[[Sequence[str]], dict[str, torch.Tensor]]:
    """Random pixel values of that shape, the same ones for a sample always."""
    names = list(TEXTS)
    values = torch.randn((len(names), *shape), generator=torch.Generator().manual_seed(1))
    return lambda some: {"pixel_values": values[[names.index(n) for n in some]]}


def patches(patch: int) -> Callable[[Sequence[str]], dict[str, torch.Tensor]]:
    """Qwen-VL's images: 4 x 4 patches in a row, which merge into 2 x 2 tokens."""
    of = squares(16, 3 * 2 * patch * patch)
    return lambda some: {
        "pixel_values": of(some)["pixel_values"].flatten(0, 1),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * len(some)),
    }


def ready(model: Any) -> Any:
    """Draw weights; the model says neither padding nor images, and seldom ends."""
    _randomize(model, 0)
    bias = torch.zeros(VOCABULARY)
    bias[[PAD, *range(2, 10)]] = -1e9
    bias[END] = 1.0
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: 0.7 * out + bias.to(out)
    )
    return model.eval()


TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": END,
    "pad_token_id": PAD, "max_position_embeddings": 256,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip


def qwen2_5_vl() -> FakePolicy:
    """Counts positions itself: an image of 4 tokens takes 2 positions."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": rope},
        vision_config={
            "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
            "out_hidden_size": 32, "patch_size": 4, "fullatt_block_indexes": [1], "window_size": 16,
        },
        image_token_id=IMAGE, video_token_id=5, vision_start_token_id=BEFORE,
        vision_end_token_id=AFTER,
    )  # fmt: skip
    model = ready(Qwen2_5_VLForConditionalGeneration(config))
    return FakePolicy(model, [BEFORE, *[IMAGE] * 4, AFTER], patches(4), "mm_token_type_ids")


def qwen3_vl() -> FakePolicy:
    """As Qwen2.5-VL, and its image goes into several layers."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = Qwen3VLConfig(
        text_config=TEXT | {"rope_parameters": rope, "head_dim": 16},
        vision_config={
            "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
            "out_hidden_size": 32, "patch_size": 4, "deepstack_visual_indexes": [0, 1],
            "num_position_embeddings": 16,
        },
        image_token_id=IMAGE, video_token_id=5, vision_start_token_id=BEFORE,
        vision_end_token_id=AFTER,
    )  # fmt: skip
    model = ready(Qwen3VLForConditionalGeneration(config))
    return FakePolicy(model, [BEFORE, *[IMAGE] * 4, AFTER], patches(4), "mm_token_type_ids")


def gemma3(window: int = 8) -> FakePolicy:
    """Two layers of three see a window shorter than the prompt; an image sees itself both ways."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config=TEXT | {
            "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": window,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        vision_config=VISION, mm_tokens_per_image=4, image_token_id=IMAGE, boi_token_index=BEFORE,
        eoi_token_index=AFTER,
    )  # fmt: skip
    model = ready(Gemma3ForConditionalGeneration(config))
    return FakePolicy(model, [BEFORE, *[IMAGE] * 4, AFTER], squares(3, 16, 16), "token_type_ids")


def idefics3() -> FakePolicy:
    """SmolVLM's architecture: patches are put together by a pixel shuffle."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    config = Idefics3Config(
        text_config=TEXT | {"model_type": "llama"}, vision_config=VISION, scale_factor=2,
        image_token_id=IMAGE, pad_token_id=PAD,
    )  # fmt: skip
    model = ready(Idefics3ForConditionalGeneration(config))
    return FakePolicy(model, [IMAGE] * 4, squares(1, 3, 16, 16))


def internvl() -> FakePolicy:
    """Qwen2 behind a tower of its own."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    config = InternVLConfig(
        text_config=TEXT | {"model_type": "qwen2"},
        vision_config=VISION | {"image_size": [16, 16], "patch_size": [4, 4]},
        image_token_id=IMAGE, downsample_ratio=0.5,
    )  # fmt: skip
    model = ready(InternVLForConditionalGeneration(config))
    return FakePolicy(model, [BEFORE, *[IMAGE] * 4, AFTER], squares(3, 16, 16))


def llava_next() -> FakePolicy:
    """An image in tiles, and as a whole; rows of tiles end in a token of their own."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        text_config=TEXT | {"model_type": "llama"},
        vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": 32},
        image_token_index=IMAGE, image_grid_pinpoints=[[16, 32], [32, 16]], vision_feature_layer=-1,
    )  # fmt: skip
    model, of = ready(LlavaNextForConditionalGeneration(config)), squares(3, 3, 16, 16)
    tokens = 4 * 4 + 8 * (4 + 1)
    return FakePolicy(
        model,
        [IMAGE] * tokens,
        lambda some: of(some) | {"image_sizes": torch.tensor([[32, 16]] * len(some))},
    )


def mistral3() -> FakePolicy:
    """All layers see a window shorter than the prompt."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    config = Mistral3Config(
        text_config=TEXT | {"model_type": "mistral", "head_dim": 16, "sliding_window": 8},
        vision_config=VISION | {"model_type": "pixtral", "head_dim": 16},
        image_token_index=IMAGE, spatial_merge_size=2,
    )  # fmt: skip
    model, of = ready(Mistral3ForConditionalGeneration(config)), squares(3, 16, 16)
    return FakePolicy(
        model,
        [IMAGE] * 4,
        lambda some: of(some) | {"image_sizes": torch.tensor([[16, 16]] * len(some))},
    )


def paligemma() -> FakePolicy:
    """The prompt's tokens see each other both ways, those of the response do not."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    config = PaliGemmaConfig(
        text_config=TEXT | {"model_type": "gemma", "head_dim": 16},
        vision_config=VISION | {"model_type": "siglip_vision_model", "projection_dim": 32},
        projection_dim=32, image_token_index=IMAGE,
    )  # fmt: skip
    return FakePolicy(
        ready(PaliGemmaForConditionalGeneration(config)), [IMAGE] * 16, squares(3, 16, 16),
        "token_type_ids", image_type=0, response_type=1,
    )  # fmt: skip


def recurrent() -> FakePolicy:
    """Qwen3.5: two layers of three have one state for all tokens. The search cannot use it."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = Qwen3_5Config(
        text_config=TEXT | {
            "rope_parameters": rope, "head_dim": 16, "linear_num_value_heads": 2,
            "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
            "out_hidden_size": 32, "patch_size": 4, "deepstack_visual_indexes": [],
            "num_position_embeddings": 16,
        },
        image_token_id=IMAGE, video_token_id=5, vision_start_token_id=BEFORE,
        vision_end_token_id=AFTER,
    )  # fmt: skip
    model = ready(Qwen3_5ForConditionalGeneration(config))
    return FakePolicy(model, [BEFORE, *[IMAGE] * 4, AFTER], patches(4), "mm_token_type_ids")


_ALL = (qwen2_5_vl, qwen3_vl, gemma3, idefics3, internvl, llava_next, mistral3, paligemma)
FAMILIES = {make.__name__: make for make in _ALL}
