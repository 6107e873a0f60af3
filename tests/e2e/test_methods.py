"""Whole runs of the methods beside SRC: all is accounted for, shared, resumed and paid for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.runs import Finished, Told, near, outcome, small
from selfcal.curate import merge_orders
from selfcal.miniworld import verifier
from selfcal.pipeline import execute
from selfcal.rationale import answers_agree, parse
from selfcal.recipe import Recipe
from selfcal.store import StageDir
from selfcal.teacher import MiniWorldTeacher, accept
from selfcal.types import (
    Candidate,
    Drop,
    GradedResponse,
    Judgment,
    LabelledPair,
    PreferencePair,
    Sample,
    SearchNode,
    WrittenRap,
)

SMALLEST = (
    "iterations=1", "data.calibration=16", "evaluate.splits=[]", "judge.kind=verifier",
)  # fmt: skip
SETTINGS = {
    "csr": ("search.keep=top_bottom", "search.min_characters=4", "search.degenerate=drop"),
    # a grader of two steps finds hardly a grade likely
    "independent": ("judge.kind=rscorer", "judge.min_mass=0", "data.calibration=16"),
    "sft_best_of_n": (),
    "self_consistency": (),
}
SHARED = ["data", "teacher", "rft"]
GRADER = [
    "judge/candidates", "judge/labels", "judge/grades", "judge/grader", "judge/grader-quality",
]  # fmt: skip


@dataclass(frozen=True)
class Done(Finished):
    """A finished run of a method with candidates."""

    def candidates(self, place: str = "iter-1") -> dict[str, list[Candidate]]:
        own: dict[str, list[Candidate]] = {}
        for c in self.read(f"{place}/candidates", "candidates", Candidate):
            own.setdefault(c.sample_id, []).append(c)
        return own

    def pairs(self, place: str = "iter-1") -> list[PreferencePair]:
        return self.read(f"{place}/pairs", "pairs", PreferencePair)

    def drops(self, place: str = "iter-1", stage: str = "pairs") -> list[Drop]:
        return self.read(f"{place}/{stage}", "drops", Drop)


def run(method: str, folder: Path, *more: str, reuse: tuple[Path, ...] = ()) -> Done:
    recipe, told = small(*SMALLEST, f"method={method}", *more), Told()
    execute(recipe, folder, told, reuse=reuse)
    return Done(recipe, folder, told)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, small_shards: None) -> Done:
    return run("answer_only", tmp_path_factory.mktemp("answer_only") / "run")


Runs = Callable[[str], Done]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, base: Done) -> Runs:
    """The runs of the methods by name, each made when it is first asked for."""
    made = {"answer_only": base}

    def of(method: str) -> Done:
        if method not in made:
            folder = tmp_path_factory.mktemp(method) / "run"
            made[method] = run(method, folder, *SETTINGS[method], reuse=(base.run,))
        return made[method]

    return of


# --- all samples are accounted for ----------------------------------------------------------


@pytest.mark.parametrize("method", ["answer_only", "self_consistency", "csr", "independent"])
def test_every_sample_with_candidates_is_a_pair_or_a_counted_drop(runs: Runs, method: str) -> None:
    done = runs(method)
    own, pairs, drops = done.candidates(), done.pairs(), done.drops()
    without = {d.sample_id for d in done.drops(stage="candidates") if d.reason == "no-candidate"}
    assert list(own) == [name for name in done.samples if name not in without]
    assert sorted(x.sample_id for x in [*pairs, *drops]) == sorted(own)
    assert pairs
    reasons = {d.reason for d in drops}
    assert done.stats("iter-1/pairs")["drops"] == {
        r: sum(d.reason == r for d in drops) for r in sorted(reasons)
    }
    for p in pairs:
        texts = [c.text for c in own[p.sample_id]]
        assert (p.chosen, p.rejected) == (texts[p.chosen_index], texts[p.rejected_index])
        assert p.chosen != p.rejected and p.margin > 0
    tuned = done.stats("iter-1/dpo")
    assert tuned["rows"] == len(pairs) - sum(tuned["drops"].values())


def test_answer_only_goes_by_the_reference_answer(runs: Runs) -> None:
    done = runs("answer_only")
    assert {d.reason for d in done.drops()} <= {"one-candidate", "all-right", "all-wrong"}
    for p in done.pairs():
        sample = done.samples[p.sample_id]
        right = [
            answers_agree(parse(x).answer, sample.answer, sample.choices)
            for x in (p.chosen, p.rejected)
        ]
        assert right == [True, False]


def test_self_consistency_goes_by_votes(runs: Runs) -> None:
    done = runs("self_consistency")
    assert {d.reason for d in done.drops()} <= {"one-candidate", "unanimous", "tied", "no-answer"}
    for p in done.pairs():
        answers = [parse(c.text).answer.lower() for c in done.candidates()[p.sample_id]]
        votes = [answers.count(answers[i]) for i in (p.chosen_index, p.rejected_index)]
        assert votes[0] == max(map(answers.count, answers)) > votes[1]
        # an empty answer has no vote
        assert p.chosen_score == pytest.approx(votes[0] / len(answers))


def test_csr_takes_best_and_worst_and_says_what_the_policy_is_worth(runs: Runs) -> None:
    done = runs("csr")
    assert {d.reason for d in done.drops()} <= {"one-candidate", "no-gap"}
    for p in done.pairs():
        worth = [sum(c.sentence_rewards) for c in done.candidates()[p.sample_id]]
        assert worth[p.chosen_index] == pytest.approx(max(worth))
        assert worth[p.rejected_index] == pytest.approx(min(worth))
        assert (p.chosen_score, p.rejected_score) == pytest.approx((max(worth), min(worth)))
    for stage in ("reward/start", "reward/iter-1"):
        stats = done.stats(stage)
        said = done.read(stage, "responses", Candidate)
        assert [c.sample_id for c in said] == [s.id for s in done.read("data", "dev", Sample)]
        assert stats["responses"] == 8 and stats["sentences"] == sum(len(c.sentences) for c in said)
        # Eq. 4 is linear: lambda is 0.9
        mean = 0.9 * stats["relevance"] + 0.1 * stats["likelihood"]
        assert stats["sentence_reward"] == pytest.approx(mean, abs=1e-4)
        total = stats["sentence_reward"] * stats["sentences"]
        assert stats["response_reward"] * 8 == pytest.approx(total, abs=1e-3)


def test_a_grader_learns_from_the_very_responses_of_the_pairs(runs: Runs) -> None:
    done = runs("independent")
    labelled = done.read("judge/labels", "train", LabelledPair)
    graded = done.read("judge/grades", "graded", GradedResponse)
    said = {(p.sample_id, text) for p in labelled for text in (p.first, p.second)}
    assert sorted((g.sample_id, g.response) for g in graded) == sorted(said)
    samples = {s.id: s for s in done.read("data", "rft", Sample)}
    for g in graded:
        assert g.good == verifier.verify(samples[g.sample_id], g.response).reliable
    assert done.stats("judge/grades") == {
        "graded": len(graded), "good": sum(g.good for g in graded), "drops": {},
    }  # fmt: skip
    assert done.stats("judge/grader")["rows"] == len(graded)
    assert done.recipe.judge.train.steps == done.stats("judge/grader")["steps"] == 2


def test_independent_grades_do_not_know_of_an_order(runs: Runs) -> None:
    done = runs("independent")
    judged = done.read("iter-1/judgments", "judgments", Judgment)
    seen = {(g.sample_id, g.first, g.second): g for g in judged}
    own = done.candidates()
    assert len(judged) == sum(len(c) * (len(c) - 1) for c in own.values()) > 0
    for (name, i, j), g in seen.items():
        back = seen[name, j, i]
        assert g.p_first == pytest.approx(back.p_second) and g.verdict is not None
    for p in done.pairs():
        # best and worst by the expected gain over the others
        gains = {c.index: 0.0 for c in own[p.sample_id]}
        for c in merge_orders(g for g in judged if g.sample_id == p.sample_id):
            gains[c.i] += c.p_i - c.p_j
            gains[c.j] += c.p_j - c.p_i
        assert gains[p.chosen_index] == pytest.approx(max(gains.values()))
        assert gains[p.rejected_index] == pytest.approx(min(gains.values()))


def test_best_of_n_trains_on_one_response_of_every_sample(runs: Runs) -> None:
    done = runs("sft_best_of_n")
    best, own = done.read("iter-1/best", "best", WrittenRap), done.candidates()
    assert [b.sample_id for b in best] == list(own)
    for b in best:
        sample = done.samples[b.sample_id]
        (taken,) = [c for c in own[b.sample_id] if c.text == b.text]
        # the verifier finds no other one better, and of equals the likeliest is taken
        for c in own[b.sample_id]:
            verdict = verifier.compare(sample, taken.text, c.text)
            assert verdict == "first" or (verdict == "neutral" and taken.logprob >= c.logprob)
    tuned = done.stats("iter-1/sft")
    assert (tuned["rows"], tuned["steps"]) == (len(best), done.recipe.dpo.steps)
    assert not any(s.startswith("iter-1/dpo") for s in done.told.begun)


# --- stages that methods share --------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "reused", "begun"),
    [
        ("self_consistency", [*SHARED, "iter-1/candidates"], ["iter-1/pairs", "iter-1/dpo"]),
        (
            "sft_best_of_n",
            [*SHARED, "iter-1/candidates"],
            ["iter-1/judgments", "iter-1/best", "iter-1/sft"],
        ),
        (
            "csr",
            SHARED,
            ["reward/start", "iter-1/candidates", "iter-1/pairs", "iter-1/dpo", "reward/iter-1"],
        ),
        (
            "independent",
            [*SHARED, "iter-1/candidates"],
            [*GRADER, "iter-1/judgments", "iter-1/pairs", "iter-1/dpo"],
        ),
    ],
)
def test_equal_stages_are_taken_over_and_no_others(
    runs: Runs, method: str, reused: list[str], begun: list[str]
) -> None:
    """What another method decided by another rule is never taken for one's own."""
    told = runs(method).told
    assert (told.reused, told.begun) == (reused, begun)


