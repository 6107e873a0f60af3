"""Every format of docs/data.md is read as it says, and files that lie or are damaged do no harm."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfcal.data import Checker, DataError, Kept, Rules, open_data, read, save_embedded
from selfcal.data.entries import json_entries
from selfcal.data.fields import match_option
from selfcal.data.rows import listed
from selfcal.types import Drop, Sample, question_text

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
ROW: dict[str, Any] = {"id": "a", "image": "a.png", "question": "How many?", "answer": "2"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three images, each another one."""
    for i, name in enumerate(("a", "cat", "dog")):
        Image.new("RGB", (8, 6), (80 * i, 0, 0)).save(tmp_path / f"{name}.png")
    return tmp_path


def png(color: str = "red", size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), color).save(file, "png")
    return file.getvalue()


def documented(name: str) -> str:
    """An example of the docs, by the name of its file."""
    found = re.search(rf"^`{re.escape(name)}`\n\n```\w*\n(.*?)^```", DOCS.read_text(), re.M | re.S)
    assert found, name
    return found[1]


def found_in(path: Path, **options: Any) -> tuple[list[Kept], list[Drop]]:
    rules = options.pop("rules", Rules())
    with Checker(rules) as checker:
        rows = list(read(open_data(path, **options), checker, path.parent / "out"))
    return [r for r in rows if isinstance(r, Kept)], [r for r in rows if isinstance(r, Drop)]


def samples_of(path: Path, **options: Any) -> list[Sample]:
    kept, dropped = found_in(path, **options)
    assert not dropped, dropped
    return [k.sample for k in kept]


def reasons_of(path: Path, **options: Any) -> list[str]:
    return [d.reason for d in found_in(path, **options)[1]]


def write(path: Path, text: str | bytes | object) -> Path:
    if not isinstance(text, str | bytes):
        text = json.dumps(text)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# --- the formats, as documented -----------------------------------------------------------------


def test_json_lines_and_lists_as_documented(folder: Path) -> None:
    lines = documented("vqa.jsonl")
    cat, dog = str(folder / "cat.png"), str(folder / "dog.png")
    expected = [
        Sample("1", cat, "How many cats are there?", "1"),
        Sample("2", cat, "Which animal is it?", "cat", ("dog", "cat"), "perception"),
        Sample(
            "3",
            cat,
            "What is in <image> but not in <image>?",
            "a cat",
            facts="first image: a cat; second image: a dog",
            more_images=(dog,),
        ),
    ]
    assert samples_of(write(folder / "vqa.jsonl", lines)) == expected
    rows = [json.loads(line) for line in lines.splitlines()]
    assert samples_of(write(folder / "vqa.json", rows)) == expected
    assert question_text(expected[1]) == "Which animal is it?\nOptions:\nA. dog\nB. cat"


def test_a_list_may_call_its_question_otherwise(folder: Path) -> None:
    row = {"query" if name == "question" else name: value for name, value in ROW.items()}
    path = write(folder / "a.json", [row])
    expected = [Sample("a", str(folder / "a.png"), "How many?", "2")]
    assert samples_of(path, columns={"question": "query"}) == expected
    assert open_data(path).format.startswith("CSR prompts")  # without a mapping, as before


def test_llava_conversations_as_documented(folder: Path) -> None:
    text, cat = documented("llava.json"), str(folder / "cat.png")
    first = Sample("1", cat, "What is it?", "A cat.")
    path = write(folder / "llava.json", text)
    kept, dropped = found_in(path)
    assert [k.sample for k in kept] == [first]
    assert [(d.sample_id, d.reason) for d in dropped] == [("1-2", "later-turn")]
    second = Sample("1-2", cat, "And what does it do?", "It sleeps.")
    assert samples_of(path, turns="all") == [first, second]
    lines = "\n".join(json.dumps(row) for row in json.loads(text))
    assert samples_of(write(folder / "llava.jsonl", lines), turns="all") == [first, second]


