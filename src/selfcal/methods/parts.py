"""The stages that methods are made of.

Each function takes the recipe and gives a `Stage`: it joins a stage's plain functions (search,
judge, curate, train, evaluate) to the records they read and write, and knows nothing of the order.
Heavy libraries are imported when a stage runs, so that planning stays instant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcal.curate import AGGREGATORS, curate
from selfcal.recipe import Recipe, Settings
from selfcal.stage import Shards, Stage, Work, count_drops
from selfcal.store import JSON
from selfcal.types import (
    Candidate,
    Drop,
    Judgment,
    LabelledPair,
    PreferencePair,
    Response,
    Result,
    Sample,
    SearchNode,
    WrittenRap,
)

if TYPE_CHECKING:
    from selfcal.judge.scorer import Judge
    from selfcal.train import Run, Trained

SPLITS = ("rft", "calibration", "dev", "test")
_SEARCH_SHARD = 64
_JUDGE_SHARD = 32
_EVAL_SHARD = 200


def _slice(recipe: Recipe, *names: str) -> dict[str, Any]:
    """The part of a recipe that a stage depends on."""
    values = {n: getattr(recipe, n) for n in names}
    return {n: v.model_dump() if isinstance(v, Settings) else v for n, v in values.items()}


# how a server is reached and how long one waits for it changes nothing of what it says
_REACHING = {"base_url", "api_key_env", "timeout", "retries"}
_SERVER = {"endpoint": _REACHING}


def opening(recipe: Recipe) -> list[Stage]:
    """What methods begin with: samples, the seed measured, fine-tuning, and that measured."""
    return [
        data(recipe),
        evaluate(recipe, "seed"),
        teach(recipe),
        rationale_fine_tuning(recipe),
        evaluate(recipe, "rft", "rft"),
    ]


# --- data -----------------------------------------------------------------------------------


def data(recipe: Recipe) -> Stage:
    """Samples of all splits, from MiniWorld or from the user's files."""
    sizes = {s: getattr(recipe.data, s) for s in SPLITS}

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.data import draw_mix, read_samples

        mine = recipe.data.source != "miniworld"
        folder = Path(recipe.data.source) if mine else work.out
        if not mine:
            from selfcal.miniworld.build import build

            build(work.out, sizes, work.seed)
        counts: dict[str, JSON] = {}
        dropped: list[Drop] = []
        for split in SPLITS:
            samples, drops = read_samples(_split_file(folder, split))
            mix = recipe.data.mix or None
            drawn = draw_mix(samples, sizes[split], mix, f"{work.rng_key()}|{split}")
            inside = [replace(s, image=_within(work.run, s.image)) for s in drawn]
            work.write(split, inside, Sample)
            dropped += drops
            counts[split] = len(drawn)
        work.write("drops", dropped, Drop)
        return {"samples": counts, "drops": count_drops(dropped)}

    return Stage(
        "data", (), _slice(recipe, "data"), run, sum(sizes.values()), "samples", "read the samples"
    )


def _split_file(folder: Path, split: str) -> Path:
    parquet = folder / f"{split}.parquet"
    return parquet if parquet.exists() else folder / f"{split}.jsonl"


def _within(run: Path, image: str) -> str:
    """An image's path relative to the run where it lies inside, so that the run can be moved."""
    path, root = Path(image).resolve(), run.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


# --- stage 1: rationale fine-tuning ---------------------------------------------------------


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

    depends = settings.model_dump(exclude=_SERVER)
    about = "the teacher writes rationale-answer pairs"
    return Stage("teacher", ("data",), depends, run, recipe.data.rft, "samples", about)


def rationale_fine_tuning(recipe: Recipe) -> Stage:
    """Light LoRA SFT on the teacher's RAPs; merged."""
    # the device is where it is computed, not what
    policy = recipe.policy.model_dump(exclude={"device", "trust_remote_code"})
    settings = {"policy": policy, "rft": recipe.rft}

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.train import sft

        return _trained(
            work, sft(recipe.policy.model, _taught(work), recipe.rft, _run(recipe, work))
        )

    return Stage(
        "rft", ("data", "teacher"), settings, run,
        _steps(recipe.rft, recipe.data.rft), "steps", "rationale fine-tuning",
    )  # fmt: skip


