"""The audit: judges wrong on purpose are caught, each figure by hand, labels, and what is shown."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import StringIO
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sklearn.metrics import cohen_kappa_score

from selfcal import pipeline
from selfcal.errors import SelfcalError
from selfcal.judge.audit import FEWEST, LIMITS, Asked, audit, findings, kappa
from selfcal.judge.quality import Pair
from selfcal.judge.scorer import Comparison, all_comparisons
from selfcal.recipe import Recipe
from selfcal.store import write_json
from selfcal.testing import Said, ScriptedJudge
from selfcal.types import Candidate, Judgment, Sample, Verdict
from selfcal.view.audit import audit_command, audit_run, show_audit

NOTHING = {"value": None, "stderr": None, "n": 0}


def candidate(index: int, length: int = 10, logprob: float = -1.0, tokens: int = 1) -> Candidate:
    text = "x" * length
    return Candidate("s", index, text, (text,), (logprob,), (tokens,), finished=True)


def lower(one: Candidate, other: Candidate) -> Verdict:
    """The made-up truth: the candidate with the lower number is better."""
    return "first" if one.index < other.index else "second"


def world(n: int = 400, many: int = 4, t: int = 1) -> Iterator[Asked]:
    """Samples whose candidates differ in length and likelihood, at random and apart from truth."""
    for i in range(n):
        rng = random.Random(f"world|{i}")
        lengths, likes = rng.sample(range(10, 99), many), rng.sample(range(1, 99), many)
        own = [candidate(k, lengths[k], -float(likes[k])) for k in range(many)]
        yield Asked(t, Sample(f"s{i}", "", "q", "a", category="math"), own, [], lower)


def judged(says: Callable[[Comparison], Said], sure: float = 1.0, **of: int) -> list[Asked]:
    """That world, with what a judge says of all ordered pairs."""
    judge = ScriptedJudge(says, sure)
    return [
        Asked(
            a.iteration,
            a.sample,
            a.candidates,
            judge.judge(list(all_comparisons(a.sample, a.candidates))),
            a.truth,
        )
        for a in world(**of)
    ]


def truth(c: Comparison) -> Verdict:
    return lower(c.first, c.second)


def chance(c: Comparison, what: str, both: bool = False) -> float:
    """A number in [0, 1), by comparison, or by pair whatever the order."""
    numbers = [c.first.index, c.second.index]
    key = sorted(numbers) if both else numbers
    return random.Random(f"{what}|{c.sample.id}|{key}").random()


def near(figure: Any, value: float, n: int) -> None:
    assert figure["n"] == n
    assert abs(figure["value"] - value) < 4 * figure["stderr"], (figure, value)
    assert figure["stderr"] < 0.03


def named(found: dict[str, Any]) -> set[str]:
    return {text.partition(":")[0] for text in found["findings"]}


# --- judges wrong on purpose ------------------------------------------------------------------


def test_a_judge_that_is_right_gives_no_findings() -> None:
    found: Any = audit(judged(truth))
    assert found["findings"] == []
    assert (found["samples"], found["pairs"]) == (400, 2400)
    for name in ("agreement", "agreement_merged", "kappa"):
        assert (found[name]["value"], found[name]["stderr"]) == (1, 0), name
    for name in ("flip_rate", "first_bias", "ece", "length_bias", "self_preference", "unscored"):
        assert (found[name]["value"], found[name]["stderr"]) == (0, 0), name
    assert found["transitivity_violations"] == {"value": 0, "stderr": 0, "n": 1600}


def test_a_judge_that_errs_as_often_as_it_says_gives_no_findings() -> None:
    # one verdict of ten is wrong, the same in both orders, at a confidence of 0.9
    def says(c: Comparison) -> Verdict:
        return truth(c) if chance(c, "err", both=True) >= 0.1 else "neutral"

    found: Any = audit(judged(says, 0.9))
    assert found["findings"] == []
    near(found["agreement_merged"], 0.9, 2400)
    assert found["flip_rate"]["value"] == 0
    assert found["ece"]["value"] < 0.02


def turning(c: Comparison) -> Verdict:
    """The truth, turned round in a fifth of all ordered comparisons."""
    right = truth(c)
    other: Verdict = "second" if right == "first" else "first"
    return other if chance(c, "turn") < 0.2 else right


def test_a_judge_that_turns_a_fifth_of_its_verdicts_is_caught() -> None:
    found: Any = audit(judged(turning, 0.8))
    # of two orders one is turned: 2 * 0.2 * 0.8
    near(found["flip_rate"], 0.32, 2400)
    near(found["agreement"], 0.8, 4800)
    # both right: 0.64; one turned: the two sides are even, which is neutral and never true here
    near(found["agreement_merged"], 0.64, 2400)
    near(found["first_bias"], 0, 2400)
    # 0.68 of pairs are decided, of which 0.04 / 0.68 = 1 / 17 wrongly. Three decided verdicts make
    # a cycle if the outer one alone is wrong, or the two inner ones: q (1 - q)^2 + q^2 (1 - q)
    cycles = found["transitivity_violations"]
    near(cycles, 1 / 17 * 16 / 17, cycles["n"])
    assert abs(cycles["n"] - 1600 * 0.68**3) < 80
    # a confidence of 0.8 is what it deserves
    assert found["ece"]["value"] < 0.04
    assert {"flip_rate", "agreement_merged"} <= named(found)
    assert not {"first_bias", "length_bias", "self_preference", "ece"} & named(found)
    text = next(t for t in found["findings"] if t.startswith("flip_rate"))
    assert f"{found['flip_rate']['value']:.3f} ±" in text and "judge.schedule=full" in text


def test_a_judge_that_prefers_the_first_is_caught() -> None:
    found: Any = audit(judged(lambda c: "first" if chance(c, "first") < 0.25 else truth(c)))
    near(found["first_bias"], 0.25, 2400)  # the truth is as often first as second
    near(found["flip_rate"], 0.25, 2400)  # it turns where the worse one is first, a quarter of it
    near(found["agreement"], 0.875, 4800)
    assert {"first_bias", "flip_rate"} <= named(found)
    assert not {"length_bias", "self_preference"} & named(found)


def test_a_judge_that_prefers_the_second_is_caught() -> None:
    found: Any = audit(judged(lambda c: "second" if chance(c, "second") < 0.25 else truth(c)))
    near(found["first_bias"], -0.25, 2400)
    assert "first_bias" in named(found)


def test_a_judge_that_prefers_length_is_caught() -> None:
    def says(c: Comparison) -> Verdict:
        longer: Verdict = "first" if len(c.first.text) > len(c.second.text) else "second"
        return longer if chance(c, "length", both=True) < 0.4 else truth(c)

    found: Any = audit(judged(says))
    # the longer one is truly better in half of all pairs; the judge says so in 0.4 + 0.6 / 2
    near(found["length_bias"], 0.2, 4800)
    assert sum(b["n"] for b in found["length_bins"]) == 4800
    for b in found["length_bins"]:
        # the truth's own win rate wavers with the bin, what the judge adds does less
        assert abs(b["judge"] - b["truth"] - 0.4 * (1 - b["truth"])) < 4 * b["stderr"]
    assert found["flip_rate"]["value"] == 0
    assert "length_bias" in named(found)
    assert not {"flip_rate", "first_bias", "self_preference"} & named(found)


def test_a_judge_that_prefers_what_the_policy_finds_likely_is_caught() -> None:
    def says(c: Comparison) -> Verdict:
        likelier: Verdict = "first" if c.first.logprob > c.second.logprob else "second"
        return likelier if chance(c, "like", both=True) < 0.4 else truth(c)

    found: Any = audit(judged(says))
    near(found["self_preference"], 0.2, 4800)
    assert "self_preference" in named(found)
    assert not {"flip_rate", "first_bias", "length_bias"} & named(found)


def test_a_judge_that_is_too_sure_is_caught() -> None:
    def says(c: Comparison) -> Verdict:
        return truth(c) if chance(c, "sure", both=True) < 0.7 else "neutral"

    found: Any = audit(judged(says, 0.95))
    near(found["ece"], 0.25, 4800)
    *empty, last = found["reliability"]
    assert all(b["n"] == 0 and b["hit_rate"] is None and b["confidence"] is None for b in empty)
    assert (last["lower"], last["upper"], last["n"]) == (0.9, 1, 4800)
    assert last["confidence"] == 0.95
    assert abs(last["hit_rate"] - 0.7) < 4 * last["stderr"]
    assert "ece" in named(found)
    assert "judge.calibrate=each" in next(t for t in found["findings"] if t.startswith("ece"))


def test_a_judge_that_the_policy_outruns_is_caught() -> None:
    def worse(c: Comparison) -> Verdict:
        return truth(c) if chance(c, "outrun", both=True) < 0.85 else "neutral"

    found: Any = audit([*judged(truth), *judged(worse, t=2)])
    assert found["iterations"]["1"]["agreement_merged"]["value"] == 1
    near(found["iterations"]["2"]["agreement_merged"], 0.85, 2400)
    near(found["drift"], 0.15, 4800)
    assert named(found) >= {"drift"}
    assert found["samples"] == 400  # the same ones in both iterations


# --- figures by hand --------------------------------------------------------------------------


def one(
    said: Sequence[tuple[int, int, Said]],
    candidates: Sequence[Candidate],
    true: Callable[[Candidate, Candidate], Verdict | None] = lower,
) -> Any:
    """The audit of a single sample."""
    sample, own = Sample("s", "", "q", "a"), {c.index: c for c in candidates}
    answers = {(i, j): what for i, j, what in said}
    judge = ScriptedJudge(lambda c: answers[c.first.index, c.second.index])
    made = judge.judge([Comparison(sample, own[i], own[j]) for i, j, _ in said])
    return audit([Asked(1, sample, candidates, made, true)])


THREE = [candidate(0), candidate(1), candidate(2)]


def test_three_in_a_circle() -> None:
    found = one([(0, 1, "first"), (1, 2, "first"), (2, 0, "first")], THREE)
    assert found["transitivity_violations"] == {"value": 1, "stderr": 0, "n": 1}
    other_way = one([(0, 1, "second"), (2, 1, "first"), (0, 2, "first")], THREE)
    assert other_way["transitivity_violations"]["value"] == 1


@pytest.mark.parametrize(
    "said",
    [
        [(0, 1, "first"), (1, 2, "first"), (2, 0, "neutral")],
        [(0, 1, "first"), (1, 2, "first")],
        [(0, 1, "first"), (1, 2, "first"), (2, 0, None)],
        [(0, 1, "first"), (1, 2, "first"), (2, 0, "first"), (0, 2, "first")],  # even: neutral
    ],
)
def test_a_triple_needs_three_decided_verdicts(said: list[tuple[int, int, Said]]) -> None:
    assert one(said, THREE)["transitivity_violations"] == NOTHING


def test_pairs_with_one_order_count_where_they_can() -> None:
    found = one([(0, 1, "first"), (2, 1, "first")], THREE)
    assert found["pairs"] == 2
    assert (found["agreement"]["value"], found["agreement"]["n"]) == (0.5, 2)
    assert (found["agreement_merged"]["value"], found["agreement_merged"]["n"]) == (0.5, 2)
    assert found["flip_rate"] == found["first_bias"] == NOTHING


def test_unscored_judgments_are_counted_and_say_nothing() -> None:
    found = one([(0, 1, None), (1, 0, "second"), (0, 2, None), (2, 0, None)], THREE)
    assert (found["unscored"]["value"], found["unscored"]["n"]) == (0.75, 4)
    assert (found["agreement"]["value"], found["agreement"]["n"]) == (1, 1)
    assert found["agreement_merged"] == found["flip_rate"] == NOTHING


def test_without_truth_the_figures_that_need_it_are_absent() -> None:
    pair = [candidate(0, length=10), candidate(1, length=30)]
    found = one([(0, 1, "second"), (1, 0, "second")], pair, lambda one, other: None)
    for name in ("agreement", "agreement_merged", "kappa", "ece", "length_bias", "drift"):
        assert found[name] == NOTHING, name
    assert (found["flip_rate"]["value"], found["first_bias"]["value"]) == (1, -1)
    # 200 % longer: preferred once of two
    *_, last = found["length_bins"]
    assert (last["lower"], last["upper"]) == (1, None)
    assert (last["judge"], last["truth"], last["n"]) == (0.5, None, 2)
    assert found["findings"] == []


def test_what_the_policy_finds_likelier_goes_by_the_mean_of_a_token() -> None:
    # -1 a token against -2, though the sums say the opposite
    pair = [candidate(0, logprob=-10, tokens=10), candidate(1, logprob=-6, tokens=3)]
    found = one([(0, 1, "first")], pair, lambda one, other: "neutral")
    assert (found["self_preference"]["value"], found["self_preference"]["n"]) == (0.5, 1)
    even = [candidate(0, logprob=-4, tokens=2), candidate(1, logprob=-6, tokens=3)]
    assert one([(0, 1, "first")], even)["self_preference"] == NOTHING
    empty = [candidate(0, logprob=0, tokens=0), candidate(1)]
    assert one([(0, 1, "first")], empty)["self_preference"] == NOTHING


@pytest.mark.parametrize(
    ("lengths", "place"),
    [((100, 109), 0), ((100, 111), 1), ((40, 30), 2), ((20, 10), 3), ((21, 10), 4), ((0, 5), 4)],
)
def test_bins_of_length(lengths: tuple[int, int], place: int) -> None:
    pair = [candidate(i, length) for i, length in enumerate(lengths)]
    bins = one([(0, 1, "neutral")], pair)["length_bins"]
    assert [b["n"] for b in bins] == [int(i == place) for i in range(5)]
    assert bins[place]["judge"] == 0.5


def test_by_category() -> None:
    made = judged(truth, n=40)
    parts = [("chart", made[:10]), ("math", made[10:30]), ("", made[30:])]
    asked = [
        Asked(1, Sample(a.sample.id, "", "q", "a", category=name), a.candidates, a.judgments, lower)
        for name, own in parts
        for a in own
    ]
    found: Any = audit(asked)["categories"]
    assert list(found) == ["chart", "math"]
    assert found["chart"]["agreement_merged"] == {"value": 1, "stderr": 0, "n": 60}
    assert found["math"]["flip_rate"] == {"value": 0, "stderr": 0, "n": 120}


def test_the_audit_of_nothing() -> None:
    found: Any = audit([])
    assert found["agreement"] == found["transitivity_violations"] == found["kappa"] == NOTHING
    assert found["findings"] == [] and found["pairs"] == 0
    assert not found["enough"]


def test_judgments_that_cannot_be_read_are_a_finding_and_nothing_else_is_told() -> None:
    asked = [
        replace(a, judgments=[replace(g, verdict=None) for g in a.judgments])
        for a in judged(truth, n=5)
    ]
    found: Any = audit(asked)
    assert found["unscored"] == {"value": 1, "stderr": 0, "n": 60}  # 5 x 6 pairs, both orders
    assert "judge.min_mass" in found["findings"][0] and len(found["findings"]) == 1
    assert not found["enough"]


# --- kappa ------------------------------------------------------------------------------------

NAMES: dict[int, Verdict] = {1: "first", -1: "second", 0: "neutral"}


def pair(sample: str, said: int, true: int) -> Pair:
    p = [float(said == sign) for sign in (1, -1, 0)]
    return Pair(sample, Judgment(sample, 0, 1, NAMES[said], *p), None, true)


def test_kappa_by_hand() -> None:
    rows = [(1, 1), (1, -1), (0, 0), (-1, 0)]
    # neutral 1/4 by the judge and 2/4 by the truth: 1/8 + 3/4 * 1/2 / 2 = 5/16 by chance, 1/2 seen
    found = kappa([pair(str(i), *row) for i, row in enumerate(rows)])
    assert found["value"] == round((8 / 16 - 5 / 16) / (11 / 16), 4)
    assert found["n"] == 4
    # which of two candidates has the lower number changes nothing
    mirrored = [(1, 1), (-1, 1), (0, 0), (1, 0)]
    assert kappa([pair(str(i), *row) for i, row in enumerate(mirrored)]) == found


def test_kappa_is_that_of_others_and_its_error_that_of_the_bootstrap() -> None:
    rng = random.Random(0)
    rows = []
    for i in range(300):
        sample, true = f"s{i // 3}", rng.choice([-1, 0, 0, 1])
        rows.append(pair(sample, true if rng.random() < 0.6 else rng.choice([-1, 0, 1]), true))
    found = kappa(rows)
    said, true_ = [p.merged or 0 for p in rows], [p.truth or 0 for p in rows]
    sides = said + [-x for x in said], true_ + [-x for x in true_]
    assert found["value"] == pytest.approx(cohen_kappa_score(*sides), abs=1e-4)
    drawn = []
    for _ in range(150):
        own = [rng.randrange(100) for _ in range(100)]
        drawn.append(kappa([rows[3 * s + k] for s in own for k in range(3)])["value"] or 0)
    middle = sum(drawn) / len(drawn)
    error = math.sqrt(sum((x - middle) ** 2 for x in drawn) / len(drawn))
    # the spread of 150 draws is known to 1 / sqrt(300) = 6 %
    assert found["stderr"] == pytest.approx(error, rel=0.25)


def test_kappa_of_nothing_but_neutral() -> None:
    assert kappa([pair("a", 0, 0), pair("b", 0, 0)]) == {"value": None, "stderr": None, "n": 2}


# --- findings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "stderr", "passed"),
    [
        ("flip_rate", 0.13, 0.01, True),
        ("flip_rate", 0.13, 0.02, False),  # 0.13 - 0.04 < 0.10: not clearly so
        ("first_bias", -0.08, 0.01, True),
        ("first_bias", -0.04, 0.0, False),
        ("length_bias", -0.5, 0.01, False),
        ("agreement_merged", 0.75, 0.02, True),
        ("agreement_merged", 0.75, 0.03, False),
        ("agreement_merged", 0.95, 0.01, False),
        ("ece", 0.08, 0.01, True),
        ("self_preference", 0.2, 0.04, True),
        ("transitivity_violations", 0.08, 0.01, True),
    ],
)
def test_a_finding_is_clearly_beyond_its_limit(
    name: str, value: float, stderr: float, passed: bool
) -> None:
    figures: Any = dict.fromkeys(LIMITS, NOTHING)
    figures |= {name: {"value": value, "stderr": stderr, "n": FEWEST}}
    found = findings(figures)
    assert bool(found) == passed
    assert not passed or (name in found[0] and f"{value:.3f} ±{stderr:.3f}" in found[0])
    figures |= {name: {"value": value, "stderr": stderr, "n": FEWEST - 1}}
    assert findings(figures) == []


# --- a run ------------------------------------------------------------------------------------

DIGITS = ("Add the digits.", "left digit: 2; right digit: 3")
GOOD = "Rationale: The left digit is 2. The right digit is 3. 2 plus 3 is 5.\nAnswer: 5"
BAD = "Rationale: The left digit is 4. The right digit is 3. 4 plus 3 is 7.\nAnswer: 7"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two samples with three candidates (good, bad, bad) and a judge that says first."""
    folder = tmp_path / "run"
    recipe = pipeline.pin(Recipe.model_validate({"name": "tiny", "iterations": 2}))
    planned = {p.stage.name: p.folder for p in pipeline.locate(recipe, folder)}
    write_json(
        folder / pipeline.RECIPE_FILE, {"format": 1, "recipe": recipe.model_dump(mode="json")}
    )
    ids = ("cal-0", "cal-1")
    samples = [Sample(i, "i.png", DIGITS[0], "5", (), "math", "", DIGITS[1]) for i in ids]
    found = [
        Candidate(i, k, text, (text,), (-1.0,), (3,), True)
        for i in ids
        for k, text in enumerate((GOOD, BAD, BAD))
    ]
    said = [
        Judgment(i, a, b, "first", 0.8, 0.1, 0.1) for i in ids for a, b in permutations(range(3), 2)
    ]
    for stage, name, rows, kind in (
        ("data", "calibration", samples, Sample),
        ("iter-1/candidates", "candidates", found, Candidate),
        ("iter-1/judgments", "judgments", said, Judgment),
    ):
        planned[stage].open()
        planned[stage].write_shard(name, 0, rows, kind)  # type: ignore[type-var]
        planned[stage].finish({}, 1.0)
    return folder


