"""A search on a live vLLM server, against the same model in this process.

`SELFCAL_VLLM_URL=http://127.0.0.1:8000/v1 pytest tests/integrations/test_live_vllm.py`, on the
machine of a server that was started as docs/serving.md says, with a model's folder. The model is
loaded here, too, on the CPU in float32, so it should be a small one; for a server in another number
format, give `SELFCAL_VLLM_CLOSE`, the nats a token by which log-probabilities may differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from selfcal.policy import Policy, load_policy, prompt_text
from selfcal.recipe import Server
from selfcal.search import Sampling, SearchLimits, beam, respond, search
from selfcal.search.jobs import Job, Sentence
from selfcal.search.probe import Served, Wants, check_server
from selfcal.search.served import ServedEngine
from selfcal.search.server import Connection
from selfcal.testing import tiny_samples
from selfcal.types import Sample
from tiny.plain import Plain

URL = os.environ.get("SELFCAL_VLLM_URL", "")
CLOSE = float(os.environ.get("SELFCAL_VLLM_CLOSE", "1e-5"))
LIMITS = SearchLimits(3, 2, "stochastic", 6, 24, Sampling())

pytestmark = pytest.mark.skipif(not URL, reason="SELFCAL_VLLM_URL names no server")


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    with Connection(Server(base_url=URL, retries=0, concurrency=8)) as made:
        yield made


@pytest.fixture(scope="module")
def policy(connection: Connection) -> Policy:
    return load_policy(str(connection.models()[0].root), device="cpu")


@pytest.fixture(scope="module")
def served(connection: Connection, policy: Policy) -> Served:
    return check_server(connection, connection.models()[0], policy.processor, Wants())


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return tiny_samples(tmp_path_factory.mktemp("live") / "data", 8)


def searched(
    engine: ServedEngine, samples: list[Sample], notes: list[tuple[Sample, str, Sentence]]
) -> list[Any]:
    """Trees; each sentence is noted with its sample and the text before it."""
    plain = beam._search

    def noting(job: Job[Any], sample: Sample, root: Any) -> Job[Any]:
        texts, alive = {id(root): ""}, [root]  # alive, so that no id is given twice
        asks = next(job)
        while True:
            found = yield asks
            for ask, sentences in zip(asks, found, strict=True):
                for s in sentences:
                    notes.append((sample, texts[id(ask.place)], s))
                    texts[id(s.place)] = texts[id(ask.place)] + s.text
                    alive.append(s.place)
            try:
                asks = job.send(found)
            except StopIteration as end:
                return end.value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam, "_search", lambda s, place, *a: noting(plain(s, place, *a), s, place))
        return list(search(None, samples, LIMITS, "0", engine=engine))


def test_log_probabilities_are_those_of_the_model_here_and_trees_come_again(
    connection: Connection, policy: Policy, served: Served, samples: list[Sample]
) -> None:
    notes: list[tuple[Sample, str, Sentence]] = []
    engine = ServedEngine(connection, served, LIMITS.sampling, LIMITS.sentence_tokens)
    trees = searched(engine, samples, notes)
    again = list(search(None, samples[::-1], LIMITS, "0", engine=engine))[::-1]
    assert [[n.text for n in t.nodes] for t in trees] == [[n.text for n in t.nodes] for t in again]
    assert any(text for _, text, _ in notes), "some sentences continue others"
    here = Plain(policy)
    special = set(policy.tokenizer.all_special_ids)
    for sample, text, sentence in notes:
        if special & set(sentence.ids[:-1]):
            continue  # text has none of it, so a draw that was taken up goes on without
        prompt = prompt_text(policy.processor, sample)
        before = ids(policy, prompt + text)[len(ids(policy, prompt)) :]
        own = here.logprobs(sample, (*before, *sentence.ids))[len(before) :]
        assert sentence.logprob == pytest.approx(float(own.sum()), abs=CLOSE * len(sentence.ids))


def ids(policy: Policy, text: str) -> tuple[int, ...]:
    return tuple(policy.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.skipif(CLOSE > 1e-3, reason="the likeliest token may be another in half precision")
def test_greedy_responses_are_those_of_the_engine_here(
    connection: Connection, policy: Policy, served: Served, samples: list[Sample]
) -> None:
    greedy = ServedEngine(connection, served, Sampling(temperature=0), 40, whole=True)
    there = list(respond(None, samples, 40, engine=greedy))
    assert there == list(respond(policy, samples, 40))
