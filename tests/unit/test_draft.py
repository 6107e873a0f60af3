"""A first recipe for somebody's own model and data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from selfcal.cost.machine import Machine, machine
from selfcal.draft import Answers, DraftError, draft
from selfcal.recipe import Recipe
from unit.hand_made import call

SERVER = {"kind": "endpoint", "base_url": "http://127.0.0.1:1/v1", "model": "big: one"}
CPU = Machine("CPU", 24 * 2**30, here=True)


def recipe(on: Machine = CPU, **more: object) -> Recipe:
    known = {"name": "mine", "model": "x/y-7B", "data": "q.jsonl", "rows": {"all": 1000}}
    answers = Answers(**{**known, "teacher": SERVER, "labels": SERVER, **more})
    return Recipe.model_validate(yaml.safe_load(draft(answers, on)))


def test_one_file_is_split_in_shares_of_its_rows() -> None:
    found = recipe()
    assert [s.path for s in found.data.sources] == ["q.jsonl"]
    assert (found.data.rft, found.data.calibration) == (250, 500)
    assert (found.data.dev, found.data.test) == (100, 150)
    assert found.teacher.kind == "endpoint" and found.teacher.model == "big: one"
    assert found.judge.labels == found.judge.labels.model_validate(SERVER)


def test_large_data_gets_the_papers_sizes() -> None:
    found = recipe(rows={"all": 10**6}).data
    assert (found.rft, found.calibration) == (20_000, 12_000)


def test_files_of_splits_are_taken_as_they_are() -> None:
    found = recipe(rows={"rft": 30, "calibration": 40, "test": 9}, data="folder")
    assert found.data.source == "folder" and not found.data.sources
    assert (found.data.rft, found.data.calibration, found.data.dev) == (30, 40, 0)
    assert found.evaluate.splits == ("test",)


def test_csr_needs_neither_teacher_nor_judge() -> None:
    found = recipe(method="csr", teacher=None, labels=None)
    assert found.rft is None and found.data.rft == 0 and found.search.keep == "top_bottom"
    assert found.dpo.sft_weight == 0


def test_prompts_without_answers_are_not_measured() -> None:
    found = recipe(method="csr", teacher=None, labels=None, prompts=True)
    assert found.data.calibration == 1000 and found.evaluate.splits == ()


def test_too_little_data_is_refused() -> None:
    with pytest.raises(DraftError, match=r"q\.jsonl: too few samples for rft; give more data"):
        recipe(rows={"all": 3})
    with pytest.raises(DraftError, match="src needs a teacher"):
        recipe(teacher=None)


def test_src_refuses_prompts_by_their_name() -> None:
    with pytest.raises(DraftError, match=r"q\.jsonl: .* without answers, .*--method csr, or data"):
        recipe(prompts=True)


def test_nobody_is_asked_for_a_teacher_of_prompts(photos: str) -> None:
    Path("p.json").write_text(json.dumps([{"id": 1, "image": "a.png", "input": "What?"}] * 40))
    done = call("init", "mine", "--model", "x/y-7B", "--data", "p.json")
    assert done.exit_code == 1 and "without answers" in done.output


def test_a_small_gpu_gets_small_steps_first_and_then_four_bits() -> None:
    large, small = recipe(machine("h200")), recipe(machine("rtx4090"))
    assert large.policy.dtype == "bfloat16"
    assert large.dpo.micro_batch_size == 8 and large.dpo.gradient_checkpointing
    assert large.dpo.lora is not None and not large.dpo.lora.four_bit
    assert small.rft is not None and small.rft.gradient_checkpointing
    assert small.rft.lora is not None and not small.rft.lora.four_bit
    assert small.dpo.gradient_checkpointing
    assert small.dpo.lora is not None and small.dpo.lora.four_bit


def test_a_cpu_is_never_given_four_bits() -> None:
    found = recipe(Machine("CPU", 2**30))
    assert found.policy.dtype == "float32"
    assert found.dpo.lora is not None and not found.dpo.lora.four_bit


# --- the command ----------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    rows = ({"id": i, "image": "a.png", "question": f"{i}?", "answer": "1"} for i in range(40))
    Path("q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return "q.jsonl"


def test_it_writes_a_recipe_that_can_be_read(photos: str) -> None:
    url = ("--teacher", "http://127.0.0.1:1/v1", "--teacher-model", "m")
    done = call("init", "mine", "--model", "x/y-7B", "--data", photos, *url, "--gpu", "h200")
    assert done.exit_code == 0, done.output
    assert "Wrote mine.yaml for 40 rows on h200." in done.output
    found = Recipe.model_validate(yaml.safe_load(Path("mine.yaml").read_text()))
    assert found.name == "mine" and found.data.rft == 10
    again = call("init", "mine", "--model", "x/y-7B", "--data", photos, *url)
    assert again.exit_code == 1 and "mine.yaml is there already" in again.output


def test_later_turns_are_no_rows(photos: str) -> None:
    asked = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    rows = [{"id": str(i), "image": "a.png", "conversations": asked * 3} for i in range(40)]
    Path("q.json").write_text(json.dumps(rows))
    Path("split").mkdir()
    Path("split/rft.json").write_text(json.dumps(rows[:10]))
    Path("split/calibration.json").write_text(json.dumps(rows[10:]))
    more = ("--model", "x/y-7B", "--method", "src", "--teacher", "a/b")
    done = call("init", "one", "--data", "q.json", *more)
    assert "Wrote one.yaml for 40 rows" in done.output, done.output
    done = call("init", "two", "--data", "split", *more)
    assert "Wrote two.yaml for 10 rft, 30 calibration" in done.output, done.output


@pytest.mark.parametrize(
    ("who", "kind"), [("raps.jsonl", "file"), ("a/b", "local"), ("https://h/v1", "endpoint")]
)
def test_who_teaches_is_told_by_its_looks(photos: str, who: str, kind: str) -> None:
    more = ("--teacher-model", "m", "--labels", "c/d", "--method", "src")
    done = call("init", "mine", "--model", "x/y-7B", "--data", photos, "--teacher", who, *more)
    assert done.exit_code == 0, done.output
    found = Recipe.model_validate(yaml.safe_load(Path("mine.yaml").read_text()))
    assert found.teacher.kind == kind and found.judge.labels.kind == "local"


def test_what_is_missing_is_named_where_nobody_can_be_asked(photos: str) -> None:
    done = call("init", "mine")
    assert done.exit_code == 1 and "--model is missing" in done.output
    done = call("init", "mine", "--model", "m", "--data", photos, "--method", "povid")
    assert done.exit_code == 1 and "recipe of recipes/ as the `base`" in " ".join(
        done.output.split()
    )
