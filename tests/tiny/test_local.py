"""Models on this machine, asked as servers are: real models, small ones."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from selfcal import local
from selfcal.chat import ChatError, user_message
from selfcal.judge.asking import Chat
from selfcal.judge.labels import ChatLabels
from selfcal.local import LocalModel, Running
from selfcal.policy import ModelError, load_policy
from selfcal.prompts import Prompts
from selfcal.search import respond
from selfcal.teacher import ChatTeacher, MiniWorldTeacher, TeacherError, rewrite
from selfcal.testing import tiny_samples
from selfcal.types import Sample

HOW = Running(dtype="float32", device="cpu", batch_size=4, max_tokens=48)
LLAVA, JUDGE = "miniworld:mini-llava", "miniworld:mini-judge"
BARE = Prompts("teacher", {"rationale": "{{ question }}\n"})
"""What the shipped model was trained on."""
COMPARE = "Question: {{ question }}\nFacts: {{ facts }}\nFirst: {{ first }}\nSecond: {{ second }}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return tiny_samples(tmp_path_factory.mktemp("world"), 10)


def answers(model: LocalModel, samples: list[Sample], workers: int) -> list[str]:
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(ChatTeacher(model, BARE).write, samples))


def test_a_local_teacher_says_what_the_model_says(world: list[Sample]) -> None:
    policy = load_policy(LLAVA, device="cpu")
    expected = list(respond(policy, world, 48))  # another engine's greedy responses
    said = answers(LocalModel(LLAVA, HOW), world, 4)
    assert said == expected
    written, drops = rewrite(ChatTeacher(LocalModel(LLAVA, HOW), BARE), world, 4)
    assert len(written) + len(drops) == 10 and len(written) >= 3


def test_batches_change_nothing(world: list[Sample]) -> None:
    for temperature in (0.0, 1.0):
        how = replace(HOW, temperature=temperature)
        one = answers(LocalModel(LLAVA, replace(how, batch_size=1)), world, 1)
        shuffled = random.Random(0).sample(world, 10)
        many = answers(LocalModel(LLAVA, how), shuffled, 4)
        assert dict(zip([s.id for s in shuffled], many, strict=True)) == dict(
            zip([s.id for s in world], one, strict=True)
        )


def test_sampled_replies_hang_on_seed_and_question(world: list[Sample]) -> None:
    hot = replace(HOW, temperature=3.0, max_tokens=12)
    first, again = (answers(LocalModel(LLAVA, hot), world, 4) for _ in range(2))
    other = answers(LocalModel(LLAVA, replace(hot, seed=1)), world, 4)
    assert first == again != other


def test_draws_have_the_probabilities_of_the_temperature() -> None:
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).expand(6000, 3)
    draws = local._Draws(0.5, range(6000))(torch.zeros(6000, 1), scores).argmax(dim=1)
    shares = torch.bincount(draws, minlength=3) / 6000
    # at temperature 0.5 probabilities are squared: 0.25, 0.09, 0.04 of 0.38
    for share, p in zip(shares.tolist(), (0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38), strict=True):
        assert share == pytest.approx(p, abs=4 * (p * (1 - p) / 6000) ** 0.5)


def test_several_batches_and_mixed_questions(world: list[Sample], monkeypatch: Any) -> None:
    sizes: list[tuple[int, bool]] = []
    own = LocalModel._generate

    def counted(self: LocalModel, batch: Any) -> list[str]:
        sizes.append((len(batch), bool(batch[0].prompt.images)))
        return own(self, batch)

    monkeypatch.setattr(LocalModel, "_generate", counted)
    model = LocalModel(LLAVA, HOW)
    asks = [[user_message(s.question, s.images if i % 2 else ())] for i, s in enumerate(world)]
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(model.ask, asks))
    assert all(said) and sum(n for n, _ in sizes) == 10
    assert max(n for n, _ in sizes) <= 4 and {seen for _, seen in sizes} == {True, False}


def test_a_language_model_gives_labels(world: list[Sample]) -> None:
    model = LocalModel(JUDGE, replace(HOW, max_tokens=1))
    who = ChatLabels(model, Prompts("labels", {"compare": COMPARE}))
    good, bad = MiniWorldTeacher(0, 0), MiniWorldTeacher(1, 0)
    found = [who.compare(s, good.write(s), bad.write(s)) for s in world]
    assert set(found) <= {"first", "second", "neutral", None} and found.count("first") >= 5


def test_a_model_for_text_is_not_shown_images(world: list[Sample]) -> None:
    with pytest.raises(ModelError, match=r"mini-judge: is a model for text alone"):
        ChatTeacher(LocalModel(JUDGE, HOW), BARE).write(world[0])


def test_what_is_too_long_is_an_error_of_its_sample(world: list[Sample]) -> None:
    teacher = ChatTeacher(LocalModel(LLAVA, replace(HOW, max_tokens=100_000)), BARE)
    with pytest.raises(TeacherError, match=rf"sample '{world[0].id}': .*more than the model takes"):
        teacher.write(world[0])


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded as a language model"):
        LocalModel(str(tmp_path), HOW).ask([user_message("hello")])


def test_one_thread_at_a_time_has_the_tokenizer(world: list[Sample], monkeypatch: Any) -> None:
    busy, most, lock = 0, 0, threading.Lock()

    def alone(own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            nonlocal busy, most
            with lock:
                busy += 1
                most = max(most, busy)
            time.sleep(0.01)
            try:
                return own(*given)
            finally:
                with lock:
                    busy -= 1

        return call

    monkeypatch.setattr(LocalModel, "_encoded", alone(LocalModel._encoded))
    monkeypatch.setattr(Chat, "prompt", alone(Chat.prompt))
    model = LocalModel(LLAVA, replace(HOW, batch_size=1, max_tokens=2))
    assert len(answers(model, world, 4)) == 10 and most == 1


def test_memory_that_runs_out_halves_the_batch(world: list[Sample], monkeypatch: Any) -> None:
    own, sizes = LocalModel._generate, []

    def small(most: int) -> Callable[[LocalModel, Any], list[str]]:
        def generate(self: LocalModel, batch: Any) -> list[str]:
            sizes.append(len(batch))
            if len(batch) > most:
                raise torch.OutOfMemoryError("out of memory")
            return own(self, batch)

        return generate

    expected = answers(LocalModel(LLAVA, HOW), world[:4], 4)
    monkeypatch.setattr(LocalModel, "_generate", small(1))
    assert answers(LocalModel(LLAVA, HOW), world[:4], 4) == expected
    monkeypatch.setattr(LocalModel, "_generate", small(0))
    with pytest.raises(ChatError, match="memory is too small for one question"):
        LocalModel(LLAVA, HOW).ask([user_message("hello")])


def test_images_amid_text_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    two = [str(tmp_path / "a.png")] * 2
    text, urls = local._flat([user_message("Is <image> like <image>?", two, interleave=True)])
    assert text == "Is [image 1] like [image 2]?" and len(urls) == 2
    text, urls = local._flat([user_message("Alike?", two)])
    assert text == "Alike?" and len(urls) == 2
