"""People check the judge: the draw, the file of labels, the pages, agreement, and the export."""

from __future__ import annotations

import html
import io
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from sklearn.metrics import cohen_kappa_score
from starlette.testclient import TestClient

from selfcal import pipeline
from selfcal.errors import SelfcalError
from selfcal.judge.label_file import read_label_file
from selfcal.people import agreement_of, launch
from selfcal.people.agreement import labelled
from selfcal.people.command import audit_people
from selfcal.people.export import export
from selfcal.people.forms import ordered
from selfcal.people.judged import Asked, Judged, Key
from selfcal.people.kappa import Agreed, cohen, fleiss
from selfcal.people.labels import Label, LabelFile, Marked, annotator_name
from selfcal.people.pick import Wanted, pick, swapped
from selfcal.people.sentences import sentences
from selfcal.people.server import Audit, app_of, audit_of
from selfcal.people.show import show_agreement
from selfcal.rationale import HEADINGS
from selfcal.recipe import Recipe
from selfcal.store import write_json
from selfcal.types import Candidate, Judgment, Sample, Verdict
from selfcal.view.audit import audit_run

QUESTION, FACTS = "Add the digits.", "left digit: 2; right digit: 3"
GOOD = "Rationale: The left digit is 2. The right digit is 3. 2 plus 3 is 5.\nAnswer: 5"
GOOD_TOO = "Rationale: The right digit is 3. The left digit is 2. 2 plus 3 is 5.\nAnswer: 5"
BAD = "Rationale: The left digit is 4. The right digit is 3. 4 plus 3 is 7.\nAnswer: 7"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \x1b[31m \u202egnp. {{ 7*7 }}"
Says = Callable[[str, str], Verdict]


def says_first(one: str, other: str) -> Verdict:
    return "first"


def says_truth(one: str, other: str) -> Verdict:
    good = [text in (GOOD, GOOD_TOO) for text in (one, other)]
    return "neutral" if good[0] == good[1] else "first" if good[0] else "second"


def candidate(sample_id: str, index: int, text: str) -> Candidate:
    return Candidate(sample_id, index, text, (text,), (-1.0,), (3,), True)


def judgment(sample_id: str, a: int, b: int, verdict: Verdict) -> Judgment:
    p = {"first": 0.1, "second": 0.1, "neutral": 0.1} | {verdict: 0.8}
    return Judgment(sample_id, a, b, verdict, p["first"], p["second"], p["neutral"])


def make(
    folder: Path,
    texts: Sequence[str] = (GOOD, BAD, GOOD_TOO),
    samples: int = 3,
    says: Says = says_truth,
    changes: dict[str, Any] | None = None,
    **recipe: Any,
) -> Path:
    """A run of one finished iteration in which every sample has these candidates."""
    given = Recipe.model_validate({"name": "tiny", "iterations": 2, **recipe})
    pinned = pipeline.pin(given)
    planned = {p.stage.name: p.folder for p in pipeline.locate(pinned, folder)}
    told = {"format": 1, "recipe": pinned.model_dump(mode="json")}
    write_json(folder / pipeline.RECIPE_FILE, told)
    ids = [f"cal-{k}" for k in range(samples)]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    every = [Sample(i, f"{i}.png", QUESTION, "5", (), "math", "", FACTS) for i in ids]
    every[0] = replace(every[0], **(changes or {}))
    found = [candidate(i, k, text) for i in ids for k, text in enumerate(texts)]
    said = [
        judgment(i, a, b, says(texts[a], texts[b]))
        for i in ids
        for a, b in permutations(range(len(texts)), 2)
    ]
    for stage, name, rows, kind in (
        ("data", "calibration", every, Sample),
        ("iter-1/candidates", "candidates", found, Candidate),
        ("iter-1/judgments", "judgments", said, Judgment),
    ):
        planned[stage].open()
        planned[stage].write_shard(name, 0, rows, kind)  # type: ignore[type-var]
        planned[stage].finish({}, 1.0)
    for k, sample_id in enumerate(ids):
        Image.new("RGB", (8, 6), (k, 0, 0)).save(folder / f"{sample_id}.png")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make(tmp_path / "run")


def label(run: Path, who: str, sign: int | None, number: int = 0, **more: Any) -> Label:
    """What somebody says of a pair of the run: + for the candidate with the lower number."""
    pair = pick(Judged(run), 99)[number]
    verdict = {1: "first", -1: "second", 0: "neutral", None: None}[sign]
    own = {"iteration": 1, "texts": pair.texts, "annotator": who, "verdict": verdict, **more}
    first, second = pair.one.index, pair.other.index
    return Label(sample_id=pair.sample.id, first=first, second=second, **own)


# --- the draw ---------------------------------------------------------------------------------


def compared(seed: int, sizes: Sequence[int]) -> Any:
    """What a judge compared in samples with so many candidates."""

    def asked() -> Iterator[Asked]:
        for i, n in enumerate(sizes):
            own = {k: candidate(f"s{i}", k, f"text {k}") for k in range(n)}
            said = [judgment(f"s{i}", a, b, "first") for a, b in combinations(range(n), 2)]
            yield Asked(1, Sample(f"s{i}", "i.png", "q", "a"), own, said)

    return SimpleNamespace(asked=asked, recipe=SimpleNamespace(seed=seed), run=Path("r"))


def test_every_pair_has_the_same_chance_whatever_its_sample() -> None:
    sizes, draws = (2, 4, 3, 2, 5), 1500  # 1 + 6 + 3 + 1 + 10 pairs
    seen = Counter(p.key for seed in range(draws) for p in pick(compared(seed, sizes), 6))
    share = 6 / 21
    error = math.sqrt(share * (1 - share) / draws)
    assert len(seen) == 21
    by_size = [
        sum(n for key, n in seen.items() if key.sample_id == f"s{i}") / pairs / draws
        for i, pairs in enumerate((1, 6, 3, 1, 10))
    ]
    assert all(abs(found - share) < 4 * error for found in by_size), by_size


def test_a_draw_begins_as_a_longer_one_and_spreads_over_samples() -> None:
    few, many = (pick(compared(0, [5] * 40), n) for n in (40, 200))
    assert many[:40] == few
    # 400 pairs: a tenth of them is one of each sample's ten
    assert set(Counter(p.sample.id for p in few).values()) == {1}
    assert pick(compared(1, [5] * 40), 40) != few


def test_pairs_of_one_text_are_not_shown_and_one_order_is_enough() -> None:
    own = {k: candidate("s", k, text) for k, text in enumerate(("a", "b", "a "))}
    said = [judgment("s", 1, 0, "first"), judgment("s", 0, 2, "neutral")]
    asked = Asked(1, Sample("s", "i.png", "q", "a"), own, said)
    assert [p.key for p in asked.pairs] == [Key(1, "s", 0, 1)]
    assert asked.signs == {(0, 1): -1, (0, 2): 0}


def test_which_stands_first_is_a_coin_of_each_annotator() -> None:
    keys = [Key(1, f"s{i}", 0, 1) for i in range(400)]
    ann, bob = ([swapped(who, key) for key in keys] for who in ("Ann", "Bob"))
    assert [swapped("Ann", key) for key in keys] == ann
    for share in (sum(ann), sum(bob), sum(a == b for a, b in zip(ann, bob, strict=True))):
        assert abs(share - 200) < 4 * math.sqrt(100)


def test_only_finished_iterations_are_drawn_from(run: Path) -> None:
    assert Judged(run).iterations == [1]
    with pytest.raises(SelfcalError, match=r"iteration 2 has no finished judgments; .* of 1"):
        Judged(run, 2)
    (run / "iter-1/judgments/manifest.json").unlink()
    with pytest.raises(SelfcalError, match="has no judgments yet"):
        Judged(run)


# --- the file ---------------------------------------------------------------------------------


def test_labels_come_back_and_the_last_one_counts(run: Path) -> None:
    file = LabelFile(run)
    assert file.read().labels == ()
    marked = {"flaw_in": "second", "false_sentence": Marked(number=1, text="é\u2028\n")}
    first, then = label(run, "Ann", 1, seconds=2.5, **marked), label(run, "Ann", 0)
    others = [label(run, "Ann", None, 1), label(run, "Bob", -1)]
    for one in (first, *others, then):
        file.append(one)
    assert file.read().labels == (then, *others) and file.read().replaced == 1
    assert json.loads(file.path.read_text().split("\n")[0])["false_sentence"]["number"] == 1


def test_an_unfinished_last_line_is_set_aside(run: Path) -> None:
    file, torn = LabelFile(run), b'{"sample_id":"cal-0","it'
    file.append(label(run, "Ann", 1))
    whole = file.path.read_bytes()
    file.path.write_bytes(whole + torn)
    assert file.read().torn and len(file.read().labels) == 1
    file.append(label(run, "Bob", 1))
    assert not file.read().torn and len(file.read().labels) == 2
    assert (run / "audit/labels.torn").read_bytes() == torn + b"\n"
    assert file.path.read_bytes().startswith(whole)


def test_a_last_line_without_its_end_is_kept(run: Path) -> None:
    file = LabelFile(run)
    file.append(label(run, "Ann", 1))
    file.path.write_bytes(file.path.read_bytes().rstrip())
    file.append(label(run, "Bob", 1))
    assert [x.annotator for x in file.read().labels] == ["Ann", "Bob"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{}", "line 2: sample_id"),
        ('{"sample_id": "s"', "line 2: "),
        (None, "line 2: verdict: .*'first'"),
    ],
)
def test_a_line_that_is_no_label_is_named(run: Path, line: str | None, says: str) -> None:
    file = LabelFile(run)
    good = label(run, "Ann", 1).model_dump_json()
    bad = line or good.replace('"verdict":"first"', '"verdict":"better"')
    file.path.parent.mkdir()
    file.path.write_text(f"{good}\n{bad}\n")
    with pytest.raises(SelfcalError, match=rf"labels\.jsonl: {says}"):
        file.read()


