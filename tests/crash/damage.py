"""Damage between two processes: files cut, flipped, emptied, deleted or filled with rubbish.

It is done to a copy of the undisturbed run, whole, or cut back to where a kill would have left it.
For each damage it is known which stage must be done again, and which of its shards; all else that
is done again is a fault, as is anything in the outcome.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash.attempt import Ended, attempt, going
from crash.kills import Outcome, sound, tail
from crash.truth import Truth
from selfcal.store import MANIFEST, MARKER, read_json

Shard = tuple[str, int]


def cut(data: bytes, rng: random.Random) -> bytes:
    """The first half."""
    return data[: len(data) // 2]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """One bit is another."""
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def emptied(data: bytes, rng: random.Random) -> bytes:
    """Nothing is left, as when the power went before the data was written."""
    return b""


def zeroed(data: bytes, rng: random.Random) -> bytes:
    """As long as it was, and all zeros, as some file systems leave it."""
    return bytes(len(data))


def rubbish(data: bytes, rng: random.Random) -> bytes:
    """As long as it was, and random."""
    return rng.randbytes(len(data))


def foreign(data: bytes, rng: random.Random) -> bytes:
    """JSON of another shape."""
    return rng.choice([b"[]\n", b'{"files": 3}\n', b"null\n", b'{"fingerprint": []}\n'])


HOWS: Mapping[str, Callable[[bytes, random.Random], bytes] | None] = {
    "cut": cut, "flipped": flipped, "emptied": emptied, "zeroed": zeroed, "rubbish": rubbish,
    "foreign": foreign, "deleted": None,
}  # fmt: skip
_RECORDS = ("cut", "flipped", "emptied", "zeroed", "rubbish", "deleted")
_NOTES = ("cut", "emptied", "zeroed", "rubbish", "foreign", "deleted")


@dataclass(frozen=True)
class Damage:
    """One file that is damaged, and what must be done again for it."""

    file: str
    how: str
    stages: frozenset[str] = frozenset()
    """Stages that may be done again, as a whole or their end."""
    shards: frozenset[Shard] = frozenset()
    """Shards that must be."""


@dataclass(frozen=True)
class Case:
    """A run as it lies there, and what is damaged of it."""

    name: str
    damages: tuple[Damage, ...]
    until: str | None = None
    """The stage in work; None: the run is finished."""
    kept: int = 0
    """Shards that the stage in work has."""
    exact: bool = True
    """Whether it is known what must be done again."""


def hurt(run: Path, damage: Damage, rng: random.Random) -> None:
    """Damage a file; behind the back of everyone who would write it anew."""
    path, how = run / damage.file, HOWS[damage.how]
    if how is None:
        path.unlink()
    else:
        path.write_bytes(how(path.read_bytes(), rng))


# --- a run that a kill left -----------------------------------------------------------------


def copy(truth: Truth, run: Path, until: str | None, kept: int) -> None:
    """The undisturbed run, cut back to a stage in work of which so many shards are there."""
    shutil.copytree(truth.run, run)
    if until is None:
        return
    names = [n for n in truth.stages if n != "start"]
    for name in names[names.index(until) + 1 :]:
        shutil.rmtree(run / name)
    folder = run / until
    (folder / MANIFEST).unlink()
    for path in folder.glob("*.parquet"):
        if int(path.stem[-5:]) >= kept or path.name not in _sharded(truth, until):
            path.unlink()
    for mark in folder.glob("shards/*.json"):
        if int(mark.stem) >= kept:
            mark.unlink()
    for made in ("checkpoint", "adapter"):  # a training is left between two steps
        shutil.rmtree(folder / made, ignore_errors=True)


def _sharded(truth: Truth, stage: str) -> dict[str, int]:
    """The record files of a stage that belong to shards, with their numbers."""
    marks = (truth.run / stage / "shards").glob("*.json")
    return {name: int(mark.stem) for mark in marks for name in read_json(mark)["files"]}


def rest(truth: Truth, case: Case) -> tuple[set[str], set[Shard]]:
    """Stages and shards that have to be done anyway, for they are not there."""
    if case.until is None:
        return set(), set()
    names = [n for n in truth.stages if n != "start"]
    todo = names[names.index(case.until) :]
    shards = {(n, i) for n in todo for i in range(truth.stages[n].shards)}
    return set(todo), shards - {(case.until, i) for i in range(case.kept)}


# --- cases ----------------------------------------------------------------------------------


def cases(truth: Truth, seed: int, rounds: int) -> list[Case]:
    """Every kind of file, damaged in every kind of run; other ones in every round."""
    found = []
    for n in range(rounds):
        rng = random.Random(f"{seed}|damage|{n}")
        found += [
            _finished(truth, rng, f"damage-finished-{n}"),
            _notes(truth, rng, f"damage-notes-{n}"),
            _whole_stages(truth, rng, f"damage-whole-{n}"),
            _in_work(truth, rng, f"damage-in-work-{n}"),
            _training(truth, rng, f"damage-training-{n}"),
            _weights(truth, rng, f"damage-weights-{n}"),
            _power(truth, rng, f"power-cut-{n}"),
        ]
    return found


def _long(truth: Truth) -> list[str]:
    return [name for name, s in truth.stages.items() if s.shards > 1]


def _finished(truth: Truth, rng: random.Random, name: str) -> Case:
    """One file of one shard of every other sharded stage of a finished run."""
    own = rng.sample(_long(truth), len(_long(truth)) // 2)
    return Case(name, tuple(_one_shard(truth, stage, rng) for stage in own))


def _one_shard(truth: Truth, stage: str, rng: random.Random, below: int | None = None) -> Damage:
    files = {f: i for f, i in _sharded(truth, stage).items() if below is None or i < below}
    file = rng.choice(sorted(files))
    shard = frozenset({(stage, files[file])})
    return Damage(f"{stage}/{file}", rng.choice(_RECORDS), frozenset({stage}), shard)


def _notes(truth: Truth, rng: random.Random, name: str) -> Case:
    """Manifests, markers, marks and the recipe of a finished run: its shards are sound."""
    stages = rng.sample([n for n in truth.stages if n != "start"], 6)
    long = [s for s in _long(truth) if s not in stages]
    files = [f"{s}/{MANIFEST if i % 2 else MARKER}" for i, s in enumerate(stages)]
    found = [Damage(f, rng.choice(_NOTES), frozenset({f.rpartition("/")[0]})) for f in files]
    mark = rng.choice(long)
    number = rng.randrange(truth.stages[mark].shards)
    found.append(Damage(f"{mark}/shards/{number:05d}.json", rng.choice(_NOTES), frozenset({mark})))
    # not deleted: a folder without it is no run
    found.append(Damage("recipe.json", rng.choice(_NOTES[:-1])))
    return Case(name, tuple(found))


def _whole_stages(truth: Truth, rng: random.Random, name: str) -> Case:
    """Files of stages without shards, and the end of such with shards, in a finished run."""
    image = rng.choice(sorted(truth.run.glob("data/images/**/*.png")))
    own = [image, *(p for p in truth.run.rglob("*.parquet") if not _is_sharded(truth, p))]
    picked = {p.parent: p for p in rng.sample(own[1:], 4)}.values()  # one a stage
    found = []
    for path in (image, *(p for p in picked if "data" not in p.parts)):
        file = path.relative_to(truth.run).as_posix()
        found.append(Damage(file, rng.choice(_RECORDS), frozenset({_stage(truth, file)})))
    return Case(name, tuple(found))


def _is_sharded(truth: Truth, path: Path) -> bool:
    stage = path.parent.relative_to(truth.run).as_posix()
    return path.name in _sharded(truth, stage)


def _stage(truth: Truth, file: str) -> str:
    return next(n for n in truth.stages if file.startswith(f"{n}/"))


def _in_work(truth: Truth, rng: random.Random, name: str) -> Case:
    """A stage in work: one of its shards, and the mark of another or its marker; and one before."""
    stage = rng.choice([s for s in _long(truth) if truth.stages[s].shards > 2])
    kept = truth.stages[stage].shards - 1
    own = _one_shard(truth, stage, rng, below=kept)
    ((_, hit),) = own.shards
    other = rng.choice([i for i in range(kept) if i != hit])
    mark = Damage(
        f"{stage}/shards/{other:05d}.json", rng.choice(_NOTES), shards=frozenset({(stage, other)})
    )
    note = rng.choice([mark, Damage(f"{stage}/{MARKER}", rng.choice(_NOTES))])
    before = [
        s for s in _long(truth) if list(truth.stages).index(s) < list(truth.stages).index(stage)
    ]
    earlier = [_one_shard(truth, rng.choice(before), rng)] if before else []
    return Case(name, (own, note, *earlier), stage, kept)


def _training(truth: Truth, rng: random.Random, name: str) -> Case:
    """A training in work: a file of TRL's checkpoint, which must not be trusted."""
    stage = rng.choice(["rft", "judge/train", "iter-1/dpo", "iter-2/dpo"])
    files = sorted((truth.run / stage / "trl").glob("checkpoint-*/*"))
    own = [f for f in files if f.suffix in (".safetensors", ".pt", ".pth", ".json", ".bin")]
    file = rng.choice(own).relative_to(truth.run).as_posix()
    return Case(name, (Damage(file, rng.choice(_RECORDS)),), stage)


