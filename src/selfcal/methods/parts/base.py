"""What the stages of all parts need: their share of a recipe, and how records are grouped."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from selfcal.errors import StoreError
from selfcal.rationale import FORMATS, RapFormat
from selfcal.recipe import Endpoint, Local, Recipe, RecipeError, Settings, Training
from selfcal.remote import place_of
from selfcal.stage import Work, count_drops
from selfcal.store import JSON, StageDir, read_column
from selfcal.types import Candidate, Drop, Judgment, Sample

if TYPE_CHECKING:
    from selfcal.chat import ChatClient
    from selfcal.policy import Policy
    from selfcal.train import Run, Trained

R = TypeVar("R", Candidate, Judgment)
SPLITS = ("rft", "calibration", "dev", "test")
REACHING = {"base_url", "api_key_env", "timeout", "retries", "concurrency", "budget", "cache"}
"""Keys of a server's settings that do not change what it says."""


_SPEED = {"gradient_checkpointing", "liger", "deepspeed", "fsdp", "micro_batch_size", "save_steps"}
"""Keys of a training's settings that change time and memory, not the outcome."""


def part_of(recipe: Recipe, *names: str) -> dict[str, Any]:
    """The part of a recipe that a stage depends on."""
    values = {n: getattr(recipe, n) for n in names}
    return {n: v.model_dump() if isinstance(v, Settings) else v for n, v in values.items()}


def start_of(recipe: Recipe, t: int, trained: str = "dpo") -> str | None:
    """The stage whose checkpoint iteration `t` starts from; None: the model as it was given."""
    if t > 1:
        return f"iter-{t - 1}/{trained}"
    return "rft" if recipe.rft else None


def reads(start: str | None) -> tuple[str, ...]:
    """What a stage that takes up a checkpoint reads."""
    return (start,) if start else ()


def weights(recipe: Recipe, work: Work, start: str | None) -> str:
    """Where the checkpoint of a stage lies, or the name of the model as it was given."""
    return work.checkpoint(start) if start else recipe.policy.model


def policy_at(recipe: Recipe, work: Work, start: str | None) -> Policy:
    """The policy of a stage's checkpoint, or the model as it was given, loaded."""
    from selfcal.policy import check_opening, load_policy

    p, name = recipe.policy, weights(recipe, work, start)
    policy = load_policy(name, p.dtype, p.device, p.trust_remote_code, p.attention, p.chat_template)
    check_opening(policy.processor, form_of(recipe))
    return policy


def given(recipe: Recipe, start: str | None) -> dict[str, Any]:
    """What a stage depends on that takes up the model as it was given; nothing otherwise."""
    if start:
        return {}
    p = recipe.policy
    named = {"chat_template": p.chat_template} if p.chat_template else {}
    return {"model": p.model, "digest": p.digest, "dtype": p.dtype, **named}


def form_of(recipe: Recipe) -> RapFormat:
    """The format of responses."""
    return FORMATS[recipe.format]


def formed(recipe: Recipe) -> dict[str, Any]:
    """What a stage depends on that goes by the format of responses; nothing for the default."""
    return {} if recipe.format == "headings" else {"format": recipe.format}


def outcome_of(training: Training) -> dict[str, Any]:
    """Of a training's settings, those that its outcome depends on."""
    own = {"micro_batch_size"} if training.by_micro else set()
    return training.model_dump(exclude=_SPEED - own)