def test_many_writers_do_not_interleave(run: Path) -> None:
    own = label(run, "x", 1, flaw_in="first", false_sentence=Marked(number=1, text="y" * 5000))

    def write(k: int) -> None:
        LabelFile(run).append(own.model_copy(update={"annotator": f"p{k}"}))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(48)))
    assert {x.annotator for x in LabelFile(run).read().labels} == {f"p{k}" for k in range(48)}


def test_a_run_goes_on_beside_its_labels(run: Path) -> None:
    LabelFile(run).append(label(run, "Ann", 1))
    pipeline._refuse_foreign(run, [])
    assert audit_run(run)["pairs"] == 9


def test_labels_of_a_run_that_was_redone_are_left_out(run: Path, tmp_path: Path) -> None:
    LabelFile(run).append(label(run, "Ann", 1))
    LabelFile(run).append(label(run, "Ann", 1, texts="0" * 16, number=1))
    LabelFile(run).append(label(run, "Ann", 1, iteration=2))
    found = agreement_of(run)
    assert found is not None and (found.pairs, found.left_out["redone"]) == (1, 2)
    again = make(tmp_path / "again", texts=(BAD + " ", GOOD, "x"))
    (again / "audit").mkdir()
    (again / "audit/labels.jsonl").write_bytes(LabelFile(run).path.read_bytes())
    gone = agreement_of(again)
    assert gone is not None and (gone.pairs, gone.left_out["redone"]) == (0, 3)
    assert gone.people == () and gone.with_judge == ()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        "x" * 61,
        "a\x1b[0m",
        "a\u202eb",
        "\u200d",
        "\u3164",
        "\u2800",
        "\ufe0f",
        "Most people",
    ],
)
def test_names_that_cannot_be_seen_are_refused(name: str) -> None:
    with pytest.raises(SelfcalError, match="cannot be used"):
        annotator_name(name)


