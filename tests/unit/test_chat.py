"""The chat client against a server on loopback: errors, tries, cache, budget, reports."""

from __future__ import annotations

import base64
import json
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from filelock import FileLock
from PIL import Image

from selfcal.chat import (
    Cache,
    ChatClient,
    ChatError,
    Keeping,
    Ledger,
    Reply,
    SpentError,
    Usage,
    cache_file,
    spent_in,
    user_message,
)
from selfcal.chat import cache as cache_module
from selfcal.chat.messages import most_tokens
from selfcal.errors import StoreError
from unit.chat_server import Reply as Sent
from unit.chat_server import Serve, Server, completion

KEY = "sk-secret-0123456789"
HELLO = [user_message("hello")]


def failure(server: Server, **settings: Any) -> str:
    """The text of the error that asking this server ends in."""
    with ChatClient(server.url, "m", **settings) as client, pytest.raises(ChatError) as caught:
        client.ask([user_message("hello")])
    assert server.url in str(caught.value)
    return str(caught.value)


def test_request_and_reply(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    server = serve(completion(" Hi "))
    with ChatClient(server.url, "m", "MY_KEY", temperature=0.5, max_tokens=9) as client:
        assert client.ask([user_message("hello")]) == "Hi"
    assert server.requests == [
        {
            "model": "m",
            "temperature": 0.5,
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "hello"}],
        }
    ]
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_no_key_is_sent_where_none_is_set(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    server = serve(completion("Hi"))
    with ChatClient(server.url, "m", "MY_KEY") as client:
        client.ask([user_message("hello")])
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_base_url_forms(serve: Serve, end: str) -> None:
    server = serve(completion("Hi"))
    with ChatClient(server.url.removesuffix("/v1") + end, "m") as client:
        assert client.ask([user_message("hello")]) == "Hi"
    assert server.paths == ["/v1/chat/completions"]


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://h/v1", "http://[::1", "http:///v1"])
def test_bad_base_urls(url: str) -> None:
    with pytest.raises(ChatError, match=r"base URL.*give http://HOST:PORT/v1"):
        ChatClient(url, "m")


def test_password_and_query_of_the_url_are_not_shown(serve: Serve) -> None:
    server = serve((400, {}, b"no"))
    url = server.url.replace("http://", "http://me:hidden@") + "?key=hidden2"
    with ChatClient(url, "m") as client, pytest.raises(ChatError) as caught:
        client.ask([user_message("hello")])
    assert "hidden" not in str(caught.value)


def test_empty_reply_and_thinking(serve: Serve) -> None:
    server = serve(completion(None), completion("<think>Answer: 3?</think>\n\nfirst"))
    with ChatClient(server.url, "m") as client:
        assert client.ask([user_message("hello")]) == ""
        assert client.ask([user_message("hello")]) == "first"


def test_429_then_ok(serve: Serve, pauses: list[float]) -> None:
    server = serve((429, {"Retry-After": "7"}, b"slow"), (503, {}, b""), completion("Hi"))
    with ChatClient(server.url, "m") as client:
        assert client.ask([user_message("hello")]) == "Hi"
    assert pauses == [7.0, 2.0]


def test_500_for_ever(serve: Serve, pauses: list[float]) -> None:
    server = serve((500, {"Retry-After": "9999"}, b"out of\x1b[31m memory"))
    text = failure(server, retries=2)
    assert "status 500 (out of [31m memory), 3 tries; look at the server's log" in text
    assert len(server.requests) == 3
    assert pauses == [60.0, 60.0]


def test_pauses_grow_to_a_limit(serve: Serve, pauses: list[float]) -> None:
    failure(serve((500, {}, b"")), retries=8)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    ("status", "way_out"),
    [(400, "takes images"), (404, "base URL and the model's name"), (307, "base URL")],
)
def test_refusals_are_not_tried_again(
    serve: Serve, pauses: list[float], status: int, way_out: str
) -> None:
    server = serve((status, {"Location": "/elsewhere"}, b"x" * 5000))
    text = failure(server)
    assert f"status {status}" in text and way_out in text and len(text) < 500
    assert len(server.requests) == 1 and not pauses


