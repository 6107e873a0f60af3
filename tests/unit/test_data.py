"""Reading data files: defects of the file are errors, defects of a row are counted drops."""

from __future__ import annotations

import base64
import io
import json
import os
import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from selfcal.data import DataError, ImageError, check_image, draw_mix, load_image, read_samples
from selfcal.image import data_url
from selfcal.miniworld.build import build
from selfcal.types import Sample

ROW: dict[str, Any] = {"id": "a", "image": "a.png", "question": "How many?", "answer": "2"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with one good image, and one beside it."""
    folder = tmp_path / "data"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    Image.fromarray(noise).save(tmp_path / "outside.png")
    return folder


def write(folder: Path, *rows: dict[str, Any] | bytes) -> Path:
    """A .jsonl file of rows, or of lines as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path = folder / "data.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_jsonl_and_parquet_give_the_same_samples(folder: Path) -> None:
    full: dict[str, Any] = {
        "choices": ["1", "2"],
        "category": "math",
        "rationale": "One, two.",
        "facts": "2 dogs",
    }
    rows = [{**ROW, **full, "extra": 1}, {**ROW, "id": "b", **dict.fromkeys(full), "extra": 2}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    image = str(folder / "a.png")
    expected = [
        Sample("a", image, "How many?", "2", ("1", "2"), "math", "One, two.", "2 dogs"),
        Sample("b", image, "How many?", "2"),
    ]
    assert read_samples(write(folder, *rows)) == (expected, [])
    assert read_samples(folder / "data.parquet") == (expected, [])


def test_what_miniworld_writes_can_be_read(tmp_path: Path) -> None:
    build(tmp_path, {"dev": 5})
    samples, drops = read_samples(tmp_path / "dev.jsonl")
    assert len(samples) == 5 and not drops
    written = [json.loads(line) for line in (tmp_path / "dev.jsonl").read_text().splitlines()]
    for sample, row in zip(samples, written, strict=True):
        expected = {
            **row,
            "image": str(tmp_path / row["image"]),
            "choices": (),
            "more_images": (),
        }
        assert asdict(sample) == expected


def test_byte_order_mark_blank_lines_and_whole_number_ids(folder: Path) -> None:
    first = b"\xef\xbb\xbf" + json.dumps({**ROW, "id": 7}).encode() + b"\r"
    samples, _ = read_samples(write(folder, first, b"", b"  ", {**ROW, "id": "8"}))
    assert [s.id for s in samples] == ["7", "8"]


def test_bad_rows_are_dropped_by_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").touch()
    (folder / "sub").mkdir()
    Image.new("RGB", (100, 100)).save(folder / "large.png")
    Image.new("RGB", (200, 200)).save(folder / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)
    bad: list[tuple[str, dict[str, Any]]] = [
        ("image-broken", {"image": "cut.png"}),
        ("image-broken", {"image": "text.png"}),
        ("image-broken", {"image": "empty.png"}),
        ("image-missing", {"image": "none.png"}),
        ("image-missing", {"image": "sub"}),
        ("image-missing", {"image": ""}),
        ("image-missing", {"image": None}),
        ("unsafe-path", {"image": "/nowhere/a.png"}),
        ("image-too-large", {"image": "large.png"}),
        ("image-too-large", {"image": "huge.png"}),
        ("empty-question", {"question": " \n"}),
        ("empty-question", {"question": None}),
        ("empty-answer", {"answer": ""}),
        ("unsafe-path", {"image": "../outside.png"}),
        ("unsafe-path", {"image": "sub/../../outside.png"}),
        ("unsafe-path", {"image": "a\0.png"}),
    ]
    rows = [{**ROW, "id": f"bad{i}", **change} for i, (_, change) in enumerate(bad)]
    samples, drops = read_samples(write(folder, *rows[:8], ROW, *rows[8:]))
    assert [s.id for s in samples] == ["a"]
    assert [(d.sample_id, d.reason) for d in drops] == [
        (f"bad{i}", reason) for i, (reason, _) in enumerate(bad)
    ]
    assert {d.stage for d in drops} == {"read"}
    assert drops[0].detail == "line 1: cut.png" and drops[8].detail == "line 10: large.png"


def test_very_long_image_path_is_dropped(folder: Path) -> None:
    _, drops = read_samples(write(folder, ROW, {**ROW, "id": "b", "image": "x" * 5000}))
    assert [d.reason for d in drops] in (["image-missing"], ["image-broken"])


def test_absolute_paths(folder: Path, tmp_path: Path) -> None:
    inside, outside = str(folder / "a.png"), str(tmp_path / "outside.png")
    path = write(folder, {**ROW, "image": inside}, {**ROW, "id": "b", "image": outside})
    for root in (None, folder):
        samples, drops = read_samples(path, image_root=root)
        assert [s.image for s in samples] == [inside]
        assert [(d.sample_id, d.reason) for d in drops] == [("b", "unsafe-path")]
    samples, drops = read_samples(path, image_root=Path("/"))  # whoever asks for it
    assert [s.image for s in samples] == [inside, outside] and not drops


def test_a_sibling_with_the_roots_name_in_front_is_outside(folder: Path) -> None:
    other = folder.with_name("data2")
    other.mkdir()
    Image.new("RGB", (2, 2)).save(other / "a.png")
    _, drops = read_samples(write(folder, ROW, {**ROW, "id": "b", "image": "../data2/a.png"}))
    assert [d.reason for d in drops] == ["unsafe-path"]


def test_image_root_and_relative_data_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        folder, {**ROW, "image": "outside.png"}, {**ROW, "id": "b", "image": "data/../data/a.png"}
    )
    monkeypatch.chdir(tmp_path)
    samples, _ = read_samples(Path("data/data.jsonl"), image_root=Path("."))
    assert [s.image for s in samples] == [
        os.path.join(os.getcwd(), "outside.png"),
        os.path.join(os.getcwd(), "data", "a.png"),
    ]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b'{"id": "b", ', ["line 2", "not readable as JSON", "one object a line"]),
        (b"[" * 100_000, ["line 2", "not readable as JSON"]),
        (b'{"id": ' + b"9" * 5000 + b"}", ["line 2", "not readable as JSON"]),
        (b'{"id": "\xff"}', ["line 2", "byte 9 is not UTF-8"]),
        (b"[1]", ["line 2", "a list, not an object"]),
        (b'{"id": "b", "image": "a.png", "query": "?"}', ["line 2", "no question and no answer"]),
        ({**ROW, "id": "a"}, ["line 2", "id 'a'", "line 1", "own id"]),
        ({**ROW, "id": ""}, ["line 2", "id is empty"]),
        ({**ROW, "id": True}, ["line 2", "id is true or false"]),
        ({**ROW, "id": "b", "answer": 4}, ["line 2", "answer is a number", "give text"]),
        ({**ROW, "id": "b", "image": {"bytes": ""}}, ["line 2", "image is", "give its path"]),
        ({**ROW, "id": "b", "choices": "x"}, ["line 2", "choices is", "list of texts"]),
        ({**ROW, "id": "b", "choices": [1]}, ["line 2", "choices is a number"]),
        ({**ROW, "id": "b", "facts": "\ud83d"}, ["line 2", "facts has half a surrogate pair"]),
    ],
)
def test_a_malformed_line_is_an_error(
    folder: Path, line: dict[str, Any] | bytes, parts: list[str]
) -> None:
    path = write(folder, ROW, line)
    with pytest.raises(DataError) as caught:
        read_samples(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_an_id_of_a_dropped_row_counts_as_taken(folder: Path) -> None:
    with pytest.raises(DataError, match="line 1"):
        read_samples(write(folder, {**ROW, "question": ""}, ROW))


def test_all_rows_dropped_lists_the_reasons(folder: Path) -> None:
    rows = [{**ROW, "id": str(i), "image": "none.png"} for i in range(2)]
    with pytest.raises(DataError, match=r"all 3 rows.*image-missing 2, empty-answer 1.*image root"):
        read_samples(write(folder, *rows, {**ROW, "answer": ""}))


def test_files_that_cannot_be_read(folder: Path) -> None:
    (folder / "x.csv").write_text("id,image")
    (folder / "x.parquet").write_bytes(b"PAR1 nothing PAR1")
    (folder / "none.jsonl").write_bytes(b"\n\n")
    for name, message in [
        ("missing.jsonl", r"no such file; give the path of a \.jsonl or \.parquet"),
        (".", "is a folder"),
        ("x.csv", r"unknown kind of file; convert it to \.jsonl"),
        ("x.parquet", "not readable as Parquet"),
        ("none.jsonl", "holds no rows"),
    ]:
        with pytest.raises(DataError, match=message):
            read_samples(folder / name)


def test_malformed_parquet(folder: Path) -> None:
    path = folder / "data.parquet"
    pq.write_table(pa.Table.from_pylist([{"id": "a", "image": "a.png", "question": "?"}]), path)
    with pytest.raises(DataError, match=r"no answer \(found: id, image, question\)"):
        read_samples(path)
    pq.write_table(pa.Table.from_pylist([{**ROW, "image": {"bytes": b"x", "path": "a"}}]), path)
    with pytest.raises(DataError, match=r"row 1: image is .*give its path"):
        read_samples(path)
    pq.write_table(pa.Table.from_pylist([ROW, ROW]), path)
    with pytest.raises(DataError, match="row 2: id 'a' is also the id of row 1"):
        read_samples(path)
    pq.write_table(pa.Table.from_pylist([{**ROW, "id": str(i)} for i in range(5000)]), path)
    data = bytearray(path.read_bytes())
    data[40:400] = bytes(360)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"not readable as Parquet|cannot be read"):
        read_samples(path)


