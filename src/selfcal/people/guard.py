"""Who may ask a server of one machine: requests that name it, and come from its own pages.

A browser sends to this port what any page wants it to. A page whose name was made to lead here (DNS
rebinding) could read the answers, but names its own host; a page that sends a form here says its
own origin, and one that embeds an image of here is known by what the browser says of the request.
All are refused, and what is answered may be framed or embedded by nobody.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfcal.errors import SelfcalError

_HEADERS = {
    # not `no-referrer`, under which browsers hide the origin of a form from its own server
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Guard:
    """Lets such requests through to an app, and puts headers of caution on its answers."""

    def __init__(self, app: ASGIApp, host: str, names: Sequence[str] = ()) -> None:
        """Guard an app.

        Args:
            app: what answers.
            host: what its server is bound to.
            names: others that it goes by (`host_name`): of this machine, or of a proxy before it.
        """
        self._app = app
        self._given = set(names)
        own = ("127.0.0.1", "localhost", "::1", host, socket.gethostname())
        self._names = {name.lower() for name in own if name} | self._given

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return

        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        reason = self._refuses(scope)
        answer: ASGIApp = PlainTextResponse(f"{reason}\n", 403) if reason else self._app
        try:
            await answer(scope, receive, sent)
        except asyncio.CancelledError:  # the command was ended before the request was whole
            if not begun:
                await PlainTextResponse("The server has ended.\n", 503)(scope, receive, sent)

    def _refuses(self, scope: Scope) -> str:
        """Why a request is refused; empty if it is not."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if _name_in(host) not in self._names | _reached(scope):
            return (
                "This server does not go by that name. Open it by the address that it printed, or "
                "start it with --name and the name."
            )
        read = scope["method"] in ("GET", "HEAD")
        foreign = _embeds(scope, headers) if read else not self._own(headers.get("origin"), host)
        return "This was sent by a page of somebody else." if foreign else ""

    def _own(self, origin: str | None, host: str) -> bool:
        """Whether a form comes from a page of this server, or of a proxy that was named."""
        if origin in (None, f"http://{host}", f"https://{host}"):
            return True
        scheme, _, rest = (origin or "").partition("://")
        return scheme in ("http", "https") and _name_in(rest) in self._given


def _embeds(scope: Scope, headers: Headers) -> bool:
    """Whether somebody else's page does more than lead here: a picture, or a page in a frame."""
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return False
    return headers.get("sec-fetch-dest") != "document" or scope["path"].startswith("/images/")


def host_name(given: str) -> str:
    """A name as a Host header has it, without a port.

    Raises:
        SelfcalError: it is none.
    """
    name = _name_in(given)
    if not name:
        raise SelfcalError(f"--name {given!r}: give a host's name alone, such as audit.example.org")
    return name


def _reached(scope: Scope) -> set[str]:
    """The address of this machine that the request came to, as which it may be named, too."""
    address = str((scope.get("server") or ("",))[0])
    try:
        return {str(ipaddress.ip_address(address))}
    except ValueError:
        return set()


def _name_in(host: str) -> str:
    """The name in a Host header, without its port; empty if it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "") if "/" not in host else ""
    except ValueError:
        return ""
