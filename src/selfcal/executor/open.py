"""The executor that a recipe names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from selfcal.executor.base import Executor
from selfcal.executor.local import Here
from selfcal.recipe import Recipe


@contextmanager
def open_executor(recipe: Recipe) -> Iterator[Executor]:
    """Set up who does the work, for as long as the block runs."""
    yield Here()