def _weights(truth: Truth, rng: random.Random, name: str) -> Case:
    """Weights that a stage in work reads: the training before it is done again, and none else."""
    stage, reader = rng.choice(
        [("rft", "judge/candidates"), ("judge/train", "iter-1/judgments"),
         ("iter-1/dpo", "iter-2/candidates")]
    )  # fmt: skip
    files = [p for p in (truth.run / stage / "checkpoint").iterdir() if p.is_file()]
    file = rng.choice(sorted(files)).relative_to(truth.run).as_posix()
    how = rng.choice(_RECORDS)
    return Case(name, (Damage(file, how, frozenset({stage})),), reader, 1)


def _power(truth: Truth, rng: random.Random, name: str) -> Case:
    """The last files of a run in work are empty or zeros: named, and never filled."""
    stage = rng.choice([n for n in truth.stages if n not in ("start", "data")])
    kept = max(0, truth.stages[stage].shards - 1)
    names = list(truth.stages)
    near = [stage, names[names.index(stage) - 1]]
    files = sorted(
        p for n in near for p in (truth.run / n).rglob("*")
        if p.is_file() and not _gone(truth, p, stage, kept)
    )  # fmt: skip
    last = sorted(files, key=lambda p: p.stat().st_mtime_ns)[-6:]
    found = [
        Damage(p.relative_to(truth.run).as_posix(), rng.choice(["emptied", "zeroed", "cut"]))
        for p in rng.sample(last, min(3, len(last)))
    ]
    return Case(name, tuple(found), stage, kept, exact=False)


