"""What each family's tests found, stage by stage, for the table in docs/families.md.

A test says by `stage` which row it belongs to; a stage holds for a family if all its tests passed.
`pytest tests/families --families-table docs/families.md` writes the table into that page.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from families.table import FAILED, FOUND, HOLDS, OPTION


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, default=None, help="page whose table of families is written")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "stage(name): row of the table of families")
    config.stash[FOUND] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    mark, spec = item.get_closest_marker("stage"), getattr(item, "callspec", None)
    if mark and spec and "family" in spec.params and (call.when == "call" or report.failed):
        key = (mark.args[0], spec.params["family"].name)
        said = dict(item.user_properties).get("cell", HOLDS) if report.passed else FAILED
        found = item.config.stash[FOUND]
        worse = FAILED in (found.get(key), said)
        found[key] = FAILED if worse else str(said)
    return report


@pytest.fixture
def page(request: pytest.FixtureRequest) -> Path | None:
    """The page to write; None: the committed one is checked."""
    given = request.config.getoption(OPTION, default=None)
    return Path(given) if given else None
