"""MiniWorld: what is written can be read back, is true, and is the same for the same seed."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfcal.errors import SelfcalError
from selfcal.miniworld import draw
from selfcal.miniworld.build import SPLITS, build, scans_of, split_of, worlds
from selfcal.miniworld.corrupt import practice_rap
from selfcal.miniworld.draw import load_scans, paint
from selfcal.miniworld.questions import (
    KINDS,
    Query,
    answer,
    gold_rationale,
    is_related,
    needs,
    random_query,
    read_question,
    say_premise,
)
from selfcal.miniworld.verifier import is_true, read_inference, read_premise
from selfcal.miniworld.world import (
    CATEGORIES,
    COLORS,
    PLACES,
    POSITIONS,
    SHAPES,
    World,
    facts,
    random_world,
    read_facts,
)
from selfcal.rationale import parse, split_sentences
from selfcal.types import Sample

SCENE = World(
    objects=(
        ("top-left", "red", "circle"),
        ("top", "green", "circle"),
        ("center", "blue", "square"),
        ("bottom-right", "yellow", "star"),
    )
)
CHART = World(bars=(("red", 3), ("green", 7), ("blue", 5)))
TWO = World(digits=(("left", 3), ("right", 8)))
THREE = World(digits=(("left", 4), ("middle", 9), ("right", 1)))


def some(n: int) -> list[tuple[World, Query]]:
    rng = random.Random(7)
    drawn = [random_world(CATEGORIES[i % 3], rng) for i in range(n)]
    return [(world, random_query(world, rng)) for world in drawn]


def test_worlds_are_well_formed_and_every_kind_of_question_is_asked() -> None:
    kinds = {category: set[str]() for category in CATEGORIES}
    for world, query in some(3000):
        kinds[world.category].add(query.kind)
        order = [POSITIONS.index(p) for p, _, _ in world.objects]
        assert order == sorted(set(order))
        assert all(c in COLORS and s in SHAPES for _, c, s in world.objects)
        assert len({v for _, v in world.bars}) == len({c for c, _ in world.bars}) in (0, 3)
        assert all(1 <= v <= 9 for _, v in world.bars)
        assert len({v for _, v in world.digits}) == len({p for p, _ in world.digits}) in (0, 2, 3)
        assert all(p in PLACES and 0 <= v <= 9 for p, v in world.digits)
        assert [bool(world.objects), bool(world.bars), bool(world.digits)].count(True) == 1
    assert kinds == {category: set(of) for category, of in KINDS.items()}
    with pytest.raises(ValueError, match="perception, chart, math"):
        random_world("audio", random.Random(0))


def test_facts_and_questions_are_read_back() -> None:
    for world, query in some(3000):
        assert read_facts(facts(world)) == world
        assert {read_question(query.wording(order)) for order in (False, True)} == {query}


def test_gold_rationales_are_read_back_and_every_statement_is_true() -> None:
    for world, query in some(3000):
        *told, step = (s.strip() for s in split_sentences(gold_rationale(query, world)))
        premises = [read_premise(s) for s in told]
        assert premises == needs(query, world)
        assert all(p and is_true(p, world) for p in premises)
        assert read_inference(step) and not read_premise(step)


def test_facts_in_words() -> None:
    assert facts(SCENE) == (
        "top-left: red circle; top: green circle; center: blue square; bottom-right: yellow star; "
        "2 circles; 1 square; 0 triangles; 1 star"
    )
    assert facts(CHART) == "red bar: 3; green bar: 7; blue bar: 5"
    assert facts(THREE) == "left digit: 4; middle digit: 9; right digit: 1"


@pytest.mark.parametrize(
    "text",
    ["", "a dog", "dog: 3", "red bar: many", "red bar: \u00b2", "top: circle", "top: 3", ": "],
)
def test_other_facts_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_facts(text)


@pytest.mark.parametrize(
    "question", ["", "How many?", "How many circles are there? Why?", "How many 3s are there?", "?"]
)
def test_other_questions_are_refused(question: str) -> None:
    with pytest.raises(ValueError, match="not a MiniWorld question"):
        read_question(question)


@pytest.mark.parametrize(
    ("world", "question", "expected"),
    [
        (SCENE, "How many circles are there?", "2"),
        (SCENE, "Count the stars.", "1"),
        (SCENE, "What color is the square?", "blue"),
        (SCENE, "Name the shape at the bottom-right.", "star"),
        (SCENE, "Is the red circle left of the green circle?", "yes"),
        (SCENE, "Is the red circle above the green circle?", "no"),
        (SCENE, "Check if the yellow star is below the blue square.", "yes"),
        (SCENE, "Is the green circle right of the blue square?", "no"),
        (SCENE, "Are there more circles than stars?", "yes"),
        (SCENE, "Are there more squares than stars?", "no"),
        (SCENE, "Are there more triangles than stars?", "no"),
        (CHART, "Read the value of the blue bar.", "5"),
        (CHART, "Which bar is the highest?", "green"),
        (CHART, "How much higher is the blue bar than the red bar?", "2"),
        (CHART, "Subtract the red bar from the green bar.", "4"),
        (CHART, "Add the green bar and the blue bar.", "12"),
        (TWO, "What is the sum of the digits?", "11"),
        (TWO, "Subtract the digits.", "5"),
        (THREE, "Name the largest digit.", "9"),
    ],
)
def test_answers(world: World, question: str, expected: str) -> None:
    assert answer(read_question(question), world) == expected


@pytest.mark.parametrize(
    ("a", "relations"),
    [("top-left", "left of, above"), ("top", "above"), ("right", "right of"), ("center", "")],
)
def test_relations_to_the_center(a: str, relations: str) -> None:
    held = [r for r in ("left of", "right of", "above", "below") if is_related(a, r, "center")]
    assert ", ".join(held) == relations


def test_practice_raps_have_the_format_and_are_the_same_for_the_same_seed() -> None:
    unreadable = 0
    for i, (world, query) in enumerate(some(1000)):
        rap = practice_rap(query, world, random.Random(i))
        assert practice_rap(query, world, random.Random(i)) == rap
        assert parse(rap).answer
        read = [read_premise(s) or read_inference(s) for s in parse(rap).sentences]
        assert read.count(None) <= 1
        unreadable += None in read
    # half of them get random faults, and 12 % of these a word twice or left out
    assert 30 <= unreadable <= 100


def test_splits_are_drawn_in_the_papers_mix_and_share_no_world() -> None:
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        drawn = [world for world, _, _ in islice(worlds(split, 0), 400)]
        assert Counter(w.category for w in drawn[:40]) == Counter(perception=20, chart=10, math=10)
        assert Counter(w.category for w in drawn) == Counter(perception=200, chart=100, math=100)
        seen[split] = {facts(w) for w in drawn if not w.digits}
        assert all(split_of(f) == split for f in seen[split])
    assert all(seen[a].isdisjoint(seen[b]) for a, b in combinations(SPLITS, 2))


def test_every_scan_belongs_to_one_split_and_every_split_has_every_digit() -> None:
    labels = load_scans()[1]
    scans = {split: scans_of(split) for split in SPLITS}
    used = [i for of in scans.values() for group in of.values() for i in group]
    assert sorted(used) == list(range(1797))
    assert all(
        group and set(labels[group]) == {v} for of in scans.values() for v, group in of.items()
    )


def test_shares_of_the_splits() -> None:
    n = 20_000
    counts = Counter(split_of(str(i)) for i in range(n))
    assert sum(SPLITS.values()) == 100
    for split, share in SPLITS.items():
        expected = n * share / 100
        assert abs(counts[split] - expected) < 5 * expected**0.5


def read_all(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_builds_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    sizes = {"rft": 12, "dev": 8, "test": 0}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert build(tmp_path / name, sizes, seed) == sizes
    a, b, c = (read_all(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert len(a) == 12 + 8 + 3
    assert all(a[name] != c[name] for name in a if name != "test.jsonl")
    assert a["test.jsonl"] == b""


def test_what_is_built(tmp_path: Path) -> None:
    build(tmp_path, {"rft": 40})
    lines = (tmp_path / "rft.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [Sample(**json.loads(line)) for line in lines]
    assert [s.id for s in samples] == [f"rft-{i:05d}" for i in range(40)]
    assert Counter(s.category for s in samples) == Counter(perception=20, chart=10, math=10)
    for s in samples:
        world, query = read_facts(s.facts), read_question(s.question)
        assert (s.answer, s.rationale) == (answer(query, world), gold_rationale(query, world))
        assert world.category == s.category
        with Image.open(tmp_path / s.image) as image:
            assert (image.size, image.mode, image.format) == ((48, 48), "RGB", "PNG")


def test_a_finished_split_is_left_alone_and_an_unfinished_one_built_again(tmp_path: Path) -> None:
    build(tmp_path, {"rft": 4, "dev": 4})
    before = read_all(tmp_path)
    (tmp_path / "dev.jsonl").unlink()
    (tmp_path / "images/rft/rft-00000.png").write_bytes(b"mine")
    build(tmp_path, {"rft": 4, "dev": 4})
    assert read_all(tmp_path) == {**before, "images/rft/rft-00000.png": b"mine"}
    for size, seed in ((5, 0), (4, 1)):
        with pytest.raises(SelfcalError, match=r"rft\.jsonl holds other samples than the \d of"):
            build(tmp_path, {"test": 2, "rft": size}, seed)
    assert not (tmp_path / "test.jsonl").exists()


@pytest.mark.parametrize("sizes", [{"rft": -1}, {"train": 3}])
def test_sizes_that_cannot_be_built(sizes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="splits are pretrain, rft"):
        build(tmp_path, sizes)
    assert not list(tmp_path.iterdir())


def test_images_of_a_split_hold_only_its_own_scans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = load_scans()
    used: list[int] = []

    class Recorder:
        def __getitem__(self, i: int) -> Any:
            used.append(i)
            return images[i]

    monkeypatch.setattr(draw, "load_scans", lambda: (Recorder(), labels))
    for split in ("dev", "test"):
        used.clear()
        build(tmp_path, {split: 40})
        assert len(used) >= 20
        assert {split_of(f"scan {i}") for i in used} == {split}


@pytest.mark.parametrize("world", [SCENE, CHART, TWO, THREE])
def test_images_show_their_world(world: World) -> None:
    def pixels(of: World, seed: int = 0) -> np.ndarray:
        image = paint(of, random.Random(seed))
        assert (image.size, image.mode) == ((48, 48), "RGB")
        return np.asarray(image).astype(int)

    image = pixels(world)
    assert (image == pixels(world)).all()
    assert (image != pixels(world, seed=1)).any()
    for position, color, _ in world.objects:
        row, column = divmod(POSITIONS.index(position), 3)
        assert hue(image[row * 16 + 8, column * 16 + 8]) == color
    for i, (color, value) in enumerate(world.bars):
        column = image[:, i * 16 + 7]
        assert hue(column[47]) == hue(column[49 - value * 5]) == color
        assert hue(column[45 - value * 5]) == "none"
    for place, _ in world.digits:
        column = image[16:32, PLACES.index(place) * 16 : PLACES.index(place) * 16 + 16]
        assert column.min() < 120  # ink on the paper
    assert (hue(image[40, 8]) == "none") or world.bars


def hue(pixel: np.ndarray) -> str:
    r, g, b = (int(v) for v in pixel)
    if min(r, g, b) > 190:
        return "none"
    if min(r, g) > 140:
        return "yellow"
    return max((r, "red"), (g, "green"), (b, "blue"))[1]


def test_premises_name_what_they_are_about() -> None:
    said = {say_premise(p) for w, q in some(2000) for p in needs(q, w)}
    assert len({p for s in said if (p := read_premise(s))}) == len(said)
