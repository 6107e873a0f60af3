"""The architectures of the small models and the tokenizer that they share, untrained.

`mini-llava` is a `LlavaForConditionalGeneration` (CLIP tower, Llama), `mini-judge` a small text
`LlamaForCausalLM`. Both are ordinary transformers models that load from a folder.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from selfcal.miniworld.build import worlds
from selfcal.miniworld.corrupt import practice_rap
from selfcal.miniworld.draw import SIZE
from selfcal.miniworld.questions import gold_rationale
from selfcal.miniworld.world import facts

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, LlavaForConditionalGeneration
    from transformers.models.llava.processing_llava import LlavaProcessor

PATCH = 16
SPECIAL = ("<pad>", "<image>", "<|user|>", "<|assistant|>", "<|end|>")
_WORDS = (
    "Question: Facts: First: Second: Better: first second neutral true false follows wrong absent "
    "Describe the image. Describe the red bar. Describe the left digit. Describe the top-left. "
    "What is 7 minus 3? Answer briefly. Rationale: Answer: yes no "
)
_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|user|>' if message['role'] == 'user' else '<|assistant|>' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>\n' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}<|end|>"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def build_tokenizer() -> Any:
    """A byte-level BPE tokenizer in which every MiniWorld word is one token; any text encodes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # words with hyphens ("top-left") stay whole; numbers and punctuation stand alone
    words = pre_tokenizers.Split(
        Regex(r" ?[A-Za-z][A-Za-z-]*| ?\d+| ?[^\sA-Za-z\d]|\s"), "isolated"
    )
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|end|>",
        extra_special_tokens={"image_token": "<image>"},
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = _TEMPLATE
    return fast


def _corpus() -> Iterator[str]:
    yield from [_WORDS] * 20
    yield from _WORDS.replace(":", "").replace(".", "").split() * 20  # also at the start of a text
    rng = random.Random(0)
    for _, (world, query, _) in zip(range(3000), worlds("pretrain", 0), strict=False):
        yield query.wording(rng.random() < 0.5)
        yield "Facts: " + facts(world)
        yield practice_rap(query, world, rng)
        yield gold_rationale(query, world)


def build_processor(tokenizer: Any) -> LlavaProcessor:
    """The processor of `mini-llava`: Pillow images in, 9 image tokens each."""
    from transformers import CLIPImageProcessorPil
    from transformers.models.llava.processing_llava import LlavaProcessor

    images = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )


def build_llava(tokenizer: Any) -> LlavaForConditionalGeneration:
    """An untrained `mini-llava` (about 1.6M parameters)."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=128,
    )
    text = LlamaConfig(**_text_config(tokenizer), num_hidden_layers=4)
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            image_seq_length=(SIZE // PATCH) ** 2,
            tie_word_embeddings=True,
        )
    )


def build_judge(tokenizer: Any) -> LlamaForCausalLM:
    """An untrained `mini-judge` (about 1M parameters)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_text_config(tokenizer), num_hidden_layers=4))


def _text_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
