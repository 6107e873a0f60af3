"""Recipes: what is refused and how it is told, and what a changed setting makes anew."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from selfcal.errors import SelfcalError
from selfcal.pipeline import RECIPE_FILE, locate, open_run, pin, plan, results
from selfcal.recipe import (
    LocalExecutor,
    LocalLabels,
    LocalMarker,
    LocalTeacher,
    Lora,
    MiniWorldTeacher,
    Policy,
    RayExecutor,
    Recipe,
    RecipeError,
    load_recipe,
    nearest,
)
from selfcal.store import write_json

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\n")
    return path


# --- reading ----------------------------------------------------------------------------------


def test_defaults_are_the_papers(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe == Recipe(name="x")
    assert (recipe.method, recipe.seed, recipe.iterations, recipe.threads) == ("src", 0, 3, None)
    assert (recipe.data.rft, recipe.data.calibration) == (20_000, 12_000)
    assert (recipe.rft.lora, recipe.rft.learning_rate) == (Lora(rank=4, alpha=8), 1e-5)
    assert (recipe.dpo.lora, recipe.dpo.learning_rate) == (Lora(rank=256, alpha=512), 5e-7)
    assert (recipe.dpo.beta, recipe.dpo.sft_weight) == (0.1, 0.02)
    assert (recipe.judge.kind, recipe.curate.aggregator) == ("rscorer", "confidence")


def test_settings_are_frozen() -> None:
    recipe = Recipe(name="x")
    for part, key in [(recipe, "seed"), (recipe.dpo, "beta"), (recipe.rft.lora, "rank")]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, key, 1)


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("seed=3", "seed", 3),
        (" seed = 3 ", "seed", 3),
        ("dpo.learning_rate=5e-4", "dpo.learning_rate", 5e-4),  # text to YAML 1.1
        ("dpo.learning_rate=5.0e-4", "dpo.learning_rate", 5e-4),
        ("dpo.lora.rank=8", "dpo.lora.rank", 8),
        ("dpo.lora=null", "dpo.lora", None),
        ("dpo.lora={rank: 2, alpha: 4}", "dpo.lora", Lora(rank=2, alpha=4)),
        ("curate.margin=0.25", "curate.margin", 0.25),
        ("curate.aggregator=bradley_terry", "curate.aggregator", "bradley_terry"),
        ("evaluate.splits=[test]", "evaluate.splits", ("test",)),
        ("data.mix={chart: 2, math: 5e-1}", "data.mix", {"chart": 2, "math": 0.5}),
        ("data.mix.chart=2", "data.mix", {"chart": 2}),
        ("data.repeat=no", "data.repeat", False),
        ("judge.prompt={{ first }}={{ second }}", None, None),  # not YAML unless quoted
        ("judge.prompt='{{ first }}={{ second }}'", "judge.prompt", "{{ first }}={{ second }}"),
        ("name=1e5", "name", "1e5"),
    ],
)
def test_overrides(file: Path, override: str, place: str | None, value: object) -> None:
    file.write_text("name: x\nseed: 1\ndpo: {learning_rate: 1.0e-5, lora: {rank: 4, alpha: 8}}\n")
    if place is None:
        with pytest.raises(RecipeError, match="--set"):
            load_recipe(file, [override])
        return
    found: object = load_recipe(file, [override])
    for part in place.split("."):
        found = getattr(found, part)
    assert found == value


def test_the_last_override_wins(file: Path) -> None:
    assert load_recipe(file, ["seed=1", "curate.margin=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    "overrides",
    [
        ["teacher.kind=local", "teacher.model=m"],
        ["teacher.model=m", "seed=3", "teacher.kind=local"],
        ["teacher.model=m", "teacher.kind=endpoint", "teacher.kind=local"],
        [
            "teacher.kind=endpoint",
            "teacher={kind: file, path: p}",
            "teacher={kind: local, model: m}",
        ],
        ["teacher={kind: file, path: p}", "teacher.model=m", "teacher.kind=local"],
    ],
)
def test_a_kind_and_its_keys_may_be_given_in_any_order(file: Path, overrides: list[str]) -> None:
    file.write_text("name: x\nteacher: {error_rate: 0.2}\n")
    assert load_recipe(file, overrides).teacher == LocalTeacher(model="m")


def test_kinds_below_come_first_too(file: Path) -> None:
    given = ["judge.labels.model=a", "evaluate.marker.model=b", "evaluate.marker.sees=false"]
    kinds = ["judge.labels.kind=local", "evaluate.marker.kind=local"]
    recipe = load_recipe(file, [*given, *kinds])
    assert recipe.judge.labels == LocalLabels(model="a")
    assert recipe.evaluate.marker == LocalMarker(model="b", sees=False)


def test_a_kind_said_aloud_keeps_its_settings_and_another_one_none(
    file: Path, tmp_path: Path
) -> None:
    file.write_text("name: x\nteacher: {error_rate: 0.2}\n")
    own = tmp_path / "own.yaml"
    own.write_text("base: recipe.yaml\nteacher: {kind: miniworld}\n")
    assert load_recipe(own).teacher == MiniWorldTeacher(error_rate=0.2)
    assert load_recipe(file, ["teacher.kind=miniworld"]).teacher.error_rate == 0.2
    own.write_text("base: recipe.yaml\nteacher: {kind: local, model: m}\n")
    assert load_recipe(own).teacher == LocalTeacher(model="m")
    back = load_recipe(own, ["teacher.kind=miniworld"]).teacher
    assert back == MiniWorldTeacher()  # what the base said is forgotten by then


# --- refusing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("iteration: 2", "unknown key `iteration`; did you mean `iterations`?"),
        ("dpo: {learning_rate: 1, betta: 1}", "unknown key `dpo.betta`; did you mean `beta`?"),
        ("rft: {learning_rat: 1}", "`rft.learning_rat`; did you mean `learning_rate`?"),
        (
            "rft: {learning_rate: 1, lora: {rnk: 1}}",
            "unknown key `rft.lora.rnk`; did you mean `rank`?",
        ),
        (
            "judge: {labels: {kind: endpoint, model: m, base_uri: x}}",
            "unknown key `judge.labels.base_uri`; did you mean `base_url`?",
        ),
        ("qqqq: 1", "unknown key `qqqq`"),
        ("iterations: three", "iterations: Input should be a valid integer"),
        ("iterations: 0", "iterations: Input should be greater than 0"),
        ("seed: 1.5", "seed: Input should be a valid integer"),
        ("search: 5", "search: Input should be a valid dictionary"),
        ("data: {repeat: maybe}", "data.repeat: Input should be a valid boolean"),
        ("teacher: {error_rate: 1.1}", "teacher.error_rate: Input should be less than or equal"),
        ("curate: {margin: .nan}", "curate.margin: Input should be a finite number"),
        ("dpo: {learning_rate: .inf}", "dpo.learning_rate: Input should be a finite number"),
        ("curate: {aggregator: mean}", "curate.aggregator: Input should be 'confidence'"),
        ("evaluate: {splits: [train]}", "evaluate.splits.0: Input should be 'dev' or 'test'"),
        ("teacher: {kind: endpoint}", "teacher.model: Field required"),
        ("judge: {labels: {kind: endpoint}}", "judge.labels.model: Field required"),
        ("data: {rft: 0}", "rft: there are no samples for it (data.rft is 0); set `rft: null`"),
        (
            "data: {test: 0}",
            "evaluate.splits: test has no samples (data.test is 0); leave it out",
        ),
        (
            "data: {dev: 0}\nevaluate: {splits: [dev]}",
            "evaluate.splits: dev has no samples (data.dev is 0); leave it out",
        ),
        (
            "data: {source: mine, uncertain: 0.1}",
            "data.uncertain: only MiniWorld's samples can be spoiled; set it to 0",
        ),
        ("data: {uncertain: 1.1}", "data.uncertain: Input should be less than or equal to 1"),
        (
            "judge: {kind: guess, calibrate: once}",
            "judge.calibrate: only an R-Scorer can be calibrated; leave it out",
        ),
        ("judge: {kind: verifier, calibrate: each}", "judge.calibrate: only an R-Scorer"),
        ("judge: {calibrate: true}", "judge.calibrate: Input should be 'never', 'once' or 'each'"),
        ("judge: {abstain: 1.5}", "judge.abstain: Input should be less than or equal to 1"),
        ("curate: {weak: skip}", "curate.weak: Input should be 'drop', 'teacher' or 'widen'"),
        ("curate: {widen: 1}", "curate.widen: Input should be greater than 1"),
        ("budget: 0", "budget: Input should be greater than 0"),
        ("reward: {weight: 1.1}", "reward.weight: Input should be less than or equal to 1"),
        ("reward: {normalise: raw}", "key `reward.normalise`; did you mean `normalize`?"),
        ("search: {max_characters: 0}", "search.max_characters: Input should be greater than 0"),
        ("search: {min_characters: -1}", "search.min_characters: Input should be greater than or"),
        ("search: {degenerate: yes}", "search.degenerate: Input should be 'keep' or 'drop'"),
    ],
)
def test_bad_settings_are_named(file: Path, text: str, told: str) -> None:
    file.write_text(f"name: x\n{text}\n")
    with pytest.raises(RecipeError) as refused:
        load_recipe(file)
    assert str(refused.value).startswith(f"{file}: ")
    assert told in str(refused.value)
    if "did you mean" not in told:
        assert "did you mean" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data: {rft: 0}", "rft: there are no samples for it (data.rft is 0); set `rft: null`"),
        ("teacher: {kind: endpoint}", "teacher.model: Field required"),
        (
            "grpo: {group: 6}",
            "grpo: batch_size: 64 responses are no whole groups of 6; set it to a multiple of "
            "`group`",
        ),
        (
            "grpo: {updates: 3, save_steps: 4}",
            "grpo: save_steps: 4 would cut a batch in two; set it to a multiple of `updates` (3)",
        ),
    ],
)
def test_what_is_wrong_with_settings_together_names_one_of_them(
    file: Path, text: str, told: str
) -> None:
    file.write_text(f"name: x\n{text}\n")
    with pytest.raises(RecipeError) as refused:
        load_recipe(file)
    assert str(refused.value) == f"{file}: {told}"


def test_what_is_wrong_with_options_together_names_one_of_them(file: Path) -> None:
    above = ["method=faithful_grpo", "options.start=3"]
    with pytest.raises(RecipeError) as refused:
        plan(load_recipe(file, above))
    told = "recipe x: options: start: 3.0 is above `most`, 2.0; lower it"
    assert str(refused.value) == told
    assert plan(load_recipe(file, [*above, "options.most=3"]))


def test_whole_groups_and_whole_batches_are_taken(file: Path) -> None:
    whole = ["grpo.group=6", "grpo.batch_size=6", "grpo.updates=3", "grpo.save_steps=6"]
    grpo = load_recipe(file, whole).grpo
    assert (grpo.group, grpo.batch_size, grpo.updates, grpo.save_steps) == (6, 6, 3, 6)
    assert load_recipe(file, ["grpo.updates=3"]).grpo.save_steps is None


def test_splits_that_nobody_asks_for_may_be_empty(file: Path) -> None:
    recipe = load_recipe(
        file, ["rft=null", "data.rft=0", "data.dev=0", "evaluate.splits=[test]", "data.uncertain=0"]
    )
    assert (recipe.rft, recipe.data.rft, recipe.data.dev) == (None, 0, 0)
    assert load_recipe(file, ["data.source=mine"]).data.uncertain == 0
    assert load_recipe(file, ["judge.calibrate=each"]).judge.calibrate == "each"


def test_a_judge_that_is_trained_needs_samples(file: Path) -> None:
    none = ["rft=null", "data.rft=0"]
    for method in ("src", "sft_best_of_n", "independent"):
        with pytest.raises(RecipeError, match=r"recipe x: .*data\.rft is 0.*give some"):
            plan(load_recipe(file, [*none, f"method={method}"]))
    untrained = plan(load_recipe(file, [*none, "judge.kind=verifier"]))
    assert [s.name for s in untrained][:3] == ["data", "eval/seed", "iter-1/candidates"]


@pytest.mark.parametrize("curate", ["", "curate: {tie: 0}\n", "curate: {margin: 0.1}\n"])
def test_an_adaptive_schedule_without_ties_names_both_keys(file: Path, curate: str) -> None:
    file.write_text(f"name: x\njudge: {{schedule: adaptive}}\n{curate}")
    with pytest.raises(RecipeError) as refused:
        load_recipe(file)
    assert "judge.schedule" in str(refused.value) and "curate.tie" in str(refused.value)
    recipe = load_recipe(file, ["curate.tie=0.05"])
    assert (recipe.judge.schedule, recipe.curate.tie) == ("adaptive", 0.05)
    assert load_recipe(file, ["judge.schedule=full"]).curate.tie == 0


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("top_k", ["1", "50", "null"], ["0", "-1", "1.5"]),
        ("repetition_penalty", ["1", "1.2", "0.5"], ["0", "-1.1", ".inf", "null"]),
        ("cache_gib", ["0.5", "40", "null"], ["0", "-2", ".nan", "much"]),
        (
            "keep",
            ["stochastic", "likelihood", "top_bottom", "diverse"],
            ["best", "Stochastic", "null"],
        ),
        ("top_p", ["1", "0.9"], ["0", "1.01"]),
        ("temperature", ["0", "0.7"], ["-0.1"]),
        ("batch_rows", ["1"], ["0", "null"]),
        ("prompt_tokens", ["1"], ["0"]),
    ],
)
def test_search_settings(file: Path, key: str, good: list[str], bad: list[str]) -> None:
    for text in good:
        found = getattr(load_recipe(file, [f"search.{key}={text}"]).search, key)
        assert found == (text if key == "keep" else yaml.safe_load(text))
    for text in bad:
        with pytest.raises(RecipeError, match=rf"search\.{key}: "):
            load_recipe(file, [f"search.{key}={text}"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"name: x\nseed: [1\n", "not valid YAML: line 3, column 1"),
        (b"name: x\n\tseed: 1\n", "not valid YAML: line 2, column 1"),
        (b"- name\n", "a recipe is a mapping of keys to values"),
        (b"", "a recipe is a mapping of keys to values"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"seed: 1\n", "name: Field required"),
    ],
)
def test_files_that_are_no_recipe(file: Path, text: bytes, told: str) -> None:
    file.write_bytes(text)
    with pytest.raises(RecipeError) as refused:
        load_recipe(file)
    assert str(refused.value).startswith(f"{file}: ") and told in str(refused.value)


def test_a_base_is_read_from_the_recipes_own_folder_and_has_one_too(
    file: Path, tmp_path: Path
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "first.yaml").write_text(
        "name: first\nseed: 1\nrft: {steps: 3}\ndpo: {beta: 0.2, lora: {rank: 2, alpha: 4}}\n"
    )
    (tmp_path / "below" / "second.yaml").write_text("base: first.yaml\nname: second\nseed: 2\n")
    own = tmp_path / "own.yaml"
    own.write_text("base: below/second.yaml\nname: own\nrft: null\ndpo: {lora: {rank: 8}}\n")
    recipe = load_recipe(own, ["dpo.beta=0.7"])
    assert (recipe.name, recipe.seed, recipe.rft) == ("own", 2, None)
    assert (recipe.dpo.beta, recipe.dpo.lora) == (0.7, Lora(rank=8, alpha=4))
    # what stands in the base is checked like one's own
    (tmp_path / "below" / "first.yaml").write_text("dpo: {betta: 1}\n")
    with pytest.raises(RecipeError, match=r"own\.yaml: unknown key `dpo\.betta`; did you mean"):
        load_recipe(own)
    (tmp_path / "below" / "first.yaml").unlink()
    with pytest.raises(RecipeError, match=r"first\.yaml: cannot be read"):
        load_recipe(own)
    with pytest.raises(RecipeError, match="unknown key `base`"):  # it was read by then
        load_recipe(file, ["base=own.yaml"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):  # a folder is no file either
        with pytest.raises(RecipeError, match=r"cannot be read .* give the path of a recipe"):
            load_recipe(path)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed", "write key=value"),
        ("=1", "write key=value"),
        ("data.mix={a: 1", "--set 'data.mix={a: 1': line 1"),
        ("name.first=1", "name holds a value, not settings"),
        ("curate.margn=1", "unknown key `curate.margn`; did you mean `margin`?"),
        ("iterations=three", "iterations: Input should be a valid integer"),
    ],
)
def test_bad_overrides_are_named(file: Path, override: str, told: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(file, [override])
    assert told in str(refused.value)


def test_all_that_is_wrong_is_told_at_once(file: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(file, ["iteration=1", "curate.margin=-1", "search.branch=0"])
    assert len(str(refused.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["executor=ray"], RayExecutor()),
        (["executor=ray", "executor.workers=2"], RayExecutor(workers=2)),
        (["executor.workers=2", "executor=ray"], RayExecutor(workers=2)),
        (["executor={kind: ray, gpus: 0.5}"], RayExecutor(gpus=0.5)),
        (["executor.ranks=2"], LocalExecutor(ranks=2)),
    ],
)
def test_an_executor_may_be_named_by_its_kind_alone(
    file: Path, overrides: list[str], expected: object
) -> None:
    assert load_recipe(file, overrides).executor == expected
    file.write_text(f"executor: ray\n{file.read_text()}")
    assert load_recipe(file).executor == RayExecutor()
    assert load_recipe(file, ["executor.cpus=2"]).executor == RayExecutor(cpus=2)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["executor=rays"], "executor: is 'rays'; give `local` or `ray`"),
        (["executor=null"], "executor: is None; give `local` or `ray`"),
        (["executor=[ray]"], "executor: is ['ray']; give `local` or `ray`"),
        (
            ["executor.workers=2"],
            "executor: workers: of `executor: ray` alone; add `--set executor=",
        ),
        (
            ["executor.gpus=0.5", "executor.cpus=2"],
            "executor: gpus, cpus: of `executor: ray` alone",
        ),
        (["executor.rank=2"], "`executor.rank`; did you mean `ranks`?"),
        (["executor=ray", "executor.workrs=2"], "`executor.workrs`; did you mean `workers`?"),
        (["executor=ray", "executor.workers=3", "executor.max_workers=2"], "less than `workers`"),
        (["executor=ray", "executor.gpus=1.5"], "give a whole number above"),
    ],
)
def test_bad_settings_of_an_executor_are_named(file: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(file, overrides)
    assert told in str(error.value)


def test_nearest() -> None:
    assert nearest("sead", ["name", "seed"]) == nearest("sead", {"seed": 1}) == "seed"
    assert nearest("zz", ["name", "seed"]) is None


# --- the shipped recipes ----------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_plan(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    stages = plan(recipe)
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    for i, stage in enumerate(stages):
        assert set(stage.inputs) <= set(names[:i])
        assert stage.size > 0 and stage.unit and stage.about


def test_there_are_shipped_recipes() -> None:
    assert RECIPES


# --- what a changed setting makes anew --------------------------------------------------------

RFT = ["rft", "eval/rft"]
JUDGE = ["judge/candidates", "judge/labels", "judge/train", "judge/quality"]
FIRST = ["iter-1/candidates", "iter-1/judgments", "iter-1/pairs", "iter-1/dpo", "eval/iter-1"]
LATER = [stage.replace("iter-1", "iter-2") for stage in FIRST]
ALL = ["data", "eval/seed", "teacher", *RFT, *JUDGE, *FIRST, *LATER]

CHANGES: dict[str, list[str]] = {
    "name=y": [],
    "threads=3": [],
    "search.batch_rows=7": [],
    "judge.batch_size=7": [],
    "evaluate.batch_size=7": [],
    "iterations=4": [],  # the stages there were stay as they were
    "seed=1": ALL,
    "data.dev=7": ALL,
    "policy.model=other": ["eval/seed", *RFT, *JUDGE, *FIRST, *LATER],
    "teacher.error_rate=0.5": ["teacher", *RFT, *JUDGE, *FIRST, *LATER],
    "rft.micro_batch_size=2": [],
    "rft.learning_rate=1": [*RFT, *JUDGE, *FIRST, *LATER],
    "search.temperature=0.5": [*JUDGE, *FIRST, *LATER],
    "judge.samples=7": [*JUDGE, *FIRST[1:], *LATER],
    "judge.pairs_per_sample=7": [*JUDGE[1:], *FIRST[1:], *LATER],
    "judge.train.learning_rate=1": [*JUDGE[2:], *FIRST[1:], *LATER],
    "judge.prompt=other": [*JUDGE[2:], *FIRST[1:], *LATER],
    "judge.min_mass=0.5": ["judge/quality", *FIRST[1:], *LATER],
    "curate.margin=0.5": [*FIRST[2:], *LATER],
    "curate.aggregator=majority": [*FIRST[2:], *LATER],
    "curate.weigh_facts=true": [*FIRST[2:], *LATER],
    "judge.abstain=0.5": [*FIRST[1:], *LATER],
    "judge.schedule=one_order": [*FIRST[1:], *LATER],
    "judge.calibrate=once": [*FIRST[2:], *LATER],
    "judge.calibration_samples=7": [],  # only where each iteration is calibrated
    "budget=1000": [*FIRST, *LATER],
    "data.uncertain=0.5": ALL,
    "search.max_characters=99": [*JUDGE, *FIRST, *LATER],
    "reward.weight=0.5": [],  # CSR's
    "dpo.beta=0.5": [*FIRST[3:], *LATER],
    "dpo.micro_batch_size=2": [*FIRST[3:], *LATER],  # its SFT term is a mean over one
    "evaluate.max_new_tokens=7": ["eval/seed", "eval/rft", "eval/iter-1", "eval/iter-2"],
    "evaluate.followed=7": ["eval/seed", "eval/rft", "eval/iter-1", "eval/iter-2"],
    "tracking=tensorboard": [],  # it looks on
}


def prints(file: Path, *overrides: str) -> dict[str, str]:
    """Fingerprint of every stage."""
    file.write_text(
        "name: x\niterations: 2\nrft: {learning_rate: 1.0e-5}\ndpo: {learning_rate: 1.0e-5}\n"
        "judge: {train: {learning_rate: 1.0e-5}}\n"
    )
    planned = locate(pin(load_recipe(file, overrides)), file.parent)
    return {p.stage.name: p.folder.fingerprint for p in planned}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_anew_just_what_depends_on_it(file: Path, change: str) -> None:
    before, after = prints(file), prints(file, change)
    assert list(before) == ALL
    assert [name for name in ALL if after[name] != before[name]] == CHANGES[change]


def test_without_an_sft_term_micro_batches_change_nothing(file: Path) -> None:
    plain = "dpo.sft_weight=0"
    assert prints(file, plain) == prints(file, plain, "dpo.micro_batch_size=2")


def test_changed_weights_make_anew_what_depends_on_them(file: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    expected = {
        "policy": ["eval/seed", *RFT, *JUDGE, *FIRST, *LATER],
        "judge": [*JUDGE[2:], *FIRST[1:], *LATER],
    }
    for part, changed in expected.items():
        seen = []
        for content in (b"old", b"new"):
            weights.write_bytes(content)
            seen.append(prints(file, f"{part}.model={weights.parent}"))
        before, after = seen
        assert [name for name in ALL if after[name] != before[name]] == changed


def test_a_run_is_looked_at_with_the_digests_it_began_with(file: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"old")
    recipe = Recipe.model_validate({"name": "x", "policy": {"model": str(weights.parent)}})
    pinned = pin(recipe)
    assert pin(pinned) == pinned
    assert pin(Recipe(name="x", policy=Policy(model="hub/name"))).policy.digest is None
    weights.write_bytes(b"new")
    with pytest.raises(SelfcalError, match=r"policy\.model: .* has changed"):
        pin(pinned)
    weights.unlink()
    weights.parent.rmdir()
    assert pin(pinned) == pinned  # a run can be looked at without its model


def on(data: dict[str, Any], **more: Any) -> Recipe:
    """A recipe on a user's own data."""
    sizes = {"rft": 1, "calibration": 1, "dev": 0, "test": 0}
    given = {"name": "own", "data": {**sizes, **data}, "evaluate": {"splits": []}}
    return Recipe.model_validate(given | more)


