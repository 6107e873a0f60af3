"""YAML of recipes: what is not plain is refused, in little time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from selfcal.recipe import RecipeError, load_recipe
from selfcal.recipe.yaml_file import MOST_BYTES, YamlError, read_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]\n"
    for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A billion values in nine lines."""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LAUGHS, r"line \d+, column \d+: more than 20,000 values"),
        ("a: [" + "x, " * 30_000 + "]", "more than 20,000 values"),
        ("[" * 100_000, r"column 33: nests deeper than 32 levels"),
        ("{a: " * 1_000, "nests deeper than 32 levels"),
        ("- " * 1_000, "nests deeper than 32 levels"),
        ("a: &a [*a]", r"the alias \*a stands for no value before it"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' is there twice"),
        ("a: {b: 1, b: 1}", "the key 'b' is there twice"),
        ("a: &a {x: 1}\nb:\n  <<: *a", "line 3, column 3: `<<` is not read; name .* as `base`"),
        ("a: " + "9" * 401, "a number of 401 digits"),
        ("a: " + "1:" * 300 + "1", "a number of 601 digits"),
        ("1: 2", "a key must be text, this is 1"),
        ("? [a]\n: 1", "a key must be text"),
        ("a: !!python/object/apply:os.system [x]", "the tag .*os.system.* is not read"),
        ("a: !!python/name:os.system", "the tag .* is not read"),
        ("a: !!binary aGk=", "the tag .*binary.* is not read"),
        ("a: !!set {x}", "the tag .*set.* is not read"),
        ("a: !own x", "the tag .*own.* is not read"),
        ("a: !!str x", "the tag .*str.* is not read"),
        ("a: ! x", "the tag '!' is not read"),
        ("%TAG !a! tag:x,2000:\n---\na: !a!b c", "line 1: a line that begins with % is not read"),
        ("\ufeff%YAML 1.1\n---\na: 1", "line 1: a line that begins with %"),
        ("a: 1\n...\n%TAG ! " + "x" * 1000, "line 3: a line that begins with %"),
        ("a: 1\r%TAG ! x", "a line that begins with %"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: \0", "control characters"),
        ("a: \ud83d", "surrogates"),
        ("a" * (MOST_BYTES + 1), "longer than 1 MiB"),
    ],
)
def test_what_is_not_plain_is_refused(text: str, why: str) -> None:
    with pytest.raises(YamlError, match=why):
        read_yaml(text)


def test_what_is_plain_is_read() -> None:
    text = "a: &x [1, 2.5, yes, ~]\nb: *x\nc: {d: 2026-01-01, e: 0x1F, f: 'null'}\n# end"
    assert read_yaml(text) == {
        "a": [1, 2.5, True, None], "b": [1, 2.5, True, None],
        "c": {"d": "2026-01-01", "e": 31, "f": "null"},
    }  # fmt: skip
    assert read_yaml("") is None


def test_recipes_name_their_file_and_place(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(LAUGHS)
    with pytest.raises(RecipeError, match=r"r\.yaml: not valid YAML: line \d+, .* 20,000 values"):
        load_recipe(path)
    path.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(RecipeError, match=r"r\.yaml: .*line 2.*the key 'seed' is there twice"):
        load_recipe(path)
    path.write_text("seed: 1\n")
    with pytest.raises(RecipeError, match=r"--set .*nests deeper"):
        load_recipe(path, ["name=" + "[" * 50])


def test_what_is_no_file_or_too_long_is_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)  # to open it would wait for ever
    for path in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(RecipeError, match=r"cannot be read .*no such file"):
            load_recipe(path)
    long = tmp_path / "long.yaml"
    with long.open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(RecipeError, match="longer than 1 MiB"):
        load_recipe(long)


def test_bases_are_bounded(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.yaml").write_text(f"base: {i + 1}.yaml\n")
    (tmp_path / "12.yaml").write_text("seed: 1\n")
    with pytest.raises(RecipeError, match="is a base of the 8th degree"):
        load_recipe(tmp_path / "0.yaml")
    (tmp_path / "own.yaml").write_text("base: own.yaml\n")
    with pytest.raises(RecipeError, match="is its own base"):
        load_recipe(tmp_path / "own.yaml")


@pytest.mark.parametrize("url", ["http://me:pass@h/v1", "http://k@h/v1", "https://h/v1?api-key=x",
                                 "https://h/v1?code=pass", "https://h/v1?pass",
                                 "https://h/v1#pass"])  # fmt: skip
def test_an_address_with_a_secret_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        f"policy: {{server: {{base_url: '{url}'}}}}\n"
        f"judge: {{labels: {{kind: endpoint, model: m, base_url: '{url}'}}}}\n"
    )
    with pytest.raises(RecipeError, match="environment variable") as caught:
        load_recipe(path)
    assert "pass" not in str(caught.value).replace("password", "") and url not in str(caught.value)


def test_what_an_address_says_that_is_no_secret_may_stay(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: x\njudge: {labels: {kind: endpoint, model: m, "
        "base_url: 'https://h/v1?api-version=2024-10-21'}}\n"
    )
    assert load_recipe(path).judge.labels.kind == "endpoint"


@pytest.mark.parametrize(
    ("more", "variable"),
    [
        ("", ""),
        ("base_url: 'https://evil.example.com/v1'", ""),
        ("base_url: 'https://api.openai.com.evil.example/v1'", ""),
        ("base_url: 'https://api.openai.com/v1'", "OPENAI_API_KEY"),
        ("base_url: 'https://h/v1', api_key_env: OPENAI_API_KEY", "OPENAI_API_KEY"),
        ("base_url: 'https://api.openai.com/v1', api_key_env: ''", ""),
    ],
)
def test_openais_key_goes_to_openai_alone_unless_a_recipe_says_so(
    tmp_path: Path, more: str, variable: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        f"name: x\npolicy: {{backend: vllm, server: {{{more}}}}}\n"
        f"judge: {{labels: {{kind: endpoint, model: m, {more}}}}}\n"
    )
    recipe = load_recipe(path)
    assert recipe.policy.server and recipe.policy.server.api_key_env == variable
    assert getattr(recipe.judge.labels, "api_key_env") == variable  # noqa: B009


@pytest.mark.parametrize("key", ["sk-secret-1", "A B", "A=B", "\u00c4", "1A", "A\n"])
def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_repeated(
    tmp_path: Path, key: str
) -> None:
    import json

    path = tmp_path / "r.yaml"
    path.write_text(f"policy: {{server: {{api_key_env: {json.dumps(key)}}}}}\n")
    with pytest.raises(RecipeError, match="api_key_env: it is no name of an") as caught:
        load_recipe(path)
    assert key.strip() not in str(caught.value).replace(str(path), "").replace("variable", "")
