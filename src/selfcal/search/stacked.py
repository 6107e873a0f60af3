"""The adapters of several trainings as one, for a server that holds the model as it was given.

Every training merges its adapter into a checkpoint, on which the next one builds. So after two of
them the weights are `W + s1 B1 A1 + s2 B2 A2`, which is `W + [s1 B1, s2 B2] [A1; A2]`: one adapter
whose rank is the sum of the ranks, exactly. It is what a server loads that still holds `W`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcal.policy import ModelError, model_path
from selfcal.store import file_digest, fingerprint, read_json, write_json

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for `--max-lora-rank`."""
_A, _B = ".lora_A.weight", ".lora_B.weight"
_UNUSUAL = (
    "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out",
    "layer_replication", "target_parameters", "trainable_token_indices", "lora_bias",
)  # fmt: skip
"""Settings of an adapter that is more than a product of two factors, or has several ranks."""
WAY_OUT = (
    "serve the merged checkpoint instead ({checkpoint}: stop the server, start it with "
    "`vllm serve` on that folder, run the same command again)"
)


@dataclass(frozen=True, slots=True)
class Adapters:
    """The adapters between a model and a checkpoint, the first training's first."""

    folders: tuple[Path, ...]
    rank: int
    """Of all of them together."""
    name: str
    """One name for one content."""

    @property
    def flag(self) -> int:
        """The `--max-lora-rank` that the server needs."""
        return next(r for r in RANKS if r >= self.rank)


def adapters_of(run: Path, stage: str, model: str) -> Adapters:
    """The adapters that were trained between a model and the checkpoint of a run's stage.

    Each adapter's own record says what it was trained on.

    Raises:
        ModelError: a training had no adapter, or the adapters together have too high a rank.
    """
    way_out = WAY_OUT.format(checkpoint=run / stage / "checkpoint")
    found: list[Path] = []
    at: str | None = stage
    while at is not None:
        folder = run / at / "adapter"
        if not (folder / CONFIG).is_file():
            raise ModelError(
                f"stage {at} trained all weights and has no adapter that a server could load; "
                f"{way_out}, or train it with LoRA"
            )
        found.append(folder)
        at = _before(run, str(read_json(folder / CONFIG).get("base_model_name_or_path")), model)
        if at is not None and run / at / "adapter" in found:
            raise ModelError(f"{folder}: says that it was trained on itself; train it anew")
    found.reverse()
    ranks = [int(read_json(f / CONFIG)["r"]) for f in found]
    if sum(ranks) > RANKS[-1]:
        raise ModelError(
            f"the adapters up to stage {stage} have rank {' + '.join(map(str, ranks))} = "
            f"{sum(ranks)} together, and vLLM takes {RANKS[-1]} at most; {way_out}, or train with "
            "lower ranks (dpo.lora.rank)"
        )
    content = fingerprint(*((file_digest(f / WEIGHTS), file_digest(f / CONFIG)) for f in found))
    return Adapters(tuple(found), sum(ranks), f"selfcal-{content[:16]}")


def _before(run: Path, base: str, model: str) -> str | None:
    """The stage whose checkpoint is `base`; None if it is the model as it was given.

    Runs may have been moved, or have taken a stage over from another run, so only the end of the
    path counts.
    """
    given = model_path(model)
    if base in (model, given) or Path(base).resolve() == Path(given).resolve():
        return None
    parts = Path(base).parts
    if parts[-1:] == ("checkpoint",):
        for start in range(max(0, len(parts) - 4), len(parts) - 1):
            stage = "/".join(parts[start:-1])
            # the checkpoint itself may have been freed by `selfcal gc`
            if any((run / stage / kept).is_dir() for kept in ("adapter", "checkpoint")):
                return stage
    raise ModelError(
        f"an adapter of {run} was trained on {base}, which is neither the recipe's policy.model "
        f"({model}) nor a checkpoint of this run; train it anew, or search with backend "
        "`transformers`"
    )


def stack(adapters: Adapters, out: Path) -> Path:
    """Write the adapters as one, in PEFT's format, and return its folder.

    Its scaling is 1: the others' scalings are in the factors. A module that one adapter lacks gets
    zeros there, so that all have one rank.

    Raises:
        ModelError: an adapter is of another kind than LoRA's.
    """
    import torch
    from safetensors.torch import load_file, save_file

    rows: dict[str, list[torch.Tensor]] = {}
    columns: dict[str, list[torch.Tensor]] = {}
    for folder in adapters.folders:
        scale = _scale(folder, read_json(folder / CONFIG))
        tensors = load_file(folder / WEIGHTS)
        for module in _modules(folder, tensors):
            rows.setdefault(module, []).append(tensors[module + _A].float())
            columns.setdefault(module, []).append(tensors[module + _B].float() * scale)
    stacked: dict[str, torch.Tensor] = {}
    for module, own in rows.items():
        a, b = torch.cat(own), torch.cat(columns[module], dim=1)
        more = adapters.rank - len(a)
        pad = torch.nn.functional.pad
        stacked[module + _A] = pad(a, (0, 0, 0, more)).contiguous()
        stacked[module + _B] = pad(b, (0, more)).contiguous()
    folder = out / adapters.name
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stacked, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, _config(adapters, sorted(rows)))
    return folder


def _scale(folder: Path, config: Mapping[str, Any]) -> float:
    """What `B A` is multiplied by."""
    odd = [name for name in _UNUSUAL if config.get(name)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or odd:
        raise ModelError(
            f"{folder}: not a plain LoRA adapter ({', '.join(odd) or config.get('peft_type')}), so "
            "it cannot be joined with others; search with backend `transformers`"
        )
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _modules(folder: Path, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    modules = [key.removesuffix(_A) for key in tensors if key.endswith(_A)]
    fits = {m + end for m in modules for end in (_A, _B)} == set(tensors)
    if not fits or any(t.ndim != 2 for t in tensors.values()):
        raise ModelError(
            f"{folder / WEIGHTS}: has weights that are no pair of LoRA's factors; search with "
            "backend `transformers`"
        )
    return modules


def _config(adapters: Adapters, modules: Sequence[str]) -> dict[str, Any]:
    first = read_json(adapters.folders[0] / CONFIG)
    return {
        "peft_type": "LORA",
        "task_type": first.get("task_type"),
        "base_model_name_or_path": first.get("base_model_name_or_path"),
        "r": adapters.rank,
        "lora_alpha": adapters.rank,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "bias": "none",
        "inference_mode": True,
        "target_modules": [m.removeprefix("base_model.model.") for m in modules],
    }
