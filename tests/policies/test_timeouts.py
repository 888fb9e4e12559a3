"""Adaptive timeouts, learned from latencies (docs/development/resilience.md)."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.policies.timeouts import AdaptiveTimeout, StreamTimeouts, static_timeout
from llmopt.testing.clock import SimulatedClock
from llmopt.values.profile import Timeouts

BUCKET = 2 ** (1 / 8)  # how much a bucket may overstate


class Bench:
    def __init__(self) -> None:
        self.clock = SimulatedClock(start=0.0)
        self.timeouts = AdaptiveTimeout(now=self.clock.now)

    def record(self, *seconds: float, size: int = 100) -> None:
        for each in seconds:
            self.timeouts.record(size, each)

    def limit(self, most: float = 60.0, size: int = 100) -> float:
        return self.timeouts.limit(size, most)


def test_starts_at_the_most() -> None:
    """And stays there until fifty answers are known."""
    bench = Bench()
    assert bench.limit() == 60.0
    bench.record(*[3.0] * 49)
    assert bench.limit() == 60.0
    bench.record(3.0)
    assert 6.0 <= bench.limit() <= 6.0 * BUCKET


@pytest.mark.parametrize(
    ("seconds", "most", "least", "highest"),
    [
        (0.05, 60, 5.0, 5.0),  # never below 5 s
        (2.4, 60, 5.0, 4.8 * BUCKET),
        (10.0, 60, 20.0, 20.0 * BUCKET),
        (40.0, 60, 60.0, 60.0),  # never above the profile's
        (0.05, 2.0, 2.0, 2.0),  # a user's own may be shorter
        (1e-9, 60, 5.0, 5.0),
        (1e9, 1e12, 2 * 1048.0, 2 * 1049.0),  # the last bucket
    ],
)
def test_twice_the_tail_within_bounds(seconds: float, most: float, least: float, highest: float) -> None:
    """2 * p99, never more than a bucket above it."""
    bench = Bench()
    bench.record(*[seconds] * 60)

    assert least <= bench.limit(most) <= highest


def test_one_in_a_hundred_is_left_out() -> None:
    """A single slow answer of 100 does not count, a second one does."""
    bench = Bench()
    bench.record(*[3.0] * 99, 25.0)
    assert bench.limit() <= 6.0 * BUCKET

    bench.record(*[3.0] * 98, 25.0, 25.0)  # 3 of 200
    assert bench.limit() >= 50.0


@given(st.lists(st.floats(0.002, 500.0), min_size=50, max_size=300), st.integers(0, 99))
def test_agrees_with_sorting(samples: list[float], seed: int) -> None:
    """The quantile of a sorted list, to the width of a bucket, in whatever order they came."""
    bench = Bench()
    random.Random(seed).shuffle(samples)
    bench.record(*samples)
    bench.timeouts._by_size[(100).bit_length()]._since_p99 = len(samples)  # compute now
    exact = sorted(samples, reverse=True)[int(len(samples) * 0.01)]

    found = bench.limit(most=math.inf)

    assert max(5.0, 2 * exact) <= found * 1.000001
    assert found <= max(5.0, 2 * exact * BUCKET) * 1.000001


def test_only_the_last_five_minutes_count() -> None:
    """Minute by minute the old ones leave."""
    bench = Bench()
    bench.record(*[20.0] * 50)
    bench.clock.advance(120)
    bench.record(*[3.0] * 60)
    assert bench.limit() >= 40.0

    bench.clock.advance(179.9)
    assert bench.limit() >= 40.0
    bench.clock.advance(0.2)
    assert bench.limit() <= 6.0 * BUCKET
    bench.clock.advance(119.9)
    assert bench.limit() == 60.0


def test_a_long_silence_forgets_everything() -> None:
    """Longer than the window, in one step."""
    bench = Bench()
    bench.record(*[3.0] * 100)
    assert bench.limit() < 10
    bench.clock.advance(1e6)
    assert bench.limit() == 60.0
    bench.record(*[3.0] * 49)
    assert bench.limit() == 60.0
    bench.record(3.0)
    assert bench.limit() < 10


@pytest.mark.parametrize("jump", [300, 301, 359, 3600])
def test_a_jump_of_a_whole_turn_empties_every_slice(jump: float) -> None:
    """Wherever the old samples lay."""
    bench = Bench()
    for _ in range(5):
        bench.record(*[3.0] * 20)
        bench.clock.advance(60)
    bench.clock.advance(jump - 60)
    bench.record(3.0)
    histogram = bench.timeouts._by_size[(100).bit_length()]

    assert histogram._total == sum(histogram._sum) == 1


def test_slices_of_a_second_turn_are_empty() -> None:
    """A slice that is used again holds nothing of the turn before."""
    bench = Bench()
    for _ in range(12):
        bench.record(*[3.0] * 10)
        bench.clock.advance(60)
    histogram = bench.timeouts._by_size[(100).bit_length()]
    bench.limit()

    assert histogram._total == 40
    assert sum(histogram._sum) == 40


def test_sizes_are_apart() -> None:
    """By powers of two: a large batch may take longer."""
    bench = Bench()
    bench.record(*[3.0] * 50, size=100)
    bench.record(*[20.0] * 50, size=5000)

    assert bench.limit(size=100) < 7
    assert bench.limit(size=127) < 7
    assert bench.limit(size=64) < 7
    assert bench.limit(size=128) == 60.0
    assert bench.limit(size=63) == 60.0
    assert bench.limit(size=5000) > 39
    assert bench.limit(size=0) == 60.0


def test_time_outs_raise_the_limit() -> None:
    """They count as answers that took the limit, so what cuts off too much grows."""
    bench = Bench()
    bench.record(*[3.0] * 97)
    limit = bench.limit()
    for _ in range(2):
        bench.timeouts.timed_out(100, limit)
    bench.record(3.0)

    assert bench.limit() >= 2 * limit


@pytest.mark.parametrize(("in_a_row", "forgets"), [(2, False), (3, True)])
def test_three_time_outs_in_a_row_forget(in_a_row: int, forgets: bool) -> None:
    """Back to the most until enough is known anew: no death spiral."""
    bench = Bench()
    bench.record(*[3.0] * 1000)
    for _ in range(in_a_row):
        bench.timeouts.timed_out(100, 6.0)

    assert (bench.limit() == 60.0) == forgets
    if forgets:
        bench.record(*[3.0] * 49)
        assert bench.limit() == 60.0
        bench.record(3.0)
        assert bench.limit() < 7


def test_an_answer_breaks_the_row() -> None:
    """Two, an answer, two: no row of three."""
    bench = Bench()
    bench.record(*[3.0] * 1000)
    for _ in range(3):
        bench.timeouts.timed_out(100, 6.0)
        bench.timeouts.timed_out(100, 6.0)
        bench.record(3.0)

    assert bench.limit() < 60.0


def test_no_death_spiral() -> None:
    """A server that becomes ten times slower is followed within a few requests, not cut off for ever."""
    bench = Bench()
    bench.record(*[2.0] * 500)
    lost = 0
    for _ in range(200):
        if bench.limit() < 20.0:
            bench.timeouts.timed_out(100, bench.limit())
            lost += 1
        else:
            bench.record(20.0)

    assert lost == 3
    assert 40.0 <= bench.limit() <= 40.0 * BUCKET


def test_the_quantile_is_not_computed_at_every_request() -> None:
    """Once in about thirty samples when many are known."""
    bench = Bench()
    bench.record(*[3.0] * 3200)
    bench.limit()
    histogram = bench.timeouts._by_size[(100).bit_length()]
    computed = 0
    original = histogram._quantile

    for _ in range(330):
        bench.record(3.0)
        before = histogram._since_p99
        bench.limit()
        computed += histogram._since_p99 < before

    assert original() == pytest.approx(3.0, rel=0.1)
    assert computed == 3


@pytest.mark.parametrize(
    ("fill", "seconds"), [(0.0, 30.0), (0.5, 45.0), (1.0, 60.0), (2.0, 60.0), (-1.0, 30.0)]
)
def test_the_profiles_ceiling_goes_by_size(fill: float, seconds: float) -> None:
    """From one text to a full batch."""
    assert static_timeout(Timeouts(read=30.0, read_large=60.0), fill) == seconds


# The two clocks of a stream.


def clocks(idle: float = 60, content: float = 120, first: float = 0) -> StreamTimeouts:
    return StreamTimeouts(idle=idle, content=content, first=first)


def test_each_wait_has_the_whole_time_for_a_byte() -> None:
    """However many there were."""
    made = clocks()
    assert made.read_timeout == 60
    made.bytes_received(50)
    assert made.read_timeout == 60
    made.bytes_received(20)
    assert made.read_timeout == 50


def test_only_words_set_the_second_clock_back() -> None:
    """And its sentence says which of them ran out."""
    made = clocks()
    made.bytes_received(59)
    made.bytes_received(59)
    assert made.read_timeout == 2
    assert made.describe() == "only keep-alives came for 120 s, and no content"
    made.content_received()
    assert made.read_timeout == 60
    assert made.describe() == "nothing came for 60 s"


def test_before_the_first_word_a_model_may_think() -> None:
    """As long as its first event may take; never shorter than usual."""
    made = clocks(first=300)
    assert made.read_timeout == 300
    made.bytes_received(290)
    assert made.read_timeout == 10
    made.content_received()
    assert made.read_timeout == 60
    assert clocks(first=1).read_timeout == 60


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=50), st.floats(0, 300))
def test_the_bound_is_never_more_than_either_clock_allows(
    waits: list[tuple[float, bool]], first: float
) -> None:
    """Whatever happens, silence is noticed in time."""
    made = clocks(first=first)
    quiet, spoken = 0.0, False
    for seconds, spoke in waits:
        made.bytes_received(seconds)
        quiet += seconds
        if spoke:
            made.content_received()
            quiet, spoken = 0.0, True
        idle, content = (60, 120) if spoken else (max(60, first), max(120, first))
        assert made.read_timeout == min(idle, content - quiet)
