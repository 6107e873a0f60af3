"""The page of a comparison, whose recipes and categories are named to do harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from browser.axe import in_light_and_dark
from browser.conftest import DESKTOP, PHONE, Visits
from browser.hostile import ATTACKS
from browser.made import answered, item
from browser.reading import too_wide, words
from browser.test_hostile import FOREIGN
from selfcal.compare.collect import Outcome, Spent
from selfcal.compare.report import compare
from selfcal.compare.runs import Failure, Place
from selfcal.evaluate import METRICS
from selfcal.report.comparison import write_comparison

NAMES = ["plain", "<img src=x onerror=window.pwned=1>"]


def outcome(recipe: str, right: int) -> Outcome:
    """A run whose last checkpoint answers this many of 40 questions rightly, with sound reasons."""
    items = [item(k, "test") for k in range(40)]
    own = {(0, i.sample): answered(i, k < right) for k, i in enumerate(items)}
    before = {(0, i.sample): answered(i, 0) for i in items}
    answers = {"seed": before, "iter-1": own}
    return Outcome(recipe, 0, answers, frozenset(METRICS), {}, Spent(100, 10, 5, 2.0))


@pytest.fixture(scope="module")
def page_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    failed = [Failure(attack, 0, f"{attack}.log", attack) for attack in ATTACKS]
    outcomes = [outcome(name, right) for name, right in zip(NAMES, (40, 10), strict=True)]
    found = compare(outcomes, NAMES, NAMES[0], "test", failed, 200)
    write_comparison(folder / "compare.html", found, Place(folder))
    return folder / "compare.html"


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_it_holds_and_all_can_read_it(
    size: tuple[int, int], visit: Visits, page_of_two: Path
) -> None:
    page = visit(page_of_two, size=size)
    assert page.evaluate("() => window.pwned") is None
    assert page.evaluate(FOREIGN) == []
    assert too_wide(page) <= 0
    assert NAMES[1] in page.locator("table").first.inner_text()
    assert "-0.750 [" in words(page.inner_text("main"))  # answers: 10 of 40 right against all
    assert page.locator("svg.drawing").count() >= 3
    assert in_light_and_dark(page) == []
