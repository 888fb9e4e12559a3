"""How many requests are in flight before the first answer."""

from __future__ import annotations

import math

import pytest

from llmopt.policies.quota import INITIAL_WINDOW, SlowStart


def send(start: SlowStart, count: int, now: float = 0.0) -> None:
    for _ in range(count):
        start.sent(now)


def test_two_go_first() -> None:
    """And the third is held until one of them has been in flight for as long as the doubling takes."""
    start = SlowStart()
    assert (INITIAL_WINDOW, start.finished) == (2, False)
    assert start.wait_time(100.0) == 0
    start.sent(100.0)
    assert start.wait_time(100.0) == 0
    start.sent(100.0)
    assert start.wait_time(100.0) == pytest.approx(math.log2(3 / 2))


def test_none_is_no_slow_start() -> None:
    """Zero initial_window are over at once."""
    assert SlowStart(0).finished
    assert not SlowStart(1).finished


def test_twice_as_many_each_second() -> None:
    """Counted from the first one sent, whenever that was; the third when there is room for a whole one."""
    start = SlowStart(2)
    send(start, 2, now=50.0)
    third = 50 + math.log2(3 / 2)
    assert start.wait_time(third - 0.1) == pytest.approx(0.1)
    assert start.wait_time(third + 1e-9) == 0
    send(start, 2, now=51.0)
    assert start.wait_time(51.0) == pytest.approx(math.log2(5 / 2) - 1)
    assert start.wait_time(52.0) == 0
    send(start, 4, now=52.0)
    assert start.wait_time(52.0) == pytest.approx(math.log2(9 / 2) - 2)


def test_after_a_minute_nobody_is_held_back() -> None:
    """Nor does a day's doubling leave the floats."""
    start = SlowStart(2)
    send(start, 1_000)
    assert start.wait_time(60.0) == 0
    assert start.wait_time(1e9) == 0


def test_a_hold_is_never_shorter_than_a_millisecond() -> None:
    """A rounding must not make a waiter spin."""
    start = SlowStart(2)
    send(start, 2)
    just_before = math.log2(3 / 2) - 1e-6
    assert start.wait_time(just_before) == pytest.approx(1e-3)


def test_each_answer_makes_room_for_two() -> None:
    """Its own place, and one more."""
    start = SlowStart(2)
    send(start, 2)
    start.completed(answered=True)
    send(start, 2)
    assert start.wait_time(0.0) > 0
    assert repr(start) == "SlowStart(finished=False, window=3, in_flight=3)"


def test_what_was_not_sent_makes_room_for_itself_alone() -> None:
    """It taught nothing."""
    start = SlowStart(2)
    send(start, 2)
    start.completed(answered=False)
    assert start.wait_time(0.0) == 0
    send(start, 1)
    assert start.wait_time(0.0) > 0
    assert repr(start) == "SlowStart(finished=False, window=2, in_flight=2)"


def test_it_is_over_with_the_sixty_fourth() -> None:
    """Two initial_window and sixty-two answers."""
    start = SlowStart(2)
    for _ in range(61):
        start.sent(0.0)
        start.completed(answered=True)
    assert not start.finished
    start.sent(0.0)
    start.completed(answered=True)
    assert start.finished
    start.completed(answered=True)
    assert start.finished


def test_once_over_it_stays_over() -> None:
    """Whoever ended it."""
    start = SlowStart(2)
    start.finished = True
    start.completed(answered=True)
    assert start.finished
