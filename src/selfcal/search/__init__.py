"""Stage 2: diverse candidates by sentence-level beam search."""

from selfcal.search.beam import SearchLimits, search

__all__ = ["SearchLimits", "search"]