def rows(path: Path, text: str) -> Path:
    """A data file; nobody reads it here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"id": "1", "image": "a.png", "question": "{text}", "answer": "yes"}}\n')
    return path


def data_print(recipe: Recipe) -> str:
    return next(p.folder.fingerprint for p in locate(pin(recipe), Path()))


def test_changed_data_are_read_anew(tmp_path: Path) -> None:
    for split in ("rft", "calibration", "test"):
        rows(tmp_path / "own" / f"{split}.jsonl", "old?")
    rows(tmp_path / "shards" / "data" / "a.jsonl", "old?")
    rows(tmp_path / "shards" / "data" / "b.jsonl", "old?")
    file = rows(tmp_path / "file.jsonl", "old?")
    own = on({"source": str(tmp_path / "own")})
    mixed = on({"sources": [{"path": str(file)}, {"path": str(tmp_path / "shards")}]})
    seen = [[data_print(own), data_print(mixed)]]
    assert set(pin(own).data.digests) == {"rft", "calibration"}  # the others are not read
    for changed in ("own/rft.jsonl", "own/test.jsonl", "file.jsonl", "shards/data/b.jsonl"):
        rows(tmp_path / changed, "new?")
        seen.append([data_print(own), data_print(mixed)])
    (tmp_path / "shards" / "data" / "b.jsonl").rename(tmp_path / "shards" / "data" / "0.jsonl")
    seen.append([data_print(own), data_print(mixed)])  # their order is that of the rows
    steps = [[a != b for a, b in zip(*two, strict=True)] for two in pairwise(seen)]
    assert steps == [[True, False], [False] * 2, [False, True], [False, True], [False, True]]
    assert data_print(Recipe(name="x")) == data_print(Recipe(name="x", data={"digests": {}}))


def test_a_run_is_looked_at_when_its_data_are_gone(tmp_path: Path) -> None:
    file = rows(tmp_path / "data" / "rft.jsonl", "old?")
    for given in ({"source": str(file.parent)}, {"sources": [{"path": str(file)}]}):
        rows(file, "old?")
        run = tmp_path / "run"
        pinned = pin(on(given))
        write_json(run / RECIPE_FILE, {"recipe": pinned.model_dump(mode="json")})
        assert pin(pinned) == pinned == open_run(run)
        rows(file, "new?")
        with pytest.raises(SelfcalError, match=r"data\.source.*rft\.jsonl has changed .*digest"):
            pin(pinned)
        file.unlink()
        assert pin(pinned) == pinned and results(run) == []
        assert locate(open_run(run), run)[0].folder.fingerprint == data_print(pinned)


def test_a_run_of_before_data_had_digests_is_looked_at() -> None:
    mixed = on({"sources": [{"path": "gone.jsonl"}]})
    (data, *_) = locate(mixed, Path())
    old = mixed.data.model_dump(exclude={"digests": True, "sources": {"__all__": {"digest"}}})
    assert data.stage.settings == {"data": old}


def test_fine_tuning_alone_takes_as_many_steps_as_dpo() -> None:
    for repeat in (True, False):
        sizes = {}
        for method in ("src", "sft_only"):
            recipe = Recipe.model_validate(
                {"name": "x", "method": method, "data": {"repeat": repeat}}
            )
            sizes |= {s.name: s.size for s in plan(recipe)}
        assert sizes["iter-1/sft"] == sizes["iter-1/dpo"] > 0


def test_iterations_that_share_the_samples_depend_on_how_many_there_are(file: Path) -> None:
    before = prints(file, "data.repeat=false")
    after = prints(file, "data.repeat=false", "iterations=3")
    assert [name for name in ALL if after[name] != before[name]] == [*FIRST, *LATER]


def test_a_judge_that_is_not_trained_has_no_training(file: Path) -> None:
    for kind in ("guess", "verifier"):
        found = prints(file, f"judge.kind={kind}")
        assert list(found) == [name for name in ALL if name not in JUDGE]
        trained = prints(file)
        assert [name for name in found if found[name] != trained[name]] == [*FIRST[1:], *LATER]


def test_equal_stages_of_two_methods_can_be_shared(file: Path) -> None:
    src, control = prints(file), prints(file, "method=sft_only")
    shared = ["data", "eval/seed", "teacher", *RFT]
    assert [name for name in control if src.get(name) == control[name]] == shared


def test_stages_do_not_depend_on_where_the_run_lies(file: Path, tmp_path: Path) -> None:
    recipe = Recipe(name="x")
    here, there = locate(recipe, tmp_path / "here"), locate(recipe, Path("elsewhere"))
    assert [p.folder.fingerprint for p in here] == [p.folder.fingerprint for p in there]
