"""Benchmarks' own figures, each worked out by hand from its paper's formula."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import pytest

from selfcal.evaluate.benchmark import (
    BenchmarkError,
    Figure,
    Prediction,
    chair,
    hallusionbench,
    has_figures,
    overall,
    pope,
    read_objects,
)


def said(
    reference: str, answer: str | None, category: str = "", name: str = "x", text: str = ""
) -> Prediction:
    right = answer is not None and answer == reference
    return Prediction(name, category, "yesno", reference, text, answer, right, True, False)


def values(figures: list[Figure], group: str = "all") -> dict[str, tuple[float, int]]:
    return {f.name: (f.value, f.n) for f in figures if f.group == group}


# 3 true positives, 1 false positive, 2 false negatives (one of them unreadable), 2 true negatives
POPE = [
    said("yes", "yes", "random"), said("yes", "yes", "random"), said("yes", "yes", "popular"),
    said("no", "yes", "popular"), said("yes", "no", "random"), said("yes", None, "popular"),
    said("no", "no", "random"), said("no", "no", "popular"),
]  # fmt: skip


def test_pope_by_hand() -> None:
    found = values(pope(POPE))
    assert found == {
        "pope_accuracy": (5 / 8, 8),
        "pope_precision": (3 / 4, 4),  # TP / (TP + FP)
        "pope_recall": (3 / 5, 5),  # TP / (TP + FN)
        "pope_f1": (pytest.approx(2 * 3 / 4 * 3 / 5 / (3 / 4 + 3 / 5)), 8),
        "pope_yes_ratio": (4 / 8, 8),
    }
    random = values(pope(POPE), "random")
    assert random["pope_precision"] == (1, 2) and random["pope_recall"] == (2 / 3, 3)
    (accuracy,) = (f for f in pope(POPE) if (f.group, f.name) == ("all", "pope_accuracy"))
    assert accuracy.stderr == pytest.approx(sqrt(5 / 8 * 3 / 8 / 8))


def test_pope_refuses_other_answers() -> None:
    with pytest.raises(BenchmarkError, match=r"sample x: POPE's answers are yes and no.*'red'"):
        pope([said("red", "yes")])


def objects_file(folder: Path, text: str) -> Path:
    path = folder / "objects.txt"
    path.write_text(text)
    return path


OBJECTS = """\
person, man, woman, child
dog, puppy
hot dog
cup, mug
dining table, table
bus
"""


def test_chair_by_hand(tmp_path: Path) -> None:
    objects = read_objects(objects_file(tmp_path, OBJECTS))
    captions = [
        # person, dog: both there
        said("person, dog", None, text="Two women walk a puppy."),
        # cup, table: the cup is not; a hot dog is no dog
        said("dining table, hot dog", None, text="A mug and a hot dog on the TABLE."),
        # dog twice, person: the dogs are not
        said("person", None, text="Dogs and a dog near a man"),
        said("bus", None, text="An empty street."),  # mentions nothing
    ]
    found = {f.name: f for f in chair(captions, objects)}
    # 1 + 2 hallucinated of 2 + 3 + 3 mentioned; 2 captions of 4
    assert (found["chair_i"].value, found["chair_i"].n) == (3 / 8, 8)
    assert (found["chair_s"].value, found["chair_s"].n) == (2 / 4, 4)
    # what each has above 3/8 of its mentions: -6/8, -1/8, 7/8, 0
    assert found["chair_i"].stderr == pytest.approx(sqrt(86 / 64) / 8)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("people and men", ["person"]), ("three buses", ["bus"]), ("a busy busman", []),
        ("mugs, cups", ["cup", "cup"]), ("a hot   dog\nand dogs", ["hot dog", "dog"]),
        ("children at tables", ["person", "dining table"]), ("underdog", []),
    ],
)  # fmt: skip
def test_mentions_of_objects(tmp_path: Path, text: str, names: list[str]) -> None:
    objects = read_objects(objects_file(tmp_path, OBJECTS))
    found = objects.in_text(text)
    assert found == (["person", *names] if text.startswith("people") else names)


@pytest.mark.parametrize(
    ("text", "said"),
    [("dog, puppy\ncat, puppy\n", "line 2: 'puppy' is also a word for 'dog'"),
     ("\n", "has no objects")],
)  # fmt: skip
def test_a_faulty_list_of_objects_says_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BenchmarkError, match=said):
        read_objects(objects_file(tmp_path, text))


def test_hallusionbench_by_hand() -> None:
    def one(name: str, right: bool) -> Prediction:
        return said("yes", "yes" if right else "no", name=name)

    found = values(hallusionbench([
        one("hb_VD_chart_0_1_0", True), one("hb_VD_chart_0_1_1", True),  # figure 1: all right
        one("hb_VD_chart_0_2_0", True), one("hb_VD_chart_0_2_1", False),  # figure 2: not
        one("hb_VS_chart_0_1_0", False),  # another part: a figure and a question of its own
    ]))  # fmt: skip
    # figures: VD 0 1, VD 0 2, VS 0 1; questions: VD 0 0 (both right), VD 0 1 (one wrong), VS 0 0
    assert found == {"aAcc": (3 / 5, 5), "fAcc": (1 / 3, 3), "qAcc": (1 / 3, 3)}
    assert has_figures(["hb_VD_chart_0_1_0"]) and not has_figures(["1", "hb_VD_chart_0_1_0"])
    with pytest.raises(BenchmarkError, match="sample 17: HallusionBench's index"):
        hallusionbench([one("17", True)])


def test_unreadable_answers_are_a_share_of_their_own() -> None:
    found = overall(POPE)
    assert values(found) == {
        "accuracy": (5 / 8, 8), "unreadable": (1 / 8, 8), "format_compliance": (1, 8),
        "cut": (0, 8),
    }  # fmt: skip
    assert [*dict.fromkeys(f.group for f in found)] == ["all", "random", "popular", "kind: yesno"]