# --- killed runs ----------------------------------------------------------------------------


class Killed(BaseException):
    """As good as a kill, for what is on the disk."""


class KilledAt(Told):
    """Kills a run when a stage has done so many items."""

    def __init__(self, stage: str, done: int) -> None:
        super().__init__()
        self.stage, self.done = stage, done

    def moves(self, done: int, total: int) -> None:
        if self.begun[-1] == self.stage and done == self.done:
            raise Killed


def killed(recipe: Recipe, folder: Path, base: Done) -> None:
    """In the second shard (of 8) of the search."""
    with pytest.raises(Killed):
        execute(recipe, folder, KilledAt("iter-1/candidates", 11), reuse=(base.run,))
    marks = [p.name for p in (folder / "iter-1/candidates/shards").iterdir()]
    assert marks == ["00000.json"]


def resumed(recipe: Recipe, folder: Path) -> Told:
    told = Told()
    execute(recipe, folder, told)
    assert told.begun[0] == "iter-1/candidates"
    return told


def test_a_guided_search_that_was_killed_goes_on_to_the_same(
    runs: Runs, base: Done, tmp_path: Path
) -> None:
    whole = runs("csr")
    killed(whole.recipe, tmp_path / "run", base)
    resumed(whole.recipe, tmp_path / "run")
    assert outcome(whole.recipe, tmp_path / "run") == outcome(whole.recipe, whole.run)


