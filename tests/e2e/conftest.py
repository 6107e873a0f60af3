"""One undisturbed run of the smallest size, which every other run is compared with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.runs import PARTS, SHARDS, Told, Undisturbed, outcome, small
from selfcal.pipeline import execute


@pytest.fixture(scope="session", autouse=True)
def small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, size in SHARDS.items():
            patch.setattr(f"{PARTS}.{name}._SHARD", size)
        yield


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, small_shards: None) -> Undisturbed:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    recipe, told = small(), Told()
    execute(recipe, run, told)
    return Undisturbed(recipe, run, told, outcome(recipe, run))
