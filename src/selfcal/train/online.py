"""Online training of the policy: GRPO on groups of responses that it samples while it learns.

TRL's `GRPOTrainer` samples and takes the steps. What a response is worth comes from outside: a
`Grading` gives the advantages of a batch, and TRL takes them as they are (rewards of mean 0 in each
group, which it is told not to scale). So every method computes its advantages in one place, and
each response is on record with its reward and advantage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from selfcal.errors import StoreError
from selfcal.policy import ModelError, Policy, user_turn
from selfcal.processors import PREFIX_TYPES
from selfcal.recipe import Grpo
from selfcal.stopping import Again
from selfcal.store import StageDir
from selfcal.train.checkpoints import checkpoints, drop_after, last_checkpoint, step_of
from selfcal.train.common import (
    Run,
    Trained,
    TrainingError,
    arguments,
    starting_point,
)
from selfcal.train.policy import fitting, lengths, tune
from selfcal.types import Drop, Rollout, Sample

ROLLOUTS = "rollouts"
"""Name of the responses among a stage's records."""


@dataclass(frozen=True, slots=True)
class Group:
    """The responses to one sample in one batch."""

    sample: Sample
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Graded:
    """What a grading makes of one response."""

    correct: float
    compliant: bool
    judged: tuple[float, ...]
    reward: float
    advantage: float
    """TRL subtracts their group's mean, so it must be 0."""


class Grading(Protocol):
    """What responses are worth to a method."""

    def judge(self, groups: Sequence[Group]) -> list[list[tuple[float, ...]]]:
        """What the judge says of each response of each group."""
        ...

    def weigh(
        self, groups: Sequence[Group], judged: Sequence[Sequence[tuple[float, ...]]]
    ) -> list[list[Graded]]:
        """Rewards and advantages of one whole batch; called once for each, in order."""
        ...

    @property
    def figures(self) -> Mapping[str, float]:
        """What it has learned so far, such as multipliers, by name."""
        ...