def test_a_run_is_held_against_the_verifier(run: Path) -> None:
    found: Any = audit_run(run)
    assert (found["truth"], found["samples"], found["pairs"]) == ("verifier", 2, 6)
    # of a sample's six ordered pairs, two have the good one first
    assert (found["agreement"]["value"], found["agreement"]["n"]) == (round(1 / 3, 4), 12)
    assert (found["flip_rate"]["value"], found["first_bias"]["value"]) == (1, 1)
    # averaged, first and second are even, so all is neutral: true of the two bad ones
    assert found["agreement_merged"]["value"] == round(1 / 3, 4)


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def label(**changed: Any) -> dict[str, Any]:
    return {"sample_id": "cal-0", "first": 0, "second": 1, "verdict": "first"} | changed


def test_labels_take_the_place_of_the_verifier(run: Path, tmp_path: Path) -> None:
    file = lines(
        tmp_path / "labels.jsonl",
        label(first=2, second=1, verdict="first", who="someone"),
        "",
        label(sample_id="cal-1", verdict="neutral", iteration=1),
    )
    found: Any = audit_run(run, file)
    assert found["truth"] == "labels" and found["pairs"] == 6
    # cal-0: (2, 1) is right and (1, 2) is not; cal-1: neither
    assert (found["agreement"]["value"], found["agreement"]["n"]) == (0.25, 4)
    assert found["flip_rate"]["n"] == 6


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "line 2: .*sample_id"),
        ("[1]", "line 2"),
        (label(verdict="better"), r"line 2: verdict: .*'first'"),
        (label(first="0"), "line 2: first"),
        (label(first=-1), "line 2: first"),
        ({"sample_id": "cal-0", "first": 0, "second": 1}, "line 2: verdict"),
        (label(first=1), "line 2: .*same candidate"),
        (label(first=1, second=0), "line 2: .*line 1 again"),
        (label(second=7), r"line 2: .*no candidate 7.*\[0, 1, 2\]"),
        (label(sample_id="cal-9"), "line 2: .*'cal-9' in iteration 1"),
        (label(iteration=2), "line 2: .*'cal-0' in iteration 2"),
        (label(iteration=0), "line 2: iteration"),
    ],
)
def test_a_bad_label_is_named(run: Path, tmp_path: Path, row: Any, says: str) -> None:
    file = lines(tmp_path / "labels.jsonl", label(), row)
    with pytest.raises(SelfcalError, match=rf"labels\.jsonl: {says}"):
        audit_run(run, file)


