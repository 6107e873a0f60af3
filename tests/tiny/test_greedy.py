"""Greedy responses on the engine, against `generate`."""

from __future__ import annotations

from selfcal.policy import Policy, load_policy
from selfcal.search import Limits, respond
from selfcal.types import Sample
from tiny.plain import generated


def test_responses_are_those_of_generate(samples: list[Sample], talkative: Policy) -> None:
    for policy in (talkative, load_policy("miniworld:mini-llava", device="cpu")):
        for tokens in (1, 3, 60):
            assert list(respond(policy, samples, tokens)) == generated(policy, samples, tokens)
            few_rows = respond(policy, iter(samples), tokens, Limits(rows=3))
            assert list(few_rows) == generated(policy, samples, tokens)
