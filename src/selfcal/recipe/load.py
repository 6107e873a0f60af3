"""YAML in, a recipe out; unknown keys fail with the nearest known one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from selfcal.errors import SelfcalError
from selfcal.recipe.asked import in_full
from selfcal.recipe.base import Settings
from selfcal.recipe.executor import in_full as executor_in_full
from selfcal.recipe.settings import Recipe
from selfcal.recipe.training import Training
from selfcal.recipe.yaml_file import MOST_BYTES, YamlError, read_yaml


class RecipeError(SelfcalError):
    """A recipe cannot be read or carried out: the text names place and way out."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `key=value` overrides (dotted keys, YAML values).

    A recipe may name another one as its `base` (a path from its own folder) and say only what is
    different.

    Raises:
        RecipeError: unreadable file, broken YAML, unknown key or bad value, or a configuration file
            that it names cannot be used.
    """
    values = _read(path, ())
    for override in _kinds_first([_spelled_out(o) for o in overrides]):
        _override(values, override)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain(str(path), error, Recipe)) from error
    trainings = {
        "rft": recipe.rft, "judge.train": recipe.judge.train, "dpo": recipe.dpo,
        "grpo": recipe.grpo,
    }  # fmt: skip
    for place, training in trainings.items():
        for key in ("deepspeed", "fsdp"):
            if training is not None and (named := getattr(training, key)):
                read_configuration(f"{place}.{key}", named, training)
    return recipe


def read_configuration(place: str, name: str, training: Training) -> dict[str, Any]:
    """The configuration file of DeepSpeed or FSDP that a training names, checked.

    Raises:
        RecipeError: it is missing or not JSON, or it says what the recipe says.
    """
    try:
        values = json.loads(_text(Path(name)))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"{place}: {name}: cannot be read as JSON ({error}); give the path of a JSON file, "
            "from the folder that selfcal runs in"
        ) from error
    if not isinstance(values, dict):
        raise RecipeError(f"{place}: {name}: is no JSON object; give one of keys and values")
    if own := [key for key in ("optimizer", "scheduler") if key in values]:
        raise RecipeError(
            f"{place}: {name}: {' and '.join(own)}: the recipe says so (learning_rate, optimizer, "
            "scheduler); leave it out of the file"
        )
    zero, lora = values.get("zero_optimization"), training.lora
    if isinstance(zero, dict) and zero.get("stage") == 3 and lora is not None and lora.four_bit:
        raise RecipeError(
            f"{place}: {name}: ZeRO stage 3 cannot be had with lora.four_bit; take stage 2, or set "
            "four_bit to false"
        )
    return values


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A recipe file's values, laid over those of the recipe that it names as its `base`."""
    try:
        own = path.resolve()
        text = _text(path)
    except (OSError, ValueError, RuntimeError) as error:  # also of links in a circle, or \0
        raise RecipeError(f"{path}: cannot be read ({error}); give the path of a recipe") from error
    if own in above:
        raise RecipeError(f"{path}: is its own base; `base` must name another recipe")
    if len(above) == _BASES:
        raise RecipeError(f"{path}: is a base of the {_BASES}th degree; take fewer")
    try:
        values = read_yaml(text)
    except YamlError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, this is not one")
    if isinstance(judge := values.get("judge"), dict) and "labels" in judge:
        judge["labels"] = in_full(judge["labels"])
    if "executor" in values:
        values["executor"] = executor_in_full(values["executor"])
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise RecipeError(f"{path}: base: give the path of a recipe, from this one's folder")
    return _over(_read(path.parent / base, (*above, own)), values)


_BASES = 8
"""A recipe has at most so many bases below each other."""


def _text(path: Path) -> str:
    """A file's text, of which no more is read than a recipe may have."""
    if not path.is_file():  # a device or a pipe could block, or never end
        raise FileNotFoundError("no such file")
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"longer than {MOST_BYTES // 2**20} MiB")
    return data.decode("utf-8-sig")


_BY_KIND = {
    "teacher": "miniworld", "judge.labels": "verifier", "evaluate.marker": "endpoint",
    "executor": "local",
}  # fmt: skip
"""Settings whose keys depend on their `kind`, and the kind that goes without saying.

Another kind does away with the keys of the last.
"""


