"""Stage 2: diverse candidates by sentence-level beam search."""

from selfcal.search.beam import Found, SearchLimits, search
from selfcal.search.engine import Engine, Limits
from selfcal.search.greedy import respond
from selfcal.search.sampling import Sampling

__all__ = ["Engine", "Found", "Limits", "Sampling", "SearchLimits", "respond", "search"]
