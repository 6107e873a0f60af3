"""Stage 3 of SRC: the R-Scorer, from candidates of training samples to its quality report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcal.methods.parts.asked import asked, at_once, prompts_of, said_by
from selfcal.methods.parts.base import (
    REACHING,
    by_sample,
    by_workers,
    chat_client,
    form_of,
    given,
    outcome_of,
    reads,
    searches,
    spent,
    spread,
    start_of,
    trained_on,
    training_run,
    training_stats,
)
from selfcal.methods.parts.facts import facts, insist_on_facts, told
from selfcal.methods.parts.search import search_samples, search_settings
from selfcal.recipe import FileLabels, Recipe, RecipeError
from selfcal.stage import Shards, Stage, Work, count_drops
from selfcal.store import JSON
from selfcal.types import Candidate, Drop, LabelledPair, Readings, Sample, Way

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
    served: bool = False
    """Whether it is a model behind a server, which says how it was read."""

    @property
    def loads(self) -> bool:
        """Whether it is a model in the process that asks it."""
        return bool(self.inputs)


def judging(recipe: Recipe) -> Judging:
    """The judge that a recipe names.

    Raises:
        RecipeError: the recipe wants of it what such a judge has not.
    """
    settings = recipe.judge
    depends: dict[str, Any] = {
        "kind": settings.kind, "prompt": settings.prompt, "min_mass": settings.min_mass,
    }  # fmt: skip
    if settings.endpoint is not None:
        if settings.endpoint.prompts:
            raise RecipeError(
                f"recipe {recipe.name}: judge.endpoint.prompts: its one prompt is a template in "
                "judge.prompt; leave it out"
            )
        said = settings.endpoint.model_dump(exclude=REACHING)
        depends |= {"sees": settings.sees, "endpoint": said}
    elif settings.sees and settings.kind != "rscorer":
        raise RecipeError(
            f"recipe {recipe.name}: judge.sees: a judge of kind {settings.kind} is no model; leave "
            "it out"
        )
    inputs = ("judge/train",) if settings.kind == "rscorer" else ()
    served = settings.endpoint is not None
    return Judging(inputs, depends, lambda work: _load(recipe, work), served)


def base_of(recipe: Recipe) -> dict[str, Any]:
    """What the training of a judge depends on of the model that it starts from.

    Raises:
        RecipeError: it is a text model, and is to see.
    """
    j = recipe.judge
    if j.sees and j.model == "miniworld:mini-judge":
        raise RecipeError(
            f"recipe {recipe.name}: judge.sees: {j.model} is a text model; name a vision-language "
            "model in judge.model"
        )
    return {"model": j.model, "digest": j.digest, **({"sees": True} if j.sees else {})}


def _load(recipe: Recipe, work: Work) -> Judge:
    settings = recipe.judge
    if settings.endpoint is not None:
        from selfcal.judge.served import Asking, ServedJudge

        e = settings.endpoint
        how = Asking(settings.prompt, settings.sees, e.votes, settings.min_mass, e.temperature)
        return ServedJudge(chat_client(e, work, "judge"), how)
    if settings.kind == "guess":
        from selfcal.judge.controls import GuessingJudge

        return GuessingJudge(work.rng_key())
    if settings.kind == "verifier":
        from selfcal.judge.controls import VerifyingJudge

        return VerifyingJudge(form_of(recipe))
    from selfcal.judge.scorer import RScorer

    return RScorer(
        work.checkpoint("judge/train"), settings.prompt, settings.batch_size, settings.min_mass,
        recipe.policy.dtype, recipe.policy.device, settings.sees,
    )  # fmt: skip


def readings_of(judge: Judge) -> Shards:
    """How a judge behind a server was read since this was last asked."""
    from selfcal.judge.served import ServedJudge

    ways = judge.ways if isinstance(judge, ServedJudge) else Counter[Way]()
    found = [Readings(way, n) for way, n in sorted(ways.items())]
    ways.clear()
    return {"readings": (Readings, found)}


def reading_figures(work: Work) -> dict[str, JSON]:
    """How a judge behind a server was read in this stage, and what that cost."""
    ways: Counter[Way] = Counter()
    for r in work.folder.records("readings", Readings):
        ways[r.way] += r.comparisons
    read_by: dict[str, JSON] = dict(sorted(ways.items()))
    return {"read_by": read_by, "spent": spent(work)}


def r_scorer(recipe: Recipe) -> list[Stage]:
    """Candidates of training samples, their labels, the training, the quality report."""
    if recipe.judge.kind != "rscorer":
        return facts(recipe)
    stages = [*labelled(recipe), _training(recipe), quality(recipe, judging(recipe))]
    return [*stages, _calibration(recipe)] if recipe.judge.calibrate == "once" else stages


def labelled(recipe: Recipe) -> list[Stage]:
    """Facts where there are none, candidates of training samples, and labelled pairs of them.

    A file of labelled pairs takes the place of the candidates.
    """
    if isinstance(recipe.judge.labels, FileLabels):
        return [*facts(recipe), _labels_of_file(recipe, recipe.judge.labels)]
    return [*facts(recipe), candidates_of_training(recipe), _labels(recipe)]


def label_giver(recipe: Recipe, work: Work) -> LabelGiver:
    """Who gives the training verdicts.

    Raises:
        RecipeError: nobody does: they stand in a file.
    """
    from selfcal.judge.labels import ChatLabels, VerifierLabels

    labels = recipe.judge.labels
    if isinstance(labels, FileLabels):
        raise _unable(recipe)
    if labels.kind == "verifier":
        return VerifierLabels(form_of(recipe))
    model = asked(labels, recipe, work, "labels")
    return ChatLabels(model, prompts_of(labels, "labels"), recipe.judge.sees)


def label_settings(recipe: Recipe, *prompts: str) -> dict[str, Any]:
    """What labels depend on that are asked for by these prompts.

    Raises:
        PromptError: a prompt that the recipe gives cannot be used.
        RecipeError: a file has the labels, and cannot be asked.
    """
    if isinstance(recipe.judge.labels, FileLabels):
        raise _unable(recipe)
    sees = {"sees": True} if recipe.judge.sees else {}
    return said_by(recipe.judge.labels, "labels", *prompts) | sees


def _unable(recipe: Recipe) -> RecipeError:
    why, way_out = f"method {recipe.method!r} asks for labels of its own", "another method"
    if recipe.judge.calibrate == "each":
        why, way_out = "judge.calibrate `each` asks for fresh labels", "set that to `once`"
    return RecipeError(
        f"recipe {recipe.name}: judge.labels: {why}, which a file of labels cannot give; take "
        f"kind `endpoint` or `local`, or {way_out}"
    )


def labels_at_once(recipe: Recipe) -> int:
    """How many questions the label giver gets at the same time."""
    return at_once(recipe.judge.labels)


def candidates_of_training(recipe: Recipe) -> Stage:
    """Candidates of training samples, by the policy that the first iteration starts from."""
    n, start = trained_on(recipe), start_of(recipe, 1)
    if not n:
        raise RecipeError(
            f"recipe {recipe.name}: the judge is trained on the samples of `rft`, and there are "
            "none (data.rft is 0); give some, or take a method without a judge"
        )

    def run(work: Work) -> Mapping[str, JSON]:
        return search_samples(recipe, work, start, work.samples("data", "rft", n))

    depends = search_settings(recipe) | given(recipe, start) | {"samples": n}
    return Stage(
        "judge/candidates", ("data", *reads(start)), depends, run,
        n, "samples", "candidates of training samples", by_workers(searches(recipe)),
    )  # fmt: skip


def _labels(recipe: Recipe) -> Stage:
    settings = recipe.judge

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.judge.training import balance, held_out, label_pairs

        who = label_giver(recipe, work)
        own = by_sample(work.read("judge/candidates", "candidates", Candidate))
        samples = [s for s in work.samples(told(recipe), "rft") if s.id in own]
        insist_on_facts(recipe, work.stage.name, samples)

        def ask(part: Sequence[Sample]) -> Shards:
            n, key = settings.pairs_per_sample, work.rng_key()
            pairs, drops = label_pairs(who, part, own, n, key, labels_at_once(recipe))
            return {"labelled": (LabelledPair, work.stored(pairs)), "drops": (Drop, drops)}

        work.map(samples, _SHARD, ask)
        train, test = held_out(work.folder.read("labelled", LabelledPair), settings.holdout)
        balanced = balance(train, work.rng_key())
        work.write("train", balanced, LabelledPair)
        work.write("heldout", test, LabelledPair)
        drops = work.drop_counts()
        return {"train": len(balanced), "heldout": len(test), "drops": drops, **spent(work)}

    depends = {k: getattr(settings, k) for k in ("pairs_per_sample", "holdout")}
    depends |= label_settings(recipe, "compare")
    return Stage(
        "judge/labels", (told(recipe), "judge/candidates"), depends, run,
        trained_on(recipe), "samples", "label-giving judgments",
        by_workers(False, settings.labels),
    )  # fmt: skip


def _labels_of_file(recipe: Recipe, labels: FileLabels) -> Stage:
    settings = recipe.judge

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.judge.label_file import read_label_file, split_labels
        from selfcal.judge.training import balance

        path = Path(labels.path)
        found = read_label_file(path, settings.sees)
        train, test = split_labels(path, found.pairs, settings.holdout)
        balanced = balance(train, work.rng_key())
        own = {"labelled": found.pairs, "train": balanced, "heldout": test}
        for name, pairs in own.items():
            work.write(name, work.stored(pairs), LabelledPair)
        work.write("drops", found.drops, Drop)
        drops = count_drops(found.drops)
        return {"train": len(balanced), "heldout": len(test), "drops": drops}

    own = {"kind": labels.kind, "digest": labels.digest}
    depends = {"labels": own, "holdout": settings.holdout, "sees": settings.sees}
    return Stage(
        "judge/labels", (), depends, run, max(1, labels.pairs or 0), "pairs",
        "labelled pairs of a file",
    )  # fmt: skip


def _training(recipe: Recipe) -> Stage:
    settings = recipe.judge

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.train import train_judge

        pairs = work.shown(work.read("judge/labels", "train", LabelledPair))
        to, kind = training_run(recipe, work), settings.train
        return training_stats(
            work, train_judge(settings.model, pairs, kind, settings.prompt, to, settings.sees)
        )

    rows = round(2 * _pairs(recipe) * (1 - settings.holdout))  # balancing leaves fewer
    return Stage(
        "judge/train", ("judge/labels",),
        base_of(recipe) | {"prompt": settings.prompt, "train": outcome_of(settings.train)},
        run, settings.train.steps_for(rows), "steps", "R-Scorer training",
        spread(recipe, "judge.train", settings.train),
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
        pairs = work.shown(work.read("judge/labels", "heldout", LabelledPair))
        return figures(judge.load(work), pairs)

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
    if isinstance(recipe.judge.labels, FileLabels):
        return recipe.judge.labels.pairs or 0
    return trained_on(recipe) * recipe.judge.pairs_per_sample
