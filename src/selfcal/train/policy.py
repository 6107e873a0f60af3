"""Training of the policy: on responses (SFT), and on preference pairs (DPO with an SFT term)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from selfcal.data import load_image
from selfcal.policy import Policy, load_policy, training_texts
from selfcal.processors import PREFIX_TYPES, ForTraining
from selfcal.recipe import Dpo, Training
from selfcal.train.common import (
    Run,
    Trained,
    TrainingError,
    apart,
    arguments,
    finish,
    lora,
    starting_point,
)
from selfcal.types import Drop, PreferencePair, Sample

T = TypeVar("T")


def sft(model: str, rows: Sequence[tuple[Sample, str]], settings: Training, run: Run) -> Trained:
    """Supervised fine-tuning of a policy on responses; the loss is on the response alone.

    Raises:
        TrainingError: no rows, or the loss became NaN or infinite.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    policy = starting_point(model, settings, run)
    asked, marked = _unmarked(policy, rows, lambda text: (text,), "rft")
    long = lengths(policy, [(s, (text,)) for s, text in asked])
    kept, drops = fitting(asked, long, settings.max_length, "rft", marked)
    data = Dataset.from_list(
        [{"images": list(s.images), **_texts(policy, s, completion=text)} for s, text in kept]
    )
    args = SFTConfig(**arguments(settings, run, len(kept)))
    return tune(SFTTrainer, policy, data, args, settings, run, drops)


def dpo(
    model: str,
    pairs: Sequence[tuple[Sample, PreferencePair]],
    settings: Dpo,
    run: Run,
) -> Trained:
    """Direct preference optimization with an SFT term on the chosen response (RPO).

    `loss = -log sigmoid(beta * (chosen - rejected log-ratio)) + sft_weight * NLL(chosen)`; the
    reference policy is `model` itself (SRC, stage 4). With the rejected response the model sees the
    pair's `rejected_image`, a path that can be opened, where there is one (POVID).

    Raises:
        TrainingError: no pairs, or the loss became NaN or infinite.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy = starting_point(model, settings, run)
    asked, marked = _unmarked(policy, pairs, lambda p: (p.chosen, p.rejected), "dpo")
    long = _pair_lengths(policy, asked)
    kept, drops = fitting(asked, long, settings.max_length, "dpo", marked)
    spoiled = any(p.rejected_image for _, p in kept)
    data = Dataset.from_list(
        [
            {
                "images": list(s.images),
                **_texts(policy, s, chosen=p.chosen, rejected=p.rejected),
            }
            | ({_REJECTED_IMAGES: [p.rejected_image or s.image, *s.more_images]} if spoiled else {})
            for s, p in kept
        ]
    )
    losses, weights = ["sigmoid"], [1.0]
    if settings.sft_weight > 0:
        losses, weights = ["sigmoid", "sft"], [1.0, settings.sft_weight]
    args = DPOConfig(
        **arguments(settings, run, len(kept)),
        beta=settings.beta,
        loss_type=losses,
        loss_weights=weights,
        remove_unused_columns=not spoiled,  # TRL does not know the rejected images
    )
    return tune(DPOTrainer, policy, data, args, settings, run, drops)


def _texts(policy: Policy, sample: Sample, **responses: str) -> dict[str, str]:
    """A row's prompt and responses, as plain text.

    Where a chat template opens a thought, TRL's own use of it gives other prompts than inference.
    """
    prompt, texts = training_texts(policy.processor, sample, list(responses.values()))
    return {"prompt": prompt, **dict(zip(responses, texts, strict=True))}


def tune(
    trainer: Any,
    policy: Policy,
    data: Any,
    args: Any,
    settings: Training,
    run: Run,
    drops: Sequence[Drop],
) -> Trained:
    """Train a policy by one of TRL's trainers; images are read when a batch needs them."""
    from transformers import set_seed

    known = policy.model.config.model_type
    spoiled = _REJECTED_IMAGES in data.column_names
    data = data.with_transform(_opened)
    set_seed(run.seed)  # PEFT draws the adapter's weights before TRL seeds anything
    made = trainer(
        model=policy.model,
        args=args,
        processing_class=policy.processor,
        train_dataset=data,
        peft_config=lora(settings, policy.model),
    )
    if hasattr(made.data_collator, "processor"):
        reader = ForTraining(policy.processor, PREFIX_TYPES.get(known, 0))
        made.data_collator = replace(made.data_collator, processor=reader)
    if spoiled:  # only now, since TRL sets up the padding where it makes the collator itself
        made.data_collator = _RejectedImages(made.data_collator)
    return finish(made, policy.processor, run, len(data), drops, _whole(policy, settings, run))


