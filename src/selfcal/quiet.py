"""Keep libraries from talking over selfcal's own progress, in whichever process they work."""

from __future__ import annotations

import logging
import os
import sys
import warnings

_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GRPC_VERBOSITY": "ERROR",  # of Ray
}
_LIBRARIES = ("transformers", "trl", "datasets", "peft", "accelerate", "huggingface_hub", "httpx")
PASSED = (*_ENVIRONMENT, "HF_HUB_OFFLINE")
"""Environment variables that processes elsewhere get from the one that starts them."""


def hush() -> None:
    """Silence libraries for good; what the user has set in the environment or by `-W` wins.

    Must be called before they are imported: they read the environment then.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
