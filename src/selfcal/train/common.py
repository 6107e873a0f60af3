"""What all trainings share: where they run, TRL's arguments, the adapter, and the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcal.clock import spent
from selfcal.errors import SelfcalError
from selfcal.policy import pick_device
from selfcal.recipe import Training
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


def lora(settings: Training, sees: bool = True) -> LoraConfig | None:
    """The adapter on a policy's language model, or (`sees=False`) on a text model."""
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


def arguments(settings: Training, run: Run, rows: int) -> dict[str, Any]:
    """TRL's arguments, the same for every kind of training."""
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
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def finish(trainer: Any, processor: Any, run: Run, rows: int, drops: Sequence[Drop]) -> Trained:
    """Train (resuming from TRL's last checkpoint), check, merge and save."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_watch(run))
    with spent("training"):
        outcome = trainer.train(resume_from_checkpoint=last_checkpoint(run.out / "trl"))
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not _finite(model.parameters()):
        raise _diverged(run, _NOT_FINITE)
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(run.out / "adapter")
        model = model.merge_and_unload()
    model.save_pretrained(run.out / "checkpoint")
    processor.save_pretrained(run.out / "checkpoint")
    curve = tuple(
        {k: float(v) for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
        for row in trainer.state.log_history
        if "loss" in row
    )
    return Trained(int(outcome.global_step), rows, tuple(drops), curve)


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