def test_names_are_spelled_one_way(run: Path) -> None:
    assert annotator_name("  Zoe\u0308  B. ") == "Zoë B."
    assert annotator_name("Ann\u200c \u3164B") == "Ann B"
    for who in ("Ann", "ann", "\uff21nn"):
        LabelFile(run).append(label(run, who, 1))
    assert [x.annotator for x in LabelFile(run).read().labels] == ["Ann"]
    page = opened(run).get("/pairs", params={"annotator": "ANN"})
    assert page.url.path == "/pairs/2" and page.url.params["annotator"] == "Ann"
    pairs = pick(Judged(run), 99)
    assert all(ordered("ann", pair) == ordered("Ann", pair) for pair in pairs)


def test_a_person_in_the_file_is_not_taken_for_a_figure(run: Path) -> None:
    for who, sign in (("Ann", 1), ("Most People", -1), ("Bob", 1)):
        LabelFile(run).append(label(run, who, sign))
    found = agreement_of(run)
    assert found is not None
    own = {a.raters[0]: a.pairs for a in found.with_judge}
    assert own == {"Ann": 1, "Most People (person)": 1, "Bob": 1, "most people": 1}


def test_a_label_of_other_texts_takes_no_place_and_a_byte_order_mark_does_no_harm(
    run: Path,
) -> None:
    file, good = LabelFile(run), label(run, "Ann", 1)
    file.append(good)
    file.append(label(run, "Ann", -1, texts="0" * 16))
    file.path.write_bytes(b"\xef\xbb\xbf" + file.path.read_bytes())
    assert good in file.read().labels
    file.path.write_bytes(b"\xef\xbb\xbf" + good.model_dump_json().encode())
    file.append(label(run, "Bob", 1))
    assert [x.annotator for x in file.read().labels] == ["Ann", "Bob"]


# --- the pages --------------------------------------------------------------------------------

HERE = "http://127.0.0.1:7860"


def visit(audit: Audit) -> TestClient:
    return TestClient(app_of(audit), base_url=HERE)


def opened(run: Path, **wanted: Any) -> TestClient:
    return visit(audit_of(run, Wanted(**wanted)))


def fields(page: str) -> dict[str, str]:
    """The hidden fields of a form."""
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page)
    return {name: html.unescape(value) for name, value in found}


def judge_pair(browser: TestClient, page: str, choice: str, **more: str) -> Any:
    return browser.post("/labels", data=fields(page) | {"choice": choice, **more})


def said(page: str) -> list[list[str]]:
    """The sentences of A and of B."""
    parts = re.split(r'<section class="side"', page)[1:]
    return [
        [html.unescape(s) for s in re.findall(r'class="sentence".*?>(.*?)</button>', part, re.S)]
        for part in parts
    ]


def test_a_person_judges_all_pairs_and_sees_how_far_all_agree(run: Path) -> None:
    browser = opened(run, pairs=4)
    page = browser.get("/pairs", params={"annotator": "Ann"})
    for number in range(1, 5):
        assert f"Pair {number} of 4" in page.text and f"{number - 1} of 4 judged" in page.text
        assert len(LabelFile(run).read().labels) == number - 1
        early = browser.get("/agreement", params={"annotator": "Ann"}).text
        assert "are left" in early and "kappa" not in early.lower()
        page = judge_pair(browser, page.text, "a", seconds="1.25")
    assert page.url.path == "/agreement" and "Thank you" in page.text
    assert "Ann and the judge" in page.text and "Ann and the verifier" in page.text
    first = LabelFile(run).read().labels[0]
    assert (first.verdict, first.seconds, first.annotator) == ("first", 1.2, "Ann")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", first.at)


def test_what_is_chosen_is_what_was_shown(run: Path) -> None:
    browser = opened(run)
    texts = (GOOD, BAD, GOOD_TOO)
    choices = {"a": "first", "b": "second", "equal": "neutral", "cannot": None}
    page, swaps = browser.get("/pairs", params={"annotator": "Bob"}), set()
    for choice, verdict in [*choices.items()] * 2:
        sides = said(page.text)
        page = judge_pair(browser, page.text, choice)
        own = LabelFile(run).read().labels[-1]
        assert own.verdict == verdict
        assert [" ".join(side) for side in sides] == [
            texts[i].replace("\n", " ") for i in (own.first, own.second)
        ]
        swaps.add(own.first < own.second)
    assert swaps == {True, False}


def test_the_first_false_sentence_can_be_marked(run: Path) -> None:
    browser = opened(run)
    page = browser.get("/pairs/1", params={"annotator": "Ann"})
    text = said(page.text)[1][1]
    after = judge_pair(browser, page.text, "a", mark="b:2", flaw="unreasonable")
    own = LabelFile(run).read().labels[0]
    assert (own.flaw_in, own.flaw) == ("second", "unreasonable")
    assert own.false_sentence == Marked(number=2, text=text)
    assert judge_pair(browser, after.text, "a", mark="a:99").status_code == 400
    judge_pair(browser, after.text, "b", flaw="other")  # a flaw of nothing
    assert LabelFile(run).read().labels[1].flaw is None
    again = browser.get("/pairs/1", params={"annotator": "Ann"}).text
    assert fields(again)["mark"] == "b:2"
    assert 'value="unreasonable" checked' in again


def test_one_goes_back_and_says_otherwise(run: Path) -> None:
    browser = opened(run, pairs=3)
    page = judge_pair(browser, browser.get("/pairs/1", params={"annotator": "Ann"}).text, "a")
    assert 'id="back" href="/pairs/1?annotator=Ann"' in page.text
    back = browser.get("/pairs/1", params={"annotator": "Ann"})
    assert re.search(r'id="choose-a"[^>]*aria-pressed="true"', back.text)
    after = judge_pair(browser, back.text, "equal")
    assert after.url.path == "/pairs/2"
    found = LabelFile(run).read()
    assert [x.verdict for x in found.labels] == ["neutral"] and found.replaced == 1


