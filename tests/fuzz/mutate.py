"""Mutations that keep most of a sample's form: what a parser refuses at once, it is not tried by.

Random bytes never get behind a parser's first line. So a sample is taken apart by its own grammar
(words of a text, the tree of a JSON value), a few parts are changed, and it is put together
again. All of it follows from the `Random` that is given: the same one, the same input.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from typing import Any

ODD_TEXTS = (
    "", " ", "\n", "\r\n", "\t", "\0", "\u200b", "\u202e", "\ufeff", "e\u0301" * 5, "\u0300" * 40,
    "\ud83d", "\ue000", "\ue001", "\uff11", "\u0661", "\U0001f3f3\ufe0f\u200d\U0001f308", "ﬁ",
    "½", "²", "İ", "ß", "null", "NaN", "-0", "1e999", "9" * 40, "9" * 400, "0x10", "1_000", "٣",
    "{{7*7}}", "{% raw %}", "../../etc/passwd", "/dev/zero", "a" * 300, "=" * 80, "'" * 30,
    '"' * 30, "[" * 30, "<" * 30, "*" * 30, "#" * 30, "\\" * 30,
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), [], {}, [[]], [None], {"": None}, [1, "a", None], "",
)  # fmt: skip
_WORDS = re.compile(r"\w+|\s+|[^\w\s]")


def text(sample: str, rng: Random, tokens: Sequence[str], others: Sequence[str]) -> str:
    """A text with one to six of its words, marks and lines changed."""
    parts = _WORDS.findall(sample)
    for _ in range(1 + int(rng.random() * rng.random() * 6)):
        at, to = _span(len(parts), rng)
        what = rng.randrange(9)
        if what == 0:
            del parts[at:to]
        elif what == 1:
            parts[at:at] = parts[at:to] * rng.choice((1, 1, 2, 5, 40))
        elif what in (2, 3):
            parts[at:at] = [rng.choice(tokens)] * rng.choice((1, 1, 1, 2, 3, 30))
        elif what == 4:
            parts[at:to] = [rng.choice(tokens)]
        elif what == 5:
            other = _WORDS.findall(rng.choice(others))
            parts[at:to] = other[slice(*_span(len(other), rng))]
        elif what == 6:
            parts[at:at] = [rng.choice(ODD_TEXTS)]
        elif what == 7:
            moved = parts[at:to]
            del parts[at:to]
            where = rng.randint(0, len(parts))
            parts[where:where] = moved
        else:
            cased = rng.choice((str.upper, str.lower, str.swapcase, str.strip))
            parts[at:to] = [cased(p) for p in parts[at:to]]
        del parts[4000:]
    joined = "".join(parts)
    return joined[: rng.randint(0, len(joined))] if rng.random() < 0.1 else joined


def _span(length: int, rng: Random) -> tuple[int, int]:
    at = rng.randint(0, length)
    return at, min(length, at + 1 + int(rng.random() ** 3 * 20))


def tree(value: Any, rng: Random, tokens: Sequence[str], keys: Sequence[str]) -> Any:
    """A JSON value with one to four of its nodes changed; the value itself stays as it was."""
    root = [json.loads(json.dumps(value))]
    for _ in range(1 + int(rng.random() * rng.random() * 4)):
        places = list(_places(root))
        holder, key = rng.choice(places)
        node = holder[key]
        what = rng.randrange(10)
        if what in (0, 1):
            holder[key] = deepcopy(rng.choice(ODD_VALUES))
        elif what == 2 and holder is not root:
            del holder[key]
        elif what == 3 and isinstance(holder, dict):
            del holder[key]
            holder[rng.choice((*keys, *ODD_TEXTS[:20]))] = node
        elif what == 4 and isinstance(node, str):
            holder[key] = text(node, rng, tokens, (node,))
        elif what == 5:
            holder[key] = rng.choice(tokens)
        elif what == 6 and isinstance(node, list):
            node.extend(node[: rng.randint(0, 8)] * rng.choice((1, 1, 10)))
        elif what == 7 and isinstance(node, dict):
            node[rng.choice(keys)] = deepcopy(rng.choice((*tokens, *ODD_VALUES)))
        elif what == 8:
            other, theirs = rng.choice(places)
            try:
                holder[key] = json.loads(json.dumps(other[theirs]))
            except (LookupError, RecursionError):
                continue
        else:
            holder[key] = _wrapped(node, rng)
    return root[0]


def _wrapped(node: Any, rng: Random) -> Any:
    wrap: Callable[[Any], Any] = rng.choice((lambda n: [n], lambda n: {"a": n}, str))
    for _ in range(rng.choice((1, 1, 2, 30))):
        node = wrap(node)
    return node


def _places(holder: Any, depth: int = 0) -> Any:
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    for key in keys:
        yield holder, key
        if isinstance(holder[key], dict | list) and depth < 50:
            yield from _places(holder[key], depth + 1)


def dumped(value: Any, rng: Random) -> bytes:
    """A value as JSON; some have their text damaged, too."""
    if rng.random() < 0.02:  # a key twice, or a value that nests deeper than any reader goes
        deep = rng.choice(("[" * 3000, '{"a":' * 3000, "[" * 100 + "]" * 100))
        return json.dumps(value).encode().replace(b"null", deep.encode(), 1)
    written = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, 1)))
    data = written.encode("utf-8", "surrogatepass")
    return raw(data, rng) if rng.random() < 0.05 else data


_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def raw(sample: bytes, rng: Random) -> bytes:
    """Bytes with one to eight places changed: bits, numbers, pieces."""
    data = bytearray(sample)
    for _ in range(1 + int(rng.random() * rng.random() * 8)):
        at = rng.randint(0, len(data))
        to = min(len(data), at + 1 + int(rng.random() ** 4 * 200))
        what = rng.randrange(7)
        if what == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1 and at < len(data):
            data[at] = rng.choice((0, 0x0A, 0x22, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif what == 2:
            size, order = rng.choice((1, 2, 4, 8)), rng.choice(("big", "little"))
            number = rng.choice(_NUMBERS) & (256**size - 1)
            data[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
        elif what == 3:
            del data[at:to]
        elif what == 4:
            data[at:at] = data[at:to] * rng.choice((1, 1, 3))
        elif what == 5:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 16)))
        else:
            del data[at if rng.random() < 0.2 else len(data) :]
        del data[2**17 :]
    return bytes(data)