def _gone(truth: Truth, path: Path, stage: str, kept: int) -> bool:
    """Whether a file is not there in a run that is cut back (see `copy`)."""
    inside = path.relative_to(truth.run).as_posix().removeprefix(f"{stage}/")
    if not path.is_relative_to(truth.run / stage):
        return False
    if path.suffix == ".parquet":
        return inside not in _sharded(truth, stage) or int(path.stem[-5:]) >= kept
    mark = re.fullmatch(r"shards/(\d+)\.json", inside)
    return (
        inside == MANIFEST
        or inside.startswith(("checkpoint/", "adapter/"))
        or (mark is not None and int(mark[1]) >= kept)
    )


# --- what becomes of it ---------------------------------------------------------------------


@dataclass
class Done:
    """What was done again."""

    stages: set[str] = field(default_factory=set)
    shards: list[Shard] = field(default_factory=list)

    @classmethod
    def of(cls, ended: Ended) -> Done:
        """Read it off an attempt."""
        stages = {e["stage"] for e in ended.of("begins")}
        return cls(stages, [(e["stage"], e["shard"]) for e in ended.of("sealed")])


def damage(truth: Truth, case: Case, work: Path, seed: int) -> Outcome:
    """Damage a copy of the run, go on with it, and look at what it is and what was done again."""
    run, log, found = work / "run", work / "log", Outcome(case.name)
    copy(truth, run, case.until, case.kept)
    rng = random.Random(f"{seed}|{case.name}|hurt")
    for d in case.damages:
        hurt(run, d, rng)
        found.fired.append({"in": _of(truth, d.file), "kind": d.how, "at": d.file})
    ended = attempt(going(truth.recipe, run), log)
    found.attempts = 1
    if ended.code:
        found.faults.append(f"{_said(case)}: it ended with {ended.code}: {tail(ended)}")
        return found
    if case.exact:
        found.faults += _redone(truth, case, Done.of(ended))
    found.faults += sound(truth, run, log)
    return found


def _of(truth: Truth, file: str) -> str:
    return next((n for n in truth.stages if file.startswith(f"{n}/")), "start")


def _said(case: Case) -> str:
    return json.dumps({d.file: d.how for d in case.damages})


def _redone(truth: Truth, case: Case, done: Done) -> list[str]:
    """In what another part was done again than had to be."""
    stages, shards = rest(truth, case)
    may = stages.union(*(d.stages for d in case.damages))
    must = shards.union(*(d.shards for d in case.damages))
    found: list[Any] = []
    if more := sorted(done.stages - may):
        found.append(f"{_said(case)}: {more} were done again, and were sound")
    if less := sorted(must - set(done.shards)):
        found.append(f"{_said(case)}: shards {less} were damaged, and were not done again")
    whole = may - stages - set(_with_shards(truth))
    more_shards = sorted({s for s in done.shards if s not in must and s[0] not in whole})
    if more_shards:
        found.append(f"{_said(case)}: shards {more_shards} were done again, and were sound")
    if len(done.shards) != len(set(done.shards)):
        found.append(f"{_said(case)}: a shard was done twice")
    return found


def _with_shards(truth: Truth) -> list[str]:
    """Stages with shards."""
    return [name for name, s in truth.stages.items() if s.shards]