def test_what_was_skipped_comes_round_again(run: Path) -> None:
    browser = opened(run, pairs=3)
    page = browser.get("/pairs/2", params={"annotator": "Ann"})
    assert 'id="skip" href="/pairs/3?annotator=Ann"' in page.text
    page = judge_pair(browser, page.text, "a")
    assert page.url.path == "/pairs/3"
    page = judge_pair(browser, page.text, "a")
    assert page.url.path == "/pairs/1" and 'id="skip"' not in page.text


def test_labels_are_there_when_the_app_is_opened_again(run: Path) -> None:
    browser = opened(run, pairs=3)
    judge_pair(browser, browser.get("/pairs/1", params={"annotator": "Ann"}).text, "a")
    again = opened(run, pairs=5)
    assert "1 of 5" in again.get("/").text
    assert again.get("/pairs", params={"annotator": "Ann"}).url.path == "/pairs/2"
    assert again.get("/pairs", params={"annotator": "Bob"}).url.path == "/pairs/1"


def test_two_annotators_get_the_same_pairs_and_do_not_see_each_other(run: Path) -> None:
    browser = opened(run)
    before = browser.get("/pairs/1", params={"annotator": "Bob"}).text
    mine = browser.get("/pairs/1", params={"annotator": "Ann"}).text
    judge_pair(browser, mine, "b", mark="a:1")
    assert browser.get("/pairs/1", params={"annotator": "Bob"}).text == before
    assert sorted(map(tuple, said(mine))) == sorted(map(tuple, said(before)))


def test_pages_are_the_same_whatever_judge_and_verifier_say(tmp_path: Path) -> None:
    def pages(name: str, says: Says, **changes: Any) -> list[str]:
        audit = audit_of(make(tmp_path / name / "run", says=says, changes=changes), Wanted())
        browser = visit(replace(audit, token="t"))
        paths = ["/", "/agreement", *(f"/pairs/{n}" for n in range(1, 10))]
        return [browser.get(path, params={"annotator": "Ann"}).text for path in paths]

    truth = pages("one", says_truth)
    assert pages("two", says_first) == truth
    assert pages("three", lambda a, b: "neutral") == truth
    # nor is there what tells right from wrong: reference answer and rationale
    assert pages("four", says_truth, answer="7", rationale="because", category="c") == truth
    assert not any("0.8" in p.split("<main")[1] for p in truth)


def test_texts_stay_texts(tmp_path: Path) -> None:
    texts = (HOSTILE, f"{GOOD} {HOSTILE}", "z" * 50_000)
    changes = {"question": HOSTILE, "facts": HOSTILE, "choices": (HOSTILE,)}
    run = make(tmp_path / "<b>run", texts=texts, samples=1, changes=changes, format="headings")
    browser, name = opened(run), "<i>Ann"
    for n in (1, 2, 3):
        page = browser.get(f"/pairs/{n}", params={"annotator": name}).text
        main = page.split("<main")[1].split("</main>")[0]
        for bad in ("<script", "<img src=x", "<i>", "<b>", "\x1b", "\u202e", ">49<"):
            assert bad not in main
        assert fields(page)["annotator"] == name
        judge_pair(browser, page, "a", mark="a:1")
    end = browser.get("/agreement", params={"annotator": name}).text
    assert "<i>Ann" not in end and "&lt;i&gt;Ann" in end and "<b>run" not in end
    assert "30,000 more characters are left out" in "".join(
        browser.get(f"/pairs/{n}", params={"annotator": name}).text for n in (1, 2, 3)
    )


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "", "127.0.0.1.evil:7860"])
def test_another_host_is_refused(run: Path, host: str) -> None:
    answer = opened(run).get("/", headers={"Host": host})
    assert answer.status_code == 403 and "<html" not in answer.text
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:9000", "[::1]:7860", "LOCALHOST"])
def test_its_own_names_are_answered(run: Path, host: str) -> None:
    assert opened(run).get("/", headers={"Host": host}).status_code == 200


def test_an_address_it_was_told_is_answered(run: Path) -> None:
    browser = opened(run, host="gpu-7.lan")
    assert browser.get("/", headers={"Host": "gpu-7.lan:7860"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "changed", "status"),
    [
        ({"Origin": "http://evil.example"}, {}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, {}, 403),
        ({"Origin": "null"}, {}, 403),
        ({}, {"token": "x"}, 403),
        ({}, {"token": ""}, 403),
        ({}, {"pair": "0" * 16}, 409),
        ({}, {"number": "99"}, 404),
        ({}, {"number": "../1"}, 400),
        ({}, {"choice": "first"}, 400),
        ({}, {"mark": "c:1"}, 400),
        ({}, {"flaw": "ugly"}, 400),
        ({}, {"seconds": "nan"}, 400),
        ({}, {"seconds": "-1"}, 400),
        ({}, {"annotator": ""}, 400),
        ({}, {"annotator": "x" * 9000}, 413),
    ],
)
def test_what_is_not_its_own_is_not_kept(
    run: Path, headers: dict[str, str], changed: dict[str, str], status: int
) -> None:
    browser = opened(run)
    page = browser.get("/pairs/1", params={"annotator": "Ann"}).text
    own = fields(page) | {"choice": "a"}
    assert browser.post("/labels", data=own | changed, headers=headers).status_code == status
    assert LabelFile(run).read().labels == ()
    kept = browser.post("/labels", data=own, headers={"Origin": HERE})
    assert kept.status_code == 200 and len(LabelFile(run).read().labels) == 1


def test_a_body_that_is_no_form_is_refused(run: Path) -> None:
    browser = opened(run)
    for body in (b"\xff\xfe", b"a=1&" * 100, b""):
        assert browser.post("/labels", content=body).status_code in (400, 403)
    assert browser.get("/labels").status_code == 405


