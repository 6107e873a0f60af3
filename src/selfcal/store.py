"""Files on disk: records go in, and come out whole or not at all.

Every file is written under a temporary name (`.NAME.*.partial`), synced and renamed, so a name
that can be read is a file that was finished; what a killed writer leaves keeps its `.partial`
ending and is never read. Records are Parquet files (see `parquet`), and a stage keeps them as
shards in a `StageDir`; its manifest is written last, so its existence means the stage is done.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from selfcal import parquet
from selfcal.clock import spent
from selfcal.errors import StoreError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
JSON: TypeAlias = str | int | float | bool | Sequence["JSON"] | Mapping[str, "JSON"] | None

PARTIAL, MANIFEST, MARKER, MARKS = ".partial", "manifest.json", "stage.json", "shards"
_OWN = "own_digest"
"""In a JSON object: the digest of all else in it."""

_REMAKE = "go on with its run (`selfcal run --out RUN`): it is made anew"
_WAYS_OUT = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of the quota",
    errno.EROFS: "make the file system writable or choose another folder",
    errno.EACCES: "give this user access or choose another folder",
    errno.ENOENT: "put it back if it was yours",
}


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably; missing folders are made.

    Raises:
        StoreError: The system refused (disk full, read-only, no permission, ...). A file that was
            at `path` before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    with explained("write", path):
        _make(path.parent)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # an interrupt must not leave half a file either
            with suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)  # only now would the rename outlive a power cut


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_bytes` does, with its errors."""
    write_bytes(path, text.encode())


def write_json(path: Path, obj: JSON) -> None:
    """Write JSON as `write_bytes` does, with its errors.

    Raises:
        ValueError: A number is NaN or infinite. JSON has no such number; it has null.
    """
    write_text(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StoreError: It is missing, not readable, or no JSON.
    """
    with explained("read", path):
        data = path.read_bytes()
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({error}): {_REMAKE}") from error


def write_signed(path: Path, obj: Mapping[str, JSON]) -> None:
    """Write a JSON object with its own digest, as `write_json` does, with its errors."""
    write_json(path, {**obj, _OWN: fingerprint(obj)})


def read_signed(path: Path) -> dict[str, Any]:
    """Read what `write_signed` wrote; without a digest it is taken as it is.

    Raises:
        StoreError: It is missing, not readable, no JSON object, or not what was written.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise StoreError(f"{path} is damaged (no JSON object): {_REMAKE}")
    said = found.pop(_OWN, None)
    if said is not None and said != fingerprint(found):
        raise StoreError(f"{path} is damaged (its content is not what was written): {_REMAKE}")
    return found


def _make(folder: Path) -> None:
    """Make a folder if it is missing, so that it outlives a power cut as its files do."""
    if not folder.is_dir():
        missing = [made for made in (folder, *folder.parents) if not made.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            _sync(made.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems can't sync a folder; the rename is all there is then.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def explained(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError that names the path, the reason and the way out."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        way_out = _WAYS_OUT.get(error.errno or 0, "mend that")
        message = f"cannot {doing} {path}: {reason}; {way_out}, then run the same command again"
        raise StoreError(f"{message}: it resumes") from error


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
        raise StoreError(f"{path} {error}: if it is the right file, {_REMAKE}") from error


def fingerprint(*parts: object) -> str:
    """Give 16 hex digits that name these settings: sha256 over their canonical JSON.

    Parts are JSON values, dataclasses and pydantic models, nested as they like; a tuple counts as
    a list. A path is refused, as the same run has other paths on another machine: give the
    `file_digest`, `tree_digest` or `sampled_digest` of what it points to.

    Raises:
        TypeError: A part is, or holds, a path or anything else that has no JSON form.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_as_dict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_dict(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if hasattr(value, "model_dump") and not isinstance(value, type):  # a pydantic model
        return value.model_dump()
    hint = ": use the digest of what it points to" if isinstance(value, os.PathLike) else ""
    raise TypeError(f"cannot fingerprint {value!r} ({type(value).__name__}){hint}")


def file_digest(path: Path) -> str:
    """Give the sha256 of a file's content, in hex.

    Raises:
        StoreError: It is missing or not readable.
    """
    with explained("read", path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(folder: Path) -> str:
    """Give the sha256 over the relative names and contents of a folder's files, in hex.

    Raises:
        StoreError: The folder, or a file in it, is missing or not readable.
    """
    files = [[name, file_digest(folder / name)] for name in _files(folder)]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


_WHOLE = 16 * 2**20
"""Bytes up to which `sampled_digest` reads all of a file."""
_BLOCK = 64 * 2**10
_BLOCKS = 64


def sampled_digest(folder: Path, *suffixes: str) -> str:
    """Give a sha256 over a folder's files with these suffixes, in hex, without reading all of them.

    A file larger than 16 MB gives its size and 64 blocks of 64 KiB at even distances: a training
    is seen, which moves all weights; a change of a byte in between is not.

    Raises:
        StoreError: The folder, or a file in it, is missing or not readable.
    """
    own = [name for name in _files(folder) if name.endswith(suffixes)]
    files = [[name, *sampled_file(folder / name)] for name in own]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def sampled_file(path: Path) -> tuple[int, str]:
    """Give a file's size and sha256, of which a large one is sampled as in `sampled_digest`.

    Raises:
        StoreError: It is missing or not readable.
    """
    with explained("read", path):
        size = path.stat().st_size
        return size, file_digest(path) if size <= _WHOLE else _block_digest(path, size)


def _block_digest(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for i in range(_BLOCKS):
            file.seek(i * (size - _BLOCK) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _files(folder: Path) -> list[str]:
    """Relative names of all finished files below a folder, sorted; links are followed."""

    def fail(error: OSError) -> None:
        raise error  # os.walk would pass over what it can't list

    found = []
    with explained("read", folder):
        for root, _, names in os.walk(folder, onerror=fail, followlinks=True):
            found += [Path(root, name) for name in names if not name.endswith(PARTIAL)]
    return sorted(path.relative_to(folder).as_posix() for path in found)


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
            _make(self.path)
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
        if not (found := _files(self.path)):
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
        found = (re.fullmatch(pattern, file) for file in _files(self.path))
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
        files = self.manifest()["files"] if manifest else _files(self.path)
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
        own = (name for name in _files(self.path) if name not in (MARKER, MANIFEST))
        names = [name for name in own if not name.startswith(f"{MARKS}/")]  # they speak for shards
        with explained("sync", self.path):
            files = [self.path / name for name in names]
            for path in [*files, *{file.parent for file in files}]:
                _sync(path)  # other writers' files, such as an adapter's, may not be
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
            raise StoreError(f"{path} is no manifest: {_REMAKE}")
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
        raise StoreError(f"{path} {error}: {_REMAKE}") from error


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
