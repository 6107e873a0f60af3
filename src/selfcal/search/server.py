"""A vLLM-compatible server: requests in, draws with their tokens out; adapters loaded and unloaded.

Requests run side by side in one thread with an event loop, so many can be on their way, and all end
at once when the search does. What may pass (429, 5xx, timeouts, broken connections) is tried again
by the `openai` client, with growing pauses. Replies are untrusted: what is no chat completion is an
error, never a guess.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from selfcal.chat.connection import check_open, secrets_of, shown, without
from selfcal.chat.errors import ChatError
from selfcal.policy import ModelError
from selfcal.recipe import Server

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")
_EXCERPT = 300
_TOKEN = "token_id:"
_MOST = 2**31
"""Above all token ids, and all counts of tokens."""
_LEAST_LIKELY = 1e6
"""Nats; a log-probability is nearer to 0."""
_NAME = 4_096
"""Characters of a model's name or folder."""
_OPENAIS = ("OpenAI-Organization", "OpenAI-Project")


class ServerError(ModelError):
    """A server gave no usable reply: the text names address, status and way out."""

    def __init__(self, message: str, status: int | None = None) -> None:
        """`status`: None where there was no reply at all."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Draw:
    """One choice of a reply."""

    ids: tuple[int, ...] | None
    """Its tokens, the end of response included; None if the server does not say."""
    logprobs: tuple[float, ...]
    """Of its tokens, in nats; empty if the server does not say."""
    text: str
    finish: str | None
    """`stop` or `length`, usually."""
    stop: str | int | None
    """The stop string (or the token of `stop_token_ids`) that ended it, by vLLM's `stop_reason`."""

    @property
    def ended(self) -> bool:
        """Whether the model ended its response here."""
        return self.finish == "stop" and not isinstance(self.stop, str)


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply to one request."""

    draws: tuple[Draw, ...]
    prompt_tokens: int | None


@dataclass(frozen=True, slots=True)
class Card:
    """A model that a server has, by `/v1/models`."""

    id: str
    root: str | None
    """The folder or name that it was loaded from."""
    parent: str | None
    """The model that it is an adapter of."""
    context: int | None
    """Tokens of prompt and response together, at most."""


class Connection:
    """One server; use it in a `with` block."""

    def __init__(self, settings: Server) -> None:
        """Prepare it; nothing is sent yet.

        Raises:
            ServerError: the base URL is none, or the key would go over a public network
                unencrypted.
        """
        self.concurrency = settings.concurrency
        self._settings = settings
        self._base, self.address = _addresses(settings.base_url)
        self._key = os.environ.get(settings.api_key_env, "").strip()
        try:
            check_open(settings.base_url, self._key)
        except ChatError as error:
            raise ServerError(f"policy.server: {error}") from None
        self._secrets = secrets_of(settings.base_url, self._key)
        self._client: AsyncOpenAI | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Cancel what is on its way, and close the connections."""
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def ask(self, body: Mapping[str, Any]) -> Future[Reply]:
        """Send a chat-completions request; the future has its reply, or a `ServerError`."""
        return self._start(self._ask(dict(body)))

    def models(self) -> list[Card]:
        """All models and adapters that the server has.

        Raises:
            ServerError: no usable reply.
        """
        return self._start(self._models()).result()

    def load_adapter(self, name: str, path: str) -> None:
        """Load an adapter from a folder that the server sees; requests name it as their model.

        Raises:
            ServerError: it cannot be loaded, or this is not allowed.
        """
        body = {"lora_name": name, "lora_path": path}
        self._start(self._post("/load_lora_adapter", body)).result()

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter.

        Raises:
            ServerError: it cannot be unloaded.
        """
        self._start(self._post("/unload_lora_adapter", {"lora_name": name})).result()

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _shut(self) -> None:
        own = asyncio.current_task()
        running = [task for task in asyncio.all_tasks() if task is not own]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    def _made(self) -> AsyncOpenAI:
        import openai

        from selfcal.chat.guard import PLAIN, AsyncClient

        if self._client is None:
            s = self._settings
            # said outright, so that no account of openai's own variables is sent to this server
            apart: dict[str, Any] = dict.fromkeys(_OPENAIS, openai.omit)
            self._client = openai.AsyncOpenAI(
                base_url=self._base,
                api_key=self._key or "none",  # the client insists on one
                admin_api_key="",
                timeout=s.timeout,
                max_retries=s.retries,
                default_headers={**apart, **PLAIN},
                http_client=AsyncClient(s.timeout),
            )
        return self._client

    async def _ask(self, body: dict[str, Any]) -> Reply:
        model, messages = body.pop("model"), body.pop("messages")
        chat = self._made().chat.completions.with_raw_response
        text = await self._sent(
            lambda: chat.create(model=model, messages=messages, extra_body=body)
        )
        return _read(
            text, lambda data: _reply(data, self._fit), f"{self.address}: no chat completion",
            self._show,
        )  # fmt: skip

    async def _models(self) -> list[Card]:
        models = self._made().models.with_raw_response
        text = await self._sent(models.list)
        return _read(
            text, lambda data: _cards(data, self._fit), f"{self.address}: no list of models",
            self._show,
        )  # fmt: skip

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        client = self._made()
        await self._sent(lambda: client.post(path, cast_to=str, body=body))

    async def _sent(self, send: Callable[[], Awaitable[Any]]) -> str:
        """The text of the reply, whatever it is."""
        import openai

        from selfcal.chat.guard import OversizedError

        s = self._settings
        try:
            reply = await send()
        except OversizedError as error:
            raise ServerError(f"{self.address}: {error}; check policy.server.base_url") from None
        except openai.APIStatusError as error:
            problem = f"status {error.status_code} ({self._show(error.response.text)})"
            raise ServerError(
                f"{self.address}: {problem}; {_way_out(error.status_code, s.api_key_env)}",
                error.status_code,
            ) from error
        except openai.APITimeoutError as error:
            raise ServerError(
                f"{self.address}: no reply within {s.timeout:g} s, {s.retries + 1} tries; raise "
                "policy.server.timeout, or lower policy.server.concurrency"
            ) from error
        except openai.APIConnectionError as error:
            why = self._show(str(error.__cause__ or error))
            raise ServerError(
                f"{self.address}: no connection ({why}), {s.retries + 1} tries; start the server "
                "or correct policy.server.base_url, and run the same command again"
            ) from error
        return str(getattr(reply, "text", reply))

    def _fit(self, text: str) -> str:
        """What a server said, fit to be kept: text that can be written, without the key."""
        return without(text.encode("utf-8", "replace").decode(), self._secrets)

    def _show(self, text: str) -> str:
        """What a server said, fit to be shown: short, printable, without the key."""
        return shown(text, self._secrets, _EXCERPT)


def _addresses(base_url: str) -> tuple[str, str]:
    """Where to send to, and the same fit to be shown: without password and query."""
    try:
        parts = urlsplit(base_url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host:
        raise ServerError("policy.server.base_url: not an http address; give http://HOST:PORT/v1")
    path = parts.path.rstrip("/") or "/v1"
    named = f"[{host}]" if ":" in host else host
    shown = f"{parts.scheme}://{named}{f':{port}' if port else ''}{path}"
    return parts._replace(path=path, query="", fragment="").geturl(), shown


def _way_out(status: int, key_env: str) -> str:
    if status in (401, 403):
        if not key_env:
            return "name the environment variable with the key in policy.server.api_key_env"
        return f"check the key in ${key_env}"
    if status == 404:
        return "check policy.server.base_url and policy.server.model"
    if status == 429:
        return "wait, or lower policy.server.concurrency"
    if status >= 500:
        return "look at the server's log"
    return "the server refuses this request: compare with docs/serving.md how it was started"


def _read(text: str, kind: Callable[[Any], T], problem: str, show: Callable[[str], str]) -> T:
    try:
        return kind(json.loads(text))
    except (
        ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError,
    ) as error:  # fmt: skip
        raise ServerError(
            f"{problem} ({show(text)}); check that policy.server.base_url is that of an "
            "OpenAI-compatible server"
        ) from error


def _reply(data: Any, fit: Callable[[str], str]) -> Reply:
    choices = sorted(data["choices"], key=lambda c: int(c["index"]))
    tokens = (data.get("usage") or {}).get("prompt_tokens")
    return Reply(tuple(_draw(c, fit) for c in choices), None if tokens is None else _count(tokens))


def _draw(choice: Mapping[str, Any], fit: Callable[[str], str]) -> Draw:
    said = (choice.get("logprobs") or {}).get("content") or []
    tokens = [str(t["token"]) for t in said]
    ids = None
    if tokens and all(t.startswith(_TOKEN) for t in tokens):
        ids = tuple(_token(t.removeprefix(_TOKEN)) for t in tokens)
    logprobs = tuple(float(t["logprob"]) for t in said)
    if not all(-_LEAST_LIKELY <= one <= _LEAST_LIKELY for one in logprobs):  # nor is it NaN
        raise ValueError("a log-probability is none")
    text = choice["message"].get("content")
    finish, stop = choice.get("finish_reason"), choice.get("stop_reason")
    if not (isinstance(text, str | None) and isinstance(finish, str | None)):
        raise TypeError("content or finish_reason is no text")
    if not (isinstance(stop, str | None) or type(stop) is int):
        raise TypeError("stop_reason is neither a text nor a token")
    return Draw(ids, logprobs, fit(text or ""), finish, stop)


def _token(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 11):
        raise ValueError("a token's id is no number")
    return _count(int(text))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError(f"{value!r:.40} is neither a count nor a token's id")
    return value


def _cards(data: Any, fit: Callable[[str], str]) -> list[Card]:
    def name(value: Any) -> str:
        if not isinstance(value, str) or len(value) > _NAME or "\0" in value:
            raise TypeError("a model's name is no text that could be one")
        return fit(value)

    def optional(value: Any) -> str | None:
        return None if value is None else name(value)

    return [
        Card(
            name(c["id"]), optional(c.get("root")), optional(c.get("parent")),
            None if c.get("max_model_len") is None else _count(c["max_model_len"]),
        )
        for c in data["data"]
    ]  # fmt: skip