@pytest.mark.parametrize(
    "body",
    [
        b"<html>it works</html>",
        b"\xff\xfe",
        b"",
        b"[" * 100_000,
        b"[]",
        b"null",
        b'{"choices": []}',
        b'{"choices": [{"message": {}}]}',
        b'{"choices": [{"message": {"content": [1]}}]}',
    ],
)
def test_garbage_is_no_reply(serve: Serve, body: bytes) -> None:
    server = serve((200, {}, body))
    text = failure(server)
    assert "status 200, but no chat completion" in text and "base URL" in text
    assert len(server.requests) == 1


def test_half_a_character_is_no_end(serve: Serve, tmp_path: Path) -> None:
    body = b'{"choices": [{"message": {"content": "so \\ud83d it is"}, "logprobs": {"content": ['
    body += b'{"top_logprobs": [{"token": "\\ud83d", "logprob": -0.1}]}]}}]}'
    with cached(serve((200, {}, body)), tmp_path / "c") as client:
        reply, again = (client.reply(HELLO, logprobs=2) for _ in range(2))
    assert reply.text == again.text == "so ? it is" and client.spent.cached == 1
    assert reply.first_tokens == ({"?": -0.1},)
    kept = reply.to_json() | {"texts": ["so \ud83d it is"]}  # by an earlier version
    assert Reply.from_json(kept).text == "so ? it is"


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        ({"message": "busy"}, 2), ("busy", 2), ({"code": 429}, 2), ({"code": "x"}, 2),
        ({"code": 400}, 1),
    ],
)  # fmt: skip
def test_a_failure_may_come_with_status_200(
    serve: Serve, pauses: list[float], error: object, tries: int
) -> None:
    failed = (200, {}, json.dumps({"error": error}).encode())
    server = serve(failed, completion("Hi"))
    with ChatClient(server.url, "m") as client:
        if tries == 1:
            with pytest.raises(ChatError, match="status 400"):
                client.ask(HELLO)
        else:
            assert client.ask(HELLO) == "Hi"
    assert len(server.requests) == tries and client.spent.requests == tries
    assert "status 502" in failure(serve((200, {}, b'{"error": "down"}')), retries=1)


def test_timeout(serve: Serve, pauses: list[float]) -> None:
    server = serve(None)
    text = failure(server, timeout=0.2, retries=1)
    assert "no reply within 0.2 s" in text and "raise the timeout" in text
    assert len(server.requests) == 2 and pauses == [1.0]


def test_no_server(serve: Serve, pauses: list[float]) -> None:
    url = "http://127.0.0.1:9/v1"  # the discard port, where nothing listens
    text = failure(Server([], url=url), retries=1)
    assert "no connection" in text and "start the server" in text and pauses == [1.0]


