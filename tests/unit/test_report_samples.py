"""The samples' part of a report: which are shown, what the index says, and text that stays text."""

from __future__ import annotations

import base64
import json
import math
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from html.parser import HTMLParser
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from selfcal.judge.labels import known_truth
from selfcal.miniworld.verifier import Verification, verify
from selfcal.page import environment
from selfcal.rationale import HEADINGS
from selfcal.report.pictures import Pictures
from selfcal.report.reader import Reader, disagreement
from selfcal.report.rows import change, row_of
from selfcal.report.sample import view_of
from selfcal.report.samples import TEMPLATES, samples_context
from selfcal.report.tree import MOST as MOST_NODES
from selfcal.report.tree import sentences, tree_of
from selfcal.story import Answer, Cell, Ranked, Rollouts, Round, Story, Taught, Written
from selfcal.types import (
    Candidate,
    Drop,
    Judgment,
    PreferencePair,
    Response,
    Rollout,
    Sample,
    SearchNode,
    WrittenRap,
)
from unit.hand_made import BAD, EVIL, GOOD, RunFolder, sample

BARE = "Answer: 5"
"""Right, yet nothing is stated: not reliable, insufficient, and not in the format."""
SWAPPED = "Rationale: The right digit is 3. The left digit is 2. 2 plus 3 is 5.\nAnswer: 5"
OWN = sample("cal-0")


def reader(own: Sample = OWN, knows: bool = True) -> Reader:
    found: Callable[[str], Verification | None] = partial(verify, own)
    return Reader(own, HEADINGS, found if knows else lambda text: None)


def candidate(i: int, text: str) -> Candidate:
    return Candidate("cal-0", i, text, (text,), (-1.0,), (9,), True)


def a_round(**given: Any) -> Round:
    """Three candidates: GOOD beats BAD, but BARE beats GOOD, and BAD beats BARE."""
    signs = {(0, 1): 1, (0, 2): -1, (1, 2): 1}
    cells = {k: Cell(s, 0.75) for k, s in signs.items()}
    cells |= {(j, i): Cell(-s, 0.75) for (i, j), s in signs.items()}
    ranked = [
        Ranked(candidate(i, text), score, role, verify(OWN, text))
        for i, (text, score, role) in enumerate(
            [(GOOD, -0.25, "rejected"), (BAD, 0.75, "chosen"), (BARE, 0.0, "")]
        )
    ]
    pair = PreferencePair("cal-0", BAD, GOOD, 1, 0, 0.75, -0.25)
    whole: dict[str, Any] = {
        "place": "iter-1", "about": "curation", "curating": "iter-1/pairs", "searched": True,
        "candidates": tuple(ranked), "nodes": (), "judgments": (), "corrected": "",
        "uncorrected": "", "cells": cells, "labels": (), "grades": (), "pairs": (pair,),
        "dropped": {},
    }  # fmt: skip
    return Round(**whole | given)


def answer(text: str, checkpoint: str = "seed") -> Answer:
    found = verify(OWN, text)
    flags = (found.counterfactual, found.insufficient, found.unreasonable, found.inconsistent)
    own = Response(
        "cal-0", "math", text, found.answer, found.compliant, found.correct, found.sound, *flags,
        0, 0,
    )  # fmt: skip
    return Answer(checkpoint, own, found)


def a_story(parts: Sequence[Any] = (), answers: Sequence[Answer] = (), own: Sample = OWN) -> Story:
    return Story("calibration", own, None, tuple(parts), tuple(answers), ())


def page_of(story: Story, run: Path, knows: bool = True) -> str:
    view = view_of(story, reader(story.sample, knows), Pictures(run))
    return environment(TEMPLATES).get_template("sample.html.j2").render(view)


# --- the index ------------------------------------------------------------------------------


def test_a_line_says_what_was_made_of_a_sample() -> None:
    drop = Drop("cal-0", "candidates", "duplicate")
    row = row_of(
        a_story([a_round(dropped={"iter-1/candidates": (drop,)})], [answer(BAD), answer(GOOD)]),
        reader(),
    )
    assert row == {
        "id": "cal-0",
        "split": "calibration",
        "category": "math",
        "question": "Add the digits.",
        "steps": [
            {
                "place": "iter-1",
                "kept": ["pair"],
                "dropped": ["candidates: duplicate"],
                "asked": 3,
                "against": 2,
                "chosen": ["wrong answer", "counterfactual"],
                "rejected": [],
                "margin": 1.0,
                "worse": True,
            }
        ],
        "last": [],
        "change": "mended",
        "size": 2.75,
    }