def test_pages_load_nothing_and_are_framed_by_nobody(run: Path) -> None:
    page = opened(run).get("/pairs/1", params={"annotator": "Ann"})
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "'unsafe-eval'" not in policy and "http" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "same-origin"
    assert page.headers["cache-control"] == "no-store"
    assert not re.search(r'(?:src|href|action)="(?:https?:)?//', page.text)
    assert not re.search(r"\son\w+=", page.text.split("<main")[1].split("</main>")[0])


def test_images_are_served_by_number_alone(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (3000, 30)).save(secret)
    run = make(tmp_path / "run", changes={"more_images": (str(secret), "none.png")})
    audit = audit_of(run, Wanted())
    browser = visit(audit)
    numbers = [n for n, p in enumerate(audit.pairs, start=1) if p.sample.id == "cal-0"]
    sizes = []
    for place in (1, 2):
        answer = browser.get(f"/images/{numbers[0]}/{place}")
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        sizes.append(Image.open(io.BytesIO(answer.content)).size)
    assert sizes == [(8, 6), (2048, 20)]  # a large one is scaled down
    for path in ("1/0", "1/4", "0/1", "99/1", "1/..%2f..%2fsecret.png", "1/-1", "1/1.png"):
        assert browser.get(f"/images/{path}").status_code == 404, path
    assert browser.get(f"/images/{numbers[0]}/3").status_code == 404
    page = browser.get(f"/pairs/{numbers[0]}", params={"annotator": "Ann"}).text
    assert page.count("<img ") == 2 and "secret" not in page
    assert "Image 3 of 3: it cannot be shown: image missing." in page


def test_facts_are_there_for_who_opens_them(run: Path) -> None:
    page = opened(run).get("/pairs/1", params={"annotator": "Ann"}).text
    details = re.search(r"<details id=\"facts\">.*?</details>", page, re.S)
    assert details and FACTS in details[0]


def test_a_name_that_was_given_is_not_asked_for(run: Path) -> None:
    page = opened(run, annotator=" Ann ").get("/")
    assert page.url.path == "/pairs/1" and page.url.params["annotator"] == "Ann"
    with pytest.raises(SelfcalError, match="cannot be used"):
        audit_of(run, Wanted(annotator="\x00"))


def test_labels_of_a_run_that_is_redone_meanwhile_are_refused(run: Path) -> None:
    browser = opened(run)
    page = browser.get("/pairs/1", params={"annotator": "Ann"}).text
    make(run, texts=(GOOD + " ", BAD, GOOD_TOO))
    answer = judge_pair(browser, page, "a")
    assert answer.status_code == 409 and "start it again" in answer.text
    (run / "iter-1/judgments/manifest.json").unlink()
    assert judge_pair(browser, page, "a").status_code == 409
    assert LabelFile(run).read().labels == ()


def test_figures_come_when_all_who_began_are_through(run: Path) -> None:
    for n in (0, 1):
        LabelFile(run).append(label(run, "Ann", 1, n))
    LabelFile(run).append(label(run, "<Bob>", 1))
    LabelFile(run).append(label(run, "Cy", 1, 0, texts="0" * 16))  # of a run before
    browser = opened(run, pairs=2)
    early = browser.get("/agreement", params={"annotator": "Ann"}).text
    assert "once &lt;Bob&gt; is through" in early and "kappa" not in early.lower()
    LabelFile(run).append(label(run, "<Bob>", 1, 1))
    page = browser.get("/agreement", params={"annotator": "Ann"}).text
    assert "kappa" in page.lower() and "1 labels of pairs that the run no longer has" in page


def test_what_was_said_before_is_shown_as_it_stands_now(run: Path) -> None:
    pair = pick(Judged(run), 99)[0]
    name = next(n for n in map(str, range(99)) if swapped(n, pair.key))
    mark = {"flaw_in": "first", "false_sentence": Marked(number=2, text="x")}
    LabelFile(run).append(label(run, name, 1, **mark))  # the one with the lower number is now B
    page = opened(run).get("/pairs/1", params={"annotator": name}).text
    assert re.search(r'id="choose-b"[^>]*aria-pressed="true"', page)
    assert fields(page)["mark"] == "b:2"


def test_a_named_proxy_stands_before_it_and_no_foreign_page_embeds(run: Path) -> None:
    browser = opened(run, names=("Audit.Example.org",))
    own = fields(browser.get("/pairs/1", params={"annotator": "Ann"}).text) | {"choice": "a"}
    sent = {"https://audit.example.org": 200, "https://other.example.org": 403}
    for origin, status in sent.items():
        answer = browser.post("/labels", data=own, headers={"Origin": origin})
        assert answer.status_code == status
    assert browser.get("/", headers={"Host": "audit.example.org"}).status_code == 200
    foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
    assert browser.get("/", headers=foreign).status_code == 200
    assert browser.get("/images/1/1", headers=foreign).status_code == 403
    assert browser.get("/", headers=foreign | {"Sec-Fetch-Dest": "iframe"}).status_code == 403
    assert browser.get("/images/1/1", headers={"Sec-Fetch-Site": "same-origin"}).is_success
    with pytest.raises(SelfcalError, match=r"--name 'https://a\.b': give a host's name alone"):
        audit_of(run, Wanted(names=("https://a.b",)))


def test_a_label_that_cannot_be_written_is_not_said_to_be_kept(run: Path) -> None:
    browser = opened(run)
    page = browser.get("/pairs/1", params={"annotator": "Ann"}).text
    (run / "audit").write_text("in the way")
    answer = judge_pair(browser, page, "a")
    assert answer.status_code == 500 and "This verdict was not kept" in answer.text
    assert "resumes" not in answer.text and "judge this pair again" in answer.text


@pytest.mark.parametrize(
    "path", ["/pairs/0", "/pairs/99", "/nothing", "/pairs/x", "/.env", f"/pairs/{'9' * 5000}"]
)
def test_what_is_not_there_is_said(run: Path, path: str) -> None:
    answer = opened(run).get(path, params={"annotator": "Ann"})
    assert answer.status_code == 404 and "Back to the beginning" in answer.text


