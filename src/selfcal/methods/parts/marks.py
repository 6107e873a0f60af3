"""Marks of a checkpoint's responses, where a marker stands in for a verifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from selfcal.methods.parts.base import REACHING, chat_client
from selfcal.recipe import Recipe
from selfcal.stage import Work
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
    """Marks of a split's responses by sample id; shards that are there already are kept.

    Raises:
        MarkerError: the marker failed at a sample.
    """
    from selfcal.evaluate.marking import Mark, mark_all

    settings, name = recipe.evaluate.marker, f"marks-{split}"
    assert settings is not None
    samples: dict[str, Sample] = {s.id: s for s in work.samples("data", split)}
    responses = work.folder.read(split, Response)
    starts = range(0, len(responses), _SHARD)
    left = [i for i in range(len(starts)) if not work.folder.has(name, i)]
    if left:
        with marker_for(settings, work, recipe.policy.device) as marker:
            for i in left:
                own = responses[starts[i] : starts[i] + _SHARD]
                pairs = [(samples[r.sample_id], r.text) for r in own]
                marks = list(mark_all(marker, pairs, at_once(settings)))
                work.folder.write_shard(name, i, marks, Mark)
    return {m.sample_id: m for m in work.folder.read(name, Mark)} if responses else {}
