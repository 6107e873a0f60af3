"""Marks of rationales: what is asked, what is read, and how the estimates compare to the truth."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import isnan, sqrt
from pathlib import Path
from typing import Any

import pytest

from selfcal.evaluate.marking import (
    FLAWS,
    ChatMarker,
    Mark,
    MarkerError,
    estimates,
    kappa,
    mark_all,
    mark_twice,
    measure_marks,
    read_marks,
)
from selfcal.evaluate.metrics import grade, measure
from selfcal.miniworld.corrupt import practice_rap
from selfcal.miniworld.questions import read_question
from selfcal.miniworld.verifier import verify
from selfcal.miniworld.world import read_facts
from selfcal.testing import ScriptedMarker, tiny_samples
from selfcal.types import Sample

SAMPLE = Sample("s1", "a.png", "What is it?", "cat", facts="a cat on a mat")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("counterfactual: no\ninsufficient: yes\nunreasonable: no", (False, True, False)),
        ("unreasonable: no\ninsufficient: yes\ncounterfactual: no", (False, True, False)),
        ("- **Counterfactual**: Yes.\n- **Insufficient**: No.\n- **Unreasonable**: No.",
         (True, False, False)),
        ("counterfactual: no", (False, None, None)),
        ("counterfactual: no\ncounterfactual: yes\ninsufficient: no\nunreasonable: no",
         (None, False, False)),
        ("counterfactual: yes or no\ninsufficient: maybe\nunreasonable: no", (None, None, False)),
        ("It is neither counterfactual: no flaw at all.", (None, None, None)),
        ("", (None, None, None)),
    ],
)  # fmt: skip
def test_replies_are_read_strictly(reply: str, said: tuple[bool | None, ...]) -> None:
    assert read_marks(reply) == said


class Model:
    """Says what it is told to, and keeps what it was asked."""

    def __init__(self, *replies: str) -> None:
        self.replies, self.asked = list(replies), list[Any]()

    def ask(self, messages: Sequence[Any]) -> str:
        self.asked += messages
        return self.replies.pop(0)


ALL_NO = "\n".join(f"{flaw}: no" for flaw in FLAWS)


def test_a_blind_marker_reads_facts_and_the_second_time_in_reverse() -> None:
    model = Model(ALL_NO, ALL_NO)
    mark = mark_twice(ChatMarker(model, sees=False), SAMPLE, "It purrs.\nAnswer: cat")
    assert mark == Mark("s1", (0, 0, 0), (0, 0, 0)) and mark.sound is True
    first, second = (message["content"] for message in model.asked)
    for text in (first, second):
        assert "a cat on a mat" in text and "contradicts the facts" in text
    places = ("Question:\n[", "Facts:\n[", "Response:\n[")
    assert sorted(places, key=first.index) == list(places)
    assert sorted(places, key=second.index) == list(reversed(places))
    for text, order in ((first, FLAWS), (second, FLAWS[::-1])):
        assert sorted(FLAWS, key=lambda f: text.index(f"- {f}:")) == list(order)
        assert text.endswith("\n".join(f"{f}: yes or no" for f in order))


def test_a_seeing_marker_is_shown_the_image(tmp_path: Path) -> None:
    (sample,) = tiny_samples(tmp_path, 1)
    model = Model(ALL_NO)
    ChatMarker(model).mark(sample, "It is so.")
    picture, text = model.asked[0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert "You see the image" in text["text"] and sample.facts not in text["text"]


def test_a_failing_marker_names_the_sample() -> None:
    missing = Sample("s9", "/nowhere.png", "What?", "x")
    with pytest.raises(MarkerError, match=r"marker, sample 's9': .*nowhere\.png"):
        ChatMarker(Model(ALL_NO)).mark(missing, "It is so.")


def test_what_differs_or_cannot_be_read_is_unscored() -> None:
    one = Mark("a", (1, 0, -1), (1, 1, 0))
    assert [one.flaw(f) for f in FLAWS] == [True, None, None]
    assert one.sound is None and one.verdicts is None
    # another flaw each time is unsound both times
    assert Mark("b", (1, 0, 0), (0, 1, 0)).sound is False
    assert Mark("c", (0, 0, 0), (0, 1, 0)).sound is None


def test_kappa_by_hand() -> None:
    # 20 both yes, 15 both no, 5 + 10 differ: agreement 0.7, by chance 0.6 * 0.5 + 0.4 * 0.5 = 0.5
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10
    value, error, n = kappa([*pairs, *[(False, False)] * 15])
    assert (value, n) == (pytest.approx(0.4), 50)
    # Fleiss, Cohen and Everitt, Eq. 13, term by term
    agree = 0.4 * (1 - 1.1 * 0.6) ** 2 + 0.3 * (1 - 0.9 * 0.6) ** 2
    # first says yes 0.5, second 0.6; (yes, no): 0.6 + 0.5, (no, yes): 0.4 + 0.5
    differ = 0.6**2 * (0.1 * (0.6 + 0.5) ** 2 + 0.2 * (0.4 + 0.5) ** 2)
    variance = agree + differ - (0.4 - 0.5 * 0.6) ** 2
    assert error == pytest.approx(sqrt(variance / 50) / 0.5)
    assert isnan(kappa([(True, True)] * 3)[0]) and isnan(kappa([])[0])


def test_estimates_by_hand() -> None:
    sound, flawed = Mark("a", (0, 0, 0), (0, 0, 0)), Mark("b", (1, 0, 0), (1, 0, 0))
    torn, mute = Mark("c", (0, 0, 0), (0, 0, 1)), Mark("d", (-1, 0, 0), (0, 0, 0))
    rows = [(True, sound), (True, flawed), (False, sound), (True, torn), (False, mute)]
    found = {name: (value, n) for name, value, _, n in estimates(rows)}
    assert found["estimated/rationale_soundness"] == (pytest.approx(2 / 3), 3)
    assert found["estimated/alignment"] == (1 / 2, 2)
    assert found["estimated/reliable_accuracy"] == (pytest.approx(1 / 3), 3)
    assert found["estimated/lucky_answers"] == (pytest.approx(1 / 3), 3)
    assert found["estimated/flaw/counterfactual"] == (1 / 4, 4)  # the mute one is left out
    assert found["estimated/flaw/unreasonable"] == (0, 4)  # the torn one is
    assert found["marker_unscored"] == (2 / 5, 5)
    # sound-sound twice, flawed-flawed, sound-flawed: 3/4; by chance 3/4 * 2/4 + 1/4 * 2/4 = 1/2
    assert found["marker_agreement"] == (pytest.approx(1 / 2), 4)


@pytest.fixture(scope="module")
def practised(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Sample, str]]:
    """Responses of all sorts, to questions whose truth is known."""
    found = []
    for sample in tiny_samples(Path(tmp_path_factory.mktemp("marked")), 600, "test"):
        rng = random.Random(sample.id)
        text = practice_rap(read_question(sample.question), read_facts(sample.facts), rng)
        found.append((sample, text))
    return found


def truth(sample: Sample, text: str) -> tuple[bool, bool, bool]:
    found = verify(sample, text)
    return found.counterfactual, found.insufficient, found.unreasonable


def test_a_marker_that_never_errs_estimates_what_the_verifier_finds(
    practised: list[tuple[Sample, str]],
) -> None:
    responses = [grade(sample, text) for sample, text in practised]
    marks = {m.sample_id: m for m in mark_all(ScriptedMarker(truth), practised, workers=4)}
    verified = {(r.category, r.metric): r for r in measure(responses, "seed", "test", 0)}
    results = {
        (r.category, r.metric): r for r in measure_marks(responses, marks, "seed", "test", 0)
    }
    compared = 0
    for (category, name), result in results.items():
        if name.startswith("estimated/"):
            known = verified[category, name.removeprefix("estimated/")]
            assert (result.value, result.stderr, result.n) == (known.value, known.stderr, known.n)
            compared += 1
    assert compared == 7 * 4  # of all, perception, chart and math
    assert results["all", "marker_agreement"].value == 1
    assert results["all", "marker_unscored"].value == 0


def test_a_marker_of_known_error_rate_is_off_by_what_that_rate_makes(
    practised: list[tuple[Sample, str]],
) -> None:
    rate = 0.1

    def errs(sample: Sample, response: str, reverse: bool, flaw: str) -> bool:
        return random.Random(f"{sample.id} {reverse} {flaw}").random() < rate

    marks = list(mark_all(ScriptedMarker(truth, errs), practised))
    for i, flaw in enumerate(FLAWS):
        true = [truth(*pair)[i] for pair in practised]
        said = [mark.flaw(flaw) for mark in marks]
        scored = [(t, s) for t, s in zip(true, said, strict=True) if s is not None]
        n = len(practised)
        # both presentations err alone: they differ in 2 r (1 - r), 0.18, of the cases
        differs = 2 * rate * (1 - rate)
        assert 1 - len(scored) / n == pytest.approx(differs, abs=4 * sqrt(differs / n))
        # and of those that do not, both are wrong in r^2 / (r^2 + (1 - r)^2), 0.0122
        wrong = rate**2 / (rate**2 + (1 - rate) ** 2)
        share = sum(t != s for t, s in scored) / len(scored)
        assert share == pytest.approx(wrong, abs=4 * sqrt(wrong / len(scored)))
    found = {name: (value, error) for name, value, error, _ in estimates((True, m) for m in marks)}
    # with k flaws, one presentation says sound with probability q = r^k (1 - r)^(3 - k): all true
    # flaws missed, none made up; scored is what both say: q^2 sound, (1 - q)^2 unsound
    sound = scored_share = 0.0
    for pair in practised:
        k = sum(truth(*pair))
        q = rate**k * (1 - rate) ** (3 - k)
        sound += q**2
        scored_share += q**2 + (1 - q) ** 2
    value, error = found["estimated/rationale_soundness"]
    assert value == pytest.approx(sound / scored_share, abs=4 * error)
    true_share = sum(not any(truth(*pair)) for pair in practised) / len(practised)
    assert value < true_share - 4 * error  # an erring marker makes rationales worse than they are
    assert 0.3 < found["marker_agreement"][0] < 0.8  # which its agreement with itself betrays
