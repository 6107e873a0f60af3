"""Prompts to tensors, by real processors of several families: every prompt keeps its own image."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)

from selfcal.miniworld.models import build_processor, build_tokenizer
from selfcal.policy import Policy, Prompt, user_turn
from selfcal.types import Sample

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}\nassistant:{% endif %}"
)


def tokenizer(**special: str) -> Any:
    """Every byte is a token, and so are these special words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", extra_special_tokens=special
    )


def llava() -> Any:
    return build_processor(build_tokenizer())


def gemma3() -> Any:
    """An image is 4 tokens between two marks."""
    words = tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<img>")
    return Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 16, "width": 16}),
        words,
        chat_template=TEMPLATE.replace("IMAGE", "<boi>"),
        image_seq_length=4,
    )


def idefics3() -> Any:
    """SmolVLM's elder: 16 x 16 tiles of 2 tokens each, as many as the image's shape asks for."""
    return Idefics3Processor(
        Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
        tokenizer(image_token="<image>"),
        image_seq_len=2,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )


@pytest.fixture(scope="module", params=[llava, gemma3, idefics3], ids=lambda f: f.__name__)
def policy(request: pytest.FixtureRequest) -> Policy:
    make: Callable[[], Any] = request.param
    return Policy(SimpleNamespace(dtype=torch.float32), make(), "cpu")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Two questions of different length about images of different shape."""
    folder: Path = tmp_path_factory.mktemp("images")
    rng = random.Random(0)
    made = []
    for name, size in [("wide", (64, 32)), ("square", (48, 48))]:
        image = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
        image.save(folder / f"{name}.png")
        question = "How many bars are there?" if name == "wide" else "Why?"
        made.append(Sample(name, str(folder / f"{name}.png"), question, ""))
    return made


def placeholders(policy: Policy, prompt: Prompt) -> int:
    """Tokens that one image of this shape takes, by hand."""
    kind = type(policy.processor).__name__
    if kind == "Idefics3Processor":
        # 64 x 32 becomes 32 x 16: 2 tiles and the whole; 48 x 48 becomes 32 x 32: 4 and the whole
        return 2 * {(64, 32): 2 + 1, (48, 48): 4 + 1}[prompt.size[0]]
    # LLaVA: 48 / 16 = 3 patches a side
    return {"Gemma3Processor": 4, "LlavaProcessor": 3 * 3}[kind]


def image_id(policy: Policy) -> int:
    word = "<img>" if type(policy.processor).__name__ == "Gemma3Processor" else "<image>"
    return int(policy.tokenizer.convert_tokens_to_ids(word))


def test_every_prompt_of_a_batch_has_its_own_image(policy: Policy, asked: list[Sample]) -> None:
    prompts = [policy.prompt(s) for s in asked]
    batch = policy.encode_prompts(prompts)
    for ids, prompt in zip(batch["input_ids"], prompts, strict=True):
        assert int((ids == image_id(policy)).sum()) == placeholders(policy, prompt)
    assert len(batch["pixel_values"]) == 2
    first, second = batch["pixel_values"]
    assert not torch.equal(first, second)


def test_a_batch_is_its_prompts_encoded_alone_and_padded_on_the_left(
    policy: Policy, asked: list[Sample]
) -> None:
    prompts = [policy.prompt(s) for s in asked]
    batch = policy.encode_prompts(prompts)
    width = batch["input_ids"].shape[1]
    alone = [policy.encode_prompts([p]) for p in prompts]
    assert len({len(one["input_ids"][0]) for one in alone}) == 2
    assert max(len(one["input_ids"][0]) for one in alone) == width
    for row, one in enumerate(alone):
        assert one.keys() == batch.keys()
        for name, (own,) in one.items():
            found = batch[name][row]
            if own.ndim == 1:  # tokens
                start = width - len(own)
                assert torch.equal(found[start:], own), name
                pad = policy.pad_id if name == "input_ids" else 0
                assert (found[:start] == pad).all(), name
            else:  # images; tiles that only the other has are empty
                assert torch.equal(found[: len(own)], own), name
                assert not found[len(own) :].any(), name


def test_marks_that_do_not_fit_leave_the_lines_of_the_options() -> None:
    sample = Sample("s", "a.png", "Which <image> ?", "x", choices=("<image>", "x <image>", "y"))
    ((image, text),) = [turn["content"] for turn in user_turn(sample)]
    assert image == {"type": "image"}
    assert [line.strip() for line in text["text"].splitlines()] == [
        "Which ?", "Options:", "A.", "B. x", "C. y",
    ]  # fmt: skip


def test_the_order_of_prompts_is_that_of_the_rows(policy: Policy, asked: list[Sample]) -> None:
    there, back = policy.encode(asked), policy.encode(asked[::-1])
    for name in there:
        assert torch.equal(there[name].flip(0), back[name]), name


def test_one_image_for_two_prompts(policy: Policy, asked: list[Sample]) -> None:
    twice = [asked[0], replace(asked[0], id="again", question="Why, and how?")]
    batch = policy.encode_prompts([policy.prompt(s) for s in twice])
    first, second = batch["pixel_values"]
    assert torch.equal(first, second)
    assert not torch.equal(batch["input_ids"][0], batch["input_ids"][1])


def test_the_prompt_reads_as_the_template_writes_it(policy: Policy, asked: list[Sample]) -> None:
    prompt = policy.prompt(asked[0])
    assert asked[0].question in prompt.text
    assert prompt.tokens == len(policy.tokenizer(prompt.text, add_special_tokens=False).input_ids)
    (ids,) = policy.encode_prompts([prompt])["input_ids"]
    read = policy.tokenizer.decode(ids[ids != image_id(policy)], skip_special_tokens=True)
    assert asked[0].question in read
