"""The objects below an address, through fsspec: listed, read, written whole, copied, deleted.

What can pass by itself is tried again with growing pauses, unless somebody wishes to stop. What
cannot becomes a StoreError that names the address, the reason and the way out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from selfcal import stopping
from selfcal.errors import StoreError
from selfcal.remote.address import checked, scrubbed

T = TypeVar("T")
PAUSES = (0.5, 2.0, 8.0, 20.0)
"""Seconds between tries; the libraries try again by themselves, too."""
AT_ONCE = 16
"""Objects on their way at the same time."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_FOR_GOOD = (
    FileNotFoundError, PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError,
    NotImplementedError, ImportError, TypeError, ValueError,
)  # fmt: skip
_NO_KEY = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "TokenRetrievalError",
)


@dataclass(frozen=True)
class Item:
    """An object, as the store lists it."""

    size: int
    """Bytes."""
    tag: str
    """Changes with the content, as far as the store says; empty if it does not."""


class Objects:
    """The objects below an address; keys are relative to it."""

    def __init__(self, address: str, system: Any = None, root: str = "") -> None:
        """Name the address; nothing is asked yet.

        Args:
            address: of the folder, as it is shown.
            system: fsspec's file system; None opens the one that the address names.
            root: the folder in that file system.
        """
        self.address, self._given, self._root = address, system, root

    def below(self, folder: str) -> Objects:
        """The objects of a folder of it."""
        root = f"{self._root}/{folder}" if self._given is not None else ""
        return Objects(f"{self.address}/{folder}", self._given, root)

    @property
    def _system(self) -> Any:
        self._open()
        return self._given

    def _open(self) -> None:
        if self._given is None:
            self._given, self._root = _open(self.address)

    def _at(self, key: str) -> str:
        self._open()
        return f"{self._root}/{key}" if key else self._root

    def list(self, folder: str = "") -> dict[str, Item]:
        """All objects below a folder, by key.

        Objects that stand for a folder are left out: their keys are empty, or end in `/`.

        Raises:
            StoreError: the store cannot be asked, or the name of one leads out of the folder.
        """
        at = self._at(folder)
        ask: Callable[[], dict[str, Any]] = lambda: self._system.find(at, detail=True)  # noqa: E731
        found = self._try("list", folder, ask, missing=None) or {}
        start = len(self._root.strip("/")) + 1
        items = {}
        for path, info in found.items():
            if path.endswith("/") or info.get("type") == "directory":
                continue
            key = checked(path.strip("/")[start:], self.address)
            items[key] = Item(int(info["size"]), _tag(info))
        return items

    def read(self, key: str, patient: bool = True) -> bytes | None:
        """An object's content; None if there is none."""
        at = self._at(key)
        try:
            found: bytes = self._try("read", key, lambda: self._system.cat_file(at), patient)
        except _Missing:
            return None
        return found

    def download(self, key: str, to: Path) -> bool:
        """Write an object's content to a file; whether there is such an object."""
        at = self._at(key)
        try:
            self._try("read", key, lambda: self._system.get_file(at, str(to)))
        except _Missing:
            return False
        return True

    def upload(self, path: Path, key: str) -> None:
        """Make a file's content an object, whole or not at all.

        Raises:
            StoreError: the store refused, cannot be reached, or has another size afterwards.
        """
        at, size = self._at(key), path.stat().st_size

        def put() -> None:
            self._system.put_file(str(path), at)
            if (there := int(self._system.info(at)["size"])) != size:
                raise OSError(f"{there} bytes arrived of {size}")

        self._try("write", key, put, missing=False)

    def create(self, key: str, data: bytes) -> bool:
        """Make an object, unless there is one by that key; whether it was made."""
        at = self._at(key)
        make = lambda: self._system.pipe_file(at, data, mode="create")  # noqa: E731
        try:
            self._try("write", key, make, missing=False)
        except FileExistsError:
            return self.read(key) == data  # a first try that arrived although it seemed not to
        return True

    def replace(self, key: str, old: bytes, new: bytes) -> bool:
        """Replace an object, unless it was changed meanwhile; whether it was replaced.

        S3 decides it (`If-Match`). With other stores there is a moment between looking and writing.

        Raises:
            StoreError: the store cannot be reached at once.
        """
        at, options = self._at(key), {}
        if "s3" in _protocols(self._system):
            info = self._try("read", key, lambda: self._system.info(at), False, missing=None)
            options = {"IfMatch": info["ETag"]} if info else {}
        if self.read(key, patient=False) != old:
            return False
        try:
            self._system.pipe_file(at, new, **options)
        except Exception as error:
            if self.read(key, patient=False) == new:  # the answer was lost, not the object
                return True
            if "pre-condition" in str(error) or "precondition" in str(error).lower():
                return False
            raise self._explained("write", key, error) from error
        return bool(options) or self.read(key, patient=False) == new

    def copy(self, key: str, other: str) -> None:
        """Copy an object within the store; another one by that key is replaced."""
        one, two = self._at(key), self._at(other)
        self._try("copy", key, lambda: self._system.cp_file(one, two))

    def delete(self, keys: Collection[str]) -> None:
        """Delete objects, several at a time; what is not there is fine."""

        def delete(key: str) -> None:
            # one by one: a list would be searched for patterns such as `*`
            self._try("delete", key, partial(self._system.rm_file, self._at(key)), missing=None)

        at_once(delete, keys)

    def _try(
        self,
        doing: str,
        key: str,
        ask: Callable[[], T],
        patient: bool = True,
        missing: bool | None = True,
    ) -> T:
        """Ask, more than once; `missing`: whether an object may be, and None if that is fine."""
        for pause in (*(PAUSES if patient else ()), None):
            try:
                return ask()
            except FileNotFoundError as error:
                if missing is None:
                    return None  # type: ignore[return-value]
                if missing:
                    raise _Missing(scrubbed(str(error))) from error
                raise self._explained(doing, key, error) from error
            except FileExistsError:
                raise
            except Exception as error:
                if pause is None or isinstance(error, _FOR_GOOD) or _no_key(error):
                    raise self._explained(doing, key, error) from error
                stopping.pause(pause * random.uniform(0.5, 1.5))
        raise AssertionError("the last try returns or raises")

    def _explained(self, doing: str, key: str, error: Exception) -> StoreError:
        what = f"{self.address}/{key}" if key else self.address
        reason = scrubbed(" ".join(str(error).split()) or type(error).__name__)
        return StoreError(
            f"cannot {doing} {what}: {reason}; {_way_out(error)}, then run the same command again: "
            "what is finished is kept on this machine, and goes up then"
        )


