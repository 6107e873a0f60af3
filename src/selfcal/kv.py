"""What layers of keys and values that selfcal keeps itself have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

if TYPE_CHECKING:
    import torch


class GivenLayer(CacheLayerMixin):
    """A layer whose states lie elsewhere: `update` writes and gives them, `columns` counts them."""

    is_sliding = False  # all columns are kept; the mask knows a window

    def __init__(self) -> None:
        """Nothing is made lazily."""
        super().__init__()
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do."""

    def get_seq_length(self) -> int:
        """Columns before those of the pass."""
        raise NotImplementedError

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns with those of the pass, and the first one's number."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1


def unfit_layer(config: Any) -> str:
    """Why a model's cache is not just keys and values for every token; empty where it is."""
    for i, layer in enumerate(DynamicCache(config=config).layers):
        if not isinstance(layer, CacheLayerMixin):
            return f"layer {i} keeps its state in a {type(layer).__name__}"
    return ""


def whole_cache() -> Cache:
    """A cache that drops nothing: made without a config, no layer knows of a window."""
    return DynamicCache()


def own_positions(model: Any) -> Any:
    """The part of a model that counts positions itself, as Qwen-VL does, or None.

    There an image takes fewer positions than tokens; `rope_deltas` is each prompt's difference.
    """
    parts = (getattr(model, "model", None), model)
    return next((p for p in parts if hasattr(p, "get_rope_index")), None)


__all__ = ["GivenLayer", "own_positions", "unfit_layer", "whole_cache"]
