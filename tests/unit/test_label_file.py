"""Files of labelled pairs: how recipes name them, what is read out of them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfcal.errors import SelfcalError
from selfcal.judge.label_file import LabelFileError, few_labels, read_label_file, split_labels
from selfcal.pipeline import pin, plan
from selfcal.recipe import FileLabels, Recipe, load_recipe
from selfcal.types import Drop, LabelledPair
from unit.hand_made import call, flat

ROW = {
    "sample_id": "a", "question": "How many?", "facts": "two cups", "first": "Two.",
    "second": "Three.", "verdict": "first",
}  # fmt: skip


def written(folder: Path, *rows: Mapping[str, Any], name: str = "labels.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def labels(folder: Path, samples: int = 20) -> Path:
    """Pairs of so many samples, of which some are held out at a share of 0.2."""
    return written(folder, *({**ROW, "sample_id": f"s{i}"} for i in range(samples)))


def base(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"name: x\niterations: 1\n{text}")
    return path


# --- in a recipe ------------------------------------------------------------------------------


def test_a_path_alone_means_kind_file(tmp_path: Path) -> None:
    expected = FileLabels(path="some.jsonl")
    assert load_recipe(base(tmp_path, "judge: {labels: some.jsonl}")).judge.labels == expected
    plain = base(tmp_path, "judge: {labels: {kind: endpoint, model: m}}")
    assert load_recipe(plain, ["judge.labels=some.jsonl"]).judge.labels == expected
    both = ["judge.labels.digest=abc", "judge.labels=some.jsonl"]
    assert load_recipe(plain, both).judge.labels == expected  # the later one is the whole
    assert load_recipe(plain, both[::-1]).judge.labels == FileLabels(
        path="some.jsonl", digest="abc"
    )


def test_a_recipe_may_replace_the_labels_of_its_base(tmp_path: Path) -> None:
    below = base(tmp_path, "judge: {labels: some.jsonl}")
    above = tmp_path / "above.yaml"
    above.write_text(f"base: {below.name}\njudge: {{labels: {{kind: endpoint, model: m}}}}\n")
    assert load_recipe(above).judge.labels.kind == "endpoint"
    above.write_text(f"base: {below.name}\njudge: {{labels: other.jsonl}}\n")
    assert load_recipe(above).judge.labels == FileLabels(path="other.jsonl")


def test_the_file_is_pinned_by_its_content_and_counted(tmp_path: Path) -> None:
    file = labels(tmp_path)
    recipe = pin(load_recipe(base(tmp_path, ""), [f"judge.labels={file}"]))
    assert isinstance(recipe.judge.labels, FileLabels)
    assert recipe.judge.labels.pairs == 20 and recipe.judge.labels.digest
    file.write_text(file.read_text() + "\n")
    with pytest.raises(SelfcalError, match=r"judge\.labels\.path: .*labels\.jsonl has changed"):
        pin(recipe)
    file.unlink()
    assert pin(recipe) == recipe  # a finished run can be looked at without it


def test_a_missing_file_is_told_before_anything_runs(tmp_path: Path) -> None:
    recipe = load_recipe(base(tmp_path, ""), ["judge.labels=none.jsonl"])
    with pytest.raises(LabelFileError, match=r"judge\.labels: none\.jsonl: no such file; give a"):
        pin(recipe)
    with pytest.raises(LabelFileError, match="verifier: unknown kind of file"):
        pin(load_recipe(base(tmp_path, ""), ["judge.labels=verifier"]))


def sizes(recipe: Recipe) -> dict[str, int]:
    return {s.name: s.size for s in plan(recipe)}


def test_the_stages_of_a_run_with_labels(tmp_path: Path) -> None:
    steps = "judge: {train: {learning_rate: 1.0e-4, batch_size: 8, epochs: 1}}\n"
    recipe = pin(load_recipe(base(tmp_path, steps), [f"judge.labels={labels(tmp_path)}"]))
    found = sizes(recipe)
    assert "judge/candidates" not in found
    # 20 pairs, a fifth held out, each of the others in both orders, 8 in a step
    assert found["judge/labels"] == 20
    assert found["judge/train"] == 2 * 16 / 8
    assert found["judge/quality"] == 4
    (stage,) = [s for s in plan(recipe) if s.name == "judge/labels"]
    assert stage.inputs == ()


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [
        (["method=independent"], "or another method"),
        (["method=faithful_grpo"], "or another method"),
        (["method=groupwise_grpo"], "or another method"),
        (["judge.calibrate=each"], "or set that to `once`"),
    ],
)
def test_who_asks_for_labels_of_its_own_is_refused(
    tmp_path: Path, settings: list[str], way_out: str
) -> None:
    recipe = load_recipe(
        base(tmp_path, "policy: {model: p}\n"), [f"judge.labels={labels(tmp_path)}", *settings]
    )
    with pytest.raises(
        SelfcalError, match="which a file of labels cannot give; take kind `endpoint` or `local`, "
    ) as told:
        plan(pin(recipe))
    assert str(told.value).endswith(way_out)


# --- what is read -----------------------------------------------------------------------------


def test_rows_become_labelled_pairs_in_order(tmp_path: Path) -> None:
    other = ROW | {"sample_id": 7, "verdict": "neutral", "annotator": "ada", "facts": ""}
    found = read_label_file(written(tmp_path, ROW, other))
    assert found.pairs == (
        LabelledPair("a", "How many?", "two cups", "Two.", "Three.", "first"),
        LabelledPair("7", "How many?", "", "Two.", "Three.", "neutral"),
    )
    assert found.drops == ()


def test_a_table_is_read_as_lines_are(tmp_path: Path) -> None:
    (tmp_path / "i.png").touch()
    rows = [ROW | {"images": ["i.png"]}, ROW | {"sample_id": "b", "images": []}]
    table = tmp_path / "labels.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    found = read_label_file(table)
    assert found == read_label_file(written(tmp_path, *rows))
    assert found.pairs[0].images == (str(tmp_path / "i.png"),)


def test_equal_texts_and_pairs_that_are_there_twice_are_dropped(tmp_path: Path) -> None:
    equal = ROW | {"first": "Two. ", "second": "Two."}
    again = ROW | {"first": "Three.", "second": "Two.", "verdict": "second"}
    found = read_label_file(written(tmp_path, ROW, equal, again))
    assert len(found.pairs) == 1
    assert found.drops == (
        Drop("a", "judge/labels", "equal-texts", "line 2"),
        Drop("a", "judge/labels", "twice", "line 3, as line 1"),
    )


def test_equal_ids_of_other_questions_are_other_samples_pairs(tmp_path: Path) -> None:
    other = ROW | {"question": "Which colour?", "verdict": "second"}
    assert len(read_label_file(written(tmp_path, ROW, other)).pairs) == 2


def test_a_judge_that_sees_needs_no_facts(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "i.png").touch()
    row = {k: v for k, v in ROW.items() if k != "facts"} | {"images": ["images/i.png"]}
    (pair,) = read_label_file(written(tmp_path, row), sees=True).pairs
    assert pair.facts == "" and pair.images == (str(tmp_path / "images" / "i.png"),)


def test_a_share_of_the_samples_is_held_out_as_a_whole(tmp_path: Path) -> None:
    rows = [{**ROW, "sample_id": f"s{i // 3}", "first": f"Two {i}."} for i in range(60)]
    pairs = read_label_file(written(tmp_path, *rows)).pairs
    train, test = split_labels(tmp_path, pairs, 0.2)
    assert len(train) + len(test) == 60 and train and test
    assert not {p.sample_id for p in train} & {p.sample_id for p in test}


# --- what is refused --------------------------------------------------------------------------


def refusal(folder: Path, *rows: Mapping[str, Any], sees: bool = False) -> str:
    path = written(folder, *rows)
    with pytest.raises(LabelFileError) as told:
        read_label_file(path, sees)
    said = str(told.value)
    assert said.startswith(f"{path}: ")
    return said.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verdict": "A"}, "the verdict is 'A'; give first, second or neutral"),
        ({"verdict": None}, "the verdict is None; give first, second or neutral"),
        ({"verdict": ["first"]}, "the verdict is ['first']; give first"),
        ({"first": " "}, "'first' is empty; fill it, or leave the row out"),
        ({"question": None}, "'question' is empty"),
        ({"sample_id": ""}, "'sample_id' is empty"),
        ({"second": 3}, "'second' is a number; give text"),
        ({"facts": ["x"]}, "'facts' is a list; give text"),
        ({"first": "\ud800"}, "'first' has half a character"),
        ({"images": "i.png"}, "'images' is no list of paths"),
        ({"images": [""]}, "'images' is no list of paths"),
        ({"images": ["../i.png"]}, "image '../i.png' lies outside of "),
        ({"images": ["/etc/passwd"]}, "image '/etc/passwd' lies outside of "),
        ({"images": ["a\0b"]}, "image 'a\\x00b': no path ("),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    assert refusal(tmp_path, ROW, ROW | change).startswith(f"line 2: {said}")


def test_a_missing_column_is_named_with_what_is_near(tmp_path: Path) -> None:
    row = {("verdikt" if k == "verdict" else k): v for k, v in ROW.items()}
    assert refusal(tmp_path, row) == (
        "line 1: there is no 'verdict' (did you mean 'verdikt'?); give each row sample_id, "
        "question, first, second, verdict and facts"
    )
    bare = {k: v for k, v in ROW.items() if k != "facts"}
    assert "there is no 'facts'" in refusal(tmp_path, bare)


def test_labels_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    turned = ROW | {"first": "Three.", "second": "Two."}  # of the same verdict: the other text
    assert refusal(tmp_path, ROW, turned) == (
        "line 2: its verdict on this pair is not that of line 1; keep one of the two"
    )


def test_a_text_judge_without_any_facts_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, ROW | {"facts": ""}).startswith("no pair (of 1) has facts")


def test_a_judge_that_sees_wants_images_that_are_there(tmp_path: Path) -> None:
    assert refusal(tmp_path, ROW, sees=True).startswith("line 1: there are no images, and the judg")
    missing = refusal(tmp_path, ROW | {"images": ["i.png"]}, sees=True)
    assert missing == f"line 1: image 'i.png': there is no {tmp_path / 'i.png'}; put it there"


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.png").touch()
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "i.png").symlink_to(tmp_path / "secret.png")
    said = refusal(tmp_path / "file", ROW | {"images": ["i.png"]}, sees=True)
    assert said.startswith("line 1: image 'i.png' lies outside of ")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], r"its pairs \(0, samples: 0\) leave none to train on"),
        ([ROW, ROW | {"first": "2"}], r"its pairs \(2, samples: 1\) leave none to "),
        (
            [ROW | {"verdict": "neutral", "sample_id": f"s{i}"} for i in range(20)],
            r"train on \(1[0-9]\) is neutral",
        ),
    ],
)
def test_too_few_pairs_are_told(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    recipe = load_recipe(base(tmp_path, ""), [f"judge.labels={written(tmp_path, *rows)}"])
    with pytest.raises(LabelFileError, match=said):
        pin(recipe)


def test_few_labels_are_told_before_anything_is_run(tmp_path: Path) -> None:
    few = call("plan", base(tmp_path, ""), "--set", f"judge.labels={labels(tmp_path)}")
    assert "! Few labels for the judge: pairs to train on 1" in flat(few.output)
    many = call("plan", base(tmp_path, ""), "--set", f"judge.labels={labels(tmp_path, 400)}")
    assert few.exit_code == many.exit_code == 0
    assert "Few labels" not in many.output
    assert few_labels(100, 30) == "" != few_labels(100, 29)
