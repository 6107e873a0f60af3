"""The list of a report's samples in a browser: filters, search, order, address, and turning pages.

Numbers of the run `plain` follow from its making (see `hostile.plain`).
"""

from __future__ import annotations

import re

import pytest

from browser.conftest import DESKTOP, PHONE, Visits
from browser.reading import listed, opened, says, shown, wait_for
from browser.runs import Runs

FILTERS = {
    "split": {"calibration": 12, "test": 8, "dev": 1, "rft": 1},
    # numbers 0, 3, ..; of calibration, rft 7 (chart), dev 5 (perception), test 100 (chart) to 107
    "category": {"math": 4 + 2, "chart": 4 + 1 + 3, "perception": 4 + 1 + 3},
    "iteration": {"iter-1": 12, "iter-2": 12, "teacher": 1, "judge": 1},
    "outcome": {"kept: pair": 9, "left out": 3, "pairs: no-gap": 3},
    "flaw": {
        "chosen: counterfactual": 1,
        "rejected: counterfactual": 8,
        "last answer: wrong answer": 1,
    },
    "judge": {"disagree": 1, "agree on all": 11, "chosen is worse": 1},
    "change": {"mended": 8, "spoiled": 1},
}


def test_each_filter_leaves_the_samples_that_it_names(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"), "#samples")
    says(page, "22 samples")
    for name, values in FILTERS.items():
        for value, n in values.items():
            page.select_option(f"select[name={name}]", value)
            says(page, f"{n} of 22 samples")
            assert len(listed(page)) == n
        page.select_option(f"select[name={name}]", "")
        says(page, "22 samples")


def test_filters_together_search_and_order(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"), "#samples")
    page.fill("input[name=q]", '"left digit: 7"')
    says(page, "3 of 22 samples")
    assert sorted(listed(page)) == ["calibration-00007", "rft-00007", "test-00107"]
    page.select_option("select[name=split]", "calibration")
    says(page, "1 of 22 samples")
    page.select_option("select[name=outcome]", "left out")
    says(page, "0 of 22 samples")
    page.click("button.widen")
    says(page, "1 of 22 samples")
    page.click("text=Reset")
    says(page, "22 samples")
    page.fill("input[name=q]", "no such words")
    says(page, "0 of 22 samples")
    page.fill("input[name=q]", "")
    page.select_option("select[name=sort]", "most disagreement")
    page.wait_for_function(
        "() => document.querySelector('.rows .id')?.textContent === 'calibration-00004'"
    )


def test_the_address_keeps_filters_and_sample(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"), "#samples")
    says(page, "22 samples")
    page.select_option("select[name=judge]", "disagree")
    says(page, "1 of 22 samples")
    page.click(".rows a")
    wait_for(page, "calibration-00004")
    page.wait_for_url(re.compile("id=calibration-00004"))
    other = visit(runs.report("plain"), "#" + page.url.split("#")[1])
    wait_for(other, "calibration-00004")
    says(other, "1 of 22 samples")
    assert other.input_value("select[name=judge]") == "disagree"
    page.goto(page.url.split("#")[0] + "#samples?id=test-00102")
    wait_for(page, "test-00102")


@pytest.mark.parametrize(
    "anchor",
    ["#%", "#samples?id=%", "#samples?id=nobody", "#samples?length=1&item=2&__proto__=3&x[]=4",
     "#nowhere", "#samples?split=%22%3E&q=%00&sort=x"],
)  # fmt: skip
def test_a_strange_address_breaks_nothing(anchor: str, visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"), anchor)
    assert len(shown(page)) == 1
    page.goto(page.url.split("#")[0] + "#samples?id=test-00102")
    wait_for(page, "test-00102")
    assert page.inner_text("#inspector .count") == "22 samples"


def test_samples_are_turned_by_j_and_k(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"), "#samples")
    ids = listed(page)
    page.locator(".rows a").first.focus()
    page.keyboard.press("Enter")
    wait_for(page, ids[0])
    for key, sample in (("j", ids[1]), ("j", ids[2]), ("k", ids[1])):
        page.keyboard.press(key)
        wait_for(page, sample)
    assert page.inner_text(".rows a[aria-current=true] .id") == ids[1]
    assert page.evaluate("() => document.querySelector('.opened').contains(document.activeElement)")
    page.go_back()
    wait_for(page, ids[2])
    page.fill("input[name=q]", "j")  # typed, not a turn
    assert opened(page) == ids[2]


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_back_leads_out_of_a_sample(size: tuple[int, int], visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"), "#samples", size=size)
    says(page, "22 samples")
    name = listed(page)[2]
    page.locator(".rows a").nth(2).click()
    wait_for(page, name)
    page.wait_for_url(re.compile(f"id={name}"))
    page.go_back()
    page.wait_for_selector(".rows a >> nth=2", state="visible")
    page.wait_for_timeout(100)
    assert page.url.endswith("#samples")
    if size == DESKTOP:
        wait_for(page, listed(page)[0])
    else:
        assert not page.is_visible(".detail h2")
        page.go_forward()
        page.wait_for_selector(".detail h2", state="visible")
        assert opened(page) == name
        page.click(".back")
        assert page.url.endswith("#samples")


def test_a_sample_that_the_page_opened_gives_way_to_the_first_hit(
    visit: Visits, runs: Runs
) -> None:
    page = visit(runs.report("plain"), "#samples")
    wait_for(page, listed(page)[0])
    page.select_option("select[name=split]", "test")
    says(page, "8 of 22 samples")
    wait_for(page, listed(page)[0])
    page.fill("input[name=q]", "no such words")
    page.wait_for_selector(".opened", state="hidden")
    page.fill("input[name=q]", "")
    page.locator(".rows a").nth(1).click()
    wait_for(page, name := listed(page)[1])
    page.select_option("select[name=split]", "calibration")
    says(page, "12 of 22 samples")
    assert opened(page) == name and page.inner_text(".where") == "not in this list"


def test_choices_are_in_order_and_in_words(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"), "#samples")
    says(page, "22 samples")
    stages = page.locator("select[name=iteration] option").all_inner_texts()
    assert stages == ["any", "iter-1", "iter-2", "judge", "teacher"]
    outcomes = page.locator("select[name=outcome] option").all_inner_texts()
    assert outcomes[:2] == ["any", "kept"]
    assert any(text.startswith("pairs: all candidates count the same") for text in outcomes)


def test_a_sample_that_was_left_out_is_opened_from_the_data(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"), "#data")
    page.locator("details.reason summary", has_text="no-gap").first.click()
    page.click("#data a >> text=calibration-00005")
    wait_for(page, "calibration-00005")
    assert shown(page) == ["samples"]


def test_a_long_list_is_paged_and_quick(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("many"), "#samples")
    page.set_default_timeout(5_000)
    says(page, "1,222 samples")
    assert 0 < len(listed(page)) <= 100
    first = listed(page)
    page.click("nav.pages button >> nth=1")
    assert not set(first) & set(listed(page))
    page.select_option("select[name=category]", "math")
    says(page, "407 of 1,222 samples")  # 400 of calibration, and 3000, 3003, .., 3018 of test
    page.fill("input[name=q]", "calibration-01197")
    says(page, "1 of 1,222 samples")
    page.click(".rows a")
    wait_for(page, "calibration-01197")