def test_the_key_is_never_shown(
    serve: Serve, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    echo = f"{'x' * 190} wrong key: {KEY}".encode()  # the cut falls into the key
    for status, body in [(401, echo), (500, echo), (200, echo), (403, KEY.encode())]:
        text = failure(serve((status, {}, body)), api_key_env="MY_KEY", retries=0)
        assert "sk-" not in text
    assert "check the key in $MY_KEY" in text and "not set" not in text
    monkeypatch.delenv("MY_KEY")
    assert "$MY_KEY, which is not set" in failure(serve((401, {}, b"")), api_key_env="MY_KEY")
    assert "api_key_env" in failure(serve((401, {}, b"")))
    for bad in (f"{KEY}\nX: y", f"{KEY} x", f"{KEY}é"):
        monkeypatch.setenv("MY_KEY", bad)
        with pytest.raises(ChatError, match=r"key in \$MY_KEY") as caught:
            ChatClient("http://127.0.0.1:1/v1", "m", "MY_KEY")
        assert "sk-" not in str(caught.value)


def test_the_key_is_never_shown_however_it_is_spelled(
    serve: Serve, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk/a+b&c\\d=="
    monkeypatch.setenv("MY_KEY", key)
    escaped = json.dumps(key).replace("/", "\\/").replace("&", "\\u0026")
    spelled = [
        key, escaped, json.dumps(json.dumps({"key": key})), quote(key, safe=""),
        "".join(f"\\u{ord(c):04X}" for c in key),
    ]  # fmt: skip
    for text in spelled:
        said = failure(serve((401, {}, f"[{text}]".encode())), api_key_env="MY_KEY")
        assert "***" in said and not any(part in said for part in ("sk", "a+b", "a%2Bb", "006B"))


def test_neither_is_a_password(serve: Serve) -> None:
    sent = base64.b64encode(b"me:hid/den").decode()
    server = serve((401, {}, f"Basic {sent} is me:hid/den, me:hid%2Fden".encode()))
    url = server.url.replace("http://", "http://me:hid%2Fden@")
    with ChatClient(url, "m") as client, pytest.raises(ChatError) as caught:
        client.ask(HELLO)
    assert server.headers[0]["authorization"] == f"Basic {sent}"
    assert "Basic *** is me:***, me:***" in str(caught.value)


def test_a_key_and_a_password_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with pytest.raises(ChatError, match=r"base URL of h: has a user, and there is a key") as caught:
        ChatClient("http://me:hidden@h/v1", "m", "MY_KEY")
    assert "hidden" not in str(caught.value) and KEY not in str(caught.value)


def test_threads_share_a_client(serve: Serve) -> None:
    server = serve(completion("Hi"))
    with ChatClient(server.url, "m") as client, ThreadPoolExecutor(8) as pool:
        turns = [[user_message(str(i))] for i in range(40)]
        assert list(pool.map(client.ask, turns)) == ["Hi"] * 40
    asked = {request["messages"][0]["content"] for request in server.requests}
    assert asked == {str(i) for i in range(40)}


# --- what a server honours ------------------------------------------------------------------


def logprobs(**tokens: float) -> dict[str, Any]:
    """Alternatives of the first token, as servers send them."""
    top = [{"token": token, "logprob": value} for token, value in tokens.items()]
    return {"logprobs": {"content": [{"token": "first", "top_logprobs": top}]}}


def test_all_that_a_reply_says(serve: Serve) -> None:
    more = logprobs(first=-0.1, second=-2.5)
    server = serve(completion("first", "second", usage=(7, 2), finish_reason="length", **more))
    with ChatClient(server.url, "m") as client:
        reply = client.reply(HELLO, n=2, logprobs=5, choice=["first", "second"], temperature=0.7)
    assert reply.texts == ("first", "second") and reply.finished == (False, False)
    assert reply.first_tokens == ({"first": -0.1, "second": -2.5},) * 2
    assert reply.usage == Usage(1, 7, 2) and reply.ignored == ()
    asked = server.requests[0]
    assert (asked["n"], asked["logprobs"], asked["top_logprobs"]) == (2, True, 5)
    assert asked["structured_outputs"] == {"choice": ["first", "second"]}
    assert asked["temperature"] == 0.7


def test_what_a_server_ignores_is_said(serve: Serve) -> None:
    server = serve(completion("well", usage=(7, 2), finish_reason="stop"))
    with ChatClient(server.url, "m") as client:
        reply = client.reply(HELLO, n=3, logprobs=5, choice=["a", "b"])
    assert reply.ignored == ("n", "logprobs", "choice")
    assert reply.texts == ("well",) and reply.first_tokens == (None,) and reply.finished == (True,)


@pytest.mark.parametrize(
    "message", [{"content": "<think>No.</think>first"}, {"content": "first", "reasoning": "No."}]
)
def test_first_tokens_of_thoughts_say_nothing(serve: Serve, message: dict[str, str]) -> None:
    body = {"choices": [{"message": message, **logprobs(first=-0.1)}]}
    server = serve((200, {}, json.dumps(body).encode()))
    with ChatClient(server.url, "m") as client:
        reply = client.reply(HELLO, logprobs=5)
    assert reply.text == "first" and reply.first_tokens == (None,)


def test_what_a_server_refuses_is_left_out_from_then_on(serve: Serve) -> None:
    def strict(body: dict[str, Any]) -> Sent:
        known = {"model", "messages", "temperature", "max_tokens", "n"}
        return completion("a", "b") if set(body) <= known else (400, {}, b"unknown argument")

    server = serve(strict)
    with ChatClient(server.url, "m") as client:
        first = client.reply(HELLO, n=2, logprobs=5, choice=["a", "b"])
        assert first.texts == ("a", "b") and first.ignored == ("logprobs",)
        assert first.usage.requests == 3
        assert client.reply(HELLO, n=2, logprobs=5, choice=["a", "b"]).usage.requests == 1
    assert len(server.requests) == 4


def test_a_request_that_is_refused_as_such_is_an_error(serve: Serve) -> None:
    server = serve((400, {}, b"too long"))
    with ChatClient(server.url, "m") as client:
        with pytest.raises(ChatError, match=r"400 \(too long\)"):
            client.reply(HELLO, n=2, logprobs=5)
        with pytest.raises(ChatError):  # neither is known to be at fault
            client.reply(HELLO, n=2)
    assert len(server.requests) == 5


def test_newer_models_get_their_limit_by_its_newer_name(serve: Serve) -> None:
    def newer(body: dict[str, Any]) -> Sent:
        said = b"Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return (400, {}, said) if "max_tokens" in body else completion("Hi")

    server = serve(newer)
    with ChatClient(server.url, "m", max_tokens=9) as client:
        assert client.ask(HELLO) == "Hi" and client.ask(HELLO) == "Hi"
    assert [r.get("max_completion_tokens") for r in server.requests] == [None, 9, 9]


def test_draws_are_made_up_for_one_by_one(serve: Serve) -> None:
    one_each = serve(completion("a"), completion("b"), completion("c"))
    with ChatClient(one_each.url, "m", temperature=1.0) as client:
        assert client.draws(HELLO, 3) == ["a", "b", "c"]
    at_once = serve(completion("a", "b", "c"))
    with ChatClient(at_once.url, "m", temperature=1.0) as client:
        assert client.draws(HELLO, 3) == ["a", "b", "c"]
    assert (len(one_each.requests), len(at_once.requests)) == (3, 1)


def test_no_account_of_another_service_is_sent(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "CUSTOM_HEADERS"):
        monkeypatch.setenv(f"OPENAI_{name}", f"Authorization: {KEY}")
    server = serve(completion("Hi"))
    with ChatClient(server.url, "m") as client:
        client.ask(HELLO)
    assert KEY not in str(server.headers[0])


def test_so_many_requests_at_the_same_time(serve: Serve) -> None:
    busy, most, lock = 0, 0, threading.Lock()

    def slow(_: dict[str, Any]) -> Sent:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02)
        with lock:
            busy -= 1
        return completion("Hi")

    server = serve(slow)
    with ChatClient(server.url, "m", concurrency=3) as client, ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda i: client.ask([user_message(str(i))]), range(24)))
    assert most == 3


