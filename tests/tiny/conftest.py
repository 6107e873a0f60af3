"""Models of random weights and a few samples, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from selfcal.policy import Policy, load_policy
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


SPOKEN = [".", " The", " red", " bar", " is", " 3", "5", "\n", "Answer", ":", " 7"]


@pytest.fixture(scope="session")
def talkative(policy_folder: str) -> Policy:
    """A model of random weights that likes to say sentences."""
    loaded = load_policy(policy_folder, device="cpu")
    loaded.model.lm_head.register_forward_hook(talk(loaded))
    return loaded


def talk(policy: Policy) -> Callable[..., torch.Tensor]:
    """A hook that makes what stands in `SPOKEN`, and the end, likely."""
    bias = torch.zeros(len(policy.tokenizer))
    for token in SPOKEN:
        bias[policy.tokenizer(token, add_special_tokens=False)["input_ids"][-1]] = 4.0
    bias[policy.tokenizer.convert_tokens_to_ids("<image>")] = -1e9
    for stop in policy.stop_ids:
        bias[stop] = 3.0
    return lambda module, args, out: out + bias.to(out)
