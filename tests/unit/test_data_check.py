"""`selfcal data check`: what it says of files, and that they cannot harm a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from selfcal.data.report import inspect_data, question_kind
from selfcal.types import Sample
from unit.hand_made import EVIL, call, flat

ROW: dict[str, Any] = {"id": "a", "image": "a.png", "question": "How many?", "answer": "2"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with images of several kinds."""
    for i, name in enumerate(("a", "b", "c")):
        Image.new("RGB", (10 * (i + 1), 8)).save(tmp_path / f"{name}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    frames = [Image.new("RGB", (12, 12), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    return tmp_path


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines))
    return path


def mixed(folder: Path) -> Path:
    return write(
        folder / "data.jsonl",
        {**ROW, "category": "math"},
        {**ROW, "id": "b", "image": "b.png", "answer": "Yes", "category": "chart"},
        {**ROW, "id": "c", "image": "turned.jpg", "answer": "a dog"},
        {**ROW, "id": "d", "image": "moving.gif", "choices": ["1", "2"], "answer": "B"},
        {**ROW, "id": "e", "image": None, "images": ["a.png", "c.png"], "category": "math"},
        {**ROW, "id": "f", "question": "how  many"},
        {**ROW, "id": "g", "image": "none.png"},
        {**ROW, "id": "h", "image": "nowhere.png"},
        {**ROW, "id": "i", "choices": ["1", "2"], "answer": "C"},
    )


def test_everything_is_counted(folder: Path) -> None:
    found = json.loads(call("data", "check", mixed(folder), "--json").stdout)
    assert found["usable"] and not found["leaks"]
    (file,) = found["files"]
    assert (file["format"], file["rows"], file["kept"], file["problem"]) == ("JSON lines", 9, 6, "")
    assert file["categories"] == {"": 3, "math": 2, "chart": 1}
    assert file["kinds"] == {"number": 3, "yes/no": 1, "open": 1, "multiple choice": 1}
    assert file["duplicates"] == 1
    assert file["drops"] == {
        "image-missing": {"rows": 2, "first": "line 7: none.png"},
        "answer-not-an-option": {"rows": 1, "first": "line 9: a.png"},
    }
    images = file["images"]
    assert images["different"] == 5
    # a 10x8, b 20x8, turned 20x30, moving 12x12, c 30x8
    assert images["width"] == {"least": 10, "median": 20, "most": 30}
    assert images["height"] == {"least": 8, "median": 8, "most": 30}
    assert images["formats"] == {"PNG": 3, "JPEG": 1, "GIF": 1}
    assert (images["animated"], images["turned"]) == (1, 1)
    assert (images["several"], images["most"]) == (1, 2)
    assert [e["id"] for e in file["examples"]] == ["a", "b", "c"]


def test_people_are_told_the_same_and_the_way_out(folder: Path) -> None:
    shown = call("data", "check", mixed(folder))
    text = flat(shown.stdout)
    assert shown.exit_code == 0
    for said in (
        "6 of 9 rows can be used (66.7 %) · JSON lines",
        "5 different",
        "10 to 30 pixels, median 20",
        "1 turned upright",
        "1 of several frames",
        "1 sample with more than one image, up to 2",
        "1 sample asks what an earlier one asks",
        "image-missing 2 line 7: none.png → put the files there, or say where they are",
        "▣ turned.jpg How many? answer a dog",
        "A run can use this.",
    ):
        assert said in text, said


def test_options_images_and_columns(folder: Path) -> None:
    sub = folder / "sub"
    sub.mkdir()
    path = write(
        sub / "x.jsonl", {"image": "a.png", "query": "Which?", "label": 1, "choices": ["x", "y"]}
    )
    columns = ("--columns", "question=query,answer=label", "--columns", "id=ROW")
    assert call("data", "check", path, *columns).exit_code == 1
    shown = call("data", "check", path, *columns, "--images", folder)
    assert shown.exit_code == 0
    assert "Which? Options: A. x B. y answer y" in flat(shown.stdout)
    assert call("data", "check", path, "--images", folder, *columns, "--min-side", 9).exit_code == 1
    bad = call("data", "check", path, "--columns", "question")
    assert bad.exit_code == 1 and "write FIELD=COLUMN" in flat(bad.stderr)


