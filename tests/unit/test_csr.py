"""CSR by hand: the reward's equations, and the search that they guide, on a fixed tree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from selfcal.methods.csr import decide
from selfcal.reward import (
    CalibratedReward,
    calibrated,
    likelihood,
    of_images,
    ranks,
    relevance,
)
from selfcal.search.beam import SearchLimits, _search
from selfcal.search.filters import Filters
from selfcal.search.jobs import Place, Sentence
from selfcal.search.sampling import Sampling
from selfcal.types import Candidate, Drop, PreferencePair, Sample

SAMPLE = Sample("s", "image.png", "What?", "")


def test_equation_2_is_the_product_of_token_probabilities() -> None:
    # tokens of probability 0.5, 0.8 and 0.25: 0.1
    assert likelihood(math.log(0.5) + math.log(0.8) + math.log(0.25)) == pytest.approx(0.1)
    assert likelihood(0.0) == 1.0
    assert likelihood(1e-9) == 1.0  # a sum rounded above 0 is no probability above 1


def test_equation_3_is_a_hundredfold_cosine_and_never_negative() -> None:
    assert relevance(0.31) == pytest.approx(31.0)
    assert relevance(-0.2) == 0.0


def test_equation_4_mixes_values() -> None:
    # 0.9 x 31 + 0.1 x 0.1 = 27.91; 0.9 x 20 + 0.1 x 0.8 = 18.08
    assert calibrated([31, 20], [0.1, 0.8], 0.9, "raw") == pytest.approx([27.91, 18.08])
    assert calibrated([31, 20], [0.1, 0.8], 0.0, "raw") == pytest.approx([0.1, 0.8])


def test_equation_4_mixes_ranks_among_siblings() -> None:
    # relevance ranks 1, 0.5, 0; likelihood ranks 0, 0.5, 1
    mixed = calibrated([31, 25, 20], [0.1, 0.3, 0.8], 0.9, "rank")
    assert mixed == pytest.approx([0.9, 0.5, 0.1])


def test_ranks_share_ties_and_an_only_child_is_in_the_middle() -> None:
    assert ranks([3.0, 1.0, 2.0]) == [1.0, 0.0, 0.5]
    assert ranks([2.0, 2.0, 1.0]) == [0.75, 0.75, 0.0]  # ranks 1 and 2 of 0, 1, 2: 1.5 / 2
    assert ranks([7.0]) == [0.5]
    assert ranks([]) == []


# --- the search, on a tree that is written down ---------------------------------------------

# sentence -> (probability, cosine with the image)
SAID = {
    " The cup is red.": (0.5, 0.30),
    " The cup is blue.": (0.3, 0.10),
    " The cup is big.": (0.2, 0.20),
    " So it is red.": (0.8, 0.25),
    " So it is warm.": (0.2, 0.15),
    " So it is blue.": (0.9, 0.05),
    " So it is cold.": (0.1, 0.40),
}
TREE = {
    "": [" The cup is red.", " The cup is blue.", " The cup is big."],
    " The cup is red.": [" So it is red.", " So it is warm."],
    " The cup is blue.": [" So it is blue.", " So it is cold."],
    " The cup is big.": [" So it is red.", " So it is warm."],
}


class Seen:
    """Cosines that are written down, in place of CLIP."""

    def of(self, image: str, sentences: Sequence[str]) -> list[float]:
        assert image == "image.png"
        return [relevance(SAID[s][1]) for s in sentences]


def place() -> Place:
    nothing: Any = None
    return Place(nothing, nothing, 0, ())


def searched(normalize: Any, weight: float = 0.9, **limits: Any) -> Any:
    """Run the search as the engine would, with the tree as the model."""
    filters = Filters(**limits)
    may = SearchLimits(2, 2, "top_bottom", 2, 8, Sampling(), filters)
    guide = CalibratedReward(Seen(), weight, normalize)  # type: ignore[arg-type]
    job = _search(SAMPLE, place(), may, "seed", guide)
    told = {}
    asks = next(job)
    where = {id(asks[0].place): ""}
    try:
        while True:
            found = []
            for ask in asks:
                before = where[id(ask.place)]
                own = []
                for text in TREE[before]:
                    then = place()
                    told[id(then)] = then  # kept alive, so that no other place gets its id
                    where[id(then)] = text
                    own.append(Sentence(then, text, math.log(SAID[text][0]), (1, 2), before != ""))
                found.append(own)
            asks = job.send(found)
    except StopIteration as end:
        return end.value


def test_the_search_keeps_top_and_bottom_by_the_raw_reward() -> None:
    found = searched("raw")
    # level 1: 0.9 x 30 + 0.1 x 0.5 = 27.05 (red), 9.03 (blue), 18.02 (big): red and blue go on
    first = {n.text: (n.kept, n.reward) for n in found.nodes if n.parent == -1}
    assert first[" The cup is red."] == (True, pytest.approx(27.05))
    assert first[" The cup is blue."] == (True, pytest.approx(9.03))
    assert first[" The cup is big."] == (False, pytest.approx(18.02))
    # level 2, sums: red+red 27.05 + 22.58 = 49.63, red+warm 27.05 + 13.52 = 40.57,
    # blue+blue 9.03 + 4.59 = 13.62, blue+cold 9.03 + 36.01 = 45.04
    best, worst = found.candidates
    assert best.text == "The cup is red. So it is red."
    assert best.sentence_rewards == pytest.approx((27.05, 22.58))
    assert best.sentence_relevances == pytest.approx((30.0, 25.0))
    assert best.reward == pytest.approx(49.63)
    assert worst.text == "The cup is blue. So it is blue."
    assert worst.reward == pytest.approx(13.62)


def test_the_search_keeps_top_and_bottom_by_rank() -> None:
    found = searched("rank")
    # level 1, relevance ranks red 1, big 0.5, blue 0; likelihood ranks red 1, blue 0.5, big 0:
    # red 1.0, blue 0.05, big 0.45. Level 2, siblings of red: red 1 and 1, warm 0 and 0;
    # of blue: cold has the relevance (0.9), blue the likelihood (0.1)
    rewards = {c.text: c.sentence_rewards for c in found.candidates}
    assert rewards["The cup is red. So it is red."] == pytest.approx((1.0, 1.0))
    assert rewards["The cup is blue. So it is blue."] == pytest.approx((0.05, 0.1))


def test_without_relevance_the_likeliest_wins() -> None:
    # weight 0: red 0.5 and big 0.2 are the ends of level 1; then 0.5 + 0.8 is the best sum and
    # 0.2 + 0.2 the worst
    best, worst = searched("raw", weight=0.0).candidates
    assert best.text == "The cup is red. So it is red."
    assert worst.text == "The cup is big. So it is warm."


def test_best_and_worst_become_the_pair() -> None:
    found = searched("raw").candidates
    pair = decide(SAMPLE, found)
    assert isinstance(pair, PreferencePair)
    assert (pair.chosen, pair.rejected) == (
        "The cup is red. So it is red.",
        "The cup is blue. So it is blue.",
    )
    assert pair.margin == pytest.approx(49.63 - 13.62)


def test_no_pair_without_two_rewards() -> None:
    def one(index: int, reward: float) -> Candidate:
        return Candidate("s", index, f"t{index}", ("t",), (-1.0,), (1,), True, (reward,), (0.0,))

    assert decide(SAMPLE, [one(0, 1.0)]) == Drop("s", "pairs", "one-candidate")
    assert decide(SAMPLE, [one(0, 1.0), one(1, 1.0)]) == Drop("s", "pairs", "no-gap")


# --- filters --------------------------------------------------------------------------------


def test_filters_drop_paths_while_the_search_goes_on_and_count_them() -> None:
    found = searched("raw", max_characters=30)
    # "The cup is red. So it is red." has 16 + 14 = 30 characters with its spaces, the others of
    # the second level have 31 or more
    assert [c.text for c in found.candidates] == ["The cup is red. So it is red."]
    assert {(d.reason, d.detail.strip()) for d in found.drops} == {
        ("long", "So it is warm."),
        ("long", "So it is blue."),
        ("long", "So it is cold."),
    }


@pytest.mark.parametrize(
    ("before", "sentence", "reason"),
    [
        ([], " No.", "short"),
        ([], " Yes.", None),
        ([], " ... !!! ...", "degenerate"),
        ([], " it it it is red.", None),
        ([], " it it it it is red.", "degenerate"),
        ([], " so a b a b a b a c.", None),
        ([], " so a b a b a b a b.", "degenerate"),
        ([" The cup is red."], " The  cup is RED!", "degenerate"),
        ([" The cup is red."], " The cup is big.", None),
        (["x" * 1020], " abcd", "long"),
        (["x" * 1019], " abcd", None),
    ],
)
def test_what_a_filter_drops(before: list[str], sentence: str, reason: str | None) -> None:
    filters = Filters(min_characters=4, max_characters=1024, degenerate=True)
    assert filters.fault(before, sentence) == reason


def test_filters_are_off_by_default() -> None:
    assert Filters().fault(["."], "...") is None


def test_of_several_images_the_one_that_a_sentence_fits_best_counts() -> None:
    """A sentence about the second image is not held against the first."""

    class TwoImages:
        def of(self, image: str, sentences: Sequence[str]) -> list[float]:
            return [30.0 if image in s else 10.0 for s in sentences]

    clip: Any = TwoImages()
    assert of_images(clip, ["a", "b"], ["a is red", "b is red", "so?"]) == [30.0, 30.0, 10.0]
