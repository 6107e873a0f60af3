"""A model on this machine that is asked as a server is: messages in, replies out.

Whoever asks does so from several threads, one question each. What waits is answered as one batch,
by the thread that finds the batch full, or finds that nobody has come for a moment. A reply is
decided by its own conversation: sampling has random numbers of its own for each.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Condition, Lock
from typing import TYPE_CHECKING, Any

from selfcal.chat import ChatError, Message
from selfcal.clock import spent
from selfcal.image import opened
from selfcal.judge.asking import Chat
from selfcal.memory import attempt, note
from selfcal.policy import NOT_LOADED, ModelError, Policy, Prompt, load_policy, model_path
from selfcal.policy import pick_device as _device

if TYPE_CHECKING:
    import torch
    from PIL import Image

LINGER_S = 0.1
"""How long a batch that is not full waits for more questions."""


@dataclass(frozen=True, slots=True)
class Running:
    """How a local model is run."""

    dtype: str = "bfloat16"
    device: str = "auto"
    batch_size: int = 8
    """Questions answered at once, at most."""
    max_tokens: int = 1024
    """Longest reply."""
    temperature: float = 0.0
    """0 is greedy."""
    seed: int = 0
    """Of sampled replies, with the conversation."""


@dataclass(eq=False)
class _Question:
    """A conversation that waits for its reply."""

    prompt: Prompt
    seed: int
    reply: str | None = None
    error: BaseException | None = None


@dataclass
class _Waiting:
    questions: list[_Question] = field(default_factory=list)
    since: float = 0.0
    """When the last one came."""
    at_work: bool = False


class LocalModel:
    """A vision-language model, or a language model for text alone; threads may share it."""

    def __init__(self, name: str, how: Running) -> None:
        """Name it: a folder, a hub name or `miniworld:NAME`; it is loaded at the first question."""
        self._name, self._how = name, how
        self._waiting, self._change = _Waiting(), Condition()
        self._one = Lock()  # for loading, and for the tokenizer, which must not serve two threads

    def ask(self, messages: Sequence[Message]) -> str:
        """The model's reply to a conversation of one turn, without thoughts; it may be empty.

        Raises:
            ChatError: the prompt is too long for the model, or memory for a single one too small.
            ModelError: the model cannot be loaded, or shows no images and is to see some.
        """
        question = self._question(messages)
        with self._change:
            self._waiting.questions.append(question)
            self._waiting.since = time.monotonic()
            self._change.notify_all()
            while question.reply is None and question.error is None:
                if batch := self._due():
                    self._change.release()
                    try:
                        self._answer(batch)
                    finally:
                        self._change.acquire()
                        self._waiting.at_work = False
                        self._change.notify_all()
                else:
                    self._change.wait(None if self._waiting.at_work else LINGER_S)
        if question.error is not None:
            raise question.error
        return question.reply or ""

    def _due(self) -> list[_Question]:
        """The next batch, if it is time for one and nobody is at work."""
        w, size = self._waiting, self._how.batch_size
        late = time.monotonic() - w.since >= LINGER_S
        if w.at_work or not w.questions or (len(w.questions) < size and not late):
            return []
        batch, w.questions = w.questions[:size], w.questions[size:]
        w.at_work = True
        return batch

    def _answer(self, batch: list[_Question]) -> None:
        """Reply to each; the order of rows is that of the prompts, not that of the threads."""
        try:
            for seeing in (True, False):  # in a batch, all have images or none has
                part = [q for q in batch if bool(q.prompt.images) == seeing]
                self._answer_alike(sorted(part, key=lambda q: (q.prompt.text, q.seed)))
        except BaseException as error:
            for question in batch:
                question.error = error if question.reply is None else None
            if not isinstance(error, Exception):
                raise

    def _answer_alike(self, batch: list[_Question]) -> None:
        """Reply to questions at once; by halves if memory runs out."""
        if not batch:
            return
        replies, said = attempt(lambda: self._generate(batch))
        if replies is not None:
            for question, reply in zip(batch, replies, strict=True):
                question.reply = reply
        elif len(batch) == 1:
            raise ChatError(
                f"{self._name}: memory is too small for one question ({said}); take a smaller "
                "model, fewer max_tokens or smaller images"
            )
        else:
            note(f"{self._name} ran out of memory: it goes on with smaller batches (batch_size)")
            half = len(batch) // 2
            self._answer_alike(batch[:half])
            self._answer_alike(batch[half:])

    def _generate(self, batch: Sequence[_Question]) -> list[str]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        model, how = self._model, self._how
        config = GenerationConfig(
            max_new_tokens=how.max_tokens, do_sample=False,
            eos_token_id=sorted(model.stop_ids), pad_token_id=model.pad_id,
        )  # fmt: skip
        seeds = [q.seed for q in batch]
        draws = [_Draws(how.temperature, seeds)] if how.temperature > 0 else []
        with self._one:
            inputs = model.place(self._encoded([q.prompt for q in batch]))
        with torch.inference_mode(), spent("model"):
            found = model.model.generate(
                **inputs, generation_config=config, logits_processor=LogitsProcessorList(draws)
            )
        said = found[:, inputs["input_ids"].shape[1] :]
        with self._one:
            texts = model.tokenizer.batch_decode(said, skip_special_tokens=True)
        return [text.rpartition("</think>")[2].strip() for text in texts]

    def _encoded(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        if prompts[0].images:
            return self._model.encode_prompts(prompts)
        batch = self._model.tokenizer(
            [p.text for p in prompts], padding=True, padding_side="left", return_tensors="pt",
            add_special_tokens=False, return_token_type_ids=False,
        )  # fmt: skip
        return dict(batch)

    # --- what is asked ----------------------------------------------------------------------

    def _question(self, messages: Sequence[Message]) -> _Question:
        with self._one:
            text, urls = _flat(messages)
            if urls and not self._sees:
                raise ModelError(
                    f"{self._name}: is a model for text alone, and is to see an image; take a "
                    "vision-language model"
                )
            prompt = self._chat.prompt(text, len(urls))
            tokens = len(self._model.tokenizer(prompt, add_special_tokens=False)["input_ids"])
            limit = int(
                getattr(self._model.model.config.get_text_config(), "max_position_embeddings", 0)
                or 2**30
            )
            if tokens + self._how.max_tokens > limit:
                raise ChatError(
                    f"{self._name}: a prompt of {tokens} tokens and a reply of up to "
                    f"{self._how.max_tokens} are more than the model takes ({limit}); set "
                    "max_tokens lower, or take a model with a longer context"
                )
        key = json.dumps([self._how.seed, list(messages)], sort_keys=True).encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:7], "big")
        return _Question(Prompt(tuple(map(_image, urls)), prompt, tokens), seed)

    @cached_property
    def _chat(self) -> Chat:
        writer = self._model.processor if self._sees else self._model.tokenizer
        return Chat(self._name, writer, sees=self._sees)

    @cached_property
    def _sees(self) -> bool:
        """Whether it is a vision-language model."""
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        )

        try:
            config = AutoConfig.from_pretrained(model_path(self._name), trust_remote_code=False)
        except NOT_LOADED as error:
            raise _unfit(self._name, error) from error
        return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    @cached_property
    def _model(self) -> Policy:
        if self._sees:
            return load_policy(self._name, self._how.dtype, self._how.device)
        return _text_model(self._name, self._how)


def _text_model(name: str, how: Running) -> Policy:
    """A causal language model, with its tokenizer in the place of a processor."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with spent("disk"):
            path = model_path(name)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=how.dtype, trust_remote_code=False
            )
    except NOT_LOADED as error:
        raise _unfit(name, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = _device(how.device)
    return Policy(model.to(device).eval(), _TextOnly(tokenizer), device)


@dataclass(frozen=True)
class _TextOnly:
    """A tokenizer where a processor is looked for."""

    tokenizer: Any


class _Draws:
    """Makes the greedy choice a draw at a temperature (the Gumbel-max trick), row by row.

    Each row has a generator of its own, so that no draw depends on what else is in the batch.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        import torch

        self._temperature = temperature
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        rows = [torch.rand(scores.shape[1], generator=g) for g in self._generators]
        uniform = torch.stack(rows).to(scores.device).clamp(1e-20, 1 - 1e-7)
        return scores.float() / self._temperature - torch.log(-torch.log(uniform))


def _flat(messages: Sequence[Message]) -> tuple[str, list[str]]:
    """The text of a conversation of one turn, and its images; those amid text are named there."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content, []
    parts: Any = content
    urls = [part["image_url"]["url"] for part in parts if "image_url" in part]
    leading = all("image_url" in part for part in parts[: len(urls)])
    text, number = "", 0
    for part in parts:
        if "image_url" in part:
            number += 1
            text += "" if leading else f"[image {number}]"
        else:
            text += part["text"]
    return text, urls


def _image(url: str) -> Image.Image:
    """The picture in a data URL that `user_message` wrote."""
    with opened(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return image.convert("RGB")


def _unfit(name: str, error: Exception) -> ModelError:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ModelError(
        f"{name}: cannot be loaded as a language model ({first}); give a folder with model and "
        "tokenizer, or a hub name"
    )
