"""`selfcal report` and the page of `selfcal compare`: what is shown is what the records say."""

from __future__ import annotations

import math
import re
import webbrowser
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from selfcal.compare.collect import Outcome, Spent
from selfcal.compare.report import Comparison, compare
from selfcal.compare.runs import Failure, Place
from selfcal.evaluate import METRICS
from selfcal.page.svg import inline
from selfcal.report import write_report
from selfcal.report.charts import SHARES, Chart, Charts, Line, Mark
from selfcal.report.comparison import write_comparison
from selfcal.report.dropped import SHOWN, data_context
from selfcal.report.judging import judging
from selfcal.report.measures import cards, headline, panels, tables
from selfcal.report.overview import changed_settings, overview_context
from selfcal.report.record import read_record
from selfcal.report.training import panels as training_panels
from selfcal.types import Candidate, Drop, Judgment, Response, Result, Rollout, Sample
from selfcal.view.figures import drawing
from unit.hand_made import BAD, EVIL, GOOD, RunFolder, call, flat, sample

TAG = "<script>alert(1)</script>"
BREAKER = "</script></style></title></svg>\"'><img src=x onerror=alert(1)>$x$\ufffe"
HOSTILE = (EVIL, TAG, BREAKER)


def result(
    checkpoint: str, metric: str, value: float, stderr: float, n: int = 100, category: str = "all"
) -> Result:
    return Result(checkpoint, "test", category, metric, value, stderr, n, 0)


MEASURED = [
    result("rft", "answer_accuracy", 0.6, 0.05),
    result("rft", "alignment", 0.4, 0.02, 60),
    result("iter-1", "answer_accuracy", 0.65, 0.05),
    result("iter-1", "alignment", 0.93, 0.01, 65),
]


def measured(run: RunFolder, results: Sequence[Result]) -> None:
    """Finish the measurements of these results."""
    for checkpoint in dict.fromkeys(r.checkpoint for r in results):
        own = [r for r in results if r.checkpoint == checkpoint]
        run.finish(f"eval/{checkpoint}", {"results": (Result, own), "test": (Response, [])})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that is measured after fine-tuning and after its only iteration; its DPO is logged."""
    made = RunFolder(tmp_path / "run")
    samples = {"calibration": (Sample, [sample("cal-0"), sample("cal-1")])}
    counts = {"samples": {"calibration": 2}, "drops": {}}
    made.finish("data", samples, counts, seconds=60.0)
    curve = [
        {"step": 1.0, "loss": 0.7, "rewards/chosen": 0.02, "rewards/rejected": -0.06},
        {"step": 2.0, "loss": 0.6, "rewards/chosen": 0.04, "rewards/rejected": -0.02},
    ]
    stats = {"steps": 2, "rows": 1, "drops": {}, "curve": curve}
    made.finish("iter-1/dpo", {"drops": (Drop, [])}, stats, seconds=5.0)
    measured(made, MEASURED)
    return made


class Page(HTMLParser):
    """A page as a browser takes it apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.refs: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.said: list[str] = []
        self.feed(text)
        self.text = flat(" ".join(self.said))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
            if name == "clip-path" or (tag == "use" and name == "href"):
                self.refs |= set(re.findall(r"#([\w.-]+)", value or ""))

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def page_of(run: RunFolder, tmp_path: Path) -> Page:
    return Page(write_report(run.path, tmp_path / "r.html", 10).read_text())


# --- the overview -----------------------------------------------------------------------------


def test_the_headline_is_made_of_the_figures(run: RunFolder) -> None:
    first, second, last = headline(read_record(run.path))
    # half an interval is 1.96 standard errors: 1.96 x 0.01 = 0.0196, 1.96 x 0.02 = 0.0392
    assert first == (
        "Right for the right reason: 93.0 % (± 2.0) of right answers after iteration 1, "
        "from 40.0 % (± 3.9) after fine-tuning."
    )
    assert second == (
        "Of all answers, 65.0 % (± 9.8) are right after iteration 1, "
        "from 60.0 % (± 9.8) after fine-tuning."
    )
    assert last.startswith("Measured on 100 questions of test;")


