"""A server that answers as vLLM does, and refuses what it refuses.

It was compared with a live one (0.32.0), answer by answer. It is stricter only in what vLLM passes
over without a word: unknown parameters, a boolean for a number, an assistant's turn at the end that
is not continued.

The model behind it is a function from the prompt's text and the tokens so far to log-probabilities,
so what it says can be reckoned by hand. Flaws can be planted: each is a server that passes over one
parameter, as other servers do that call themselves compatible.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Logprobs = np.ndarray[Any, np.dtype[np.float64]]
Model = Callable[[str, tuple[int, ...]], Logprobs]
"""Prompt's text, response's tokens so far -> log-probabilities of the next token."""

KNOWN = {
    "model": str, "messages": list, "max_tokens": int, "n": int, "seed": int, "stop": list,
    "temperature": float, "top_p": float, "top_k": int, "min_p": float, "logprobs": bool,
    "top_logprobs": int, "repetition_penalty": float, "presence_penalty": float,
    "frequency_penalty": float, "include_stop_str_in_output": bool, "ignore_eos": bool,
    "skip_special_tokens": bool, "return_tokens_as_token_ids": bool,
    "add_generation_prompt": bool, "continue_final_message": bool,
}  # fmt: skip


class Refused(Exception):
    """What the server answers instead."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class StrictServer:
    """See above; `url` is its base URL while it runs."""

    processor: Any
    model: Model
    name: str = "served"
    root: str = "/models/served"
    context: int = 4096
    images: int = 1
    lora: bool = True
    max_rank: int = 512
    max_stops: int = 4
    flaws: frozenset[str] = frozenset()
    """`n`, `logprobs`, `ids`, `scores`, `stop`, `excluded`, `continued`, `seed`, `alike`, `top_k`,
    `processed`, `template`, `tokenizer`, `tokens`, `disabled`: see where they are used."""
    numbers: Mapping[int, np.ndarray[Any, Any]] = field(default_factory=dict)
    """Uniform numbers [draws, tokens] behind a seed; others are drawn from it."""
    fails: Callable[[int], int | None] = lambda request: None
    """Status with which the n-th chat request fails, from 1."""
    chats: list[dict[str, Any]] = field(default_factory=list)
    adapters: dict[str, str] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    """Names, whenever an adapter was loaded; `-NAME` when it was unloaded."""
    url: str = ""
    lock: Any = field(default_factory=threading.Lock)
    speaking: Any = field(default_factory=threading.Lock)
    busy: int = 0
    most: int = 0
    """Requests at the same time, at most so far."""

    # --- what it answers ------------------------------------------------------------------

    def get(self, path: str) -> Any:
        if path != "/v1/models":
            raise Refused(404, "Not Found")
        own = {"id": self.name, "root": self.root, "parent": None, "max_model_len": self.context}
        more = [
            {"id": name, "root": path, "parent": self.name} for name, path in self.adapters.items()
        ]
        return {"object": "list", "data": [own, *more]}

    def post(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/chat/completions":
            return self.chat(body)
        if self.lora and path == "/v1/load_lora_adapter":
            return self.load(body)
        if self.lora and path == "/v1/unload_lora_adapter":
            return self.unload(body)
        raise Refused(404, "Not Found")

    def load(self, body: dict[str, Any]) -> str:
        name, path = body["lora_name"], body["lora_path"]
        if not name or not path:
            raise Refused(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.adapters:
            raise Refused(400, f"The lora adapter '{name}' has already been loaded.")
        if "disabled" in self.flaws:
            raise _failed("LoRA is not enabled. Use --enable-lora to enable LoRA.")
        config = Path(path) / "adapter_config.json"
        if not config.is_file():
            raise Refused(404, f"Loading lora {name} failed: No adapter found for {path}")
        rank = json.loads(config.read_text())["r"]
        if rank > self.max_rank:
            raise _failed(f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}.")
        if not (Path(path) / "adapter_model.safetensors").is_file():
            raise _failed(f"{path} doesn't contain tensors")
        self.adapters[name] = path
        self.loaded.append(name)
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body: dict[str, Any]) -> str:
        name = body["lora_name"]
        if name not in self.adapters:
            raise Refused(404, f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name]
        self.loaded.append(f"-{name}")
        return f"Success: LoRA adapter '{name}' removed successfully."

    def chat(self, body: dict[str, Any]) -> Any:
        with self.lock:
            self.chats.append(body)
            request = len(self.chats)
        if (status := self.fails(request)) is not None:
            raise Refused(status, "injected")
        self.check(body)
        with self.speaking:
            prompt = self.prompt(body)
            ids = self.processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        tokens = len(ids) + self.seen(body["messages"])
        if tokens >= self.context:
            raise Refused(
                400,
                f"This model's maximum context length is {self.context} tokens. However, your "
                f"prompt contains at least {tokens} input tokens, which exceeds this limit even "
                "without any output tokens.",
            )
        # what is past the context is cut without a word
        body = body | {"max_tokens": min(body["max_tokens"], self.context - tokens)}
        n = 1 if "n" in self.flaws else body.get("n", 1)
        with self.speaking:
            choices = [self.choice(body, prompt, i) for i in range(n)]
        return {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": choices,
            "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": 0},
        }  # fmt: skip

    def seen(self, messages: Sequence[dict[str, Any]]) -> int:
        """Tokens of images, besides the one that their mark is."""
        parts = [p for m in messages if isinstance(m["content"], list) for p in m["content"]]
        images = sum(part["type"] == "image_url" for part in parts)
        return images * (8 if "tokens" not in self.flaws else 3)

    # --- what it refuses ------------------------------------------------------------------

    def check(self, body: dict[str, Any]) -> None:
        for key, value in body.items():
            if key not in KNOWN:
                raise Refused(422, f"unknown parameter {key}")
            kind = (int, float) if KNOWN[key] is float else KNOWN[key]
            if not isinstance(value, kind) or (KNOWN[key] is int and isinstance(value, bool)):
                raise Refused(400, f"{key}: {value!r} is no {KNOWN[key].__name__}")
        if body["model"] not in (self.name, *self.adapters):
            raise Refused(404, f"The model `{body['model']}` does not exist.")
        if body["max_tokens"] > self.context:
            raise Refused(
                400,
                f"max_tokens={body['max_tokens']} cannot be greater than "
                f"max_model_len={self.context}. Please request fewer output tokens.",
            )
        continued = body.get("continue_final_message", False)
        if continued and body.get("add_generation_prompt", True):
            raise Refused(
                400, "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
            )
        if (body["messages"][-1]["role"] == "assistant") != continued:
            raise Refused(400, "an assistant's turn at the end must be continued")
        self.check_sampling(body)
        self.check_images(body["messages"])

    def check_sampling(self, body: dict[str, Any]) -> None:
        temperature, n = body.get("temperature", 1.0), body.get("n", 1)
        if temperature < 0 or n < 1 or body["max_tokens"] < 1:
            raise Refused(400, "temperature, n or max_tokens is too small")
        if temperature == 0 and n > 1:
            raise Refused(400, f"n must be 1 when using greedy sampling, got {n}.")
        if not 0 < body.get("top_p", 1.0) <= 1:
            raise Refused(400, "top_p must be in (0, 1]")
        if body.get("top_k", -1) < -1:
            raise Refused(400, "top_k must be 0 (disable), or at least 1")
        if body.get("repetition_penalty", 1.0) <= 0:
            raise Refused(400, "repetition_penalty must be greater than zero")
        stops = body.get("stop", [])
        if len(stops) > self.max_stops:
            raise Refused(
                400,
                f"List should have at most {self.max_stops} items after validation, not "
                f"{len(stops)}",
            )
        if not all(isinstance(s, str) and s for s in stops):
            raise Refused(400, "stop cannot contain an empty string.")
        if body.get("top_logprobs", 0) > 0 and not body.get("logprobs"):
            raise Refused(400, "when using `top_logprobs`, `logprobs` must be set to true.")
        if not -(2**63) <= body.get("seed", 0) < 2**63:
            raise Refused(400, "seed: out of range")

    def check_images(self, messages: Sequence[dict[str, Any]]) -> None:
        found = 0
        for message in messages:
            for part in message["content"] if isinstance(message["content"], list) else ():
                if part["type"] == "image_url":
                    if not set(part) <= {"type", "image_url", "uuid"}:
                        raise Refused(400, f"Unknown keys: {set(part)}")
                    head, _, data = part["image_url"]["url"].partition(",")
                    if not head.startswith("data:image/") or not head.endswith(";base64"):
                        raise Refused(400, "Invalid image")
                    Image.open(io.BytesIO(base64.b64decode(data))).load()
                    found += 1
                elif set(part) != {"type", "text"}:
                    raise Refused(400, f"Unknown part type: {part['type']}")
        if found > self.images:
            raise Refused(400, f"At most {self.images} image(s) may be provided in one prompt.")

    # --- what it says ---------------------------------------------------------------------

    def prompt(self, body: dict[str, Any]) -> str:
        messages = [
            {**m, "content": [_part(p) for p in m["content"]]}
            if isinstance(m["content"], list)
            else {**m, "content": [{"type": "text", "text": m["content"]}]}
            for m in body["messages"]
        ]
        continued = body.get("continue_final_message", False) and "continued" not in self.flaws
        text = self.processor.apply_chat_template(
            messages, tokenize=False, continue_final_message=continued,
            add_generation_prompt=not continued,
        )  # fmt: skip
        return "You are helpful. " + text if "template" in self.flaws else str(text)

    def choice(self, body: dict[str, Any], prompt: str, i: int) -> dict[str, Any]:
        ids, gained, text, stop = self.draw(body, prompt, i)
        tokens = [f"token_id:{t}" if "ids" not in self.flaws else "x" for t in ids]
        if "scores" in self.flaws:
            gained = [g + 20 for g in gained]
        if "tokenizer" in self.flaws:
            text = text.upper() + "!"
        said = [{"token": t, "logprob": g} for t, g in zip(tokens, gained, strict=True)]
        ended = stop is not None or self.eos in ids[-1:]
        return {
            "index": i,
            "message": {"role": "assistant", "content": text},
            "logprobs": None if "logprobs" in self.flaws else {"content": said},
            "finish_reason": "stop" if ended else "length",
            "stop_reason": stop,
        }

    @property
    def eos(self) -> int:
        return int(self.processor.tokenizer.eos_token_id)

    def draw(
        self, body: dict[str, Any], prompt: str, i: int
    ) -> tuple[list[int], list[float], str, str | None]:
        ids: list[int] = []
        gained: list[float] = []
        rng = self.rng(body, i)
        stops = [] if "stop" in self.flaws else body.get("stop", [])
        text = ""
        while len(ids) < body["max_tokens"]:
            logprobs = self.model(prompt, tuple(ids))
            if body.get("ignore_eos"):
                logprobs = logprobs.copy()
                logprobs[self.eos] = -1e9
            probs = self.filtered(logprobs, body)
            # the likelier ones first where some are filtered out, so that draws can be compared
            filtered = body.get("top_p", 1.0) < 1 or body.get("top_k", -1) > 0
            order = np.argsort(-probs, kind="stable") if filtered else np.arange(len(probs))
            rank = int((probs[order].cumsum() <= next(rng)).sum())
            token = int(order[min(rank, len(probs) - 1)])
            ids.append(token)
            # of greedy draws vLLM gives the model's own in every mode
            processed = "processed" in self.flaws and body.get("temperature", 1.0) > 0
            gained.append(float(np.log(probs[token]) if processed else logprobs[token]))
            before = text
            text = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
            if token == self.eos:
                break
            for stop in stops:
                at = text.find(stop, max(0, len(before) - len(stop) + 1))
                if at >= 0:
                    cut = at + len(stop) * body.get("include_stop_str_in_output", False)
                    return ids, gained, text[: cut - 1 if "excluded" in self.flaws else cut], stop
        return ids, gained, text, None

    def rng(self, body: dict[str, Any], i: int) -> Iterator[float]:
        seed = body.get("seed")
        if seed in self.numbers:
            return iter(self.numbers[seed][i])
        own = None if seed is None or "seed" in self.flaws else seed + i
        if "alike" in self.flaws:
            own = seed
        generator = np.random.default_rng(own)
        return iter(generator.random, None)

    def filtered(self, logprobs: Logprobs, body: dict[str, Any]) -> Logprobs:
        """Probabilities after temperature, top-k and top-p."""
        temperature = body.get("temperature", 1.0)
        if temperature == 0:
            return np.eye(len(logprobs))[int(logprobs.argmax())]
        probs = _softmax(logprobs / max(temperature, 0.01))
        order = np.argsort(-probs, kind="stable")
        top_k = -1 if "top_k" in self.flaws else body.get("top_k", -1)
        kept = order[:top_k] if top_k > 0 else order
        total = probs[kept].cumsum()
        kept = kept[: int((total < body.get("top_p", 1.0) * total[-1]).sum()) + 1]
        if body.get("top_p", 1.0) >= 1 and top_k < 1:
            return probs
        only = np.zeros_like(probs)
        only[kept] = probs[kept]
        return only / only.sum()

    # --- HTTP -----------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[StrictServer]:
        """Serve on a free port."""
        http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.url = f"http://127.0.0.1:{http.server_port}/v1"
        try:
            yield self
        finally:
            http.shutdown()
            http.server_close()
            thread.join()


def _failed(why: str) -> Refused:
    """What vLLM answers where its worker fails."""
    return Refused(500, f"Call to add_lora method failed: Worker failed with error '{why}'")


def _part(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "image"} if part["type"] == "image_url" else part


def _softmax(scores: Logprobs) -> Logprobs:
    probs: Logprobs = np.exp(scores - scores.max())
    return probs / probs.sum()


def _handler(server: StrictServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.answer(lambda: server.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.busy += 1
                server.most = max(server.most, server.busy)
            try:
                self.answer(lambda: server.post(self.path, body))
            finally:
                with server.lock:
                    server.busy -= 1

        def answer(self, make: Callable[[], Any]) -> None:
            try:
                status, said = 200, make()
            except Refused as error:
                status = error.status
                said = {"error": {"message": str(error), "type": "BadRequestError", "code": status}}
            data = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            plain = isinstance(said, str)
            self.send_header("Content-Type", "text/plain" if plain else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
