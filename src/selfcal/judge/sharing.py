"""Forward passes over many prompts that begin alike: what they share is computed once.

Prompts come in as a tree of token pieces: instructions, then a sample's question and facts, then
its first response, then each opponent. A piece is one row of a batch; its keys and values are
gathered for all pieces that follow it. Out come the logits after each prompt's last token. Batches
hold pieces of like length, so that little is padding.

A piece that begins with images comes with the model's inputs for them, and is a pass of its own;
what follows it needs no image again.

A batch of pieces is laid out as [what came before, with its padding][padding][piece]: the mask
knows what is padding, positions count tokens alone, and the last column is every row's last token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache

from selfcal.clock import spent
from selfcal.kv import GivenLayer, own_positions, whole_cache
from selfcal.memory import attempt, note
from selfcal.policy import ModelError

if TYPE_CHECKING:
    import torch

_PADDING = 0.15
"""Share of a batch's tokens that may be padding before it is closed."""
_FEW = 8
"""Rows that a batch may have whatever the padding: smaller ones are not worth a pass."""


@dataclass(slots=True)
class Piece:
    """Some tokens of prompts, and the pieces that follow them."""

    tokens: list[int]
    after: list[Piece] = field(default_factory=list)
    prompt: int = -1
    """Number of the prompt that ends here, or -1."""
    row: int = 0
    """In the batch of the piece before it."""
    seen: Mapping[str, torch.Tensor] | None = None
    """The model's inputs where the piece begins with images, one row."""


@dataclass(slots=True)
class Counts:
    """What was computed, in tokens."""

    needed: int = 0
    forwarded: int = 0
    """With padding."""
    prompts: int = 0
    back_offs: int = 0
    """How often memory ran out."""
    images: int = 0
    """How often a prompt's images were encoded."""


@dataclass(slots=True)
class _States:
    """Keys and values of a batch's rows up to the end of their pieces."""

    keys: list[torch.Tensor]
    """A layer each, [rows, heads, columns, width]."""
    values: list[torch.Tensor]
    mask: torch.Tensor
    """[rows, columns]"""
    lengths: torch.Tensor
    """Positions that each row has taken, [rows]: its tokens, if an image takes one for each."""


