"""Tiny models of random weights, family by family, each saved as its checkpoints are.

A family's own configuration, model, image processor, processor and style of chat template; the
vocabulary is MiniWorld's. All images are 48 x 48 pixels, and `tokens` says, derived by hand, how
many placeholders one takes. The weights draw ordinary words and stops now and then, and never a
mark: all embeddings share a direction, which the rows of the output go along or against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer

from selfcal.miniworld.models import build_tokenizer
from selfcal.testing import _randomize

HIDDEN = 32
TEXT = {
    "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "bos_token_id": None,
    "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
VISION = {
    "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
}  # fmt: skip
QWEN_VISION = {
    "depth": 2, "hidden_size": HIDDEN, "num_heads": 2, "intermediate_size": 64,
    "out_hidden_size": HIDDEN, "patch_size": 8,
}  # fmt: skip
ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
SQUARE = {"height": 16, "width": 16}


@dataclass(frozen=True)
class Family:
    """A family: how its tiny model is made, and what of it is known by hand."""

    name: str
    make: Callable[[], tuple[Any, Any]]
    """Model and processor."""
    tokens: int
    """Placeholders of one image."""
    mark: str = "<image>"
    """The placeholder."""
    refuses: str = ""
    """Stage that it cannot do."""


def words(end: str = "</s>", **marks: str) -> Any:
    """MiniWorld's vocabulary with a family's own marks."""
    shipped = build_tokenizer().backend_tokenizer
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(shipped.to_str()), pad_token="<pad>", eos_token=end,
        extra_special_tokens=marks,
    )  # fmt: skip
    made.padding_side = "left"
    return made


def template(user: str, image: str, close: str, assistant: str, end: str = "") -> str:
    """A chat template: how turns begin, how an image is written, how turns end."""
    return (
        "{%- for message in messages -%}"
        f"{{{{ {user!r} if message['role'] == 'user' else {assistant!r} }}}}"
        "{%- if message['content'] is string -%}{{ message['content'] }}"
        "{%- else -%}{%- for part in message['content'] -%}"
        f"{{%- if part['type'] == 'image' -%}}{{{{ {image!r} }}}}"
        "{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}"
        f"{{{{ {close!r} if message['role'] == 'user' else {end!r} or eos_token }}}}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{ {assistant!r} }}}}{{%- endif -%}}"
    )


CHATML = ("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n")


def chatml(image: str) -> str:
    """Turns between marks, as Qwen writes them."""
    user, close, assistant = CHATML
    return template(user, image, close, assistant)


def text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Settings of a language model with this vocabulary."""
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return TEXT | {"vocab_size": len(tokenizer)} | ends | more


def ready(model: Any, tokenizer: Any, shares: float = 4.0) -> Any:
    """Draw weights that say words, end sentences and responses now and then, and never a mark."""
    _randomize(model, 0)
    shared = torch.ones(HIDDEN) / HIDDEN**0.5
    inside, out = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    stops = [tokenizer(s, add_special_tokens=False)["input_ids"][-1] for s in (".", "\n")]
    said = [t for t, i in tokenizer.get_vocab().items() if 5 <= i < 566 and t[1:].isalpha()]
    never = torch.full((len(tokenizer),), True)
    never[tokenizer.convert_tokens_to_ids(said)] = False
    with torch.no_grad():
        inside += shares * shared
        out[never] = -4 * shared
        out[stops] = 1.2 * shared
        out[tokenizer.eos_token_id] = 1.0 * shared
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def ident(tokenizer: Any, mark: str) -> int:
    """A mark's token."""
    return int(tokenizer.convert_tokens_to_ids(mark))


# --- LLaVA ----------------------------------------------------------------------------------


def llava() -> tuple[Any, Any]:
    """One square picture; CLIP has a summary besides, which is left out."""
    t = words(image_token="<image>")
    config = hf.LlavaConfig(
        text_config=text(t, model_type="llama"),
        vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": HIDDEN},
        image_token_index=ident(t, "<image>"), tie_word_embeddings=False,
    )  # fmt: skip
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(size=SQUARE, crop_size=SQUARE), t, patch_size=4,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template("USER: ", "<image>\n", " ", "ASSISTANT: "),
    )  # fmt: skip
    return ready(hf.LlavaForConditionalGeneration(config), t), processor