def test_ids_of_turns_that_are_left_out_are_free(folder: Path) -> None:
    asked = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    two = {"id": "1", "image": "a.png", "conversations": asked * 2}
    one = {"id": "1-2", "image": "a.png", "conversations": asked}
    for rows in ([two, one], [one, two]):
        path = write(folder / "a.json", rows)
        kept, dropped = found_in(path)
        assert [k.sample.id for k in kept] == [row["id"] for row in rows]
        assert [d.reason for d in dropped] == ["later-turn"]
        with pytest.raises(DataError, match="id '1-2' is also the id of"):
            found_in(path, turns="all")
    with pytest.raises(DataError, match="entry 3: id '1-2' is also the id of entry 2;"):
        found_in(write(folder / "a.json", [two, one, one]))


def test_marks_in_options_count_as_those_of_the_question(folder: Path) -> None:
    several = ["a.png", "cat.png", "dog.png"]
    row = {**ROW, "question": "Which is like <image>?", "answer": "B", "choices": ["<image>", "x"]}
    for images, question in [(several[:2], row["question"]), (several, "Which is like ?")]:
        path = write(folder / "a.json", [row | {"images": images}])
        (found,) = samples_of(path)
        assert (found.question, found.choices) == (question, ("<image>", "x"))


def test_prompts_as_documented(folder: Path) -> None:
    path = write(folder / "prompts.json", documented("prompts.json"))
    assert samples_of(path) == [
        Sample("7", str(folder / "cat.png"), "Describe the image in detail.", "")
    ]


def test_vlmevalkit_tables_as_documented(folder: Path) -> None:
    kept, dropped = found_in(write(folder / "bench.tsv", documented("bench.tsv")))
    assert not dropped
    one, two = (k.sample for k in kept)
    assert one.question == "Hint: Look closely.\nWhich colour is it?"
    assert (one.choices, one.answer, one.category) == (("blue", "red", "green"), "red", "colour")
    assert (two.choices, two.answer, two.category) == ((), "0", "count")
    assert one.image == two.image and one.image.startswith(str(folder / "out"))
    save_embedded(open_data(folder / "bench.tsv"), {k.number: k for k in kept})
    with Image.open(one.image) as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)
    assert [p.name for p in (folder / "out").iterdir()] == [Path(one.image).name]


