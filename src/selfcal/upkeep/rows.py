"""The records of a finished stage: each one decodes, refers to what there is, and is there once.

Records are read shard by shard. What is kept of them are ids and small counts, a few hundred bytes
a sample, so that a large run needs little memory.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from selfcal import types
from selfcal.errors import StoreError
from selfcal.evaluate.marking import Mark
from selfcal.methods.parts.base import SPLITS
from selfcal.parquet import kind_of
from selfcal.planning import Planned
from selfcal.recipe import Recipe
from selfcal.store import StageDir, explained
from selfcal.types import (
    Candidate,
    Drop,
    Judgment,
    PreferencePair,
    Response,
    Sample,
    SearchNode,
    WrittenRap,
)
from selfcal.upkeep.findings import Findings

_KINDS: Mapping[str, type[Any]] = {
    k.__name__: k for k in (*vars(types).values(), Mark) if hasattr(k, "__dataclass_fields__")
}
_KEYS: Mapping[type[Any], tuple[str, ...]] = {
    Sample: ("id",),
    Candidate: ("sample_id", "index"),
    SearchNode: ("sample_id", "node"),
    Judgment: ("sample_id", "first", "second"),
    PreferencePair: ("sample_id", "chosen", "rejected"),
    Response: ("sample_id",),
    Mark: ("sample_id",),
}
"""By what a record is told from all others of its name."""
_OF_SAMPLES = (Candidate, SearchNode, Judgment, PreferencePair, Response, WrittenRap, Mark)


@dataclass
class Known:
    """What is known of a run by the stages that were read before."""

    recipe: Recipe
    run: Path
    splits: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the samples of each split, in order."""
    ids: set[str] = field(default_factory=set)
    candidates: dict[str, dict[str, int]] = field(default_factory=dict)
    """By stage, how many candidates each sample has."""


@dataclass
class _Seen:
    """What a stage's records have told so far."""

    keys: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Hashes of the keys, by name of the records."""
    covered: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Ids of the samples that have a record, by name of the records."""
    nodes: tuple[str, set[int]] = ("", set())
    """The sample whose search nodes came last, and their numbers."""
    drops: Counter[str] = field(default_factory=Counter)
    rows: int = 0


def check_rows(p: Planned, known: Known, found: Findings) -> int:
    """Check all records of a finished stage; gives how many there are."""
    seen, there = _Seen(), _kinds(p.folder, found)
    for name, kind in there.items():
        if kind is Candidate:
            known.candidates[p.stage.name] = {}
        if p.stage.name == "data" and kind is Sample:
            known.splits[name] = []
        for file, row, record in _records(p.folder, name, kind, found):
            seen.rows += 1
            say = partial(found.add, f"{p.stage.name}/{file}", row=row)
            _check(p, name, record, known, seen, say)
    if Drop in there.values():
        _compare_drops(p, seen, found)
    for name, expected in _expected(p, there, known):
        lost = expected - seen.covered[name] - seen.covered["drops"]
        if lost:
            example = sorted(lost)[0]
            found.add(
                p.stage.name, f"{len(lost)} samples are neither in {name!r} nor among the drops, "
                f"such as {example!r}",
            )  # fmt: skip
    return seen.rows


def _kinds(folder: StageDir, found: Findings) -> dict[str, type[Any]]:
    """Names of a stage's records, and their kind; those of unknown kinds are not looked into."""
    names = [re.fullmatch(r"([a-z][a-z0-9_-]*)-\d{5,}\.parquet", f) for f in _listed(folder)]
    kinds = {}
    for name in dict.fromkeys(match[1] for match in names if match):
        path = folder.shard(name, folder.numbers(name)[0]) if folder.numbers(name) else None
        if path is not None:
            try:
                with explained("read", path):
                    kind = _KINDS.get(kind_of(path.read_bytes()))
            except (StoreError, ValueError):
                continue  # its digest is wrong, too, and that is told
            if kind is not None:
                kinds[name] = kind
    order = list(_KEYS)  # candidates before what refers to them
    return dict(sorted(kinds.items(), key=lambda k: order.index(k[1]) if k[1] in order else 99))


def _listed(folder: StageDir) -> Collection[str]:
    files: Mapping[str, Any] = folder.manifest()["files"]
    return files.keys()


