"""Measure a checkpoint: responses in, metrics with n and standard error out."""

from selfcal.evaluate.extract import kind_of, read_answer
from selfcal.evaluate.marking import mark_all, measure_marks
from selfcal.evaluate.metrics import METRICS, category, grade, grade_answer, measure

__all__ = [
    "METRICS", "category", "grade", "grade_answer", "kind_of", "mark_all", "measure",
    "measure_marks", "read_answer",
]  # fmt: skip
