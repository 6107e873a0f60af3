"""The pages on which people judge pairs, used as people use them: by keys, in several sittings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from browser.axe import in_light_and_dark
from browser.conftest import PHONE, Visits
from browser.hostile import ATTACKS
from browser.reading import too_wide
from browser.runs import Runs
from browser.test_hostile import FOREIGN
from selfcal.pipeline import locate, open_run
from selfcal.types import Candidate
from selfcal.view.text import safe

if TYPE_CHECKING:
    from playwright.sync_api import Page

Serve = Callable[..., str]
STATE = f"""() => [window.pwned, ({FOREIGN.replace("form[action], ", "")})(),
  document.documentElement.scrollWidth - innerWidth, document.querySelector("main").innerText]"""
"""Whether something ran, what only an attack would have made, how much too wide it is, its text."""


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts `selfcal audit` on a port that is free; gives the address that it prints."""
    begun: list[subprocess.Popen[str]] = []

    def start(run: Path, *options: object) -> str:
        command = [sys.executable, "-m", "selfcal", "audit", run, "--port", 0, "--no-browser"]
        server = subprocess.Popen(
            [str(c) for c in (*command, *options)], stdout=subprocess.PIPE, text=True,
            env=os.environ | {"COLUMNS": "500"},
        )  # fmt: skip
        begun.append(server)
        assert server.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())
        assert found
        return found[0]

    yield start
    for server in begun:
        server.terminate()
        server.communicate(timeout=10)


def labels(run: Path) -> list[dict[str, Any]]:
    """The lines of the run's file."""
    return [json.loads(line) for line in (run / "audit" / "labels.jsonl").read_text().splitlines()]


def said(run: Path, sample: str, index: int) -> str:
    """Text of a candidate of the first iteration, in one line."""
    planned = {p.stage.name: p.folder for p in locate(open_run(run), run)}
    own = planned["iter-1/candidates"].read("candidates", Candidate)
    text = next(c.text for c in own if (c.sample_id, c.index) == (sample, index))
    return " ".join(text.split())


def side(page: Page, letter: str) -> str:
    """What stands under A or B, in one line."""
    return " ".join(page.locator(f"#side-{letter} .sentence").all_inner_texts())


def begin(page: Page, name: str) -> None:
    page.fill("#annotator", name)
    page.keyboard.press("Enter")
    page.wait_for_selector("#pair")


def judge(page: Page, key: str) -> None:
    """Press a key, and wait for the page that follows."""
    page.wait_for_load_state()  # by then it listens
    with page.expect_navigation():
        page.keyboard.press(key)


def test_pairs_are_judged_by_keys_and_kept(
    visit: Visits, runs: Runs, serve: Serve, tmp_path: Path
) -> None:
    run = runs.copy("plain", tmp_path / "run")
    page = visit(serve(run, "--iteration", 1, "--pairs", 6))
    begin(page, "Ada")
    shown = []
    for key, words in (("1", "1 of 6"), ("e", "2 of 6"), ("3", "3 of 6")):
        page.wait_for_function("() => document.querySelector('.images img').naturalWidth === 24")
        shown.append((side(page, "a"), side(page, "b")))
        judge(page, key)
        assert page.inner_text("#done") == f"{words} judged"
    assert page.inner_text("h1") == "Pair 4 of 6"
    kept = labels(run)
    assert [k["verdict"] for k in kept] == ["first", "neutral", "second"]
    assert {k["annotator"] for k in kept} == {"Ada"}
    for label, (a, b) in zip(kept, shown, strict=True):
        assert said(run, label["sample_id"], label["first"]) == a
        assert said(run, label["sample_id"], label["second"]) == b

    page.reload()
    assert page.inner_text("#done") == "3 of 6 judged"
    for number, choice in ((3, "b"), (2, "equal"), (1, "a")):
        judge(page, "u")
        assert page.inner_text("h1") == f"Pair {number} of 6"
        pressed = page.locator(".bar button[aria-pressed=true]")
        assert pressed.get_attribute("value") == choice
    judge(page, "4")  # another verdict about the first one
    assert page.inner_text("#done") == "3 of 6 judged"
    assert labels(run)[-1] == kept[0] | {
        "verdict": None, "seconds": labels(run)[-1]["seconds"], "at": labels(run)[-1]["at"],
    }  # fmt: skip


