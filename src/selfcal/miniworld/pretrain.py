"""Training from scratch, shared by the two small models: batches in, a trained model out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length and rate of one phase of a training from scratch."""

    steps: int
    learning_rate: float
    batch_size: int = 64
    stop: int | None = None
    """End early, before the rate has come down: another phase follows."""


def padded(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """A batch of (token ids, labels), filled up on the right; every tensor is (rows, longest)."""
    import torch

    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([i + [pad] * (width - len(i)) for i, _ in rows])
    labels = torch.tensor([y + [-100] * (width - len(y)) for _, y in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": (ids != pad).long()}


def fit(
    model: Any,
    batches: Iterator[dict[str, torch.Tensor]],
    schedule: Schedule,
    checkpoint: Path,
) -> None:
    """Minimise a model's own loss with AdamW and a one-cycle rate.

    The weights go to `checkpoint` every 500 steps; progress is printed every 100.
    """
    import torch
    from safetensors.torch import load_model, save_model

    sight = [p for n, p in model.named_parameters() if "vision" in n or "projector" in n]
    text = [p for n, p in model.named_parameters() if not ("vision" in n or "projector" in n)]
    # a LLaVA projector has no normalization: at the text's rate its activations run away
    groups = [(own, r) for own, r in ((sight, 0.3), (text, 1.0)) if own]
    optimizer = torch.optim.AdamW(
        [{"params": own} for own, _ in groups], betas=(0.9, 0.98), weight_decay=0.02
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [schedule.learning_rate * r for _, r in groups],
        total_steps=schedule.steps,
        pct_start=0.08,
    )
    model.train()
    began, total = time.monotonic(), 0.0
    for step in range(1, (schedule.stop or schedule.steps) + 1):
        loss = model(**next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        total += float(loss.detach())
        if step % 100 == 0:
            rate = step / (time.monotonic() - began)
            loss_is = f"loss {total / 100:.4f}, {rate:.2f} steps/s"
            print(f"step {step} of {schedule.steps}: {loss_is}", flush=True)
            total = 0.0
        if step % 500 == 0:
            save_model(model, str(checkpoint))
    save_model(model, str(checkpoint))
    load_model(model, str(checkpoint))
    model.eval()


Phase = tuple[str, Schedule, "Callable[[], Iterator[dict[str, torch.Tensor]]]"]
"""Name, schedule, and what gives the batches."""


def fit_phases(model: Any, phases: Sequence[Phase], out: Path) -> None:
    """Fit one phase after the other; a phase whose weights lie in `out` is not trained again."""
    from safetensors.torch import load_model

    for name, schedule, batches in phases:
        done, partial = out / f"{name}.safetensors", out / f"{name}.partial.safetensors"
        if not done.exists():
            fit(model, batches(), schedule, partial)
            partial.rename(done)
        load_model(model, str(done))