# --- the server -------------------------------------------------------------------------------


def test_a_taken_port_leads_to_the_next_one() -> None:
    with launch.bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with launch.bound("127.0.0.1", port) as door:
            assert port < door.getsockname()[1] < port + 50
            assert launch.address("127.0.0.1", door).endswith(f":{door.getsockname()[1]}/")


def test_a_host_of_another_machine_is_named() -> None:
    with pytest.raises(SelfcalError, match=r"cannot listen on 192\.0\.2\.1"):
        launch.bound("192.0.2.1", 7860)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback_is_known(host: str, loopback: bool) -> None:
    assert launch.is_loopback(host) == loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_end_says_where_the_labels_lie(
    run: Path, host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: object, sockets: list[Any]) -> None:
        assert sockets[0].getsockname()[0] == host
        raise KeyboardInterrupt

    monkeypatch.setattr("uvicorn.Server.run", interrupted)
    monkeypatch.setenv("COLUMNS", "500")
    launch.serve(run, Wanted(port=0, host=host, browser=False))
    said = capsys.readouterr().out
    assert "9 pairs" in said and "http://" in said and "labels.jsonl" in said
    assert ("WARNING: Anybody who reaches" in said) == (host == "0.0.0.0")


def test_a_missing_package_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(SelfcalError, match=r"pip install 'selfcal\[audit\]'"):
        launch.serve(run, Wanted())


# --- agreement --------------------------------------------------------------------------------


def value(found: Agreed) -> float:
    assert found.kappa.value is not None
    return found.kappa.value


def test_two_raters_by_hand() -> None:
    found = cohen(("a", "b"), [("s", 1, 1), ("t", 1, -1), ("u", 0, 0), ("v", 0, 1)])
    # both neutral shares, 1/2 and 1/4, give a chance of 1/8 + 1/2 * 3/4 / 2 = 5/16
    assert value(found) == pytest.approx((1 / 2 - 5 / 16) / (11 / 16), abs=1e-4)
    assert (found.agreement.value, found.pairs, found.samples) == (0.5, 4, 4)


def test_two_raters_as_scikit_learn_has_it_counted_from_both_sides() -> None:
    rng = random.Random(0)
    pairs = [(rng.choice((1, -1, 0)), rng.choice((1, 1, -1, 0))) for _ in range(200)]
    rows = [(f"s{i // 3}", a, a if i % 2 else b) for i, (a, b) in enumerate(pairs)]
    both = [(a, b) for _, a, b in rows] + [(-a, -b) for _, a, b in rows]
    expected = cohen_kappa_score(*zip(*both, strict=True))
    assert value(cohen(("a", "b"), rows)) == pytest.approx(expected, abs=1e-4)
    turned = [(s, -a, -b) if i % 2 else (s, a, b) for i, (s, a, b) in enumerate(rows)]
    assert cohen(("a", "b"), turned).kappa == cohen(("a", "b"), rows).kappa


def plain_fleiss(counts: Sequence[Sequence[int]]) -> float:
    """Fleiss (1971), for equally many ratings a subject."""
    n, raters = len(counts), sum(counts[0])
    share = [sum(row[k] for row in counts) / (n * raters) for k in range(len(counts[0]))]
    agreed = [(sum(c * c for c in row) - raters) / (raters * (raters - 1)) for row in counts]
    chance = sum(p * p for p in share)
    return (sum(agreed) / n - chance) / (1 - chance)


def test_many_raters_as_published_and_counted_from_both_sides() -> None:
    published = (
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    )  # fmt: skip
    assert plain_fleiss(published) == pytest.approx(0.210, abs=5e-4)
    rng = random.Random(1)
    rows = [[rng.choice((1, 1, -1, 0)) for _ in range(4)] for _ in range(50)]
    counts = [[row.count(s) for s in (1, -1, 0)] for row in rows]
    both = counts + [[b, a, z] for a, b, z in counts]
    found = fleiss(("a", "b", "c", "d"), [(f"s{i}", row) for i, row in enumerate(rows)])
    assert value(found) == pytest.approx(plain_fleiss(both), abs=1e-4)


def test_raters_may_be_others_from_pair_to_pair() -> None:
    rows = [("s", [1, 1, -1]), ("t", [0, 0]), ("u", [1])]
    found = fleiss(("a", "b", "c"), rows)
    # agreement 1/3 and 1, neutral 0 and 1: (2/3 - 3/8) / (5/8); one rater says nothing
    assert (value(found), found.pairs) == (pytest.approx(7 / 15, abs=1e-4), 2)


def test_two_who_always_say_neutral_have_no_kappa() -> None:
    found = cohen(("a", "b"), [("s", 0, 0), ("t", 0, 0)])
    assert (found.kappa.value, found.kappa.low, found.agreement.value) == (None, None, 1)
    nothing = cohen(("a", "b"), [])
    assert (nothing.kappa.value, nothing.agreement.value, nothing.pairs) == (None, None, 0)


def test_few_samples_have_no_interval() -> None:
    alike = [(str(i), (-1) ** i, (-1) ** i) for i in range(30)]
    assert cohen(("a", "b"), alike).kappa.low == 1
    few = cohen(("a", "b"), alike[:-1]).kappa
    assert (few.value, few.low, few.high) == (1, None, None)


def test_one_telling_pair_makes_no_interval_of_kappa() -> None:
    """Where it is not drawn, both have always said neutral."""
    found = cohen(("a", "b"), [*((str(i), 0, 0) for i in range(40)), ("one", 1, -1)])
    assert found.kappa.value is not None and found.kappa.low is None
    assert found.agreement.low is not None