def test_cards_mark_a_change_that_is_more_than_chance(run: RunFolder) -> None:
    by = {c.metric: c for c in cards(read_record(run.path))}
    aligned, right = by["alignment"], by["answer_accuracy"]
    assert (aligned.value, aligned.interval, aligned.n) == ("93.0 %", "± 2.0", 65)
    assert (aligned.before, aligned.change) == ("40.0 % ± 3.9 after fine-tuning", "+53.0 points")
    assert aligned.kind == "good"
    # 0.05 is less than 1.96 x sqrt(0.05^2 + 0.05^2) = 0.139
    assert (right.change, right.kind) == ("+5.0 points", "")


def test_none_and_all_are_no_certainty(run: RunFolder) -> None:
    """All of 8 right: Laplace's share is 9/10, whose error over 8 is 0.1061."""
    some = [
        result("rft", "answer_accuracy", 0.0, 0.0, 8),
        result("iter-1", "answer_accuracy", 1.0, 0.0, 8),
    ]
    measured(run, some)
    record = read_record(run.path)
    assert [round(r.stderr, 4) for r in record.results] == [0.1061, 0.1061]
    (card,) = cards(record)
    assert card.interval == "± 20.8" and card.change == "+100.0 points"
    assert card.kind == ""  # of so few answers nothing is called more than chance


def test_what_gets_worse_is_marked_so(run: RunFolder) -> None:
    worse = [
        result("rft", "lucky_answers", 0.1, 0.01),
        result("iter-1", "lucky_answers", 0.5, 0.01),
    ]
    record = replace(read_record(run.path), results=(*MEASURED, *worse))
    (chart,) = [c for p in panels(record, Charts()) for c in p.charts if "lucky" in c.title]
    assert chart.title == "↓ lucky answers"
    assert chart.rows == (("rft", "10.0 % ± 2.0 (n 100)"), ("iter-1", "50.0 % ± 2.0 (n 100)"))
    fell = [result("rft", "grounding", 0.9, 0.01), result("iter-1", "grounding", 0.5, 0.01)]
    (card,) = cards(replace(record, results=tuple(fell)))
    assert (card.change, card.kind) == ("-40.0 points", "bad")


def test_without_a_verifier_nothing_is_said_of_reasons(run: RunFolder) -> None:
    plain = tuple(r for r in MEASURED if r.metric == "answer_accuracy")
    record = replace(read_record(run.path), results=plain)
    first = headline(record)[0]
    assert first.startswith("Whether the rationales are sound was not measured")
    assert [c.metric for c in cards(record)] == ["answer_accuracy"]


def test_a_markers_word_is_called_an_estimate(run: RunFolder) -> None:
    found = [
        result("iter-1", "estimated/alignment", 0.5, 0.1),
        result("iter-1", "estimated/flaw/insufficient", 0.25, 0.1),
        result("iter-1", "marker_agreement", 0.8, 0.1),
    ]
    record = replace(read_record(run.path), results=tuple(found))
    assert headline(record)[0].startswith(
        "Right for the right reason, by estimate: 50.0 % (± 19.6)"
    )
    charts = {c.title: c for p in panels(record, Charts()) for c in p.charts}
    assert charts["↑ marker agreement"].rows == (("iter-1", "0.8 ± 0.196 (n 100)"),)
    assert charts["All answers"].columns == ("", "insufficient")
    by = {c.metric: c.value for c in cards(record)}
    assert by == {"estimated/alignment": "50.0 %", "marker_agreement": "0.8"}


def test_no_right_answer_is_no_alignment(run: RunFolder) -> None:
    nothing = (result("rft", "alignment", math.nan, math.nan, 0),)
    record = replace(read_record(run.path), results=nothing)
    assert headline(record)[0] == (
        "Right for the right reason: not known after fine-tuning, as no right answer is there to "
        "look at."
    )
    (card,) = cards(record)
    assert (card.value, card.interval, card.change) == ("–", "", "")  # noqa: RUF001


