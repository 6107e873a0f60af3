"""A run on disk: records go in, and come out whole or not at all.

Records are Parquet files (see `parquet`), written whole or not at all (see `files`). A stage keeps
them as shards in a `StageDir`; its manifest is written last, so its existence means the stage is
done.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from selfcal import parquet
from selfcal.clock import spent
from selfcal.digests import (
    file_digest,
    fingerprint,
    list_files,
    read_signed,
    sampled_digest,
    sampled_file,
    tree_digest,
    write_signed,
)
from selfcal.errors import StoreError
from selfcal.files import (
    JSON,
    PARTIAL,
    REMAKE,
    explained,
    make_folder,
    read_json,
    sync,
    write_bytes,
    write_json,
    write_text,
)

__all__ = [
    "JSON", "MANIFEST", "MARKER", "MARKS", "PARTIAL", "StageDir", "changed", "explained",
    "file_digest", "fingerprint", "read_column", "read_json", "read_records", "read_signed",
    "sampled_digest", "sampled_file", "tree_digest", "write_bytes", "write_json",
    "write_records", "write_signed", "write_text",
]  # fmt: skip

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

MANIFEST, MARKER, MARKS = "manifest.json", "stage.json", "shards"


def write_records(path: Path, records: Sequence[T], kind: type[T]) -> None:
    """Write records, all of one kind, as a Parquet file; an empty list is fine.

    Raises:
        StoreError: The system refused.
        TypeError: `kind` has a field of a type that has no column, a record is of another kind,
            or a value does not fit its field.
    """
    with spent("disk"):
        try:
            data = parquet.encode(records, kind)
        except TypeError as error:
            raise TypeError(f"cannot write {path}: {error}") from error
        write_bytes(path, data)


def read_records(path: Path, kind: type[T]) -> list[T]:
    """Read the records of a file that `write_records` wrote.

    Raises:
        StoreError: The file is missing, damaged, or holds records of another kind.
        TypeError: `kind` has a field of a type that has no column.
    """
    return _decoded(path, lambda data: parquet.decode(data, kind))


def read_column(path: Path, kind: type[T], field: str) -> list[Any]:
    """Read one field alone of such records, with the errors of `read_records`; much faster."""
    return _decoded(path, lambda data: parquet.columns(data, kind, field)[0])


def _decoded(path: Path, decode: Callable[[bytes], list[Any]]) -> list[Any]:
    try:
        with spent("disk"):
            with explained("read", path):
                data = path.read_bytes()
            return decode(data)
    except ValueError as error:
        raise StoreError(f"{path} {error}: if it is the right file, {REMAKE}") from error


@dataclass(frozen=True)
class StageDir:
    """The folder of one stage: shards of records, any other files, and the manifest.

    `open`, then `write_shard` for each shard that it not yet `has`, then `finish`; a process that
    is killed on the way resumes at the first missing shard. The fingerprint stands for all that
    the content follows from: work of another fingerprint is moved aside, never mixed in.
    """

    path: Path
    fingerprint: str

    @property
    def done(self) -> bool:
        """Whether the stage is finished, with this fingerprint; `verify` looks at its files."""
        return _said(self.path / MANIFEST).get("fingerprint") == self.fingerprint

    def open(self, inputs: Mapping[str, JSON] | None = None) -> None:
        """Prepare the folder for work: keep this fingerprint's shards, move other work aside.

        Other work goes to `NAME.old-FINGERPRINT` beside the folder; so does work on inputs that
        had another outcome. A manifest of this fingerprint is deleted, because the stage is at
        work again.

        Args:
            inputs: what the stage reads, as `finish` takes it.

        Raises:
            StoreError: The system refused.
        """
        with explained("prepare", self.path):
            make_folder(self.path)
            if (other := self._other_work(inputs)) is not None:
                self.set_aside(other)
                self.path.mkdir()
            for leftover in self.path.rglob(f"*{PARTIAL}"):
                if leftover.is_file():
                    leftover.unlink()
            (self.path / MANIFEST).unlink(missing_ok=True)
        read = {} if inputs is None else {"inputs": inputs}
        write_signed(self.path / MARKER, {"fingerprint": self.fingerprint, **read})

    def set_aside(self, name: str = "") -> None:
        """Move the folder to `NAME.old-FINGERPRINT` beside it, in place of what is there.

        Raises:
            StoreError: The system refused.
        """
        aside = self.path.with_name(f"{self.path.name}.old-{name or self.fingerprint}")
        with explained("move aside", self.path):
            if aside.exists():
                shutil.rmtree(aside)
            self.path.rename(aside)

    def _other_work(self, inputs: Mapping[str, JSON] | None) -> str | None:
        """Fingerprint of the work that lies here, fit for a file name; None if it is our own."""
        if not (found := list_files(self.path)):
            return None
        said = [_said(self.path / name) for name in (MARKER, MANIFEST)]
        if not any(said):  # both gone or damaged: the shards' marks tell as well
            said = [_said(self.path / name) for name in found if name.startswith(f"{MARKS}/")]
        prints = [str(s["fingerprint"]) for s in said if s]
        if not prints:
            return "unknown"  # files that no stage answers for
        read = next((s["inputs"] for s in said if "inputs" in s), None)
        if inputs is not None and read is not None and changed(read, inputs):
            return self.fingerprint
        other = next((mark for mark in prints if mark != self.fingerprint), None)
        return other if other is None or re.fullmatch(r"\w{1,64}", other) else "unknown"

    def shard(self, name: str, i: int) -> Path:
        """Give the path of shard `i`, counted from 0, of the records called `name`.

        Raises:
            ValueError: `i` is negative, or the name is not of lower-case letters, digits, _ and -.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or i < 0:
            raise ValueError(f"no name for a shard: {name!r}, {i}")
        return self.path / f"{name}-{i:05d}.parquet"

    def has(self, name: str, i: int) -> bool:
        """Whether the shard is written; if so, it is whole."""
        return self.shard(name, i).is_file()

    def numbers(self, name: str) -> list[int]:
        """Numbers of the shards of that name that are there, in order; some may be missing."""
        pattern = rf"{re.escape(name)}-(\d{{5,}})\.parquet"
        found = (re.fullmatch(pattern, file) for file in list_files(self.path))
        return sorted(int(shard[1]) for shard in found if shard)

    def write_shard(self, name: str, i: int, records: Sequence[T], kind: type[T]) -> None:
        """Write one shard as `write_records` does, with its errors."""
        write_records(self.shard(name, i), records, kind)

    def read_shard(self, name: str, i: int, kind: type[T]) -> list[T]:
        """Read one shard.

        Raises:
            StoreError: It is missing, damaged or of another kind.
        """
        return read_records(self.shard(name, i), kind)

    def read(self, name: str, kind: type[T]) -> list[T]:
        """Read all shards of that name, in order.

        Raises:
            StoreError: There is none, one is missing in between or against the manifest, or one
                is damaged or of another kind.
        """
        return list(self.records(name, kind))

    def records(self, name: str, kind: type[T]) -> Iterator[T]:
        """Read as `read` does, with its errors, but with one shard in memory at a time."""
        # Of n shards, the last is n - 1: a gap shows as a file that can't be read.
        for i in range(self.count(name)):
            yield from self.read_shard(name, i, kind)

    def column(self, name: str, kind: type[T], field: str) -> Iterator[Any]:
        """Read one field alone of all records, as `records` does; much faster."""
        for i in range(self.count(name)):
            yield from read_column(self.shard(name, i), kind, field)

    def count(self, name: str) -> int:
        """How many shards of that name there are.

        Raises:
            StoreError: There is none.
        """
        manifest = (self.path / MANIFEST).exists()
        files = self.manifest()["files"] if manifest else list_files(self.path)
        pattern = re.compile(rf"{re.escape(name)}-\d{{5,}}\.parquet")
        if count := sum(pattern.fullmatch(file) is not None for file in files):
            return count
        raise StoreError(f"{self.path} has no shard of {name!r}: run the stage before it is read")

    def mark(self, i: int) -> Path:
        """Give the path of what says that shard `i` is whole, all its records together."""
        return self.path / MARKS / f"{i:05d}.json"

    def seal(self, i: int, names: Sequence[str]) -> None:
        """Say that shard `i` is whole: the records of these names, with their digests.

        Raises:
            StoreError: The system refused, or one of them is not there.
        """
        files = [self.shard(name, i) for name in names]
        entries = {path.name: _entry(path) for path in files}
        write_signed(self.mark(i), {"fingerprint": self.fingerprint, "files": entries})

    def names(self, i: int) -> list[str]:
        """Names of the records that shard `i` has by its mark; none if that is damaged or gone."""
        files = _said(self.mark(i)).get("files", {})
        return [file.removesuffix(f"-{i:05d}.parquet") for file in files]

    def sealed(self, i: int) -> bool:
        """Whether shard `i` is whole: it is said to be, and its files are what was written then."""
        try:
            said = read_signed(self.mark(i))
            files = {self.path / name: entry for name, entry in said["files"].items()}
            own = said["fingerprint"] == self.fingerprint
            return own and all(p.is_file() and _entry(p) == entry for p, entry in files.items())
        except (StoreError, LookupError, TypeError, AttributeError):
            return False

    def clear(self, shards: Collection[int]) -> None:
        """Delete what there is of the shards of these numbers, by any name, and their marks.

        Raises:
            StoreError: The system refused.
        """
        with explained("clear", self.path):
            for path in list(self.path.glob("*.parquet")) if shards else ():
                found = re.fullmatch(r"[a-z][a-z0-9_-]*-(\d{5,})\.parquet", path.name)
                if found and int(found[1]) in shards:
                    path.unlink()
            for i in shards:
                self.mark(i).unlink(missing_ok=True)

    def finish(
        self,
        stats: Mapping[str, JSON],
        seconds: float,
        inputs: Mapping[str, JSON] | None = None,
        mended: Sequence[str] = (),
    ) -> None:
        """Write the manifest: the stage is done, after `seconds` of work.

        `stage.json` gets a copy of it, for `restore`.

        Args:
            stats: its figures.
            seconds: see above.
            inputs: what names the outcome of each stage that it read.
            mended: why the stage was taken up again after it was done.

        Raises:
            StoreError: The system refused.
            ValueError: A number in `stats` is NaN or infinite.
        """
        own = (name for name in list_files(self.path) if name not in (MARKER, MANIFEST))
        names = [name for name in own if not name.startswith(f"{MARKS}/")]  # they speak for shards
        with explained("sync", self.path):
            files = [self.path / name for name in names]
            for path in [*files, *{file.parent for file in files}]:
                sync(path)  # other writers' files, such as an adapter's, may not be
        manifest: dict[str, JSON] = {
            "fingerprint": self.fingerprint,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": seconds,
            "stats": stats,
            **({} if inputs is None else {"inputs": inputs}),
            **({"mended": list(mended)} if mended else {}),
            "files": {name: _entry(self.path / name) for name in names},
            "exact": {n: _exact(self.path / n) for n in names if n.endswith(".parquet")},
        }
        self.sign(manifest)

    def sign(self, manifest: Mapping[str, JSON]) -> None:
        """Write this as the manifest, and its copy before.

        Raises:
            StoreError: The system refused.
            ValueError: A number in it is NaN or infinite.
        """
        copy: dict[str, JSON] = {"fingerprint": self.fingerprint, "manifest": manifest}
        write_signed(self.path / MARKER, copy)
        write_signed(self.path / MANIFEST, manifest)

    def restore(self) -> bool:
        """Write a damaged manifest anew by its copy, and a damaged copy by the manifest.

        A manifest that is missing is left so: the stage is not finished.

        Returns:
            Whether something was damaged and is whole again.

        Raises:
            StoreError: The system refused.
        """
        manifest, marker = self.path / MANIFEST, self.path / MARKER
        if not manifest.exists():
            return False
        kept, copy = _said(manifest), _said(marker).get("manifest", {})
        if kept.get("fingerprint") == self.fingerprint and not _said(marker):
            self.sign(kept)
            return True
        if not kept and copy.get("fingerprint") == self.fingerprint:
            self.sign(copy)
            return True
        return False

    def manifest(self) -> dict[str, Any]:
        """Read the manifest: `fingerprint`, `written`, `seconds`, `stats` and `files`.

        Raises:
            StoreError: There is none, or it is damaged.
        """
        found = read_signed(path := self.path / MANIFEST)
        files = found.get("files")
        if not isinstance(files, dict) or not all(isinstance(e, dict) for e in files.values()):
            raise StoreError(f"{path} is no manifest: {REMAKE}")
        return found

    def outcome(self) -> dict[str, JSON]:
        """Name what the finished stage has come to, by two digests: see `changed`.

        Raises:
            StoreError: There is no manifest, or it is damaged.
        """
        manifest = self.manifest()
        every = manifest["files"] | manifest.get("freed", {})
        files = {n: e["sha256"] for n, e in sorted(every.items()) if not _is_aside(n)}
        named: dict[str, JSON] = {"bytes": fingerprint(files)}
        if "exact" in manifest:
            named["exact"] = fingerprint(files | manifest["exact"])
        return named

    def verify(self, by_size: Collection[str] = ()) -> list[str]:
        """Name the files that are missing, or changed against the manifest's digests.

        Args:
            by_size: first parts of paths, such as `checkpoint`, of which only the size is compared.

        Raises:
            StoreError: There is no manifest, or a file is not readable.
        """
        return [
            name
            for name, entry in self.manifest()["files"].items()
            if not _is(self.path / name, entry, name.split("/")[0] in by_size)
        ]


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name the stages of which both know an outcome, and not the same one.

    It is the same if all bytes are, or all but the last digits of numbers: what is computed anew
    beside other samples is rounded otherwise.
    """
    return [
        stage
        for stage in before.keys() & now.keys()
        if not before[stage].items() & now[stage].items()
    ]


def _is_aside(name: str) -> bool:
    """Whether a file is no part of a stage's outcome."""
    # older manifests name marks, too; PEFT writes paths there, and sets in any order
    strange = ("adapter/README.md", "adapter/adapter_config.json")
    return name.startswith(("trl/", f"{MARKS}/")) or name in strange


def _exact(path: Path) -> str:
    with explained("read", path):
        data = path.read_bytes()
    try:
        return parquet.exact_digest(data)
    except ValueError as error:
        raise StoreError(f"{path} {error}: {REMAKE}") from error


def _is(path: Path, entry: Mapping[str, JSON], by_size: bool) -> bool:
    if not path.is_file() or path.stat().st_size != entry["size"]:
        return False
    return by_size or file_digest(path) == entry["sha256"]


def _entry(path: Path) -> dict[str, JSON]:
    return {"sha256": file_digest(path), "size": path.stat().st_size}


def _said(path: Path) -> dict[str, Any]:
    """What a manifest, a marker or a mark says; nothing if it is missing or damaged."""
    try:
        found = read_signed(path)
    except StoreError:
        return {}
    return found if isinstance(found.get("fingerprint"), str) else {}
