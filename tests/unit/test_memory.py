"""What counts as memory that ran out, and what is kept of it."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from selfcal.memory import attempt, free_bytes, is_out_of_memory


def test_some_memory_is_free() -> None:
    assert 2**20 < free_bytes("cpu") < 2**50


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_an_attempt_gives_the_result_or_what_was_said() -> None:
    def fails() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory\nmore")

    assert attempt(lambda: 3) == (3, "")
    assert attempt(fails) == (None, "CUDA out of memory")


def test_an_attempt_holds_nothing_of_what_failed() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def fails() -> None:
        large = torch.zeros(3)
        held.append(weakref.ref(large))
        raise MemoryError

    gc.disable()
    try:
        attempt(fails)
        assert held[0]() is None
    finally:
        gc.enable()


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        attempt(lambda: 1 // 0)
