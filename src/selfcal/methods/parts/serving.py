"""The engine that a stage searches on: the policy in this process, or one on a server.

A server holds the model as it was given. What trainings have made of it since is loaded as one
adapter beside it, for as long as the stage runs; a server that was started on the stage's own
merged checkpoint is taken as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcal.methods.parts.base import form_of, policy_at, weights
from selfcal.rationale import HEADINGS, RapFormat
from selfcal.recipe import Recipe
from selfcal.stage import Work
from selfcal.types import Sample

if TYPE_CHECKING:
    from selfcal.search import Engine, Limits, Sampling
    from selfcal.search.probe import Served
    from selfcal.search.served import ServedEngine
    from selfcal.search.server import Connection
    from selfcal.search.stacked import Adapters


@dataclass(frozen=True, slots=True)
class Use:
    """What an engine is for."""

    sampling: Sampling
    tokens: int
    """Tokens a sentence, at most."""
    rows: int
    """Rows decoded at once, at most, by an engine in this process."""
    whole: bool = False
    """Whether a "sentence" is the whole response."""
    form: RapFormat = HEADINGS
    images: int = 1
    """Images in one prompt, at most."""


def greedily(recipe: Recipe, rows: int, samples: Iterable[Sample] = ()) -> Use:
    """For whole greedy responses."""
    from selfcal.search import Sampling

    sampling = Sampling(temperature=0)
    tokens = recipe.evaluate.max_new_tokens
    return Use(sampling, tokens, rows, whole=True, images=most_images(samples))


def most_images(samples: Iterable[Sample]) -> int:
    """Images of one sample, at most."""
    return max((len(s.images) for s in samples), default=1)


def backend_of(recipe: Recipe) -> dict[str, Any]:
    """What a stage depends on that searches; nothing for the default."""
    backend = recipe.policy.backend
    return {} if backend == "transformers" else {"backend": backend}


@contextmanager
def engine_for(
    recipe: Recipe, work: Work, start: str | None, use: Use
) -> Iterator[Engine | ServedEngine]:
    """The engine for the policy of stage `start`; None: the model as it was given.

    Raises:
        ModelError: the policy cannot be loaded, or the server cannot do what is needed.
    """
    if recipe.policy.server is None:
        from selfcal.search import Engine

        policy = policy_at(recipe, work, start)
        yield Engine(
            policy, use.sampling, use.tokens, engine_limits(recipe, use.rows), use.whole, use.form
        )
    else:
        from selfcal.search.server import Connection

        with Connection(recipe.policy.server) as server:
            yield from _served(recipe, work, start, use, server)


def engine_limits(recipe: Recipe, rows: int) -> Limits:
    """What an engine in this process may use."""
    from selfcal.search import Limits

    gib = recipe.search.cache_gib
    return Limits(rows, None if gib is None else int(gib * 2**30), recipe.search.prompt_tokens)


def _served(
    recipe: Recipe, work: Work, start: str | None, use: Use, server: Connection
) -> Iterator[ServedEngine]:
    """An engine on the server, with the adapters that the policy needs."""
    from selfcal.policy import check_opening, load_processor
    from selfcal.search.probe import Wants, check_server, find_model, serves
    from selfcal.search.served import ServedEngine
    from selfcal.search.stacked import adapters_of

    p, settings = recipe.policy, recipe.policy.server
    assert settings is not None
    cards, adapters = server.models(), None
    own = Path(weights(recipe, work, start)) if start else None
    card = next((c for c in cards if own and serves(c, own)), None)
    if card is None:
        adapters = adapters_of(work.run, start, p.model) if start else None
        card = find_model(cards, settings.model, p.model, server.address)
    processor = load_processor(p.model, p.trust_remote_code, p.chat_template)
    check_opening(processor, form_of(recipe))
    rank = adapters.rank if adapters else None
    wants = Wants(use.sampling.temperature > 0, use.images, use.tokens, rank)
    served = check_server(server, card, processor, wants)
    if adapters is None:
        yield ServedEngine(server, served, use.sampling, use.tokens, use.whole, use.form)
    else:
        with _loaded(server, served, adapters, work.out / "serving") as adapted:
            yield ServedEngine(server, adapted, use.sampling, use.tokens, use.whole, use.form)


@contextmanager
def _loaded(server: Connection, served: Served, adapters: Adapters, out: Path) -> Iterator[Served]:
    """The model with adapters, for as long as the block runs."""
    from selfcal.policy import ModelError
    from selfcal.search.server import ServerError
    from selfcal.search.stacked import stack

    folder = stack(adapters, out.resolve())
    try:
        if any(card.id == adapters.name for card in server.models()):
            server.unload_adapter(adapters.name)  # what a killed run left there
        try:
            server.load_adapter(adapters.name, str(folder))
        except ServerError as error:
            raise ModelError(
                f"{error}; the adapter lies in {folder}: the server must see this very path (the "
                "same machine, or a shared file system) and be started with --enable-lora "
                f"--max-lora-rank {adapters.flag}"
            ) from error
        try:
            yield replace(served, name=adapters.name)
        finally:
            with suppress(ServerError):  # it takes a place on the server, and does nothing there
                server.unload_adapter(adapters.name)
    finally:
        shutil.rmtree(out, ignore_errors=True)
