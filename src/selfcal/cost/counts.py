"""What a run will cost: counts before it, and a rough time while it goes.

Counts follow from the recipe. Times begin as what the shipped models took on two cores, and are
corrected by every stage that was measured: the same kind of stage will take what it took, all
others are scaled by how far the guesses were off so far.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from selfcal.pipeline import plan
from selfcal.policy import SHIPPED
from selfcal.recipe import Recipe
from selfcal.stage import Stage

# seconds on two CPU cores with the shipped models, per row, comparison or path, as measured; of
# stages that came later, by what they took beside the older ones in one run
_SECONDS = {
    "data": 0.0013,
    "teacher": 0.0002,
    "facts": 0.0002,
    "rft": 0.005,
    "sft": 0.005,
    "candidates": 0.0004,
    "guided": 0.0012,
    "labels": 0.0005,
    "grades": 0.0005,
    "train": 0.0038,
    "grader": 0.003,
    "quality": 0.001,
    "grader-quality": 0.001,
    "calibration": 0.001,
    "judgments": 0.0003,
    "pairs": 0.0001,
    "best": 0.0001,
    "taught": 0.001,
    "written": 0.0033,
    "dpo": 0.012,
    "grpo": 0.016,
    "rankings": 0.0005,
    "ranker": 0.01,
    "ranker-quality": 0.003,
    "eval": 0.0025,
    "reward": 0.02,
}
_LIGHT = {"data", "teacher", "facts", "labels", "grades", "rankings", "pairs", "best"}
"""Kinds of stages that load no model."""
_LOADING = 1.5
"""Seconds that a stage with a model takes before its first item."""
_PROVEN = 5.0
"""Seconds that must have been measured before a time for foreign models is told."""


def kind(stage: Stage) -> str:
    """What stages that take alike have in common: `eval`, `candidates`, `dpo`, ..."""
    room, _, last = stage.name.rpartition("/")
    if room in ("eval", "reward"):
        return room
    if last == "candidates" and "reward" in _settings(stage):
        return "guided"
    if last != "pairs":
        return last
    if room.endswith("/taught"):
        return "taught"
    return "pairs" if f"{room}/candidates" in stage.inputs else "written"


def _settings(stage: Stage) -> Mapping[str, Any]:
    return stage.settings if isinstance(stage.settings, Mapping) else {}


def written_of(stage: Stage, what: str) -> int:
    """`responses` or `requests` for each sample of a stage whose pairs are written."""
    return int(_settings(stage).get("writing", {}).get(what, 0))


def shipped(recipe: Recipe) -> bool:
    """Whether all models of a recipe are shipped with selfcal."""
    return all(name.startswith(SHIPPED) for name in models(recipe))


def models(recipe: Recipe) -> list[str]:
    """The models that a recipe loads itself: the policy, a judge and CLIP where they are used."""
    stages = plan(recipe)
    judge = [recipe.judge.model] if _trains_judge(stages) else []
    clip = [recipe.reward.model] if any("reward" in _settings(s) for s in stages) else []
    return [recipe.policy.model, *judge, *clip]


def _trains_judge(stages: Sequence[Stage]) -> bool:
    return any(s.name in ("judge/train", "judge/grader", "judge/ranker") for s in stages)


def wanted_of(recipe: Recipe, stage: Stage) -> int:
    """Candidates that a stage wants, or has, of each sample."""
    by = recipe.curate.widen if "/wider/" in stage.name else 1
    return round(recipe.search.candidates * by)


def guess(recipe: Recipe, stage: Stage) -> float:
    """Seconds that a stage takes with the shipped models on two cores."""
    what, wanted = kind(stage), wanted_of(recipe, stage)
    an_item = {
        "candidates": wanted * recipe.search.branch,
        "guided": wanted * recipe.search.branch,
        "judgments": wanted * (wanted - 1),
        "rft": recipe.rft.batch_size if recipe.rft else 0,
        "sft": recipe.dpo.batch_size,
        "dpo": recipe.dpo.batch_size,
        "grpo": recipe.grpo.batch_size / recipe.grpo.updates,
        "ranker": recipe.judge.train.batch_size,
        "train": recipe.judge.train.batch_size,
        "grader": recipe.judge.train.batch_size,
        "written": 1 + 2 * written_of(stage, "responses"),
    }.get(what, 1)
    loading = 0.0 if what in _LIGHT else _LOADING
    return loading + stage.size * an_item * _SECONDS.get(what, 0.01)


@dataclass
class Pace:
    """How fast the stages of a run are, as far as it is known."""

    recipe: Recipe
    took: dict[str, float] = field(default_factory=dict)
    """Seconds measured, by kind of stage."""
    guessed: dict[str, float] = field(default_factory=dict)
    """Seconds that were guessed for the same stages."""

    def note(self, stage: Stage, seconds: float) -> None:
        """Take in that a stage took so long."""
        what = kind(stage)
        self.took[what] = self.took.get(what, 0.0) + seconds
        self.guessed[what] = self.guessed.get(what, 0.0) + guess(self.recipe, stage)

    def seconds(self, stage: Stage) -> float | None:
        """Seconds that a whole stage will take, or None while nothing speaks for any number."""
        what, expected = kind(stage), guess(self.recipe, stage)
        if what in self.took:
            return expected * self.took[what] / self.guessed[what]
        measured = sum(self.took.values())
        if measured >= _PROVEN:
            return expected * measured / sum(self.guessed.values())
        return expected if self._shipped else None

    @cached_property
    def _shipped(self) -> bool:
        return shipped(self.recipe)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run counts up to; tokens, rows and requests are upper bounds."""

    tokens: int
    """That models of the run generate and that count."""
    comparisons: int
    steps: int
    dpo_rows: int
    requests: int
    """Requests to the recipe's servers."""


