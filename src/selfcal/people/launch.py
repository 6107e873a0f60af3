"""Puts the audit's pages on a port of this machine, until Ctrl-C."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
import threading
import webbrowser
from pathlib import Path

from rich.console import Console

from selfcal.errors import SelfcalError
from selfcal.people.pick import Wanted
from selfcal.view.status import command
from selfcal.view.text import amount, console, safe

_TRIES = 50
"""Ports that are tried, one after the other."""


def serve(run: Path, wanted: Wanted) -> None:
    """Show pairs of a run until Ctrl-C.

    Raises:
        SelfcalError: a package is missing, the run has no judgments, the name cannot be used, or
            there is no port.
    """
    try:
        import uvicorn

        from selfcal.people.server import app_of, audit_of
    except ImportError as error:
        raise SelfcalError(
            f"the audit's pages need a package that is not here ({error}); install them with: "
            "pip install 'selfcal[audit]'"
        ) from error
    audit = audit_of(run, wanted)
    with bound(wanted.host, wanted.port) as door:
        url = address(wanted.host, door)
        out = console()
        out.print(f"{amount(len(audit.pairs), 'pairs')} of {safe(str(run))} to judge: {url}")
        _warn(out, wanted.host)
        out.print("Ctrl-C ends it; every verdict is on the disk as soon as it is given.")
        if wanted.browser and _has_screen():
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        config = uvicorn.Config(
            app_of(audit), log_config=None, access_log=False, lifespan="off", ws="none",
            server_header=False, timeout_graceful_shutdown=2,
        )  # fmt: skip
        try:
            uvicorn.Server(config).run(sockets=[door])
        except KeyboardInterrupt:
            out.print()
    out.print(f"The labels lie in {safe(str(audit.file.path))}; how far they agree:")
    out.print(f"  {safe(command('audit', run, '--agreement'))}", soft_wrap=True)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens on this port, or on the next one that is free.

    Raises:
        SelfcalError: there is none, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last = min(port + _TRIES, 2**16)
    for number in range(port, last):
        try:
            return socket.create_server((host, number), family=family)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                reason = error.strerror or str(error)
                raise SelfcalError(
                    f"cannot listen on {host}, port {number}: {reason}; give another --host or "
                    "--port"
                ) from error
    raise SelfcalError(f"ports {port} to {last - 1} of {host} are taken; give another --port")


def address(host: str, door: socket.socket) -> str:
    """Where a browser finds a server that is bound to this host."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{door.getsockname()[1]}/"


def _warn(out: Console, host: str) -> None:
    if not is_loopback(host):
        text = (
            f"Anybody who reaches {host} can see these samples and label them under any name: "
            "there is no password. Leave --host out to keep it to this machine."
        )
        out.print(f"WARNING: {text}", style="bold red")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _has_screen() -> bool:
    """Whether a browser would open in a window; a text browser would take the terminal."""
    windows = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in windows)
