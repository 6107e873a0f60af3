"""Drawing tokens, against transformers' own processors of logits and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfcal.search.sampling import Sampling, draw
from tiny.plain import distribution

EACH = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(temperature=2.0),
    Sampling(top_p=0.6),
    Sampling(temperature=0.7, top_p=0.9),
    Sampling(top_p=0.001),
    Sampling(top_k=1),
    Sampling(top_k=5),
    Sampling(top_k=5, top_p=0.7),
    Sampling(top_k=5000),
    Sampling(repetition_penalty=1.5),
    Sampling(repetition_penalty=0.7),
    Sampling(temperature=0.8, top_p=0.8, top_k=20, repetition_penalty=1.3),
]
HISTORY = [3, 7, 7, 11]


def grid(n: int) -> list[float]:
    """An even grid of uniform numbers draws a token of probability p very nearly n p times."""
    return [(i + 0.5) / n for i in range(n)]


def logits(vocabulary: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocabulary)
    return spread * torch.randn((2, vocabulary), generator=generator)


def counts(tokens: list[int], vocabulary: int) -> torch.Tensor:
    return torch.bincount(torch.tensor(tokens), minlength=vocabulary).double()


@pytest.mark.parametrize("sampling", EACH, ids=str)
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_tokens_are_drawn_as_transformers_would(sampling: Sampling, spread: float) -> None:
    n, vocabulary = 1000, 50
    given = logits(vocabulary, spread)
    tokens, _ = draw(given, [grid(n)] * 2, sampling, [HISTORY, [5]])
    for row, own, seen in zip(given, tokens, (HISTORY, [5]), strict=True):
        expected = n * distribution(row, seen, sampling)
        assert (counts(own, vocabulary) - expected).abs().max() <= 1.01


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.05, 1.0, 8.0])
def test_a_nucleus_of_any_size_in_a_large_vocabulary(top_p: float, spread: float) -> None:
    """Sharp and flat distributions: the nucleus has one token, or nearly all of them."""
    n, vocabulary = 4000, 3000
    sampling = Sampling(top_p=top_p)
    given = logits(vocabulary, spread)
    tokens, _ = draw(given, [grid(n)] * 2, sampling)
    for row, own in zip(given, tokens, strict=True):
        probs = distribution(row, [], sampling)
        found = counts(own, vocabulary)
        assert not (found[probs == 0]).any()
        assert (found - n * probs).abs().max() <= 1.01


def test_a_flat_row_does_not_change_a_sharp_one() -> None:
    """One row needs the whole vocabulary sorted, the other one just its first tokens."""
    sharp, flat = logits(3000, 6.0)[:1], logits(3000, 0.1)[1:]
    sampling = Sampling(top_p=0.9)
    numbers = grid(200)
    both, _ = draw(torch.cat([sharp, flat]), [numbers] * 2, sampling)
    assert both[0] == draw(sharp, [numbers], sampling)[0][0]
    assert both[1] == draw(flat, [numbers], sampling)[0][0]


def test_without_filters_tokens_stand_in_index_order() -> None:
    given = torch.tensor([[0.1, 0.6, 0.3]]).log()
    tokens, _ = draw(given, [[0.0, 0.09, 0.11, 0.69, 0.71, 0.999]], Sampling())
    assert tokens == [[0, 0, 1, 1, 2, 2]]


@pytest.mark.parametrize("sampling", [Sampling(top_p=0.999), Sampling(top_k=3)], ids=str)
def test_with_filters_tokens_stand_by_falling_probability(sampling: Sampling) -> None:
    given = torch.tensor([[0.1, 0.6, 0.3]]).log()
    tokens, _ = draw(given, [[0.0, 0.59, 0.61, 0.89, 0.91, 0.999]], sampling)
    assert tokens == [[1, 1, 2, 2, 0, 0]]


def test_temperature_zero_takes_the_most_likely_token() -> None:
    given = logits(100, 1.0)
    tokens, gained = draw(given, [grid(3)] * 2, Sampling(temperature=0))
    assert tokens == [[int(row.argmax())] * 3 for row in given]
    assert gained == [[pytest.approx(float(row.log_softmax(-1).max()))] * 3 for row in given]


def test_temperature_zero_heeds_the_repetition_penalty() -> None:
    given = torch.tensor([[2.0, 1.9, -1.0], [-0.5, -0.6, -3.0]])
    sampling = Sampling(temperature=0, repetition_penalty=2.0)
    # 2.0 becomes 1.0, which is less than 1.9; -0.5 becomes -1.0, which is less than -0.6
    assert draw(given, [[0.5]] * 2, sampling, [[0], [0]])[0] == [[1], [1]]


@pytest.mark.parametrize("sampling", EACH, ids=str)
def test_the_log_probability_is_that_of_temperature_one_without_filters(sampling: Sampling) -> None:
    given = logits(50, 2.0)
    tokens, gained = draw(given, [grid(20)] * 2, sampling, [HISTORY] * 2)
    for row, own, own_gained in zip(given, tokens, gained, strict=True):
        expected = torch.log_softmax(row.double(), dim=-1)[own]
        np.testing.assert_allclose(own_gained, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("sampling", EACH, ids=str)
def test_the_other_rows_change_nothing(sampling: Sampling) -> None:
    given = torch.cat([logits(80, 1.0), logits(80, 4.0)[:1]])
    rows = [[0.9], [0.1, 0.5, 0.7], [0.3, 0.2]]
    seen = [[1], [2, 3], [4]]
    together, _ = draw(given, rows, sampling, seen)
    for i, numbers in enumerate(rows):
        alone, _ = draw(given[i : i + 1], [numbers], sampling, [seen[i]])
        assert together[i][: len(numbers)] == alone[0]


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(top_p=0.9), Sampling(top_k=4), Sampling(temperature=0.3)],
    ids=str,
)  # fmt: skip
def test_no_token_of_probability_zero_at_the_ends(sampling: Sampling) -> None:
    given = torch.full((1, 2000), -torch.inf)
    given[0, 700:703] = torch.tensor([1.0, 2.0, 3.0])
    tokens, _ = draw(given, [[0.0, 2**-53, 1 - 2**-53, float(np.nextafter(1, 0))]], sampling)
    assert set(tokens[0]) <= {700, 701, 702}
