"""Who may ask a server of one machine: requests that name it, and come from its own pages.

A browser sends to this port what any page wants it to. A page whose name was made to lead here (DNS
rebinding) could read the answers, but names its own host; a page that sends a form here says its
own origin. Both are refused, and what is answered may be framed or embedded by nobody.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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

    def __init__(self, app: ASGIApp, host: str) -> None:
        """Guard an app; `host` is what its server is bound to."""
        self._app = app
        names = ("127.0.0.1", "localhost", "::1", host, socket.gethostname())
        self._names = {name.lower() for name in names if name}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        reason = self._refuses(scope)
        answer: ASGIApp = PlainTextResponse(f"{reason}\n", 403) if reason else self._app
        await answer(scope, receive, sent)

    def _refuses(self, scope: Scope) -> str:
        """Why a request is refused; empty if it is not."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if _name_in(host) not in self._names | _reached(scope):
            return "This server does not go by that name. Open it by the address that it printed."
        origin = headers.get("origin")
        # https: a proxy may stand before it
        if scope["method"] not in ("GET", "HEAD") and origin not in (
            None, f"http://{host}", f"https://{host}",
        ):  # fmt: skip
            return "This was sent by a page of somebody else."
        return ""


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
