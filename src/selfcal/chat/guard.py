"""What a server may send: a body of bounded size, in bounded time, as it is.

A server is somebody else's. Its certificate is verified, a redirect is an answer like another and
is not followed, and of its body no more is read than any reply needs; one that is compressed is not
read at all, as it could stand for any amount. Its headers are bounded by the library underneath
(100 KiB).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

import httpx2
from openai import OpenAIError

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

MOST_BYTES = 32 * 2**20
"""Of a body."""
PLAIN = {"Accept-Encoding": "identity"}
"""The header that asks for a body as it is."""
_ENDED = "the server sent {}; that is no reply of a model"


class OversizedError(OpenAIError):
    """A server sent more than it may, or for longer; the client lets it pass and does not retry."""


class _Tally:
    """What came of one body."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._until, self._bytes = seconds, monotonic() + seconds, 0

    def passed(self, piece: bytes) -> bytes:
        """The next piece, if there may be one.

        Raises:
            OversizedError: there may not.
        """
        self._bytes += len(piece)
        if self._bytes > MOST_BYTES:
            raise OversizedError(_ENDED.format(f"more than {MOST_BYTES // 2**20} MiB"))
        if monotonic() > self._until:
            raise OversizedError(_ENDED.format(f"its reply over more than {self._seconds:g} s"))
        return piece


class _Stream(httpx2.SyncByteStream):
    def __init__(self, stream: Any, seconds: float) -> None:
        self._stream, self._tally = stream, _Tally(seconds)

    def __iter__(self) -> Iterator[bytes]:
        return map(self._tally.passed, self._stream)

    def close(self) -> None:
        self._stream.close()


class _AsyncStream(httpx2.AsyncByteStream):
    def __init__(self, stream: Any, seconds: float) -> None:
        self._stream, self._tally = stream, _Tally(seconds)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield self._tally.passed(piece)

    async def aclose(self) -> None:
        await self._stream.aclose()


def _check(response: httpx2.Response) -> None:
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise OversizedError(_ENDED.format("a compressed body, though it was asked not to"))


def guard(client: OpenAI | AsyncOpenAI, seconds: float) -> None:
    """Hold what servers send to one client to its bounds.

    Args:
        client: whose requests ask for `PLAIN` bodies.
        seconds: that a body may take from its first byte on.
    """

    def look(response: httpx2.Response) -> None:
        _check(response)
        response.stream = _Stream(response.stream, seconds)

    async def look_async(response: httpx2.Response) -> None:
        _check(response)
        response.stream = _AsyncStream(response.stream, seconds)

    http: Any = client._client
    hook = look_async if isinstance(http, httpx2.AsyncClient) else look
    http.event_hooks = {**http.event_hooks, "response": [hook]}
