"""Measure a checkpoint: responses in, metrics with n and standard error out."""

from selfcal.evaluate.metrics import METRICS, grade, grade_answer, measure

__all__ = ["METRICS", "grade", "grade_answer", "measure"]
