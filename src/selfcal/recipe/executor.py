"""Settings of who does the work: this machine, or a Ray cluster.

Which records are made, and what is learned, does not depend on it, to within rounding and what
docs/scaling.md names of `ranks`. A stage's figures say how many of these trained.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from selfcal.recipe.base import Positive, Settings


class LocalExecutor(Settings):
    """This machine."""

    kind: Literal["local"] = "local"
    ranks: Positive = 1
    """Processes that a training runs in, one a GPU; started as torchrun does."""


class RayExecutor(Settings):
    """A Ray cluster: actors with a model each do the shards of a stage (Ray Data)."""

    kind: Literal["ray"] = "ray"
    address: str | None = None
    """Of the cluster that this machine belongs to: `auto` or HOST:6379. None: that one, or a new
    one on this machine."""
    workers: Positive = 1
    """Actors, at least."""
    max_workers: Positive | None = None
    """Actors, at most: as many as there is work and room for; None: `workers`. Samples under a
    token `budget` are searched in order, and so by the process that runs the recipe."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs an actor; a part, such as 0.5, where several fit onto one (then give each its share of
    the memory by `search.cache_gib`). None: one, where the cluster has any when the run starts."""
    cpus: Positive = 1
    """CPU cores an actor, and torch's threads in it."""
    ranks: Positive = 1
    """Processes that a training runs in, one a GPU, on as many nodes as it takes (Ray Train)."""

    @model_validator(mode="after")
    def _room(self) -> RayExecutor:
        if self.max_workers is not None and self.max_workers < self.workers:
            raise ValueError("max_workers: is less than `workers`; raise it, or leave it out")
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError("gpus: a part of a GPU is less than one; give a whole number above")
        return self


def in_full(value: Any) -> Any:
    """A kind alone, written out."""
    return {"kind": value} if isinstance(value, str) else value


def _of_a_kind(value: Any) -> Any:
    """Settings with their kind, which is known and has such settings.

    Raises:
        ValueError: it is not, or has not; the text says what would do.
    """
    value = in_full(value)
    if isinstance(value, Settings):
        return value
    kind = value.get("kind", "local") if isinstance(value, dict) else value
    if kind not in ("local", "ray"):
        raise ValueError(
            f"is {kind!r}; give `local` or `ray`, or settings with one as their `kind`"
        )
    rays = [k for k in RayExecutor.model_fields if k not in LocalExecutor.model_fields]
    if kind == "local" and (foreign := [k for k in rays if k in value]):
        raise ValueError(
            f"{', '.join(foreign)}: of `executor: ray` alone; add `--set executor=ray`, or "
            "`kind: ray` in the recipe"
        )
    return {"kind": kind, **value}


Executor = Annotated[
    LocalExecutor | RayExecutor,
    Field(discriminator="kind"),
    BeforeValidator(_of_a_kind),
]
"""Who does the work; a kind alone is enough."""
