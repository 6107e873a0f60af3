"""Messages in, the reply's text out: one client for every OpenAI-compatible server.

Teacher and label-giving judge share it. It sends one request a question, tries again what may pass
(429, 5xx, timeouts, broken connections) with growing pauses, and turns everything else into an
error that names the address and the way out. The API key is read from the environment, goes into
the header and nowhere else: it is cut out of whatever a server says before that is shown.
"""

from __future__ import annotations

import hashlib
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import sleep
from types import TracebackType
from typing import TYPE_CHECKING, Self

from selfcal.errors import SelfcalError
from selfcal.image import data_url

if TYPE_CHECKING:
    import httpx

Message = Mapping[str, object]

FIRST_PAUSE_S = 1.0
"""Pause before the second try; it doubles with every further one."""
LONGEST_PAUSE_S = 60.0
_EXCERPT = 200
_CONNECTIONS = 64


class ChatError(SelfcalError):
    """A server gave no usable reply: the text names address, status and way out."""


class ChatClient:
    """A client of one model behind an OpenAI-compatible server; threads may share it."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str = "",
        temperature: float = 0.0,
        max_tokens: int = 1024,
        timeout: float = 120.0,
        retries: int = 4,
    ) -> None:
        """Prepare the client; nothing is sent yet.

        Args:
            base_url: Up to and with the version, such as `http://127.0.0.1:8000/v1`; an address
                without any path gets `/v1`.
            model: The name under which the server knows the model.
            api_key_env: Environment variable with the key. Unset or empty: no key is sent, which
                local servers are content with.
            temperature: Sampling temperature; 0 is greedy.
            max_tokens: Longest reply, in tokens.
            timeout: Seconds to wait for a connection, and for the server to say something.
            retries: Further tries after the first one.

        Raises:
            ChatError: the address is none, or the key has characters that no key has.
        """
        import httpx

        self._url, self.address = _endpoint(base_url)
        self._key_env = api_key_env
        self._key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
        if not set(self._key) <= set(string.ascii_letters + string.digits + string.punctuation):
            raise ChatError(
                f"the key in ${api_key_env} has white space or letters outside ASCII; set it anew"
            )
        self._settings = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        self._timeout = timeout
        self._retries = retries
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(timeout, pool=None),  # waiting for one's turn is no failure
            limits=httpx.Limits(max_connections=_CONNECTIONS),
        )

    def ask(self, messages: Sequence[Message]) -> str:
        """Send a conversation and return the text of the reply, which may be empty.

        A reasoning model's `<think>` block is not part of the reply.

        Raises:
            ChatError: no usable reply, after all tries.
        """
        import httpx

        problem, way_out = "", ""
        for attempt in range(self._retries + 1):
            pause = FIRST_PAUSE_S * 2 ** min(attempt, 10)
            try:
                response = self._http.post(self._url, json={**self._settings, "messages": messages})
            except httpx.TimeoutException as error:
                problem = f"no reply within {self._timeout:g} s ({type(error).__name__})"
                way_out = "raise the timeout or check the server's load"
            except httpx.RequestError as error:
                problem = f"no connection ({self._show(str(error)) or type(error).__name__})"
                way_out = "start the server or correct the base URL"
            else:
                if response.is_success:
                    return self._content(response)
                problem = f"status {response.status_code} ({self._show(response.text)})"
                way_out = self._way_out(response.status_code)
                if response.status_code not in (408, 429) and response.status_code < 500:
                    raise ChatError(f"{self.address}: {problem}; {way_out}")
                pause = max(pause, _retry_after(response))
            if attempt < self._retries:
                sleep(min(pause, LONGEST_PAUSE_S))
        raise ChatError(f"{self.address}: {problem}, {self._retries + 1} tries; {way_out}")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    def _content(self, response: httpx.Response) -> str:
        try:
            content = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            content = 0
        if not isinstance(content, str | None):
            raise ChatError(
                f"{self.address}: status {response.status_code}, but no chat completion "
                f"({self._show(response.text)}); check that the base URL is that of an "
                "OpenAI-compatible server"
            )
        return (content or "").rpartition("</think>")[2].strip()

    def _way_out(self, status: int) -> str:
        if status in (401, 403):
            if not self._key_env:
                return "name the environment variable with the key in api_key_env"
            return f"check the key in ${self._key_env}" + (
                "" if self._key else ", which is not set"
            )
        if status == 429:
            return "wait, or ask with fewer workers"
        if status >= 500:
            return "look at the server's log"
        if status in (404, 405) or status < 400:
            return "check the base URL and the model's name"
        return "check that the model takes images, and this many tokens"

    def _show(self, text: str) -> str:
        """What a server said, fit to be shown: short, printable, without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "..."


def user_message(text: str, images: Sequence[str] = ()) -> Message:
    """A user's turn: text, after the images at these paths.

    Raises:
        ImageError: an image cannot be used.
    """
    if not images:
        return {"role": "user", "content": text}
    urls = [data_url(Path(image)) for image in images]
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def marked(parts: Mapping[str, str]) -> tuple[str, str]:
    """A mark, and parts as material of which each stands between two such marks.

    No text can contain a hash over itself, so none can close its own mark.
    """
    mark = hashlib.sha256("\0".join(parts.values()).encode()).hexdigest()[:12]
    blocks = (f"{name}:\n[{mark}]\n{text}\n[{mark}]" for name, text in parts.items())
    return mark, "\n\n".join(blocks)


def _endpoint(base_url: str) -> tuple[str, str]:
    """Where to post to, and the same fit to be shown: without password and query."""
    import httpx

    try:
        url = httpx.URL(base_url.strip())
    except httpx.InvalidURL as error:
        raise ChatError(f"base URL: {error}; give http://HOST:PORT/v1") from error
    if url.scheme not in ("http", "https") or not url.host:
        shown = url.copy_with(userinfo=b"", query=None)
        raise ChatError(f"base URL {shown}: not an http address; give http://HOST:PORT/v1")
    path = url.path.rstrip("/") or "/v1"
    url = url.copy_with(path=path.removesuffix("/chat/completions") + "/chat/completions")
    return str(url), str(url.copy_with(userinfo=b"", query=None, fragment=None))


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait; 0 if it doesn't say, or says it as a date."""
    value = response.headers.get("Retry-After", "").strip()
    return float(value) if value.isdecimal() and value.isascii() else 0.0