def _over(below: dict[str, Any], above: dict[str, Any], place: str = "") -> dict[str, Any]:
    """Settings laid over others, key by key."""
    both = dict(below)
    for key, value in above.items():
        known, where = both.get(key), f"{place}{key}"
        if isinstance(known, dict) and isinstance(value, dict):
            was = known.get("kind", _BY_KIND.get(where))
            other = where in _BY_KIND and value.get("kind", was) != was
            value = value if other else _over(known, value, f"{where}.")
        both[key] = value
    return both


def _spelled_out(override: str) -> str:
    """The override, with `executor=KIND` as that of the kind: other keys may be given beside it."""
    key, _, text = override.partition("=")
    alone = key.strip() == "executor" and text.strip().isidentifier()
    return f"executor.kind={text}" if alone else override


def _kinds_first(overrides: Sequence[str]) -> list[str]:
    """Overrides in such an order that no kind does away with a key that was given beside it."""
    ordered: list[str] = []
    for override in overrides:
        key, at = _key(override), len(ordered)
        if key in {f"{place}.kind" for place in _BY_KIND}:
            # not before what would replace it: the kind itself, or the whole that it belongs to
            above = [i for i, o in enumerate(ordered) if f"{key}.".startswith(f"{_key(o)}.")]
            at = above[-1] + 1 if above else 0
        ordered.insert(at, override)
    return ordered


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override!r}: write key=value, for example --set seed=1")
    try:
        value = read_yaml(text)
    except YamlError as error:
        raise RecipeError(f"--set {override!r}: {error}") from error
    *parents, last = key.strip().split(".")
    at = values
    for parent in parents:
        below = at.setdefault(parent, {})
        if not isinstance(below, dict):
            raise RecipeError(f"--set {override!r}: {parent} holds a value, not settings")
        at = below
    place = ".".join(parents)
    if (place, last) == ("judge", "labels"):
        value = in_full(value)
    if last == "kind" and place in _BY_KIND and at.get("kind", _BY_KIND[place]) != value:
        at.clear()
    at[last] = value


def explain(source: str, error: ValidationError, model: type[Settings]) -> str:
    """What is wrong with settings, a line a key; unknown keys with the nearest known one."""
    lines = []
    for problem in error.errors():
        if problem["type"] == "default_factory_not_called":
            continue  # as another setting is wrong, which is named
        place = ".".join(_spelled(problem["loc"]))
        if problem["type"] == "extra_forbidden":
            near = nearest(str(problem["loc"][-1]), _known(model, problem["loc"][:-1]))
            hint = f"; did you mean `{near}`?" if near else ""
            lines.append(f"{source}: unknown key `{place}`{hint}")
        else:
            said = problem["msg"].removeprefix("Value error, ")  # of a whole: it names the key
            lines.append(f"{source}: {place}: {said}" if place else f"{source}: {said}")
    return "\n".join(lines)


def _spelled(place: tuple[int | str, ...]) -> list[str]:
    """A place in settings as a recipe spells it: without the kind, which pydantic puts in."""
    parts: list[str] = []
    for part in map(str, place):
        if not (parts and ".".join(parts) in _BY_KIND and part in _KINDS):
            parts.append(part)
    return parts


_KINDS = {"miniworld", "endpoint", "local", "file", "verifier", "ray"}


def _known(model: Any, place: tuple[int | str, ...]) -> list[str]:
    """Names of the settings at a place."""
    kinds = [model]
    for part in place:
        if isinstance(part, int):
            continue
        fields = [k.model_fields[part] for k in kinds if part in k.model_fields]
        if fields:
            kinds = [k for f in fields for k in _models(f.annotation)]
        else:  # pydantic names the kind of settings that go by kind
            kinds = [k for k in kinds if getattr(k.model_fields.get("kind"), "default", "") == part]
    return [name for k in kinds for name in k.model_fields]


def _models(annotation: Any) -> list[Any]:
    """All settings classes in an annotation."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [m for inner in get_args(annotation) for m in _models(inner)]


def nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str | None:
    """The known name that looks most like this one."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)), None)
