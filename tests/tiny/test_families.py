"""The search with models of several families: each against its own plain forward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from selfcal.policy import ModelError
from selfcal.search import Limits, Sampling, SearchLimits
from tiny.families import FAMILIES, SAMPLES, TEXTS, FakePolicy, gemma3, internvl, recurrent
from tiny.plain import Plain, same, searched

LIMITS = SearchLimits(
    candidates=3, branch=2, keep="stochastic", max_sentences=3, sentence_tokens=6,
    sampling=Sampling(),
)  # fmt: skip
GREEDY = replace(LIMITS, candidates=1, branch=1, sampling=Sampling(temperature=0))


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request: pytest.FixtureRequest) -> Plain:
    return Plain(FAMILIES[request.param]())


@pytest.fixture(scope="module")
def policy(plain: Plain) -> FakePolicy:
    made: FakePolicy = plain.policy
    return made


@pytest.mark.parametrize("rows", [2, 64])
def test_the_tree_is_that_of_a_plain_search(policy: FakePolicy, plain: Plain, rows: int) -> None:
    """With 64 rows all prompts are read in one batch, padded; with 2 rows each by itself."""
    done = searched(policy, SAMPLES, LIMITS, may=Limits(rows))
    assert same(done.trees, [plain.tree(s, LIMITS) for s in SAMPLES])
    work = done.engine.counts
    assert (work.prompt_slots > work.prompt_tokens) == (rows == 64)


def test_greedy_says_the_likeliest_tokens(policy: FakePolicy, plain: Plain) -> None:
    done = searched(policy, SAMPLES, GREEDY)
    said_at_most = 0
    for sample, tree in zip(SAMPLES, done.trees, strict=True):
        ids: tuple[int, ...] = ()
        for said in tree.said:
            for token in said.ids:
                assert token == int(plain.logits(sample, ids).argmax())
                ids = (*ids, token)
        said_at_most = max(said_at_most, len(ids))
    assert said_at_most > 6


def test_a_repetition_penalty_sees_the_prompt_without_its_padding() -> None:
    plain = Plain(internvl())
    limits = replace(LIMITS, sampling=Sampling(repetition_penalty=1.7, top_p=0.9))
    done = searched(plain.policy, SAMPLES, limits, may=Limits(64))
    assert same(done.trees, [plain.tree(s, limits) for s in SAMPLES])


def test_a_model_with_recurrent_layers_is_refused() -> None:
    with pytest.raises(ModelError, match=r"layer 0 keeps its state in .* without recurrent layers"):
        searched(recurrent(), SAMPLES, LIMITS)


# --- that the models would show a mistake ---------------------------------------------------


def test_every_token_and_the_image_show_in_what_comes_after(plain: Plain) -> None:
    """Else a wrong mask or a wrong image would pass the tests above."""
    sample = SAMPLES[0]
    batch = plain.batch(sample, (20, 31, 12))
    first = len(TEXTS[sample.id][0]) - 1  # a text token

    def logits(**changed: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return plain.policy.model(**batch | changed, use_cache=False).logits[0, -1]

    token, hidden = batch["input_ids"].clone(), batch["attention_mask"].clone()
    token[0, first] = 33
    hidden[0, first] = 0
    for changed in (
        logits(input_ids=token),
        logits(attention_mask=hidden),
        logits(pixel_values=-batch["pixel_values"]),
    ):
        assert (changed - logits()).abs().max() > 1e-2


def test_the_window_shows() -> None:
    """The prompt is longer than the window, and all of it would give other logits."""
    narrow, wide = Plain(gemma3()), Plain(gemma3(window=1000))
    assert narrow.batch(SAMPLES[0])["input_ids"].shape[1] > 8
    difference = narrow.logits(SAMPLES[0], (20, 31)) - wide.logits(SAMPLES[0], (20, 31))
    assert difference.abs().max() > 1e-2
