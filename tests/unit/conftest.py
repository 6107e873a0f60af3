"""Servers on loopback, for all who ask one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from unit.chat_server import Serve, serving


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts servers on loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as start:
        yield start


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that a client would have made."""
    pauses: list[float] = []
    monkeypatch.setattr("selfcal.chat.client.sleep", pauses.append)
    return pauses
