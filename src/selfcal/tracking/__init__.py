"""A run's figures where its owner watches trainings: TensorBoard, wandb, or Trackio.

Every training has a line there, which transformers' callback writes (TRL's `report_to`), and the
stages have one together, whose steps are their numbers. The lines of one run are one group.
`RUN/tracking/` keeps their ids, so that a resumed run goes on with the lines that it has; a
training that starts over begins a new one. Tracking looks on: it takes none of the run's random
numbers, is part of no fingerprint, and where it fails it says so once and the run goes on.
"""

from selfcal.tracking.place import PACKAGES, Tracked, TrackingError, check
from selfcal.tracking.stages import Watch
from selfcal.tracking.trainings import followed

__all__ = ["PACKAGES", "Tracked", "TrackingError", "Watch", "check", "followed"]