# --- the cache ------------------------------------------------------------------------------


def cached(server: Server, path: Path, **settings: Any) -> ChatClient:
    """A client with a cache."""
    seed = settings.pop("seed", 0)
    keeping = Keeping(cache=Cache(path), seed=seed)
    return ChatClient(server.url, settings.pop("model", "m"), keeping=keeping, **settings)


def test_a_known_question_costs_no_request(serve: Serve, tmp_path: Path) -> None:
    server = serve(completion("<think>x</think>Hi", usage=(3, 1)), (500, {}, b""))
    with cached(server, tmp_path / "c") as client:
        fresh = client.reply(HELLO)
        again = client.reply(HELLO)
    assert fresh == again and (fresh.usage, again.usage) == (Usage(1, 3, 1), Usage(cached=1))
    with cached(server, tmp_path / "c", api_key_env="NO_SUCH") as client:  # another process
        assert client.ask(HELLO) == "Hi" and client.spent == Usage(cached=1)
    assert len(server.requests) == 1


def test_all_that_decides_a_reply_is_in_the_key(serve: Serve, tmp_path: Path) -> None:
    image = tmp_path / "a.png"

    def picture(colour: str) -> list[Any]:
        Image.new("RGB", (4, 4), colour).save(image)
        return [user_message("what?", [str(image)])]

    server = serve(completion("Hi"))
    path = tmp_path / "c"
    red, blue = picture("red"), picture("blue")  # the same path, other pixels
    hot = {"temperature": 1.0}
    asks: list[tuple[dict[str, Any], Sequence[Any], dict[str, Any]]] = [
        ({}, HELLO, {}), ({"model": "other"}, HELLO, {}), ({"max_tokens": 5}, HELLO, {}),
        (hot, HELLO, {}), (hot, HELLO, {"draw": 1}), ({**hot, "seed": 1}, HELLO, {}),
        ({}, HELLO, {"n": 2}), ({}, HELLO, {"logprobs": 2}), ({}, HELLO, {"choice": ["a"]}),
        ({}, red, {}), ({}, blue, {}), ({}, [user_message("bye")], {}),
    ]  # fmt: skip
    for _ in range(2):
        for settings, messages, how in asks:
            with cached(server, path, **settings) as client:
                client.reply(messages, **how)
    assert len(server.requests) == len(asks)
    # what cannot change a greedy reply is not in it
    with cached(server, path, seed=5, timeout=3.0, retries=0, concurrency=1) as client:
        client.reply(HELLO, draw=3)
    assert len(server.requests) == len(asks)


