"""Keep libraries from talking over selfcal's own progress, and offline where nothing is fetched."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selfcal.cost.counts import models
from selfcal.policy import SHIPPED
from selfcal.recipe import Recipe

_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_LIBRARIES = ("transformers", "trl", "datasets", "peft", "accelerate", "huggingface_hub", "httpx")


@contextmanager
def quiet(recipe: Recipe) -> Iterator[None]:
    """Silence libraries for the run of a recipe, as `quiet_with` does."""
    with quiet_with(models(recipe)):
        yield


@contextmanager
def quiet_with(models: Iterable[str]) -> Iterator[None]:
    """Silence libraries; what the user has set in the environment or by `python -W` wins.

    Must be entered before they are imported: they read the environment then. Offline if all models
    are here.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if all(name.startswith(SHIPPED) or Path(name).is_dir() for name in models):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield
