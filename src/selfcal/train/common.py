"""What all trainings share: where they run, TRL's arguments, the adapter, and the end."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcal.clock import spent
from selfcal.errors import SelfcalError
from selfcal.policy import ModelError, Policy, load_policy, pick_device
from selfcal.recipe import Training, read_configuration
from selfcal.tracking import Tracked, followed
from selfcal.types import Drop

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
    attention: str | None = None
    chat_template: str | None = None
    trust_remote_code: bool = False
    tracked: Tracked | None = None
    """Where the training's figures are sent; its line is named by the folder, within the run."""


def four_bit(settings: Training) -> bool:
    """Whether the frozen weights are held in 4 bits while the adapter trains (QLoRA)."""
    return settings.lora is not None and settings.lora.four_bit


def apart(settings: Training) -> bool:
    """Whether what is in memory while it trains are not the weights: rounded, or spread."""
    return four_bit(settings) or bool(settings.deepspeed or settings.fsdp)


def starting_point(model: str, settings: Training, run: Run) -> Policy:
    """The policy that a training starts from, held in memory as the settings say.

    Raises:
        ModelError: it cannot be loaded, or not that way.
    """
    return load_policy(
        model, run.dtype, run.device, run.trust_remote_code, run.attention, run.chat_template,
        four_bit(settings),
    )  # fmt: skip


_SEES = re.compile(r"(?:^|\.)(?:vision_model|vision_tower|visual|image_encoder)(?:\.|$)")
"""Names of modules that see: transformers' decoder of some models is all that is not the head."""


def _inside(module: Any) -> Iterable[tuple[str, Any]]:
    return (m for m in module.named_modules() if m[0])


def language_part(model: Any) -> str:
    """Name of the module that is a model's language model, as transformers knows it.

    Raises:
        ModelError: there is none inside it, so that it cannot be told from the part that sees.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    for name, module in model.named_modules():
        if name and module is decoder and not any(_SEES.search(n) for n, _ in _inside(module)):
            return str(name)
    raise ModelError(
        f"{type(model).__name__}: its language model cannot be told from the rest, so that an "
        "adapter would change what it sees as well; set `lora: null` to train all weights, or take "
        "a model whose class has get_decoder()"
    )


def lora(settings: Training, model: Any) -> LoraConfig | None:
    """The adapter on a model's language model, whether it sees or not."""
    if settings.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules="all-linear",
        # reasoning is calibrated, not sight: the vision tower and its projector stay as they are
        exclude_modules=rf"(?!{re.escape(language_part(model))}\.).*",
        task_type="CAUSAL_LM",
    )


def arguments(settings: Training, run: Run, rows: int) -> dict[str, Any]:
    """TRL's arguments, the same for every kind of training."""
    if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:  # each would take a whole batch
        raise TrainingError(
            f"{run.out.name}: {ranks} processes were started, and a training is one; start selfcal "
            "by itself, without torchrun or accelerate launch"
        )
    limit = min(settings.micro_batch_size or settings.batch_size, settings.batch_size)
    # the largest that divides the batch, so that a step takes exactly `batch_size` samples
    micro = next(n for n in range(limit, 0, -1) if settings.batch_size % n == 0)
    steps = settings.steps_for(rows)
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
        **_report(run.tracked),
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    } | _memory(settings, run)


def _report(tracked: Tracked | None) -> dict[str, Any]:
    """To whom TRL reports."""
    if tracked is None:
        return {"report_to": "none"}
    # else each training that is sent to a Space would end in a Space of its own
    alone = {"trackio_static_space_id": False} if tracked.kind == "trackio" else {}
    return {"report_to": tracked.kind, **alone}


