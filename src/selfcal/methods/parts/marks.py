"""Marks of a checkpoint's responses, where a marker stands in for a verifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from selfcal.errors import StoreError
from selfcal.methods.parts.base import REACHING, chat_client
from selfcal.recipe import Recipe
from selfcal.stage import Work
from selfcal.store import fingerprint
from selfcal.types import Response, Sample

if TYPE_CHECKING:
    from selfcal.evaluate.marking import Mark, Marker
    from selfcal.recipe import Marker as MarkerSettings

_SHARD = 50
_SETTING = "evaluate.marker.prompts"


def marker_settings(recipe: Recipe) -> dict[str, Any]:
    """What a measurement depends on for its marks; nothing without a marker."""
    marker = recipe.evaluate.marker
    return {} if marker is None else {"marker": what_marks(marker)}


def what_marks(settings: MarkerSettings) -> dict[str, Any]:
    """All that marks depend on."""
    from selfcal.prompts import Prompts

    said = settings.model_dump(exclude=REACHING | {"prompts", "batch_size"})
    prompts = Prompts("marker", settings.prompts, _SETTING)
    return said | {"prompts": prompts.digests("flaws")}


@contextmanager
def marker_for(
    settings: MarkerSettings, work: Work | None = None, device: str = "auto"
) -> Iterator[Marker]:
    """The marker of these settings; `work`: the stage that asks, whose run has the ledger."""
    from selfcal.evaluate.marking import ChatMarker
    from selfcal.prompts import Prompts

    prompts = Prompts("marker", settings.prompts, _SETTING)
    if settings.kind == "endpoint":
        with chat_client(settings, work, "marker") as client:
            yield ChatMarker(client, settings.sees, prompts)
    else:
        from selfcal.local import LocalModel, Running

        how = Running(
            settings.dtype, device, settings.batch_size, settings.max_tokens,
            settings.temperature, work.integer_seed() if work else 0,
        )  # fmt: skip
        yield ChatMarker(LocalModel(settings.model, how), settings.sees, prompts)


def at_once(settings: MarkerSettings) -> int:
    """How many responses are marked side by side."""
    return settings.concurrency if settings.kind == "endpoint" else settings.batch_size


def mark_split(recipe: Recipe, work: Work, split: str) -> Mapping[str, Mark]:
    """Marks of a split's responses by sample id; sound shards that are there already are kept.

    Raises:
        MarkerError: the marker failed at a sample.
    """
    from selfcal.evaluate.marking import Mark, mark_all

    settings, name = recipe.evaluate.marker, f"marks-{split}"
    assert settings is not None
    samples: dict[str, Sample] = {s.id: s for s in work.samples("data", split)}
    responses, found = work.folder.read(split, Response), dict[str, Mark]()
    with ExitStack() as opened:
        device = recipe.policy.device
        marker = cache(lambda: opened.enter_context(marker_for(settings, work, device)))
        for i, start in enumerate(range(0, len(responses), _SHARD)):
            own = responses[start : start + _SHARD]
            if (marks := _kept(work, name, i, own)) is None:
                pairs = [(samples[r.sample_id], r.text) for r in own]
                made = mark_all(marker(), pairs, at_once(settings))
                marks = [replace(m, of=_name(r)) for m, r in zip(made, own, strict=True)]
                work.folder.write_shard(name, i, marks, Mark)
                work.saved([work.folder.shard(name, i)])
            found |= {m.sample_id: m for m in marks}
    return found


def _kept(work: Work, name: str, i: int, responses: Sequence[Response]) -> list[Mark] | None:
    """Marks of these very responses that are there already; None if they are not, or damaged."""
    from selfcal.evaluate.marking import Mark

    if not work.folder.has(name, i):
        return None
    try:
        marks = work.folder.read_shard(name, i, Mark)
    except StoreError:
        return None
    same = [m.of for m in marks] == [_name(r) for r in responses]
    return marks if same else None  # responses that were damaged are made anew, and may differ


def _name(response: Response) -> str:
    return fingerprint([response.sample_id, response.text])
