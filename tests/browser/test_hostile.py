"""A report of a run that means harm: nothing runs, nothing is asked for, nothing breaks.

Whatever a page asks for, and every error on its console, fails a test by itself (see `Watch`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from browser.conftest import PHONE, Visits
from browser.hostile import ATTACKS, HOME, NAMES
from browser.reading import listed, opened, says, wait_for
from browser.runs import Runs
from selfcal.report.samples import samples_context
from selfcal.types import Sample
from selfcal.view.text import safe

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOREIGN = """() => [...document.querySelectorAll("body *")].filter((own) =>
  own.matches("iframe, object, embed, base, link, meta, animate, svg script, svg image")
  || own.matches("form[action], [popover]")
  || [...own.attributes].some((a) => a.name.startsWith("on") || /^\\s*javascript:/i.test(a.value))
).map((own) => own.outerHTML.slice(0, 200))"""
"""Elements that only an attack would have made."""


PLACED = """place => document.querySelector(".where").textContent.startsWith(place)
  && document.querySelector(".detail h2").textContent.slice(0, 60)
    === document.querySelector(".rows a[aria-current] .id").textContent.slice(0, 60)"""
"""Whether the sample at this place of the list is open."""
STATE = f"""() => ({{
  pwned: window.pwned ?? null,
  made: ({FOREIGN})(),
  wider: Math.max(0, document.documentElement.scrollWidth - innerWidth),
  parts: document.querySelectorAll("section.part:not([hidden])").length,
  tabs: document.querySelector("nav.parts").checkVisibility(),
}})"""


def harmless(page: Page) -> None:
    """Nothing ran, nothing came to life, and the page is whole."""
    state = page.evaluate(STATE)
    assert state == {"pwned": None, "made": [], "wider": 0, "parts": 1, "tabs": True}


def samples(runs: Runs, split: str) -> list[Sample]:
    found: list[Sample] = runs.kept("hostile").read("data", split, Sample)
    return found


@pytest.mark.parametrize("size", [(1280, 900), PHONE])
def test_overview_and_data_hold(size: tuple[int, int], visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("hostile"), size=size)
    harmless(page)
    name = f"<img src={HOME}name onerror=window.pwned=1>"
    assert page.inner_text("h1") == name
    assert page.title().startswith(name)
    page.goto(page.url.split("#")[0] + "#data")
    for details in page.locator("#data details").all():
        details.evaluate("own => { own.open = true; }")
    harmless(page)
    text = page.locator("#data").text_content()
    assert text
    for attack in ATTACKS:
        assert safe(attack)[:100] in text


def test_the_list_holds_and_every_sample_opens(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("hostile"), "#samples")
    page.wait_for_selector(".rows a")
    harmless(page)
    everyone = [s for split in ("calibration", "test", "dev", "rft") for s in samples(runs, split)]
    says(page, f"{len(everyone)} samples")
    page.locator(".rows a").first.click()
    seen = []
    for number in range(1, len(everyone) + 1):
        page.wait_for_function(PLACED, arg=f"{number} of ")
        seen.append(opened(page))
        harmless(page)
        assert page.evaluate("() => document.querySelector('.detail').textContent.length") < 400_000
        page.keyboard.press("j")
    assert sorted(seen) == sorted(" ".join(safe(s.id).split()) for s in everyone)


def test_attacks_are_shown_as_the_text_they_are(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("hostile"), "#samples")
    own = [s for s in samples(runs, "calibration") if s.id.startswith("calibration-")]
    for number in (0, 2, 7, 15, 22, 23, 24):
        sample = next(s for s in own if s.id.startswith(f"calibration-{number}-"))
        page.evaluate(
            "id => { location.hash = '#samples?' + new URLSearchParams({id}); }", sample.id
        )
        wait_for(page, safe(sample.id))
        text = page.locator(".detail").inner_text()
        shown = " ".join(safe(ATTACKS[number]).split())
        assert text.count(shown[:80]) > 3
        assert " ".join(text.split()).count(shown[:80]) > 3
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_filters_work_on_names_that_scripts_know(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("hostile"), "#samples")
    page.wait_for_selector(".rows a")
    total = sum(len(samples(runs, s)) for s in ("rft", "calibration", "dev", "test"))
    for name in NAMES[:5]:
        page.select_option("select[name=category]", name)
        says(page, f"1 of {total} samples")
        assert listed(page) == [name]
        page.locator(".rows a").click()
        wait_for(page, name)
    harmless(page)


def test_pictures_show_a_picture_or_why_there_is_none(visit: Visits, runs: Runs) -> None:
    page = visit(runs.report("hostile"), "#samples")
    for sample in samples(runs, "calibration"):
        if not sample.id.startswith(("picture", "elsewhere")):
            continue
        page.evaluate("id => { location.hash = '#samples?id=' + id; }", sample.id)
        wait_for(page, sample.id)
        figures = page.locator(".detail .images figure")
        assert figures.count() == len(sample.images)
        good = sample.image.endswith((".png", "pwned=1", ".jpeg")) and sample.image.startswith("im")
        if good and "\x00" not in sample.image:
            assert figures.first.locator("img").evaluate("own => own.naturalWidth") > 0
        else:
            assert "No image." in figures.first.inner_text()
            assert "root:" not in figures.first.inner_text()
    harmless(page)


def test_a_folder_of_images_takes_no_name_of_the_run(runs: Runs, tmp_path: Path) -> None:
    samples_context(runs["hostile"], 5_000, tmp_path / "page" / "images")
    names = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    assert names
    for name in names:
        assert re.fullmatch(r"page/images/[0-9a-f]+\.(png|jpg)", name)