class _Missing(StoreError):
    """There is no such object."""


def at_once(work: Callable[[str], None], names: Collection[str]) -> None:
    """Do the work for each, several at a time; the first error ends it."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = [pool.submit(work, name) for name in names]
        try:
            for each in done:
                each.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _open(address: str) -> tuple[Any, str]:
    import fsspec  # type: ignore[import-untyped]

    scheme = address.partition("://")[0]
    try:
        system, root = fsspec.core.url_to_fs(
            address, use_listings_cache=False, skip_instance_cache=scheme != "memory"
        )
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        get = f"pip install 'selfcal[{extra}]'" if extra else f"install what fsspec says: {error}"
        raise StoreError(f"{address}: nothing here reads {scheme}://; {get}") from error
    except Exception as error:  # whatever a library says of its own settings
        known = ", ".join(f"{s}://" for s in ("s3", "gs"))
        reason = scrubbed(str(error))
        raise StoreError(
            f"{address} cannot be opened: {reason}; known are {known} and what fsspec knows"
        ) from error
    return system, root.rstrip("/")


def _protocols(system: Any) -> tuple[str, ...]:
    found = system.protocol
    return (found,) if isinstance(found, str) else tuple(found)


def _tag(info: dict[str, Any]) -> str:
    names = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "created", "mtime")
    return next((str(info[name]) for name in names if info.get(name)), "")


def _no_key(error: BaseException) -> bool:
    return type(error).__name__ in _NO_KEY


def _way_out(error: Exception) -> str:
    if _no_key(error):
        return "give credentials, as docs/storage.md says"
    if isinstance(error, PermissionError):
        return "give this user the right to list, read, write and delete there (docs/storage.md)"
    if isinstance(error, FileNotFoundError):
        return "make the bucket, or mend its name"
    if isinstance(error, NotImplementedError | TypeError):
        return "choose a store that can do it"
    return "see to it that the store can be reached"