def test_categories_and_flaws_get_charts_of_their_own(run: RunFolder) -> None:
    own = [
        result("rft", metric, value, 0.0, n, category)
        for metric, value in (("answer_accuracy", 0.5), ("flaw/insufficient", 0.25))
        for category, n in (("all", 30), ("math", 20), ("chart", 10))
    ]
    record = replace(read_record(run.path), results=tuple(own))
    by = {p.title: p.charts for p in panels(record, Charts())}
    assert [(c.title, c.about) for c in by["By category"]] == [
        ("math", "20 questions"), ("chart", "10 questions"),
    ]  # fmt: skip
    assert by["By category"][0].rows == (("rft", "50.0 % ± 0.0 (n 20)"),)
    flaws = by["What is wrong with the rationales"]
    assert [c.title for c in flaws] == ["All answers", "math", "chart"]
    (sheet,) = tables(record)
    assert sheet.rows[0] == ("↑ answer_accuracy", "50.0 % ± 0.0", "30")


def test_divergence_is_estimated_where_pairs_are_the_policys_own(run: RunFolder) -> None:
    (own,) = training_panels(read_record(run.path), Charts())
    by = {c.title: c for c in own.charts}
    # -(0.02 - 0.06) / (2 x 0.1) = 0.2 and -(0.04 - 0.02) / 0.2 = -0.1
    assert by["KL, estimated"].rows == (("step 1", "0.2"), ("step 2", "-0.1"))
    assert by["Loss"].rows == (("step 1", "0.7"), ("step 2", "0.6"))
    assert by["Loss"].columns == ("", "iteration 1")
    assert "minus beta (0.1)" in own.about
    assert "rewards/margins" not in by  # nothing was logged


def test_divergence_is_not_estimated_of_texts_that_others_wrote(tmp_path: Path) -> None:
    made = RunFolder(tmp_path / "run", "method=ha_dpo")
    curve = [{"step": 1.0, "loss": 0.7, "rewards/chosen": 0.1, "rewards/rejected": 0.1}]
    made.finish("iter-1/dpo", stats={"curve": curve})
    (own,) = training_panels(read_record(made.path), Charts())
    assert [c.title for c in own.charts] == ["Loss", "rewards/chosen", "rewards/rejected"]


def test_the_cost_is_that_of_the_manifests(run: RunFolder) -> None:
    usage = {"raps": 1, "drops": {}, "requests": 3, "prompt_tokens": 1500, "reply_tokens": 40}
    run.finish("teacher", stats=usage, seconds=7.0)
    cost = overview_context(read_record(run.path))["cost"]
    # 60 + 5 + 2 x 2 + 7 seconds
    assert dict(cost.totals) == {"optimizer steps": "2", "time of all stages": "1 min 16 s"}
    assert cost.servers == (("teacher", "3", "1,500", "40", ""),)
    assert ("data", "1 min") in cost.chart.rows
    assert ("iter-1/dpo", "5 s") in cost.chart.rows


def test_changed_settings_are_told(tmp_path: Path) -> None:
    made = RunFolder(
        tmp_path / "run", "dpo.beta=0.25", "judge.labels.kind=endpoint",
        "judge.labels.model=big", "judge.labels.base_url=http://localhost:8000/v1",
    )  # fmt: skip
    found = dict(changed_settings(made.recipe))
    assert found["dpo.beta"] == "0.25"
    assert found["judge.labels.kind"] == "endpoint"
    assert found["judge.labels.base_url"] == "http://localhost:8000/v1"
    assert "dpo.learning_rate" not in found
    assert "policy.digest" not in found


def test_an_unfinished_run_says_what_is_missing(run: RunFolder, tmp_path: Path) -> None:
    page = page_of(run, tmp_path)
    assert "Not finished: 4 of" in page.text
    assert f"selfcal run --out {run.path}" in page.text
    assert "iter-1/pairs" in page.text
    assert "The judge has not judged yet." in page.text


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    page = page_of(RunFolder(tmp_path / "run"), tmp_path)
    assert "Nothing is measured yet." in page.text
    assert "No samples were read yet." in page.text


