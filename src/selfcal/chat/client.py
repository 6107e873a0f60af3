"""The client: one conversation in, one reply out, whatever the server does.

What may pass (429, 5xx, timeouts, broken connections) is tried again with growing pauses; all else
becomes an error that names the address and the way out. The key is cut out of whatever a server
says before that is shown.
"""

from __future__ import annotations

import hashlib
import json
import os
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import BoundedSemaphore
from time import sleep
from types import TracebackType
from typing import Any, Self
from weakref import finalize

from selfcal.chat.cache import Cache
from selfcal.chat.connection import connect, secrets_of, shown, without
from selfcal.chat.errors import ChatError
from selfcal.chat.ledger import Ledger
from selfcal.chat.messages import Message, most_tokens
from selfcal.chat.reply import Reply, Usage, Wanted, failure_in, read_completion, usage_of

FIRST_PAUSE_S = 1.0
"""Pause before the second try; it doubles with every further one."""
LONGEST_PAUSE_S = 60.0
_LONGEST = 100.0
"""How many times as long as reckoned a server may make one believe that prompts are."""
_EXCERPT = 200
_FORMAT = 1
"""Version of what is kept in the cache."""
_UNSENT = {"ConnectError", "ConnectTimeout", "PoolTimeout"}
"""What httpx calls errors of a request that never reached the server."""
_REFUSED = (400, 422, 501)
"""What servers answer to keys of a request that they do not know."""
_NEWER_LIMIT = "max_completion_tokens"
"""What newer models want in the place of `max_tokens`."""


