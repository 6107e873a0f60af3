"""Settings of trainings; defaults are the paper's where it gives a number (SRC, 2509.13919)."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfcal.recipe.base import Positive, Settings, Share


def passes(samples: int, most: int) -> int:
    """The most samples a forward pass, up to `most`, into which so many can be parted equally."""
    return next(n for n in range(min(samples, most), 0, -1) if samples % n == 0)


class Lora(Settings):
    """A LoRA adapter on the language model's linear layers."""

    rank: Positive
    alpha: Positive
    dropout: Share = 0.0
    four_bit: bool = False
    """QLoRA (arXiv 2305.14314): while it trains, the frozen weights are held in 4 bits; needs
    bitsandbytes and a GPU."""


class Training(Settings):
    """One training by TRL."""

    lora: Lora | None = None
    """None trains all weights."""
    learning_rate: Annotated[float, Field(gt=0)]
    batch_size: Positive = 16
    """Samples an optimizer step."""
    micro_batch_size: Positive | None = None
    """Samples a forward pass of one process; None: all that it has of a batch. The rest is gradient
    accumulation."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    steps: Positive | None = None
    """Optimizer steps; overrides `epochs`."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.03
    """Share of the steps."""
    max_length: Positive = 2048
    """Rows with more tokens than this are left out and counted, never cut."""
    save_steps: Positive | None = None
    """Checkpoint interval for resuming; None: a killed training starts over (one that is asked to
    stop saves a checkpoint all the same)."""
    gradient_checkpointing: bool = False
    liger: bool = False
    """Fused Triton kernels of liger-kernel; needs a GPU."""
    optimizer: str = "adamw_torch_fused"
    """By transformers' name, such as `paged_adamw_8bit`."""
    deepspeed: str | None = None
    """DeepSpeed's configuration file, which is handed to accelerate."""
    fsdp: str | None = None
    """FSDP's configuration file (the `fsdp_config` of transformers), handed on likewise."""

    @model_validator(mode="after")
    def _one_way_to_share(self) -> Training:
        if self.deepspeed and self.fsdp:
            raise ValueError("deepspeed, fsdp: give one of them")
        if self.fsdp and self.lora is not None and self.lora.four_bit:
            raise ValueError("lora.four_bit: not with fsdp; set it to false, or leave out fsdp")
        return self

    def steps_for(self, rows: int) -> int:
        """Optimizer steps that a training on so many rows takes."""
        return self.steps or max(1, math.ceil(rows / self.batch_size * self.epochs))

    def micro_for(self, ranks: int = 1, limit: int | None = None) -> int:
        """Samples a forward pass of each of so many processes that train together.

        The most that the setting, and `limit`, allow, and that a step's batch can be parted into.

        Raises:
            ValueError: the batch is no whole part for each process.
        """
        own, rest = divmod(self.batch_size, ranks)
        if rest:
            raise ValueError(
                f"batch_size: {self.batch_size} samples cannot be parted equally among {ranks} "
                "processes; set it to a multiple, or executor.ranks to a number that divides it"
            )
        return passes(own, min(self.micro_batch_size or own, limit or own))

    @property
    def by_micro(self) -> bool:
        """Whether the outcome depends on how many samples a forward pass has."""
        return False


class Rft(Training):
    """Stage 1: light SFT on the teacher's RAPs."""

    lora: Lora | None = Lora(rank=4, alpha=8)
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5


class JudgeTraining(Training):
    """Stage 3: SFT of the R-Scorer on labelled pairs; the paper gives no numbers."""

    lora: Lora | None = Lora(rank=16, alpha=32)
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4


class Dpo(Training):
    """Stage 4: DPO with an SFT term on the chosen response (RPO)."""

    lora: Lora | None = Lora(rank=256, alpha=512)
    learning_rate: Annotated[float, Field(gt=0)] = 5e-7
    beta: Annotated[float, Field(gt=0)] = 0.1
    sft_weight: Annotated[float, Field(ge=0)] = 0.02

    @property
    def by_micro(self) -> bool:
        """Whether there is an SFT term, which in TRL is a mean over the tokens of one pass."""
        return self.sft_weight > 0


class Grpo(Training):
    """Online methods: GRPO (arXiv 2402.03300) by TRL, on groups of the policy's own responses."""

    lora: Lora | None = Lora(rank=64, alpha=128)
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Positive = 64
    """Responses an optimizer step: whole groups."""
    scheduler: Literal["cosine", "linear", "constant"] = "constant"
    """A budget of tokens may end the training before its last step."""
    group: Annotated[int, Field(ge=2)] = 8
    """Responses to one prompt."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Positive = 512
    updates: Positive = 1
    """Optimizer steps on each batch of responses."""
    clip: Annotated[float, Field(gt=0)] = 0.2
    """Epsilon of the clipped probability ratio; at one update a batch nothing is clipped."""
    kl: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the divergence from the iteration's first policy (beta)."""
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """How token losses are averaged, by TRL's names."""
    scale: Literal["group", "none"] = "group"
    """Whether advantages are divided by the standard deviation of their group."""
    format_weight: Annotated[float, Field(ge=0)] = 0.1
    """Of the RAP format in the task reward, beside 1 for a right answer."""

    @property
    def by_micro(self) -> bool:
        """It does: a forward pass is also what is sampled at a time."""
        return True

    @model_validator(mode="after")
    def _whole_groups(self) -> Grpo:
        if self.batch_size % self.group:
            raise ValueError(
                f"batch_size: {self.batch_size} responses are no whole groups of {self.group}; "
                "set it to a multiple of `group`"
            )
        if self.save_steps and self.save_steps % self.updates:
            raise ValueError(
                f"save_steps: {self.save_steps} would cut a batch in two; set it to a multiple of "
                f"`updates` ({self.updates})"
            )
        return self