TILES = [[16, 32], [32, 16], [32, 32]]


def llava_next() -> tuple[Any, Any]:
    """The picture in 2 x 2 tiles, whose rows end in a token of their own, and as a whole."""
    t = words(image_token="<image>")
    config = hf.LlavaNextConfig(
        text_config=text(t, model_type="mistral"),
        vision_config=VISION | {
            "model_type": "clip_vision_model", "projection_dim": HIDDEN, "patch_size": 8,
        },
        image_token_index=ident(t, "<image>"), image_grid_pinpoints=TILES,
        tie_word_embeddings=False,
    )  # fmt: skip
    processor = hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 16}, crop_size=SQUARE, image_grid_pinpoints=TILES
        ),
        t, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template("[INST] ", "<image>\n", " [/INST]", " "),
    )  # fmt: skip
    return ready(hf.LlavaNextForConditionalGeneration(config), t), processor


def llava_onevision() -> tuple[Any, Any]:
    """As LLaVA-NeXT, with SigLIP and Qwen2."""
    t = words("<|im_end|>", image_token="<image>", video_token="<video>", start="<|im_start|>")
    config = hf.LlavaOnevisionConfig(
        text_config=text(t, model_type="qwen2"),
        vision_config=VISION | {
            "model_type": "siglip_vision_model", "patch_size": 8, "vision_use_head": False,
        },
        image_token_index=ident(t, "<image>"), video_token_index=ident(t, "<video>"),
        image_grid_pinpoints=TILES, vision_feature_layer=-1, tie_word_embeddings=False,
    )  # fmt: skip
    return ready(hf.LlavaOnevisionForConditionalGeneration(config), t), {
        "kind": "LlavaOnevisionProcessor",
        "image_processor": hf.LlavaOnevisionImageProcessorPil(
            size=SQUARE, image_grid_pinpoints=TILES
        ),
        "tokenizer": t, "num_image_tokens": 4, "vision_feature_select_strategy": "full",
        "chat_template": chatml("<image>\n"),
    }  # fmt: skip


# --- Qwen -----------------------------------------------------------------------------------

QWEN = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
    "start": "<|im_start|>",
}  # fmt: skip


def _qwen(name: str, text_more: dict[str, Any], vision: dict[str, Any]) -> tuple[Any, Any]:
    t = words("<|im_end|>", **QWEN)
    config = getattr(hf, f"{name}Config")(
        text_config=text(t, rope_parameters=ROPE, **text_more),
        vision_config=vision, image_token_id=ident(t, "<|image_pad|>"),
        video_token_id=ident(t, "<|video_pad|>"),
        vision_start_token_id=ident(t, "<|vision_start|>"),
        vision_end_token_id=ident(t, "<|vision_end|>"), tie_word_embeddings=False,
    )  # fmt: skip
    return ready(getattr(hf, f"{name}ForConditionalGeneration")(config), t), {
        "kind": "Qwen3VLProcessor" if name == "Qwen3_5" else f"{name}Processor",
        "image_processor": hf.Qwen2VLImageProcessorPil(
            patch_size=8, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
        ),
        "tokenizer": t, "chat_template": chatml("<|vision_start|><|image_pad|><|vision_end|>"),
    }  # fmt: skip


def qwen2_vl() -> tuple[Any, Any]:
    """4 x 4 patches of 8 pixels, 2 x 2 of which become a token."""
    vision = {
        "depth": 2, "embed_dim": HIDDEN, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2,
        "patch_size": 8,
    }  # fmt: skip
    return _qwen("Qwen2VL", {}, vision)


def qwen2_5_vl() -> tuple[Any, Any]:
    """As Qwen2-VL, with windows."""
    return _qwen("Qwen2_5_VL", {}, QWEN_VISION | {"fullatt_block_indexes": [1], "window_size": 32})


QWEN3_VISION = QWEN_VISION | {"num_position_embeddings": 16}


def qwen3_vl() -> tuple[Any, Any]:
    """As Qwen2-VL; the image goes into several layers."""
    return _qwen("Qwen3VL", {}, QWEN3_VISION | {"deepstack_visual_indexes": [0, 1]})


