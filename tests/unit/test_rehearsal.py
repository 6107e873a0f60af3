"""The stand-in server: real to whoever asks it, and made up."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from selfcal.chat import ChatClient, Message
from selfcal.image import data_url
from selfcal.judge.labels import ChatLabels
from selfcal.rationale import parse
from selfcal.rehearsal.server import NAME, answers_of, key_of, reply, serve
from selfcal.teacher import ChatTeacher
from selfcal.testing import tiny_samples
from selfcal.types import Sample, question_text


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


def test_marks_and_white_space_are_no_part_of_a_question(samples: list[Sample]) -> None:
    one, other = (s.image for s in samples[:2])
    both = replace(samples[0], more_images=(other,), question="Is <image> like\n<image> ?")
    mixed = replace(samples[0], question="What is  in the <image>?", answer="a picture")
    known = answers_of([both, mixed])
    urls = [data_url(Path(image)) for image in (one, other)]
    options = question_text(both).removeprefix(both.question)
    for asked in (both.question, "Is [image 1] like\n[image 2] ?", "Is like ?"):
        assert known[key_of(asked + options, urls)] == both.answer
    assert key_of("Is like ?" + options, urls[::-1]) not in known

    class StandIn:
        def ask(self, messages: Sequence[Message]) -> str:
            return reply(messages, known)  # type: ignore[arg-type]

    for sample in (both, mixed):  # as a teacher puts it
        assert parse(ChatTeacher(StandIn()).write(sample)).answer == sample.answer


def test_images_are_held_one_sample_at_a_time(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfcal.rehearsal.server.data_url", lambda path: "x" * 2**20)
    many = [replace(samples[0], question=f"{i}?") for i in range(30)]
    tracemalloc.start()
    known = answers_of(many)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(known) == 30 and peak < 8 * 2**20


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
