"""`selfcal eval` on real files with the shipped model, and marks in a run's measurement."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import selfcal.search
from selfcal.benchmarking import Wanted, evaluate_model, find_model
from selfcal.cli import app
from selfcal.errors import SelfcalError
from selfcal.methods.parts.measure import evaluate
from selfcal.recipe import LocalMarker, Recipe
from selfcal.stage import Work
from selfcal.store import StageDir
from selfcal.testing import tiny_samples
from selfcal.types import Response, Result, Sample

MODEL = "miniworld:mini-llava"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return tiny_samples(Path(tmp_path_factory.mktemp("questions")), 40, "test")


def write_tsv(path: Path, samples: Sequence[Sample]) -> Path:
    """VLMEvalKit's form."""
    lines = ["index\timage\tquestion\tanswer\tcategory"]
    for s in samples:
        picture = base64.b64encode(Path(s.image).read_bytes()).decode()
        lines.append(f"{s.id}\t{picture}\t{s.question}\t{s.answer}\t{s.category}")
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["eval", *map(str, words), "--device", "cpu"])


def test_a_table_is_answered_graded_and_gone_on_with(
    questions: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_tsv(tmp_path / "Mini.tsv", questions), tmp_path / "out"
    asked: list[str] = []
    honest = selfcal.search.respond_ended

    def noted(policy: Any, samples: Iterator[Sample], *rest: Any) -> Iterator[tuple[str, bool]]:
        def feed() -> Iterator[Sample]:
            for sample in samples:
                asked.append(sample.id)
                yield sample

        return honest(policy, feed(), *rest)

    monkeypatch.setattr(selfcal.search, "respond_ended", noted)
    first = run(MODEL, "--data", data, "--out", out, "--limit", 33)
    assert first.exit_code == 0, first.output
    assert asked == [s.id for s in questions[:33]]
    # as if it had been killed before the last file was written
    shards = sorted((out / "responses").iterdir())
    assert len(shards) == 2
    shards[1].unlink()
    asked.clear()
    second = run(MODEL, "--data", data, "--out", out)
    assert second.exit_code == 0, second.output
    assert asked == [s.id for s in questions[32:]]
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [r["id"] for r in rows] == [s.id for s in questions]
    by_id = {s.id: s for s in questions}
    for row in rows:  # the shipped model writes `Answer: ...`, and MiniWorld's answers are plain
        said = row["text"].rpartition("Answer: ")[2]
        assert (row["answer"], row["correct"]) == (said, said == by_id[row["id"]].answer)
    results = json.loads((out / "results.json").read_text())
    assert (results["n"], results["metric"], results["drops"]) == (40, "accuracy", {})
    figures = {(f["group"], f["name"]): f for f in results["figures"]}
    accuracy = figures["all", "accuracy"]
    assert accuracy["value"] == sum(r["correct"] for r in rows) / 40 and accuracy["n"] == 40
    assert f"{accuracy['value']:.3f} ±{accuracy['stderr']:.3f}" in second.output
    asked.clear()
    third = run(MODEL, "--data", data, "--out", out, "--json")
    assert third.exit_code == 0 and not asked
    assert json.loads(third.stdout)["figures"] == results["figures"]


def test_another_model_or_prompt_does_not_go_on(questions: list[Sample], tmp_path: Path) -> None:
    data, out = write_tsv(tmp_path / "Mini.tsv", questions[:2]), tmp_path / "out"
    assert run(MODEL, "--data", data, "--out", out).exit_code == 0
    other = run(MODEL, "--data", data, "--out", out, "--prompt", "Be brief.")
    assert other.exit_code == 1
    assert 'was begun with prompt null, this is "Be brief."' in other.output
    pinned = json.loads((out / "eval.json").read_text())
    (out / "eval.json").write_text(json.dumps({**pinned, "digest": "0" * 64}))
    changed = run(MODEL, "--data", data, "--out", out)
    assert changed.exit_code == 1 and "was begun with digest" in changed.output
    assert "another --out" in changed.output


def test_pope_goes_by_the_name_and_an_open_answer_is_no_pope(
    questions: list[Sample], tmp_path: Path
) -> None:
    polar = [s for s in questions if s.answer in ("yes", "no")]
    assert polar
    found = evaluate_model(
        Wanted(MODEL, write_tsv(tmp_path / "POPE.tsv", polar), tmp_path / "a", device="cpu")
    )
    names = {f.name for f in found.figures}
    assert found.metric == "pope" and {"pope_f1", "pope_yes_ratio", "unreadable"} <= names
    data = write_tsv(tmp_path / "POPE-like.tsv", questions[:3])
    mixed = [s for s in questions[:12] if s.answer not in ("yes", "no")]
    data = write_tsv(tmp_path / "POPE-like.tsv", mixed)
    found = evaluate_model(Wanted(MODEL, data, tmp_path / "b", device="cpu"))
    assert found.metric == "accuracy"


def test_chair_needs_objects_and_takes_the_whole_text(
    questions: list[Sample], tmp_path: Path
) -> None:
    data = write_tsv(
        tmp_path / "captions.tsv", [replace(s, answer="star, circle") for s in questions[:6]]
    )
    failed = run(MODEL, "--data", data, "--out", tmp_path / "c", "--metric", "chair")
    assert failed.exit_code == 1 and "--objects" in failed.output
    objects = tmp_path / "objects.txt"
    objects.write_text("star\ncircle\nsquare\ntriangle\nbar\n")
    done = run(MODEL, "--data", data, "--out", tmp_path / "c", "--objects", objects)
    assert done.exit_code == 0 and "chair_i" in done.output and "accuracy" not in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split", "test"], "--split test"),
        (["--marker-model", "x"], "--marker"),
        (["--marker", "local"], "--marker-model"),
        (["--columns", "answer"], "FIELD=COLUMN"),
    ],
)
def test_wrong_options_say_what_to_do(
    questions: list[Sample], tmp_path: Path, words: list[str], said: str
) -> None:
    data = write_tsv(tmp_path / "Mini.tsv", questions[:1])
    done = run(MODEL, "--data", data, *words)
    assert done.exit_code == 1 and said in done.output


