"""Keys and values of many responses: kept in pieces, and laid out in slots while they are decoded.

A `Segment` holds the keys and values of a piece of a response and points to the piece before it, so
that branches share what they have in common: a prompt is stored once for all its responses. `Slots`
is the batch in work: row i of the model's batch is slot i, and all rows end at the same column, so
that a step writes one column and a distance between columns is a distance between positions (which
sliding windows need). A row that joins is laid out from its segments, one that leaves hands its own
columns back as a new segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache

from selfcal.kv import GivenLayer
from selfcal.policy import ModelError

if TYPE_CHECKING:
    import torch


class Ledger:
    """How many bytes of segments are alive."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        """Nothing yet."""
        self.held = 0


class Segment:
    """Keys and values of a piece of a response; frees itself with the last branch that has it."""

    __slots__ = ("_bytes", "_ledger", "before", "length", "states")

    def __init__(self, before: Segment | None, states: list[torch.Tensor], ledger: Ledger) -> None:
        """`states` has one tensor a bank, [layers, heads, columns, width]."""
        self.before = before
        self.states = states
        self.length: int = states[0].shape[-2] + (before.length if before else 0)
        self._bytes = sum(s.numel() * s.element_size() for s in states)
        self._ledger = ledger
        ledger.held += self._bytes

    def __del__(self) -> None:
        """Take it off the ledger."""
        self._ledger.held -= self._bytes

    def chain(self) -> Iterator[Segment]:
        """This segment and those before it, the last one first."""
        at: Segment | None = self
        while at is not None:
            yield at
            at = at.before


def not_by_row(why: str) -> ModelError:
    """The error where a model's cache cannot be gathered by row."""
    return ModelError(
        f"the policy's cache cannot be gathered by row ({why}): the search needs attention layers "
        "that keep keys and values for every token; use a model without recurrent layers and "
        "cross-attention"
    )


class Layout:
    """Which layer's keys and values lie in which bank, and how large a column is.

    A bank holds all tensors of one shape; most models have just one.
    """

    def __init__(self, cache: Cache) -> None:
        """Read it off the cache of a first forward pass.

        Raises:
            ModelError: a layer's cache is not one column a token.
        """
        self.places: list[tuple[tuple[int, int], tuple[int, int]]] = []
        """(bank, index) of every layer's keys and of its values."""
        self.shapes: list[tuple[int, int]] = []
        """(heads, width) of every bank."""
        self.depths: list[int] = []
        """Number of tensors in every bank."""
        for i, layer in enumerate(cache.layers):
            keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
            if keys is None or values is None or keys.ndim != 4:
                raise not_by_row(f"layer {i} keeps its state in a {type(layer).__name__}")
            self.places.append((self._place(keys), self._place(values)))
            self.dtype, self.device = keys.dtype, keys.device
        self.column_bytes = self.dtype.itemsize * sum(
            n * heads * width for n, (heads, width) in zip(self.depths, self.shapes, strict=True)
        )

    def _place(self, states: torch.Tensor) -> tuple[int, int]:
        shape = (states.shape[1], states.shape[3])
        if shape not in self.shapes:
            self.shapes.append(shape)
            self.depths.append(0)
        bank = self.shapes.index(shape)
        self.depths[bank] += 1
        return bank, self.depths[bank] - 1

    def rows(
        self, cache: Cache, widths: Sequence[int], columns: int
    ) -> Iterator[list[torch.Tensor]]:
        """The states of every row of a batch of so many columns that was padded on the left.

        Raises:
            ModelError: a layer has other columns than the batch.
        """
        import torch

        banks: list[list[Any]] = [[] for _ in self.shapes]
        for i, (layer, places) in enumerate(zip(cache.layers, self.places, strict=True)):
            for states, (bank, _) in zip((layer.keys, layer.values), places, strict=True):
                banks[bank].append(states)
                if states.shape[2] != columns:
                    raise not_by_row(f"layer {i} has no column for every token")
        for row, width in enumerate(widths):
            # a copy, so that the batch it was read in can be freed
            yield [torch.stack([s[row, :, columns - width :] for s in own]) for own in banks]


class _Layer(GivenLayer):
    """One layer of `Slots`, as transformers asks for it."""

    def __init__(self, slots: Slots, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self._slots, self._keys, self._values = slots, keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the step's column; give all columns of the rows in work."""
        s = self._slots
        self._keys[: s.rows, :, s.end] = key_states[:, :, 0]
        self._values[: s.rows, :, s.end] = value_states[:, :, 0]
        columns = slice(s.begin, s.end + 1)
        return self._keys[: s.rows, :, columns], self._values[: s.rows, :, columns]

    def get_seq_length(self) -> int:
        """Columns before the step's own."""
        return self._slots.end - self._slots.begin


class Slots:
    """The rows in work: slot i is row i of the batch, all of them end at column `end`."""

    def __init__(self, layout: Layout, size: int, columns: int) -> None:
        """Room for `size` rows of up to `columns` columns."""
        import torch

        self.size, self.columns = size, columns
        self.rows = 0
        self.begin = self.end = columns // 2
        """The first column of the longest row, and the column of the next step."""
        self._banks = [
            torch.zeros((n, size, heads, columns, width), dtype=layout.dtype, device=layout.device)
            for n, (heads, width) in zip(layout.depths, layout.shapes, strict=True)
        ]
        self.cache = Cache(
            layers=[
                _Layer(self, self._banks[k][i], self._banks[v][j])
                for (k, i), (v, j) in layout.places
            ]
        )

    def free(self) -> None:
        """Let go of the memory at once; layers and slots hold each other."""
        self.cache.layers.clear()
        self._banks.clear()

    def room(self, longest: int) -> None:
        """Make sure that rows of `longest` columns, and a step after them, fit.

        Raises:
            ValueError: they never will: `longest` is `columns` or more.
        """
        if longest >= self.columns:
            raise ValueError(f"{longest} columns do not fit into {self.columns}")
        if not longest <= self.end < self.columns:
            self._move(longest)  # as far left as it goes: most steps pass before the next move

    def _move(self, end: int) -> None:
        """Move all columns so that they end at `end`, without any memory beside."""
        by = end - self.end
        if not by:
            return
        width = abs(by)  # blocks so wide never overlap with where they go
        starts = range(self.begin, self.end, width)
        for start in reversed(starts) if by > 0 else starts:
            stop = min(start + width, self.end)
            for bank in self._banks:
                rows = bank[:, : self.rows]
                rows[..., start + by : stop + by, :] = rows[..., start:stop, :]
        self.begin, self.end = self.begin + by, end

    def load(self, slot: int, segment: Segment) -> None:
        """Lay a response out in a slot."""
        at = self.end
        for piece in segment.chain():
            for bank, states in zip(self._banks, piece.states, strict=True):
                bank[:, slot, :, at - states.shape[-2] : at] = states
            at -= piece.states[0].shape[-2]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the last `length` columns from slot to slot."""
        for bank in self._banks:
            bank[:, target, :, self.end - length : self.end] = bank[
                :, source, :, self.end - length : self.end
            ]

    def tail(self, slot: int, length: int, device: str | None = None) -> list[torch.Tensor]:
        """A copy of a slot's last `length` columns, as a segment's states."""
        import torch

        own = [b[:, slot, :, self.end - length : self.end] for b in self._banks]
        # layer by layer where memory is short
        return [torch.stack([s.to(device) for s in o]) if device else o.clone() for o in own]
