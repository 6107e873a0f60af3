"""The teacher's RAPs, and the training of the policy on them (SRC, stage 1) and on pairs (4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from selfcal.methods.parts.base import (
    by_workers,
    calibration_size,
    form_of,
    given,
    outcome_of,
    reads,
    spent,
    spread,
    training_run,
    training_stats,
    weights,
)
from selfcal.methods.parts.writing import each, teacher_of, teacher_settings
from selfcal.recipe import Recipe, RecipeError, Rft
from selfcal.stage import Stage, Work
from selfcal.store import JSON
from selfcal.types import Drop, PreferencePair, Sample, WrittenRap


def teach(recipe: Recipe) -> Stage:
    """The teacher rewrites samples into rationale-answer pairs."""

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.teacher import accept

        who, form = teacher_of(recipe, work), form_of(recipe)

        def rewrite(sample: Sample) -> dict[str, list[Any]]:
            made = accept(sample, who.write(sample), form)
            return {"drops" if isinstance(made, Drop) else "raps": [made]}

        kinds = {"raps": WrittenRap, "drops": Drop}
        samples = work.samples("data", "rft")
        work.stream(samples, 32, kinds, lambda left: each(recipe, rewrite, left))
        raps = work.written("raps", WrittenRap)
        return {"raps": raps, "drops": work.drop_counts(), **spent(work)}

    about = "the teacher writes rationale-answer pairs"
    depends = teacher_settings(recipe, "rationale")
    return Stage(
        "teacher", ("data",), depends, run, recipe.data.rft, "samples", about,
        by_workers(False, recipe.teacher),
    )  # fmt: skip


def rationale_fine_tuning(recipe: Recipe) -> Stage:
    """Light LoRA SFT on the teacher's RAPs; merged."""
    settings = _rft(recipe)

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.train import sft

        return training_stats(
            work, sft(recipe.policy.model, _taught(work), settings, training_run(recipe, work))
        )

    depends = {"policy": given(recipe, None), "rft": outcome_of(settings)}
    return Stage(
        "rft", ("data", "teacher"), depends, run,
        settings.steps_for(recipe.data.rft), "steps", "rationale fine-tuning",
        spread(recipe, "rft", settings),
    )  # fmt: skip


def _rft(recipe: Recipe) -> Rft:
    if recipe.rft is None:
        raise RecipeError(f"recipe {recipe.name}: method {recipe.method!r} needs `rft`")
    return recipe.rft


def more_fine_tuning(recipe: Recipe, t: int, start: str | None) -> Stage:
    """SFT on the teacher's RAPs for as many steps as one DPO takes at most (a control)."""
    about = "more fine-tuning on the teacher's RAPs"
    return _sft(recipe, t, start, ("data", "teacher"), _taught, about)


def best_fine_tuning(recipe: Recipe, t: int, start: str | None) -> Stage:
    """SFT on responses of stage `iter-t/best`, for as many steps as one DPO takes at most."""

    def best(work: Work) -> list[tuple[Sample, str]]:
        by_id = {s.id: s for s in work.samples("data", "calibration")}
        chosen = work.read(f"iter-{t}/best", "best", WrittenRap)
        return [(by_id[r.sample_id], r.text) for r in chosen]

    return _sft(recipe, t, start, ("data", f"iter-{t}/best"), best, "SFT on the best candidates")


def _sft(
    recipe: Recipe,
    t: int,
    start: str | None,
    inputs: tuple[str, ...],
    rows: Callable[[Work], list[tuple[Sample, str]]],
    about: str,
) -> Stage:
    n = recipe.dpo.steps_for(calibration_size(recipe))
    settings = _rft(recipe).model_copy(update={"steps": n, "batch_size": recipe.dpo.batch_size})

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.train import sft

        model = weights(recipe, work, start)
        return training_stats(work, sft(model, rows(work), settings, training_run(recipe, work)))

    return Stage(
        f"iter-{t}/sft", (*inputs, *reads(start)),
        {"training": outcome_of(settings), **given(recipe, start)}, run, n, "steps", about,
        spread(recipe, "dpo", settings),
    )  # fmt: skip


def _taught(work: Work) -> list[tuple[Sample, str]]:
    by_id = {s.id: s for s in work.samples("data", "rft")}
    return [(by_id[r.sample_id], r.text) for r in work.read("teacher", "raps", WrittenRap)]


def preference_tuning(
    recipe: Recipe, t: int, start: str | None, more: Sequence[Stage] = ()
) -> Stage:
    """DPO with an SFT term, from the policy of stage `start`, which is its reference; merged.

    `more`: stages beside `iter-t/pairs` that have pairs, too.
    """
    sources = [f"iter-{t}/pairs", *(stage.name for stage in more)]

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.train import dpo

        by_id = {s.id: s for s in work.samples("data", "calibration")}
        made = [p for source in sources for p in work.records(source, "pairs", PreferencePair)]
        rows = [(by_id[p.sample_id], _within(work, p)) for p in made]
        model = weights(recipe, work, start)
        return training_stats(work, dpo(model, rows, recipe.dpo, training_run(recipe, work)))

    n = calibration_size(recipe)
    return Stage(
        f"iter-{t}/dpo", ("data", *reads(start), *sources),
        {"training": outcome_of(recipe.dpo), **given(recipe, start)}, run,
        recipe.dpo.steps_for(n), "steps", "DPO with an SFT term",
        spread(recipe, "dpo", recipe.dpo),
    )  # fmt: skip


def _within(work: Work, pair: PreferencePair) -> PreferencePair:
    """The pair with the path of its rejected image, if it has one, resolved against the run."""
    if not pair.rejected_image:
        return pair
    return replace(pair, rejected_image=str(work.run / pair.rejected_image))
