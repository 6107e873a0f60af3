"""Messages of a conversation: text and images in, what a server reads out, and how long it is."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from selfcal.image import data_url, opened
from selfcal.types import IMAGE_MARK

Message = Mapping[str, object]


class Asked(Protocol):
    """A model that replies to conversations. Several threads may ask at once."""

    def ask(self, messages: Sequence[Message]) -> str:
        """The text of the reply, without thoughts; it may be empty.

        Raises:
            ChatError: there is none.
        """
        ...


_FRAME = 64
"""Tokens that a chat template may put around a conversation."""
_TURN = 16
_LEAST_IMAGE, _PIXELS = 3400, 700
"""An image takes at most about so many tokens: some models scale all images up to a dozen tiles of
256 tokens, others take one token for each 28 x 28 pixels."""


_CONTROL = re.compile(
    r"<[|\uff5c][^<>\s]{1,48}[|\uff5c]>"
    r"|</?(?:s|bos|eos|pad|unk|mask|img|image|video|audio|(?:start|end)_of_\w{1,16})>"
    r"|<image_soft_token>|<</?SYS>>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|IMG|IMG_BREAK|IMG_END|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
)
"""Ends of turns, roles and places of images, as chat models spell them: the servers' tokenizers are
not known here."""


def user_message(text: str, images: Sequence[str] = (), interleave: bool = False) -> Message:
    """A user's turn: text, after the images at these paths.

    What a server's model could take for more than text is broken in two.
    `interleave`: where the text has one `<image>` mark for each image, they stand there instead.

    Raises:
        ImageError: an image cannot be used.
    """
    if not images:
        return {"role": "user", "content": _inert(text)}
    urls = [data_url(Path(image)) for image in images]
    parts = text.split(IMAGE_MARK)
    if not interleave or len(parts) != len(urls) + 1:
        parts = [*[""] * len(urls), text]
    content: list[dict[str, Any]] = []
    for i, part in enumerate(parts):
        content += [{"type": "image_url", "image_url": {"url": urls[i - 1]}}] if i else []
        content += [{"type": "text", "text": _inert(part)}] if part.strip() else []
    return {"role": "user", "content": content}


def _inert(text: str) -> str:
    return _CONTROL.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text)


def marked(parts: Mapping[str, str]) -> tuple[str, str]:
    """A mark, and parts as material of which each stands between two such marks.

    No text can contain a hash over itself, so none can close its own mark.
    """
    mark = hashlib.sha256("\0".join(parts.values()).encode()).hexdigest()[:12]
    blocks = (f"{name}:\n[{mark}]\n{text}\n[{mark}]" for name, text in parts.items())
    return mark, "\n\n".join(blocks)


def most_tokens(messages: Sequence[Message]) -> int:
    """Tokens that a conversation takes at most: no text has more tokens than bytes."""
    total = _FRAME
    for message in messages:
        content = message.get("content")
        parts: Any = content if isinstance(content, list) else [{"text": content}]
        total += _TURN + sum(_part_tokens(part) for part in parts)
    return total


def _part_tokens(part: Mapping[str, Any]) -> int:
    image = part.get("image_url")
    if image is None:
        return len(str(part.get("text") or "").encode())
    return max(_LEAST_IMAGE, _pixels(str(image.get("url", ""))) // _PIXELS)


def _pixels(url: str) -> int:
    """Pixels of an image in a data URL; 0 if it is none."""
    head, _, data = url.partition(";base64,")
    if not head.startswith("data:image/"):
        return 0
    with opened(io.BytesIO(base64.b64decode(data))) as image:  # reads the header alone
        return image.width * image.height
