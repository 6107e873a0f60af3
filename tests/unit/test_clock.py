"""Where the time goes: a clock that the test moves by hand."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from selfcal import clock
from selfcal.clock import spent, take


class Hand:
    """Shows the time that it was set to."""

    def __init__(self) -> None:
        self.now = 100.0

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hand]:
    hand = Hand()
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: hand.now))
    take()
    yield hand
    take()


def test_a_block_inside_another_does_not_count_twice(hand: Hand) -> None:
    with spent("outer"):
        hand.passes(1)
        with spent("inner"):
            hand.passes(2)
            with spent("innermost"):
                hand.passes(4)
            hand.passes(8)
        hand.passes(16)
    assert take() == {"outer": 17, "inner": 10, "innermost": 4}


def test_blocks_of_one_name_add_up_inside_each_other_too(hand: Hand) -> None:
    for _ in range(2):
        with spent("same"):
            hand.passes(1)
            with spent("same"):
                hand.passes(2)
    assert take() == {"same": 6}


def test_time_outside_of_blocks_is_nobodys(hand: Hand) -> None:
    hand.passes(1)
    with spent("a"):
        hand.passes(2)
    hand.passes(4)
    with spent("b"):
        hand.passes(8)
    assert take() == {"a": 2, "b": 8}


def test_an_error_closes_its_blocks(hand: Hand) -> None:
    with pytest.raises(KeyError), spent("outer"), spent("inner"):
        hand.passes(1)
        raise KeyError
    hand.passes(2)
    with spent("after"):
        hand.passes(4)
    assert take() == {"outer": 0, "inner": 1, "after": 4}


def test_take_starts_anew(hand: Hand) -> None:
    with spent("a"):
        hand.passes(1)
    assert take() == {"a": 1}
    assert take() == {}
    with spent("b"):
        hand.passes(2)
    assert take() == {"b": 2}


def test_an_exact_clock_waits_for_the_device(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_wait", lambda: hand.passes(5))
    with spent("a"):
        hand.passes(1)
    assert take() == {"a": 1}
    monkeypatch.setattr(clock, "exact", True)
    with spent("a"):
        hand.passes(1)
    assert take() == {"a": 6}