def test_a_run_that_measures_nothing(tmp_path: Path) -> None:
    made = RunFolder(tmp_path / "run", "evaluate.splits=[]")
    assert headline(read_record(made.path)) == [
        "This run measures nothing: evaluate.splits is empty."
    ]


# --- the judge --------------------------------------------------------------------------------


def judged(made: RunFolder) -> None:
    """One pair, asked in both orders: right both times, as the verifier has it."""
    said = [Candidate("cal-0", i, t, (t,), (-1.0,), (9,), True) for i, t in enumerate((GOOD, BAD))]
    given = [
        Judgment("cal-0", 0, 1, "first", 0.8, 0.1, 0.1),
        Judgment("cal-0", 1, 0, "second", 0.2, 0.7, 0.1),
    ]
    made.finish("iter-1/candidates", {"candidates": (Candidate, said), "drops": (Drop, [])})
    made.finish("iter-1/judgments", {"judgments": (Judgment, given)}, {"unscored": 0})


def test_the_judge_is_held_against_the_truth(run: RunFolder) -> None:
    judged(run)
    quality = {"agreement": {"value": 0.9, "stderr": 0.05, "n": 40}, "groups": 7}
    run.finish("judge/quality", stats=quality)
    found = judging(read_record(run.path), Charts())
    assert found.about == "1 pair of responses to 1 sample, held against MiniWorld's verifier."
    assert found.findings == ()
    by = {c.title: c for c in found.charts}
    assert [row[0] for row in by["Reliability"].rows] == [
        "0.7 to 0.8 (mean 0.700)", "0.8 to 0.9 (mean 0.800)",
    ]  # fmt: skip
    assert all(row[1].startswith("100.0 %") for row in by["Reliability"].rows)
    figures, *_, held = found.tables
    assert figures.rows[0][0] == "agreement"
    assert figures.rows[0][1].startswith("100.0 %")
    assert figures.rows[0][2] == "2"
    # 1.96 x 0.05 = 0.098
    assert held.rows == (("agreement", "90.0 % ± 9.8", "40"), ("groups", "7", ""))


def test_labels_that_cannot_be_read_do_not_take_the_report_with_them(run: RunFolder) -> None:
    judged(run)
    (run.path / "audit").mkdir()
    (run.path / "audit" / "labels.jsonl").write_text('{"sample_id": 3}\n')
    tables = judging(read_record(run.path), Charts("x")).tables
    (people,) = [t for t in tables if t.title == "People, the judge and the verifier"]
    ((_, why),) = people.rows
    assert "labels.jsonl: line 1:" in why and "correct the line or delete it" in why


def test_the_rewards_of_an_online_run_are_held_against_the_truth(tmp_path: Path) -> None:
    made = RunFolder(tmp_path / "run", "method=faithful_grpo")
    made.finish("data", {"calibration": (Sample, [sample("cal-0")])})
    before = judging(read_record(made.path), Charts())
    assert before.about == "Nothing was rewarded yet."
    group = [
        Rollout("cal-0", 0, 0, GOOD, 9, 1.0, True, (0.9, 0.25), 1.0, 1.0),
        Rollout("cal-0", 0, 1, BAD, 9, 0.0, True, (0.9, 0.75), 0.0, -1.0),
    ]
    made.finish("iter-1/grpo", {"rollouts": (Rollout, group)}, {"curve": []})
    found = judging(read_record(made.path), Charts())
    by = {c.title: c.rows for c in found.charts}
    # of the one response that was reinforced, one is reliable
    assert by["Reinforced and reliable"][0][1].startswith("100.0 %")
    # what is said in BAD is false of the image, and the judge likes it better than GOOD
    assert by["grounded: order"][0][1].startswith("0.0 %")
    # (0.25 + 0.75) / 2 less the half of them that is true
    assert by["grounded: overrated"][0][1].startswith("0 ")
    assert "entailed: order" not in by  # each follows from what it says


def test_a_method_without_a_judge_says_so(tmp_path: Path) -> None:
    made = RunFolder(tmp_path / "run", "method=sft_only")
    found = judging(read_record(made.path), Charts())
    assert found.about == "The method of this run asks no judge."
    assert not found.audited