def test_a_line_of_what_was_left_out_taught_or_written() -> None:
    drop = Drop("cal-0", "pairs", "no-gap")
    bare = a_round(pairs=(), cells={}, dropped={"iter-2/wide/pairs": (drop,)}, place="iter-2/wide")
    pair = PreferencePair("cal-0", GOOD, BAD, -1, -1, 0.0, 0.0, rejected_image="spoiled.png")
    written = Written("iter-1/pairs", "written", True, (pair,), frozenset(), (), ())
    rollouts = Rollouts("iter-1/grpo", True, (), (), (Drop("cal-0", "grpo", "budget"),))
    taught = Taught(True, (WrittenRap("cal-0", GOOD),), ())
    story = Story("rft", OWN, taught, (bare, written, rollouts), (), ())
    assert row_of(story, reader())["steps"] == [
        {"place": "teacher", "kept": ["rationale"]},
        {"place": "iter-2", "dropped": ["pairs: no-gap"]},
        # the rejected response goes with another image, and nobody compared the two
        {"place": "iter-1", "kept": ["pair"], "chosen": []},
        {"place": "iter-1", "dropped": ["grpo: budget"]},
    ]


def test_a_name_of_any_length_keeps_the_index_small() -> None:
    long, other = (sample("x" * 100_000 + end) for end in "ab")
    ids = [row_of(a_story(own=own), reader(own))["id"] for own in (long, other)]
    assert len(set(ids)) == 2 and max(map(len, ids)) < 600


def test_names_are_shown_harmless_and_found_as_they_are() -> None:
    own = sample(EVIL)
    row = row_of(a_story(own=own), reader(own))
    assert row["id"] == EVIL
    assert row["name"] == r"\x1b[31m[bold]red[/bold]\u202e\x07"


@pytest.mark.parametrize(
    ("first", "last", "kind", "size"),
    [
        (BAD, GOOD, "mended", 2.75),  # two steps; 1 of 4 sentences in common: 1 - 2 * 1 / 8
        (GOOD, BAD, "spoiled", 2.75),
        (GOOD, GOOD, "same", 0.0),
        (GOOD, SWAPPED, "reworded", 0.25),  # 3 of 4 in the same order: 1 - 2 * 3 / 8
        (BARE, GOOD, "mended", 1.6),  # sound; of 1 and 4 sentences the answer is common: 1 - 2 / 5
    ],
)
def test_change_counts_steps_and_sentences(first: str, last: str, kind: str, size: float) -> None:
    found = change([answer(first), answer(BAD), answer(last)], reader())
    assert found == (kind, pytest.approx(size))


# --- judge and verifier ---------------------------------------------------------------------


def test_what_is_true_is_what_the_label_giver_knows() -> None:
    for one, other in permutations((GOOD, BAD, BARE, SWAPPED), 2):
        word = {1: "first", -1: "second", 0: "neutral"}[reader().truth(one, other) or 0]
        assert word == known_truth(OWN, one, other)
    uncertain = Sample(**{f: getattr(OWN, f) for f in OWN.__slots__} | {"confidence": 0.5})
    assert reader(uncertain).truth(GOOD, BAD) is known_truth(uncertain, GOOD, BAD) is None


def test_disagreements_are_counted_by_their_kind() -> None:
    told = a_round()
    found = disagreement(told, reader().truths(told))
    # GOOD is better than both others, which are equal: right, the other way round, and invented
    assert (found.asked, found.opposite, found.invented, found.missed) == (3, 1, 1, 0)
    assert found.count == 2
    neutral = a_round(cells={(0, 1): Cell(0, 0.9), (1, 0): Cell(0, 0.9)})
    assert disagreement(neutral, reader().truths(neutral)).missed == 1
    assert not disagreement(told, reader(knows=False).truths(told)).asked


# --- the tree -------------------------------------------------------------------------------


def node(i: int, parent: int, text: str, kept: bool = True, candidate: int = -1) -> SearchNode:
    return SearchNode("cal-0", i, parent, text, -float(i + 1), 5, 1, kept, candidate)


NODES = (
    node(0, -1, "Rationale: The left digit is 2."),
    node(1, 0, " The right digit is 9.", kept=False),
    node(2, 0, " The right digit is 3."),
    node(3, 2, " 2 plus 3 is 5.\n"),
    node(4, 3, "Answer: 5", candidate=0),
    node(5, -1, "Answer: 7", candidate=1),
)


