"""Stage 3 of SRC: the R-Scorer, from candidates of training samples to its quality report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfcal.methods.parts.base import (
    REACHING,
    by_sample,
    chat_client,
    given,
    reads,
    start_of,
    training_run,
    training_stats,
)
from selfcal.methods.parts.search import search_samples, search_settings
from selfcal.recipe import Recipe, RecipeError
from selfcal.stage import Shards, Stage, Work, count_drops
from selfcal.store import JSON
from selfcal.types import Candidate, Drop, LabelledPair, Sample

if TYPE_CHECKING:
    from selfcal.judge.labels import LabelGiver
    from selfcal.judge.scorer import Judge

_SHARD = 64


@dataclass(frozen=True)
class Judging:
    """A judge that stages can take up."""

    inputs: tuple[str, ...]
    """Stages that it is loaded from."""
    settings: Mapping[str, Any]
    """What its verdicts depend on beside those."""
    load: Callable[[Work], Judge]


def judging(recipe: Recipe) -> Judging:
    """The judge that a recipe names."""
    settings = recipe.judge
    depends = {"kind": settings.kind, "prompt": settings.prompt, "min_mass": settings.min_mass}
    inputs = ("judge/train",) if settings.kind == "rscorer" else ()
    return Judging(inputs, depends, lambda work: _load(recipe, work))


def _load(recipe: Recipe, work: Work) -> Judge:
    settings = recipe.judge
    if settings.kind == "guess":
        from selfcal.judge.controls import GuessingJudge

        return GuessingJudge(work.rng_key())
    if settings.kind == "verifier":
        from selfcal.judge.controls import VerifyingJudge

        return VerifyingJudge()
    from selfcal.judge.scorer import RScorer

    return RScorer(
        work.checkpoint("judge/train"), settings.prompt, settings.batch_size, settings.min_mass,
        recipe.policy.dtype, recipe.policy.device,
    )  # fmt: skip


def r_scorer(recipe: Recipe) -> list[Stage]:
    """Candidates of training samples, their labels, the training, the quality report."""
    if recipe.judge.kind != "rscorer":
        return []
    stages = [*labelled(recipe), _training(recipe), quality(recipe, judging(recipe))]
    return [*stages, _calibration(recipe)] if recipe.judge.calibrate == "once" else stages


def labelled(recipe: Recipe) -> list[Stage]:
    """Candidates of training samples, and labelled pairs of them."""
    return [candidates_of_training(recipe), _labels(recipe)]


def label_giver(recipe: Recipe) -> LabelGiver:
    """Who gives the training verdicts."""
    from selfcal.judge.labels import ChatLabels, VerifierLabels

    labels = recipe.judge.labels
    if labels.kind == "endpoint":
        return ChatLabels(chat_client(labels))
    return VerifierLabels()


def labels_at_once(recipe: Recipe) -> int:
    """How many requests the label-giving judge gets at the same time."""
    labels = recipe.judge.labels
    return labels.concurrency if labels.kind == "endpoint" else 1


def trained_on(recipe: Recipe) -> int:
    """Training samples whose candidates are labelled."""
    return min(recipe.judge.samples, recipe.data.rft)


def candidates_of_training(recipe: Recipe) -> Stage:
    """Candidates of training samples, by the policy that the first iteration starts from."""
    n, start = trained_on(recipe), start_of(recipe, 1)
    if not n:
        raise RecipeError(
            f"recipe {recipe.name}: the judge is trained on the samples of `rft`, and there are "
            "none (data.rft is 0); give some, or take a method without a judge"
        )

    def run(work: Work) -> Mapping[str, JSON]:
        return search_samples(recipe, work, start, work.samples("data", "rft")[:n])

    depends = search_settings(recipe) | given(recipe, start) | {"samples": n}
    return Stage(
        "judge/candidates", ("data", *reads(start)), depends, run,
        n, "samples", "candidates of training samples",
    )  # fmt: skip


def _labels(recipe: Recipe) -> Stage:
    settings = recipe.judge

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.judge.training import balance, held_out, label_pairs

        who = label_giver(recipe)
        own = by_sample(work.read("judge/candidates", "candidates", Candidate))
        samples = [s for s in work.samples("data", "rft") if s.id in own]

        def ask(part: Sequence[Sample]) -> Shards:
            n, key = settings.pairs_per_sample, work.rng_key()
            pairs, drops = label_pairs(who, part, own, n, key, labels_at_once(recipe))
            return {"labelled": (LabelledPair, pairs), "drops": (Drop, drops)}

        work.map(samples, _SHARD, ask)
        train, test = held_out(work.folder.read("labelled", LabelledPair), settings.holdout)
        balanced = balance(train, work.rng_key())
        work.write("train", balanced, LabelledPair)
        work.write("heldout", test, LabelledPair)
        drops = count_drops(work.folder.read("drops", Drop))
        return {"train": len(balanced), "heldout": len(test), "drops": drops}

    depends = {k: getattr(settings, k) for k in ("pairs_per_sample", "holdout")}
    depends |= settings.labels.model_dump(exclude=REACHING)
    return Stage(
        "judge/labels", ("data", "judge/candidates"), depends, run,
        trained_on(recipe), "samples", "label-giving judgments",
    )  # fmt: skip


def _training(recipe: Recipe) -> Stage:
    settings = recipe.judge

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.train import train_judge

        pairs = work.read("judge/labels", "train", LabelledPair)
        to = training_run(recipe, work)
        return training_stats(
            work, train_judge(settings.model, pairs, settings.train, settings.prompt, to)
        )

    rows = round(2 * _pairs(recipe) * (1 - settings.holdout))  # balancing leaves fewer
    return Stage(
        "judge/train", ("judge/labels",),
        {"model": settings.model, "digest": settings.digest}
        | {"prompt": settings.prompt, "train": settings.train},
        run, settings.train.steps_for(rows), "steps", "R-Scorer training",
    )  # fmt: skip


def quality(recipe: Recipe, judge: Judging, name: str = "judge/quality") -> Stage:
    """A judge against held-out labels."""
    from selfcal.judge.quality import assess

    return _held_out(recipe, judge, name, assess, "the judge against held-out labels")


def _calibration(recipe: Recipe) -> Stage:
    about = "calibration of the verdicts"
    return _held_out(recipe, judging(recipe), "judge/calibration", learned_figures, about)


def _held_out(
    recipe: Recipe,
    judge: Judging,
    name: str,
    figures: Callable[[Judge, Sequence[LabelledPair]], Mapping[str, JSON]],
    about: str,
) -> Stage:
    """Figures of a judge on labelled pairs that it was not trained on."""

    def run(work: Work) -> Mapping[str, JSON]:
        return figures(judge.load(work), work.read("judge/labels", "heldout", LabelledPair))

    n = max(1, round(_pairs(recipe) * recipe.judge.holdout))
    inputs = ("judge/labels", *judge.inputs)
    return Stage(name, inputs, judge.settings, run, n, "pairs", about)


def learned_figures(judge: Judge, pairs: Sequence[LabelledPair]) -> dict[str, JSON]:
    """The correction that labelled pairs teach, and what it brings, for a manifest."""
    from selfcal.judge.calibration import learn

    found = learn(judge, pairs)
    before = {f"{name}_before": value for name, value in found.before.items()}
    return {"calibration": found.calibration.to_json(), **found.after, **before}


def _pairs(recipe: Recipe) -> int:
    return trained_on(recipe) * recipe.judge.pairs_per_sample
