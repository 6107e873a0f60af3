"""What all tests share: none of them touches the user's own cache of replies."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

_NUMBER = count()


class Together(LoadFileScheduling):  # type: ignore[misc]
    """Tests that stay in one process: those of a file, and of all families, for their table."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "families" if Path(file).parent.name == "families" else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """Share the tests out among several processes (`--numprocesses`)."""
    return Together(config, log)


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for caches; fixtures that are made before a test share one in it."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFCAL_CACHE", str(folder / "shared"))
        yield folder


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are as wide as where no terminal is, whatever runs the tests."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that a test calls leave nobody else offline."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "to be restored")
    monkeypatch.delenv("HF_HUB_OFFLINE")


@pytest.fixture(autouse=True)
def own_cache(caches: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of each test's own, made when it is used."""
    folder = caches / str(next(_NUMBER))
    monkeypatch.setenv("SELFCAL_CACHE", str(folder))
    return folder