class _Layer(GivenLayer):
    """The states of what came before, gathered when the layer asks for them, and its own."""

    def __init__(self, before: _States, rows: torch.Tensor, layer: int, keep: bool) -> None:
        super().__init__()
        self._before, self._rows, self._layer, self._keep = before, rows, layer, keep

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Join what came before with the piece."""
        import torch

        keys, values = self._before.keys[self._layer], self._before.values[self._layer]
        both = (
            torch.cat([keys.index_select(0, self._rows), key_states], dim=2),
            torch.cat([values.index_select(0, self._rows), value_states], dim=2),
        )
        if self._keep:
            self.keys, self.values = both
        return both

    def get_seq_length(self) -> int:
        """Columns of what came before."""
        return int(self._before.mask.shape[1])


class Forward:
    """Passes of one causal language model, or of one that sees."""

    def __init__(self, model: Any, pad_id: int, device: str, rows: int) -> None:
        """At most `rows` rows a pass."""
        self.counts = Counts()
        self.rows = rows
        self._model, self._pad, self._device = model, pad_id, device

    def logits(self, roots: Sequence[Piece]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Numbers of prompts, and the logits after their last tokens, [prompts, vocabulary].

        Raises:
            ModelError: memory is too small for a single comparison.
        """
        yield from self._descend(roots, None)

    def _descend(
        self, pieces: Sequence[Piece], before: _States | None
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        left = sorted(pieces, key=lambda p: len(p.tokens))
        while left:
            seen = left[0].seen
            batch = _batch(left, 1 if seen else self.rows)
            made, said = attempt(
                lambda batch=batch, seen=seen: (  # type: ignore[misc]
                    self._look(batch[0], seen) if seen else self._pass(batch, before)
                )
            )
            if made is None:
                self.back_off(len(batch), said)
                continue
            states, logits = made
            left = left[len(batch) :]
            ends = [row for row, piece in enumerate(batch) if piece.prompt >= 0]
            if ends:
                self.counts.prompts += len(ends)
                yield [batch[row].prompt for row in ends], logits[ends]
            for row, first in enumerate(batch):
                for piece in first.after:
                    piece.row = row
            yield from self._descend([p for first in batch for p in first.after], states)

    def back_off(self, rows: int, said: str) -> None:
        """Go on with half as many rows a pass.

        Raises:
            ModelError: there was just one.
        """
        if rows == 1:
            raise ModelError(
                f"the judge runs out of memory ({said}): give a smaller judge.batch_size or "
                "judge.model, or more memory"
            )
        self.counts.back_offs += 1
        self.rows = min(self.rows, rows // 2)
        note("the judge ran out of memory: it goes on with smaller batches (judge.batch_size)")

    def _pass(
        self, batch: Sequence[Piece], before: _States | None
    ) -> tuple[_States | None, torch.Tensor]:
        import torch

        keep = any(piece.after for piece in batch)
        width = max(len(piece.tokens) for piece in batch)
        pads = [width - len(piece.tokens) for piece in batch]
        ids = torch.tensor(
            [[self._pad] * p + piece.tokens for p, piece in zip(pads, batch, strict=True)],
            device=self._device,
        )
        starts = torch.tensor(pads, device=self._device)
        columns = torch.arange(width, device=self._device)
        mask = columns >= starts[:, None]
        positions = (columns - starts[:, None]).clamp(min=0)
        lengths = width - starts
        cache: Cache | None = whole_cache() if keep else None
        if before is not None:
            rows = torch.tensor([piece.row for piece in batch], device=self._device)
            layers = range(len(before.keys))
            cache = Cache(layers=[_Layer(before, rows, i, keep) for i in layers])
            mask = torch.cat([before.mask[rows], mask], dim=1)
            positions = positions + before.lengths[rows, None]
            lengths = lengths + before.lengths[rows]
        with spent("model"), torch.inference_mode():
            out = self._model(
                input_ids=ids, attention_mask=mask.long(), position_ids=positions,
                past_key_values=cache, use_cache=cache is not None, logits_to_keep=1,
            )  # fmt: skip
        self.counts.needed += sum(len(piece.tokens) for piece in batch)
        self.counts.forwarded += ids.numel()
        kept = _kept(cache, mask, lengths) if keep and cache is not None else None
        return kept, out.logits[:, -1].float()

    def _look(
        self, piece: Piece, seen: Mapping[str, torch.Tensor]
    ) -> tuple[_States | None, torch.Tensor]:
        """A piece that begins with images."""
        import torch

        cache = whole_cache() if piece.after else None
        with spent("model"), torch.inference_mode():
            out = self._model(
                **seen, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1
            )
        mask = seen["attention_mask"].bool()
        lengths = mask.sum(dim=1)
        if own := own_positions(self._model):
            lengths = lengths + own.rope_deltas[:, 0].to(lengths)
        self.counts.images += 1
        self.counts.needed += len(piece.tokens)
        self.counts.forwarded += mask.numel()
        kept = _kept(cache, mask, lengths) if cache is not None else None
        return kept, out.logits[:, -1].float()


def _kept(cache: Cache, mask: torch.Tensor, lengths: torch.Tensor) -> _States:
    keys, values = ([getattr(la, name) for la in cache.layers] for name in ("keys", "values"))
    return _States(keys, values, mask, lengths)


def _batch(pieces: Sequence[Piece], rows: int) -> list[Piece]:
    """The first of sorted pieces, as many as are of like length, and at most `rows`."""
    tokens = 0
    for n, piece in enumerate(pieces):
        tokens += len(piece.tokens)
        waste = len(piece.tokens) * (n + 1) > tokens * (1 + _PADDING) and n >= _FEW
        if n and (waste or n >= rows):
            return list(pieces[:n])
    return list(pieces)


def tree(prompts: Sequence[Sequence[int]], groups: Sequence[tuple[object, object]]) -> list[Piece]:
    """Prompts as a tree of pieces.

    Args:
        prompts: token ids.
        groups: for each prompt its (sample, first response): prompts that agree in the first, or in
            both, are looked at for tokens that they begin with in common.

    Returns:
        The roots: one, unless nothing is common to all.
    """
    numbers = list(range(len(prompts)))
    return _split(prompts, numbers, 0, [lambda i: groups[i][0], lambda i: groups[i], lambda i: i])


def _split(
    prompts: Sequence[Sequence[int]], numbers: list[int], start: int, keys: list[Any]
) -> list[Piece]:
    """Pieces of some prompts from token `start` on, all of which are alike up to there."""
    if not keys:
        return [Piece(list(prompts[i][start:]), prompt=i) for i in numbers]
    if len(numbers) == 1:
        return [Piece(list(prompts[numbers[0]][start:]), prompt=numbers[0])]
    common = _common([prompts[i] for i in numbers], start)
    by: dict[object, list[int]] = {}
    for i in numbers:
        by.setdefault(keys[0](i), []).append(i)
    below = [p for own in by.values() for p in _split(prompts, own, common, keys[1:])]
    if common == start:
        return below
    return [Piece(list(prompts[numbers[0]][start:common]), below)]


def _common(prompts: Sequence[Sequence[int]], start: int) -> int:
    """Up to where prompts are alike; each keeps at least its last token."""
    end = min(len(p) for p in prompts) - 1
    first = prompts[0]
    for other in prompts[1:]:
        at = start
        while at < end and first[at] == other[at]:
            at += 1
        end = min(end, at)
    return max(start, end)
