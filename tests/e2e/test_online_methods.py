"""Whole runs of the online methods: rewards follow from the responses, and all is accounted for."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from e2e.runs import SMALL, Finished, Told, near
from selfcal import methods
from selfcal.cost.counts import count
from selfcal.errors import SelfcalError
from selfcal.judge.labels import VerifierLabels
from selfcal.miniworld import verifier
from selfcal.pipeline import execute, locate, pin, plan
from selfcal.rationale import answers_agree, parse
from selfcal.recipe import Recipe, RecipeError, load_recipe
from selfcal.stage import Work
from selfcal.types import Drop, GradedResponse, RankedResponses, Rollout, Sample
from unit.hand_made import EVIL, call, flat

ROOT = Path(__file__).parents[2]
SMALLEST = (
    "data.calibration=16", "evaluate.splits=[]", "judge.train.batch_size=8",
    "judge.min_mass=0",  # a judge of two steps finds hardly a verdict likely
    "grpo.steps=3", "grpo.batch_size=8", "grpo.group=4", "grpo.format_weight=0.2", "budget=400",
)  # fmt: skip
SHARE = 200
"""Tokens of an iteration; three batches of eight responses have more, one has less."""

METHODS = {
    "grpo": [],
    "faithful-grpo": ["judge/grades", "judge/grader", "judge/grader-quality"],
    "consistency-grpo": ["judge/grades", "judge/grader", "judge/grader-quality"],
    "groupwise-grpo": ["judge/rankings", "judge/ranker", "judge/ranker-quality"],
    "online-src": ["judge/labels", "judge/train", "judge/quality"],
}
"""The stages of each one's judge, after the candidates that all judges are trained on."""
OPTIONS = {
    "faithful-grpo": (
        "options.start=0.5", "options.rate=0.5", "options.most=1.1", "options.consistency=0.95",
        "options.grounding=0.9",
    ),
    "consistency-grpo": ("options.weight=0.3",),
    "groupwise-grpo": ("options.spread=0.4",),
}  # fmt: skip
OPENING, LOOP = ["data", "teacher", "rft"], ["iter-1/grpo", "iter-2/grpo"]


def smallest(name: str, *more: str) -> Recipe:
    """A shipped recipe, as small as it goes."""
    settings = [*SMALL, *SMALLEST, *OPTIONS.get(name, ()), *more]
    return pin(load_recipe(ROOT / f"recipes/miniworld-{name}.yaml", settings))


@dataclass(frozen=True)
class Done(Finished):
    """A finished run of an online method."""

    def rollouts(self, t: int = 1) -> list[Rollout]:
        return self.read(f"iter-{t}/grpo", "rollouts", Rollout)


def run(recipe: Recipe, folder: Path, *reuse: Path, told: Told | None = None) -> Done:
    """Run a recipe; in its iterations nobody asks the verifier."""
    told = told or Told()

    def guarded(asked: Callable[..., Any]) -> Callable[..., Any]:
        def guard(*args: Any) -> Any:
            assert not told.begun[-1].startswith("iter-"), f"{told.begun[-1]} asks the verifier"
            return asked(*args)

        return guard

    with pytest.MonkeyPatch.context() as patch:
        for door in ("_truth", "entails"):  # entailment needs no truth
            patch.setattr(verifier, door, guarded(getattr(verifier, door)))
        execute(recipe, folder, told, reuse)
    return Done(recipe, folder, told)


Runs = Callable[[str], Done]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_shards: None) -> Runs:
    """The runs of the methods by name, each made when it is first asked for."""
    made: dict[str, Done] = {}

    def of(name: str) -> Done:
        if name not in made:
            # plain GRPO is the first, and the first with a judge is the second
            reuse = [of(n).run for n in ("grpo", "faithful-grpo")[: _RANK.get(name, 2)]]
            made[name] = run(smallest(name), tmp_path_factory.mktemp(name) / "run", *reuse)
        return made[name]

    return of


_RANK = {"grpo": 0, "faithful-grpo": 1}


