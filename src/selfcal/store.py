"""A run on disk: records go in, and come out whole or not at all.

A stage keeps its records (see `records`) as shards in a `StageDir`. A shard's mark is written when
all its files are there, and the manifest last of all, so its existence means the stage is done.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from selfcal.accounts import (
    MANIFEST,
    MARKER,
    MARKS,
    changed,
    entry_of,
    exact_of,
    inputs_of,
    is_file_of,
    is_outcome,
    said,
    said_manifest,
)
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
    explained,
    is_plain,
    make_folder,
    read_json,
    sync,
    write_bytes,
    write_json,
    write_text,
)
from selfcal.records import read_column, read_records, write_records

__all__ = [
    "JSON", "MANIFEST", "MARKER", "MARKS", "PARTIAL", "StageDir", "changed", "explained",
    "file_digest", "fingerprint", "read_column", "read_json", "read_records", "read_signed",
    "sampled_digest", "sampled_file", "tree_digest", "write_bytes", "write_json",
    "write_records", "write_signed", "write_text",
]  # fmt: skip

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True)
class StageDir:
    """The folder of one stage: shards of records, any other files, and the manifest.

    `open`, then `write_shard` for each shard that it not yet `has`, then `finish`; a process that
    is killed on the way resumes at the first missing shard. The fingerprint stands for all that
    the content follows from: work of another fingerprint is moved aside, never mixed in.
    """

    path: Path
    fingerprint: str
    size: int | None = None
    """Items of each shard but the last, while they are made; None: not asked for."""

    @property
    def done(self) -> bool:
        """Whether the stage is finished, with this fingerprint; `verify` looks at its files."""
        found = said(self.path / MANIFEST)
        return found.get("fingerprint") == self.fingerprint and "files" in found

    @property
    def begun(self) -> bool:
        """Whether the folder is some stage's, of this fingerprint or another: it says so itself."""
        return any(said(self.path / name) for name in (MARKER, MANIFEST))

    def open(self, inputs: Mapping[str, JSON] | None = None) -> None:
        """Prepare the folder for work: keep this fingerprint's shards, move other work aside.

        Other work goes to `NAME.old-FINGERPRINT` beside the folder; so does work on inputs that
        had another outcome. A manifest is deleted, because the stage is at work again.

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
            self._sweep()
        read = {} if inputs is None else {"inputs": inputs}
        write_signed(self.path / MARKER, {"fingerprint": self.fingerprint, **read})
        with explained("prepare", self.path):  # after the copy, by which it would be restored
            (self.path / MANIFEST).unlink(missing_ok=True)

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
        accounts = [said(self.path / name) for name in (MARKER, MANIFEST)]
        if not any(accounts):  # both gone or damaged: the shards' marks tell as well
            accounts = [said(self.path / n) for n in found if n.startswith(f"{MARKS}/")]
        prints = [account["fingerprint"] for account in accounts if account]
        if not prints:
            return "unknown"  # files that no stage answers for
        read = next((i for i in map(inputs_of, accounts) if i is not None), None)
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

    def images(self, i: int) -> Path:
        """Give the folder of the images that belong to shard `i`, beside its records."""
        return self.path / "images" / f"{i:05d}"

    def files_of(self, i: int, names: Sequence[str]) -> list[Path]:
        """Give the files of shard `i`: its images, and the records of these names.

        Raises:
            StoreError: The system refused.
        """
        folder = self.images(i)
        images = list_files(folder) if folder.is_dir() else []
        return [*(folder / image for image in images), *(self.shard(name, i) for name in names)]

    def seal(self, i: int, names: Sequence[str]) -> None:
        """Say that shard `i` is whole: the records of these names, and its images, with digests.

        Raises:
            StoreError: The system refused, or one of them is not there.
        """
        files = self.files_of(i, names)
        entries = {path.relative_to(self.path).as_posix(): entry_of(path) for path in files}
        size: dict[str, JSON] = {} if self.size is None else {"size": self.size}
        mark: dict[str, JSON] = {"fingerprint": self.fingerprint, **size, "files": entries}
        write_signed(self.mark(i), mark)

    def names(self, i: int) -> list[str]:
        """Names of the records that shard `i` has by its mark; none if that is damaged or gone."""
        pattern, mark = re.compile(rf"([a-z][a-z0-9_-]*)-{i:05d}\.parquet"), said(self.mark(i))
        files = mark.get("files", ()) if mark.get("fingerprint") == self.fingerprint else ()
        return [shard[1] for shard in map(pattern.fullmatch, files) if shard]

    def sealed(self, i: int) -> bool:
        """Whether shard `i` is whole: it is said to be, and its files are what was written then.

        Of shards of another size, as another selfcal may have left them, none is.
        """
        mark = said(self.mark(i))
        if mark.get("fingerprint") != self.fingerprint or "files" not in mark:
            return False
        if self.size is not None and mark.get("size", self.size) != self.size:
            return False  # older marks do not say it
        with explained("read", self.path):
            return not self._differing(mark["files"])

    def keep_first(self, count: int) -> None:
        """Delete what lies here of shards after the first `count`, by their marks.

        Another selfcal may have left them, whose shards were smaller.

        Raises:
            StoreError: The system refused, or a link leads out of the stage.
        """
        with explained("read", self.path):
            found = [re.fullmatch(r"(\d{5,})\.json", p.name) for p in self.path.glob(f"{MARKS}/*")]
        marked = {int(mark[1]) for mark in found if mark}
        if any(i >= count for i in marked):
            names = {name for i in marked for name in self.names(i)}
            there = marked.union(*map(self.numbers, names))
            self.clear([i for i in there if i >= count], names or None)

    def clear(self, shards: Collection[int], names: Collection[str] | None = None) -> None:
        """Delete what there is of the shards of these numbers: records, images and marks.

        `names`: of the records; None: all that lie here.

        Raises:
            StoreError: The system refused, or a link leads out of the stage.
        """
        with explained("clear", self.path):
            for path in list(self.path.glob("*.parquet")) if shards else ():
                found = re.fullmatch(r"([a-z][a-z0-9_-]*)-(\d{5,})\.parquet", path.name)
                if found and int(found[2]) in shards and (names is None or found[1] in names):
                    path.unlink()
            for i in shards:
                self.mark(i).unlink(missing_ok=True)
                if (images := self.own(self.images(i))).exists():
                    shutil.rmtree(images)

    def own(self, path: Path) -> Path:
        """Give the path back: what is to be deleted must lie in the stage.

        Raises:
            StoreError: A link leads out of the stage.
        """
        if not path.parent.resolve().is_relative_to(self.path.resolve()):
            raise StoreError(
                f"{path} is not deleted: a link leads out of the stage. Put the files in place of "
                "the link, then run the same command again: it resumes"
            )
        return path

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
        # marks speak for shards; no stage writes names that could not be joined to a folder
        names = [name for name in own if not name.startswith(f"{MARKS}/") and is_plain(name)]
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
            "files": {name: entry_of(self.path / name) for name in names},
            "exact": {n: exact_of(self.path / n) for n in names if n.endswith(".parquet")},
        }
        self.sign(manifest)

    def sign(self, manifest: Mapping[str, JSON]) -> None:
        """Write this as the manifest, and its copy before.

        Raises:
            StoreError: The system refused.
            ValueError: A number in it is NaN or infinite.
        """
        # the copy may be all that is left: what the stage has read stands where `open` looks for it
        read = {key: manifest[key] for key in ("inputs",) if key in manifest}
        copy = {"fingerprint": self.fingerprint, **read, "manifest": manifest}
        write_signed(self.path / MARKER, copy)
        write_signed(self.path / MANIFEST, manifest)

    def restore(self) -> bool:
        """Write a damaged or missing manifest anew by its copy, or a damaged copy by the manifest.

        In place of a manifest that is missing the copy counts only if all files are as it says:
        `open` takes the copy away before the manifest.

        Returns:
            Whether something was damaged and is whole again.

        Raises:
            StoreError: The system refused, or a file is not readable.
        """
        marker = said(self.path / MARKER)
        copy = marker.get("manifest", {})
        if self.done:
            kept = self.manifest()
            if marker.get("fingerprint") == self.fingerprint and copy in ({}, kept):
                return False
            self.sign(kept)
            self._sweep()
            return True
        if said(self.path / MANIFEST) or copy.get("fingerprint") != self.fingerprint:
            return False
        if not (self.path / MANIFEST).exists() and self._differing(copy["files"]):
            return False
        self.sign(copy)
        self._sweep()
        return True

    def _sweep(self) -> None:
        """Delete what killed processes have half written."""
        with explained("clear", self.path):
            for leftover in self.path.rglob(f"*{PARTIAL}"):
                if leftover.is_file():
                    leftover.unlink()

    def manifest(self) -> dict[str, Any]:
        """Read the manifest: `fingerprint`, `written`, `seconds`, `stats` and `files`.

        Raises:
            StoreError: There is none, or it is damaged.
        """
        return said_manifest(self.path / MANIFEST)

    def outcome(self) -> dict[str, JSON]:
        """Name what the finished stage has come to, by two digests: see `changed`.

        Raises:
            StoreError: There is no manifest, or it is damaged.
        """
        manifest = self.manifest()
        every = manifest["files"] | manifest.get("freed", {})
        files = {n: e["sha256"] for n, e in sorted(every.items()) if is_outcome(n)}
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
        return self._differing(self.manifest()["files"], by_size)

    def _differing(
        self, files: Mapping[str, Mapping[str, JSON]], by_size: Collection[str] = ()
    ) -> list[str]:
        return [
            name
            for name, entry in files.items()
            if not is_file_of(self.path / name, entry, name.split("/")[0] in by_size)
        ]