def test_hugging_face_datasets_as_documented(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert code
    monkeypatch.chdir(folder)
    exec(code[1], {})
    (saved,) = samples_of(folder / "saved")
    (typed,) = samples_of(folder / "vqa.parquet")
    assert (saved.id, saved.question, saved.answer) == ("1", "What is it?", "a cat")
    assert typed.image == str(folder / "cat.png")
    assert open_data(folder / "saved").format == "saved dataset, Arrow, 1 file"


# --- Parquet and Arrow --------------------------------------------------------------------------


def test_embedded_images_are_written_once_by_content(folder: Path) -> None:
    rows = [
        {**ROW, "id": str(i), "image": {"bytes": png(("red", "blue")[i % 2]), "path": None}}
        for i in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    file = open_data(folder / "a.parquet")
    kept, dropped = found_in(folder / "a.parquet")
    assert len(kept) == 40 and not dropped and not (folder / "out").exists()
    save_embedded(file, {k.number: k for k in kept[:30]})
    assert sorted(p.suffix for p in (folder / "out").iterdir()) == [".png", ".png"]
    assert {Path(k.sample.image).read_bytes() for k in kept} == {png("red"), png("blue")}
    assert len({k.contents for k in kept}) == 2


def test_a_file_that_changes_while_it_is_read_is_noticed(folder: Path) -> None:
    row = {**ROW, "image": {"bytes": png("red"), "path": None}}
    path = folder / "a.parquet"
    pq.write_table(pa.Table.from_pylist([row]), path)
    kept, _ = found_in(path)
    row["image"]["bytes"] = png("blue")
    pq.write_table(pa.Table.from_pylist([row]), path)
    with pytest.raises(DataError, match="row 1: has changed while it was read"):
        save_embedded(open_data(path), {0: kept[0]})


def test_image_columns_of_every_shape(folder: Path) -> None:
    struct = {"bytes": png(), "path": "ignored.png"}
    for value, names in [
        (struct, 1),
        (png(), 1),
        ({"bytes": None, "path": "a.png"}, 1),
        ("a.png", 1),
        ([struct, struct], 2),
        (["a.png", "cat.png"], 2),
    ]:
        column = "images" if isinstance(value, list) else "image"
        row = {k: v for k, v in ROW.items() if k != "image"} | {column: value}
        pq.write_table(pa.Table.from_pylist([row]), folder / "a.parquet")
        assert len(samples_of(folder / "a.parquet")[0].images) == names
    null = {**ROW, "image": {"bytes": None, "path": None}}
    schema = pa.schema(
        [(n, pa.string()) for n in ("id", "question", "answer")]
        + [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    )
    pq.write_table(pa.Table.from_pylist([null], schema), folder / "a.parquet")
    assert reasons_of(folder / "a.parquet") == ["image-missing"]


def test_numbers_and_labels_of_typed_tables(folder: Path) -> None:
    rows = [
        {**ROW, "id": 1, "answer": 3, "category": 1, "choices": None},
        {**ROW, "id": 2, "answer": 1, "category": 0, "choices": ["one", "two"]},
        {**ROW, "id": 3, "answer": 2, "category": -1, "choices": ["one", "two"]},
    ]
    label = {"_type": "ClassLabel", "names": ["chart", "math"]}
    features = {"info": {"features": {"category": label}}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(
        {"huggingface": json.dumps(features)}
    )
    pq.write_table(table, folder / "a.parquet")
    kept, dropped = found_in(folder / "a.parquet")
    assert [(k.sample.answer, k.sample.category) for k in kept] == [("3", "math"), ("two", "chart")]
    assert [(d.sample_id, d.reason) for d in dropped] == [("3", "answer-not-an-option")]
    table = pa.Table.from_pylist([{**ROW, "answer": 2.5}, {**ROW, "id": "b", "answer": 4.0}])
    pq.write_table(table, folder / "a.parquet")
    assert [s.answer for s in samples_of(folder / "a.parquet")] == ["2.5", "4"]
    nothing = {"answer": math.nan, "category": math.nan}  # as pandas writes it
    rows = [
        ROW | nothing | {"id": c, "choices": own} for c, own in (("1", None), ("2", ["a", "b"]))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    assert reasons_of(folder / "a.parquet") == ["empty-answer"] * 2


def test_arrow_streams_files_and_folders_of_shards(folder: Path) -> None:
    table = pa.Table.from_pylist([ROW])
    with pa.ipc.new_stream(folder / "stream.arrow", table.schema) as out:
        out.write_table(table)
    with pa.ipc.new_file(folder / "file.arrow", table.schema) as out:
        out.write_table(table)
    assert samples_of(folder / "stream.arrow") == samples_of(folder / "file.arrow")
    shards = folder / "shards" / "data"
    shards.mkdir(parents=True)
    shutil.copy(folder / "a.png", folder / "shards")
    for i in range(3):
        own = {**ROW, "id": str(i)}
        pq.write_table(pa.Table.from_pylist([own]), shards / f"train-{i}.parquet")
    assert [s.id for s in samples_of(folder / "shards")] == ["0", "1", "2"]
    twin = {**ROW, "id": "1"}
    pq.write_table(pa.Table.from_pylist([twin]), shards / "train-3.parquet")
    with pytest.raises(DataError, match=r"train-3\.parquet, row 1: id '1' is also .*train-1"):
        found_in(folder / "shards")


def test_damaged_arrow_files_are_errors(folder: Path) -> None:
    table = pa.Table.from_pylist([{**ROW, "id": str(i)} for i in range(200)])
    path = folder / "a.arrow"
    with pa.ipc.new_stream(path, table.schema) as out:
        out.write_table(table)
    whole = path.read_bytes()
    for data in (b"", b"ARROW1", whole[: len(whole) // 2], b"\0" * 500):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"not readable as Arrow|cannot be read|no id"):
            found_in(path)


def test_a_saved_dataset_cannot_name_files_outside_its_folder(folder: Path) -> None:
    own = folder / "saved"
    own.mkdir()
    for name in ("../secret.arrow", "/etc/passwd", "a\0.arrow", 3, "", "..", "state.json"):
        write(own / "state.json", {"_data_files": [{"filename": name}]})
        with pytest.raises(DataError, match=r"state\.json"):
            open_data(own)
    write(own / "state.json", "[" * 100_000)
    with pytest.raises(DataError, match="names no data files"):
        open_data(own)


def test_folders_that_are_none(folder: Path) -> None:
    (folder / "dict" / "train").mkdir(parents=True)
    write(folder / "dict" / "dataset_dict.json", {"splits": ["train"]})
    with pytest.raises(DataError, match="several datasets; give one: train"):
        open_data(folder / "dict")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"is a folder without \.parquet"):
        open_data(folder / "empty")


# --- tables of VLMEvalKit -----------------------------------------------------------------------


def tsv(path: Path, header: list[str], *rows: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([header, *rows])
    return path


HEADER = ["index", "image", "question", "A", "B", "C", "answer", "l2-category"]


def test_references_lead_to_the_row_that_has_the_image(folder: Path) -> None:
    red, blue = (base64.b64encode(png(c)).decode() for c in ("red", "blue"))
    path = tsv(
        folder / "a.tsv",
        HEADER,
        ["0", "2", "before\nits row", "", "", "", "x", "k"],
        ["1", red, "own", "", "", "", "x", "k"],
        ["2", blue, "own", "", "", "", "x", "k"],
        ["3", "1", "after", "", "", "", "x", "k"],
        ["4", "9", "nowhere", "", "", "", "x", "k"],
        ["5", "0", "a reference to a reference", "", "", "", "x", "k"],
        ["6", "", "none", "", "", "", "x", "k"],
        ["7", "?" * 80, "no base64", "", "", "", "x", "k"],
        ["8", repr([red, blue]), "two", "", "", "", "x", "k"],
    )
    kept, dropped = found_in(path)
    by_id = {k.sample.id: k.contents for k in kept}
    assert by_id["0"] == by_id["2"] != by_id["1"] == by_id["3"]
    assert by_id["8"] == by_id["1"] + by_id["2"]
    assert {d.sample_id: d.reason for d in dropped} == {
        "4": "image-missing",
        "5": "image-missing",
        "6": "image-missing",
        "7": "image-broken",
    }
    assert kept[0].sample.category == "k"


def test_letters_belong_to_columns_even_with_a_gap(folder: Path) -> None:
    image = base64.b64encode(png()).decode()
    path = tsv(
        folder / "a.tsv",
        HEADER,
        ["0", image, "?", "one", "two", "three", "C", ""],
        ["1", image, "?", "one", "two", "", "C", ""],
        ["2", image, "?", "one", "", "three", "free text", ""],
        ["3", image, "?", "one", "two", "", "two", ""],
    )
    kept, dropped = found_in(path)
    assert [(k.sample.id, k.sample.answer, k.sample.choices) for k in kept] == [
        ("0", "three", ("one", "two", "three")),
        ("2", "free text", ()),
        ("3", "two", ("one", "two")),
    ]
    assert [(d.sample_id, d.reason) for d in dropped] == [("1", "answer-not-an-option")]


def test_image_paths_of_tables(folder: Path) -> None:
    header = ["index", "image_path", "question", "answer"]
    path = tsv(
        folder / "a.tsv",
        header,
        ["0", "a.png", "?", "x"],
        ["1", "['a.png', 'cat.png']", "?", "x"],
        ["2", "../a.png", "?", "x"],
    )
    kept, dropped = found_in(path)
    assert [len(k.sample.images) for k in kept] == [1, 2]
    assert [d.reason for d in dropped] == ["unsafe-path"]


def test_large_cells_are_read_and_the_limit_of_csv_stays(folder: Path) -> None:
    before = csv.field_size_limit()
    large = base64.b64encode(png() + b"\0" * 400_000).decode()
    path = tsv(folder / "a.tsv", HEADER, ["0", large, "?", "", "", "", "x", ""])
    assert len(samples_of(path)) == 1
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no index"),
        (b"a\tb\n1\t2\n", "no index .found: a, b"),
        (b"index\timage\tquestion\tanswer\n1\t2\n", "row 1: 2 cells under 4 columns"),
        (b"index\timage\tquestion\n1\t2\t3\n", "no answer"),
        (b"index\timage\tquestion\tanswer\n\xff\t2\t3\t4\n", "line 2: byte 1 is not UTF-8"),
    ],
)
def test_malformed_tables_are_errors(folder: Path, data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        found_in(write(folder / "a.tsv", data))


# --- JSON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("{}", "begins with '{'.*call it .jsonl"),
        ("[" * 200_000, "not readable as JSON"),
        ('[{"a": 1} {"a": 2}]', "entry 1 is not followed by a comma"),
        ('[{"a": 1},', "not readable as JSON"),
        ('[{"a": 1}', "entry 1 is not followed by a comma or the end"),
        ('[{"a": 1}] x', "more follows after the list"),
        ('[{"a": tru}]', "entry 1"),
        ('[{"a": "b}]', "Unterminated"),
        ("[1]", "entry 1: a number, not an object"),
        (b'[{"a": "\xff"}]', "invalid start byte"),
        ("[{" + '"a": ' + "9" * 5000 + "}]", "entry 1"),
    ],
)
def test_malformed_lists_are_errors(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = write(tmp_path / "a.json", text)
    with pytest.raises(DataError, match=said):
        list(json_entries(path))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_lists_are_read_in_pieces_of_any_size(tmp_path_factory: Any, data: Any) -> None:
    leaf = st.text(max_size=9) | st.integers() | st.booleans() | st.none()
    value = st.recursive(leaf, lambda v: st.lists(v, max_size=3), max_leaves=6)
    rows = data.draw(st.lists(st.dictionaries(st.text(max_size=4), value, max_size=4)))
    indent, ascii_ = data.draw(st.sampled_from([None, 0, 3])), data.draw(st.booleans())
    path = tmp_path_factory.mktemp("list") / "a.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfcal.data.entries._PIECE", data.draw(st.integers(1, 9)))
        assert [row.cells for row in json_entries(path)] == rows


def test_a_row_has_a_greatest_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rows", "lines", "entries", "tsv"):
        monkeypatch.setattr(f"selfcal.data.{module}.ROW_BYTES", 2**14, raising=True)
    monkeypatch.setattr("selfcal.data.entries._PIECE", 2**10)
    huge = {**ROW, "question": "x" * 2**15}
    write(folder / "a.jsonl", huge)
    write(folder / "a.json", [huge])
    tsv(folder / "a.tsv", HEADER, ["0", "x" * 2**15, "?", "", "", "", "x", ""])
    for name, place in (("a.jsonl", "line 1"), ("a.json", "entry 1"), ("a.tsv", "line 2")):
        with pytest.raises(DataError, match=f"{place}: is longer than"):
            found_in(folder / name)


def test_long_texts_are_dropped(folder: Path) -> None:
    long = "x" * (2**20 + 1)
    rows = [ROW, *({**ROW, "id": c, c: long} for c in ("question", "answer", "facts", "rationale"))]
    rows += [{**ROW, "id": "c", "choices": ["2", long]}, {**ROW, "id": "i", "image": long}]
    path = write(folder / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert reasons_of(path) == ["text-too-long"] * 5 + ["image-missing"]
    with pytest.raises(DataError, match="line 1: the id has 1,048,577 characters"):
        found_in(write(folder / "a.jsonl", {**ROW, "id": long}))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"id": "1", "conversations": 3}, "conversations is a number"),
        ({"id": "1", "conversations": ["x"]}, "a turn has no text"),
        ({"id": "1", "conversations": [{"from": "gpt", "value": "x"}]}, "from 'gpt'"),
        ({"id": "1", "conversations": [{"from": "human", "value": 3}]}, "a turn has no text"),
        ({"conversations": [{"from": "human", "value": "?"}]}, "no id .*id=ROW"),
    ],
)
def test_conversations_that_are_none(folder: Path, entry: object, said: str) -> None:
    with pytest.raises(DataError, match=f"entry 1: .*{said}"):
        found_in(write(folder / "a.json", [entry]))


def test_conversations_without_image_or_answer_are_dropped(folder: Path) -> None:
    ask, tell = {"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": "A"}
    entries = [
        {"id": "text", "conversations": [ask, tell]},
        {"id": "open", "image": "a.png", "conversations": [ask]},
        {"id": "none", "image": "a.png", "conversations": []},
        {"id": "many", "image": ["a.png", "cat.png"], "conversations": [ask, tell]},
    ]
    kept, dropped = found_in(write(folder / "a.json", entries))
    assert [(k.sample.question, len(k.sample.images)) for k in kept] == [("Q?", 2)]
    assert [(d.sample_id, d.reason) for d in dropped] == [
        ("text", "image-missing"), ("open", "empty-answer"), ("none", "empty-question")
    ]  # fmt: skip


# --- columns, options, marks, images ------------------------------------------------------------


def test_columns_of_other_names_and_row_numbers(folder: Path) -> None:
    row = {"img": "a.png", "query": "How many?", "label": "2", "answer": "not this", "kind": "math"}
    expected = [
        Sample(str(i), str(folder / "a.png"), "How many?", "2", category="math") for i in (1, 2)
    ]
    columns = {
        "id": "ROW", "image": "img", "question": "query", "answer": "label", "category": "kind"
    }  # fmt: skip
    path = write(folder / "a.jsonl", "\n".join([json.dumps(row)] * 2))
    assert samples_of(path, columns=columns) == expected
    pq.write_table(pa.Table.from_pylist([row] * 2), folder / "a.parquet")
    assert samples_of(folder / "a.parquet", columns=columns) == expected
    for own in (path, folder / "a.parquet"):
        with pytest.raises(DataError, match="no column 'lable' for answer"):
            samples_of(own, columns={**columns, "answer": "lable"})
        with pytest.raises(DataError, match="no field 'anwser'; did you mean 'answer'"):
            samples_of(own, columns={"anwser": "label"})


@pytest.mark.parametrize(
    ("answer", "choices", "option"),
    [
        ("B", ("red", "blue"), "blue"),
        (" b ", ("red", "blue"), "blue"),
        ("(b)", ("red", "blue"), "blue"),
        ("B.", ("red", "blue"), "blue"),
        ("B. blue", ("red", "blue"), "blue"),
        ("(B) Blue.", ("red", "blue"), "blue"),
        ("A. blue", ("red", "blue"), None),  # letter and text disagree
        ("Blue", ("red", "blue"), "blue"),
        ("the blue", ("red", "blue"), "blue"),
        ("1", ("red", "blue"), "blue"),
        ("1", ("3", "2", "1"), "1"),  # text goes before place
        (1, ("3", "2", "1"), "2"),  # a number that is no text is a place
        ("A", ("B", "A"), "A"),  # text goes before letter
        ("C", ("red", "blue"), None),
        ("2", ("red", "blue"), None),
        (2, ("red", "blue"), None),
        (-1, ("red", "blue"), None),
        ("green", ("red", "blue"), None),
        ("9" * 5000, ("red", "blue"), None),
        ("²", ("red", "blue"), None),
    ],
)
def test_answers_become_options(
    answer: str | int, choices: tuple[str, ...], option: str | None
) -> None:
    assert match_option(answer, choices) == option


@given(st.text(max_size=20) | st.integers(), st.lists(st.text(max_size=9), min_size=1).map(tuple))
def test_an_answer_is_an_option_or_none(answer: str | int, choices: tuple[str, ...]) -> None:
    found = match_option(answer, choices)
    assert found is None or found in choices
    assert all((match_option(c, choices) or "").strip() == c.strip() for c in choices)


@pytest.mark.parametrize(
    ("question", "images", "kept"),
    [
        ("<image>\nWhat?", 1, "What?"),
        ("What is <image>?", 1, "What is <image>?"),
        ("<image> and <image>?", 2, "<image> and <image>?"),
        ("<image> Compare.", 2, "Compare."),
        ("Is <image> like <image>?", 1, "Is like ?"),
        ("What?", 2, "What?"),
    ],
)
def test_image_marks_stay_if_there_is_one_for_each(
    folder: Path, question: str, images: int, kept: str
) -> None:
    row = {**ROW, "question": question, "images": ["a.png", "cat.png"][:images]}
    assert samples_of(write(folder / "a.jsonl", row))[0].question == kept


def test_a_sample_is_as_good_as_its_worst_image(folder: Path) -> None:
    write(folder / "bad.png", b"x")
    Image.new("RGB", (3, 30)).save(folder / "thin.png")
    rows = [
        {**ROW, "id": "1", "images": ["a.png", "bad.png"]},
        {**ROW, "id": "2", "images": ["a.png", "../b.png"]},
        {**ROW, "id": "3", "images": ["a.png"] * 4},
        {**ROW, "id": "4", "images": ["a.png", "thin.png"]},
        {**ROW, "id": "5", "images": []},
        {**ROW, "id": "6", "image": []},
        {**ROW, "id": "7", "image": None, "images": ["a.png", None]},
    ]
    path = write(folder / "a.jsonl", "\n".join(map(json.dumps, rows)))
    kept, dropped = found_in(path, rules=Rules(min_side=4, max_images=3))
    assert [k.sample.id for k in kept] == ["5"]
    assert [(d.reason, d.detail) for d in dropped] == [
        ("image-broken", "line 1: bad.png"),
        ("unsafe-path", "line 2: ../b.png"),
        ("too-many-images", "line 3: a.png"),
        ("image-too-small", "line 4: thin.png"),
        ("image-missing", "line 6: "),
        ("image-missing", "line 7: "),
    ]


def test_data_urls_are_images(folder: Path) -> None:
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    rows = [{**ROW, "image": url}, {**ROW, "id": "b", "image": "data:image/png;base64,?"}]
    path = write(folder / "a.jsonl", "\n".join(map(json.dumps, rows)))
    kept, dropped = found_in(path)
    assert [k.embedded for k in kept] == [True]
    assert [(d.reason, d.detail) for d in dropped] == [
        ("image-broken", "line 2: an embedded image")
    ]


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("['a', 'b']", ["a", "b"]),
        ('["a", "b\'s"]', ["a", "b's"]),
        ("['a', \"b's\"]", ["a", "b's"]),
        ('["a\\n"]', ["a\n"]),
        ("[]", []),
        ("[1]", None),
        ("['a'", None),
        ("[open('x')]", None),
        ("a", None),
        ("['a'" + " " * 10**6 + "x]", None),
        ("[" * 10**6 + "]", None),
    ],
)
def test_lists_that_are_spelled_out(text: str, items: list[str] | None) -> None:
    assert listed(text) == items


def test_no_reader_imports_what_runs_code() -> None:
    assert "pickle" not in "".join(
        p.read_text() for p in Path(sys.modules["selfcal.data"].__path__[0]).glob("*.py")
    )
