"""Answers to a few questions in, the text of a first recipe out, sized for data and machine."""

from selfcal.draft.write import METHODS, Answers, DraftError, draft

__all__ = ["METHODS", "Answers", "DraftError", "draft"]
