"""Memory that runs out: batches are halved, it is said once, and a batch of one is an error."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import pytest
import torch

from selfcal import memory
from selfcal.judge.sharing import Forward
from selfcal.policy import ModelError
from selfcal.reward import Relevance


@pytest.fixture(autouse=True)
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    memory.noted()
    with memory.told(lines.append):
        yield lines
    memory.noted()


class Clip(Relevance):
    """A sentence's vector is its length; more sentences than fit at once are too many."""

    def __init__(self, fits: int) -> None:
        self._texts, self._most, self._fits = OrderedDict(), 2**30, fits
        self.passes: list[int] = []

    def _embedded(self, sentences: list[str]) -> torch.Tensor:
        self.passes.append(len(sentences))
        if len(sentences) > self._fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.tensor([[float(len(s))] for s in sentences])


def test_clip_goes_on_with_half_and_says_so_once(said: list[str]) -> None:
    clip = Clip(fits=2)
    sentences = ["a" * n for n in range(1, 8)]
    found = clip._said(sentences)
    assert found.flatten().tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert clip.passes == [7, 3, 1, 1, 1, 1, 1, 1, 1]  # 7 and 3 are too many; half of 3 is 1
    assert said == ["CLIP ran out of memory: it goes on with fewer sentences a pass"]


def test_clip_without_memory_for_one_sentence_says_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"single sentence.*smaller reward\.model"):
        Clip(fits=0)._said(["a"])


def test_a_judge_says_once_that_it_halves(said: list[str]) -> None:
    forward = Forward(None, 0, "cpu", rows=64)
    forward.back_off(64, "out of memory")
    forward.back_off(32, "out of memory")
    assert forward.rows == 16 and forward.counts.back_offs == 2
    assert said == [
        "the judge ran out of memory: it goes on with smaller batches (judge.batch_size)"
    ]
    with pytest.raises(ModelError, match=r"smaller judge\.batch_size"):
        forward.back_off(1, "out of memory")
