"""What the stages of all parts need: their share of a recipe, and how records are grouped."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from selfcal.errors import StoreError
from selfcal.rationale import FORMATS, RapFormat
from selfcal.recipe import Dpo, Endpoint, Grpo, Recipe, Settings, Training
from selfcal.stage import Work, count_drops
from selfcal.store import JSON
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
    # GRPO samples a micro batch at a time; TRL's SFT term of DPO is a mean over one
    by_micro = isinstance(training, Grpo) or (isinstance(training, Dpo) and training.sft_weight > 0)
    return training.model_dump(exclude=_SPEED - ({"micro_batch_size"} if by_micro else set()))


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
    """Records sample by sample, read once from the first to the last one.

    So that not all records of a run are in memory at once.
    """

    def __init__(self, order: Iterable[str], records: Iterable[R]) -> None:
        """`order` has the ids of all samples in the records' order; some may have no record."""
        self._place = {sample_id: i for i, sample_id in enumerate(order)}
        self._groups: Iterator[tuple[str, Iterator[R]]] = groupby(
            records, key=lambda r: r.sample_id
        )
        self._next: tuple[str, Iterator[R]] | None = next(self._groups, None)

    def of(self, sample_id: str) -> list[R]:
        """A sample's, which comes after that of the last call; those in between are passed over.

        Raises:
            StoreError: there are records of a sample that `order` does not have.
        """
        while self._next is not None and self._at(self._next[0]) <= self._place[sample_id]:
            found, records = self._next[0], list(self._next[1])
            self._next = next(self._groups, None)
            if found == sample_id:
                return records
        return []

    def _at(self, sample_id: str) -> int:
        if sample_id not in self._place:
            raise StoreError(f"sample {sample_id!r} has records, but the run has no such sample")
        return self._place[sample_id]


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

    p, kind = recipe.policy, recipe.tracking
    tracked = None if kind == "none" else Tracked(kind, work.run, recipe)
    return Run(
        work.out, work.integer_seed(), p.device, p.dtype, work.progress, p.attention,
        p.chat_template, p.trust_remote_code, tracked,
    )  # fmt: skip


def training_stats(work: Work, trained: Trained) -> Mapping[str, JSON]:
    """What a training did, for the manifest; its drops are written."""
    work.write("drops", trained.drops, Drop)
    return {
        "steps": trained.steps,
        "rows": trained.rows,
        "drops": count_drops(trained.drops),
        "curve": [dict(row) for row in trained.curve],
    }
