"""Who cannot see well, or reads on a phone, can read the pages: axe-core finds nothing grave."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from browser.axe import in_light_and_dark, violations
from browser.conftest import DESKTOP, PHONE, Visits
from browser.runs import Runs

OPENED = "() => document.querySelectorAll('details').forEach((own) => { own.open = true; })"


@pytest.mark.parametrize(("size", "check"), [(DESKTOP, in_light_and_dark), (PHONE, violations)])
def test_a_report(
    size: tuple[int, int], check: Callable[..., list[str]], visit: Visits, runs: Runs
) -> None:
    page = visit(runs.report("plain"), size=size)
    found = check(page)
    page.click("nav.parts >> text=Data")
    page.wait_for_selector("section#data", state="visible")
    page.evaluate(OPENED)
    found += check(page)
    page.click("nav.parts >> text=Samples")
    page.wait_for_selector(".rows a")
    found += check(page)
    page.click(".rows a")
    page.wait_for_selector(".detail ul.tree, .detail ol.answers")
    page.evaluate(OPENED)
    found += check(page)
    assert found == []


def test_a_report_of_hostile_texts(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("hostile"), "#samples?id=picture-5")
    page.wait_for_selector(".detail h2")
    assert violations(page) == []