# --- budgets --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """A run with a budget, and what it must have paid for."""

    done: Done
    paid: list[str]
    """Samples up to the one that spends the last token."""
    tokens: int


@pytest.fixture(scope="module")
def spent(tmp_path_factory: pytest.TempPathFactory, base: Done) -> Spent:
    """The fourteenth sample, in the second shard, spends the last token."""
    cost = dict.fromkeys(base.samples, 0)
    for n in base.read("iter-1/candidates", "nodes", SearchNode):
        cost[n.sample_id] += n.tokens
    paid = list(cost)[:14]
    tokens = sum(cost[s] for s in paid)
    assert cost[paid[-1]] > 1
    folder = tmp_path_factory.mktemp("budget") / "run"
    made = run("sft_best_of_n", folder, f"budget={tokens - 1}", reuse=(base.run,))
    return Spent(made, paid, tokens)


def test_the_search_stops_after_the_sample_that_spends_the_budget(spent: Spent, base: Done) -> None:
    done = spent.done
    assert done.told.reused == SHARED
    assert done.stats("iter-1/candidates")["tokens"] == spent.tokens
    drops = [d for d in done.drops(stage="candidates") if d.reason == "budget"]
    assert [d.sample_id for d in drops] == list(base.samples)[14:]
    assert done.stats("iter-1/candidates")["drops"]["budget"] == 2
    for name, kind in (("candidates", Candidate), ("nodes", SearchNode)):
        free = base.read("iter-1/candidates", name, kind)
        expected = near([_plain(x) for x in free if x.sample_id in spent.paid])
        paid = done.read("iter-1/candidates", name, kind)
        assert expected == [_plain(x) for x in paid]
    best = done.read("iter-1/best", "best", WrittenRap)
    assert [b.sample_id for b in best] == list(done.candidates())


def _plain(record: Any) -> list[Any]:
    values = [getattr(record, name) for name in record.__slots__]
    return [list(v) if isinstance(v, tuple) else v for v in values]


def test_a_budget_with_room_changes_nothing(base: Done, spent: Spent, tmp_path: Path) -> None:
    """Though the stage is another one: it might have been cut."""
    done = run("sft_best_of_n", tmp_path / "run", "budget=1000000", reuse=(base.run,))
    assert "iter-1/candidates" in done.told.begun
    free = outcome(base.recipe, base.run)["iter-1/candidates"]
    assert outcome(done.recipe, done.run)["iter-1/candidates"] == free