@dataclass(frozen=True)
class Keeping:
    """What a client keeps of its replies."""

    ledger: Ledger | None = None
    """None: an account in memory, without a limit."""
    cache: Cache | None = None
    """None: each question is asked."""
    seed: int = 0
    """Tells apart sampled replies of different runs."""


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
        concurrency: int = 16,
        keeping: Keeping | None = None,
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
            timeout: Seconds of a request, from its start to the last byte of the reply.
            retries: Further tries after the first one.
            concurrency: Requests at the same time, of all threads together.
            keeping: Ledger and cache.

        Raises:
            ChatError: the address is none, the key has characters that no key has, the address has
                a password beside it, or the key would go over a public network unencrypted.
        """
        self._key_env = api_key_env
        self._key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
        if not set(self._key) <= set(string.ascii_letters + string.digits + string.punctuation):
            raise ChatError(
                f"the key in ${api_key_env} has white space or letters outside ASCII; set it anew"
            )
        self.model, self.concurrency = model, concurrency
        self._settings = {"temperature": temperature, "max_tokens": max_tokens}
        self._timeout, self._retries = timeout, retries
        self._openai, self.address = connect(base_url, self._key, timeout)
        self._secrets = secrets_of(base_url, self._key)
        self._end = finalize(self, self._openai.close)  # also where nobody closes it
        own = keeping or Keeping()
        self._ledger, self._cache, self._seed = own.ledger or Ledger(), own.cache, own.seed
        self._turns = BoundedSemaphore(concurrency)
        self._refused: frozenset[str] = frozenset()
        self._limit_key = "max_tokens"
        self._longer = 1.0
        """How many times as long as reckoned a prompt was, at most."""

    @property
    def spent(self) -> Usage:
        """What the ledger's run has spent, this client's part included."""
        return self._ledger.spent

    def ask(self, messages: Sequence[Message]) -> str:
        """Send a conversation and return the text of the reply, which may be empty.

        A reasoning model's `<think>` block is not part of the reply.

        Raises:
            ChatError: no usable reply, after all tries.
            SpentError: the budget is spent.
        """
        return self.reply(messages).text

    def reply(
        self,
        messages: Sequence[Message],
        *,
        n: int = 1,
        logprobs: int | None = None,
        choice: Sequence[str] | None = None,
        temperature: float | None = None,
        draw: int = 0,
    ) -> Reply:
        """Send a conversation and return all that the server said.

        Args:
            messages: the conversation.
            n: texts wanted. Many servers give one all the same; see `draws`.
            logprobs: how many of the first token's alternatives are wanted; None: none.
            choice: texts of which the reply is to be one, for servers that can (vLLM).
            temperature: in place of the client's own.
            draw: number of this reply among sampled ones to the same conversation.

        Returns:
            The reply. What the server refused or ignored of `n`, `logprobs` and `choice` stands in
            its `ignored`; what it refuses is not asked of it again.

        Raises:
            ChatError: no usable reply, after all tries.
            SpentError: the budget is spent.
        """
        own = dict(self._settings)
        if temperature is not None:
            own["temperature"] = temperature
        wanted = Wanted(n, logprobs, tuple(choice or ()))
        key = self._cache_key(messages, own, wanted, draw)
        if self._cache and (known := _known(self._cache, key)):
            self._ledger.note_cached()
            return known
        with self._turns:
            reply = self._fresh(messages, own, wanted)
        reply = replace(reply, ignored=wanted.ignored(reply))
        if self._cache:
            self._cache.put(key, reply.to_json())
        return reply

    def draws(
        self,
        messages: Sequence[Message],
        n: int,
        choice: Sequence[str] | None = None,
        temperature: float | None = None,
    ) -> list[str]:
        """`n` texts for one conversation: in one request, or more where the server gives fewer.

        Raises:
            ChatError: no usable reply, after all tries.
            SpentError: the budget is spent.
        """
        texts: list[str] = []
        while len(texts) < n:
            left = 1 if texts else n  # a server that gave fewer gives one at a time
            found = self.reply(
                messages, n=left, choice=choice, temperature=temperature, draw=len(texts)
            )
            texts += found.texts[: n - len(texts)]
        return texts

    def close(self) -> None:
        """Close the connections."""
        self._end()

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

    # --- asking -----------------------------------------------------------------------------

    def _cache_key(
        self, messages: Sequence[Message], own: Mapping[str, Any], wanted: Wanted, draw: int
    ) -> str:
        """All that decides a reply, and neither key nor address."""
        sampled = [self._seed, draw] if own["temperature"] > 0 else []
        asked = [_FORMAT, self.model, own, wanted.extras(frozenset()), sampled, list(messages)]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _fresh(self, messages: Sequence[Message], own: Mapping[str, Any], wanted: Wanted) -> Reply:
        """Ask the server; without one thing more each time that it refuses to be asked for."""
        refused, spent = self._refused, Usage()
        while True:
            extras = wanted.extras(refused)
            more = {key: value for keys in extras.values() for key, value in keys.items()}
            body = {**self._settled(own), "messages": list(messages), **more}
            longest = int(own["max_tokens"]) * (wanted.n if "n" in extras else 1)
            try:
                reply = self._tried(body, most_tokens(messages), longest)
            except _Refusal as refusal:
                spent += Usage(requests=1)
                if self._limit_key != _NEWER_LIMIT and _NEWER_LIMIT in refusal.said:
                    self._limit_key = _NEWER_LIMIT
                elif extras:
                    refused |= {list(extras)[-1]}
                else:
                    raise ChatError(str(refusal)) from None
            else:
                self._refused |= refused  # only now is it known that it was these
                return replace(reply, usage=spent + reply.usage)

    def _settled(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The settings, under the names that the server knows."""
        return {self._limit_key if k == "max_tokens" else k: v for k, v in own.items()}

    def _tried(self, body: Mapping[str, Any], prompt: int, longest: int) -> Reply:
        """Send a request, and again what may pass; each try has its lines in the ledger.

        `prompt` and `longest`: tokens that the prompt takes and that the reply may have, at most.
        """
        import openai

        from selfcal.chat.guard import OversizedError

        problem, way_out, spent = "", "", Usage()
        for attempt in range(self._retries + 1):
            pause = FIRST_PAUSE_S * 2 ** min(attempt, 10)
            cost = Usage(1, round(prompt * self._longer), longest)
            key = self._ledger.reserve(cost.tokens)
            try:
                reply = self._sent(body, cost)
                cost = reply.usage
                self._longer = min(max(self._longer, cost.prompt_tokens / prompt), _LONGEST)
                return replace(reply, usage=spent + cost)
            except openai.APIConnectionError as error:  # a server may have written a reply
                cost = Usage(1) if _cause(error) in _UNSENT else cost
                problem, way_out = self._unanswered(error)
            except OversizedError as error:  # it wrote something, and how much is not known
                raise ChatError(f"{self.address}: {error}; check the base URL") from None
            except _Failed as error:
                cost, problem = Usage(1), f"status {error.status} ({self._show(error.said)})"
                way_out = self._way_out(error.status)
                if not _may_pass(error.status):
                    raise _failure(f"{self.address}: {problem}; {way_out}", error) from None
                pause = max(pause, error.wait)
            except ChatError:
                cost = Usage(1)
                raise
            finally:
                self._ledger.settle(key, cost)
            spent += cost
            if attempt < self._retries:
                sleep(min(pause, LONGEST_PAUSE_S))
        raise ChatError(f"{self.address}: {problem}, {self._retries + 1} tries; {way_out}")

    def _sent(self, body: Mapping[str, Any], most: Usage) -> Reply:
        """Send one request.

        Raises:
            _Failed: the server said that it failed.
            ChatError: it said nothing that can be read.
            APIConnectionError: it said nothing.
        """
        from openai import APIStatusError, omit

        create: Any = self._openai.chat.completions.with_raw_response.create
        rest = {k: v for k, v in body.items() if k != "messages"}
        keyless = None if self._key else {"Authorization": omit}
        try:
            response = create(
                model=self.model, messages=body["messages"], extra_body=rest, extra_headers=keyless
            ).http_response
        except APIStatusError as error:
            wait = _retry_after(error.response.headers)
            raise _Failed(error.status_code, error.response.text, wait) from None
        try:
            said = json.loads(response.content)
            if failed := failure_in(said):
                raise _Failed(*failed)
            reply = read_completion(said, lambda text: without(text, self._secrets))
        except (
            ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError,
        ):  # fmt: skip
            raise ChatError(
                f"{self.address}: status {response.status_code}, but no chat completion "
                f"({self._show(response.text)}); check that the base URL is that of an "
                "OpenAI-compatible server"
            ) from None
        return replace(reply, usage=usage_of(said, reply, most))

    def _unanswered(self, error: Exception) -> tuple[str, str]:
        """What became of a request without an answer, and the way out."""
        import openai

        if isinstance(error, openai.APITimeoutError):
            what = f"no reply within {self._timeout:g} s ({_cause(error)})"
            return what, "raise the timeout or check the server's load"
        what = self._show(str(error.__cause__ or error)) or _cause(error)
        return f"no connection ({what})", "start the server or correct the base URL"

    def _way_out(self, status: int) -> str:
        if status in (401, 403):
            if not self._key_env:
                return "name the environment variable with the key in api_key_env"
            return f"check the key in ${self._key_env}" + (
                "" if self._key else ", which is not set"
            )
        if status == 429:
            return "wait, or ask less at the same time (concurrency)"
        if status >= 500:
            return "look at the server's log"
        if status in (404, 405) or status < 400:
            return "check the base URL and the model's name"
        return "check that the model takes images, and this many tokens"

    def _show(self, text: str) -> str:
        """What a server said, fit to be shown: short, printable, without the key."""
        return shown(text, self._secrets, _EXCERPT)


class _Failed(Exception):
    """The server said that it failed."""

    def __init__(self, status: int, said: str, wait: float = 0.0) -> None:
        super().__init__(said)
        self.status, self.said = status, said
        self.wait = wait
        """Seconds that it asks to wait."""


class _Refusal(ChatError):
    """The server does not take this request."""

    def __init__(self, text: str, said: str) -> None:
        super().__init__(text)
        self.said = said


def _may_pass(status: int) -> bool:
    return status in (408, 409, 429) or (status >= 500 and status != 501)


def _failure(text: str, error: _Failed) -> ChatError:
    return _Refusal(text, error.said) if error.status in _REFUSED else ChatError(text)


def _cause(error: Exception) -> str:
    return type(error.__cause__ or error).__name__


def _known(cache: Cache, key: str) -> Reply | None:
    found = cache.get(key)
    try:
        return None if found is None else Reply.from_json(found)
    except (ValueError, TypeError):  # written by something else: asked anew, and overwritten
        return None


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait; 0 if it doesn't say, or says it as a date."""
    value = headers.get("Retry-After", "").strip()
    return float(value) if value.isdecimal() and value.isascii() else 0.0
