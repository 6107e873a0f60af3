"""A real S3 server on loopback (moto's), that can be told to fail now and then."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import pytest

BUCKET = "runs-of-tests"
_SLOW_DOWN = (
    b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>SlowDown</Code>"
    b"<Message>Please reduce your request rate.</Message></Error>"
)


@dataclass
class S3:
    """The server: its endpoint, and what it shall do."""

    endpoint: str
    failing: int = 0
    """Every so manieth request is answered 503; 0: none."""
    failed: int = 0
    """Requests that were."""
    asked: list[str] = field(default_factory=list)
    """`METHOD PATH` of all requests."""

    def url(self, name: str) -> str:
        return f"s3://{BUCKET}/runs/{name}"

    @property
    def system(self) -> Any:
        import fsspec

        return fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)

    def keys(self, name: str) -> dict[str, bytes]:
        """All objects of a run."""
        root = f"{BUCKET}/runs/{name}"
        system = self.system
        return {path[len(root) + 1 :]: system.cat_file(path) for path in system.find(root)}

    def names(self, name: str) -> list[str]:
        root = f"{BUCKET}/runs/{name}"
        return [path[len(root) + 1 :] for path in self.system.find(root)]

    def put(self, name: str, key: str, data: bytes) -> None:
        self.system.pipe_file(f"{BUCKET}/runs/{name}/{key}", data)

    def get(self, name: str, key: str) -> bytes:
        data: bytes = self.system.cat_file(f"{BUCKET}/runs/{name}/{key}")
        return data

    def drop(self, name: str, *starts: str) -> None:
        gone = [n for n in self.names(name) if n.startswith(starts)]
        self.system.rm([f"{BUCKET}/runs/{name}/{key}" for key in gone])


@contextmanager
def serving(patch: pytest.MonkeyPatch) -> Iterator[S3]:
    """Serve for as long as the block runs; the environment leads there, and nowhere else."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app, count = DomainDispatcherApplication(create_backend_app), itertools.count(1)
    s3 = S3("")

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        s3.asked.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if s3.failing and next(count) % s3.failing == 0:
            s3.failed += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [_SLOW_DOWN]
        return app(environ, start)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, answer, threaded=True)
    s3.endpoint = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "AWS_ENDPOINT_URL": s3.endpoint,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "not-to-be-shown",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():
        patch.setenv(name, value)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        s3.system.makedirs(BUCKET, exist_ok=True)
        yield s3
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
