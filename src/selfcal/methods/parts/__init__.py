"""The stages that methods are made of.

Each function takes the recipe and gives a `Stage`: it joins a stage's plain functions (search,
judge, curate, train, evaluate) to the records they read and write, and knows nothing of the order.
Heavy libraries are imported when a stage runs, so that planning stays instant.
"""

from __future__ import annotations

from selfcal.methods.parts.base import start_of
from selfcal.methods.parts.correcting import fresh_calibration
from selfcal.methods.parts.graders import GradeRater, Prompts, grader
from selfcal.methods.parts.judges import (
    Judging,
    judging,
    label_giver,
    labelled,
    labels_at_once,
    quality,
    r_scorer,
)
from selfcal.methods.parts.loop import loop, measured, opening
from selfcal.methods.parts.measure import evaluate
from selfcal.methods.parts.online import (
    Batch,
    Estimator,
    Online,
    Rater,
    online_loop,
    online_tuning,
    refuse_unread,
)
from selfcal.methods.parts.options import options
from selfcal.methods.parts.pairing import likeliest, pair, pairs_by, write_pairs
from selfcal.methods.parts.rankers import RankRater, ranker
from selfcal.methods.parts.rescue import refuse_weak, weak
from selfcal.methods.parts.rewarding import own_reward
from selfcal.methods.parts.samples import data
from selfcal.methods.parts.scoring import judgments, pairs
from selfcal.methods.parts.search import candidates
from selfcal.methods.parts.tuning import (
    best_fine_tuning,
    more_fine_tuning,
    preference_tuning,
    rationale_fine_tuning,
    teach,
)
from selfcal.methods.parts.writing import Made, Writing, written_pair, written_pairs

__all__ = [
    "Batch", "Estimator", "GradeRater", "Judging", "Made", "Online", "Prompts", "RankRater",
    "Rater", "Writing", "best_fine_tuning", "candidates", "data", "evaluate", "fresh_calibration",
    "grader", "judging", "judgments", "label_giver", "labelled", "labels_at_once", "likeliest",
    "loop", "measured", "more_fine_tuning", "online_loop", "online_tuning", "opening", "options",
    "own_reward", "pair", "pairs", "pairs_by", "preference_tuning", "quality", "r_scorer",
    "ranker", "rationale_fine_tuning", "refuse_unread", "refuse_weak", "start_of", "teach", "weak",
    "write_pairs", "written_pair", "written_pairs",
]  # fmt: skip
