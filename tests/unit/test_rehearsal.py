"""The stand-in server: real to whoever asks it, and made up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from selfcal.chat import ChatClient
from selfcal.judge.labels import ChatLabels
from selfcal.rationale import parse
from selfcal.rehearsal.server import NAME, answers_of, serve
from selfcal.teacher import ChatTeacher
from selfcal.testing import tiny_samples
from selfcal.types import Sample


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return tiny_samples(Path(tmp_path_factory.mktemp("rehearsal")), 3)


@pytest.fixture(scope="module")
def client(samples: list[Sample]) -> Iterator[ChatClient]:
    server = serve("127.0.0.1", 0, answers_of(samples[:2]))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with ChatClient(f"http://127.0.0.1:{server.server_port}/v1", NAME) as made:
        yield made
    server.shutdown()
    server.server_close()


def test_rationales_arrive_at_the_answers_it_was_given(
    client: ChatClient, samples: list[Sample]
) -> None:
    raps = [parse(ChatTeacher(client).write(s)) for s in samples]
    assert all(r.compliant for r in raps)
    assert [r.answer for r in raps] == [samples[0].answer, samples[1].answer, "unknown"]


def test_verdicts_hang_on_the_responses_and_not_on_their_order(
    client: ChatClient, samples: list[Sample]
) -> None:
    labels, mirror = ChatLabels(client), {"first": "second", "second": "first"}
    texts = [f"Rationale: {i}.\nAnswer: {i}" for i in range(6)]
    said = set()
    for one, other in pairwise(texts):
        verdict = labels.compare(samples[0], one, other)
        assert verdict in mirror
        assert labels.compare(samples[0], other, one) == mirror[verdict]
        said.add(verdict)
    assert said == {"first", "second"}
    assert labels.compare(samples[0], texts[0], texts[0]) == "neutral"


def test_every_prompt_is_known(client: ChatClient, samples: list[Sample]) -> None:
    labels, text = ChatLabels(client), "Rationale: a.\nAnswer: b"
    assert {labels.grade(samples[0], text, a) for a in ("good", "entailed", "grounded")} <= {
        True,
        False,
    }
    ranks = labels.rank(samples[0], [text, "x", "y"])
    assert ranks is not None and sorted(ranks) == [1, 2, 3]
    teacher = ChatTeacher(client)
    assert "picture" in teacher.write_facts(samples[0])
    assert teacher.mend(samples[0], text) == text