def _memory(settings: Training, run: Run) -> dict[str, Any]:
    """The arguments by which a training takes less memory, checked.

    Raises:
        TrainingError: a package is missing, or there is no GPU for it.
        RecipeError: a configuration file cannot be used.
    """
    from transformers.training_args import OptimizerNames

    names = sorted(o.value for o in OptimizerNames)
    if settings.optimizer not in names:
        raise _unusable(run, "optimizer", f"{settings.optimizer} is unknown; take one of {names}")
    if re.search("8bit|bnb|paged|4bit", settings.optimizer):
        _needs(run, "optimizer", "bitsandbytes")
    chosen: dict[str, Any] = {"optim": settings.optimizer}
    if settings.liger:
        _needs(run, "liger", "liger_kernel", gpu=True)
        chosen["use_liger_kernel"] = True
    if settings.deepspeed:
        read_configuration("deepspeed", settings.deepspeed, settings)
        _needs(run, "deepspeed", "deepspeed")
        chosen["deepspeed"] = settings.deepspeed
    if settings.fsdp:
        read_configuration("fsdp", settings.fsdp, settings)
        chosen |= {"fsdp": True, "fsdp_config": settings.fsdp}
    return chosen


def _needs(run: Run, setting: str, package: str, gpu: bool = False) -> None:
    if find_spec(package) is None:
        raise _unusable(run, setting, f"the package {package} is missing; install it")
    if gpu and not pick_device(run.device).startswith("cuda"):
        raise _unusable(run, setting, "there is no GPU; set it to false")


def _unusable(run: Run, setting: str, why: str) -> TrainingError:
    return TrainingError(f"{run.out.name}: {setting}: {why}, or leave the setting out")


def finish(
    trainer: Any,
    processor: Any,
    run: Run,
    rows: int,
    drops: Sequence[Drop],
    whole: Callable[[], Any] | None = None,
) -> Trained:
    """Train (resuming from TRL's last checkpoint), check, merge and save.

    `whole` loads the model that training started from, whole and in full precision; None: it is so
    in memory (see `apart`).
    """
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_watch(run))
    last = last_checkpoint(run.out / "trl")
    with followed(trainer, run.tracked, run.out, step_of(last)), spent("training"):
        outcome = trainer.train(resume_from_checkpoint=last)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not _finite(model.parameters()):
        raise _diverged(run, _NOT_FINITE)
    adapter, checkpoint = run.out / "adapter", run.out / "checkpoint"
    if whole is None:
        if hasattr(model, "merge_and_unload"):
            model.save_pretrained(adapter)
            model = model.merge_and_unload()
        model.save_pretrained(checkpoint)
    elif hasattr(model, "merge_and_unload"):
        trainer.save_model(str(adapter))  # gathers what is spread
        merge(whole(), adapter).save_pretrained(checkpoint)
    else:
        trainer.save_model(str(checkpoint))
    processor.save_pretrained(run.out / "checkpoint")
    curve = tuple(
        {k: float(v) for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
        for row in trainer.state.log_history
        if "loss" in row
    )
    return Trained(int(outcome.global_step), rows, tuple(drops), curve)


def merge(model: Any, adapter: Path) -> Any:
    """A model with an adapter worked into its weights."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


_NOT_FINITE = "the weights became NaN or infinite"


def _finite(parameters: Iterable[Any]) -> bool:
    return all(bool(p.isfinite().all()) for p in parameters)


def last_checkpoint(trl: Path) -> str | None:
    """TRL's last complete checkpoint; one that a killed training left half written is passed over.

    The trainer's state is the last file that it writes.
    """
    found = [p.parent for p in trl.glob("checkpoint-*/trainer_state.json")]
    newest = max(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), default=None)
    return None if newest is None else str(newest)


def step_of(checkpoint: str | None) -> int:
    """The optimizer step of one of TRL's checkpoints; 0 without one."""
    return 0 if checkpoint is None else int(checkpoint.rpartition("-")[2])


def _diverged(run: Run, what: str) -> TrainingError:
    return TrainingError(
        f"{run.out.name}: {what}; lower the learning rate. "
        "The checkpoint that training started from is kept."
    )


def _watch(run: Run) -> Any:
    """A callback that tells how training gets on, and ends one that has diverged."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            # before a next step could sample from such weights: on a GPU that is a crash
            if not _finite(p for p in model.parameters() if p.requires_grad):
                raise _diverged(run, _NOT_FINITE)
            if state.global_step >= state.max_steps:
                control.should_save = False  # from a checkpoint here a resumed run would go on
            run.progress(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            loss = (logs or {}).get("loss", 0.0)
            if not math.isfinite(loss):
                raise _diverged(run, f"the loss became {loss} by step {state.global_step}")

    return Watch()