def qwen3_5() -> tuple[Any, Any]:
    """One layer of two has a single state for all tokens: recurrent."""
    layers = {
        "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
    }  # fmt: skip
    return _qwen("Qwen3_5", layers, QWEN3_VISION | {"deepstack_visual_indexes": []})


# --- InternVL, Idefics3, SmolVLM ------------------------------------------------------------


def internvl() -> tuple[Any, Any]:
    """2 x 2 tiles and the whole, each of 4 x 4 patches that are shuffled into 2 x 2 tokens."""
    t = words(
        "<|im_end|>", start="<|im_start|>", start_image_token="<img>", end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    config = hf.InternVLConfig(
        text_config=text(t, model_type="qwen2"),
        vision_config=VISION | {"image_size": [16, 16], "patch_size": [4, 4]},
        image_token_id=ident(t, "<IMG_CONTEXT>"), downsample_ratio=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    return ready(hf.InternVLForConditionalGeneration(config), t), {
        "kind": "InternVLProcessor",
        "image_processor": hf.GotOcr2ImageProcessorPil(
            size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        "tokenizer": t, "image_seq_length": 4, "chat_template": chatml("<IMG_CONTEXT>\n"),
    }  # fmt: skip


def _huggingface(name: str, **marks: str) -> tuple[Any, Any]:
    t = words("<end_of_utterance>", start="<|im_start|>", **marks)
    config = getattr(hf, f"{name}Config")(
        text_config=text(t, model_type="llama"), vision_config=VISION, scale_factor=2,
        image_token_id=ident(t, "<image>"), pad_token_id=t.pad_token_id,
        tie_word_embeddings=False,
    )  # fmt: skip
    return ready(getattr(hf, f"{name}ForConditionalGeneration")(config), t), {
        "kind": f"{name}Processor",
        "image_processor": getattr(hf, f"{name}ImageProcessorPil")(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
        ),
        "tokenizer": t, "image_seq_len": 4,
        "chat_template": template("<|im_start|>User: ", "<image>", "<end_of_utterance>\n",
                                  "Assistant: "),
    }  # fmt: skip


HF_MARKS = {
    "image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
}  # fmt: skip


def idefics3() -> tuple[Any, Any]:
    """2 x 2 tiles and the whole; 4 tokens each."""
    return _huggingface("Idefics3", **HF_MARKS)


def smolvlm() -> tuple[Any, Any]:
    """As Idefics3; its processor wants videos, too."""
    marks = HF_MARKS | {"end_of_utterance_token": "<end_of_utterance>", "video_token": "<video>"}
    return _huggingface("SmolVLM", **marks)


# --- Gemma ----------------------------------------------------------------------------------


def gemma3() -> tuple[Any, Any]:
    """4 x 4 patches, pooled into 2 x 2 tokens; one layer sees a short window."""
    t = words(
        "<end_of_turn>", boi_token="<start_of_image>", eoi_token="<end_of_image>",
        image_token="<image_soft_token>", turn="<start_of_turn>",
    )  # fmt: skip
    config = hf.Gemma3Config(
        text_config=text(
            t, query_pre_attn_scalar=16, sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
        vision_config=VISION, mm_tokens_per_image=4,
        image_token_id=ident(t, "<image_soft_token>"),
        boi_token_index=ident(t, "<start_of_image>"),
        eoi_token_index=ident(t, "<end_of_image>"), tie_word_embeddings=False,
    )  # fmt: skip
    chat = template("<start_of_turn>user\n", "<start_of_image>", "<end_of_turn>\n",
                    "<start_of_turn>model\n")  # fmt: skip
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessorPil(size=SQUARE), t, chat_template=chat, image_seq_length=4
    )
    return ready(hf.Gemma3ForConditionalGeneration(config), t, 1.0), processor


def paligemma2() -> tuple[Any, Any]:
    """A prompt's tokens see each other both ways; there is no chat template."""
    t = words("<eos>", image_token="<image>", bos_token="<bos>")
    t.bos_token = "<bos>"
    seer = hf.SiglipImageProcessorPil(size=SQUARE)
    seer.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(seer, t)  # it adds marks to the vocabulary
    config = hf.PaliGemmaConfig(
        text_config=text(t, model_type="gemma2", query_pre_attn_scalar=16, sliding_window=512),
        vision_config=VISION | {"model_type": "siglip_vision_model", "projection_dim": HIDDEN},
        projection_dim=HIDDEN, image_token_index=ident(t, "<image>"), tie_word_embeddings=False,
    )  # fmt: skip
    return ready(hf.PaliGemmaForConditionalGeneration(config), t, 1.0), processor


# --- Mistral --------------------------------------------------------------------------------

PIXTRAL = {"image_token": "[IMG]", "break": "[IMG_BREAK]", "last": "[IMG_END]"}
PIXTRAL |= {"open": "[INST]", "close": "[/INST]"}


def _mistral(merge: int) -> tuple[Any, Any]:
    t = words(**PIXTRAL)
    parts = {
        "text_config": text(t, model_type="mistral", sliding_window=None),
        "vision_config": VISION | {"model_type": "pixtral", "head_dim": 16},
        "image_token_index": ident(t, "[IMG]"), "tie_word_embeddings": False,
    }  # fmt: skip
    model: Any
    if merge == 1:
        how = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
        model = hf.LlavaForConditionalGeneration(hf.LlavaConfig(**parts, **how))
    else:
        config = hf.Mistral3Config(**parts, spatial_merge_size=merge)
        model = hf.Mistral3ForConditionalGeneration(config)
    return ready(model, t), {
        "kind": "PixtralProcessor",
        "image_processor": hf.PixtralImageProcessorPil(
            size={"longest_edge": 16}, patch_size={"height": 4, "width": 4}
        ),
        "tokenizer": t, "patch_size": 4, "spatial_merge_size": merge,
        "chat_template": template("[INST]", "[IMG]", "[/INST]", ""),
    }  # fmt: skip


def pixtral() -> tuple[Any, Any]:
    """4 x 4 patches, each a token, with marks between the rows."""
    return _mistral(1)


def mistral3() -> tuple[Any, Any]:
    """2 x 2 patches become a token."""
    return _mistral(2)


FAMILIES = (
    Family("LLaVA-1.5", llava, 16),
    Family("LLaVA-NeXT", llava_next, 4 + 4 * (4 + 1)),
    Family("LLaVA-OneVision", llava_onevision, 4 + 4 * (4 + 1)),
    Family("Qwen2-VL", qwen2_vl, 4, "<|image_pad|>"),
    Family("Qwen2.5-VL", qwen2_5_vl, 4, "<|image_pad|>"),
    Family("Qwen3-VL", qwen3_vl, 4, "<|image_pad|>"),
    Family("InternVL3", internvl, 4 * (2 * 2 + 1), "<IMG_CONTEXT>"),
    Family("Idefics3", idefics3, 4 * (2 * 2 + 1)),
    Family("SmolVLM", smolvlm, 4 * (2 * 2 + 1)),
    Family("Gemma 3", gemma3, 4, "<image_soft_token>"),
    Family("PaliGemma 2", paligemma2, 16, refuses="GRPO"),
    Family("Pixtral", pixtral, 16, "[IMG]"),
    Family("Mistral 3", mistral3, 4, "[IMG]"),
    Family("Qwen3.5", qwen3_5, 4, "<|image_pad|>", refuses="search"),
)


def save(family: Family, folder: Path) -> str:
    """Save a family's model and processor, as its checkpoints are, and return the folder."""
    import json

    model, processor = family.make()
    model.save_pretrained(folder)
    if not isinstance(processor, dict):
        processor.save_pretrained(folder)
        return str(folder)
    # these cannot be made without torchvision, though they can be loaded
    parts = dict(processor)
    kind, seer, tokenizer = (parts.pop(k) for k in ("kind", "image_processor", "tokenizer"))
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(parts.pop("chat_template"))
    saved = {"image_processor": seer.to_dict(), "processor_class": kind, **parts}
    if hasattr(tokenizer, "video_token"):
        name = type(seer).__name__.replace("ImageProcessorPil", "VideoProcessor")
        saved["video_processor"] = {"video_processor_type": name, "fps": 2}
    (folder / "processor_config.json").write_text(json.dumps(saved))
    return str(folder)