def test_a_search_with_a_budget_that_was_killed_goes_on_to_the_same(
    spent: Spent, base: Done, tmp_path: Path
) -> None:
    whole = spent.done
    killed(whole.recipe, tmp_path / "run", base)
    resumed(whole.recipe, tmp_path / "run")
    assert outcome(whole.recipe, tmp_path / "run") == outcome(whole.recipe, whole.run)


def test_what_a_killed_shard_left_is_not_paid_for_twice(
    spent: Spent, base: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the second shard's nodes were written, but not yet its mark."""
    write = StageDir.write_shard

    def dying(self: StageDir, name: str, i: int, *args: Any) -> None:
        write(self, name, i, *args)
        if (name, i) == ("nodes", 1):
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StageDir, "write_shard", dying)
        execute(spent.done.recipe, tmp_path / "run", reuse=(base.run,))
    resumed(spent.done.recipe, tmp_path / "run")
    whole = outcome(spent.done.recipe, spent.done.run)
    assert outcome(spent.done.recipe, tmp_path / "run") == whole


# --- samples that are too weak for a pair ---------------------------------------------------


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory, base: Done) -> Done:
    return run("src", tmp_path_factory.mktemp("src") / "run", FEW, reuse=(base.run,))


FEW = "search.candidates=2"
"""Of so few, both are often good or both bad."""
WEAK = {"one-candidate", "no-gap", "below-margin"}


def _weak(done: Done) -> list[str]:
    return [d.sample_id for d in done.drops() if d.reason in WEAK]


def test_the_teacher_is_preferred_where_the_judge_agrees(strong: Done, tmp_path: Path) -> None:
    done = run("src", tmp_path / "run", FEW, "curate.weak=teacher", reuse=(strong.run,))
    assert done.told.begun == ["iter-1/taught/pairs", "iter-1/dpo"]
    assert done.pairs() == strong.pairs() and done.drops() == strong.drops()
    pairs, drops = done.pairs("iter-1/taught"), done.drops("iter-1/taught")
    assert sorted(x.sample_id for x in [*pairs, *drops]) == sorted(_weak(strong)) != []
    teacher = MiniWorldTeacher(done.recipe.teacher.error_rate, done.recipe.seed)
    expected: dict[str, str] = {}
    for name in _weak(strong):
        sample, own = done.samples[name], done.candidates()[name]
        likeliest = max(own, key=lambda c: sum(c.sentence_logprobs))
        written = teacher.write(sample)
        if isinstance(usable := accept(sample, written), Drop):
            expected[name] = usable.reason
        elif verifier.compare(sample, written, likeliest.text) == "first":
            expected[name] = f"{written}|{likeliest.text}|{len(own)}|{likeliest.index}"
        else:
            expected[name] = "teacher-no-better"
    found = {d.sample_id: d.reason for d in drops}
    for p in pairs:
        found[p.sample_id] = f"{p.chosen}|{p.rejected}|{p.chosen_index}|{p.rejected_index}"
        assert (p.chosen_score, p.rejected_score) == (1.0, -1.0)
    assert found == expected
    assert pairs and "teacher-no-better" in expected.values()
    assert done.stats("iter-1/dpo")["rows"] == len(done.pairs()) + len(pairs)


def test_a_wider_search_for_weak_samples_alone(strong: Done, tmp_path: Path) -> None:
    done = run("src", tmp_path / "run", FEW, "curate.weak=widen", reuse=(strong.run,))
    wider = [f"iter-1/wider/{s}" for s in ("candidates", "judgments", "pairs")]
    assert done.told.begun == [*wider, "iter-1/dpo"]
    weak = _weak(strong)
    searched = done.read("iter-1/wider/candidates", "nodes", SearchNode)
    assert list(dict.fromkeys(n.sample_id for n in searched)) == weak != []
    own = done.candidates("iter-1/wider")
    assert list(own) == weak and max(map(len, own.values())) == 4
    # every level draws for twice as many candidates: 4 x 3 branches at the root in place of 2 x 3
    roots: Mapping[str, int] = {
        s: sum(n.draws for n in searched if n.sample_id == s and n.parent < 0) for s in weak
    }
    assert set(roots.values()) == {2 * done.recipe.search.candidates * done.recipe.search.branch}
    pairs, drops = done.pairs("iter-1/wider"), done.drops("iter-1/wider")
    assert sorted(x.sample_id for x in [*pairs, *drops]) == sorted(weak) and pairs
    for p in pairs:
        assert p.chosen == own[p.sample_id][p.chosen_index].text
        assert verifier.compare(done.samples[p.sample_id], p.chosen, p.rejected) == "first"
    assert not {p.sample_id for p in pairs} & {p.sample_id for p in done.pairs()}
    assert done.stats("iter-1/dpo")["rows"] == len(done.pairs()) + len(pairs)