def test_parquet_with_broken_utf8(folder: Path) -> None:
    table = pa.Table.from_pylist([ROW])
    broken = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(2, "question", broken), folder / "data.parquet")
    with pytest.raises(DataError, match="not readable as Parquet"):
        read_samples(folder / "data.parquet")


def test_an_image_cut_anywhere_is_broken_or_whole(folder: Path) -> None:
    whole, cut = (folder / "a.png").read_bytes(), folder / "cut.png"
    pixels = np.asarray(load_image(folder / "a.png"))
    broken = 0
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        reason = check_image(cut)
        assert reason in (None, "image-broken")
        broken += reason is not None
        if reason is None:  # only the end mark is missing
            assert np.array_equal(np.asarray(load_image(cut)), pixels)
    assert broken > len(whole) / 7 - 5


def test_load_image_names_file_and_way_out(folder: Path) -> None:
    (folder / "text.png").write_text("no image")
    with pytest.raises(ImageError, match=r"text\.png: image-broken .*replace the file"):
        load_image(folder / "text.png")
    with pytest.raises(ImageError, match=r"none\.png: image-missing"):
        load_image(folder / "none.png")


def test_devices_are_not_opened() -> None:
    assert check_image(Path("/dev/zero")) == "image-missing"


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 2), "blue")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    upright = load_image(tmp_path / "a.png")
    assert upright.size == (2, 3)
    assert upright.getpixel((1, 0)) == (255, 0, 0)


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (1, 1), (0, 0, 0, 0)).save(path)
    assert load_image(path).getpixel((0, 0)) == (255, 255, 255)
    Image.new("P", (1, 1)).save(path, transparency=b"\x00")
    assert load_image(path).getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(path)
    grey = load_image(path)
    assert [grey.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (100,) * 3, (255,) * 3]
    Image.new("CMYK", (1, 1)).save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg").mode == "RGB"