def groups(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    return [list(own) for _, own in groupby(rollouts, key=lambda r: (r.step, r.sample_id))]


# --- stages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_stages_are_those_that_are_planned_and_shared_ones_are_taken_over(
    runs: Runs, name: str
) -> None:
    """What a method sampled and learned is never taken for another's."""
    done = runs(name)
    candidates = ["judge/candidates"] if METHODS[name] else []
    assert [s.name for s in plan(done.recipe)] == [*OPENING, *candidates, *METHODS[name], *LOOP]
    shared = {"grpo": [], "faithful-grpo": OPENING}.get(name, [*OPENING, *candidates])
    assert done.told.reused == shared
    assert done.told.reused + done.told.begun == [s.name for s in plan(done.recipe)]
    assert done.told.begun == done.told.ended
    assert all(p.folder.done and not p.folder.verify() for p in locate(done.recipe, done.run))


def test_the_same_settings_are_another_training_in_every_method() -> None:
    alike = ("grpo.scale=none", "judge.prompt=null")
    same = [smallest("grpo", f"method={n.replace('-', '_')}", *alike) for n in METHODS]
    for recipes in (same, [smallest(n) for n in METHODS]):
        found = [{p.stage.name: p.folder.fingerprint for p in locate(r, Path())} for r in recipes]
        assert len({own["rft"] for own in found}) == 1
        for stage in LOOP:
            assert len({own[stage] for own in found}) == len(METHODS)


def test_all_methods_see_the_same_first_batch(runs: Runs) -> None:
    """They differ in what they make of it."""
    first = [[r for r in runs(n).rollouts() if r.step == 0] for n in METHODS]
    assert len({tuple((r.sample_id, r.text) for r in own) for own in first}) == 1
    assert len({tuple(r.advantage for r in own) for own in first}) == len(METHODS)


def test_judges_are_trained_on_the_candidates_of_training_samples(runs: Runs) -> None:
    """And labels are what the verifier says there."""
    done = runs("consistency-grpo")
    graded = done.read("judge/grades", "labelled", GradedResponse)
    samples = {s.id: s for s in done.read("data", "rft", Sample)}
    assert graded and {g.aspect for g in graded} == {"entailed"}
    assert {g.sample_id for g in graded} <= set(list(samples)[:24])
    aspects = {
        g.aspect for g in runs("faithful-grpo").read("judge/grades", "train", GradedResponse)
    }
    assert aspects == {"entailed", "grounded"}
    ranked = runs("groupwise-grpo").read("judge/rankings", "train", RankedResponses)
    assert ranked
    for own in ranked:
        sample = samples[own.sample_id]
        assert all(
            answers_agree(parse(text).answer, sample.answer, sample.choices)
            for text in own.responses
        )


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        (
            "faithful-grpo",
            ["entailed_agreement", "entailed_yes", "grounded_agreement", "grounded_yes"],
        ),
        ("consistency-grpo", ["entailed_agreement", "entailed_yes"]),
        ("groupwise-grpo", ["best_agreement", "pair_agreement"]),
    ],
)
def test_a_judge_is_measured_with_errors(runs: Runs, name: str, figures: list[str]) -> None:
    found = runs(name).stats(METHODS[name][-1])
    assert set(found) - {"unread"} == set(figures)
    for figure in figures:
        own = found[figure]
        assert 0 <= own["value"] <= 1 and own["stderr"] >= 0 and own["n"] > 0


# --- what an iteration samples, and what it says of it --------------------------------------


def right(done: Done, rollout: Rollout) -> bool:
    sample = done.samples[rollout.sample_id]
    return answers_agree(parse(rollout.text).answer, sample.answer, sample.choices)


