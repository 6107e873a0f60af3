"""Training by TRL and PEFT: records in, a merged checkpoint out.

Every training starts from a *merged* checkpoint and ends in one, so the reference policy of DPO
("adapters off") is exactly the policy that training starts from, never an older base model. Rows
that are too long are left out and counted: nothing is ever truncated, so no image token is lost.
Weights are written as safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcal.clock import spent
from selfcal.errors import SelfcalError
from selfcal.judge.scorer import PromptWriter
from selfcal.policy import Policy, load_policy, model_path, pick_device, prompt_text, user_turn
from selfcal.recipe import Dpo, Training
from selfcal.types import Drop, LabelledPair, PreferencePair, Sample, Verdict

if TYPE_CHECKING:
    from peft import LoraConfig

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


class TrainingError(SelfcalError):
    """A training cannot start, or went wrong; the checkpoint it started from is untouched."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training did."""

    steps: int
    rows: int
    drops: tuple[Drop, ...]
    curve: tuple[dict[str, float], ...]
    """What TRL logged: loss, and for DPO the implicit rewards' margins and accuracies."""


@dataclass(frozen=True, slots=True)
class Run:
    """Where and how a training runs, apart from its settings."""

    out: Path
    """Folder that gets `checkpoint/` (merged), `adapter/` and TRL's own files."""
    seed: int
    device: str = "auto"
    dtype: str = "float32"
    progress: Progress = lambda done, total: None


def sft(model: str, rows: Sequence[tuple[Sample, str]], settings: Training, run: Run) -> Trained:
    """Supervised fine-tuning of a policy on responses; the loss is on the response alone.

    Raises:
        TrainingError: no rows, or the loss became NaN or infinite.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    policy = load_policy(model, run.dtype, run.device)
    kept, drops = _fitting(policy, [(s, (text,)) for s, text in rows], settings.max_length, "rft")
    data = Dataset.from_list(
        [
            {"images": [s.image], "prompt": user_turn(s.question), "completion": _turn(text)}
            for s, (text,) in kept
        ]
    )
    args = SFTConfig(**_arguments(settings, run, len(kept)))
    return _tune(SFTTrainer, policy, data, args, settings, run, drops)


def dpo(
    model: str,
    pairs: Sequence[tuple[Sample, PreferencePair]],
    settings: Dpo,
    run: Run,
) -> Trained:
    """Direct preference optimization with an SFT term on the chosen response (RPO).

    `loss = -log sigmoid(beta * (chosen - rejected log-ratio)) + sft_weight * NLL(chosen)`; the
    reference policy is `model` itself (SRC, stage 4).

    Raises:
        TrainingError: no pairs, or the loss became NaN or infinite.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy = load_policy(model, run.dtype, run.device)
    texts = [(s, (p.chosen, p.rejected)) for s, p in pairs]
    kept, drops = _fitting(policy, texts, settings.max_length, "dpo")
    data = Dataset.from_list(
        [
            {
                "images": [s.image],
                "prompt": user_turn(s.question),
                "chosen": _turn(chosen),
                "rejected": _turn(rejected),
            }
            for s, (chosen, rejected) in kept
        ]
    )
    losses, weights = ["sigmoid"], [1.0]
    if settings.sft_weight > 0:
        losses, weights = ["sigmoid", "sft"], [1.0, settings.sft_weight]
    args = DPOConfig(
        **_arguments(settings, run, len(kept)),
        beta=settings.beta,
        loss_type=losses,
        loss_weights=weights,
    )
    return _tune(DPOTrainer, policy, data, args, settings, run, drops)


def train_judge(
    model: str,
    pairs: Sequence[LabelledPair],
    settings: Training,
    prompt: str | None,
    run: Run,
) -> Trained:
    """Fine-tune a text model to give the labelled verdicts (the R-Scorer).

    Every pair is learned in both orders, so that the judge cannot profit from the order.

    Raises:
        TrainingError: no pairs, or the loss became NaN or infinite.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import SFTConfig, SFTTrainer

    tokenizer: Any = AutoTokenizer.from_pretrained(model_path(model))
    network = AutoModelForCausalLM.from_pretrained(model_path(model), dtype=run.dtype)
    network.to(pick_device(run.device))
    writer = PromptWriter(prompt)
    rows, drops = [], []
    for pair in [p for own in pairs for p in (own, _swapped(own))]:
        text = writer.write(pair.question, pair.facts, pair.first, pair.second)
        turn = [{"role": "user", "content": text}]
        full = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        if len(tokenizer(full, add_special_tokens=False)["input_ids"]) >= settings.max_length:
            drops.append(Drop(pair.sample_id, "judge", "overlong"))
        else:
            rows.append({"prompt": full, "completion": pair.verdict})
    if not rows:
        raise TrainingError(
            f"judge: none of {len(pairs)} labelled pairs can be used; raise judge.samples or "
            "judge.train.max_length"
        )
    set_seed(run.seed)
    trainer = SFTTrainer(
        model=network,
        args=SFTConfig(**_arguments(settings, run, len(rows))),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        peft_config=_lora(settings, sees=False),
    )
    return _finish(trainer, tokenizer, run, len(rows), drops)


_SWAP: dict[Verdict, Verdict] = {"first": "second", "second": "first", "neutral": "neutral"}


def _swapped(pair: LabelledPair) -> LabelledPair:
    return LabelledPair(
        pair.sample_id, pair.question, pair.facts, pair.second, pair.first, _SWAP[pair.verdict]
    )


def _turn(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def _tune(
    trainer: Any,
    policy: Policy,
    data: Any,
    args: Any,
    settings: Training,
    run: Run,
    drops: Sequence[Drop],
) -> Trained:
    """Train a policy by one of TRL's trainers; images are read when a batch needs them."""
    from datasets import Image, List
    from transformers import set_seed

    set_seed(run.seed)  # PEFT draws the adapter's weights before TRL seeds anything
    made = trainer(
        model=policy.model,
        args=args,
        processing_class=policy.processor,
        train_dataset=data.cast_column("images", List(Image(mode="RGB"))),
        peft_config=_lora(settings),
    )
    return _finish(made, policy.processor, run, len(data), drops)


