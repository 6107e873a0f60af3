"""Sources are mixed by their weights and split by image; and the `data` stage with all of it."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfcal.data import DataError, Draw, Rules, draw_mix
from selfcal.data.seen import Seen
from selfcal.data.sources import Mixed, Ties, mix_sources, source_names, split_of, twin_key
from selfcal.methods.parts import data
from selfcal.recipe import Recipe, RecipeError, Source, load_recipe
from selfcal.stage import Work
from selfcal.store import StageDir
from selfcal.types import Drop, Sample

SIZES = {"rft": 20, "calibration": 12, "dev": 4, "test": 4}
Row = dict[str, Any]


def color(i: int) -> tuple[int, int, int]:
    return i % 256, i // 256, 0


def picture(folder: Path, i: int) -> str:
    """An image that no other number has."""
    path = folder / f"{i}.png"
    if not path.exists():
        Image.new("RGB", (2, 2), color(i)).save(path)
    return str(path)


def row(folder: Path, i: int, image: int | Sequence[int] | None = None, **more: Any) -> Row:
    numbers = [i] if image is None else [image] if isinstance(image, int) else image
    images = [picture(folder, n) for n in numbers]
    made = {"id": f"{i}", "images": images, "question": f"What is {i}?", "answer": "x"}
    return made | more


def write(path: Path, rows: Sequence[Row]) -> Source:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return Source(path=str(path))


def mix(
    *sources: Source,
    sizes: Mapping[str, int] = SIZES,
    weights: Mapping[str, float] | None = None,
    seed: str = "0",
    out: Path = Path("unused"),
) -> tuple[Mixed, list[Drop]]:
    dropped: list[Drop] = []
    return mix_sources(sources, sizes, weights, seed, Rules(), out, dropped.append), dropped


def contents(samples: Sequence[Sample]) -> set[bytes]:
    return {Path(i).read_bytes() for s in samples for i in s.images}


def test_no_image_is_in_two_splits_whatever_it_is_called(tmp_path: Path) -> None:
    rows = [row(tmp_path, i, i % 60) for i in range(240)]
    for i in range(0, 240, 7):  # the same image by another name
        copy = tmp_path / f"copy-{i}.png"
        copy.write_bytes(Path(rows[i]["images"][0]).read_bytes())
        rows[i]["images"] = [str(copy)]
    mixed, dropped = mix(write(tmp_path / "a.jsonl", rows))
    assert not dropped and all(mixed.splits.values())
    for one, other in combinations(mixed.splits.values(), 2):
        assert not contents(one) & contents(other)


def test_images_that_samples_tie_together_stay_together(tmp_path: Path) -> None:
    rng = random.Random(1)
    groups = [list(range(10 * g, 10 * g + 10)) for g in range(30)]
    rows = []
    for g, own in enumerate(groups):  # a chain: each sample shares an image with the next one
        rows += [row(tmp_path, 100 * g + i, own[i : i + 2]) for i in range(9)]
        rows.append(row(tmp_path, 100 * g + 50, own[0]))
    rng.shuffle(rows)
    mixed, _ = mix(write(tmp_path / "a.jsonl", rows))
    assert all(mixed.splits.values())
    for one, other in combinations(mixed.splits.values(), 2):
        groups_of = [
            {int(Path(i).stem) // 10 for s in side for i in s.images} for side in (one, other)
        ]
        assert not groups_of[0] & groups_of[1]


def test_a_source_that_grows_moves_no_image(tmp_path: Path) -> None:
    large = {"rft": 400, "calibration": 400, "dev": 200, "test": 200}
    rows = [row(tmp_path, i) for i in range(300)]
    before, _ = mix(write(tmp_path / "a.jsonl", rows[:200]), sizes=large)
    random.Random(0).shuffle(rows)
    more = write(tmp_path / "b.jsonl", [row(tmp_path, i) for i in range(500, 520)])
    after, _ = mix(write(tmp_path / "a.jsonl", rows), more, sizes=large)
    for split, samples in before.splits.items():
        assert {s.id for s in samples} <= {s.id for s in after.splits[split]}


def test_the_order_of_rows_plays_no_part_and_the_seed_does(tmp_path: Path) -> None:
    rows = [row(tmp_path, i) for i in range(150)]
    one, _ = mix(write(tmp_path / "a.jsonl", rows))
    again, _ = mix(write(tmp_path / "a.jsonl", rows[::-1]))
    other, _ = mix(write(tmp_path / "a.jsonl", rows), seed="1")
    assert one.splits == again.splits != other.splits
    assert {s: len(found) for s, found in one.splits.items()} == SIZES


def test_splits_get_their_share_of_the_images() -> None:
    sizes = {"rft": 600, "calibration": 300, "dev": 50, "test": 50}
    counts = Counter(split_of(str(i).encode(), sizes, "0") for i in range(4000))
    # standard deviation of a share p of 4000: sqrt(4000 p (1 - p)) <= 31 and 14
    assert abs(counts["rft"] - 2400) < 125 and abs(counts["calibration"] - 1200) < 120
    assert abs(counts["dev"] - 200) < 56 and abs(counts["test"] - 200) < 56
    assert {split_of(str(i).encode(), {"dev": 0, "test": 1}, "0") for i in range(50)} == {"test"}


def test_sources_are_mixed_two_to_one_to_one(tmp_path: Path) -> None:
    sources = []
    for k, (name, weight) in enumerate((("a", 2.0), ("b", 1.0), ("c", 1.0))):
        rows = [row(tmp_path, 1000 * k + i) for i in range(120)]
        made = write(tmp_path / f"{name}.jsonl", rows)
        sources.append(made.model_copy(update={"weight": weight, "category": name}))
    mixed, _ = mix(*sources)
    for split, n in SIZES.items():
        counts = Counter(s.category for s in mixed.splits[split])
        assert counts == {"a": n / 2, "b": n / 4, "c": n / 4}, split
    assert mixed.kept == {"a": 120, "b": 120, "c": 120}
    by_category, _ = mix(*sources, weights={"a": 1, "b": 2, "c": 1})
    assert Counter(s.category for s in by_category.splits["rft"]) == {"a": 5, "b": 10, "c": 5}


def test_a_short_source_is_made_up_for_within_its_category(tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", [row(tmp_path, i, category="math") for i in range(8)])
    many = write(
        tmp_path / "many.jsonl", [row(tmp_path, 100 + i, category="math") for i in range(90)]
    )
    mixed, _ = mix(few, many, sizes={"rft": 40})
    numbers = [int(s.id) for s in mixed.splits["rft"]]
    assert len(numbers) == 40 and sum(n < 100 for n in numbers) == 8


def test_a_draw_of_sources_interleaves_category_and_source() -> None:
    draw = Draw[str](8, {"a": 3, "b": 1}, (1.0, 2.0))
    for i in range(20):
        for category in "ab":
            for source in (0, 1):
                key = bytes([i, source]), ""
                draw.add(f"{category}{source}", key, category, source)
    # of 8: 6 of a and 2 of b; of a's 6, 2 and 4 by source; of b's 2, the second source leads
    assert Counter(draw.take()) == {"a0": 2, "a1": 4, "b0": 1, "b1": 1}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from("abc"), max_size=60),
    st.integers(0, 20),
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 4), max_size=3),
)
def test_a_streamed_draw_is_that_of_the_sorted_whole(
    categories: list[str], n: int, weights: dict[str, int]
) -> None:
    samples = [Sample(str(i), "", "", "", category=c) for i, c in enumerate(categories)]
    if weights and set(categories) - weights.keys() and weights.keys() - set(categories):
        return  # refused as a misspelling
    whole = draw_mix(samples, 10**6, None, "s")
    drawn = draw_mix(samples, n, weights, "s")
    assert len(drawn) == min(n, len(samples))
    assert [s for s in whole if s in drawn] == drawn
    for category in "abc":  # of each category, the first ones
        own = [s for s in whole if s.category == category]
        taken = [s for s in drawn if s.category == category]
        assert taken == own[: len(taken)]


def test_options_are_part_of_a_question_to_the_letter() -> None:
    def key(question: str, *choices: str) -> bytes:
        return twin_key(Sample("s", "", question, "", choices), [b"image"])

    one = key("Which sign?", "Go", "Go?")
    assert one == key(" which  SIGN", "Go", "Go?")
    others = [key("Which sign?"), key("Which sign?", "Go", "Go!"), key("Which sign?", "go", "Go?")]
    assert len({one, *others}) == 4


def test_twins_are_dropped_and_named(tmp_path: Path) -> None:
    rows = [row(tmp_path, i) for i in range(60)]
    twin = row(tmp_path, 3, id="twin") | {"question": "what IS \n 3"}
    other_options = row(tmp_path, 3, id="options", choices=["x", "y"])
    a = write(tmp_path / "a.jsonl", [*rows, twin, other_options])
    b = write(tmp_path / "b.jsonl", [row(tmp_path, 5, id="b5"), row(tmp_path, 500)])
    mixed, dropped = mix(a, b)
    assert [(d.sample_id, d.reason, d.detail) for d in dropped] == [
        ("twin", "duplicate", "a: line 61"),
        ("b5", "duplicate", "b: line 1"),
    ]
    assert mixed.kept == {"a": 61, "b": 1}


def test_ids_that_clash_get_their_sources_name(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [row(tmp_path, i) for i in range(30)])
    b = write(tmp_path / "b.jsonl", [row(tmp_path, 100 + i, id=str(i + 20)) for i in range(30)])
    c = write(tmp_path / "c.jsonl", [row(tmp_path, 200 + i, id=f"b/{i}") for i in range(20, 30)])
    mixed, _ = mix(a, b, c, sizes={"rft": 90, "calibration": 90})
    ids = sorted(s.id for samples in mixed.splits.values() for s in samples)
    expected = [str(i) for i in range(50)] + [f"b/{i}" for i in range(20, 30)]
    assert ids == sorted(expected + [f"c/b/{i}" for i in range(20, 30)])


def test_an_id_that_occurs_twice_in_one_source_is_an_error(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [row(tmp_path, 1), row(tmp_path, 2), row(tmp_path, 3, id="1")])
    with pytest.raises(DataError, match=r"a\.jsonl: line 3: id '1' is also the id of line 1"):
        mix(a)
    numbered = a.model_copy(update={"columns": {"id": "ROW"}})
    mixed, _ = mix(numbered, sizes={"rft": 3})
    assert sorted(s.id for s in mixed.splits["rft"]) == ["1", "2", "3"]


def test_sources_are_named_by_their_files() -> None:
    paths = ["x/coco.json", "x/chart", "y/coco.json"]
    assert source_names([Source(path=p) for p in paths[:2]]) == ["coco", "chart"]
    assert source_names([Source(path=p) for p in paths]) == ["x-coco", "x-chart", "y-coco"]
    assert source_names([Source(path="x/a.tsv"), Source(path="x/a.json")]) == ["x-a", "x-a-2"]


def test_samples_without_an_answer_are_calibrated_on_alone(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    asked = [{"id": i, "image": picture(tmp_path, i), "input": f"Describe {i}."} for i in range(80)]
    path.write_text(json.dumps(asked))
    whole = write(tmp_path / "a.jsonl", [row(tmp_path, 100 + i) for i in range(80)])
    mixed, dropped = mix(Source(path=str(path)), whole, sizes=dict.fromkeys(SIZES, 40))
    assert {d.reason for d in dropped} == {"empty-answer"} and mixed.kept["prompts"] > 5
    for split, samples in mixed.splits.items():
        assert any(not s.answer for s in samples) == (split == "calibration")


def test_a_split_that_gets_nothing_is_an_error(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [row(tmp_path, 1)])
    with pytest.raises(DataError, match=r"no sample is left for \w+ .*give more data"):
        mix(a)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=20))
def test_ties_connect_what_a_path_connects(pairs: list[tuple[int, int]]) -> None:
    ties = Ties()
    for one, other in pairs:
        ties.tie(bytes([one]), bytes([other]))
    groups = {i: {i} for i in range(13)}
    for one, other in pairs:
        both = groups[one] | groups[other]
        for member in both:
            groups[member] = both
    for i, group in groups.items():
        assert ties.of(bytes([i])) == bytes([min(group)])


def test_what_was_seen_is_known_however_much_it_is() -> None:
    seen = Seen()
    assert all(seen.add(str(i).encode()) for i in range(70_000))  # merged twice
    assert not any(seen.add(str(i).encode()) for i in range(0, 70_000, 97))
    assert len(seen) == 70_000 and b"5" in seen and b"-" not in seen


# --- the stage ----------------------------------------------------------------------------------

YAML = """
name: own
data: {rft: 20, calibration: 12, dev: 4, test: 4}
policy: {model: "miniworld:mini-llava"}
"""


def recipe_of(tmp_path: Path, data_settings: Mapping[str, Any]) -> Recipe:
    path = tmp_path / "own.yaml"
    path.write_text(YAML)
    return load_recipe(path, [f"data.{k}={json.dumps(v)}" for k, v in data_settings.items()])


def stage(tmp_path: Path, settings: Mapping[str, Any]) -> tuple[Mapping[str, Any], Work]:
    run = tmp_path / "run"
    made = data(recipe_of(tmp_path, settings))
    folder = StageDir(run / "data", "fingerprint")
    folder.open()
    work = Work(run, made, folder, {}, 0)
    return made.run(work), work


def read(work: Work, name: str) -> list[Sample]:
    return work.folder.read(name, Sample)


def embedded(tmp_path: Path, n: int) -> Path:
    """A Parquet file with an image in every row."""
    rows = []
    for i in range(n):
        file = io.BytesIO()
        Image.new("RGB", (2, 2), color(i)).save(file, "png")
        image = {"bytes": file.getvalue(), "path": None}
        rows.append({"id": str(i), "image": image, "question": "?", "answer": "x"})
    path = tmp_path / "embedded.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_the_stage_mixes_sources_and_moves_with_its_run(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.jsonl", [
        *(row(tmp_path, 1000 + i) for i in range(100)), row(tmp_path, 5, question=""),
    ])  # fmt: skip
    path = embedded(tmp_path, 100)
    stats, work = stage(
        tmp_path, {"sources": [{"path": str(path), "category": "e"}, plain.model_dump()]}
    )
    assert stats["samples"] == SIZES
    assert stats["kept"] == {"embedded": 100, "plain": 100}
    assert stats["drops"] == {"empty-question": 1}
    assert [d.reason for d in work.folder.read("drops", Drop)] == ["empty-question"]
    samples = [s for split in SIZES for s in read(work, split)]
    inside = {s.image for s in samples if s.category == "e"}
    assert len(inside) == 20 and all(i.startswith("data/images/") for i in inside)
    assert {p.name for p in (work.out / "images").iterdir()} == {Path(i).name for i in inside}
    work.run.rename(tmp_path / "moved")
    for sample in samples:
        with Image.open(tmp_path / "moved" / sample.image) as image:
            image.load()


def test_the_stage_counts_images_that_splits_of_a_folder_share(tmp_path: Path) -> None:
    folder = tmp_path / "splits"
    folder.mkdir()
    for k, (split, n) in enumerate(SIZES.items()):
        rows = [row(tmp_path, 100 * k + i) for i in range(n)]
        if split == "test":
            rows[0]["images"] = [picture(tmp_path, 3)]  # of rft
            rows[1]["images"] = [picture(tmp_path, 3), picture(tmp_path, 105)]  # and calibration
            rows[2]["images"] = [picture(tmp_path, 200)]  # of dev, which nothing is trained on
        write(folder / f"{split}.jsonl", rows)
    stats, work = stage(tmp_path, {"source": str(folder), "images": str(tmp_path)})
    assert stats == {"samples": SIZES, "leaked_images": 2, "drops": {}}
    (two,) = (s for s in read(work, "test") if s.more_images)
    assert two.images == (picture(tmp_path, 3), picture(tmp_path, 105))


def test_the_stage_writes_drops_in_shards_and_forgets_those_of_a_killed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfcal.stage._WRITTEN", 5)
    rows = [row(tmp_path, i) for i in range(100)]
    bad = [row(tmp_path, 200 + i, question="") for i in range(12)]
    source = write(tmp_path / "a.jsonl", [*rows, *bad]).model_dump()
    left = StageDir(tmp_path / "run" / "data", "fingerprint")
    left.open()
    left.write_shard("drops", 7, [Drop("old", "read", "old")], Drop)
    stats, work = stage(tmp_path, {"sources": [source]})
    assert stats["drops"] == {"empty-question": 12}
    assert [len(work.folder.read_shard("drops", i, Drop)) for i in range(3)] == [5, 5, 2]
    assert len(work.folder.read("drops", Drop)) == 12


def test_the_stage_holds_images_to_the_recipes_limits(tmp_path: Path) -> None:
    rows = [row(tmp_path, i) for i in range(60)]
    Image.new("RGB", (40, 3)).save(tmp_path / "thin.png")
    rows.append(row(tmp_path, 70) | {"images": [str(tmp_path / "thin.png")]})
    rows.append(row(tmp_path, 71, [1, 2, 3]))
    source = write(tmp_path / "a.jsonl", rows).model_dump()
    settings: dict[str, Any] = {"sources": [source], "max_pixels": 100, "max_images": 2}
    stats, _ = stage(tmp_path, settings)
    assert stats["drops"] == {"image-too-large": 1, "too-many-images": 1}
    with pytest.raises(DataError, match=r"all 62 rows were dropped .image-too-small 61"):
        stage(tmp_path, settings | {"max_pixels": 1000, "min_side": 4})
    with pytest.raises(RecipeError, match=r"data\.max_pixels"):
        recipe_of(tmp_path, {"max_pixels": 10**9})


def test_a_file_as_data_source_is_pointed_to_sources(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row(tmp_path, 1)]).path
    with pytest.raises(DataError, match=r"is a file; .*list the file under data\.sources"):
        stage(tmp_path, {"source": path})


def test_miniworld_has_no_figures_of_files(tmp_path: Path) -> None:
    stats, work = stage(tmp_path, {})
    assert stats == {"samples": SIZES, "drops": {}}
    assert read(work, "dev")[0].image.startswith("data/images/dev/")