def test_failures_are_not_kept(serve: Serve, pauses: list[float], tmp_path: Path) -> None:
    server = serve((400, {}, b""), (200, {}, b"garbage"), (500, {}, b""), completion("Hi"))
    with cached(server, tmp_path / "c", retries=0) as client:
        for _ in range(3):
            with pytest.raises(ChatError):
                client.ask(HELLO)
        assert client.ask(HELLO) == "Hi"


def test_a_damaged_cache_is_moved_aside(serve: Serve, tmp_path: Path) -> None:
    server, path = serve(completion("Hi")), tmp_path / "c"
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    with cached(server, path) as client:
        with pytest.warns(RuntimeWarning, match=r"damaged.*c\.damaged-1"):
            assert client.ask(HELLO) == "Hi"
        assert client.ask(HELLO) == "Hi" and client.spent.cached == 1
    assert (tmp_path / "c.damaged-1").exists() and len(server.requests) == 1


def test_what_is_no_reply_in_the_cache_is_asked_anew(serve: Serve, tmp_path: Path) -> None:
    server, cache = serve(completion("Hi")), Cache(tmp_path / "c")
    with cached(server, tmp_path / "c") as client:
        client.ask(HELLO)
        import sqlite3

        for junk in ("[", "3", "{}", '{"texts": []}', '{"texts": [1]}', "null"):
            with sqlite3.connect(tmp_path / "c") as base:
                base.execute("UPDATE replies SET reply = ?", (junk,))
            base.close()
            assert client.ask(HELLO) == "Hi"
    assert len(server.requests) == 7 and cache.get("unknown") is None