def test_a_run_without_a_checkpoint_is_no_model(tmp_path: Path) -> None:
    from selfcal.pipeline import RECIPE_FILE

    assert find_model(MODEL) == (MODEL, None)
    (tmp_path / RECIPE_FILE).write_text("name: x\n")
    with pytest.raises(SelfcalError):
        find_model(str(tmp_path))


SHORT = {"flaws": "{{ response }} {{ flaws | join(' ') }}"}  # the shipped model reads 512 tokens
MARKER = LocalMarker(model=MODEL, dtype="float32", max_tokens=8, prompts=SHORT)


def test_a_marker_that_says_nothing_leaves_all_unscored(
    questions: list[Sample], tmp_path: Path
) -> None:
    data = write_tsv(tmp_path / "Mini.tsv", questions[:3])
    wanted = Wanted(MODEL, data, tmp_path / "out", device="cpu", marker=MARKER)
    found = evaluate_model(wanted)
    figures = {f.name: f for f in found.figures if f.group == "all"}
    assert figures["marker_unscored"].value == 1 and figures["marker_unscored"].n == 3
    assert figures["estimated/rationale_soundness"].n == 0
    marks = (tmp_path / "out" / "marks" / "00000.jsonl").read_text()
    evaluate_model(wanted)
    assert (tmp_path / "out" / "marks" / "00000.jsonl").read_text() == marks
    assert not (tmp_path / "out" / "marks" / "00001.jsonl").exists()


def test_a_run_measures_estimates_where_no_verifier_knows(
    questions: list[Sample], tmp_path: Path
) -> None:
    recipe = Recipe.model_validate({
        "name": "marked",
        "data": {"source": str(tmp_path), "dev": 4, "test": 4},
        "evaluate": {"splits": ["test"], "marker": MARKER.model_dump(), "max_new_tokens": 60},
        "policy": {"device": "cpu"},
    })  # fmt: skip
    stage = evaluate(recipe, "seed")
    data, folder = StageDir(tmp_path / "data", "d"), StageDir(tmp_path / "eval" / "seed", "e")
    for one in (data, folder):
        one.open()
    data.write_shard("test", 0, questions[:4], Sample)
    prompts = [replace(s, answer="") for s in questions[4:6]]
    data.write_shard("calibration", 0, prompts, Sample)
    figures = stage.run(Work(tmp_path, stage, folder, {"data": data}, seed=0))
    found = {r.metric: r for r in folder.read("results", Result) if r.category == "all"}
    assert found["marker_unscored"].value == 1 and found["marker_unscored"].n == 4
    assert found["unreadable"].value == 0
    # what is followed is answered, and neither measured nor marked
    assert [r.sample_id for r in folder.read("calibration", Response)] == [s.id for s in prompts]
    assert {r.split for r in folder.read("results", Result)} == {"test"}
    assert folder.has("marks-test", 0) and not folder.has("marks-calibration", 0)
    assert "rationale_soundness" not in found  # only the verifier's has that name
    assert "answer_accuracy" in figures and "marker_agreement" not in figures  # it is no number
    without = recipe.model_copy(
        update={"evaluate": recipe.evaluate.model_copy(update={"marker": None})}
    )
    assert evaluate(without, "seed").settings != stage.settings
