"""Servers that mean harm: what they send is bounded, what they are sent goes nowhere else."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from selfcal.chat import ChatClient, ChatError, Keeping, user_message
from selfcal.chat import guard as guarded
from selfcal.chat.cache import Cache
from selfcal.chat.ledger import Ledger
from selfcal.recipe import Server as ServerSettings
from selfcal.search.server import Connection, ServerError
from unit.chat_server import Serve, completion

KEY = "sk-very-secret-0123456789"
ASKED = [user_message("hello")]
Sends = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Sends], str]]:
    """Starts servers that write what they like."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(sends: Sends) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                with suppress(OSError):  # the client has gone
                    sends(self)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MY_KEY", KEY)
    return KEY


def head(request: http.server.BaseHTTPRequestHandler, **headers: str) -> None:
    request.send_response(200)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()


def both(url: str, timeout: float = 20.0) -> list[str]:
    """What the two clients say of a server."""
    said = []
    with ChatClient(url, "m", "MY_KEY", timeout=timeout, retries=0) as client:
        with pytest.raises(ChatError) as caught:
            client.ask(ASKED)
        said.append(str(caught.value))
    settings = ServerSettings(base_url=url, api_key_env="MY_KEY", timeout=timeout, retries=0)
    with Connection(settings) as connection, pytest.raises(ServerError) as failed:
        connection.ask({"model": "m", "messages": ASKED}).result()
    return [*said, str(failed.value)]


