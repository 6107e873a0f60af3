"""Stages 3 and 4 of SRC: the R-Scorer, its judgments, and preference pairs out of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from selfcal.curate import AGGREGATORS, curate, merge_orders
from selfcal.methods.parts.base import (
    SERVER,
    BySample,
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
    from selfcal.adaptive import Schedule
    from selfcal.judge.scorer import Judge

_SHARD = 64


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
    """Pairs of candidates in both orders: all of them, or those that can still matter."""
    settings = recipe.judge
    adaptive = settings.schedule == "adaptive"
    inputs: tuple[str, ...] = ("data", f"iter-{t}/candidates")
    if settings.kind == "rscorer":
        inputs += ("judge/train",)

    def run(work: Work) -> Mapping[str, JSON]:
        ids = {c.sample_id for c in work.records(f"iter-{t}/candidates", "candidates", Candidate)}
        samples = [s for s in work.samples("data", "calibration") if s.id in ids]
        candidates = work.records(f"iter-{t}/candidates", "candidates", Candidate)
        found = BySample((s.id for s in samples), candidates)
        judge = cache(lambda: _load_judge(recipe, work))

        def score(part: Sequence[Sample]) -> Shards:
            asks = [(s, found.of(s.id)) for s in part]
            return {"judgments": (Judgment, _ask(recipe, judge(), asks))}

        work.map(samples, _SHARD, score)
        return _judgment_figures(work, f"iter-{t}/candidates")

    n = calibration_size(recipe)
    depends = {"kind": settings.kind} | _reading(recipe)
    if adaptive:
        depends |= {"schedule": "adaptive"} | part_of(recipe, "curate")
    return Stage(
        f"iter-{t}/judgments", inputs, depends, run, n, "samples", "pairwise scoring"
    )  # fmt: skip


def _ask(
    recipe: Recipe, judge: Judge, asks: Sequence[tuple[Sample, list[Candidate]]]
) -> list[Judgment]:
    from selfcal.adaptive import compare
    from selfcal.judge.scorer import all_comparisons

    if recipe.judge.schedule == "full":
        return judge.judge([c for sample, own in asks for c in all_comparisons(sample, own)])
    return compare(judge, asks, schedule(recipe))


def schedule(recipe: Recipe) -> Schedule:
    """The adaptive schedule under a recipe's rule of curation."""
    from selfcal.adaptive import Schedule

    aggregate, rule = AGGREGATORS[recipe.curate.aggregator], recipe.curate
    return Schedule(lambda g: aggregate(merge_orders(g)), rule.margin, rule.tie)


def _judgment_figures(work: Work, searched: str) -> dict[str, JSON]:
    asked = unscored = 0
    for g in work.folder.records("judgments", Judgment):
        asked += 1
        unscored += g.verdict is None
    sizes = Counter(c.sample_id for c in work.records(searched, "candidates", Candidate))
    every = sum(n * (n - 1) for n in sizes.values())
    share = round(asked / max(1, every), 4)
    return {"judgments": asked, "unscored": unscored, "share_of_all": share}


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


def curate_sample(
    recipe: Recipe, own: Sequence[Candidate], asked: Sequence[Judgment]
) -> tuple[list[PreferencePair], list[Drop]]:
    """The preference pair of one sample, or why there is none."""
    judged = [*asked, *unasked(recipe, own, asked)]
    rule = recipe.curate
    return curate(own, judged, AGGREGATORS[rule.aggregator], rule.margin, rule.tie)


def unasked(recipe: Recipe, own: Sequence[Candidate], asked: Sequence[Judgment]) -> list[Judgment]:
    """What the comparisons that were not asked would most plausibly have said."""
    if recipe.judge.schedule == "full":
        return []
    from selfcal.adaptive import imputed

    return imputed(own, asked)


def pairs(recipe: Recipe, t: int) -> Stage:
    """Aggregate the judgments into one preference pair a sample."""

    def run(work: Work) -> Mapping[str, JSON]:
        made: list[PreferencePair] = []
        drops: list[Drop] = []
        searched = f"iter-{t}/candidates"
        ids = (c.sample_id for c in work.records(searched, "candidates", Candidate))
        given = work.records(f"iter-{t}/judgments", "judgments", Judgment)
        judged = BySample(dict.fromkeys(ids), given)
        found = work.records(searched, "candidates", Candidate)
        for sample_id, own in groupby(found, key=lambda c: c.sample_id):
            pair, dropped = curate_sample(recipe, list(own), judged.of(sample_id))
            made += pair
            drops += dropped
        work.write("pairs", made, PreferencePair)
        work.write("drops", drops, Drop)
        margin = sum(p.margin for p in made) / max(1, len(made))
        return {"pairs": len(made), "drops": count_drops(drops), "mean_margin": round(margin, 4)}

    n = calibration_size(recipe)
    inputs = (f"iter-{t}/candidates", f"iter-{t}/judgments")
    about = "confidence-weighted curation"
    depends = part_of(recipe, "curate") | {"schedule": recipe.judge.schedule}
    return Stage(f"iter-{t}/pairs", inputs, depends, run, n, "samples", about)