def _fitting(
    policy: Policy, rows: Sequence[tuple[Sample, tuple[str, ...]]], limit: int, stage: str
) -> tuple[list[tuple[Sample, tuple[str, ...]]], list[Drop]]:
    """The rows whose prompt, image tokens included, and longest response fit the limit."""
    kept, drops = [], []
    for i in range(0, len(rows), 64):
        part = rows[i : i + 64]
        prompts = policy.encode([s for s, _ in part])["attention_mask"].sum(dim=1).tolist()
        for (sample, texts), prompt in zip(part, prompts, strict=True):
            own = policy.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
            length = int(prompt) + max(map(len, own)) + 1
            if length > limit:
                drops.append(Drop(sample.id, stage, "overlong", f"{length} tokens > {limit}"))
            else:
                kept.append((sample, texts))
    if not kept:
        raise TrainingError(
            f"{stage}: nothing to train on ({len(drops)} of {len(rows)} rows longer than "
            f"max_length {limit}); raise max_length, or give the stage before it more samples"
        )
    return kept, drops


def _lora(settings: Training, sees: bool = True) -> LoraConfig | None:
    if settings.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules="all-linear",
        # reasoning is calibrated, not sight: the vision tower and its projector stay as they are
        exclude_modules=r".*(vision|visual|projector|multi_modal).*" if sees else None,
        task_type="CAUSAL_LM",
    )


def _arguments(settings: Training, run: Run, rows: int) -> dict[str, Any]:
    """TRL's arguments, the same for every kind of training."""
    limit = min(settings.micro_batch_size or settings.batch_size, settings.batch_size)
    # the largest that divides the batch, so that a step takes exactly `batch_size` samples
    micro = next(n for n in range(limit, 0, -1) if settings.batch_size % n == 0)
    steps = settings.steps or max(1, math.ceil(rows / settings.batch_size * settings.epochs))
    return {
        "output_dir": str(run.out / "trl"),
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch_size // micro,
        "max_steps": steps,
        "lr_scheduler_type": settings.scheduler,
        "warmup_steps": math.ceil(steps * settings.warmup),
        "max_length": None,  # checked before: TRL would cut, image tokens included
        "activation_checkpointing": settings.gradient_checkpointing,
        "bf16": run.dtype == "bfloat16",
        "use_cpu": pick_device(run.device) == "cpu",
        "seed": run.seed,
        "data_seed": run.seed,
        "logging_steps": max(1, steps // 20),
        "logging_nan_inf_filter": False,  # it hides a NaN behind the mean of the losses before
        "save_strategy": "steps" if settings.save_steps else "no",
        "save_steps": settings.save_steps or 500,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _finish(trainer: Any, processor: Any, run: Run, rows: int, drops: Sequence[Drop]) -> Trained:
    """Train (resuming from TRL's last checkpoint), check, merge and save."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_watch(run))
    with spent("training"):
        outcome = trainer.train(resume_from_checkpoint=_last_checkpoint(run.out / "trl"))
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not all(p.isfinite().all() for p in model.parameters()):
        raise _diverged(run, "the weights became NaN or infinite")
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(run.out / "adapter")
        model = model.merge_and_unload()
    model.save_pretrained(run.out / "checkpoint")
    processor.save_pretrained(run.out / "checkpoint")
    curve = tuple(
        {k: float(v) for k, v in row.items() if isinstance(v, int | float)}
        for row in trainer.state.log_history
        if "loss" in row
    )
    return Trained(int(outcome.global_step), rows, tuple(drops), curve)


def _last_checkpoint(trl: Path) -> str | None:
    """TRL's last complete checkpoint; one that a killed training left half written is passed over.

    The trainer's state is the last file that it writes.
    """
    found = [p.parent for p in trl.glob("checkpoint-*/trainer_state.json")]
    newest = max(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), default=None)
    return None if newest is None else str(newest)


def _diverged(run: Run, what: str) -> TrainingError:
    return TrainingError(
        f"{run.out.name}: {what}; lower the learning rate. "
        "The checkpoint that training started from is kept."
    )


def _watch(run: Run) -> Any:
    """A callback that tells how training gets on, and ends one that has diverged."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            run.progress(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            loss = (logs or {}).get("loss", 0.0)
            if not math.isfinite(loss):
                raise _diverged(run, f"the loss became {loss} by step {state.global_step}")

    return Watch()


__all__ = ["Run", "Trained", "TrainingError", "dpo", "prompt_text", "sft", "train_judge"]
