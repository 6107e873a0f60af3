"""The connection to a server: what is sent along, and what is not."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit, urlunsplit

from selfcal.chat.errors import ChatError

if TYPE_CHECKING:
    from openai import OpenAI


def connect(base_url: str, key: str, timeout: float) -> tuple[OpenAI, str]:
    """The client underneath, and the address that it posts to, without password and query.

    Raises:
        ChatError: the address is none, or has a password, and there is a key too.
    """
    import openai

    from selfcal.chat.guard import PLAIN, Client

    url = _split(base_url)
    check_open(base_url, key)
    if key and "@" in url.netloc:
        raise ChatError(
            f"base URL of {_host(url)}: has a user, and there is a key, but a request can carry "
            "one of them alone; leave the user out of the URL, or set api_key_env to ''"
        )
    path = (url.path.rstrip("/") or "/v1").removesuffix("/chat/completions")
    shown = urlunsplit((url.scheme, _host(url), f"{path}/chat/completions", "", ""))
    # said outright, so that neither a key nor an account of openai's own variables is sent to
    # whatever server a recipe names
    headers: dict[str, Any] = {
        "Authorization": f"Bearer {key}" if key else openai.omit,
        "OpenAI-Organization": openai.omit,
        "OpenAI-Project": openai.omit,
        **PLAIN,
    }
    client = openai.OpenAI(
        api_key=key or "none",
        admin_api_key="",
        base_url=urlunsplit((url.scheme, url.netloc, path, "", "")),
        default_headers=headers,
        default_query=dict(parse_qsl(url.query, keep_blank_values=True)),
        max_retries=0,  # tries are counted, and noted in the ledger, here
        http_client=Client(timeout),
    )
    return client, shown


_OWN_NAMES = (".local", ".internal", ".lan", ".localhost", ".svc", ".home.arpa")
"""Ends of names that no public server has."""


def check_open(base_url: str, key: str) -> None:
    """Let no key go over a public network that all can listen to.

    Raises:
        ChatError: it would.
    """
    url = _split(base_url)
    if key and url.scheme == "http" and not _near(url.hostname or ""):
        raise ChatError(
            f"base URL of {_host(url)}: the key would go over http, which all on the way can read; "
            "give an https address, one of your own network (such as 10.0.0.5), or set api_key_env "
            "to ''"
        )


def _near(host: str) -> bool:
    """Whether a host is on this machine or on a network of its owner's."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return "." not in host or host.lower().rstrip(".").endswith(_OWN_NAMES)
    return address.is_private or address.is_loopback or address.is_link_local


def secrets_of(base_url: str, key: str) -> list[str]:
    """What a server may not be seen to say: the key, the URL's password, and how they are sent."""
    url = _split(base_url)
    found = [key, quote(key, safe=""), base64.b64encode(key.encode()).decode()]
    if url.password:
        user, password = unquote(url.username or ""), unquote(url.password)
        sent = base64.b64encode(f"{user}:{password}".encode()).decode()
        found += [sent, url.password, password]
    return [secret for secret in found if secret]


_ESCAPED = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/]))')
_NESTED = 8
"""JSON within JSON that is read."""


def redacted(text: str, secrets: Iterable[str]) -> str:
    """A text without secrets, however JSON spells them."""
    for last in [False] * _NESTED + [True]:
        for secret in secrets:
            text = text.replace(secret, "***")
        text = text if last else _ESCAPED.sub(lambda m: m[2] or chr(int(m[1], 16)), text)
    return text


_LEAST = 8
"""Characters of a secret that is cut out of replies: servers of one's own are often given words as
keys, such as `EMPTY`, which a reply may well hold."""


def without(text: str, secrets: Iterable[str]) -> str:
    """A reply's text as it is; where secrets stand in it, `redacted`."""
    long = [secret for secret in secrets if len(secret) >= _LEAST]
    cut = redacted(text, long) if long else text
    return text if cut == redacted(text, ()) else cut


_LOOKED_AT = 2**16
"""Characters of what a server said that are looked at to show some of them."""


def shown(text: str, secrets: Sequence[str], most: int) -> str:
    """What a server said, fit to be shown: printable, in one line, without secrets, short."""
    if len(text) > _LOOKED_AT:
        # a secret that the cut goes through would not be known for one: JSON takes 6 a character
        rest = 6 * max(map(len, secrets), default=0)
        text = redacted(text[: _LOOKED_AT + rest], secrets)[:_LOOKED_AT]
    else:
        text = redacted(text, secrets)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= most else text[:most] + "..."


def _split(base_url: str) -> SplitResult:
    try:
        url = urlsplit(base_url.strip())
        host, _ = url.hostname, url.port
    except ValueError as error:
        raise ChatError(f"base URL: {error}; give http://HOST:PORT/v1") from None
    fit = url.netloc.isascii() and url.netloc.isprintable() and " " not in url.netloc
    if url.scheme not in ("http", "https") or not host or not fit:
        shown = urlunsplit((url.scheme, _host(url), url.path, "", ""))
        raise ChatError(f"base URL {shown}: not an http address; give http://HOST:PORT/v1")
    return url


def _host(url: SplitResult) -> str:
    """Host and port, without user and password."""
    return url.netloc.rpartition("@")[2]
