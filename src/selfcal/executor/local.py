"""The executor of one machine."""

from __future__ import annotations

from collections.abc import Mapping

from selfcal.executor.base import perform
from selfcal.recipe import Recipe
from selfcal.stage import Work
from selfcal.store import JSON


class Here:
    """Does everything in this process."""

    def run(self, recipe: Recipe, work: Work) -> Mapping[str, JSON]:
        """Run the stage's function."""
        return perform(recipe, work)
