"""The executor of one machine."""

from __future__ import annotations

from collections.abc import Mapping

from selfcal.executor.base import perform_again
from selfcal.recipe import Recipe
from selfcal.stage import Work
from selfcal.store import JSON


class Here:
    """Does everything in this process, and trainings in several beside it if the recipe says so."""

    def run(self, recipe: Recipe, work: Work) -> Mapping[str, JSON]:
        """Do a stage's work; gives its figures.

        Raises:
            SelfcalError: the stage failed in a foreseen way.
            Stopped: that was asked for; what is finished is kept.
        """
        if work.stage.spread == "ranks":
            from selfcal.executor.ranks import train_on_ranks

            return train_on_ranks(recipe, work)
        return perform_again(recipe, work)