def test_a_false_sentence_is_marked_with_its_flaw(
    visit: Visits, runs: Runs, serve: Serve, tmp_path: Path
) -> None:
    run = runs.copy("plain", tmp_path / "run")
    page = visit(serve(run, "--iteration", 1, "--pairs", 3, "--annotator", "Ada"))
    assert not page.is_visible("#flaw")
    sentence = page.locator("#side-b .sentence").first
    text = sentence.inner_text()
    sentence.focus()
    page.keyboard.press("Enter")
    assert sentence.get_attribute("aria-pressed") == "true"
    page.check("#flaw input[value=counterfactual]")
    judge(page, "a")
    (label,) = labels(run)
    assert label["verdict"] == "first"
    assert label["flaw_in"] == "second"
    assert label["flaw"] == "counterfactual"
    assert label["false_sentence"] == {"number": 1, "text": text}
    judge(page, "ArrowLeft")
    assert page.locator("#side-b .sentence").first.get_attribute("aria-pressed") == "true"
    assert page.is_checked("#flaw input[value=counterfactual]")
    page.click("#unmark")
    judge(page, "a")
    assert labels(run)[-1]["false_sentence"] is None


def test_several_people_another_day_and_how_far_they_agree(
    visit: Visits, runs: Runs, serve: Serve, tmp_path: Path
) -> None:
    run = runs.copy("plain", tmp_path / "run")
    page = visit(serve(run, "--pairs", 4))
    begin(page, "Ada")
    for _ in range(2):
        judge(page, "1")
    other = visit(serve(run, "--pairs", 4))  # a second server, as after a restart
    begin(other, "Bob")
    assert other.inner_text("#done") == "0 of 4 judged"
    for _ in range(3):
        judge(other, "2")
    other.goto(other.url.split("/pairs")[0] + "/agreement?annotator=Bob")
    assert other.inner_text("h1") == "1 of 4 pairs are left"
    assert other.locator("table").count() == 0  # nobody leans on others
    other.click("#on")
    judge(other, "2")
    assert other.inner_text("h1").startswith("Thank you")
    other.click("text=somebody else")
    other.click("text=Ada")
    assert other.inner_text("h1") == "Pair 3 of 4"
    for _ in range(2):
        judge(other, "2")
    people = [" ".join(t.split()) for t in other.locator("#people tbody tr").all_inner_texts()]
    assert [row.split()[:3] for row in people] == [["Ada", "4", "2"], ["Bob", "4", "4"]]
    assert "Ada and Bob" in other.inner_text("#agreement")
    assert in_light_and_dark(other) == []


def test_nothing_tells_what_the_judge_said(
    visit: Visits, runs: Runs, serve: Serve, tmp_path: Path
) -> None:
    run = runs.copy("plain", tmp_path / "run")
    page = visit(address := serve(run, "--iteration", 1, "--annotator", "Ada"))
    orders = []
    for number in range(1, 13):
        page.goto(f"{address}pairs/{number}?annotator=Ada")
        text = page.content().split('<form id="pair"')[1].split("</form>")[0]
        for word in ("chosen", "rejected", "score", "margin", "0.75", "0.8", "#0", "#1",
                     "candidate", "calibration-", "verifier", "logprob", "cal-"):  # fmt: skip
            assert word not in text.lower(), word
        left = int(re.search(r"left digit: (\d)", page.locator("#facts").text_content() or "")[1])
        orders.append(f"The left digit is {left}." in side(page, "a"))
    assert True in orders  # the better one stands first at times
    assert False in orders


@pytest.mark.parametrize("size", [(1280, 900), PHONE])
def test_all_can_use_it(
    size: tuple[int, int], visit: Visits, runs: Runs, serve: Serve, tmp_path: Path
) -> None:
    run = runs.copy("plain", tmp_path / "run")
    page = visit(serve(run, "--pairs", 2), size=size)
    found = in_light_and_dark(page)
    begin(page, "Ada")
    page.locator(".sentence").first.click()
    found += in_light_and_dark(page)
    assert found == []
    assert too_wide(page) <= 0


def test_hostile_pairs_are_shown_as_text(
    visit: Visits, runs: Runs, serve: Serve, tmp_path: Path
) -> None:
    run = runs.copy("hostile", tmp_path / "run")  # some pictures are broken
    page = visit(address := serve(run, "--iteration", 1, "--pairs", 40, "--annotator", "<b>A</b>"))
    text = ""
    for number in range(1, 41):
        page.goto(f"{address}pairs/{number}?annotator=%3Cb%3EA%3C%2Fb%3E", wait_until="commit")
        page.wait_for_selector("#choose-cannot")
        pwned, made, wider, words = page.evaluate(STATE)
        assert (pwned, made) == (None, []), number
        assert wider <= 0, number
        text += words
    assert page.inner_text("#who").startswith("<b>A</b>")
    text = " ".join(text.split())
    assert "it cannot be shown: image " in text
    shown = [attack for attack in ATTACKS if " ".join(safe(attack).split())[:60] in text]
    assert len(shown) > len(ATTACKS) // 2  # the others were not drawn
