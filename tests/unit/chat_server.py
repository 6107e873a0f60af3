"""A chat server on loopback that says what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]
Answer = Callable[[dict[str, Any]], Reply]


def completion(*contents: object, usage: tuple[int, int] | None = None, **more: Any) -> Reply:
    """A chat completion as servers send it, with a choice for each content."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": content}, **more}
        for i, content in enumerate(contents)
    ]
    body: dict[str, Any] = {"choices": choices}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return 200, {}, json.dumps(body).encode()


@dataclass
class Server:
    """Replies in turn, the last one for ever; None never replies, a function is asked."""

    replies: list[Reply | Answer | None]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Note the request and answer it."""
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self.lock:
            self.requests.append(body)
            self.headers.append({k.lower(): v for k, v in request.headers.items()})
            self.paths.append(request.path)
            reply = self.replies[min(len(self.requests), len(self.replies)) - 1]
        if reply is None:
            self.over.wait(30)
            return
        status, headers, content = reply(body) if callable(reply) else reply
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content)


Serve = Callable[..., Server]


@contextmanager
def serving() -> Iterator[Serve]:
    """Starts servers, which end with the block."""
    running: list[tuple[Server, ThreadingHTTPServer]] = []

    def start(*replies: Reply | Answer | None) -> Server:
        server = Server(list(replies))

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.handle(self)

            def log_message(self, *_: object) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        running.append((server, http))
        return server

    try:
        yield start
    finally:
        for server, http in running:
            server.over.set()
            http.shutdown()
            http.server_close()
