"""Finished stages are looked at before a run goes on with them, and what is damaged is made anew.

Record files are compared with the manifest's digests; weights, which are large, by their size
alone where no stage that is to be done reads them, and adapters where none is to be done. Of a
stage with shards, just the damaged shards are done again; any other stage is, as a whole. What
others made of its outcome stays, unless that outcome has changed: each manifest names what its
stage has read.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from selfcal.accounts import said
from selfcal.planning import Planned
from selfcal.store import JSON, MARKS, StageDir, changed, explained

WEIGHTS = "adapter", "checkpoint"
_SHARD = re.compile(r"([a-z][a-z0-9_-]*)-(\d{5,})\.parquet")
_IMAGE = re.compile(r"images/(\d{5,})/")


def survey(
    planned: Sequence[Planned], between: Callable[[], None] = lambda: None
) -> dict[str, list[str]]:
    """What is damaged or missing of the finished stages, by stage.

    Damaged manifests, markers and marks are written anew; nothing is named of a stage of which
    there was no other damage.

    `between` is called before each stage is looked at.

    Raises:
        StoreError: a file cannot be read, or a manifest cannot be written.
    """
    faults: dict[str, list[str]] = {}
    looked: set[tuple[str, bool, bool]] = set()
    for p in planned:
        between()
        if p.folder.restore():
            faults[p.stage.name] = []  # said, and whole again
    while True:
        wanted = _weights_wanted(planned, [name for name, found in faults.items() if found])
        open_ = [
            (p, closely)
            for p in planned
            if p.folder.done
            and (p.stage.name, closely := p.stage.name in wanted, bool(wanted)) not in looked
        ]
        if not open_:
            return faults
        for p, closely in open_:
            between()
            looked.add((p.stage.name, closely, bool(wanted)))
            # a server is given the adapters of all trainings, not of the last one alone
            found = p.folder.verify(() if closely else WEIGHTS[1:] if wanted else WEIGHTS)
            found += freed_weights(p.folder) if closely else ()
            if found or _reseal(p.folder):
                faults[p.stage.name] = found


def freed_weights(folder: StageDir) -> list[str]:
    """Files of the merged checkpoint that `selfcal gc` has taken."""
    return [name for name in folder.manifest().get("freed", {}) if name.startswith("checkpoint/")]


def _weights_wanted(planned: Sequence[Planned], damaged: Collection[str]) -> set[str]:
    """Stages that are read by one that is to be done, or may be."""
    touched: set[str] = set()
    for p in planned:
        again = p.stage.name in damaged or not touched.isdisjoint(p.stage.inputs)
        if again or not p.folder.done:
            touched.add(p.stage.name)
    return {name for p in planned if p.stage.name in touched for name in p.stage.inputs}


def outcomes(p: Planned, folders: Mapping[str, StageDir]) -> dict[str, JSON]:
    """What names the outcome of each stage that a stage reads."""
    return {name: folders[name].outcome() for name in p.stage.inputs}


def stale(p: Planned, folders: Mapping[str, StageDir]) -> list[str]:
    """The inputs that have come to something else since a finished stage has read them."""
    return changed(p.folder.manifest().get("inputs", {}), outcomes(p, folders))


def mend(p: Planned, damaged: Sequence[str], planned: Sequence[Planned]) -> None:
    """Make ready that a finished stage is done again, as far as it is damaged.

    Until the stage is opened its manifest stays, so that a process which is killed on the way
    leaves the damage to be found again.

    Raises:
        StoreError: the system refused, or a link leads out of the stage.
    """
    if not _marks(p.folder):
        redo(p, planned)
        return
    gone = [p.folder.own(p.folder.path / name) for name in damaged]
    _remember(p, planned)
    not_sealed = [i for i in _marks(p.folder) if not p.folder.sealed(i)]
    _seal_sound(p.folder, frozenset(damaged), not_sealed)
    with explained("clear", p.folder.path):
        for path in gone:
            path.unlink(missing_ok=True)


def redo(p: Planned, planned: Sequence[Planned]) -> None:
    """Move a finished stage aside, so that all of it is done again.

    Raises:
        StoreError: the system refused.
    """
    _remember(p, planned)
    p.folder.set_aside()


def _remember(p: Planned, planned: Sequence[Planned]) -> None:
    """Let the manifests of its readers say what it had come to; older ones do not."""
    for reader in planned:
        if p.stage.name in reader.stage.inputs and reader.folder.done:
            manifest = reader.folder.manifest()
            read = manifest.setdefault("inputs", {})
            if p.stage.name not in read:
                read[p.stage.name] = p.folder.outcome()
                reader.folder.sign(manifest)


def _marks(folder: StageDir) -> set[int]:
    """Numbers of the shards that have a mark, be it damaged, or empty as older ones are."""
    marks = folder.path / MARKS
    found = [re.fullmatch(r"(\d{5,})(\.json)?", f.name) for f in marks.glob("*")]
    return {int(mark[1]) for mark in found if mark}


def _reseal(folder: StageDir) -> bool:
    """Write the marks of a sound stage anew that are damaged; whether there was one."""
    files, wrong = folder.manifest()["files"], []
    for i in _marks(folder):
        if folder.mark(i).exists():  # older ones say nothing that could be wrong
            mark = said(folder.mark(i))
            own = mark.get("fingerprint") == folder.fingerprint and "files" in mark
            if not own or any(files.get(name) != entry for name, entry in mark["files"].items()):
                wrong.append(i)
    with explained("mend", folder.path):
        for i in wrong:
            folder.mark(i).unlink()  # it is not asked for the names of records
    _seal_sound(folder, frozenset(), wrong)
    return bool(wrong)


def _seal_sound(folder: StageDir, damaged: Collection[str], numbers: Collection[int]) -> None:
    """Seal those of these shards whose files are sound by the manifest."""
    shards, count, broken = defaultdict[int, set[str]](set), Counter[str](), set[int]()
    for file in folder.manifest()["files"]:
        if found := _SHARD.fullmatch(file):
            count[found[1]] += 1
            shards[int(found[2])] |= set() if file in damaged else {found[1]}
        elif (image := _IMAGE.match(file)) and file in damaged:
            broken.add(int(image[1]))
    every = _marks(folder) | set(numbers)
    # all marks have the same names; older ones have none, and no other records as many files
    names = next(
        filter(None, map(folder.names, every)),
        [name for name, n in count.items() if n == len(every)],
    )
    sizes = (said(folder.mark(i)).get("size") for i in every)
    sized = replace(folder, size=next((size for size in sizes if size is not None), None))
    for i in numbers:
        if names and i not in broken and shards[i].issuperset(names):
            sized.seal(i, names)
