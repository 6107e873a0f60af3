"""A run's report, read in a browser: what people can do with it, and that its numbers are right.

Numbers of the run `plain` follow from its making (see `hostile.plain`); those of the run `real` are
looked up in its records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from browser.conftest import DESKTOP, PHONE, Visits
from browser.made import PRUNED
from browser.reading import PARTS, listed, says, shown, too_wide, wait_for, words
from browser.runs import Runs
from selfcal.types import Candidate, Drop, PreferencePair, Response, Result, Sample, SearchNode

if TYPE_CHECKING:
    pass


# --- parts -----------------------------------------------------------------------------------


def test_parts_are_tabs_that_the_keyboard_reaches(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"))
    assert page.title() == "tiny · selfcal report"
    assert shown(page) == ["overview"]
    focused = "() => document.activeElement.textContent.trim()"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Skip to the content"
    for part in ("Overview", "Samples"):
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == part
    page.keyboard.press("Enter")
    page.wait_for_selector("section#samples", state="visible")
    assert shown(page) == ["samples"]
    assert page.inner_text("nav.parts a[aria-current]") == "Samples"
    page.click("nav.parts >> text=Data")
    page.wait_for_selector("section#data", state="visible")
    assert shown(page) == ["data"]
    page.go_back()
    page.wait_for_selector("section#samples", state="visible")
    assert shown(page) == ["samples"]


def test_printed_and_without_scripts_all_parts_are_there(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"))
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.emulate_media(media="print")
    assert shown(page) == list(PARTS)
    white = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(white) == "rgb(255, 255, 255)"  # paper is light
    assert shown(visit(runs.report("plain"), java_script_enabled=False)) == list(PARTS)


def test_the_button_turns_light_into_dark_and_back(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"))
    paper = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.click("#theme")
    assert page.evaluate(paper) != light
    page.click("#theme")
    assert page.evaluate(paper) == light
    assert page.evaluate(paper) != visit(runs.report("plain"), dark=True).evaluate(paper)


def test_overview_and_data_say_what_the_records_say(visit: Visits, runs: Runs) -> None:
    kept = runs.kept("real")
    page = visit(runs.report("real"))
    results = kept.read("eval/iter-2", "results", Result)
    values = {r.metric: r.value for r in results if (r.split, r.category) == ("test", "all")}
    cards = page.locator(".card").all_inner_texts()
    assert cards
    for text in cards:
        name = text.splitlines()[0].strip().lower().replace(" ", "_")
        share = re.search(r"([\d.]+) ?%", text)
        assert share, text
        assert float(share[1]) == pytest.approx(100 * values[name], abs=0.06), text
    assert page.locator("svg.drawing").count() >= 4

    page.goto(page.url.split("#")[0] + "#data")
    drops = kept.read("teacher", "drops", Drop)
    assert drops
    for drop in drops:
        assert drop.sample_id in page.locator("#data").text_content()
    table = page.inner_text("#data table >> nth=0")
    samples = [s.category for s in kept.read("data", "calibration", Sample)]
    for category in set(samples):
        assert re.search(rf"{category}\s.*\b{samples.count(category)}\b", table)


# --- a sample --------------------------------------------------------------------------------


def test_a_pair_shows_what_differs_and_what_the_verifier_found(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"), "#samples?id=calibration-00003")
    wait_for(page, "calibration-00003")
    detail = page.locator(".detail")
    assert detail.locator("img").evaluate("image => image.naturalWidth") == 24
    assert "left digit: 3; right digit: 0" in detail.inner_text()
    chosen, rejected = (detail.locator(f".pair .side.{s}").last for s in ("chosen", "rejected"))
    assert "The left digit is 3." in chosen.inner_text()
    assert "The left digit is 4." in rejected.inner_text()
    assert "3" in chosen.locator("mark").all_inner_texts()
    assert "4" in rejected.locator("mark").all_inner_texts()
    assert chosen.locator("li.good").count() == 3
    assert rejected.locator("li.bad").all_inner_texts()[0].startswith("The left digit is 4.")
    assert "counterfactual" in rejected.locator("li.bad").first.inner_text()
    assert "Margin 2.000" in detail.locator(".verdict").last.inner_text()
    assert "the verifier agrees" in detail.locator(".verdict").last.inner_text()


def test_a_wrong_choice_is_said_to_be_one(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"), "#samples?id=calibration-00004")
    wait_for(page, "calibration-00004")
    said = page.inner_text(".detail")
    assert "the verifier finds the rejected one better" in said
    assert "judge and verifier disagree on 1 of 1 pair" in said


def test_matrix_and_tree_have_the_records_numbers(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"), "#samples?id=calibration-00003")
    wait_for(page, "calibration-00003")
    cells = page.locator("table.matrix").last.locator("tbody tr")
    assert [words(text) for text in cells.all_inner_texts()] == [
        "#0 itself +0.75 +1.000 chosen",
        "#1 -0.75 itself -1.000 rejected",
    ]
    tree = page.locator("ul.tree").last
    assert tree.locator(".twig").count() == 4 + 4 + 1
    pruned = tree.locator(".twig.pruned")
    assert pruned.count() == 1
    assert PRUNED in pruned.inner_text()
    assert "-4.25 · 7" in words(pruned.inner_text())
    leaves = tree.locator(".leaf").all_inner_texts()
    assert [words(text) for text in leaves] == [
        "→ #0 +1.000 chosen",
        "→ #1 -1.000 rejected",
    ]
    page.locator("button.fold").last.click()
    assert not pruned.is_visible()


def test_answers_before_and_after_each_iteration(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"), "#samples?id=test-00102")
    wait_for(page, "test-00102")
    answers = page.locator("ol.answers > li").all_inner_texts()
    assert [text.split()[0] for text in answers] == ["seed", "rft", "iter-1", "iter-2"]
    assert "The left digit is 3." in answers[0]
    assert "wrong answer" in answers[0]
    assert "The left digit is 2." in answers[1]
    assert "right and sound" in answers[1]
    assert "Word for word as rft" in answers[2]


def test_a_real_samples_numbers_are_those_of_its_records(visit: Visits, runs: Runs) -> None:
    kept = runs.kept("real")
    nodes = kept.read("iter-2/candidates", "nodes", SearchNode)
    pair = next(
        p
        for p in kept.read("iter-2/pairs", "pairs", PreferencePair)
        if any(n.sample_id == p.sample_id and not n.kept for n in nodes)
    )
    page = visit(runs.report("real"), f"#samples?id={pair.sample_id}")
    wait_for(page, pair.sample_id)
    detail = page.locator(".detail")
    assert f"Margin {pair.margin:.3f}" in detail.inner_text()
    own = [n for n in nodes if n.sample_id == pair.sample_id]
    assert detail.locator(".twig").count() == len(own)
    assert detail.locator(".twig.pruned").count() == sum(not n.kept for n in own)
    figures = words("; ".join(detail.locator(".twig .figures").all_inner_texts()))
    for node in own:
        logprob = round(node.logprob, 2) + 0.0  # not -0.0
        assert f"{logprob:.2f} · {node.tokens}" in figures
    candidates = kept.read("iter-2/candidates", "candidates", Candidate)
    players = [c for c in candidates if c.sample_id == pair.sample_id]
    assert detail.locator("table.matrix tbody tr").count() == len(players)
    sides = [detail.locator(f".side.{s}").inner_text() for s in ("chosen", "rejected")]
    for text, said in zip((pair.chosen, pair.rejected), sides, strict=True):
        assert text.rsplit(":", 1)[1].strip() in said


def test_real_answers_are_those_of_the_records(visit: Visits, runs: Runs) -> None:
    kept = runs.kept("real")
    response = kept.read("eval/seed", "test", Response)[0]
    page = visit(runs.report("real"), f"#samples?id={response.sample_id}")
    wait_for(page, response.sample_id)
    first = page.locator("ol.answers > li").first.inner_text()
    assert ("right" in first.split("\n")[0]) == (response.correct and response.sound)
    assert response.answer in first


# --- other windows, other places -------------------------------------------------------------


@pytest.mark.parametrize("size", [DESKTOP, PHONE, (320, 568)])
def test_no_part_is_wider_than_its_window(size: tuple[int, int], visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("real"), size=size)
    for anchor in ("#overview", "#samples", *some_samples(runs), "#data"):
        page.goto(page.url.split("#")[0] + anchor)
        page.wait_for_timeout(100)
        assert too_wide(page) <= 0, anchor


def some_samples(runs: Runs) -> Sequence[str]:
    kept = runs.kept("real")
    pair = kept.read("iter-2/pairs", "pairs", PreferencePair)[0]
    return [f"#samples?id={pair.sample_id}", "#samples?id=test-00000"]


def test_a_phone_shows_the_list_or_the_sample(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("plain"), "#samples", size=PHONE, has_touch=True)
    says(page, "22 samples")
    name = listed(page)[1]
    page.locator(".rows a").nth(1).tap()
    wait_for(page, name)
    assert page.locator(".detail h2").is_visible()
    page.locator(".back").tap()
    assert page.locator(".rows a").nth(1).is_visible()


def test_images_lie_in_a_folder_beside_the_page_if_asked(visit: Visits, runs: Runs) -> None:
    out = runs.report("plain", assets=True)
    page = visit(out, "#samples?id=calibration-00003")
    wait_for(page, "calibration-00003")
    image = page.locator(".detail img")
    image.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('.detail img').naturalWidth === 24")
    assert image.get_attribute("src", timeout=1_000).startswith("images/")
    assert "data:image" not in out.read_text()


def test_the_page_is_one_file_that_names_no_other(runs: Runs) -> None:
    text = runs.report("real").read_text()
    assert len(text) < 5_000_000
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", text)
    assert json.loads(re.search(r'id="samples-index">(.*?)</script>', text, re.DOTALL)[1])