def test_a_tree_has_a_branch_for_every_choice() -> None:
    tree = tree_of(a_round(nodes=NODES), reader())
    assert sentences(tree) == (6, 1)
    first, second = tree
    assert [(t.text, t.status) for t in first.twigs] == [
        ("Rationale: The left digit is 2.", "true")
    ]
    kept, pruned = first.branches  # what was kept comes first
    assert [(t.text, t.status) for t in kept.twigs] == [
        ("The right digit is 3.", "true"),
        ("2 plus 3 is 5.", "follows"),
        ("Answer: 5", "right"),
    ]
    assert [t.leaf.candidate.index if t.leaf else None for t in kept.twigs] == [None, None, 0]
    assert pruned.pruned and pruned.twigs[0].status == "counterfactual"
    assert [t.status for t in second.twigs] == ["wrong"]


def test_a_tree_out_of_a_damaged_file_ends() -> None:
    loop = (node(0, 1, "a"), node(1, 0, "b"), node(2, 2, "c"), node(3, 77, "d"))
    assert sentences(tree_of(a_round(nodes=loop), reader()))[0] == 4
    twice = tuple(node(i // 2, i // 2 - 1, "e") for i in range(48))  # would double at each level
    assert sentences(tree_of(a_round(nodes=(*twice, node(-1, -1, "f"))), reader()))[0] == 24
    chain = [node(2 * i, 2 * i - 2 if i else -1, "x") for i in range(500)]
    comb = [node(2 * i + 1, 2 * i, "y", kept=False) for i in range(500)]
    deep = a_round(nodes=(*chain, *comb))
    assert sentences(tree_of(deep, reader(knows=False))) == (1_000, 500)
    page_of(a_story([deep]), Path("nowhere"), knows=False)


def test_of_a_tree_beyond_reading_the_candidates_are_listed(tmp_path: Path) -> None:
    told = a_round(nodes=tuple(node(i, i - 1, "So.") for i in range(MOST_NODES + 1)))
    assert not tree_of(told, reader())
    page = page_of(a_story([told]), tmp_path)
    assert "The search tree has 1,201 sentences, too many to be shown" in page
    assert page.count("log-probability") == 3 and len(page) < 20_000


# --- the page -------------------------------------------------------------------------------

TAGS = {
    "article", "header", "h2", "h3", "h4", "h5", "p", "span", "div", "figure", "figcaption", "img",
    "dl", "dt", "dd", "ul", "ol", "li", "section", "details", "summary", "strong", "small", "mark",
    "table", "caption", "thead", "tbody", "tr", "th", "td", "button",
}  # fmt: skip
ATTRIBUTES = {
    "class", "tabindex", "role", "style", "scope", "type", "width", "height", "alt", "open",
    "data-image", "data-n", "aria-hidden", "aria-label", "aria-expanded",
}  # fmt: skip
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "'\" onmouseover=alert(1) style=x:expression(1) {{ 7*7 }} {% raw %}",
    "]]>--><svg onload=alert(1)>",
    EVIL,
]


class Seen(HTMLParser):
    """What elements a page has, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set[str](), set[str](), ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_run(path: Path, evil: str) -> RunFolder:
    """A run in which everything that is text is the same attack."""
    run, name = RunFolder(path), f"cal {evil}"
    rap = f"Rationale: {evil}. The left digit is 2.\nAnswer: {evil}"
    own = Sample(name, evil, evil, evil, (evil, evil), evil, evil, evil)
    run.finish("data", {"calibration": (Sample, [own]), "test": (Sample, [own])})
    found = [
        Candidate(name, i, t, (t,), (-1.0,), (1,), False, (0.5,), (50.0,))
        for i, t in enumerate((rap, f"{rap}!"))
    ]
    nodes = [SearchNode(name, i, -1, c.text, -1.0, 1, 2, True, i) for i, c in enumerate(found)]
    nodes += [SearchNode(name, 2, -1, evil, -9.0, 1, 1, False, -1)]
    drops = [Drop(name, evil, evil, evil)]
    run.finish(
        "iter-1/candidates",
        {"candidates": (Candidate, found), "nodes": (SearchNode, nodes), "drops": (Drop, drops)},
    )
    asked = [Judgment(name, *order, v, 0.6, 0.3, 0.1) for order, v in (((0, 1), "first"),)]
    run.finish("iter-1/judgments", {"judgments": (Judgment, asked)})
    pairs = [PreferencePair(name, rap, f"{rap}!", 0, 1, 1.0, -1.0)]
    run.finish("iter-1/pairs", {"pairs": (PreferencePair, pairs), "drops": (Drop, drops)})
    said = Response(name, evil, rap, evil, True, *[False] * 6, 0, 1)
    run.finish("eval/seed", {"calibration": (Response, [said]), "test": (Response, [said])})
    return run


def opened(block: str) -> str:
    return zlib.decompress(base64.b64decode(block)).decode()


@pytest.mark.parametrize("evil", HOSTILE)
def test_hostile_text_stays_text(evil: str, tmp_path: Path) -> None:
    made = samples_context(hostile_run(tmp_path / "run", evil).path, 10, None)
    assert (made["shown"], made["total"], made["followed"]) == (2, 2, 1)
    for block in made["blocks"]:
        seen = Seen(opened(block))
        assert seen.tags <= TAGS and seen.attributes <= ATTRIBUTES
        assert not any((ord(c) < 32 and c != "\n") or c == "\u202e" for c in seen.text)
        for harmless in ("onerror=alert(1)", "{{ 7*7 }}", r"\x1b[31m[bold]"):
            assert (harmless in evil.replace("\x1b", r"\x1b")) == (harmless in seen.text)
    index = str(made["index"])
    assert not {"<", ">", "&"} & set(index)
    assert [row["id"] for row in json.loads(index)] == [f"cal {evil}"] * 2
    data = environment(TEMPLATES).get_template("samples-data.html.j2").render(samples=made)
    assert Seen(data).tags == {"script"} and data.count("<script") == 5


def test_a_sample_of_long_texts_is_quick_and_small(tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "run", "<b>Word. \n" * 10_000)
    begun = time.perf_counter()
    made = samples_context(run.path, 10, None)
    assert time.perf_counter() - begun < 10
    page = opened(made["blocks"][0])
    assert len(page) < 1_500_000 and "more characters are left out here" in page
    assert len(made["index"]) < 5_000


def test_a_page_shows_pair_matrix_tree_and_answers(tmp_path: Path) -> None:
    answers = [answer(BAD), answer(BAD, "rft"), answer(GOOD, "iter-1")]
    page = page_of(a_story([a_round(nodes=NODES)], answers), tmp_path)
    text = " ".join(Seen(page).text.split())
    assert "the verifier finds the rejected one better" in text
    assert "judge and verifier disagree on 2 of 3 pairs" in text
    assert "Word for word as seed." in text
    assert "<mark>4</mark>" in page and "Hide 1 pruned" in text
    assert page.count("✗</span> counterfactual") == 3  # chosen, pruned, and seed's answer
    assert page.count('scope="row"') == 3 and page.count('scope="col"') == 5


def test_without_a_verifier_nothing_is_marked(tmp_path: Path) -> None:
    plain = answer(GOOD)
    answers = [Answer("seed", plain.response, None)]
    text = Seen(page_of(a_story([a_round(nodes=NODES)], answers), tmp_path, knows=False)).text
    assert "verifier" not in text
    assert text.count("✓") == text.count("✓ right") == 1  # the answer agrees with the reference
    assert not {"✗", "counterfactual"} & set(text.split())


def test_a_drop_without_a_reason_is_shown(tmp_path: Path) -> None:
    told = a_round(dropped={"iter-1/pairs": (Drop("cal-0", "pairs", ""),)})
    assert "left out" in page_of(a_story([told]), tmp_path)


def test_rollouts_are_shown_once_each_with_what_they_were_worth(tmp_path: Path) -> None:
    rollouts = [
        Rollout("cal-0", 0, i, text, 9, float(text != BAD), True, (math.nan,), 1.0, gain)
        for i, (text, gain) in enumerate([(BAD, -1.0), (GOOD, 0.5), (GOOD, 0.5)])
    ]
    part = Rollouts("iter-1/grpo", True, ("faithful",), tuple(rollouts), ())
    text = " ".join(Seen(page_of(a_story([part]), tmp_path)).text.split())
    assert "Batch 0, a group of 3" in text
    assert text.index("advantage +0.500") < text.index("advantage −1.000")  # noqa: RUF001
    assert text.count("2 times") == 1 and "faithful –" in text  # noqa: RUF001


def test_a_run_without_samples_says_so(tmp_path: Path) -> None:
    made = samples_context(RunFolder(tmp_path / "run").path, 10, None)
    assert (made["shown"], made["total"], made["blocks"]) == (0, 0, [])
    page = environment(TEMPLATES).get_template("samples.html.j2").render(samples=made)
    assert "no samples yet" in page