def _records(
    folder: StageDir, name: str, kind: type[Any], found: Findings
) -> Iterator[tuple[str, int, Any]]:
    """File, row and record, of all shards of that name that can be read."""
    for i in folder.numbers(name):
        file = folder.shard(name, i).name
        try:
            records = folder.read_shard(name, i, kind)
        except StoreError:
            found.add(f"{found.stage}/{file}", f"cannot be read as {kind.__name__} records")
            continue
        for row, record in enumerate(records):
            yield file, row, record


Say = Callable[..., None]


def _check(p: Planned, name: str, record: Any, known: Known, seen: _Seen, say: Say) -> None:
    kind = type(record)
    if names := _KEYS.get(kind):
        key = tuple(getattr(record, field) for field in names)
        if hash(key) in seen.keys[name]:
            say(f"a second record of {', '.join(map(repr, key[:3]))}")
        seen.keys[name].add(hash(key))
    sample_id = record.id if kind is Sample else getattr(record, "sample_id", None)
    if sample_id is None:
        return
    seen.covered[name].add(sample_id)
    if kind in _OF_SAMPLES and known.ids and sample_id not in known.ids:
        say(f"names sample {sample_id!r}, which the run does not have")
    if kind is Sample:
        _check_sample(p, name, record, known, say)
    elif kind is Candidate:
        own = known.candidates[p.stage.name]
        own[sample_id] = max(own.get(sample_id, 0), record.index + 1)
    elif kind is SearchNode:
        _check_node(record, seen, say)
    elif kind is Judgment:
        _check_indices(p, sample_id, (record.first, record.second), known, say)
    elif kind is PreferencePair:
        _check_indices(p, sample_id, (record.chosen_index, record.rejected_index), known, say)
        _check_images([record.rejected_image] if record.rejected_image else [], known, say)
    elif kind is Drop:
        seen.drops[record.reason] += 1


def _check_sample(p: Planned, name: str, sample: Sample, known: Known, say: Say) -> None:
    if p.stage.name == "data":
        known.splits[name].append(sample.id)
        known.ids.add(sample.id)
    _check_images(sample.images, known, say)


def _check_images(images: Collection[str], known: Known, say: Say) -> None:
    for image in images:
        path, inside = known.run / image, not Path(image).is_absolute()
        if inside and ".." in Path(image).parts:
            say(f"image {image!r} leaves the run by `..`")
        elif not path.is_file():
            say(f"image {image!r} is not there", way_out="" if inside else "put it back")


def _check_node(node: SearchNode, seen: _Seen, say: Say) -> None:
    if seen.nodes[0] != node.sample_id:
        seen.nodes = node.sample_id, set()
    if node.parent != -1 and node.parent not in seen.nodes[1]:
        say(f"node {node.node} of sample {node.sample_id!r} has no parent {node.parent} before it")
    seen.nodes[1].add(node.node)


def _check_indices(
    p: Planned, sample_id: str, indices: Collection[int], known: Known, say: Say
) -> None:
    """Candidates by their index, of the stages that are read; -1 stands for another text."""
    read = [known.candidates[name] for name in p.stage.inputs if name in known.candidates]
    most = max((own.get(sample_id, 0) for own in read), default=None)
    for i in indices:
        if most is not None and i >= most:
            say(f"names candidate {i} of sample {sample_id!r}, which has {most}")


def _compare_drops(p: Planned, seen: _Seen, found: Findings) -> None:
    said = p.folder.manifest()["stats"].get("drops")
    if isinstance(said, Mapping) and dict(said) != dict(seen.drops):
        found.add(p.stage.name, f"counts drops {dict(said)}, its records are {dict(seen.drops)}")


def _expected(
    p: Planned, there: Mapping[str, type[Any]], known: Known
) -> Iterator[tuple[str, set[str]]]:
    """Names of records, and the samples of which each must be there, or be dropped."""
    if found := re.fullmatch(r"iter-(\d+)/candidates", p.stage.name):
        every, data = known.splits.get("calibration", []), known.recipe.data
        t, of = int(found[1]), known.recipe.iterations
        yield "candidates", set(every if data.repeat else every[t - 1 :: of])
    elif re.fullmatch(r"iter-\d+/pairs", p.stage.name) and "pairs" in there:
        for name in p.stage.inputs:
            if name in known.candidates:
                yield "pairs", set(known.candidates[name])
    elif p.stage.name == "teacher" and "raps" in there:
        yield "raps", set(known.splits.get("rft", []))
    elif p.stage.name.startswith("eval/"):
        for split in set(SPLITS) & there.keys() - {"calibration", "rft"}:
            if there[split] is Response:
                yield split, set(known.splits.get(split, []))
