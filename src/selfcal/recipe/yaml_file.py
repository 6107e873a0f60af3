"""YAML text in, plain values out, in little time and memory whatever the text.

A recipe may come from anywhere. Only what JSON has is read: mappings with distinct keys of text,
lists, text, numbers, true, false, null. The text's events are looked at before any value is built:
how deep it nests, and how much it holds once every alias is written out, so that a few lines that
stand for billions are refused.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

MOST_BYTES = 2**20
_DEPTH = 32
_NODES = 20_000
"""Keys and values, aliases written out."""
_DIGITS = 400
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_WHERE = "; write the recipe without it"


_DIRECTIVE = re.compile(r"(?:\A|[\n\r\x85\u2028\u2029])\ufeff*%")


class YamlError(Exception):
    """The text cannot be read: where, and why."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader without dates, sets and bytes, and without a key twice."""

    # a date is text, as in JSON
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in own if tag.rpartition(":")[2] in _PLAIN]
        for first, own in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping(loader: Any, node: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise YamlError(f"{_at(key_node)}a key must be text, this is {key!r:.40}")
        if key == "<<":
            raise YamlError(f"{_at(key_node)}`<<` is not read; name a recipe to go by as `base`")
        if key in found:
            raise YamlError(f"{_at(key_node)}the key {key[:80]!r} is there twice; keep one")
        found[key] = loader.construct_object(value_node, deep=True)
    return found


def _int(loader: Any, node: Any) -> int:
    if len(node.value) > _DIGITS:
        raise YamlError(f"{_at(node)}a number of {len(node.value)} digits; no setting is so large")
    return int(yaml.SafeLoader.construct_yaml_int(loader, node))


_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag and tag.rpartition(":")[2] in _PLAIN
}
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)


def read_yaml(text: str) -> Any:
    """The value of a YAML text; None where it is empty.

    Raises:
        YamlError: it is no YAML, or holds what is not read here; says where.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES:
        raise YamlError(f"longer than {MOST_BYTES // 2**20} MiB; no recipe is so long")
    try:
        _check_size(text)
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        if mark and mark.line > text.count("\n"):  # libyaml counts the end as a line
            mark = getattr(error, "context_mark", None) or mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlError(where + str(getattr(error, "problem", None) or error)) from error
    except (ValueError, OverflowError, RecursionError, UnicodeError) as error:
        raise YamlError(str(error)[:200] or type(error).__name__) from error


def _check_size(text: str) -> None:
    """Go through the events of a text, of which none is kept."""
    if found := _DIRECTIVE.search(text):  # a few of these can make a tag of any length
        line = text.count("\n", 0, found.end()) + 1
        raise YamlError(f"line {line}: a line that begins with % is not read{_WHERE}")
    total = 0
    open_: list[tuple[str | None, int]] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.NodeEvent):
            total += 1
        if tag := getattr(event, "tag", None):
            raise YamlError(f"{_at(event)}the tag {tag[:80]!r} is not read{_WHERE}")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise YamlError(f"{_at(event)}the alias *{event.anchor:.40} stands for no value "
                                f"before it{_WHERE}")  # fmt: skip
            total += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent) and event.anchor:
            sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, total))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = total - before + 1
        if len(open_) > _DEPTH:
            raise YamlError(f"{_at(event)}nests deeper than {_DEPTH} levels; no recipe does")
        if total > _NODES:
            raise YamlError(f"{_at(event)}more than {_NODES:,} values; no recipe has so many")


def _at(event: Any) -> str:
    mark = event.start_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