# --- the data ---------------------------------------------------------------------------------


def test_what_was_left_out_is_counted_by_stage_and_reason(run: RunFolder) -> None:
    many = [Drop(f"cal-{i}", "pairs", "no-gap") for i in range(SHOWN + 5)]
    run.finish("iter-1/pairs", {"drops": (Drop, [*many, Drop("x", "pairs", "odd", "so")])})
    found = data_context(read_record(run.path))
    (left,) = found["dropped"]
    assert (left.stage, left.total) == ("iter-1/pairs", 206)
    gap, odd = left.reasons
    assert (gap.name, gap.total, len(gap.rows)) == ("no-gap", 205, 200)
    assert gap.meaning
    assert (odd.name, odd.meaning, odd.rows) == ("odd", "", [("x", "so")])
    assert found["categories"] == [("math", [2]), ("all", [2])]
    assert found["unscored"] == []


def test_reasons_are_those_of_the_stage(run: RunFolder) -> None:
    twin = [Drop("a", "read", "duplicate", "row 7"), Drop("b", "read", "image-broken")]
    run.finish("data", {"drops": (Drop, twin)}, {"samples": {}, "leaked_images": 3})
    found = data_context(read_record(run.path))
    by = {r.name: r.meaning for left in found["dropped"] for r in left.reasons}
    assert by["duplicate"] == "the same question about the same images is there already"
    assert by["image-broken"].startswith("the image is empty")
    assert found["leaked"] == 3


def test_unscored_comparisons_are_listed(run: RunFolder) -> None:
    given = [Judgment("cal-0", 0, 1, None, 0, 0, 0), Judgment("cal-0", 1, 0, "first", 1, 0, 0)]
    said = [Candidate("cal-0", i, GOOD, (GOOD,), (-1.0,), (9,), True) for i in (0, 1)]
    run.finish("iter-1/candidates", {"candidates": (Candidate, said), "drops": (Drop, [])})
    run.finish("iter-1/judgments", {"judgments": (Judgment, given)}, {"unscored": 1})
    (left,) = data_context(read_record(run.path))["unscored"]
    assert left.reasons[0].rows == [("cal-0", "candidate 0 against candidate 1")]


# --- what others wrote ------------------------------------------------------------------------


def scripts(page: Page) -> int:
    return page.tags["script"]


def handlers(page: Page) -> list[tuple[str, str, str]]:
    """Attributes that could run something."""
    return [a for a in page.attributes if a[1].startswith("on") or "javascript:" in a[2].lower()]


def test_what_others_wrote_stays_text(run: RunFolder, tmp_path: Path) -> None:
    before = page_of(run, tmp_path)
    hostile = [replace(sample(text), category=text) for text in HOSTILE]
    drops = [Drop(text, "read", text, text) for text in HOSTILE]
    run.finish(
        "data", {"calibration": (Sample, hostile), "drops": (Drop, drops)},
        {"samples": {"calibration": 3}, TAG: BREAKER},
    )  # fmt: skip
    measured(run, [
        replace(r, category=category)
        for r in MEASURED for category in ("all", *HOSTILE)
    ])  # fmt: skip
    run.finish("iter-1/pairs", {"drops": (Drop, drops)})
    page = page_of(run, tmp_path)
    assert handlers(page) == []
    assert page.tags["img"] == before.tags["img"] == 0
    # what the page has of its own and a block of data for each sample, at most
    assert scripts(page) - scripts(before) <= len(HOSTILE)
    text = (tmp_path / "r.html").read_text()
    assert TAG not in text
    assert BREAKER not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert TAG in page.text  # it is there to be read
    assert "\\x1b[31m" in page.text


def test_ids_are_unique_and_all_references_are_met(run: RunFolder, tmp_path: Path) -> None:
    page = page_of(run, tmp_path)
    assert page.tags["svg"] > 5
    assert [name for name, n in Counter(page.ids).items() if n > 1] == []
    assert page.refs
    assert page.refs <= set(page.ids)