def test_a_missing_file_or_run_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SelfcalError, match=r"none\.jsonl"):
        audit_run(run, tmp_path / "none.jsonl")
    with pytest.raises(SelfcalError, match="is no run"):
        audit_run(tmp_path)


def test_a_run_without_judgments_is_named(run: Path) -> None:
    (run / "iter-1/judgments/manifest.json").unlink()
    with pytest.raises(SelfcalError, match="has no judgments yet"):
        audit_run(run)


def test_json_is_the_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit_command(run, as_json=True, labels=None)
    assert json.loads(capsys.readouterr().out) == audit_run(run)


def shown(found: Any) -> str:
    out = StringIO()
    show_audit(Console(file=out, width=100, markup=False, highlight=False), found)
    return out.getvalue()


def test_what_is_shown() -> None:
    found = {"truth": "verifier", **audit(judged(turning, 0.85, n=60))}
    text = shown(found)
    assert "360 pairs of 60 samples, held against MiniWorld's verifier" in text
    flips: Any = found["flip_rate"]
    row = next(line for line in text.splitlines() if line.startswith("flip_rate "))
    assert row.split()[1:4] == [f"{flips['value']:.3f}", f"±{flips['stderr']:.3f}", "360"]
    assert "0.8 to 0.9" in text and "│" in text
    assert "100% and more" in text
    assert "! flip_rate" in text
    assert max(map(len, text.split("! ")[0].splitlines())) <= 100


def test_what_is_shown_without_truth_and_of_strange_names() -> None:
    name = "a\x1b[31mb"
    asked = [
        Asked(1, Sample("s", "", "q", "a", category=name), THREE, [], lambda one, other: None),
        Asked(
            1,
            Sample("t", "", "q", "a", category=name),
            THREE,
            [Judgment("t", 0, 1, "first", 1, 0, 0), Judgment("t", 1, 0, "second", 0, 1, 0)],
            lambda one, other: None,
        ),
    ]
    text = shown({"truth": None, **audit(asked)})
    assert "\x1b" not in text and r"a\x1b[31mb" in text
    assert "--labels FILE" in text and "Too few to tell: no figure" in text