def test_without_a_place_for_it_the_cache_is_done_without(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    server = serve(completion("Hi"))
    with cached(server, tmp_path / "file" / "c") as client:
        with pytest.warns(RuntimeWarning, match="going on without it"):
            assert client.ask(HELLO) == "Hi"
        assert client.ask(HELLO) == "Hi"  # told once


@pytest.mark.parametrize("fault", ["rename", "lock", "there"])
def test_a_damaged_cache_that_cannot_be_moved_is_done_without(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no")

    if fault == "lock":
        monkeypatch.setattr(cache_module, "_WAIT_S", 0.05)
    else:
        monkeypatch.setattr(Path, {"rename": "rename", "there": "exists"}[fault], refuse)
    held = FileLock(f"{path}.lock") if fault == "lock" else nullcontext()
    with held, cached(serve(completion("Hi")), path) as client:
        with pytest.warns(RuntimeWarning, match="going on without it") as told:
            assert client.ask(HELLO) == "Hi"
        assert client.ask(HELLO) == "Hi" and client.spent.cached == 0
    assert len(told) == 1
    assert path.read_bytes().startswith(b"SQLite") and not list(tmp_path.glob("*.damaged-*"))


def test_a_user_without_a_home_has_no_cache(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SELFCAL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.chdir(tmp_path)
    with pytest.warns(RuntimeWarning, match=r"home.*set SELFCAL_CACHE"):
        cache = Cache()
    cache.put("a", {"n": 1})
    assert cache.get("a") is None and not list(tmp_path.iterdir())


def test_threads_and_processes_share_a_cache(tmp_path: Path) -> None:
    caches = [Cache(tmp_path / "c") for _ in range(4)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: caches[i % 4].put(str(i), {"n": i}), range(100)))
    assert [Cache(tmp_path / "c").get(str(i)) for i in range(100)] == [{"n": i} for i in range(100)]


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SELFCAL_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_file() == tmp_path / "own" / "replies.sqlite"
    monkeypatch.delenv("SELFCAL_CACHE")
    assert cache_file() == tmp_path / "xdg" / "selfcal" / "replies.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_file() == tmp_path / ".cache" / "selfcal" / "replies.sqlite"


def test_the_key_is_in_no_file(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server = serve(completion("Hi"))
    ledger = Ledger(tmp_path / "run" / "teacher.jsonl", "teacher", "teacher", 10, 100_000)
    keeping = Keeping(ledger, Cache(tmp_path / "cache" / "c"))
    with ChatClient(server.url, "m", "MY_KEY", keeping=keeping) as client:
        client.ask(HELLO)
        client.ask(HELLO)
    written = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert len(written) >= 2 and not any(KEY.encode() in data for data in written)
    address = server.url.removeprefix("http://").removesuffix("/v1").encode()
    assert not any(address in data for data in written)


# --- the budget -----------------------------------------------------------------------------


def limited(server: Server, path: Path | None = None, **limits: Any) -> ChatClient:
    """A client with a budget; replies have 10 tokens at most."""
    ledger = Ledger(path, "teacher abc", "teacher", **limits)
    return ChatClient(server.url, "m", max_tokens=10, retries=0, keeping=Keeping(ledger))


def test_a_budget_is_never_overrun_by_threads(serve: Serve) -> None:
    spent = 0
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> Sent:
        nonlocal spent
        with lock:
            spent += 50 + 10
        time.sleep(0.002)
        return completion("Hi", usage=(50, 10))

    server = serve(answer)
    with limited(server, tokens=1000) as client, ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(client.ask, [user_message(f"{i:04}")]) for i in range(60)]
        failed = [f.exception() for f in futures]
    # a prompt of 4 bytes may take 84 tokens, and its reply 10: 15 fit surely, 16 do not
    # (15 x 60 = 900, and 900 + 94 fits; then 960 + 94 does not)
    assert most_tokens([user_message("0000")]) == 84
    assert len(server.requests) == 16 and spent == 960 == client.spent.tokens
    assert sum(e is None for e in failed) == 16
    assert all(isinstance(e, SpentError) for e in failed if e is not None)
    text = str(next(e for e in failed if e is not None))
    assert "the budget of 1,000 tokens is spent" in text and "16 requests" in text
    assert "raise teacher.budget.tokens and run the same command again" in text


def test_a_budget_of_requests_counts_each_try(serve: Serve, pauses: list[float]) -> None:
    server = serve((500, {}, b""), (500, {}, b""), completion("Hi"))
    ledger = Ledger(requests=3)
    with ChatClient(server.url, "m", keeping=Keeping(ledger)) as client:
        assert client.ask(HELLO) == "Hi"
        with pytest.raises(SpentError, match="budget of 3 requests is spent"):
            client.ask(HELLO)
    assert len(server.requests) == 3 and client.spent.requests == 3


def test_a_budget_holds_across_resumes(serve: Serve, tmp_path: Path) -> None:
    server, path = serve(completion("Hi", usage=(50, 10))), tmp_path / "spending" / "teacher.jsonl"
    with limited(server, path, tokens=220) as client:
        client.ask(HELLO)
        client.ask(HELLO)
    with limited(server, path, tokens=220) as client:
        assert client.spent == Usage(2, 100, 20)
        client.ask(HELLO)
        with pytest.raises(SpentError):
            client.ask(HELLO)
    with limited(server, path, tokens=1000) as client:  # raised
        assert client.ask(HELLO) == "Hi"
    assert spent_in(path.parent, "teacher abc") == Usage(4, 200, 40)
    assert spent_in(path.parent, "other") == Usage()


def test_what_a_killed_process_had_under_way_counts_in_full(tmp_path: Path) -> None:
    path = tmp_path / "teacher.jsonl"
    first = Ledger(path, "s")
    first.settle(first.reserve(100), Usage(1, 40, 5))
    first.reserve(100)  # killed here
    with path.open("ab") as file:
        file.write(b'{"id": "0123", "stage": "s", "res')  # or here
    again = Ledger(path, "s", tokens=1000)
    assert again.spent == Usage(2, 140, 5)
    again.settle(again.reserve(10), Usage(1, 1, 1))
    assert Ledger(path, "s").spent == Usage(3, 141, 6) == spent_in(tmp_path, "s")


def test_a_damaged_ledger_names_line_and_way_out(tmp_path: Path) -> None:
    path = tmp_path / "teacher.jsonl"
    ledger = Ledger(path, "s")
    ledger.note_cached()
    with path.open("ab") as file:
        file.write(b"\xff\n")
    with pytest.raises(StoreError, match=r"teacher\.jsonl: line 2 is damaged.*delete the line"):
        Ledger(path, "s").reserve(1)


def test_what_is_unknown_counts_as_the_most_that_it_can_be(
    serve: Serve, pauses: list[float]
) -> None:
    silent = serve(completion("Hi"))  # a server that gives no account
    with limited(silent) as client:
        client.ask(HELLO)
        assert client.spent == Usage(1, most_tokens(HELLO), 3)  # no more tokens than bytes, and end
    slow = serve(None)
    ledger = Ledger()
    with ChatClient(
        slow.url, "m", max_tokens=10, timeout=0.1, retries=0, keeping=Keeping(ledger)
    ) as client:
        with pytest.raises(ChatError):
            client.ask(HELLO)
        assert client.spent == Usage(1, most_tokens(HELLO), 10)  # it may have been written
    nobody = Server([], url="http://127.0.0.1:9/v1")
    with limited(nobody) as client:
        with pytest.raises(ChatError, match="no connection"):
            client.ask(HELLO)
        assert client.spent == Usage(1)  # nobody can have written anything
    refusing = serve((400, {}, b""))
    with limited(refusing) as client:
        with pytest.raises(ChatError):
            client.ask(HELLO)
        assert client.spent == Usage(1)


def test_prompts_that_are_longer_than_reckoned_are_reckoned_with(serve: Serve) -> None:
    server = serve(completion("Hi", usage=(850, 10)))  # ten times what the text can be
    with limited(server, tokens=1800) as client:
        client.ask([user_message("0000")])
        with pytest.raises(SpentError):  # 860 + 850 + 10 would fit; 860 + 10 x 85 + 10 does
            client.ask([user_message("0" * 100)])
    assert len(server.requests) == 1


def test_images_are_reckoned_by_their_size(tmp_path: Path) -> None:
    for size in ((4, 4), (4000, 3000)):
        Image.new("RGB", size).save(tmp_path / "a.png")
        found = most_tokens([user_message("", [str(tmp_path / "a.png")])])
        assert found == 64 + 16 + max(3400, math.prod(size) // 700)
    assert most_tokens([{"role": "user", "content": "é" * 10}]) == 64 + 16 + 20
