"""Decode one sentence for many rows at once, on top of a shared key/value cache.

`Branches` reads the prompts of a batch once. A `Row` is a place in its cache: a response up to some
sentence. `sample` takes rows (any of them, any number of times), gathers their cache, decodes every
row to the end of its next sentence and returns the sentences with the rows they end in.

The end of a sentence is seen in the text, one token too late: the token that begins the next
sentence is drawn but never fed to the model, and the row keeps the logits it was drawn from.
Rows of different length live in one cache; slots that hold nothing for a row are masked out and
its positions count only its own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from selfcal.policy import Policy
from selfcal.rationale import sentence_end
from selfcal.types import Sample

if TYPE_CHECKING:
    import torch

_BOUNDARY = frozenset(".!?。！？\n:")  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Row:
    """A place in the cache."""

    index: int
    last: int | None = None
    """The token before it; None where the response begins."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A decoded sentence and the row in which it ends."""

    row: Row
    text: str
    logprob: float
    """Sum of its tokens' log-probabilities (nats, temperature 1), the end of response included."""
    ids: tuple[int, ...]
    """Its tokens, the end of response included."""
    ended: bool
    """Whether the model ended its response here."""

    @property
    def tokens(self) -> int:
        """Number of its tokens."""
        return len(self.ids)


class Branches:
    """All paths of a batch of samples, on one cache."""

    def __init__(
        self,
        policy: Policy,
        samples: Sequence[Sample],
        temperature: float,
        top_p: float,
        sentence_tokens: int,
    ) -> None:
        """Read the prompts: one forward pass over all of them, each image encoded once."""
        import torch

        self._policy = policy
        self._temperature = temperature
        self._top_p = top_p
        self._limit = sentence_tokens
        self._stops = torch.tensor(sorted(policy.stop_ids), device=policy.device)
        self._pieces: dict[int, bool] = {}
        batch = policy.encode(samples)
        self._mask = batch["attention_mask"]
        self._next = self._mask.sum(dim=1)
        own = _own_positions(policy.model)
        if own is None:
            # the padding on the left takes no position, neither here nor in what follows
            batch["position_ids"] = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        with torch.inference_mode():
            out = policy.model(**batch, use_cache=True, logits_to_keep=1)
        if own is not None:
            self._next = self._next + own.rope_deltas[:, 0].to(self._next)
        self._cache = out.past_key_values
        self._logits = out.logits[:, -1].float()

    def roots(self) -> list[Row]:
        """The rows where the responses begin, one a sample."""
        return [Row(i) for i in range(self._mask.shape[0])]

    def sample(self, rows: Sequence[Row], uniforms: Sequence[np.ndarray]) -> list[Sentence]:
        """Decode the next sentence of each row.

        Args:
            rows: where to go on; a row may occur more than once.
            uniforms: for each row one uniform number in [0, 1) a token, [sentence_tokens].
        """
        import torch

        with torch.inference_mode():
            self._gather([r.index for r in rows])
            draws = torch.tensor(np.stack(uniforms), dtype=torch.float32, device=self._mask.device)
            return self._decode(draws, [r.last for r in rows])

    def _gather(self, index: list[int]) -> None:
        import torch

        at = torch.tensor(index, device=self._mask.device)
        self._cache.batch_select_indices(at)
        self._mask = self._mask[at]
        self._next = self._next[at]
        self._logits = self._logits[at]

    def _decode(self, draws: torch.Tensor, before: list[int | None]) -> list[Sentence]:
        import torch

        rows = len(draws)
        device = self._mask.device
        tokens: list[list[int]] = [[] for _ in range(rows)]
        ended = [False] * rows
        active = torch.ones(rows, dtype=torch.bool, device=device)
        logprobs = torch.zeros(rows, device=device)
        for step in range(self._limit):
            chosen, gained = self._draw(draws[:, step])
            stop = torch.isin(chosen, self._stops)
            closes = torch.tensor(
                [
                    on and not is_stop and self._closes(last, own, token)
                    for on, is_stop, last, own, token in zip(
                        active.tolist(), stop.tolist(), before, tokens, chosen.tolist(), strict=True
                    )
                ],
                device=device,
            )
            takes = active & ~closes  # the token belongs to this sentence (a stop token does too)
            logprobs += torch.where(takes, gained, torch.zeros_like(gained))
            for i in torch.nonzero(takes)[:, 0].tolist():
                tokens[i].append(int(chosen[i]))
                ended[i] = bool(stop[i])
            active = takes & ~stop
            if not active.any():
                break
            self._forward(chosen, active)
        return [
            Sentence(
                Row(i, own[-1]),
                self._text(before[i], own[:-1] if ended[i] else own),
                float(logprobs[i]),
                tuple(own),
                ended[i],
            )
            for i, own in enumerate(tokens)
        ]

    def _draw(self, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One token a row by inverse transform, and its log-probability at temperature 1."""
        import torch

        probs = torch.softmax(self._logits / self._temperature, dim=-1)
        if self._top_p < 1:
            ordered, order = probs.sort(dim=-1, descending=True)
            ordered[ordered.cumsum(dim=-1) - ordered >= self._top_p] = 0
            probs = torch.zeros_like(probs).scatter(-1, order, ordered)
        total = probs.cumsum(dim=-1)
        # a hair below the total, so that rounding never picks a token of probability 0
        target = uniform[:, None].clamp(max=1 - 1e-6) * total[:, -1:]
        chosen = torch.searchsorted(total, target, right=True)[:, 0].clamp(max=probs.shape[-1] - 1)
        gained = torch.log_softmax(self._logits, dim=-1).gather(-1, chosen[:, None])[:, 0]
        return chosen, gained

    def _forward(self, chosen: torch.Tensor, active: torch.Tensor) -> None:
        import torch

        self._mask = torch.cat([self._mask, active[:, None].to(self._mask.dtype)], dim=1)
        positions = self._next[:, None]
        self._next = self._next + active
        fed = torch.where(active, chosen, torch.full_like(chosen, self._policy.pad_id))
        out = self._policy.model(
            input_ids=fed[:, None],
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = out.past_key_values
        # a row whose sentence is over keeps the logits from which its next sentence starts
        self._logits = torch.where(active[:, None], out.logits[:, -1].float(), self._logits)

    def _closes(self, last: int | None, own: list[int], token: int) -> bool:
        """Whether this token begins the next sentence."""
        if not own or not any(map(self._marks, (*own, token))):
            return False
        return sentence_end(self._text(last, [*own, token])) is not None

    def _marks(self, token: int) -> bool:
        """Whether a token has a character that can end a sentence; decoded once a token."""
        if token not in self._pieces:
            self._pieces[token] = not _BOUNDARY.isdisjoint(self._plain([token]))
        return self._pieces[token]

    def _text(self, last: int | None, tokens: list[int]) -> str:
        """What tokens say after the token `last`.

        Decoded alone they would lose a space: SentencePiece drops it at the start of a text.
        """
        if last is None:
            return self._plain(tokens)
        return self._plain([last, *tokens])[len(self._plain([last])) :]

    def _plain(self, tokens: list[int]) -> str:
        tokenizer: Any = self._policy.tokenizer
        return str(tokenizer.decode(tokens, skip_special_tokens=True))


def _own_positions(model: Any) -> Any:
    """The part of a model that counts positions itself, as Qwen-VL does, or None.

    There an image takes fewer positions than tokens; `rope_deltas` is each prompt's difference.
    """
    inner = getattr(model, "model", None)
    return inner if hasattr(inner, "get_rope_index") else None
