"""Online methods: in place of search, scoring and DPO, one stage that samples and learns at once.

A method says what responses are worth by two things: a `Rater`, which asks the judge about groups
of responses, and an `Estimator`, which makes rewards and advantages of all that is known of a
batch. Everything else is the same for all of them: prompts, sampling, the task reward, records.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from typing import TYPE_CHECKING, Any, Protocol

from selfcal.errors import SelfcalError
from selfcal.methods.parts.base import (
    calibration_samples,
    calibration_size,
    form_of,
    formed,
    given,
    outcome_of,
    reads,
    spread,
    training_run,
    training_stats,
    weights,
)
from selfcal.methods.parts.budget import dropped, share
from selfcal.methods.parts.facts import insist_on_facts
from selfcal.methods.parts.loop import loop
from selfcal.rationale import RapFormat, answers_agree
from selfcal.recipe import Recipe, RecipeError
from selfcal.stage import Stage, Work
from selfcal.store import JSON
from selfcal.types import Drop, Rollout, Sample

if TYPE_CHECKING:
    from selfcal.advantage import Groups
    from selfcal.train import Graded, Group


class Rater(Protocol):
    """Who asks the judge about groups of responses."""

    def cost(self, groups: Sequence[Group], correct: Sequence[Sequence[float]]) -> int:
        """How often `rate` asks the judge: comparisons, grades or rankings."""
        ...

    def rate(
        self, groups: Sequence[Group], correct: Sequence[Sequence[float]]
    ) -> list[list[tuple[float, ...]]]:
        """The signals of each response of each group; NaN where there is none.

        `correct` says of each response whether its answer is right (1), wrong (0) or unknown (NaN).
        """
        ...


@dataclass(frozen=True)
class Batch:
    """All that is known of a batch of responses; arrays are (prompts, responses)."""

    task: Groups
    """Answer correctness plus the weighted format; NaN where the answer is unknown."""
    correct: Groups
    form: Groups
    """The weighted format alone."""
    signals: Mapping[str, Groups]
    """What the judge gave, by name."""


class Estimator(Protocol):
    """What makes rewards and advantages of a batch; it may learn from batch to batch."""

    def estimate(self, batch: Batch) -> tuple[Groups, Groups]:
        """Rewards and advantages, of the batch's shape; a group's mean advantage is taken off."""
        ...

    @property
    def figures(self) -> Mapping[str, float]:
        """What it has learned so far, by name; nothing unless it says otherwise."""
        return {}


@dataclass(frozen=True)
class Online:
    """An online method."""

    signals: tuple[str, ...]
    """Names of what its rater gives."""
    estimator: Callable[[Mapping[str, float]], Estimator]
    """Makes the estimator, given the figures that the last iteration ended with."""
    rater: Callable[[Work], Rater] | None = None
    inputs: tuple[str, ...] = ()
    """Stages that the rater is loaded from."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What rater and estimator depend on beside those."""
    asks: Callable[[int], int] = lambda size: 0
    """How often the rater asks the judge at most about a group of that size."""
    needs_answers: bool = True
    """Whether samples without a reference answer teach nothing."""
    by_facts: bool = False
    """Whether its rater goes by what is to be seen, which a text judge has from facts alone."""
    source: str = "data"
    """Stage that has the samples; `online_loop` names that with facts, where there is one."""


def online_loop(recipe: Recipe, method: Online, before: Sequence[Stage] = ()) -> list[Stage]:
    """The stages of an online method; `before`: those that train its judge."""
    if any(stage.name == "facts" for stage in before):
        method = replace(method, source="facts")

    def iteration(t: int, start: str | None) -> list[Stage]:
        return [online_tuning(recipe, t, start, method)]

    return loop(recipe, iteration, before, trained="grpo")


def online_tuning(recipe: Recipe, t: int, start: str | None, method: Online) -> Stage:
    """GRPO on calibration samples from the policy of stage `start`; merged. It is `iter-t/grpo`."""

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.train import Ledger, grpo

        learned = work.inputs[f"iter-{t - 1}/grpo"].manifest()["stats"]["learned"] if t > 1 else {}
        rater = method.rater(work) if method.rater else None
        grading = _Grading(recipe, method.signals, rater, method.estimator(learned))
        ledger = Ledger(work.folder, share(recipe), work.saved)
        samples = calibration_samples(recipe, work, t, method.source)
        if method.by_facts:
            insist_on_facts(recipe, work.stage.name, samples)
        usable, unanswered = _usable(recipe, work, method, samples)
        model = weights(recipe, work, start)
        trained = grpo(model, usable, recipe.grpo, grading, ledger, training_run(recipe, work))
        figures, reached = _figures(work, method.signals)
        left = [s for s in usable if ledger.over and s.id not in reached]
        out = {d.sample_id for d in trained.drops}
        unreached = [dropped(s, "grpo") for s in left if s.id not in out]
        trained = replace(trained, drops=(*unanswered, *trained.drops, *unreached))
        return {
            **training_stats(work, trained),
            **figures,
            "tokens": ledger.spent,
            "judgments": grading.asked,
            "learned": dict(grading.figures),
        }

    _refuse_ranks(recipe)
    n = calibration_size(recipe)
    depends = {
        "method": recipe.method,
        "training": outcome_of(recipe.grpo),
        "budget": share(recipe),
        "part": None if recipe.data.repeat else (t, recipe.iterations),
        "signals": method.signals,
        "asks": method.asks(recipe.grpo.group),
        **method.settings,
        **given(recipe, start),
        **formed(recipe),
    }
    steps = recipe.grpo.steps_for(n * recipe.grpo.group * recipe.grpo.updates)
    inputs = (method.source, *reads(start), *method.inputs)
    return Stage(
        f"iter-{t}/grpo", inputs, depends, run, steps, "steps", "GRPO on own responses",
        spread(recipe, "grpo", recipe.grpo),
    )  # fmt: skip