def _opened(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Rows with their images as inference reads them: white behind transparent parts, 16 bits."""
    paths = {k: v for k, v in rows.items() if k in ("images", _REJECTED_IMAGES)}
    return rows | {k: [[load_image(Path(i)) for i in own] for own in v] for k, v in paths.items()}


def _whole(policy: Policy, settings: Training, run: Run) -> Callable[[], Any] | None:
    """What loads the model that a training started from; None: it is whole in memory."""
    if not apart(settings):
        return None
    name, trusted = policy.model.name_or_path, run.trust_remote_code
    return lambda: load_policy(name, run.dtype, "cpu", trusted, None, run.chat_template).model


_REJECTED_IMAGES = "rejected_images"


@dataclass(frozen=True, slots=True)
class _RejectedImages:
    """TRL's collator of pairs, with other images for the rejected responses.

    TRL's own asks the processor for all chosen and then all rejected prompts, with the same images
    twice. Here the second half gets its own, and so as many image tokens as these have.
    """

    collator: Any

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        rejected = [example.pop(_REJECTED_IMAGES) for example in examples]
        return replace(self.collator, processor=_Shown(self.collator.processor, rejected))(examples)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A processor that sees other images in the second half of its prompts."""

    processor: Any
    second_half: list[Any]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)

    def __call__(self, **asked: Any) -> Any:
        if images := asked.get("images"):
            n = len(self.second_half)
            if len(images) != 2 * n:
                raise TrainingError(
                    f"dpo: TRL asked for {len(images)} images for {n} pairs with rejected images; "
                    "use a version of it that pyproject.toml names"
                )
            asked["images"] = [*images[:n], *self.second_half]
        return self.processor(**asked)


def lengths(policy: Policy, rows: Sequence[tuple[Sample, tuple[str, ...]]]) -> list[int]:
    """Tokens of each row's prompt, image tokens included, and of its longest response, if any."""
    found = []
    for i in range(0, len(rows), 64):
        part = rows[i : i + 64]
        prompts = policy.encode([s for s, _ in part])["attention_mask"].sum(dim=1).tolist()
        for (_, texts), prompt in zip(part, prompts, strict=True):
            own = [policy.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
            found.append(int(prompt) + max(map(len, own), default=-1) + 1)
    return found


def _pair_lengths(policy: Policy, pairs: Sequence[tuple[Sample, PreferencePair]]) -> list[int]:
    """Tokens of the longer half of each pair."""
    found = lengths(policy, [(s, (p.chosen, p.rejected)) for s, p in pairs])
    halves = {
        i: (replace(s, image=p.rejected_image), (p.rejected,))
        for i, (s, p) in enumerate(pairs)
        if p.rejected_image
    }
    for i, length in zip(halves, lengths(policy, list(halves.values())), strict=True):
        found[i] = max(found[i], length)
    return found


def _unmarked(
    policy: Policy,
    rows: Sequence[tuple[Sample, T]],
    texts: Callable[[T], tuple[str, ...]],
    stage: str,
) -> tuple[list[tuple[Sample, T]], list[Drop]]:
    """The rows whose responses have no image's mark: the model would look for one more image."""
    mark = getattr(policy.processor, "image_token", None)
    if not mark:
        return list(rows), []
    marked = [any(mark in text for text in texts(own)) for _, own in rows]
    kept = [row for row, found in zip(rows, marked, strict=True) if not found]
    left = [s for (s, _), found in zip(rows, marked, strict=True) if found]
    return kept, [Drop(s.id, stage, "image-mark-in-response", mark) for s in left]


def fitting(
    rows: Sequence[tuple[Sample, T]],
    lengths: Sequence[int],
    limit: int,
    stage: str,
    before: Sequence[Drop] = (),
) -> tuple[list[tuple[Sample, T]], list[Drop]]:
    """The rows that fit the limit, and the drops, those of `before` included."""
    kept, drops = [], list(before)
    for row, length in zip(rows, lengths, strict=True):
        if length > limit:
            drops.append(Drop(row[0].id, stage, "overlong", f"{length} tokens > {limit}"))
        else:
            kept.append(row)
    if not rows and before:
        raise TrainingError(
            f"{stage}: nothing to train on: all {len(before)} responses spell an image's mark "
            f"({before[0].detail}), which the model would take for an image; change who writes them"
        )
    if not rows:
        raise TrainingError(
            f"{stage}: nothing to train on: the stage before it gave nothing, and `selfcal status` "
            "counts why; loosen its filters (such as curate.margin), or give it more samples"
        )
    if not kept:
        raise TrainingError(
            f"{stage}: nothing to train on ({len(drops)} of {len(rows)} rows longer than "
            f"max_length {limit}); raise max_length, or give the stage before it more samples"
        )
    return kept, drops
