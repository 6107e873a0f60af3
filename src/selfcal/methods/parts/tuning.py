"""The teacher's RAPs, and the training of the policy on them (SRC, stage 1) and on pairs (4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from selfcal.methods.parts.base import (
    SERVER,
    calibration_size,
    steps,
    training_run,
    training_stats,
)
from selfcal.recipe import Recipe
from selfcal.stage import Shards, Stage, Work, count_drops
from selfcal.store import JSON
from selfcal.types import Drop, PreferencePair, Sample, WrittenRap


def teach(recipe: Recipe) -> Stage:
    """The teacher rewrites samples into rationale-answer pairs."""
    settings = recipe.teacher

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal import teacher
        from selfcal.chat import ChatClient

        who: teacher.Teacher = teacher.MiniWorldTeacher(settings.error_rate, work.seed)
        if settings.kind == "endpoint":
            who = teacher.ChatTeacher(ChatClient(**settings.endpoint.model_dump()))
        requests = 1 if settings.kind == "miniworld" else 16  # at the same time

        def rewrite(part: Sequence[Sample]) -> Shards:
            raps, drops = teacher.rewrite(who, part, requests)
            return {"raps": (WrittenRap, raps), "drops": (Drop, drops)}

        work.map(work.samples("data", "rft"), 32, rewrite)
        raps = work.folder.read("raps", WrittenRap)
        return {"raps": len(raps), "drops": count_drops(work.folder.read("drops", Drop))}

    depends = settings.model_dump(exclude=SERVER)
    about = "the teacher writes rationale-answer pairs"
    return Stage("teacher", ("data",), depends, run, recipe.data.rft, "samples", about)


def rationale_fine_tuning(recipe: Recipe) -> Stage:
    """Light LoRA SFT on the teacher's RAPs; merged."""
    # the device is where it is computed, not what
    policy = recipe.policy.model_dump(exclude={"device", "trust_remote_code"})
    settings = {"policy": policy, "rft": recipe.rft}

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.train import sft

        return training_stats(
            work, sft(recipe.policy.model, _taught(work), recipe.rft, training_run(recipe, work))
        )

    return Stage(
        "rft", ("data", "teacher"), settings, run,
        steps(recipe.rft, recipe.data.rft), "steps", "rationale fine-tuning",
    )  # fmt: skip


def more_fine_tuning(recipe: Recipe, t: int, start: str) -> Stage:
    """SFT on the teacher's RAPs for as many steps as one DPO takes at most (a control)."""
    n = steps(recipe.dpo, calibration_size(recipe))
    settings = recipe.rft.model_copy(update={"steps": n, "batch_size": recipe.dpo.batch_size})

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.train import sft

        return training_stats(
            work, sft(work.checkpoint(start), _taught(work), settings, training_run(recipe, work))
        )

    return Stage(
        f"iter-{t}/sft", ("data", "teacher", start), settings, run, n, "steps",
        "more fine-tuning on the teacher's RAPs",
    )  # fmt: skip


def _taught(work: Work) -> list[tuple[Sample, str]]:
    by_id = {s.id: s for s in work.samples("data", "rft")}
    return [(by_id[r.sample_id], r.text) for r in work.read("teacher", "raps", WrittenRap)]


def preference_tuning(recipe: Recipe, t: int, start: str) -> Stage:
    """DPO with an SFT term, from the policy of stage `start`, which is its reference; merged."""

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.train import dpo

        by_id = {s.id: s for s in work.samples("data", "calibration")}
        made = work.read(f"iter-{t}/pairs", "pairs", PreferencePair)
        rows = [(by_id[p.sample_id], p) for p in made]
        return training_stats(
            work, dpo(work.checkpoint(start), rows, recipe.dpo, training_run(recipe, work))
        )

    n = calibration_size(recipe)
    return Stage(
        f"iter-{t}/dpo", ("data", start, f"iter-{t}/pairs"), recipe.dpo, run,
        steps(recipe.dpo, n), "steps", "DPO with an SFT term",
    )  # fmt: skip