def test_a_page_loads_nothing_from_anywhere(run: RunFolder, tmp_path: Path) -> None:
    page = page_of(run, tmp_path)
    for _, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "srcset"):
            assert value.startswith(("#", "data:")), value
    text = (tmp_path / "r.html").read_text()
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


# --- drawings ---------------------------------------------------------------------------------


def chart(name: str) -> Chart:
    line = Line(name, (Mark(0, name, 0.5, 0.1, 4), Mark(1, "b", 0.75)))
    made = Charts("k").lines(name, name, [line, replace(line, name="other", color=1)], SHARES)
    assert made is not None
    return made


@pytest.mark.parametrize("name", [*HOSTILE, "a & b", "x" * 100_000, "\u65e5\u672c"])
def test_a_drawing_takes_names_literally(name: str) -> None:
    made = chart(name)
    page = Page(str(made.drawing))
    assert page.tags["svg"] == 1
    assert not page.tags["script"] + page.tags["img"] + page.tags["style"]
    assert handlers(page) == []
    assert len(made.drawing) < 40_000
    assert made.rows[0][1] == "50.0 % ± 19.6 (n 4)"
    assert made.rows[1] == ("b", "75.0 %", "75.0 %")


def test_points_tell_their_figures() -> None:
    page = Page(str(chart("line").drawing))
    assert page.tags["title"] == 4
    assert "line, line: 50.0 % ± 19.6 (n 4)" in page.said
    assert "other, b: 75.0 %" in page.said


def test_a_drawing_is_coloured_by_the_page() -> None:
    text = str(chart("line").drawing)
    assert "var(--c1)" in text
    assert "var(--c2)" in text
    assert not re.search(r"#[0-9a-f]{6}", text.replace("#k-1-", ""))
    assert text.startswith("<svg ")
    assert 'role="img"' in text
    assert not re.search(r"<svg[^>]* (width|height)=", text)


def test_a_drawing_of_nothing_is_none() -> None:
    line = Line("a", (Mark(0, "x", math.nan),))
    assert Charts().lines("t", "", [line], SHARES) is None
    assert Charts().bars("t", "", [], SHARES) is None


def test_the_same_figure_twice_shares_no_id() -> None:
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=(2, 2))
        figure.subplots().plot([0, 1], [0, 1], "o-")
    page = Page(inline(figure, "a", "one") + inline(figure, "b", "two"))
    assert page.ids
    assert len(set(page.ids)) == len(page.ids)
    assert page.refs == set(page.ids)


# --- the command ------------------------------------------------------------------------------


def test_report_is_written_into_the_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    done = call("report", run.path, "--samples", 1, "--open")
    assert done.exit_code == 0, done.output
    file = run.path / "report.html"
    assert f"The report lies in {file} (" in flat(done.output)
    assert opened == [file.resolve().as_uri()]
    assert file.read_text().startswith("<!doctype html>")


def test_a_finished_run_does_not_mind_its_report(tmp_path: Path) -> None:
    made = RunFolder(tmp_path / "run", "evaluate.splits=[]", "method=sft_only")
    for name in made.planned:
        records = {"calibration": (Sample, [])} if name == "data" else {}
        made.finish(name, records, {"samples": {}, "curve": []})
    assert call("report", made.path).exit_code == 0
    again = call("run", "--out", made.path)
    assert again.exit_code == 0, again.output
    n = len(made.planned)
    assert f"{n} of {n} stages were finished before." in flat(again.output)
    assert f"selfcal report {made.path}" in flat(again.output)
    assert (made.path / "report.html").exists()


def test_report_of_no_run(tmp_path: Path) -> None:
    done = call("report", tmp_path / "none")
    assert done.exit_code == 1
    assert "is no run of selfcal" in done.stderr
    assert not (tmp_path / "none").exists()


def test_report_does_not_replace_a_folder(run: RunFolder, tmp_path: Path) -> None:
    done = call("report", run.path, "--out", tmp_path)
    assert done.exit_code == 1
    assert "is a folder; give the path of a file" in done.stderr


