"""What all trainings share: where they run, TRL's arguments, the adapter, and the end."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcal.clock import spent
from selfcal.errors import SelfcalError, StoreError
from selfcal.memory import attempt
from selfcal.policy import ModelError, Policy, load_policy, pick_device
from selfcal.recipe import Training, passes, read_configuration
from selfcal.stopping import Again, Stopped
from selfcal.store import read_json, write_json
from selfcal.tracking import Tracked, followed
from selfcal.train.checkpoints import drop_after, last_checkpoint, step_of
from selfcal.train.watch import NOT_FINITE, diverged, finite, watch
from selfcal.types import Drop

if TYPE_CHECKING:
    from peft import LoraConfig

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


_WAYS = ("is_local", "local_files_only")
"""What a tokenizer keeps of how it was loaded: of no use in a checkpoint, which would be another
one for whoever made it offline."""


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
    lowered: int | None = None
    """Samples a forward pass, where memory did not suffice for as many as the settings say."""
    ranks: int = 1
    """Processes that did the last steps together."""


@dataclass(frozen=True, slots=True)
class Run:
    """Where and how a training runs, apart from its settings."""

    out: Path
    """Folder that gets `checkpoint/` (merged), `adapter/` and TRL's own files."""
    seed: int
    device: str = "auto"
    dtype: str = "float32"
    progress: Progress = lambda done, total: None
    saved: Callable[[Path], None] = lambda checkpoint: None
    """Told of each checkpoint to resume from: its folder, which is finished."""
    deletes: Callable[[Path], None] = lambda checkpoint: None
    """Told of a checkpoint that nobody may resume from any more, before it is deleted."""
    ranks: int = 1
    """Processes that train together; this is one of them."""
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
    if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) != run.ranks:  # each would take a batch
        raise TrainingError(
            f"{run.out.name}: {ranks} processes were started, and {run.ranks} shall train; start "
            "selfcal by itself, without torchrun or accelerate launch: executor.ranks says how "
            "many processes a training is spread over, and selfcal starts them"
        )
    try:
        micro = settings.micro_for(run.ranks, memory_limit(run))
    except ValueError as error:
        raise TrainingError(f"{run.out.name}: {error}") from error
    steps = settings.steps_for(rows)
    return {
        "output_dir": str(run.out / "trl"),
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch_size // (run.ranks * micro),
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
        "save_total_limit": None,  # it counts before digests are written, and by the clock
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
    """Train (resuming from TRL's last whole checkpoint), check, merge and save.

    Args:
        trainer: TRL's, made with `arguments`.
        processor: saved beside the weights.
        run: where it runs.
        rows: that it trains on.
        drops: rows that were left out.
        whole: loads the model that training started from, whole and in full precision; None: it is
            so in memory (see `apart`).

    Raises:
        TrainingError: it diverged, or there is too little memory for one sample a forward pass.
        Again: memory ran out; with fewer samples a forward pass it may do.
        Stopped: somebody asked for that, and a checkpoint is saved.
    """
    steps = _train(trainer, run)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not finite(model.parameters()):
        raise diverged(run, NOT_FINITE)
    _save(trainer, model, processor, run, whole)
    trainer.accelerator.wait_for_everyone()
    curve = tuple(
        {k: float(v) for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
        for row in trainer.state.log_history
        if "loss" in row
    )
    lowered = trainer.args.per_device_train_batch_size if memory_limit(run) else None
    return Trained(steps, rows, tuple(drops), curve, lowered, run.ranks)


def _train(trainer: Any, run: Run) -> int:
    """Do the steps that are left; gives all that were done."""
    from accelerate.utils import broadcast_object_list
    from transformers import PrinterCallback

    if trainer.args.fsdp and "FSDP" not in str(trainer.accelerator.distributed_type):
        raise _unusable(run, "fsdp", "accelerate spreads weights over GPUs alone; set it to null")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(seen := watch(trainer, run))
    main = trainer.accelerator.is_main_process
    # one process looks: another machine may not see a file yet
    (last,) = broadcast_object_list([last_checkpoint(run.out / "trl") if main else None])
    if main:
        drop_after(run.out / "trl", step_of(last))
    with followed(trainer, run.tracked, run.out, step_of(last)), spent("training"):
        outcome, said = attempt(lambda: trainer.train(resume_from_checkpoint=last))
    if outcome is None:
        micro, parts = (
            trainer.args.per_device_train_batch_size,
            trainer.args.gradient_accumulation_steps,
        )
        raise less_memory(run, micro, micro * parts, said)
    if seen.stopped:
        raise Stopped
    return int(outcome.global_step)


def _save(
    trainer: Any, model: Any, processor: Any, run: Run, whole: Callable[[], Any] | None
) -> None:
    """Write adapter and merged checkpoint; one process does, the others help it gather."""
    adapter, checkpoint = run.out / "adapter", run.out / "checkpoint"
    adapted, main = hasattr(model, "merge_and_unload"), trainer.accelerator.is_main_process
    if main:
        for half in (adapter, checkpoint):  # what a kill left of them, temporary files included
            shutil.rmtree(half, ignore_errors=True)
    if whole is not None:  # gathers what is spread
        _gather(trainer, model, adapter if adapted else checkpoint)
    if not main:
        return
    if whole is not None and adapted:
        merge(whole(), adapter).save_pretrained(checkpoint)
    elif whole is None:
        if adapted:
            model.save_pretrained(adapter)
            model = model.merge_and_unload()
        model.save_pretrained(checkpoint)
    tokenizer = getattr(processor, "tokenizer", processor)
    for way in _WAYS:
        tokenizer.init_kwargs.pop(way, None)
    processor.save_pretrained(checkpoint)


def _gather(trainer: Any, model: Any, folder: Path) -> None:
    """Save a model, or its adapter, whose weights are spread over the processes."""
    if not trainer.is_fsdp_enabled:
        trainer.save_model(str(folder))
        return
    # TRL would save nothing where FSDP's configuration wants checkpoints in parts
    state = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.accelerator.is_main_process:
        model.save_pretrained(folder, state_dict=state)


def merge(model: Any, adapter: Path) -> Any:
    """A model with an adapter worked into its weights."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


_MEMORY = "memory.json"
"""In the stage's folder, once memory ran out: how many samples a forward pass there is room for."""


def memory_limit(run: Run) -> int | None:
    """Samples a forward pass, at most, as memory has shown; None: it has not run out.

    Raises:
        StoreError: the note of it is damaged.
    """
    path = run.out / _MEMORY
    if not path.exists():
        return None
    found = read_json(path)
    limit = found.get("micro_batch_size") if isinstance(found, dict) else None
    if not isinstance(limit, int) or limit < 1:
        raise StoreError(f"{path} is damaged: delete it, then run the same command again")
    return limit


def less_memory(run: Run, micro: int, own: int, said: str) -> Exception:
    """What ends a training that has no memory for so many samples a forward pass.

    It is noted that there is room for half as many, or for the most below that into which the
    `own` samples of a step that this process does can be parted; and so the training goes on.
    """
    last = step_of(last_checkpoint(run.out / "trl"))
    if micro == 1:
        return TrainingError(
            f"{run.out.name}: out of memory with one sample a forward pass ({said}); set "
            "gradient_checkpointing, lower max_length or lora.rank, set lora.four_bit, or give it "
            "more memory, then run it again: all stages before it are kept"
        )
    less = passes(own, micro // 2)
    write_json(run.out / _MEMORY, {"micro_batch_size": less, "said": said})
    return Again(
        f"{run.out.name}: out of memory with {micro} samples a forward pass: goes on from step "
        f"{last} with {less} and the same batch"
    )
