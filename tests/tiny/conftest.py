"""Models of random weights and a few samples, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfcal.testing import tiny_judge, tiny_policy, tiny_samples
from selfcal.types import Sample


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_judge(tmp_path_factory.mktemp("tiny") / "judge")


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Questions of different length, so that batches are padded."""
    found = tiny_samples(Path(tmp_path_factory.mktemp("data")), 12)
    assert len({len(s.question) for s in found}) > 3
    return found