def more_fine_tuning(recipe: Recipe, t: int, start: str) -> Stage:
    """SFT on the teacher's RAPs for as many steps as one DPO takes (a control)."""
    steps = _steps(recipe.dpo, recipe.data.calibration)
    settings = recipe.rft.model_copy(update={"steps": steps, "batch_size": recipe.dpo.batch_size})

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.train import sft

        return _trained(
            work, sft(work.checkpoint(start), _taught(work), settings, _run(recipe, work))
        )

    return Stage(
        f"iter-{t}/sft", ("data", "teacher", start), settings, run, steps, "steps",
        "more fine-tuning on the teacher's RAPs",
    )  # fmt: skip


def _taught(work: Work) -> list[tuple[Sample, str]]:
    by_id = {s.id: s for s in work.samples("data", "rft")}
    return [(by_id[r.sample_id], r.text) for r in work.read("teacher", "raps", WrittenRap)]


def _steps(settings: Any, rows: int) -> int:
    return settings.steps or max(1, round(rows * settings.epochs / settings.batch_size))


def _run(recipe: Recipe, work: Work) -> Run:
    from selfcal.train import Run

    return Run(
        work.out, work.integer_seed(), recipe.policy.device, recipe.policy.dtype, work.progress
    )


def _trained(work: Work, trained: Trained) -> Mapping[str, JSON]:
    work.write("drops", trained.drops, Drop)
    return {
        "steps": trained.steps,
        "rows": trained.rows,
        "drops": count_drops(trained.drops),
        "curve": [dict(row) for row in trained.curve],
    }


# --- stage 2: candidates --------------------------------------------------------------------


def candidates(recipe: Recipe, t: int, start: str) -> Stage:
    """Sentence-level beam search on the calibration samples, by the policy of stage `start`."""

    def run(work: Work) -> Mapping[str, JSON]:
        return _search(recipe, work, start, _calibration(recipe, work, t))

    n = recipe.data.calibration // (1 if recipe.data.repeat else recipe.iterations)
    return Stage(
        f"iter-{t}/candidates", ("data", start),
        _search_settings(recipe) | {"part": None if recipe.data.repeat else (t, recipe.iterations)},
        run, n, "samples", "sentence-level beam search",
    )  # fmt: skip


def _search_settings(recipe: Recipe) -> dict[str, Any]:
    # how many rows are decoded at once changes speed and memory, not the outcome
    search = recipe.search.model_dump(exclude={"batch_rows"})
    return {"search": search, "dtype": recipe.policy.dtype}


def _calibration(recipe: Recipe, work: Work, t: int) -> list[Sample]:
    samples = work.samples("data", "calibration")
    return samples if recipe.data.repeat else samples[t - 1 :: recipe.iterations]


