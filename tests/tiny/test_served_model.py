"""The same search on the same model, here and behind a server: the same trees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from selfcal.policy import Policy, prompt_text
from selfcal.recipe import Server
from selfcal.search import Sampling, SearchLimits, search, served
from selfcal.search.probe import Wants, check_server
from selfcal.search.served import ServedEngine
from selfcal.search.server import Connection
from selfcal.types import Sample
from strict_vllm import StrictServer
from tiny.plain import Plain, searched

LIMITS = SearchLimits(3, 2, "stochastic", 3, 8, Sampling())


class Behind:
    """A policy as the server's model: the sample is known by its prompt."""

    def __init__(self, policy: Policy, samples: list[Sample]) -> None:
        self.plain, self.tokenizer = Plain(policy), policy.tokenizer
        self.samples = {prompt_text(policy.processor, s): s for s in samples}
        self.other = samples[0]

    def __call__(self, prompt: str, ids: tuple[int, ...]) -> Any:
        asked = next((p for p in self.samples if prompt.startswith(p)), "")
        sample = self.samples.get(asked, self.other)
        said = prompt.removeprefix(asked) if asked else ""
        before = tuple(self.tokenizer(said, add_special_tokens=False)["input_ids"])
        logits = self.plain.logits(sample, before + ids)
        return torch.log_softmax(logits, dim=-1).numpy()


@pytest.fixture
def terse(talkative: Policy) -> Any:
    """`talkative`, but only of words that a text of them is always read as again."""
    words = [".", " The", " red", " bar", " is", " 3", "\n", "Answer", ":", "?"]
    bias = torch.full((len(talkative.tokenizer),), -1e4)
    for word in words:
        bias[talkative.tokenizer(word, add_special_tokens=False)["input_ids"][-1]] = 0.0
    for stop in talkative.stop_ids:
        bias[stop] = 0.0
    hook = talkative.model.lm_head.register_forward_hook(lambda m, a, out: out + bias.to(out))
    yield talkative
    hook.remove()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, 0.9, 6), Sampling(temperature=0)])
def test_a_server_gives_the_trees_of_the_engine_in_this_process(
    terse: Policy, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> None:
    numbers: dict[int, Any] = {}
    plain = served.seed

    def noted(uniforms: Any, tokens: int) -> int:
        numbers[plain(uniforms, tokens)] = uniforms[:, tokens:].copy()
        return plain(uniforms, tokens)

    monkeypatch.setattr(served, "seed", noted)
    limits = replace(LIMITS, sampling=sampling)
    few = samples[:2]
    expected = searched(terse, few, limits, "0").found
    server = StrictServer(terse.processor, Behind(terse, few), numbers=numbers)
    with server.running(), Connection(Server(base_url=server.url, concurrency=4)) as connection:
        (card,) = connection.models()
        model = check_server(connection, card, terse.processor, Wants())
        engine = ServedEngine(connection, model, sampling, limits.sentence_tokens)
        trees = list(search(None, few, limits, "0", engine=engine))
    for tree, other in zip(trees, expected, strict=True):
        assert [replace(n, logprob=0.0) for n in tree.nodes] == [
            replace(n, logprob=0.0) for n in other.nodes
        ]
        assert np.allclose(
            [n.logprob for n in tree.nodes], [n.logprob for n in other.nodes], atol=1e-4
        )
        assert [c.text for c in tree.candidates] == [c.text for c in other.candidates]