def test_data_url_shows_what_the_policy_sees(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    for name, kind in (("a.png", "png"), ("a.webp", "png"), ("a.jpg", "jpeg")):
        Image.fromarray(noise[..., : 3 if kind == "jpeg" else 4]).save(tmp_path / name)
        head, _, data = data_url(tmp_path / name).partition(",")
        assert head == f"data:image/{kind};base64"
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), float)
        seen = np.asarray(load_image(tmp_path / name), float)
        assert shown.shape == seen.shape
        assert np.array_equal(shown, seen) or kind == "jpeg"


def pool(**sizes: int) -> list[Sample]:
    """Samples of each category."""
    return [Sample(f"{c}{i}", "", "", "", category=c) for c, n in sizes.items() for i in range(n)]


def counts(samples: list[Sample]) -> dict[str, int]:
    """How many samples each category has."""
    return dict(Counter(s.category for s in samples))


MIX = {"perception": 2, "chart": 1, "math": 1}


def test_mix_is_exact_and_ignores_the_input_order() -> None:
    samples = pool(perception=50, chart=50, math=50)
    drawn = draw_mix(samples, 40, MIX, "seed")
    assert counts(drawn) == {"perception": 20, "chart": 10, "math": 10}
    assert len({s.id for s in drawn}) == 40
    shuffled = random.Random(1).sample(samples, len(samples))
    assert draw_mix(shuffled, 40, MIX, "seed") == drawn
    assert draw_mix(samples, 40, dict(reversed(MIX.items())), "seed") == drawn
    assert set(draw_mix(samples, 40, MIX, "other")) != set(drawn)
    assert set(draw_mix(samples, 39, MIX, "seed")) < set(drawn)


