"""Stages 3 and 4 of SRC: the R-Scorer, its judgments, and preference pairs out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from selfcal.curate import AGGREGATORS, curate
from selfcal.methods.parts.base import (
    SERVER,
    by_sample,
    calibration_size,
    part_of,
    steps,
    training_run,
    training_stats,
)
from selfcal.methods.parts.search import search_samples, search_settings
from selfcal.recipe import Recipe
from selfcal.stage import Shards, Stage, Work, count_drops
from selfcal.store import JSON
from selfcal.types import Candidate, Drop, Judgment, LabelledPair, PreferencePair, Sample

if TYPE_CHECKING:
    from selfcal.judge.scorer import Judge

_SHARD = 32


def r_scorer(recipe: Recipe) -> list[Stage]:
    """Candidates of training samples, their labels, the training, the quality report."""
    if recipe.judge.kind != "rscorer":
        return []
    return [_candidates(recipe), _labels(recipe), _training(recipe), _quality(recipe)]


def _candidates(recipe: Recipe) -> Stage:
    n = min(recipe.judge.samples, recipe.data.rft)

    def run(work: Work) -> Mapping[str, JSON]:
        return search_samples(recipe, work, "rft", work.samples("data", "rft")[:n])

    return Stage(
        "judge/candidates", ("data", "rft"), search_settings(recipe) | {"samples": n}, run,
        n, "samples", "candidates of training samples",
    )  # fmt: skip


def _labels(recipe: Recipe) -> Stage:
    settings = recipe.judge

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.chat import ChatClient
        from selfcal.judge.labels import ChatLabels, VerifierLabels
        from selfcal.judge.training import balance, held_out, label_pairs

        chat = settings.labels.kind == "endpoint"
        server = settings.labels.endpoint.model_dump()
        who: Any = ChatLabels(ChatClient(**server)) if chat else VerifierLabels()
        own = by_sample(work.read("judge/candidates", "candidates", Candidate))
        samples = [s for s in work.samples("data", "rft") if s.id in own]

        def ask(part: Sequence[Sample]) -> Shards:
            pairs, drops = label_pairs(who, part, own, settings.pairs_per_sample, work.rng_key())
            return {"labelled": (LabelledPair, pairs), "drops": (Drop, drops)}

        work.map(samples, _SHARD, ask)
        train, test = held_out(work.folder.read("labelled", LabelledPair), settings.holdout)
        balanced = balance(train, work.rng_key())
        work.write("train", balanced, LabelledPair)
        work.write("heldout", test, LabelledPair)
        drops = count_drops(work.folder.read("drops", Drop))
        return {"train": len(balanced), "heldout": len(test), "drops": drops}

    depends = {k: getattr(settings, k) for k in ("pairs_per_sample", "holdout")}
    depends |= settings.labels.model_dump(exclude=SERVER)
    return Stage(
        "judge/labels", ("data", "judge/candidates"), depends, run,
        min(settings.samples, recipe.data.rft), "samples", "label-giving judgments",
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
        run, steps(settings.train, rows), "steps", "R-Scorer training",
    )  # fmt: skip


def _quality(recipe: Recipe) -> Stage:
    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.judge.quality import assess

        pairs = work.read("judge/labels", "heldout", LabelledPair)
        return assess(_load_judge(recipe, work), pairs)

    n = max(1, round(_pairs(recipe) * recipe.judge.holdout))
    return Stage(
        "judge/quality", ("judge/labels", "judge/train"), _reading(recipe), run,
        n, "pairs", "R-Scorer against held-out labels",
    )  # fmt: skip


def _pairs(recipe: Recipe) -> int:
    return min(recipe.judge.samples, recipe.data.rft) * recipe.judge.pairs_per_sample


def _reading(recipe: Recipe) -> dict[str, Any]:
    return {"prompt": recipe.judge.prompt, "min_mass": recipe.judge.min_mass}


def judgments(recipe: Recipe, t: int) -> Stage:
    """All pairs of candidates in both orders."""
    settings = recipe.judge
    inputs: tuple[str, ...] = ("data", f"iter-{t}/candidates")
    if settings.kind == "rscorer":
        inputs += ("judge/train",)

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.judge.scorer import all_comparisons

        own = by_sample(work.read(f"iter-{t}/candidates", "candidates", Candidate))
        samples = [s for s in work.samples("data", "calibration") if s.id in own]
        judge = cache(lambda: _load_judge(recipe, work))

        def score(part: Sequence[Sample]) -> Shards:
            asked = [c for s in part for c in all_comparisons(s, own[s.id])]
            return {"judgments": (Judgment, judge().judge(asked))}

        work.map(samples, _SHARD, score)
        made = work.folder.read("judgments", Judgment)
        return {"judgments": len(made), "unscored": sum(g.verdict is None for g in made)}

    n = calibration_size(recipe)
    return Stage(
        f"iter-{t}/judgments", inputs,
        {"kind": settings.kind} | _reading(recipe),
        run, n, "samples", "pairwise scoring",
    )  # fmt: skip


def _load_judge(recipe: Recipe, work: Work) -> Judge:
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


def pairs(recipe: Recipe, t: int) -> Stage:
    """Aggregate the judgments into one preference pair a sample."""

    def run(work: Work) -> Mapping[str, JSON]:
        made, drops = curate(
            work.read(f"iter-{t}/candidates", "candidates", Candidate),
            work.read(f"iter-{t}/judgments", "judgments", Judgment),
            AGGREGATORS[recipe.curate.aggregator],
            recipe.curate.margin,
        )
        work.write("pairs", made, PreferencePair)
        work.write("drops", drops, Drop)
        margin = sum(p.margin for p in made) / max(1, len(made))
        return {"pairs": len(made), "drops": count_drops(drops), "mean_margin": round(margin, 4)}

    n = calibration_size(recipe)
    inputs = (f"iter-{t}/candidates", f"iter-{t}/judgments")
    about = "confidence-weighted curation"
    return Stage(f"iter-{t}/pairs", inputs, part_of(recipe, "curate"), run, n, "samples", about)