def test_turns_of_conversations(folder: Path) -> None:
    turns = [{"from": w, "value": v} for w, v in (("human", "Q"), ("gpt", "A")) * 3]
    path = folder / "x.json"
    path.write_text(json.dumps([{"id": "1", "image": "a.png", "conversations": turns}]))
    first = flat(call("data", "check", path).stdout)
    assert "1 of 3 rows" in first and "--turns all makes a sample of every turn" in first
    assert "3 of 3 rows" in flat(call("data", "check", path, "--turns", "all").stdout)


def test_a_folder_of_splits_and_its_leaks(folder: Path) -> None:
    for i, split in enumerate(("rft", "calibration", "dev", "test")):
        rows = [{**ROW, "id": f"{split}-0", "image": ("a", "b", "c", "a")[i] + ".png"}]
        rows += [{**ROW, "id": f"{split}-1", "image": "turned.jpg"}] if split == "dev" else []
        write(folder / f"{split}.jsonl", *rows)
    report = inspect_data(folder)
    assert [f.split for f in report.files] == ["rft", "calibration", "dev", "test"]
    assert [(k.splits, k.images, k.first) for k in report.leaks] == [(("rft", "test"), 1, "rft-0")]
    shown = call("data", "check", folder)
    assert shown.exit_code == 0
    text = flat(shown.stdout)
    assert "! 1 image is in rft and in test, too (such as that of rft-0)" in text
    assert "what it measures is flattered" in text
    write(folder / "test.jsonl", {**ROW, "image": "moving.gif"})
    assert "✓ no image is in a split for training" in flat(call("data", "check", folder).stdout)


def test_one_bad_split_does_not_hide_the_others(folder: Path) -> None:
    write(folder / "rft.jsonl", ROW)
    write(folder / "dev.jsonl", ROW, "{")
    write(folder / "test.jsonl", {**ROW, "answer": ""})
    (folder / "calibration.json").write_text(
        json.dumps([{"id": 1, "image": "b.png", "input": "Describe."}])
    )
    shown = call("data", "check", folder)
    text = flat(shown.stdout)
    assert shown.exit_code == 1
    assert "dev.jsonl: line 2: not readable as JSON" in text
    assert "No run can use this: mend dev, test." in text
    assert "CSR prompts" in text
    assert "1 of 1 row can be used" in text  # of dev, before what is broken


@pytest.mark.parametrize("name", ["none.jsonl", "x.csv"])
def test_what_is_no_data_is_an_error(folder: Path, name: str) -> None:
    (folder / "x.csv").write_text("a,b")
    shown = call("data", "check", folder / name)
    assert shown.exit_code == 1 and name in flat(shown.stderr).replace(" ", "")


def test_files_cannot_harm_the_terminal(folder: Path) -> None:
    evil = {**ROW, "id": EVIL, "question": EVIL, "answer": EVIL, "category": EVIL}
    path = write(folder / "x.jsonl", evil, {**ROW, "image": EVIL}, {**ROW, "id": "2", "answer": ""})
    for arguments in ((path,), (path, "--json")):
        shown = call("data", "check", *arguments).stdout
        assert not {"\x1b", "\u202e", "\x07"} & set(shown)
    assert "[bold]red" in call("data", "check", path).stdout


@pytest.mark.parametrize(
    ("answer", "choices", "kind"),
    [
        ("yes", (), "yes/no"), ("No.", (), "yes/no"), ("4", (), "number"), ("four", (), "number"),
        ("-1,000.50", (), "number"), ("50%", (), "number"), ("4 dogs", (), "open"),
        ("", (), "no answer"), ("yes", ("yes", "no"), "multiple choice"),
    ],
)  # fmt: skip
def test_kinds_of_questions(answer: str, choices: tuple[str, ...], kind: str) -> None:
    assert question_kind(Sample("", "", "?", answer, choices)) == kind
