"""One sample's way through a run, for people: what it is, what was made of it, and why.

A `Story` is put together out of the records of finished stages; the terminal (`selfcal trace`)
and the report's pages only say it in their own ways. The verifier's findings are added here, for
people: the calibration loop never saw them.
"""

from selfcal.story.images import place_of
from selfcal.story.model import (
    Answer,
    Cell,
    Part,
    Ranked,
    Rollouts,
    Round,
    Story,
    Taught,
    TrainingDrops,
    Written,
)
from selfcal.story.records import Records
from selfcal.story.tell import find, tell

__all__ = [
    "Answer",
    "Cell",
    "Part",
    "Ranked",
    "Records",
    "Rollouts",
    "Round",
    "Story",
    "Taught",
    "TrainingDrops",
    "Written",
    "find",
    "place_of",
    "tell",
]
