"""What the learned judges of online methods share: their labels, their training, their check.

All are of the R-Scorer's family: small text models that read the visual facts, or models that see
the image (`judge.sees`), trained from the judgments of the label-giving judge on candidates of
training samples, and measured on samples held out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from selfcal.methods.parts.base import (
    by_sample,
    by_workers,
    outcome_of,
    spent,
    spread,
    trained_on,
    training_run,
    training_stats,
)
from selfcal.methods.parts.facts import insist_on_facts, told
from selfcal.methods.parts.judges import base_of, label_giver, label_settings
from selfcal.recipe import Recipe
from selfcal.stage import Shards, Stage, Work
from selfcal.store import JSON
from selfcal.types import Candidate, Drop, GradedResponse, RankedResponses, Sample

if TYPE_CHECKING:
    from selfcal.judge.labels import LabelGiver
    from selfcal.judge.scorer import Reading
    from selfcal.train import Run, Trained

L = TypeVar("L", GradedResponse, RankedResponses)
Responses = Mapping[str, Sequence[str]]
"""Candidates' texts, by sample."""
_SHARD = 64


def labels(
    recipe: Recipe,
    name: str,
    kind: type[L],
    ask: Callable[[LabelGiver, Sequence[Sample], Responses], tuple[list[L], list[Drop]]],
    depends: Mapping[str, Any],
    prompts: Sequence[str],
) -> Stage:
    """The label-giving judge on candidates of training samples: stage `judge/NAME`.

    Its records are `train` and, of samples apart, `heldout`. `prompts`: those that `ask` asks by;
    all but `grade-entailed` are answered by facts, or by the images.
    """
    settings = recipe.judge
    by_logic = set(prompts) <= {"grade-entailed"}
    source = "data" if by_logic else told(recipe)

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.judge.training import held_out

        who = label_giver(recipe, work)
        found = by_sample(work.read("judge/candidates", "candidates", Candidate))
        own = {sample: [c.text for c in candidates] for sample, candidates in found.items()}

        def part(samples: Sequence[Sample]) -> Shards:
            labelled, drops = ask(who, samples, own)
            return {"labelled": (kind, work.stored(labelled)), "drops": (Drop, drops)}

        samples = [s for s in work.samples(source, "rft") if s.id in own]
        if not by_logic:
            insist_on_facts(recipe, work.stage.name, samples)
        work.map(samples, _SHARD, part)
        train, test = held_out(work.folder.read("labelled", kind), settings.holdout)
        work.write("train", train, kind)
        work.write("heldout", test, kind)
        drops = work.drop_counts()
        return {"train": len(train), "heldout": len(test), "drops": drops, **spent(work)}

    given = {**depends, "holdout": settings.holdout, **label_settings(recipe, *prompts)}
    return Stage(
        f"judge/{name}", (source, "judge/candidates"), given, run, trained_on(recipe), "samples",
        f"label-giving judgments: {name}", by_workers(False, settings.labels),
    )  # fmt: skip


def training(
    recipe: Recipe,
    name: str,
    source: str,
    kind: type[L],
    train: Callable[[Sequence[L], Run], Trained],
    rows: int,
    depends: Mapping[str, Any],
) -> Stage:
    """The training of a judge on the labels of stage `judge/SOURCE`: stage `judge/NAME`."""
    j = recipe.judge

    def run(work: Work) -> Mapping[str, JSON]:
        labelled = work.shown(work.read(f"judge/{source}", "train", kind))
        return training_stats(work, train(labelled, training_run(recipe, work)))

    given = {**depends, **base_of(recipe), "train": outcome_of(j.train)}
    return Stage(
        f"judge/{name}", (f"judge/{source}",), given, run, j.train.steps_for(rows), "steps",
        f"training of the {name}", spread(recipe, "judge.train", j.train),
    )  # fmt: skip


def check(
    recipe: Recipe,
    name: str,
    source: str,
    kind: type[L],
    figures: Callable[[Work, Sequence[L]], Mapping[str, JSON]],
    size: int,
    depends: Mapping[str, Any],
) -> Stage:
    """A judge against the labels that were held out: stage `judge/NAME-quality`."""

    def run(work: Work) -> Mapping[str, JSON]:
        return figures(work, work.shown(work.read(f"judge/{source}", "heldout", kind)))

    return Stage(
        f"judge/{name}-quality", (f"judge/{source}", f"judge/{name}"),
        {**depends, "min_mass": recipe.judge.min_mass}, run, max(1, size), "responses",
        f"the {name} against held-out labels",
    )  # fmt: skip


def reading(recipe: Recipe) -> Reading:
    """How a learned judge is read."""
    from selfcal.judge.scorer import Reading

    j, p = recipe.judge, recipe.policy
    return Reading(j.batch_size, j.min_mass, p.dtype, p.device, j.sees)
