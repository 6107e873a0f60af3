"""Draw tokens from logits: many rows at once, several draws a row.

A draw is a uniform number in [0, 1) turned into a token by inverse transform, so that the same
number gives the same token whatever else is in the batch. Filters follow transformers' order:
repetition penalty, temperature, top-k, top-p. The log-probability of a drawn token is always the
model's own, at temperature 1 and without filters.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens that has this probability."""
    top_k: int | None = None
    """Draw from the k most likely tokens."""
    repetition_penalty: float = 1.0
    """Divides (or, where negative, multiplies) the logits of tokens that stand in prompt or
    response (CTRL, Keskar et al. 2019)."""

    @property
    def needs_history(self) -> bool:
        """Whether a draw depends on which tokens stand before it."""
        return self.repetition_penalty != 1.0


_FIRST = (8, 64, 1024)
"""Sizes of the nucleus that are tried before the whole vocabulary is sorted."""
_BELOW_ONE = 1 - 2**-24
"""A hair below the total, so that rounding never picks a token of probability 0."""


def draw(
    logits: torch.Tensor,
    uniforms: Sequence[Sequence[float]],
    sampling: Sampling,
    history: Sequence[Sequence[int]] | None = None,
) -> tuple[list[list[int]], list[list[float]]]:
    """Draw tokens.

    Args:
        logits: [rows, vocabulary], float32.
        uniforms: for each row one number in [0, 1) a draw; rows may have different numbers of them.
        sampling: how.
        history: token ids before each row, where `sampling.needs_history`.

    Returns:
        Tokens and their log-probabilities (nats), a list for each row and a draw in it; rows with
        fewer draws than the longest are filled up with their first one.
    """
    import torch

    logprobs = torch.log_softmax(logits, dim=-1)
    scores = _penalized(logits, sampling, history)
    if sampling.temperature == 0:
        tokens = scores.argmax(dim=-1, keepdim=True).expand(-1, max(map(len, uniforms)))
    else:
        plain = scores is logits and sampling.temperature == 1
        probs = (logprobs if plain else torch.log_softmax(scores / sampling.temperature, -1)).exp()
        tokens = _inverse(probs, _padded(uniforms, logits.device), sampling)
    gained = logprobs.gather(-1, tokens)
    return tokens.tolist(), gained.tolist()


def _padded(uniforms: Sequence[Sequence[float]], device: torch.device) -> torch.Tensor:
    import torch

    most = max(map(len, uniforms))
    rows = [[*u, *itertools.repeat(u[0], most - len(u))] for u in uniforms]
    return torch.tensor(rows, dtype=torch.float32, device=device)


def _penalized(
    logits: torch.Tensor, sampling: Sampling, history: Sequence[Sequence[int]] | None
) -> torch.Tensor:
    import torch

    if not sampling.needs_history or history is None:
        return logits
    scores = logits.clone()
    for row, ids in enumerate(history):
        seen = torch.tensor(sorted(set(ids)), device=logits.device)
        old = logits[row, seen]
        by = sampling.repetition_penalty
        scores[row, seen] = torch.where(old > 0, old / by, old * by)
    return scores


def _inverse(probs: torch.Tensor, uniform: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Tokens [rows, draws] from probabilities [rows, vocabulary] and uniform numbers."""
    import torch

    if sampling.top_p >= 1 and sampling.top_k is None:
        total = probs.cumsum(dim=-1)
        target = uniform.clamp(max=_BELOW_ONE) * total[:, -1:]
        return torch.searchsorted(total, target, right=True).clamp(max=probs.shape[-1] - 1)
    total, order, size = _nucleus(probs, sampling)
    target = uniform.clamp(max=_BELOW_ONE) * total.gather(-1, size - 1)
    rank = torch.searchsorted(total, target, right=True)
    return order.gather(-1, torch.minimum(rank, size - 1))


def _nucleus(
    probs: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cumulated probabilities and tokens by falling probability, and how many may be drawn [., 1].

    Sorting a whole vocabulary costs more than the model's own step; almost always a few tokens hold
    the mass.
    """
    vocabulary = probs.shape[-1]
    sizes = [sampling.top_k] if sampling.top_k else [*_FIRST, vocabulary]
    for size in sizes:
        ordered, order = probs.topk(min(size, vocabulary), dim=-1)
        if sampling.top_k:
            ordered = ordered / ordered.sum(dim=-1, keepdim=True)
        total = ordered.cumsum(dim=-1)
        if sampling.top_k or size >= vocabulary or bool((total[:, -1] >= sampling.top_p).all()):
            break
    within = (total - ordered < sampling.top_p).sum(dim=-1, keepdim=True)
    return total, order, within.clamp(min=1)
