"""What a server may send: a body of bounded size, in bounded time, as it is.

A server is somebody else's. Its certificate is verified, a redirect is an answer like another and
is not followed, and of its body no more is read than any reply needs; one that is compressed is not
read at all, as it could stand for any amount. Its headers are bounded by the library underneath
(100 KiB). A request has one deadline for all of it, from the connection to the last byte: httpx's
own timeouts begin anew with every byte, so that headers, trailers or interim responses that drip in
would hold it for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from threading import local
from time import monotonic
from typing import Any

import httpcore2
import httpx2
from openai import DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAIError

MOST_BYTES = 32 * 2**20
"""Of a body."""
PLAIN = {"Accept-Encoding": "identity"}
"""The header that asks for a body as it is."""
_ENDED = "the server sent {}; that is no reply of a model"
_LATE = "the request's time was over"
_PIECE = 2**14
"""Bytes that are sent between two looks at the clock."""
_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
"""Who asks bounds how much is asked at once, so that no request waits for a connection."""


class OversizedError(OpenAIError):
    """A server sent more than it may; the client lets it pass and does not retry."""


class Client(DefaultHttpxClient):
    """A client whose requests end within `seconds`, each in the thread that sends it."""

    def __init__(self, seconds: float) -> None:
        """Open it; `seconds`: of a request, from its start to the last byte of its body."""
        super().__init__(
            timeout=seconds,
            limits=_LIMITS,
            follow_redirects=False,  # neither a key nor a prompt must travel on
            event_hooks={"response": [_look]},
        )
        self._seconds, self._clock = seconds, _Clock()
        for transport in (self._transport, *self._mounts.values()):
            pool: Any = getattr(transport, "_pool", None)
            if pool is not None:
                pool._network_backend = _Backend(pool._network_backend, self._clock)

    def send(self, *args: Any, **kwargs: Any) -> httpx2.Response:
        """Send a request, and begin its time."""
        self._clock.until = monotonic() + self._seconds
        return super().send(*args, **kwargs)


class AsyncClient(DefaultAsyncHttpxClient):
    """As `Client`."""

    def __init__(self, seconds: float) -> None:
        """As `Client`."""
        super().__init__(
            timeout=seconds,
            limits=_LIMITS,
            follow_redirects=False,
            event_hooks={"response": [_look_async]},
        )
        self._seconds = seconds

    async def send(self, *args: Any, **kwargs: Any) -> httpx2.Response:
        """Send a request, and begin its time."""
        try:
            async with asyncio.timeout(self._seconds):
                return await super().send(*args, **kwargs)
        except TimeoutError:
            raise httpx2.ReadTimeout(_LATE) from None


# --- time ---------------------------------------------------------------------------------------


class _Clock(local):
    """When the request that this thread sends must be over."""

    until = float("inf")

    def left(self, timeout: float | None, late: type[Exception]) -> float:
        """Seconds that the next step may take."""
        left = self.until - monotonic()
        if left <= 0:
            raise late(_LATE)
        return left if timeout is None else min(timeout, left)


class _Wire(httpcore2.NetworkStream):
    """A connection; one request after the other uses it."""

    def __init__(self, stream: httpcore2.NetworkStream, clock: _Clock) -> None:
        self._stream, self._clock = stream, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.left(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for at in range(0, len(buffer), _PIECE):
            left = self._clock.left(timeout, httpcore2.WriteTimeout)
            self._stream.write(buffer[at : at + _PIECE], left)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = self._clock.left(timeout, httpcore2.ConnectTimeout)
        return _Wire(self._stream.start_tls(ssl_context, server_hostname, left), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore2.NetworkBackend):
    """Makes connections that heed the clock."""

    def __init__(self, backend: httpcore2.NetworkBackend, clock: _Clock) -> None:
        self._backend, self._clock = backend, clock

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore2.NetworkStream:
        left = self._clock.left(timeout, httpcore2.ConnectTimeout)
        made = self._backend.connect_tcp(host, port, left, local_address, socket_options)
        return _Wire(made, self._clock)

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


# --- size ---------------------------------------------------------------------------------------


def _tally() -> Callable[[bytes], bytes]:
    """Passes the pieces of one body on, as long as it is not too large."""
    total = 0

    def passed(piece: bytes) -> bytes:
        nonlocal total
        total += len(piece)
        if total > MOST_BYTES:
            raise OversizedError(_ENDED.format(f"more than {MOST_BYTES // 2**20} MiB"))
        return piece

    return passed


class _Stream(httpx2.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return map(_tally(), self._stream)

    def close(self) -> None:
        self._stream.close()


class _AsyncStream(httpx2.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        passed = _tally()
        async for piece in self._stream:
            yield passed(piece)

    async def aclose(self) -> None:
        await self._stream.aclose()


def _check(response: httpx2.Response) -> None:
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise OversizedError(_ENDED.format("a compressed body, though it was asked not to"))


def _look(response: httpx2.Response) -> None:
    _check(response)
    response.stream = _Stream(response.stream)


async def _look_async(response: httpx2.Response) -> None:
    _check(response)
    response.stream = _AsyncStream(response.stream)