@dataclass
class Ledger:
    """The account of a training: every response that it sampled, a shard a batch."""

    folder: StageDir
    limit: int | None = None
    """Tokens that may be sampled; the batch that spends the last of them is done in full."""
    saved: Callable[[Sequence[Path]], None] = lambda files: None
    """Told of each shard, which is finished; checkpoints are told of later, and need it."""
    spent: int = field(default=0, init=False)

    @property
    def over(self) -> bool:
        """Whether all tokens are spent."""
        return self.limit is not None and self.spent >= self.limit

    def add(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Keep the responses of batch `step`, from 0."""
        self.folder.write_shard(ROLLOUTS, step, rollouts, Rollout)
        self.saved([self.folder.shard(ROLLOUTS, step)])
        self.spent += sum(r.tokens for r in rollouts)

    def whole(self, batches: int) -> int:
        """How many of the first batches are kept, up to one that is missing or damaged.

        Raises:
            StoreError: the system refused to read one.
        """
        for i in range(batches):
            if not self.folder.has(ROLLOUTS, i):
                return i
            try:
                self.folder.read_shard(ROLLOUTS, i, Rollout)
            except StoreError as error:
                if isinstance(error.__cause__, OSError):  # it may be whole
                    raise
                return i
        return batches

    def reopen(self, batches: int) -> Iterator[list[Rollout]]:
        """The first batches, which an earlier process kept; what comes after them is deleted.

        Raises:
            StoreError: one of them is missing or damaged.
        """
        for i in self.folder.numbers(ROLLOUTS):
            if i >= batches:
                self.folder.shard(ROLLOUTS, i).unlink(missing_ok=True)
        for i in range(batches):
            kept = self.folder.read_shard(ROLLOUTS, i, Rollout)
            self.spent += sum(r.tokens for r in kept)
            yield kept


def grpo(
    model: str,
    samples: Sequence[Sample],
    settings: Grpo,
    grading: Grading,
    ledger: Ledger,
    run: Run,
) -> Trained:
    """Train a policy by GRPO on its own responses to samples.

    A killed training goes on at TRL's last checkpoint: the batches before it are read from the
    ledger, and weighed again, so that what the grading has learned is what it was.

    Raises:
        ModelError: a model of this type cannot be trained so.
        TrainingError: no samples or too few for a batch, or the loss became NaN or infinite.
        Again: the ledger of a training that was cut off has lost a batch; it goes on before that.
    """
    from datasets import Dataset

    resumed = _resumed(run, ledger, settings.updates)
    policy = starting_point(model, settings, run)
    if (kind := policy.model.config.model_type) in PREFIX_TYPES:
        raise ModelError(
            f"grpo: {model}: in a model of type {kind} a prompt's tokens see what comes after "
            "them, and TRL's GRPO would let those of a response do so as well; take another "
            "model, or a method that trains on pairs, such as src"
        )
    rows, drops = _fitting(policy, samples, settings)
    turns = [user_turn(s, policy.processor) for s in rows]
    data = Dataset.from_list(
        [{"images": list(s.images), "prompt": turns[i], "row": i} for i, s in enumerate(rows)]
    )
    args = _config(settings, run, len(rows))
    _replay(ledger.reopen(resumed // settings.updates), grading, rows)
    epochs = resumed // (len(rows) // _prompts(settings) * settings.updates)
    tokenizer = policy.tokenizer
    reward = _Reward(rows, grading, ledger, settings.group, settings.updates, tokenizer)

    def trainer(**given: Any) -> Any:
        made = _trainer(epochs)(**given, reward_funcs=reward)
        made.add_callback(_within_budget(ledger, settings.updates))
        return made

    return tune(trainer, policy, data, args, settings, run, drops)


def _prompts(settings: Grpo) -> int:
    """Prompts of a batch."""
    return settings.batch_size // settings.group


def _fitting(
    policy: Policy, samples: Sequence[Sample], settings: Grpo
) -> tuple[list[Sample], list[Drop]]:
    """The samples that fit with their responses, and the drops.

    Raises:
        TrainingError: they are too few for a batch.
    """
    asked = [(s, ()) for s in samples]
    reach = [n + settings.max_new_tokens for n in lengths(policy, asked)]
    kept, drops = fitting(asked, reach, settings.max_length, "grpo")
    if len(kept) < _prompts(settings):  # TRL would train on nothing, and say nothing
        raise TrainingError(
            f"grpo: {len(kept)} samples fill no batch of {_prompts(settings)} prompts "
            "(grpo.batch_size / grpo.group); lower grpo.batch_size, or give more samples"
        )
    return [s for s, _ in kept], drops


def _config(settings: Grpo, run: Run, rows: int) -> Any:
    """TRL's arguments, for a training on so many samples."""
    from trl import GRPOConfig

    common = arguments(settings, run, rows * settings.group * settings.updates)
    del common["max_length"]  # checked before
    return GRPOConfig(
        **common,
        num_generations=settings.group,
        max_completion_length=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        num_iterations=settings.updates,
        epsilon=settings.clip,
        beta=settings.kl,
        loss_type=settings.loss,
        scale_rewards="none",  # advantages come as they shall be
        remove_unused_columns=False,  # the row says which sample a response belongs to
        generation_kwargs={"remove_invalid_values": True},  # divergence is told after the step
    )


def _trainer(epochs: int) -> Any:
    """TRL's trainer; resumed after so many epochs, it goes on in the order of the next one."""
    from trl import GRPOTrainer

    class Resumable(GRPOTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            sampler = super()._get_train_sampler(dataset)
            for _ in range(epochs):
                next(iter(sampler))  # draws an epoch's order: TRL's sampler begins anew
            return sampler

    return Resumable


def _resumed(run: Run, ledger: Ledger, updates: int) -> int:
    """The optimizer step that a training resumes at.

    Raises:
        Again: responses from before it are lost, and the checkpoints deleted that need them.
        StoreError: the system refused.
    """
    trl = run.out / "trl"
    step = step_of(last_checkpoint(trl))
    if (kept := ledger.whole(step // updates)) == step // updates:
        return step
    # those on a store first: who goes on would bring them back
    for path in checkpoints(trl):
        if step_of(str(path)) > kept * updates:
            run.deletes(path)
    drop_after(trl, kept * updates)
    lost, before = ledger.folder.shard(ROLLOUTS, kept), step_of(last_checkpoint(trl))
    raise Again(
        f"{lost} is missing or damaged, and no checkpoint after it can do without: training goes "
        f"on from step {before}"
    )


def _replay(kept: Iterable[Sequence[Rollout]], grading: Grading, rows: Sequence[Sample]) -> None:
    """Weigh the batches that were sampled before the training was cut off."""
    by_id = {s.id: s for s in rows}
    for own in kept:
        starts = [i for i, r in enumerate(own) if r.index == 0]
        parts = [own[a:b] for a, b in pairwise([*starts, len(own)])]
        groups = [Group(by_id[g[0].sample_id], tuple(r.text for r in g)) for g in parts]
        grading.weigh(groups, [[r.judged for r in g] for g in parts])


@dataclass(frozen=True, slots=True)
class _Reward:
    """TRL's reward function: the advantages of a batch, which are put on record."""

    rows: Sequence[Sample]
    grading: Grading
    ledger: Ledger
    size: int
    """Responses of a group."""
    updates: int
    tokenizer: Any

    @property
    def __name__(self) -> str:  # what TRL logs it by
        return "advantage"

    def __call__(
        self,
        completion_ids: Sequence[Sequence[int]],
        row: Sequence[int],
        trainer_state: Any,
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        # not TRL's own reading of them: it takes thoughts apart
        texts = self.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        groups = [
            Group(self.rows[row[at]], tuple(texts[at : at + self.size]))
            for at in range(0, len(row), self.size)
        ]
        graded = [g for own in self.grading.weigh(groups, self.grading.judge(groups)) for g in own]
        step = int(trainer_state.global_step) // self.updates
        self.ledger.add(step, _rollouts(step, groups, graded, [len(i) for i in completion_ids]))
        for name, value in self.grading.figures.items():
            log_metric(name, value)
        if known := [g.reward for g in graded if not math.isnan(g.reward)]:
            log_metric("group_reward", sum(known) / len(known))
        return [g.advantage for g in graded]


def _rollouts(
    step: int, groups: Sequence[Group], graded: Sequence[Graded], tokens: Sequence[int]
) -> list[Rollout]:
    places = [(g.sample, i, text) for g in groups for i, text in enumerate(g.texts)]
    return [
        Rollout(
            sample.id, step, i, text, n, one.correct, one.compliant, one.judged, one.reward,
            one.advantage,
        )
        for (sample, i, text), one, n in zip(places, graded, tokens, strict=True)
    ]  # fmt: skip


def _within_budget(ledger: Ledger, updates: int) -> Any:
    """A callback that ends the training when its tokens are spent."""
    from transformers import TrainerCallback

    class WithinBudget(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if ledger.over and state.global_step % updates == 0:
                control.should_training_stop = True
                control.should_save = False  # from a checkpoint here a resumed run would go on

    return WithinBudget()