def spread(recipe: Recipe, place: str, training: Training) -> Literal["here", "ranks"]:
    """Who does a training: one process, or as many as the recipe wants together.

    Raises:
        RecipeError: its batches cannot be parted among them without changing what is learned, or
            all of them would take the same GPU.
    """
    ranks = recipe.executor.ranks
    if training.fsdp and ranks == 1:
        raise RecipeError(
            f"recipe {recipe.name}: {place}.fsdp: spreads weights over several processes, and "
            "executor.ranks is 1; set that to the number of GPUs, or leave fsdp out"
        )
    if ranks == 1:  # deepspeed wants to be launched even so
        return "ranks" if training.deepspeed else "here"
    if re.fullmatch(r"cuda:\d+", recipe.policy.device):
        raise RecipeError(
            f"recipe {recipe.name}: policy.device: {recipe.policy.device} puts all {ranks} "
            f"processes of a training ({place}) onto one GPU; set it to `cuda` or `auto`, and each "
            "takes one of its own"
        )
    try:
        together = training.micro_for(ranks)
    except ValueError as error:
        raise RecipeError(f"recipe {recipe.name}: {place}.{error}") from error
    if training.by_micro and together != training.micro_for():
        raise RecipeError(
            f"recipe {recipe.name}: {place}.micro_batch_size: what is learned depends on it (the "
            f"SFT term is a mean over one forward pass), and of {training.micro_for()} samples a "
            f"pass {ranks} processes could not make a batch of {training.batch_size}; set it to "
            f"{together}"
        )
    return "ranks"


def rule_of(recipe: Recipe) -> dict[str, Any]:
    """What the pairs of judged candidates depend on: not what becomes of samples without one."""
    return {"curate": recipe.curate.model_dump(exclude={"weak", "widen"})}


def calibration_size(recipe: Recipe) -> int:
    """How many calibration samples an iteration gets."""
    return recipe.data.calibration // (1 if recipe.data.repeat else recipe.iterations)


def trained_on(recipe: Recipe) -> int:
    """Training samples whose candidates are labelled."""
    return min(recipe.judge.samples, recipe.data.rft)


def calibration_samples(recipe: Recipe, work: Work, t: int, source: str = "data") -> list[Sample]:
    """The calibration samples of iteration `t`, counted from 1, by the stage that has them."""
    samples = work.samples(source, "calibration")
    return samples if recipe.data.repeat else samples[t - 1 :: recipe.iterations]


