"""A stand-in for teacher, label giver and marker: an OpenAI-compatible server that makes things up.

It knows what selfcal asks by the opening words of its prompts. Verdicts, grades and ranks follow
from a hash of the texts, so they are the same in any order and on any day, and mean nothing. A
rationale is empty talk; its answer is right where the server was given the answers, so that the
filter on disagreeing answers lets it pass.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from selfcal.image import data_url
from selfcal.types import IMAGE_MARK, Sample, question_text

NAME = "stand-in"
Answers = Mapping[str, str]
"""Reference answer by `key_of` question and images."""

_ASKED = {
    "Look at the image and answer": "rationale",
    "Write down what is to be seen": "facts",
    "Compare two responses": "compare",
    "Grade a response": "grade",
    "Grade the logic": "grade",
    "Rank responses": "rank",
    "Examine the rationale": "flaws",
}
_FORM = re.compile(r"nothing after the answer:\n(.*?)\n\nQuestion: (.*)\Z", re.DOTALL)
_PART = re.compile(r"([A-Z][\w ]{0,40}):\n\[([0-9a-f]{12})\]\n(.*?)\n\[\2\]", re.DOTALL)
_MARKS_AND_SPACE = re.compile(rf"{IMAGE_MARK}|\[image \d+\]|\s+")
_TALK = "The picture shows what was asked for. What is seen there settles the question."


def key_of(question: str, urls: Sequence[str]) -> str:
    """One key for a question and its images, by their data URLs.

    Marks of images and white space play no part: a prompt may set them otherwise.
    """
    return _hash(_MARKS_AND_SPACE.sub("", question), *urls)


def answers_of(samples: Sequence[Sample]) -> dict[str, str]:
    """The answers of samples, as the server is given them.

    Raises:
        ImageError: an image cannot be read.
    """
    return {  # one sample after the other: the URLs of all would fill the memory
        key_of(question_text(s), [data_url(Path(image)) for image in s.images]): s.answer
        for s in samples
    }


def reply(messages: Sequence[Mapping[str, Any]], answers: Answers) -> str:
    """What the stand-in says to a conversation."""
    text, urls = _read(messages)
    asked = next((kind for opening, kind in _ASKED.items() if text.startswith(opening)), "")
    parts = {name: said for name, _, said in _PART.findall(text)}
    responses = [said for name, said in parts.items() if "esponse" in name]
    if asked == "rationale" and (found := _FORM.search(text)):
        answer = answers.get(key_of(found[2], urls), "unknown")
        return found[1].replace("<short sentences>", _TALK).replace("<answer>", answer)
    if asked == "facts":
        return "There is a picture.\nIt has colours."
    if asked == "compare" and len(responses) == 2:
        one, other = map(_hash, responses)
        return "neutral" if one == other else "first" if one > other else "second"
    if asked == "grade":
        return "yes" if int(_hash(*responses), 16) % 2 else "no"
    if asked == "rank":
        order = sorted(range(len(responses)), key=lambda i: _hash(responses[i]))
        return " > ".join(str(i + 1) for i in order)
    if asked == "flaws":
        names = re.findall(r"^(\w+): yes or no$", text, re.MULTILINE)
        flawed = int(_hash(*responses), 16) % 3
        return "\n".join(f"{n}: {'yes' if flawed and i == 0 else 'no'}"
                         for i, n in enumerate(sorted(names)))  # fmt: skip
    return responses[0] if responses else _TALK


def serve(host: str, port: int, answers: Answers) -> ThreadingHTTPServer:
    """The server, bound and not yet answering.

    Raises:
        OSError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [{"id": NAME, "object": "model"}]})

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                asked = json.loads(raw)
                said = reply(asked["messages"], answers)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                self._send(400, {"error": {"message": f"no chat request: {error}"}})
                return
            choices = [_choice(i, said) for i in range(int(asked.get("n") or 1))]
            spent = {"prompt_tokens": len(raw) // 4, "completion_tokens": len(said) // 4}
            usage = spent | {"total_tokens": sum(spent.values())}
            whole = {"id": "0", "object": "chat.completion", "created": 0, "model": NAME}
            self._send(200, whole | {"choices": choices, "usage": usage})

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: a rehearsal asks thousands of times."""

        def _send(self, status: int, body: Mapping[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return ThreadingHTTPServer((host, port), Handler)


def _choice(index: int, said: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": said}
    return {"index": index, "message": message, "finish_reason": "stop"}


def _read(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """Text and images' data URLs of the last turn."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content, []
    text = "".join(p["text"] for p in content if p["type"] == "text")
    return text, [p["image_url"]["url"] for p in content if p["type"] == "image_url"]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
