"""Stage 2: diverse candidates by sentence-level beam search."""

from selfcal.search.beam import Found, Guide, SearchLimits, search
from selfcal.search.engine import Engine, Limits
from selfcal.search.filters import NO_FILTERS, Filters
from selfcal.search.greedy import respond, respond_ended
from selfcal.search.jobs import Runs
from selfcal.search.sampling import Sampling

__all__ = [
    "NO_FILTERS", "Engine", "Filters", "Found", "Guide", "Limits", "Runs", "Sampling",
    "SearchLimits", "respond", "respond_ended", "search",
]  # fmt: skip