def test_a_body_without_an_end_is_given_up(
    raw: Callable[[Sends], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded, "MOST_BYTES", 2**20)

    def sends(request: http.server.BaseHTTPRequestHandler) -> None:
        head(request, Content_Type="application/json")
        while True:
            request.wfile.write(b" " * 2**16)

    assert all("sent more than 1 MiB" in said for said in both(raw(sends)))


def test_a_large_body_that_is_announced_is_given_up_too(
    raw: Callable[[Sends], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded, "MOST_BYTES", 2**20)
    body = json.dumps({"choices": [{"message": {"content": "a" * 2**21}}]}).encode()

    def sends(request: http.server.BaseHTTPRequestHandler) -> None:
        head(request, Content_Length=str(len(body)))
        request.wfile.write(body)

    assert all("sent more than 1 MiB" in said for said in both(raw(sends)))


def test_a_compressed_bomb_is_not_unpacked(raw: Callable[[Sends], str]) -> None:
    bomb = gzip.compress(b" " * 2**24)
    asked = []

    def sends(request: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(request.headers["Accept-Encoding"])
        head(request, Content_Encoding="gzip", Content_Length=str(len(bomb)))
        request.wfile.write(bomb)

    assert all("compressed" in said for said in both(raw(sends)))
    assert asked == ["identity"] * 2


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
DRIPS = {
    "body": (OK + b"Content-Length: 1000000\r\n\r\n", b" "),
    "status": (b"", b"H"),
    "interim": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "headers": (OK, b"X: y\r\n"),
    "chunks": (CHUNKED, b"1\r\n \r\n"),
    "extension": (CHUNKED + b"5;a=", b"x"),
    "trailers": (CHUNKED + b"0\r\n", b"X: y\r\n"),
}
"""What is sent at once, and what follows on it bit by bit."""


@pytest.mark.parametrize("kind", DRIPS)
def test_no_drip_holds_a_request_beyond_its_time(raw: Callable[[Sends], str], kind: str) -> None:
    over = threading.Event()

    def sends(request: http.server.BaseHTTPRequestHandler) -> None:
        at_once, bit = DRIPS[kind]
        request.wfile.write(at_once)
        while not over.wait(0.05):
            request.wfile.write(bit)

    said = both(raw(sends), timeout=0.3)
    over.set()
    assert all("no reply within 0.3 s" in one for one in said)


def test_each_request_of_a_connection_has_its_own_time(serve: Serve, key: str) -> None:
    from time import sleep

    server = serve(completion("fine"), completion("fine"), completion("fine"))
    with ChatClient(server.url, "m", "MY_KEY", timeout=0.8, retries=0) as client:
        for _ in range(3):
            assert client.ask(ASKED) == "fine"
            sleep(0.4)


@pytest.mark.parametrize("spelled", [KEY, "".join(f"\\u{ord(c):04x}" for c in KEY)])
def test_a_key_in_a_reply_is_cut_out_of_it(
    serve: Serve, key: str, spelled: str, tmp_path: Path
) -> None:
    token = {"token": spelled, "logprob": -0.5}
    first = {"content": [{**token, "top_logprobs": [token]}]}
    body = {
        "choices": [{"index": 0, "message": {"content": f"so {spelled} it is"}, "logprobs": first}]
    }
    server = serve((200, {}, json.dumps(body).encode()))
    keeping = Keeping(Ledger(tmp_path / "ledger.jsonl", "s"), Cache(tmp_path / "replies.sqlite"))
    with ChatClient(server.url, "m", "MY_KEY", keeping=keeping) as client:
        reply = client.reply(ASKED, logprobs=1)
    assert reply.text == "so *** it is" and reply.first_tokens == ({"***": -0.5},)
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert key.encode() not in kept and b"***" in kept
    settings = ServerSettings(base_url=server.url, api_key_env="MY_KEY", retries=0)
    with Connection(settings) as connection:
        found = connection.ask({"model": "m", "messages": ASKED}).result()
    assert found.draws[0].text == "so *** it is"


def test_a_reply_without_the_key_stays_as_it_is(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = 'EMPTY \\u0041 \\"x\\" C:\\/'
    for own in ("EMPTY", KEY):  # a word of one's own server is no secret
        monkeypatch.setenv("MY_KEY", own)
        with ChatClient(serve(completion(said)).url, "m", "MY_KEY") as client:
            assert client.ask(ASKED) == said


@pytest.mark.parametrize("counts", [(10**400, 1), (2**63, 1), (1, 2**40), (True, 1), (-1, 1)])
def test_counts_of_tokens_that_cannot_be_are_estimated(
    serve: Serve, key: str, tmp_path: Path, counts: tuple[int, int]
) -> None:
    usage = dict(zip(("prompt_tokens", "completion_tokens"), counts, strict=True))
    body = {"choices": [{"message": {"content": "ab"}}], "usage": usage}
    server = serve((200, {}, json.dumps(body).encode()))
    path = tmp_path / "ledger.jsonl"
    with ChatClient(server.url, "m", keeping=Keeping(Ledger(path, "s"))) as client:
        assert client.ask(ASKED) == "ab"
        assert client.spent.reply_tokens == 3  # its bytes, and its end
    assert Ledger(path).spent.requests == 1


def test_a_server_that_counts_too_much_does_not_eat_the_budget_at_once(serve: Serve) -> None:
    body = {"choices": [{"message": {"content": "ab"}}],
            "usage": {"prompt_tokens": 10**6, "completion_tokens": 1}}  # fmt: skip
    server = serve((200, {}, json.dumps(body).encode()), completion("cd"))
    with ChatClient(server.url, "m", keeping=Keeping(Ledger(tokens=2 * 10**6))) as client:
        assert [client.ask(ASKED), client.ask(ASKED)] == ["ab", "cd"]
        assert client._longer == 100


@pytest.mark.parametrize("url", ["http://api.example.com/v1", "http://8.8.8.8:80/v1"])
def test_no_key_goes_over_a_public_network_in_the_clear(key: str, url: str) -> None:
    with pytest.raises(ChatError, match="the key would go over http") as caught:
        ChatClient(url, "m", "MY_KEY")
    assert key not in str(caught.value)
    with pytest.raises(ServerError, match="the key would go over http"):
        Connection(ServerSettings(base_url=url, api_key_env="MY_KEY"))
    ChatClient(url, "m", "").close()  # without a key it may


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.0.0.5", "gpu-1", "vllm.ns.svc", "[::1]", "[fd00::1]"]
)
def test_a_key_may_go_over_ones_own_network(key: str, host: str) -> None:
    with ChatClient(f"http://{host}:8000/v1", "m", "MY_KEY") as client:
        assert client._openai.auth_headers == {"Authorization": f"Bearer {key}"}


def replied(**changes: object) -> dict[str, object]:
    token = {"token": "token_id:5", "logprob": -0.1}
    choice = {"index": 0, "message": {"content": "a"}, "finish_reason": "stop",
              "stop_reason": None, "logprobs": {"content": [token]}}  # fmt: skip
    return {"choices": [{**choice, **changes}]}


@pytest.mark.parametrize(
    "body",
    [
        replied(message={"content": ["a"]}),
        replied(finish_reason=7),
        replied(stop_reason=[1]),
        replied(logprobs={"content": [{"token": "token_id:4294967296", "logprob": 0}]}),
        replied(logprobs={"content": [{"token": "token_id:-1", "logprob": 0}]}),
        replied(logprobs={"content": [{"token": "token_id:1_0", "logprob": 0}]}),
        replied(logprobs={"content": [{"token": "token_id:1", "logprob": -1e300}]}),
        {**replied(), "usage": {"prompt_tokens": 2**70}},
    ],
)
def test_draws_of_no_sense_are_errors_of_the_server(serve: Serve, body: object) -> None:
    server = serve((200, {}, json.dumps(body).encode()))
    settings = ServerSettings(base_url=server.url, retries=0)
    with Connection(settings) as connection, pytest.raises(ServerError, match="no chat completion"):
        connection.ask({"model": "m", "messages": ASKED}).result()


@pytest.mark.parametrize(
    "card",
    [{"id": 7}, {"id": "m", "root": ["/x"]}, {"id": "m", "root": "a\0b"},
     {"id": "m", "max_model_len": "long"}, {"id": "m", "max_model_len": 2**80},
     {"id": "x" * 5000}],
)  # fmt: skip
def test_models_of_no_sense_are_errors_of_the_server(card: object) -> None:
    from selfcal.search.server import _cards, _read

    with pytest.raises(ServerError, match="nothing"):
        _read(json.dumps({"data": [card]}), lambda data: _cards(data, str), "nothing", str)


def test_headers_without_an_end_are_given_up(raw: Callable[[Sends], str]) -> None:
    def sends(request: http.server.BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            request.wfile.write(b"X-More: " + b"x" * 1000 + b"\r\n")

    assert all("no connection" in said for said in both(raw(sends)))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(serve: Serve, key: str, status: int) -> None:
    other = serve(completion("stolen"))
    for where in (other.url, other.url.replace("http:", "https:"), "/v1/elsewhere"):
        server = serve((status, {"Location": f"{where}/chat/completions"}, b""))
        both(server.url)
        assert len(server.requests) == 2
    assert other.requests == []


def test_a_certificate_that_nobody_vouches_for_is_refused(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    certificate = pytest.importorskip("cryptography", reason="makes the certificate") and tmp_path
    _self_signed(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    heard: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.rfile.read(1))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    said = both(f"https://127.0.0.1:{server.server_port}/v1")
    server.shutdown()
    server.server_close()
    assert all("certificate" in one.lower() for one in said) and heard == []


def _self_signed(folder: Path) -> None:
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    own = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, own.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(own, hashes.SHA256())
    )
    form = serialization
    (folder / "cert.pem").write_bytes(made.public_bytes(form.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        own.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    )


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_a_key_that_a_server_says_is_shown_and_kept_nowhere(
    serve: Serve, key: str, status: int, tmp_path: Path
) -> None:
    spelled = "".join(f"\\u{ord(c):04x}" for c in key)
    said = f'{{"error": {{"message": "{key} {spelled}", "code": 500}}}}'.encode()
    server = serve((status, {"X-Echo": key}, said))
    assert all(key not in text and "0123456789" not in text for text in both(server.url))
    # a secret that the end of what is looked at goes through
    server = serve((status if status > 200 else 400, {}, b" " * (2**16 - 9) + key.encode()))
    assert all(key[:6] not in text for text in both(server.url))
    ledger, cache = tmp_path / "ledger.jsonl", tmp_path / "replies.sqlite"
    server = serve(completion("fine"))
    keeping = Keeping(Ledger(ledger, "s", requests=9), Cache(cache))
    with ChatClient(server.url, "m", "MY_KEY", keeping=keeping) as client:
        client.ask(ASKED)
    assert server.headers[-1]["authorization"] == f"Bearer {key}"
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert key.encode() not in kept and b"127.0.0.1" not in kept


def test_no_account_of_other_variables_is_sent(
    serve: Serve, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "not-for-you")
    server = serve((500, {}, b"{}"))
    both(server.url)
    assert server.headers and not any("not-for-you" in str(h) for h in server.headers)
    assert os.environ["OPENAI_ORG_ID"] == "not-for-you"
