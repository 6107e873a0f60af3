"""Addresses of remote stores: what selfcal takes as one, and how it is shown.

An address is `SCHEME://BUCKET/PATH`. It never holds a credential, as it is printed, logged and
written down; those come from where the store's own tools look for them.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from selfcal.errors import StoreError
from selfcal.files import is_plain

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")  # a Path keeps one slash; `C:/` is no address
_HERE = ("file", "local")
_CREDENTIALS = re.compile(r"//[^/@\s]*@")
_QUERY = re.compile(r"(://[^\s?\"']+)\?[^\s\"']+")


def is_address(text: str) -> bool:
    """Whether a text is the address of something, not a path."""
    return _ADDRESS.match(text) is not None


def scrubbed(text: str) -> str:
    """A text without what could be a credential: users in addresses, and their query strings."""
    return _QUERY.sub(r"\1?...", _CREDENTIALS.sub("//...@", text))


def address(text: str) -> str:
    """A run's address in its plain form, or the path of a `file://` address.

    Raises:
        StoreError: it names no folder in a bucket, or holds a credential.
    """
    shown = scrubbed(text)
    if "@" in urlsplit(text).netloc or re.search(r"[?#]", text):
        raise StoreError(
            f"{shown}: leave users, keys and query strings out of the address; credentials come "
            "from the environment or the store's own files (docs/storage.md)"
        )
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    if scheme in _HERE:
        return str(Path(unquote(rest)))
    if not re.fullmatch(r"[a-z][a-z0-9+.-]+", scheme):
        raise StoreError(f"{shown} is no address: write it as in s3://BUCKET/runs/NAME")
    parts = [part for part in rest.split("/") if part]
    if len(parts) < 2:
        raise StoreError(f"{shown}: name a folder in the bucket, as in s3://BUCKET/runs/NAME")
    return f"{scheme}://{checked('/'.join(parts), shown)}"


def checked(key: str, where: str) -> str:
    """A relative key that can be joined to a folder; it comes from whoever may write to the store.

    Raises:
        StoreError: it leads out of the folder, or no file system takes it.
    """
    if not is_plain(key):
        raise StoreError(
            f"{where} has an object {key!r}, whose name is no file of a run: remove it there, then "
            "run the same command again"
        )
    return key