def test_intervals_are_over_samples() -> None:
    rng = random.Random(2)
    rows = [(f"s{i}", 1, 1 if rng.random() < 0.8 else -1) for i in range(400)]
    found = cohen(("a", "b"), rows)
    low, high = found.agreement.low, found.agreement.high
    assert low is not None and high is not None and found.agreement.value is not None
    spread = 1.96 * math.sqrt(found.agreement.value * (1 - found.agreement.value) / 400)
    assert (high - low) / 2 == pytest.approx(spread, rel=0.1)
    assert cohen(("a", "b"), rows) == found  # seeded
    # ten equal pairs a sample tell no more than one
    tenfold = cohen(("a", "b"), rows * 10).agreement
    assert tenfold.low == pytest.approx(low) and tenfold.high == pytest.approx(high)
    one = cohen(("a", "b"), [("s", 1, 1), ("s", 1, -1)])
    assert (one.agreement.low, one.kappa.low) == (None, None)


def signs_of(run: Path) -> list[int]:
    """The verifier's verdicts on the drawn pairs."""
    judged = Judged(run)
    truths = [judged.truth(pair) for pair in pick(judged, 99)]
    assert None not in truths
    return [t for t in truths if t is not None]


def test_people_judge_and_verifier_are_held_against_each_other(tmp_path: Path) -> None:
    run = make(tmp_path / "run", says=says_first)  # averaged over both orders: always neutral
    truth, file = signs_of(run), LabelFile(run)
    assert Counter(map(abs, truth)) == {1: 6, 0: 3}
    for n, sign in enumerate(truth):
        file.append(label(run, "Ann", sign, n))
        file.append(label(run, "Bob", 0, n))
        file.append(label(run, "Cy", None if n % 2 else sign, n))
    found = agreement_of(run)
    assert found is not None and (found.pairs, found.samples) == (9, 3)
    by = {a.raters: a for a in (*found.between, *found.with_judge, *found.with_verifier)}
    assert by["Ann", "the verifier"].kappa.value == 1
    assert by["most people", "the verifier"].pairs == 9 - found.left_out["tied"]
    assert by["Bob", "the judge"].agreement.value == 1
    assert by["Ann", "the judge"].agreement.value == round(1 / 3, 4)
    assert by["Ann", "Bob"].pairs == 9 and by["Bob", "Cy"].pairs == 5
    # where Cy cannot tell, Ann and Bob are one to one: tied where the truth is not neutral
    assert found.left_out["tied"] == sum(t != 0 for t in truth[1::2])
    assert found.judge_with_verifier is not None
    assert found.judge_with_verifier.agreement.value == round(1 / 3, 4)
    assert found.all_people is not None and found.all_people.pairs == 9
    assert [(p.name, p.labels, p.cannot_tell) for p in found.people] == [
        ("Ann", 9, 0), ("Bob", 9, 0), ("Cy", 9, 4),
    ]  # fmt: skip
    json.dumps(found.to_json(), allow_nan=False)
    out = Console(file=io.StringIO(), width=100, markup=False, highlight=False)
    show_agreement(out, found)
    shown = out.file.getvalue()  # type: ignore[attr-defined]
    assert "3 people judged 9 pairs of 3 samples" in shown and "all 3 people" in shown
    assert re.search(r"Ann and the verifier +1\.000 +1\.000 +9", shown)  # too few for intervals
    assert max(map(len, shown.splitlines())) <= 100


def test_marked_sentences_are_held_against_the_verifier(run: Path) -> None:
    file = LabelFile(run)
    pairs = pick(Judged(run), 99)
    numbers = [n for n, p in enumerate(pairs) if BAD in (p.one.text, p.other.text)]
    marks = [
        (1, "counterfactual"),  # the left digit is 4
        (2, None),  # the right digit is 3: true
        (4, "other"),  # the answer is 7
        (3, "insufficient"),  # not said to be false
    ]
    for n, (number, flaw) in zip(numbers, marks, strict=False):
        side = "first" if pairs[n].one.text == BAD else "second"
        own = sentences(BAD, HEADINGS)[number - 1]
        mark = Marked(number=number, text=own.text)
        file.append(label(run, "Ann", 1, n, flaw_in=side, false_sentence=mark, flaw=flaw))
    found = agreement_of(run)
    assert found is not None
    assert found.marks.flaws == {"": 1, "counterfactual": 1, "insufficient": 1, "other": 1}
    assert (found.marks.checked, found.marks.false.value) == (3, round(2 / 3, 4))


def test_the_sentences_of_a_response_are_where_they_say() -> None:
    found = sentences(GOOD, HEADINGS)
    assert [GOOD[s.start : s.end] for s in found] == [s.text for s in found]
    assert [s.number for s in found] == [1, 2, 3, 4] and found[-1].text == "Answer: 5"
    assert sentences(" \n ", HEADINGS) == []