def _refuse_ranks(recipe: Recipe) -> None:
    if recipe.executor.ranks > 1:
        raise RecipeError(
            f"recipe {recipe.name}: executor.ranks: method {recipe.method!r} trains in one process "
            "(GRPO): its rewards weigh a whole batch at once, and each process would sample "
            "responses by random numbers of its own, so that what is learned hung on how many "
            "there are; set it to 1"
        )


def refuse_unread(recipe: Recipe, compares: bool = False) -> None:
    """Refuse settings of judge and curation that an online method does not go by.

    `compares`: its judge is SRC's, of any kind and with its prompt; others train their own.

    Raises:
        RecipeError: there are some.
    """
    j, c = recipe.judge, recipe.curate
    unread = {
        "judge.kind": j.kind != "rscorer" and not compares,
        "judge.prompt": j.prompt is not None and not compares,
        "judge.schedule": j.schedule != "full",
        "judge.calibrate": j.calibrate != "never",
        "judge.abstain": j.abstain > 0,
        "curate.weigh_facts": c.weigh_facts,
        "curate.weak": c.weak != "drop",
    }
    if found := [name for name, given in unread.items() if given]:
        raise RecipeError(
            f"recipe {recipe.name}: {', '.join(found)}: method {recipe.method!r} does not go by "
            "it; leave it out, or set it back to its default"
        )


def signals_of(stage: Stage) -> tuple[str, ...]:
    """Names of what the judge gave, in the order of `Rollout.judged`."""
    settings = stage.settings if isinstance(stage.settings, Mapping) else {}
    return tuple(settings.get("signals", ()))


def _usable(
    recipe: Recipe, work: Work, method: Online, samples: Sequence[Sample]
) -> tuple[list[Sample], list[Drop]]:
    """The samples that can teach the method something, and a drop for each other one.

    Raises:
        SelfcalError: there are none.
    """
    teaches = [bool(s.answer.strip()) or not method.needs_answers for s in samples]
    usable = [s for s, able in zip(samples, teaches, strict=True) if able]
    if not usable:
        raise SelfcalError(
            f"{work.stage.name}: none of {len(samples)} calibration samples has a reference "
            f"answer, and {recipe.method} is rewarded by answers; give samples with answers, "
            "or take a method without, such as src or online_src"
        )
    others = (s for s, able in zip(samples, teaches, strict=True) if not able)
    return usable, [Drop(s.id, "grpo", "no-answer") for s in others]


def _figures(work: Work, signals: Sequence[str]) -> tuple[dict[str, JSON], set[str]]:
    """Means over all responses, where known, of answers, form and signals; and whose they are."""
    from selfcal.train.online import ROLLOUTS

    n, sums, known = 0, defaultdict[str, float](float), Counter[str]()
    reached: set[str] = set()
    for r in work.folder.records(ROLLOUTS, Rollout):
        n += 1
        reached.add(r.sample_id)
        judged = zip(signals, r.judged, strict=True)
        for name, value in (("correct", r.correct), ("compliant", float(r.compliant)), *judged):
            if not isnan(value):
                sums[name] += value
                known[name] += 1
    names = ("correct", "compliant", *signals)
    means = {k: round(sums[k] / known[k], 4) if known[k] else None for k in names}
    return {"responses": n, **means}, reached


class _Grading:
    """The judge's signals and the task reward of responses, and an estimator's view of them."""

    def __init__(
        self, recipe: Recipe, signals: Sequence[str], rater: Rater | None, estimator: Estimator
    ) -> None:
        self._format_weight, self._form = recipe.grpo.format_weight, form_of(recipe)
        self._signals, self._rater, self._estimator = signals, rater, estimator
        self.asked = 0

    @property
    def figures(self) -> Mapping[str, float]:
        return self._estimator.figures

    def judge(self, groups: Sequence[Group]) -> list[list[tuple[float, ...]]]:
        if self._rater is None:
            return [[() for _ in g.texts] for g in groups]
        return self._rater.rate(groups, [_correct(g, self._form) for g in groups])

    def weigh(
        self, groups: Sequence[Group], judged: Sequence[Sequence[tuple[float, ...]]]
    ) -> list[list[Graded]]:
        import numpy as np

        from selfcal.train import Graded

        read, correct = self._form.parse, np.array([_correct(g, self._form) for g in groups])
        compliant = np.array([[read(text).compliant for text in g.texts] for g in groups])
        form = self._format_weight * compliant
        if self._rater is not None:
            self.asked += self._rater.cost(groups, correct.tolist())
        signals = {
            name: np.array([[response[k] for response in own] for own in judged])
            for k, name in enumerate(self._signals)
        }
        batch = Batch(correct + form, correct, form, signals)
        rewards, advantages = self._estimator.estimate(batch)
        advantages = advantages - advantages.mean(axis=1, keepdims=True)  # as TRL will
        return [
            [
                Graded(
                    float(correct[p, i]), bool(compliant[p, i]), own[i],
                    float(rewards[p, i]), float(advantages[p, i]),
                )
                for i in range(len(own))
            ]
            for p, own in enumerate(judged)
        ]  # fmt: skip


def _correct(group: Group, form: RapFormat) -> list[float]:
    """Whether each answer is right; NaN without a reference answer."""
    sample = group.sample
    if not sample.answer.strip():
        return [float("nan") for _ in group.texts]
    answers = (form.parse(text).answer for text in group.texts)
    return [float(answers_agree(a, sample.answer, sample.choices)) for a in answers]