@pytest.mark.parametrize("t", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_the_budget_ends_an_iteration_after_the_batch_that_spends_it(
    runs: Runs, name: str, t: int
) -> None:
    done = runs(name)
    rollouts, stats = done.rollouts(t), done.stats(f"iter-{t}/grpo")
    batches = [list(own) for _, own in groupby(rollouts, key=lambda r: r.step)]
    spent = [sum(r.tokens for r in own) for own in batches]
    assert sum(spent[:-1]) < SHARE <= sum(spent) and len(batches) <= 3
    assert stats["steps"] == len(batches)
    for step, own in enumerate(batches):
        assert [(r.step, r.index) for r in own] == [(step, i) for _ in range(2) for i in range(4)]
    mine = list(done.samples)[t - 1 :: 2]
    asked = [own[0].sample_id for own in groups(rollouts)]
    assert set(asked) <= set(mine) and len(set(asked)) == len(asked)
    left = [name for name in mine if name not in asked]
    drops = done.read(f"iter-{t}/grpo", "drops", Drop)
    assert drops == [Drop(name, "grpo", "budget") for name in left]
    assert stats["rows"] == len(mine) == 8 and stats["drops"] == {"budget": len(left)}


def test_samples_beyond_the_last_step_are_not_the_budgets(runs: Runs, tmp_path: Path) -> None:
    """Where tokens are left; without a budget they always are."""
    for more in ("budget=400", "budget=null"):
        recipe = smallest("grpo", "iterations=1", "grpo.steps=1", "grpo.max_new_tokens=20", more)
        stats = run(recipe, tmp_path / more, runs("grpo").run).stats("iter-1/grpo")
        assert stats["tokens"] < 400 and (stats["responses"], stats["rows"]) == (8, 16)
        assert stats["drops"] == {}


def asked(done: Done, own: list[Rollout]) -> int:
    """Questions to the judge about a group."""
    texts = {r.text for r in own}
    rivals = {r.text for r in own if right(done, r)}
    return {
        "grpo": 0,
        "faithful_grpo": 2 * len(texts),
        "consistency_grpo": len(texts),
        "groupwise_grpo": int(len(rivals) > 1),
        "online_src": len(texts) * (len(texts) - 1),
    }[done.recipe.method]


@pytest.mark.parametrize("name", METHODS)
def test_figures_are_those_of_the_rollouts(runs: Runs, name: str) -> None:
    done = runs(name)
    for t in (1, 2):
        rollouts, stats = done.rollouts(t), done.stats(f"iter-{t}/grpo")
        for r in rollouts:
            assert (r.correct, r.compliant) == (right(done, r), parse(r.text).compliant)
        assert stats["responses"] == len(rollouts)
        assert stats["tokens"] == sum(r.tokens for r in rollouts)
        assert stats["judgments"] == sum(asked(done, own) for own in groups(rollouts))
        assert (stats["judgments"] > 0) == (name != "grpo")
        assert stats["correct"] == pytest.approx(fmean(r.correct for r in rollouts), abs=1e-4)
        assert stats["compliant"] == pytest.approx(fmean(r.compliant for r in rollouts), abs=1e-4)
        for k, signal in enumerate(SIGNALS[name]):
            known = [r.judged[k] for r in rollouts if not math.isnan(r.judged[k])]
            assert stats[signal] == pytest.approx(fmean(known), abs=1e-4)


SIGNALS = {
    "grpo": (),
    "faithful-grpo": ("entailed", "grounded"),
    "consistency-grpo": ("entailed",),
    "groupwise-grpo": ("strength",),
    "online-src": ("score",),
}

# --- rewards and advantages -----------------------------------------------------------------


def normalized(values: Sequence[float]) -> list[float]:
    mean, deviation = fmean(values), stdev(values)
    return [(v - mean) / (deviation + 1e-4) for v in values]


def task(own: Sequence[Rollout]) -> list[float]:
    return [r.correct + 0.2 * r.compliant for r in own]


def signal(own: Sequence[Rollout], k: int = 0) -> list[float]:
    return [r.judged[k] for r in own]


def weighed(*parts: tuple[float, Sequence[float]]) -> list[float]:
    """A weighted sum."""
    return [
        sum(weight * value for (weight, _), value in zip(parts, values, strict=True))
        for values in zip(*(own for _, own in parts), strict=True)
    ]


def taught(done: Done) -> list[list[Rollout]]:
    """The groups of the first iteration; some of them, tell responses apart."""
    found = groups(done.rollouts())
    assert any(any(abs(r.advantage) > 0.01 for r in own) for own in found)
    return found


def assert_worth(
    own: Sequence[Rollout], rewards: Sequence[float], advantages: Sequence[float]
) -> None:
    assert [r.reward for r in own] == pytest.approx(rewards, abs=1e-6)
    assert [r.advantage for r in own] == pytest.approx(advantages, abs=1e-6)


def test_grpo_rewards_the_answer_and_a_little_the_form(runs: Runs) -> None:
    for own in taught(runs("grpo")):
        assert_worth(own, task(own), normalized(task(own)))


def test_consistency_has_an_advantage_of_its_own(runs: Runs) -> None:
    for own in taught(runs("consistency-grpo")):
        assert_worth(
            own,
            weighed((0.7, task(own)), (0.3, signal(own))),
            weighed((0.7, normalized(task(own))), (0.3, normalized(signal(own)))),
        )


def test_ranks_redistribute_the_reward_of_right_answers(runs: Runs) -> None:
    ranked = 0
    for own in taught(runs("groupwise-grpo")):
        among = [r.judged[0] for r in own if not math.isnan(r.judged[0])]
        ranked += bool(among)
        rewards = task(own)
        for i, r in enumerate(own):
            assert math.isnan(r.judged[0]) or r.correct
            if not math.isnan(r.judged[0]):
                ahead = sum(s > r.judged[0] for s in among)
                rank = ahead + (1 + among.count(r.judged[0])) / 2
                rewards[i] += 0.4 * (len(among) + 1 - 2 * rank) / (len(among) - 1)
        assert_worth(own, rewards, normalized(rewards))
        assert sum(rewards) == pytest.approx(sum(task(own)))  # nothing is won or lost
    assert ranked


def test_online_src_takes_scores_as_they_are(runs: Runs) -> None:
    """Equal texts have one score, and not all win or lose."""
    for own in taught(runs("online-src")):
        scores = signal(own)
        assert_worth(own, scores, [s - fmean(scores) for s in scores])
        assert len({(r.text, r.reward) for r in own}) == len({r.text for r in own})
        assert 1 >= max(scores) >= 0 >= min(scores) >= -1


def test_multipliers_rise_from_batch_to_batch_and_are_carried_on(runs: Runs) -> None:
    done, multipliers, bounded = runs("faithful-grpo"), (0.5, 0.5), 0
    for t in (1, 2):
        for _, batch in groupby(done.rollouts(t), key=lambda r: r.step):
            rollouts = list(batch)
            for own in groups(rollouts):
                parts = [task(own), signal(own, 0), signal(own, 1)]
                shares = (1.0, *multipliers)
                total = weighed(*zip(shares, map(normalized, parts), strict=True))
                assert_worth(
                    own,
                    weighed(*zip(shares, parts, strict=True)),
                    [a / sum(shares) for a in total],
                )
            short = [0.95 - fmean(signal(rollouts, 0)), 0.9 - fmean(signal(rollouts, 1))]
            assert min(short) > 0  # both constraints are violated
            free = [m + 0.5 * gap for m, gap in zip(multipliers, short, strict=True)]
            multipliers = min(1.1, free[0]), min(1.1, free[1])
            bounded += max(free) > 1.1
        assert done.stats(f"iter-{t}/grpo")["learned"] == {
            "multiplier_entailed": pytest.approx(multipliers[0], abs=1e-5),
            "multiplier_grounded": pytest.approx(multipliers[1], abs=1e-5),
        }
    assert bounded


@pytest.mark.parametrize("name", ["online-src", "faithful-grpo"])
def test_unreadable_answers_of_a_judge_teach_nothing(runs: Runs, tmp_path: Path, name: str) -> None:
    recipe = smallest(name, "judge.min_mass=1", "iterations=1", "grpo.steps=1")
    done = run(recipe, tmp_path / "run", runs(name).run)
    stats = done.stats("iter-1/grpo")
    for own in groups(done.rollouts()):
        if name == "faithful-grpo":  # but the answers do
            assert all(math.isnan(s) for r in own for s in r.judged)
            assert_worth(own, task(own), [a / 2 for a in normalized(task(own))])
        else:  # a group of one text is not compared
            assert all(math.isnan(s) == (len({r.text for r in own}) > 1) for s in signal(own))
            assert all(r.advantage == 0 for r in own)
    if name == "faithful-grpo":
        assert (stats["entailed"], stats["grounded"]) == (None, None)
        assert stats["learned"] == {"multiplier_entailed": 0.5, "multiplier_grounded": 0.5}


@pytest.mark.parametrize("kind", ["guess", "verifier"])
def test_controls_take_the_place_of_the_r_scorer(runs: Runs, tmp_path: Path, kind: str) -> None:
    """Nothing is trained for them, and the verifier's scores are the truth."""
    varied = ("iterations=1", "grpo.temperature=1.4", "budget=null")
    recipe, told = smallest("online-src", f"judge.kind={kind}", *varied), Told()
    execute(recipe, tmp_path / "run", told, [runs("grpo").run])
    done, labels = Done(recipe, tmp_path / "run", told), VerifierLabels()
    assert (told.reused, told.begun) == (OPENING, LOOP[:1])
    sign = {"first": 1, "second": -1, "neutral": 0}
    for own in groups(done.rollouts()):
        sample, texts = done.samples[own[0].sample_id], {r.text for r in own}
        assert all(-1 <= s <= 1 for s in signal(own))
        for r in own if kind == "verifier" else []:
            found = [sign[labels.compare(sample, r.text, t)] for t in texts - {r.text}]
            assert r.judged[0] == pytest.approx(fmean(found) if found else 0)
    assert any(r.judged[0] for r in done.rollouts())


# --- samples without an answer --------------------------------------------------------------


def blank(patch: pytest.MonkeyPatch, every: int) -> None:
    """Every so many calibration samples have no answer."""
    samples = Work.samples

    def without(self: Work, stage: str, name: str) -> list[Sample]:
        found = samples(self, stage, name)
        if name != "calibration":
            return found
        return [replace(s, answer=" ") if i % every == 0 else s for i, s in enumerate(found)]

    patch.setattr(Work, "samples", without)


def test_samples_without_an_answer_are_left_out_and_counted(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank(monkeypatch, 4)
    recipe = smallest("grpo", "iterations=1", "grpo.steps=1")
    done = run(recipe, tmp_path / "run", runs("grpo").run)
    unanswered = list(done.samples)[::4]
    drops = done.read("iter-1/grpo", "drops", Drop)
    assert [(d.sample_id, d.stage, d.reason) for d in drops] == [
        (name, "grpo", "no-answer") for name in unanswered
    ]
    assert done.stats("iter-1/grpo")["drops"] == {"no-answer": 4}
    assert done.stats("iter-1/grpo")["rows"] == 12
    assert not {r.sample_id for r in done.rollouts()} & set(unanswered)
    said = call("trace", done.run, unanswered[0]).output
    assert "left out grpo, no-answer" in said


def test_without_any_answer_grpo_names_the_way_out(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank(monkeypatch, 1)
    with pytest.raises(
        SelfcalError,
        match=r"iter-1/grpo: none of 8 calibration samples has a reference answer.*online_src",
    ):
        run(smallest("grpo", "grpo.steps=1"), tmp_path / "run", runs("grpo").run)


def test_online_src_does_without_any_answer(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does the very same."""
    whole = runs("online-src")
    folder = shutil.copytree(whole.run, tmp_path / "run")
    for t in (1, 2):
        shutil.rmtree(folder / f"iter-{t}")
    blank(monkeypatch, 1)
    done = run(whole.recipe, folder)
    assert done.told.begun == LOOP
    for t in (1, 2):
        assert all(math.isnan(r.correct) for r in done.rollouts(t))
        known = [replace(r, correct=math.nan) for r in whole.rollouts(t)]
        assert repr(done.rollouts(t)) == repr(known)
        stats = done.stats(f"iter-{t}/grpo")
        assert stats["correct"] is None
        assert stats["drops"] == whole.stats(f"iter-{t}/grpo")["drops"]  # the budget's alone


# --- plans and traces -----------------------------------------------------------------------


def test_groups_that_are_too_large_to_rank_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"grpo.group: 10 responses .* set it to 9 or less"):
        plan(smallest("groupwise-grpo", "grpo.group=10", "grpo.batch_size=20"))
    assert plan(smallest("groupwise-grpo", "grpo.group=9", "grpo.batch_size=18"))


UNREAD = (
    "judge.kind=guess", "judge.kind=verifier", "judge.schedule=one_order", "judge.calibrate=once",
    "judge.calibrate=each", "judge.abstain=0.1", "curate.weigh_facts=true", "curate.weak=teacher",
    "curate.weak=widen", "judge.prompt=x",
)  # fmt: skip
"""What a method with a judge of its own does not go by; online SRC goes by kind and prompt."""


@pytest.mark.parametrize("change", UNREAD)
@pytest.mark.parametrize("name", [n for n in METHODS if n != "grpo"])
def test_settings_that_a_method_does_not_go_by_are_refused(name: str, change: str) -> None:
    recipe, key = smallest(name, change), change.partition("=")[0]
    if name == "online-src" and key == "judge.kind":
        assert [s.name for s in plan(recipe)] == [*OPENING, *LOOP]
        return
    if name == "online-src" and key == "judge.prompt":
        assert plan(recipe)
        return
    told = (
        f"recipe {recipe.name}: {key}: method {recipe.method!r} does not go by it; leave it out, "
        "or set it back to its default"
    )
    with pytest.raises(RecipeError, match=f"^{re.escape(told)}$"):
        plan(recipe)


def test_all_settings_that_a_method_does_not_go_by_are_told_at_once() -> None:
    recipe = smallest("consistency-grpo", "judge.abstain=0.1", "curate.weak=widen")
    with pytest.raises(RecipeError, match=r"judge\.abstain, curate\.weak: method"):
        plan(recipe)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("faithful-grpo", "entailed_prompt"),
        ("faithful-grpo", "grounded_prompt"),
        ("consistency-grpo", "entailed_prompt"),
        ("groupwise-grpo", "prompt"),
    ],
)
def test_a_template_that_is_none_is_told_before_anything_is_paid_for(name: str, key: str) -> None:
    with pytest.raises(SelfcalError, match=r"^options.*; write a Jinja2 template over question"):
        plan(smallest(name, f"options.{key}='{{{{ question'"))


@pytest.mark.parametrize("recipe", ["miniworld-{}", "{}-qwen25-vl-7b"])
@pytest.mark.parametrize("name", METHODS)
def test_plans_name_tokens_and_questions(name: str, recipe: str) -> None:
    said = call("plan", ROOT / "recipes" / (recipe.format(name) + ".yaml"), "--gpu", "h100")
    assert said.exit_code == 0, said.output
    cost = " ".join(said.output.split())
    assert re.search(r"Cost of \d+ stages: up to \S+ [MG] generated tokens", cost)
    assert ("comparisons by the judge" in cost) == (name != "grpo")
    assert "iter-3/grpo GRPO on own responses" in cost


@pytest.mark.parametrize("name", METHODS)
def test_plans_are_no_smaller_than_what_was_measured(runs: Runs, name: str) -> None:
    done = runs(name)
    for more in ((), ("budget=null",)):  # the budget only makes it less
        recipe = smallest(name, *more)
        planned = plan(recipe)
        spending = [s.name for s in planned if s.name in ("judge/candidates", *LOOP)]
        stats = [done.stats(s) for s in spending]
        assert count(recipe, planned).tokens >= sum(s["tokens"] for s in stats)
        asking = [s for s in planned if s.name in LOOP]
        measured = sum(done.stats(s)["judgments"] for s in LOOP)
        assert count(recipe, asking).comparisons >= measured


def test_plans_count_whole_batches_however_many_updates_they_get() -> None:
    """Three steps with two updates each begin two batches of 8 x 10 tokens."""
    settings = ("iterations=1", "grpo.updates=2", "grpo.max_new_tokens=10")
    free, bounded = (
        smallest("online-src", *settings, budget) for budget in ("budget=null", "budget=81")
    )
    for recipe in (free, bounded):
        (stage,) = [s for s in plan(recipe) if s.name == "iter-1/grpo"]
        cost = count(recipe, [stage])
        assert cost.tokens >= 2 * 8 * 10
        assert cost.comparisons >= 2 * 2 * 12  # two groups of 4 x 3 ordered pairs in each


def test_a_trace_shows_the_group_and_what_each_response_was_worth(
    runs: Runs, tmp_path: Path
) -> None:
    done = runs("faithful-grpo")
    own, *_ = groups(done.rollouts(2))
    folder = shutil.copytree(done.run, tmp_path / "run")
    (stage,) = [p.folder for p in locate(done.recipe, folder) if p.stage.name == "iter-2/grpo"]
    shard = stage.read_shard("rollouts", 0, Rollout)
    last = shard.index(own[-1])
    shard[last] = replace(own[-1], text=EVIL)
    stage.write_shard("rollouts", 0, shard, Rollout)
    said = call("trace", folder, own[0].sample_id)
    assert said.exit_code == 0, said.output
    text = " ".join(said.output.split())
    assert "iter-2/grpo: 4 responses batch 0, a group of 4 advantage" in text
    assert "iter-1/grpo" not in text  # which had other samples
    for r in own:
        answer = "answer right" if r.correct else "answer wrong"
        signals = f"entailed {r.judged[0]:.3f} · grounded {r.judged[1]:.3f}"
        assert f"reward {r.reward:+.3f} · {answer} · {signals}" in text
    assert r"\x1b[31m[bold]red[/bold]\u202e\x07" in text
    assert not {"\x1b", "\u202e", "\x07"} & set(said.output)
    shown = [float(a) for a in re.findall(r"advantage (\S+)", text)]
    assert shown == sorted(shown, reverse=True)


def test_an_audit_says_what_was_rewarded(runs: Runs, tmp_path: Path) -> None:
    done = runs("faithful-grpo")
    said = call("judge", "audit", done.run, "--json")
    assert said.exit_code == 0, said.output
    found = json.loads(said.output)
    assert found["truth"] == "verifier"
    assert list(found["drift"]) == ["entailed", "grounded"]
    for t in (1, 2):
        own, of = done.rollouts(t), found["iterations"][str(t)]
        assert of["responses"] == len(own)
        assert of["reinforced"]["n"] == sum(r.advantage > 0 for r in own)
        mean = fmean(r.judged[0] for r in own)
        assert of["signals"]["entailed"]["mean"]["value"] == pytest.approx(mean, abs=1e-4)
        samples, labels = done.samples, VerifierLabels()
        true = fmean(labels.grade(samples[r.sample_id], r.text, "entailed") for r in own)
        assert of["signals"]["entailed"]["deserved"]["value"] == pytest.approx(true, abs=1e-4)
    shown = flat(call("judge", "audit", done.run).output)
    assert "What was rewarded, held against MiniWorld's verifier" in shown
    assert "The judge's signal: grounded" in shown
    plain = flat(call("judge", "audit", runs("grpo").run).output)
    assert "signal" not in plain
    refused = call("judge", "audit", done.run, "--labels", tmp_path / "labels.jsonl")
    assert refused.exit_code == 1
    assert "leave --labels out" in flat(refused.output)


# --- the guide's example --------------------------------------------------------------------


def test_the_method_of_the_guide_runs_as_it_stands(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (ROOT / "docs/online.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "selfcal_brevity.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint("brevity", "selfcal_brevity", "selfcal.methods")
    monkeypatch.setattr(methods, "entry_points", lambda group: [entry])
    recipe = smallest("grpo", "method=brevity", "options.weight=0.3", "iterations=1")
    done = run(recipe, tmp_path / "run", runs("grpo").run)
    assert (done.told.reused, done.told.begun) == (OPENING, LOOP[:1])
    for own in groups(done.rollouts()):
        assert signal(own) == [-len(r.text) / 1000 for r in own]
        short = [r.correct * r.judged[0] for r in own]
        rewards = weighed((1, task(own)), (0.3, short))
        assert_worth(own, rewards, normalized(rewards))
    stats = done.stats("iter-1/grpo")
    assert stats["brevity"] == pytest.approx(fmean(r.judged[0] for r in done.rollouts()), abs=1e-4)
    assert (stats["judgments"], stats["learned"]) == (0, {})


# --- killed runs ----------------------------------------------------------------------------


class Killed(BaseException):
    """As good as a kill, for what is on the disk."""


class KilledAt(Told):
    """Kills a run when the first iteration has taken so many steps."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def moves(self, done: int, total: int) -> None:
        if self.begun[-1] == "iter-1/grpo" and done == self.step:
            raise Killed


def test_a_killed_run_goes_on_to_the_same(runs: Runs, tmp_path: Path) -> None:
    """With TRL's checkpoint of its first step, the first batch is kept."""
    whole = runs("faithful-grpo")
    # at one update a batch nothing is clipped: another stage by its settings, not by outcome
    unlike = ("grpo.save_steps=1", "grpo.clip=0.25")
    recipe, folder = smallest("faithful-grpo", *unlike), tmp_path / "run"
    with pytest.raises(Killed):
        run(recipe, folder, whole.run, told=KilledAt(2))
    first = folder / "iter-1/grpo/rollouts-00000.parquet"
    kept = first.stat().st_mtime_ns
    done = run(recipe, folder)
    assert first.stat().st_mtime_ns == kept
    assert done.told.begun == LOOP
    assert done.told.skipped + LOOP == [s.name for s in plan(recipe)]
    assert all(not p.folder.verify() for p in locate(recipe, folder))
    for t in (1, 2):
        assert near(_plain(whole.rollouts(t))) == _plain(done.rollouts(t))
        mine, theirs = (d.stats(f"iter-{t}/grpo") for d in (done, whole))
        for figure in ("tokens", "responses", "judgments", "steps", "learned"):
            assert near(mine[figure]) == theirs[figure]


def _plain(rollouts: Sequence[Rollout]) -> list[list[Any]]:
    return [
        [list(v) if isinstance(v := getattr(r, name), tuple) else v for name in r.__slots__]
        for r in rollouts
    ]
