"""Keep libraries from talking over selfcal's own progress, and offline where nothing is fetched."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selfcal.cost.counts import models
from selfcal.policy import SHIPPED
from selfcal.quiet import hush
from selfcal.recipe import Recipe


@contextmanager
def quiet(recipe: Recipe) -> Iterator[None]:
    """Silence libraries for the run of a recipe, as `quiet_with` does."""
    with quiet_with(models(recipe)):
        yield


@contextmanager
def quiet_with(models: Iterable[str]) -> Iterator[None]:
    """Silence libraries, as `hush` does; warnings until the block's end.

    Offline if all models are here.
    """
    if all(name.startswith(SHIPPED) or Path(name).is_dir() for name in models):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        hush()
        yield
