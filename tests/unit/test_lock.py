"""The lock agrees with what the package asks for, and with what the tests run with."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKED = ("audit", "ray", "s3", "gcs")
"""Extras that are locked, too."""


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().replace("\\\n", " ").splitlines()
    found = {}
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        name, version, hashes = re.fullmatch(
            r"([\w.-]+)==(\S+?)((?: +--hash=\S+)+)\s*", line
        ).groups()  # type: ignore[union-attr]
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes.split())
        found[canonicalize_name(name)] = version
    return found


def test_everything_that_is_asked_for_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = [*project["dependencies"]]
    for extra in LOCKED:
        own += project["optional-dependencies"][extra]
    versions = locked()
    for line in own:
        asked = Requirement(line)
        version = versions.get(canonicalize_name(asked.name))
        assert version and asked.specifier.contains(version), f"{line}: run `make lock`"


def test_it_has_the_versions_that_are_tested() -> None:
    versions = locked()
    for line in (ROOT / "constraints.txt").read_text().split():
        name, _, version = line.partition("==")
        assert versions.get(canonicalize_name(name), version) == version, "run `make lock`"


def test_it_holds_all_that_locked_packages_need() -> None:
    versions = locked()
    for name in ("openai", "transformers", "trl", "datasets", "s3fs", "pydantic"):
        for line in requires(name) or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                version = versions[canonicalize_name(need.name)]
                assert need.specifier.contains(version, prereleases=True), (name, line, version)