def count(recipe: Recipe, stages: Sequence[Stage]) -> Cost:
    """The cost of these stages of a recipe."""
    judged = _trains_judge(plan(recipe))
    rows = {s.name.partition("/")[0]: s.size for s in stages if s.name.endswith("/pairs")}
    return Cost(
        tokens=_tokens(recipe, stages),
        comparisons=sum(items_of(recipe, s) * comparisons_of(recipe, s) for s in stages)
        if judged
        else 0,
        steps=sum(s.size for s in stages if s.unit == "steps"),
        dpo_rows=sum(rows.values()),  # a second try is for samples that got no pair
        requests=sum(_asking(s) * requests_of(recipe, s) for s in stages),
    )


def _tokens(recipe: Recipe, stages: Sequence[Stage]) -> int:
    """Tokens that stages generate at most; those of one iteration share its budget."""
    spending: dict[str, list[Stage]] = defaultdict(list)
    for s in stages:
        limited = budget_of(s) is not None
        spending[s.name.partition("/")[0] if limited else s.name].append(s)
    total = 0
    for own in spending.values():
        items = [_tokens_of_item(recipe, s) for s in own]
        every = sum(items_of(recipe, s) * n for s, n in zip(own, items, strict=True))
        limit = budget_of(own[0])
        # the sample, or batch, that spends the last of it is done in full
        total += every if limit is None else min(every, limit - 1 + max(items))
    return total


def budget_of(stage: Stage) -> int | None:
    """Tokens that a stage may generate, with the others of its iteration; None: no limit."""
    found = _settings(stage).get("budget")
    return found if isinstance(found, int) else None


def _tokens_of_item(recipe: Recipe, stage: Stage) -> int:
    path = recipe.search.max_sentences * recipe.search.sentence_tokens
    tree = wanted_of(recipe, stage) * recipe.search.branch * path
    greedy = recipe.evaluate.max_new_tokens
    return {
        "candidates": tree,
        "guided": tree,
        "reward": path,
        "eval": greedy,
        "grpo": recipe.grpo.batch_size * recipe.grpo.max_new_tokens,
        "written": written_of(stage, "responses") * greedy,
    }.get(kind(stage), 0)


def items_of(recipe: Recipe, stage: Stage) -> int:
    """Items that tokens and comparisons of a stage are counted by: samples, pairs, or batches."""
    if kind(stage) == "grpo":
        return -(-stage.size // recipe.grpo.updates)
    return stage.size


def comparisons_of(recipe: Recipe, stage: Stage) -> int:
    """Comparisons by a trained judge for each item of a stage."""
    n, settings = wanted_of(recipe, stage), recipe.judge
    of_labels = {"pairs": 2, "responses": 1}.get(stage.unit, 2 * settings.pairs_per_sample)
    asks = _settings(stage).get("asks", 0)
    return {
        "judgments": n * (n - 1) // (2 if settings.schedule == "one_order" else 1),
        "quality": of_labels,
        "grader-quality": of_labels,
        "calibration": of_labels,
        "ranker-quality": of_labels,
        "grpo": asks * recipe.grpo.batch_size // recipe.grpo.group,
        "taught": 2,
    }.get(kind(stage), 0)


def requests_of(recipe: Recipe, stage: Stage) -> int:
    """Requests to a server for each item of a stage."""
    of_teacher = {
        "teacher": 1, "facts": 1, "taught": 1, "written": written_of(stage, "requests")
    }  # fmt: skip
    of_labels = {"labels": recipe.judge.pairs_per_sample}
    aspects = _settings(stage).get("aspects")
    of_labels["grades"] = (
        len(aspects) * recipe.search.candidates
        if aspects
        else min(2 * recipe.judge.pairs_per_sample, recipe.search.candidates)
    )
    of_labels["rankings"] = 1
    of_labels["calibration"] = recipe.judge.pairs_per_sample if stage.unit == "samples" else 0
    what = kind(stage)
    teacher = of_teacher.get(what, 0) if recipe.teacher.kind == "endpoint" else 0
    labels = of_labels.get(what, 0) if recipe.judge.labels.kind == "endpoint" else 0
    return teacher + labels + _judged(recipe, stage) + _marked(recipe, stage)


def _asking(stage: Stage) -> int:
    """Items of a stage that requests are sent for: responses that are followed are not marked."""
    return stage.size - int(_settings(stage).get("followed", 0))


def _judged(recipe: Recipe, stage: Stage) -> int:
    """Requests to a served judge: votes, if the server gives no log-probabilities."""
    if recipe.judge.endpoint is None:
        return 0
    return comparisons_of(recipe, stage) * recipe.judge.endpoint.votes


def _marked(recipe: Recipe, stage: Stage) -> int:
    """Requests to a served marker: each response is marked twice."""
    marker = recipe.evaluate.marker
    marks = marker is not None and marker.kind == "endpoint" and not recipe.data.miniworld
    return 2 if marks and kind(stage) == "eval" else 0
