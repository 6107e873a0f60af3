"""The R-Scorer against plain forward passes, one prompt at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfcal.judge.scorer import Comparison, RScorer, all_comparisons
from selfcal.testing import ScriptedJudge
from selfcal.types import Candidate, Sample

PROMPT = "Question: {{ question }}\nFacts: {{ facts }}\n1 {{ first }}\n2 {{ second }}\nBetter:"
TEXTS = [
    "The red bar is 7.\nAnswer: 7",
    "Two.",
    "There is a circle at the top. It is green. So it is 3 minus 1.\nAnswer: 2",
]


@pytest.fixture(scope="module")
def comparisons(samples: list[Sample]) -> list[Comparison]:
    """Prompts of different length, in no order of length."""
    return [
        c
        for sample in samples[:4]
        for c in all_comparisons(
            sample, [Candidate(sample.id, i, t, (), (), (), True) for i, t in enumerate(TEXTS)]
        )
    ]


@pytest.fixture(scope="module")
def plain(judge_folder: str, comparisons: list[Comparison]) -> list[tuple[list[float], float]]:
    """The shares of the three verdict words, and their mass, by one forward pass each."""
    tokenizer = AutoTokenizer.from_pretrained(judge_folder)
    model = AutoModelForCausalLM.from_pretrained(judge_folder).eval()
    words = [tokenizer.convert_tokens_to_ids(w) for w in ("first", "second", "neutral")]
    assert tokenizer.unk_token_id not in words
    found = []
    for c in comparisons:
        text = (
            f"<|user|>Question: {c.sample.question}\nFacts: {c.sample.facts}\n"
            f"1 {c.first.text}\n2 {c.second.text}\nBetter:<|end|><|assistant|>"
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            probs = torch.softmax(model(input_ids=ids).logits[0, -1], dim=-1)
        mass = float(probs[words].sum())
        found.append(([float(p) / mass for p in probs[words]], mass))
    return found


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_probabilities_are_those_of_plain_forward_passes(
    judge_folder: str,
    comparisons: list[Comparison],
    plain: list[tuple[list[float], float]],
    batch_size: int,
) -> None:
    judge = RScorer(judge_folder, PROMPT, batch_size, min_mass=0, device="cpu")
    made = judge.judge(comparisons)
    assert len({len(c.first.text + c.second.text + c.sample.facts) for c in comparisons}) > 5
    for c, judgment, (shares, _) in zip(comparisons, made, plain, strict=True):
        # the order of the comparisons, though the work is done by length
        where = (judgment.sample_id, judgment.first, judgment.second)
        assert where == (c.sample.id, c.first.index, c.second.index)
        said = (judgment.p_first, judgment.p_second, judgment.p_neutral)
        assert said == pytest.approx(shares, abs=1e-5)
        assert judgment.verdict == ("first", "second", "neutral")[shares.index(max(shares))]


def test_too_little_mass_is_unscored(
    judge_folder: str, comparisons: list[Comparison], plain: list[tuple[list[float], float]]
) -> None:
    masses = sorted(mass for _, mass in plain)
    limit = (masses[len(masses) // 2 - 1] + masses[len(masses) // 2]) / 2
    made = RScorer(judge_folder, PROMPT, min_mass=limit, device="cpu").judge(comparisons)
    for judgment, (_, mass) in zip(made, plain, strict=True):
        assert (judgment.verdict is None) == (mass < limit)
        if judgment.verdict is None:
            assert judgment.p_first == judgment.p_second == judgment.p_neutral == 0
    assert 0 < sum(g.verdict is None for g in made) < len(made)


def test_a_prompt_longer_than_the_context_is_unscored(
    judge_folder: str, comparisons: list[Comparison]
) -> None:
    judge = RScorer(judge_folder, PROMPT, min_mass=0, device="cpu")
    c = comparisons[1]
    long = replace(c, first=replace(c.first, text="The bar is 7. " * 200))
    made = judge.judge([comparisons[0], long, comparisons[2]])
    assert [g.verdict is None for g in made] == [False, True, False]
    assert (made[1].first, made[1].second) == (c.first.index, c.second.index)
    assert judge.judge([long])[0].verdict is None
    assert judge.judge([]) == []


def test_the_built_in_prompt_is_readable_too(
    judge_folder: str, comparisons: list[Comparison]
) -> None:
    made = RScorer(judge_folder, min_mass=0, device="cpu").judge(comparisons[:3])
    assert all(g.verdict is not None for g in made)


def test_the_scripted_judge_follows_its_script(comparisons: list[Comparison]) -> None:
    says = {0: "first", 1: None, 2: (0.2, 0.5, 0.3)}
    judge = ScriptedJudge(lambda c: says[c.first.index], confidence=0.8)
    made = judge.judge(comparisons[:6])
    assert judge.asked == comparisons[:6]
    assert [g.verdict for g in made] == ["first", "first", None, None, "second", "second"]
    assert (made[0].p_first, made[0].p_second) == pytest.approx((0.8, 0.1))
    assert (made[5].p_first, made[5].p_second, made[5].p_neutral) == (0.2, 0.5, 0.3)