def test_mix_weights_scale() -> None:
    samples = pool(perception=50, chart=50, math=50)
    shares = {name: weight / 4 for name, weight in MIX.items()}
    assert draw_mix(samples, 41, shares, "s") == draw_mix(samples, 41, MIX, "s")


def test_a_short_category_is_made_up_for() -> None:
    samples = pool(perception=50, chart=2, math=50)
    # chart gives its 2, the other 28 are shared 2:1
    assert counts(draw_mix(samples, 29, MIX, "s")) == {"perception": 18, "chart": 2, "math": 9}
    samples = pool(perception=3, chart=2, other=4, never=9)
    weights = {"perception": 2, "chart": 1, "never": 0}
    assert counts(draw_mix(samples, 7, weights, "s")) == {"perception": 3, "chart": 2, "other": 2}
    assert counts(draw_mix(samples, 99, weights, "s")) == {"perception": 3, "chart": 2, "other": 4}
    assert len(draw_mix(pool(perception=9), 6, MIX, "s")) == 6


def test_no_weights_take_any() -> None:
    samples = pool(perception=5, other=5)
    assert len(draw_mix(samples, 4, None, "s")) == 4
    assert draw_mix(samples, 4, {}, "s") == draw_mix(samples, 10, None, "s")[:4]
    assert draw_mix(samples, 0, None, "s") == [] == draw_mix([], 3, MIX, "s")


@pytest.mark.parametrize(
    ("n", "weights", "message"),
    [
        (-1, None, "cannot draw -1"),
        (1, {"chart": -1.0}, "weight of 'chart' is -1"),
        (1, {"chart": float("nan")}, "weight of 'chart' is nan"),
        (1, {"chart": 0}, "all weights are 0"),
        (1, {"chrat": 1, "math": 1}, "no sample has the category 'chrat'.*did you mean 'chart'"),
    ],
)
def test_bad_mixes(n: int, weights: dict[str, float] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw_mix(pool(chart=3, math=3), n, weights, "s")


# --- CSR's prompts, and certainty ---------------------------------------------------------------


def prompts(folder: Path, rows: object) -> Path:
    path = folder / "calibration.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return path


def test_prompts_become_samples_without_an_answer(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "image": "a.png", "input": "<image>\nDescribe the image in detail."},
        {"id": "b", "image": "a.png", "input": "<image>"},
        {"id": "c", "image": "none.png", "input": "What is it?"},
    ]
    samples, drops = read_samples(prompts(tmp_path, rows))
    assert samples == [
        Sample("7", str(tmp_path / "a.png"), "Describe the image in detail.", answer="")
    ]
    assert [(d.sample_id, d.reason) for d in drops] == [
        ("b", "empty-question"),
        ("c", "image-missing"),
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"id": 1}, "a .json file is a list of prompts"),
        ([1], "entry 1: a number, not an object"),
        ([{"id": "a", "image": "a.png"}], "entry 1: no input"),
        ([{"id": "a", "image": "a.png", "input": 3}], "entry 1: input is a number"),
        ([{"id": [], "image": "a.png", "input": "x"}], "entry 1: id is a list"),
    ],
)
def test_prompts_that_are_none(tmp_path: Path, rows: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_samples(prompts(tmp_path, rows))


def test_a_confidence_is_a_number_from_0_to_1(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"id": "a", "image": "a.png", "question": "?", "answer": "x"}
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(row | {"confidence": 0.25}), encoding="utf-8")
    assert read_samples(path)[0][0].confidence == 0.25
    path.write_text(json.dumps(row), encoding="utf-8")
    assert read_samples(path)[0][0].confidence == 1.0
    for bad in (1.5, -0.1, "high", True):
        path.write_text(json.dumps(row | {"confidence": bad}), encoding="utf-8")
        with pytest.raises(DataError, match="line 1: confidence is"):
            read_samples(path)