def test_a_run_without_labels_has_no_agreement(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agreement_of(run) is None
    with pytest.raises(SelfcalError, match=r"no labels yet: selfcal audit "):
        audit_people(run, Wanted(), agreement=True, as_json=False, file=None)
    audit_people(run, Wanted(), agreement=True, as_json=True, file=None)
    assert json.loads(capsys.readouterr().out) is None


def test_a_run_whose_method_asks_no_judge_says_so(tmp_path: Path) -> None:
    recipe = pipeline.pin(
        Recipe.model_validate({"name": "tiny", "method": "csr", "search": {"keep": "top_bottom"}})
    )
    told = {"format": 1, "recipe": recipe.model_dump(mode="json")}
    write_json(tmp_path / pipeline.RECIPE_FILE, told)
    for agreement, file in ((True, None), (False, tmp_path / "x.jsonl")):
        with pytest.raises(SelfcalError, match="judge") as error:
            audit_people(tmp_path, Wanted(), agreement=agreement, as_json=False, file=file)
        assert "no labels yet" not in str(error.value)


def test_options_that_do_not_go_together_are_named(run: Path) -> None:
    with pytest.raises(SelfcalError, match="--json"):
        audit_people(run, Wanted(), agreement=False, as_json=True, file=None)
    with pytest.raises(SelfcalError, match=r"--agreement, --export"):
        audit_people(run, Wanted(), agreement=True, as_json=False, file=run / "x")
    with pytest.raises(SelfcalError, match="--iteration: it does not go with --agreement"):
        audit_people(run, Wanted(iteration=9), agreement=True, as_json=False, file=None)
    with pytest.raises(SelfcalError, match="--no-browser: it does not go with --export"):
        audit_people(run, Wanted(browser=False), agreement=False, as_json=False, file=run / "x")


# --- the export -------------------------------------------------------------------------------


def test_what_most_people_say_is_exported(run: Path, tmp_path: Path) -> None:
    file, out = LabelFile(run), tmp_path / "out" / "people.jsonl"
    for who, sign, n in (
        ("Ann", 1, 0), ("Bob", 1, 0), ("Cy", -1, 0),  # most say +
        ("Ann", 1, 1), ("Bob", 0, 1),  # tied
        ("Ann", None, 2),  # cannot tell
        ("Ann", -1, 3), ("Bob", None, 3),
    ):  # fmt: skip
        file.append(label(run, who, sign, n))
    file.append(label(run, "Ann", 1, 4, texts="old"))
    done = export(run, out)
    assert done.left_out == {"cannot-tell": 1, "tied": 1, "redone": 1}
    assert done.verdicts == {"first": 1, "second": 1}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    pairs = {p.key: p for p in pick(Judged(run), 99)}
    for line in lines:
        key = Key(1, line["sample_id"], line["first_index"], line["second_index"])
        assert (line["first"], line["second"]) == (pairs[key].one.text, pairs[key].other.text)
        assert (line["question"], line["facts"]) == (QUESTION, FACTS) and "images" not in line
    assert sorted((x["verdict"], x["annotators"]) for x in lines) == [("first", 3), ("second", 1)]
    with pytest.raises(SelfcalError, match="exists"):
        export(run, out)
    with pytest.raises(SelfcalError, match=r"of 0 labelled pairs none .* and 1 labels"):
        LabelFile(run).append(label(run, "Eve", 1, 5, texts="old"))
        export(run, tmp_path / "eve.jsonl", "Eve")
    bobs = export(run, tmp_path / "bob.jsonl", "Bob")
    assert bobs.verdicts == {"first": 1, "neutral": 1} and bobs.left_out == {"cannot-tell": 1}
    with pytest.raises(
        SelfcalError, match="'Dora' labelled nothing; labels are of Ann, Bob, Cy, Eve"
    ):
        export(run, tmp_path / "dora.jsonl", "Dora")


def test_two_texts_that_came_up_twice_are_exported_once(tmp_path: Path) -> None:
    run = make(tmp_path / "run", texts=(GOOD, BAD, GOOD), samples=1)
    pairs = {p.key[2:]: n for n, p in enumerate(pick(Judged(run), 99))}
    file = LabelFile(run)
    assert sorted(pairs) == [(0, 1), (1, 2)]
    file.append(label(run, "Ann", 1, pairs[0, 1]))  # good is better
    file.append(label(run, "Ann", 1, pairs[1, 2]))  # bad is
    with pytest.raises(SelfcalError, match="of 1 labelled pairs none"):
        export(run, tmp_path / "tied.jsonl")
    file.append(label(run, "Bob", -1, pairs[1, 2]))
    assert export(run, tmp_path / "people.jsonl").verdicts == {"first": 1}
    (line,) = map(json.loads, (tmp_path / "people.jsonl").read_text().splitlines())
    assert (line["first"], line["second"], line["annotators"]) == (GOOD, BAD, 2)


def test_what_is_no_image_of_the_run_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    Image.new("RGB", (8, 6)).save(tmp_path / "secret.png")
    judge = {"sees": True, "model": "some/vlm"}
    for n, image in enumerate(("../secret.png", str(tmp_path / "secret.txt"))):
        run = make(tmp_path / f"run-{n}", judge=judge, changes={"image": image}, samples=1)
        LabelFile(run).append(label(run, "Ann", 1))
        with pytest.raises(SelfcalError, match=r"leads out of the run|image-broken"):
            export(run, tmp_path / "people.jsonl")
        assert opened(run).get("/images/1/1").status_code == 404
    assert not list(tmp_path.glob("people*"))
    with pytest.raises(SelfcalError, match=r"read out of \.jsonl files"):
        export(run, tmp_path / "people.json")


def test_an_export_trains_a_judge_and_holds_one(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "people.jsonl"
    for n, sign in enumerate(signs_of(run)):
        LabelFile(run).append(label(run, "Ann", sign, n))
    export(run, out)
    read = read_label_file(out, sees=False)
    rows = labelled(Judged(run), LabelFile(run).read().labels)
    assert [(p.first, p.second) for p in read.pairs] == [
        (r.pair.one.text, r.pair.other.text) for r in rows
    ]
    held: Any = audit_run(run, out)
    assert (held["truth"], held["agreement_merged"]["value"]) == ("labels", 1)
    assert held["agreement_merged"]["n"] == 9
    other = make(tmp_path / "other", texts=(BAD, GOOD, GOOD_TOO))
    with pytest.raises(SelfcalError, match=r"line \d+: is about another text than candidate"):
        audit_run(other, out)


def test_images_go_along_where_the_judge_sees(tmp_path: Path) -> None:
    judge = {"sees": True, "model": "some/vlm"}
    run = make(tmp_path / "run", judge=judge, changes={"more_images": ("cal-1.png",)})
    for n in range(9):
        LabelFile(run).append(label(run, "Ann", 1, n))
    out = tmp_path / "people.jsonl"
    assert export(run, out).images == 3  # of three samples; one shows another's, too
    for line in map(json.loads, out.read_text().splitlines()):
        assert len(line["images"]) == 1 + (line["sample_id"] == "cal-0")
        own = (tmp_path / line["images"][0]).read_bytes()
        assert own == (run / f"{line['sample_id']}.png").read_bytes()
    read = read_label_file(out, sees=True)
    assert all(Path(image).is_file() for p in read.pairs for image in p.images)
