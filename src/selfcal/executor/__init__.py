"""Who does the work of stages: this process, processes beside it, or a Ray cluster.

A stage is the same function everywhere. What runs elsewhere is not sent there: each process opens
the run, finds the stage by its name and fingerprint, and does the part that it is told to.
"""

from selfcal.executor.base import Executor, perform, work_of
from selfcal.executor.open import open_executor

__all__ = ["Executor", "open_executor", "perform", "work_of"]