def by_sample(found: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Candidates by their sample's id."""
    own: dict[str, list[Candidate]] = defaultdict(list)
    for c in found:
        own[c.sample_id].append(c)
    return own


class BySample(Generic[R]):
    """Records sample by sample, in any order, with one shard of them in memory.

    Where a sample's are is found by reading the ids alone.
    """

    def __init__(
        self, folder: StageDir, name: str, kind: type[R], known: Container[str] | None = None
    ) -> None:
        """The records called `name` of a stage; `known` has the ids that they may have; None: any.

        Raises:
            StoreError: there are records of another sample, or none can be read.
        """
        self._read: Callable[[int], list[R]] = lambda i: folder.read_shard(name, i, kind)
        self._at: dict[str, list[int]] = {}
        self._last: tuple[int, dict[str, list[R]]] = (-1, {})
        for i in range(folder.count(name)):
            for sample_id in dict.fromkeys(read_column(folder.shard(name, i), kind, "sample_id")):
                if known is not None and sample_id not in known:
                    raise StoreError(
                        f"{folder.path}: sample {sample_id!r} has {name}, but the run has no such "
                        "sample"
                    )
                self._at.setdefault(sample_id, []).append(i)

    def __iter__(self) -> Iterator[str]:
        """The ids of all samples that have records, in the records' order."""
        return iter(self._at)

    def __contains__(self, sample_id: object) -> bool:
        """Whether a sample has any."""
        return sample_id in self._at

    def of(self, sample_id: str) -> list[R]:
        """A sample's records, in their order."""
        return [r for i in self._at.get(sample_id, ()) for r in self._shard(i).get(sample_id, ())]

    def _shard(self, i: int) -> dict[str, list[R]]:
        if self._last[0] != i:
            found: dict[str, list[R]] = {}
            for record in self._read(i):
                found.setdefault(record.sample_id, []).append(record)
            self._last = (i, found)
        return self._last[1]


def by_workers(loads: bool, *asked: object) -> Literal["here", "workers"]:
    """Who may do the shards of a stage: workers if these need a model in their process.

    Servers are asked by this process alone: it asks many questions at once as it is, and keeps the
    ledger of what is spent.

    Args:
        loads: whether the stage loads a model itself.
        asked: settings of who else is asked.
    """
    if any(isinstance(who, Endpoint) for who in asked):
        return "here"
    return "workers" if loads or any(isinstance(who, Local) for who in asked) else "here"


def searches(recipe: Recipe) -> bool:
    """Whether responses come from a policy in the process; if not, a server gives them."""
    return recipe.policy.server is None


def chat_client(settings: Endpoint, work: Work | None = None, name: str = "") -> ChatClient:
    """The client of a server.

    Args:
        settings: the server's.
        work: the stage that asks: its run has the ledger of what is spent. None: nothing is kept
            of that, and the budget is this client's own.
        name: of who is asked, one of `SERVERS`; its ledger is one for the whole run.
    """
    from selfcal.chat import Cache, ChatClient, Keeping, Ledger

    budget = settings.budget
    ledger = Ledger(
        _ledgers(work) / f"{name}.jsonl" if work else None, _spender(work) if work else "",
        SERVERS.get(name, name), budget.requests, budget.tokens,
    )  # fmt: skip
    keeping = Keeping(ledger, Cache() if settings.cache else None, work.seed if work else 0)
    names = ("base_url", "model", "api_key_env", "temperature", "max_tokens", "timeout", "retries")
    own = {name: getattr(settings, name) for name in (*names, "concurrency")}
    return ChatClient(**own, keeping=keeping)


SERVERS = {
    "teacher": "teacher",
    "labels": "judge.labels",
    "judge": "judge.endpoint",
    "marker": "evaluate.marker",
}
"""Who is asked, and where a recipe says how."""


def spent(work: Work) -> dict[str, JSON]:
    """What this stage spent on servers, over all processes that worked on it; for its figures."""
    from selfcal.chat import spent_in

    usage = spent_in(_ledgers(work), _spender(work))
    return dataclasses.asdict(usage) if usage.requests or usage.cached else {}


def _ledgers(work: Work) -> Path:
    return work.run / "spending"


def _spender(work: Work) -> str:
    """A stage as ledgers know it: done anew with other settings, it is another one."""
    return f"{work.stage.name} {work.folder.fingerprint[:12]}"


def training_run(recipe: Recipe, work: Work) -> Run:
    """Where and how a training of this stage runs."""
    from selfcal.tracking import Tracked
    from selfcal.train import Run
    from selfcal.train.checkpoints import DIGESTS

    p, kind = recipe.policy, recipe.tracking
    ranks = recipe.executor.ranks if work.stage.spread == "ranks" else 1
    first = ranks == 1 or os.environ.get("RANK", "0") == "0"  # of those that train together
    tracked = Tracked(kind, work.run, recipe) if kind != "none" and first else None

    def saved(checkpoint: Path) -> None:
        files = sorted(p for p in checkpoint.rglob("*") if p.is_file())
        # its digests last: they say that the others are there
        work.saved(sorted(files, key=lambda p: p.name == DIGESTS))

    return Run(
        work.out, work.integer_seed(), p.device, p.dtype, work.progress, saved,
        place_of(work.run).deletes, ranks, p.attention, p.chat_template, p.trust_remote_code,
        tracked,
    )  # fmt: skip


def training_stats(work: Work, trained: Trained) -> Mapping[str, JSON]:
    """What a training did, for the manifest; its drops are written."""
    work.write("drops", trained.drops, Drop)
    lowered = {"micro_batch_size": trained.lowered} if trained.lowered else {}
    together = {"ranks": trained.ranks} if trained.ranks > 1 else {}
    return {
        **lowered,
        **together,
        "steps": trained.steps,
        "rows": trained.rows,
        "drops": count_drops(trained.drops),
        "curve": [dict(row) for row in trained.curve],
    }