def test_a_judge_that_hardly_learned_is_told(tmp_path: Path) -> None:
    made = RunFolder(tmp_path / "run")
    made.finish("judge/labels", {}, {"train": 12, "heldout": 40})
    made.finish("judge/quality", {}, {"agreement": {"value": 0.4, "stderr": 0.05, "n": 80}})
    few, chance = judging(read_record(made.path), Charts()).notes
    assert few.startswith("Few labels for the judge: pairs to train on 12, held out 40.")
    assert chance.startswith("Held out, the judge agrees with 40.0 % ± 9.8 of labels (n 80): not c")
    made.finish("judge/labels", {}, {"train": 100, "heldout": 40})
    made.finish("judge/quality", {}, {"agreement": {"value": 0.5, "stderr": 0.05, "n": 80}})
    assert judging(read_record(made.path), Charts()).notes == ()


def test_the_rewards_of_csr_are_drawn(tmp_path: Path) -> None:
    made = RunFolder(tmp_path / "run", "method=csr", "search.keep=top_bottom")
    for name, reward in (("reward/start", 24.5), ("reward/iter-1", 25.25)):
        if name in made.planned:
            stats = {"response_reward": "x", "sentence_reward": reward, "responses": 9}
            made.finish(name, {}, stats)
    (panel,) = panels(read_record(made.path), Charts())
    (chart,) = panel.charts  # of figures that are none, nothing
    assert chart.title == "Sentence reward"
    assert chart.rows[0] == ("start", "24.5 (n 9)")


# --- comparisons ------------------------------------------------------------------------------


def outcome(recipe: str, right: bool, sound: bool) -> Outcome:
    """A run that answered 40 questions right or not, with sound rationales or not."""
    own = {}
    for i in range(40):
        asked = Sample(f"q{i}", f"{i}.png", "?", "5", (), TAG if i % 2 else "math")
        own[0, asked] = Response(
            f"q{i}", asked.category, GOOD, "5", True, right, sound, False, not sound, False, False,
            1, 1,
        )  # fmt: skip
    answers = {checkpoint: own for checkpoint in ("seed", "iter-1")}
    return Outcome(recipe, 0, answers, frozenset(METRICS), {}, Spent(100, 10, 5, 2.0))


def compared(right: bool = True) -> Comparison:
    outcomes = [outcome("a", True, sound=True), outcome("b$x$", right, sound=False)]
    failed = Failure("c", 0, "c.log", TAG)
    return compare(outcomes, ["a", "b$x$"], "a", "test", [failed], 200)


def test_a_comparison_page_marks_what_leaves_out_zero(tmp_path: Path) -> None:
    write_comparison(tmp_path / "compare.html", compared(), Place(tmp_path))
    page = Page((tmp_path / "compare.html").read_text())
    # of the right answers, all have a sound rationale in a and none in b
    assert "b$x$ -1.000 [-1.000, -1.000] worse" in page.text
    assert "-1.000 [-1.000, -1.000] * leaves out 0" in page.text
    assert f"selfcal report '{tmp_path}/runs/b$x$/seed-0'" in page.text
    assert f"c, seed 0: {TAG}" in page.text
    assert TAG not in (tmp_path / "compare.html").read_text()
    assert handlers(page) == []
    assert scripts(page) == 1  # the frame's own
    assert page.tags["svg"] > 6
    assert len(set(page.ids)) == len(page.ids)
    assert page.refs <= set(page.ids)


def test_the_headline_passes_over_what_cannot_be_compared(tmp_path: Path) -> None:
    write_comparison(tmp_path / "compare.html", compared(right=False), Place(tmp_path))
    page = Page((tmp_path / "compare.html").read_text())
    # without a right answer there is no alignment
    assert "Reliable accuracy, against a b$x$ -1.000" in page.text


def test_a_comparison_of_nothing_finished(tmp_path: Path) -> None:
    found = compare([], ["a", "b"], "a", "test", [], 10)
    write_comparison(tmp_path / "compare.html", found, Place(tmp_path))
    page = Page((tmp_path / "compare.html").read_text())
    assert "There is no difference to show yet." in page.text
    assert "None is finished." in page.text
