"""Is a run what it should be: all checksums, schemas, fingerprints, references, each row once.

Nothing is written, and nothing of a stage in work is judged that may be about to change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfcal.accounts import said
from selfcal.lock import lock_holder
from selfcal.mending import WEIGHTS, stale
from selfcal.planning import Planned, locate, open_run
from selfcal.remote import is_address, shown
from selfcal.store import MANIFEST, MARKER, MARKS, StageDir
from selfcal.upkeep.findings import Finding, Findings
from selfcal.upkeep.rows import Known, check_rows


@dataclass(frozen=True)
class Checked:
    """What was looked at of one stage."""

    stage: str
    state: str
    """`done`, `begun` or `open`."""
    files: int
    rows: int
    findings: int


@dataclass(frozen=True)
class Verified:
    """What was found."""

    stages: Sequence[Checked]
    findings: Sequence[Finding]
    """At most `findings.MOST` of a stage; `Checked` has their number."""
    holder: str
    """Who works on the run at the moment; empty if nobody does."""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not any(s.findings for s in self.stages)


def verify_run(run: Path, tell: Callable[[str], None] = lambda stage: None) -> Verified:
    """Check a run; `tell` hears which stage is looked at.

    Raises:
        StoreError: the folder is no run, or its recipe cannot be read.
    """
    recipe, holder = open_run(run), lock_holder(run)
    planned = locate(recipe, run)
    known, stages, findings = Known(recipe, run), list[Checked](), list[Finding]()
    way_out = f"`selfcal run --out {shown(run)}` makes it anew"
    if is_address(shown(run)):  # of what is whole by its size, a run brings what it reads alone
        way_out = f"delete it there; then {way_out}"
    for p in planned:
        tell(p.stage.name)
        found = Findings(p.stage.name, way_out)
        files, rows = _check_stage(p, planned, known, found, at_work=bool(holder))
        state = "done" if p.folder.done else "begun" if p.folder.path.is_dir() else "open"
        stages.append(Checked(p.stage.name, state, files, rows, found.count))
        findings += found.kept
    return Verified(stages, findings, holder)


def _check_stage(
    p: Planned, planned: Sequence[Planned], known: Known, found: Findings, at_work: bool
) -> tuple[int, int]:
    """Check one stage; gives the numbers of its files and rows."""
    folder, name = p.folder, p.stage.name
    if not folder.path.is_dir():
        return 0, 0
    prints = [_print_of(folder, file, found) for file in (MARKER, MANIFEST)]
    others = {mark for mark in prints if mark and mark != folder.fingerprint}
    for other in others:
        found.add(name, f"is of other settings ({other}; the recipe's are {folder.fingerprint})")
    if not folder.done:
        if not others and not at_work:
            _check_marks(folder, name, found)
        return 0, 0
    if said(folder.path / MARKER).get("manifest") not in (None, folder.manifest()):
        found.add(f"{name}/{MARKER}", f"does not agree with {MANIFEST}")
    _check_files(folder, name, found)
    _check_marks(folder, name, found)
    _check_inputs(p, planned, found)
    return len(folder.manifest()["files"]), check_rows(p, known, found)


def _print_of(folder: StageDir, file: str, found: Findings) -> str:
    """The fingerprint that a file says; empty if it is missing."""
    if not (folder.path / file).exists():
        return ""
    account = said(folder.path / file)
    if account and (file == MARKER or "files" in account):
        return str(account["fingerprint"])
    way_out = "restores it, and keeps the work that is sound"
    found.add(f"{found.stage}/{file}", "is damaged",
              way_out=found.way_out.replace("makes it anew", way_out))  # fmt: skip
    return ""


def _check_files(folder: StageDir, name: str, found: Findings) -> None:
    for file in folder.verify():
        there = (folder.path / file).is_file()
        way_out = ""
        if there and file.split("/")[0] in WEIGHTS:  # a resumed run looks at their size alone
            way_out = f"delete it; then {found.way_out.removeprefix('delete it there; then ')}"
        what = "is not what was written (checksum)" if there else "is missing"
        found.add(f"{name}/{file}", what, way_out=way_out)


def _check_marks(folder: StageDir, name: str, found: Findings) -> None:
    """The marks of shards; those of older runs are empty, and say nothing that could be wrong."""
    done = folder.done
    entries = folder.manifest()["files"] if done else {}
    for path in sorted((folder.path / MARKS).glob("*.json")):
        file = f"{name}/{MARKS}/{path.name}"
        mark = said(path)
        if "files" not in mark:
            found.add(file, "is damaged")
            continue
        own, files = mark["fingerprint"], mark["files"]
        if own != folder.fingerprint:
            found.add(file, f"is of other settings ({own})")
        elif done and any(entries.get(shard) != entry for shard, entry in files.items()):
            found.add(file, f"does not agree with {MANIFEST}")
        elif not done and not folder.sealed(int(path.stem)):
            found.add(file, "its shard is not what was written (checksum)")


def _check_inputs(p: Planned, planned: Sequence[Planned], found: Findings) -> None:
    folders = {q.stage.name: q.folder for q in planned}
    if open_ := [name for name in p.stage.inputs if not folders[name].done]:
        found.add(p.stage.name, f"is done, but what it reads is not: {', '.join(open_)}")
    elif old := stale(p, folders):
        found.add(p.stage.name, f"was made before what it reads was made anew: {', '.join(old)}")
