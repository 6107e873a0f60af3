"""Controls: selfcal made careless on purpose, in the child alone. The harness must find faults.

`in-place`: files are written where they will be read, without a temporary name, a sync and a
rename, and a shard is said to be whole before it is written. `unchecked`: nothing is compared with
its digest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfcal import files, store
from selfcal.stage import Shards, Work
from selfcal.store import StageDir


def in_place() -> None:
    """Write files where they will be read, and the mark of a shard first, as well as last."""
    seal = Work.seal

    def write_bytes(path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def sealing(self: Work, i: int, shards: Shards) -> None:
        mark = {"fingerprint": self.folder.fingerprint, "files": {}}
        store.write_json(self.folder.mark(i), mark)
        seal(self, i, shards)

    for room in (store, files):
        room.write_bytes = write_bytes  # type: ignore[assignment]
    Work.seal = sealing  # type: ignore[method-assign]
    _trust_marks()


def unchecked() -> None:
    """Trust whatever lies there."""
    _trust_marks()

    def verify(self: StageDir, *_: Any) -> list[str]:
        return []

    StageDir.verify = verify  # type: ignore


def _trust_marks() -> None:
    def sealed(self: StageDir, i: int) -> bool:
        return self.mark(i).exists()

    StageDir.sealed = sealed  # type: ignore[method-assign]


CONTROLS = {"in-place": in_place, "unchecked": unchecked}
