"""What a server said, read out of a chat completion, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeGuard

_MOST_TOKENS = 2**40
"""Of one reply; a server that claims more has miscounted."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What was spent on servers."""

    requests: int = 0
    """Requests that were sent, further tries included."""
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cached: int = 0
    """Replies that came out of the cache, and cost nothing."""

    @property
    def tokens(self) -> int:
        """Of prompts and replies together."""
        return self.prompt_tokens + self.reply_tokens

    def __add__(self, other: Usage) -> Usage:
        """The sum of both."""
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.reply_tokens + other.reply_tokens,
            self.cached + other.cached,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply to one conversation; the tuples go side by side."""

    texts: tuple[str, ...]
    """As many as the server gave, which may be fewer than were wanted; without `<think>` blocks."""
    first_tokens: tuple[Mapping[str, float] | None, ...]
    """Log-probabilities (nats) of the likeliest first tokens of each text, by the token's text.
    None where the server gave none, or where the text follows on thoughts."""
    finished: tuple[bool, ...]
    """Whether each text ended by itself, rather than at the limit of tokens."""
    usage: Usage = field(default=Usage(), compare=False)
    """What this reply cost."""
    ignored: tuple[str, ...] = ()
    """What was wanted and not honoured by the server: `n`, `logprobs`, `choice`."""

    @property
    def text(self) -> str:
        """The first text."""
        return self.texts[0]

    def to_json(self) -> dict[str, Any]:
        """For the cache; what it cost is no part of that."""
        return {k: v for k, v in asdict(self).items() if k != "usage"}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Reply:
        """What `to_json` gave.

        Raises:
            ValueError: it is something else.
        """
        try:
            texts, tokens = tuple(found["texts"]), tuple(found["first_tokens"])
            finished, ignored = tuple(found["finished"]), tuple(found["ignored"])
        except (LookupError, TypeError) as error:
            raise ValueError(f"no reply ({error})") from error
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError("no reply (it has no texts)")
        return cls(tuple(map(_whole, texts)), tokens, finished, Usage(cached=1), ignored)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for beside the conversation."""

    n: int = 1
    logprobs: int | None = None
    choice: tuple[str, ...] = ()

    def extras(self, refused: frozenset[str]) -> dict[str, dict[str, Any]]:
        """Keys of the request, by what they are for; without those that the server refuses."""
        every: dict[str, dict[str, Any]] = {}
        if self.n > 1:
            every["n"] = {"n": self.n}
        if self.logprobs is not None:
            every["logprobs"] = {"logprobs": True, "top_logprobs": self.logprobs}
        if self.choice:
            every["choice"] = {"structured_outputs": {"choice": list(self.choice)}}
        return {name: keys for name, keys in every.items() if name not in refused}

    def ignored(self, reply: Reply) -> tuple[str, ...]:
        """What of it a reply does not show."""
        found = {
            "n": len(reply.texts) < self.n,
            "logprobs": self.logprobs is not None and None in reply.first_tokens,
            "choice": bool(self.choice) and not set(reply.texts) <= set(self.choice),
        }
        return tuple(name for name, missing in found.items() if missing)


def failure_in(body: Any) -> tuple[int, str] | None:
    """Status and text of a failure that came with status 200; None if it is something else.

    Gateways send such when the model behind them fails. One that does not say how is as 502.
    """
    if not isinstance(body, dict) or not body.get("error") or body.get("choices"):
        return None
    error = body["error"]
    code = error.get("code") if isinstance(error, dict) else None
    status = code if type(code) is int and 400 <= code < 600 else 502
    return status, json.dumps(error, ensure_ascii=False)


def read_completion(body: Any, fit: Callable[[str], str] = str) -> Reply:
    """The reply in a chat completion.

    Args:
        body: the completion, as JSON.
        fit: makes each of its texts fit to be kept.

    Raises:
        ValueError, LookupError, TypeError: it is none.
    """
    choices = body["choices"]
    read = [_choice(choice, fit) for choice in choices]
    texts, tokens, finished = zip(*read, strict=True)  # ValueError if there is none
    return Reply(texts, tokens, finished)


def usage_of(body: Any, reply: Reply, most: Usage) -> Usage:
    """What a completion cost by its own account; without one, the most that it can have."""
    given = body.get("usage") if isinstance(body, dict) else None
    account = given if isinstance(given, dict) else {}
    prompt, said = (account.get(k) for k in ("prompt_tokens", "completion_tokens"))
    if not (_is_count(prompt) and _is_count(said)):
        written = sum(len(text.encode()) + 1 for text in reply.texts)
        return Usage(1, most.prompt_tokens, min(most.reply_tokens, written))
    return Usage(1, prompt, said)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _MOST_TOKENS


def _choice(choice: Any, fit: Callable[[str], str]) -> tuple[str, Mapping[str, float] | None, bool]:
    message = choice["message"]
    content = message["content"]
    if not isinstance(content, str | None):
        raise TypeError("content is no text")
    before, closed, text = fit(_whole(content or "")).rpartition("</think>")
    thought = bool(before or closed or message.get("reasoning_content") or message.get("reasoning"))
    tokens = None if thought else _first_tokens(choice.get("logprobs"), fit)
    return text.strip(), tokens, choice.get("finish_reason") != "length"


def _whole(text: str) -> str:
    """A text that can be written: half of a surrogate pair, which JSON can spell, becomes `?`."""
    return text.encode("utf-8", "replace").decode()


def _first_tokens(given: Any, fit: Callable[[str], str]) -> Mapping[str, float] | None:
    """Of the first token's alternatives; a server that sends none, or something else: None."""
    try:
        every: Sequence[Any] = given["content"][0]["top_logprobs"]
        return {fit(_whole(str(t["token"]))): float(t["logprob"]) for t in reversed(every)} or None
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
