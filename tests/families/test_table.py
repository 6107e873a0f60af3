"""The table in docs/families.md is what the tests of this folder found."""

from __future__ import annotations

from pathlib import Path

import pytest

from families.models import FAMILIES
from families.table import BEGIN, END, FOUND, OPTION, PAGE, STAGES, table


def test_the_table_in_the_docs_is_what_was_found(
    request: pytest.FixtureRequest, page: Path | None
) -> None:
    found = request.config.stash[FOUND]
    if missing := [f.name for f in FAMILIES if (STAGES[0], f.name) not in found]:
        pytest.skip(f"not all families were run: {', '.join(missing)}")
    if any((stage, FAMILIES[0].name) not in found for stage in STAGES):
        pytest.skip("not all stages were run")
    assert {stage for stage, _ in found} == set(STAGES)
    at = page or PAGE
    before, _, rest = at.read_text(encoding="utf-8").partition(BEGIN)
    old, _, after = rest.partition(END)
    new = f"\n{table(found)}\n"
    if page:
        at.write_text(before + BEGIN + new + END + after, encoding="utf-8")
    else:
        assert old == new, f"write it anew: pytest tests/families {OPTION} {PAGE.name}"