def _search(
    recipe: Recipe, work: Work, start: str, samples: Sequence[Sample]
) -> Mapping[str, JSON]:
    from selfcal.policy import load_policy
    from selfcal.search import SearchLimits, search

    limits = SearchLimits(**recipe.search.model_dump(exclude={"batch_rows"}))
    at_once = max(1, recipe.search.batch_rows // (limits.candidates * limits.branch))

    @cache
    def policy() -> Any:
        p = recipe.policy
        return load_policy(work.checkpoint(start), p.dtype, p.device, p.trust_remote_code)

    def find(part: Sequence[Sample]) -> Shards:
        found: list[Candidate] = []
        nodes: list[SearchNode] = []
        drops: list[Drop] = []
        for i in range(0, len(part), at_once):
            responses, tree, left_out = search(
                policy(), part[i : i + at_once], limits, work.rng_key()
            )
            found += responses
            nodes += tree
            drops += left_out
        return {
            "nodes": (SearchNode, nodes),
            "drops": (Drop, drops),
            "candidates": (Candidate, found),
        }

    work.map(samples, _SEARCH_SHARD, find)
    found = work.folder.read("candidates", Candidate)
    return {
        "candidates": len(found),
        "per_sample": round(len(found) / max(1, len(samples)), 3),
        "tokens": sum(sum(c.token_counts) for c in found),
        "drops": count_drops(work.folder.read("drops", Drop)),
    }


# --- stage 3: the R-Scorer ------------------------------------------------------------------


def r_scorer(recipe: Recipe) -> list[Stage]:
    """Candidates of training samples, their labels, the training, the quality report."""
    if recipe.judge.kind != "rscorer":
        return []
    settings = recipe.judge

    def search(work: Work) -> Mapping[str, JSON]:
        return _search(recipe, work, "rft", work.samples("data", "rft")[: settings.samples])

    def label(work: Work) -> Mapping[str, JSON]:
        from selfcal.chat import ChatClient
        from selfcal.judge.labels import ChatLabels, VerifierLabels
        from selfcal.judge.training import balance, held_out, label_pairs

        chat = settings.labels.kind == "endpoint"
        server = settings.labels.endpoint.model_dump()
        who: Any = ChatLabels(ChatClient(**server)) if chat else VerifierLabels()
        own = _by_sample(work.read("judge/candidates", "candidates", Candidate))
        samples = [s for s in work.samples("data", "rft") if s.id in own]

        def ask(part: Sequence[Sample]) -> Shards:
            pairs, drops = label_pairs(who, part, own, settings.pairs_per_sample, work.rng_key())
            return {"labelled": (LabelledPair, pairs), "drops": (Drop, drops)}

        work.map(samples, _JUDGE_SHARD, ask)
        train, test = held_out(work.folder.read("labelled", LabelledPair), settings.holdout)
        balanced = balance(train, work.rng_key())
        work.write("train", balanced, LabelledPair)
        work.write("heldout", test, LabelledPair)
        drops = count_drops(work.folder.read("drops", Drop))
        return {"train": len(balanced), "heldout": len(test), "drops": drops}

    def train(work: Work) -> Mapping[str, JSON]:
        from selfcal.train import train_judge

        pairs = work.read("judge/labels", "train", LabelledPair)
        run = _run(recipe, work)
        return _trained(
            work, train_judge(settings.model, pairs, settings.train, settings.prompt, run)
        )

    def report(work: Work) -> Mapping[str, JSON]:
        from selfcal.judge.quality import assess

        pairs = work.read("judge/labels", "heldout", LabelledPair)
        return assess(_load_judge(recipe, work, "judge/train"), pairs)

    n = min(settings.samples, recipe.data.rft)
    pairs = n * settings.pairs_per_sample
    labels = {k: getattr(settings, k) for k in ("pairs_per_sample", "holdout")}
    labels |= settings.labels.model_dump(exclude=_SERVER)
    reading = {"prompt": settings.prompt, "min_mass": settings.min_mass}
    return [
        Stage("judge/candidates", ("data", "rft"), _search_settings(recipe) | {"samples": n},
              search, n, "samples", "candidates of training samples"),
        Stage("judge/labels", ("data", "judge/candidates"), labels, label, n, "samples",
              "label-giving judgments"),
        Stage("judge/train", ("judge/labels",),
              {"model": settings.model, "prompt": settings.prompt, "train": settings.train}, train,
              _steps(settings.train, 2 * pairs), "steps", "R-Scorer training"),
        Stage("judge/quality", ("judge/labels", "judge/train"), reading, report, pairs, "pairs",
              "R-Scorer against held-out labels"),
    ]  # fmt: skip


def judgments(recipe: Recipe, t: int) -> Stage:
    """All pairs of candidates in both orders."""
    settings = recipe.judge
    inputs: tuple[str, ...] = ("data", f"iter-{t}/candidates")
    if settings.kind == "rscorer":
        inputs += ("judge/train",)

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.judge.scorer import all_comparisons

        own = _by_sample(work.read(f"iter-{t}/candidates", "candidates", Candidate))
        samples = [s for s in work.samples("data", "calibration") if s.id in own]
        judge = cache(lambda: _load_judge(recipe, work, "judge/train"))

        def score(part: Sequence[Sample]) -> Shards:
            asked = [c for s in part for c in all_comparisons(s, own[s.id])]
            return {"judgments": (Judgment, judge().judge(asked))}

        work.map(samples, _JUDGE_SHARD, score)
        made = work.folder.read("judgments", Judgment)
        return {"judgments": len(made), "unscored": sum(g.verdict is None for g in made)}

    n = recipe.data.calibration // (1 if recipe.data.repeat else recipe.iterations)
    return Stage(
        f"iter-{t}/judgments", inputs,
        {"kind": settings.kind, "prompt": settings.prompt, "min_mass": settings.min_mass},
        run, n, "samples", "pairwise scoring",
    )  # fmt: skip


def _load_judge(recipe: Recipe, work: Work, stage: str) -> Judge:
    settings = recipe.judge
    if settings.kind == "guess":
        from selfcal.judge.controls import GuessingJudge

        return GuessingJudge(work.rng_key())
    if settings.kind == "verifier":
        from selfcal.judge.controls import VerifyingJudge

        return VerifyingJudge()
    from selfcal.judge.scorer import RScorer

    return RScorer(
        work.checkpoint(stage), settings.prompt, settings.batch_size, settings.min_mass,
        recipe.policy.dtype, recipe.policy.device,
    )  # fmt: skip


def _by_sample(found: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    own: dict[str, list[Candidate]] = defaultdict(list)
    for c in found:
        own[c.sample_id].append(c)
    return own


# --- stage 4: curation and DPO --------------------------------------------------------------


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

    n = recipe.data.calibration // (1 if recipe.data.repeat else recipe.iterations)
    inputs = (f"iter-{t}/candidates", f"iter-{t}/judgments")
    about = "confidence-weighted curation"
    return Stage(f"iter-{t}/pairs", inputs, _slice(recipe, "curate"), run, n, "samples", about)


def preference_tuning(recipe: Recipe, t: int, start: str) -> Stage:
    """DPO with an SFT term, from the policy of stage `start`, which is its reference; merged."""

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.train import dpo

        by_id = {s.id: s for s in work.samples("data", "calibration")}
        made = work.read(f"iter-{t}/pairs", "pairs", PreferencePair)
        rows = [(by_id[p.sample_id], p) for p in made]
        return _trained(work, dpo(work.checkpoint(start), rows, recipe.dpo, _run(recipe, work)))

    n = recipe.data.calibration // (1 if recipe.data.repeat else recipe.iterations)
    return Stage(
        f"iter-{t}/dpo", ("data", start, f"iter-{t}/pairs"), recipe.dpo, run,
        _steps(recipe.dpo, n), "steps", "DPO with an SFT term",
    )  # fmt: skip


# --- measurement ----------------------------------------------------------------------------


def evaluate(recipe: Recipe, checkpoint: str, trained: str | None = None) -> Stage:
    """Greedy responses of a checkpoint on dev and test, and all metrics.

    `trained` is the stage that made the checkpoint; None: the model as it was given.
    """
    settings = recipe.evaluate
    verified = recipe.data.source == "miniworld"

    def run(work: Work) -> Mapping[str, JSON]:
        from selfcal.evaluate import grade, grade_answer, measure
        from selfcal.policy import load_policy

        p = recipe.policy
        path = work.checkpoint(trained) if trained else p.model
        policy = cache(lambda: load_policy(path, p.dtype, p.device, p.trust_remote_code))
        grading: Callable[[Sample, str], Response] = grade if verified else grade_answer

        def respond(part: Sequence[tuple[str, Sample]]) -> Shards:
            made: dict[str, list[Response]] = {s: [] for s in settings.splits}
            for i in range(0, len(part), settings.batch_size):
                rows = part[i : i + settings.batch_size]
                texts = policy().respond([s for _, s in rows], settings.max_new_tokens)
                for (split, sample), text in zip(rows, texts, strict=True):
                    made[split].append(grading(sample, text))
            return {split: (Response, rows) for split, rows in made.items()}

        items = [(split, s) for split in settings.splits for s in work.samples("data", split)]
        work.map(items, _EVAL_SHARD, respond)
        results = [
            r
            for split in settings.splits
            for r in measure(
                work.folder.read(split, Response), checkpoint, split, work.seed, verified
            )
        ]
        work.write("results", results, Result)
        return {r.metric: round(r.value, 4) for r in results if r.category == "all" and r.n}

    n = sum(getattr(recipe.data, s) for s in settings.splits)
    inputs = ("data", trained) if trained else ("data",)
    depends: dict[str, Any] = {"splits": settings.splits, "max_new_tokens": settings.max_new_tokens}
    depends |= {"dtype": recipe.policy.dtype, "verified": verified}
    if not trained:
        depends["model"] = recipe.policy.model
    return Stage(f"eval/{checkpoint}", inputs, depends, run, n, "samples", f"measure {checkpoint}")


__all__ = [
    "candidates", "data", "evaluate", "judgments", "more_fine_tuning", "opening", "pairs",
    "preference_tuning", "r_scorer", "rationale_fine_tuning", "teach",
]  # fmt: skip
