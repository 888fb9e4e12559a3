"""Adaptive timeouts, learned from latencies (docs/development/resilience.md)."""

from __future__ import annotations

import math
import random

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llmopt.policies.timeouts import AdaptiveTimeout, StreamTimeouts, first_timeout, static_timeout
from llmopt.testing.clock import SimulatedClock
from llmopt.values.profile import Timeouts

BUCKET = 2 ** (1 / 8)  # the rounding error of a bucket


class TimeoutFixture:
    def __init__(self) -> None:
        self.clock = SimulatedClock(start=0.0)
        self.timeouts = AdaptiveTimeout(now=self.clock.now)

    def record(self, *seconds: float, size: int = 100) -> None:
        for each in seconds:
            self.timeouts.record(size, each)

    def limit(self, most: float = 60.0, size: int = 100) -> float:
        return self.timeouts.limit(size, most)


def test_the_timeout_starts_at_its_maximum() -> None:
    """It stays there until fifty responses are measured."""
    fixture = TimeoutFixture()
    assert fixture.limit() == 60.0
    fixture.record(*[3.0] * 49)
    assert fixture.limit() == 60.0
    fixture.record(3.0)
    assert 6.0 <= fixture.limit() <= 6.0 * BUCKET


@pytest.mark.parametrize(
    ("seconds", "most", "least", "highest"),
    [
        (0.05, 60, 5.0, 5.0),  # never below 5 s
        (2.4, 60, 5.0, 4.8 * BUCKET),
        (10.0, 60, 20.0, 20.0 * BUCKET),
        (40.0, 60, 60.0, 60.0),  # never above the maximum of the profile
        (0.05, 2.0, 2.0, 2.0),  # a user's setting may be shorter
        (1e-9, 60, 5.0, 5.0),
        (1e9, 1e12, 2 * 1048.0, 2 * 1049.0),  # the last bucket
    ],
)
def test_the_timeout_is_twice_the_p99_within_its_bounds(
    seconds: float, most: float, least: float, highest: float
) -> None:
    """The result is rounded up by at most one bucket."""
    fixture = TimeoutFixture()
    fixture.record(*[seconds] * 60)

    assert least <= fixture.limit(most) <= highest


def test_one_slow_response_of_a_hundred_is_left_out() -> None:
    """Two slow responses of a hundred count."""
    fixture = TimeoutFixture()
    fixture.record(*[3.0] * 99, 25.0)
    assert fixture.limit() <= 6.0 * BUCKET

    fixture.record(*[3.0] * 98, 25.0, 25.0)  # 3 of 200
    assert fixture.limit() >= 50.0


@given(st.lists(st.floats(0.002, 500.0), min_size=50, max_size=300), st.integers(0, 99))
def test_the_quantile_agrees_with_a_sorted_list(samples: list[float], seed: int) -> None:
    """To the width of a bucket, in any order of the samples."""
    fixture = TimeoutFixture()
    random.Random(seed).shuffle(samples)
    fixture.record(*samples)
    fixture.timeouts._by_size[(100).bit_length()]._since_p99 = len(samples)  # compute now
    exact = sorted(samples, reverse=True)[int(len(samples) * 0.01)]

    timeout = fixture.limit(most=math.inf)

    assert max(5.0, 2 * exact) <= timeout * 1.000001
    assert timeout <= max(5.0, 2 * exact * BUCKET) * 1.000001


def test_only_the_last_five_minutes_count() -> None:
    """Old samples leave minute by minute."""
    fixture = TimeoutFixture()
    fixture.record(*[20.0] * 50)
    fixture.clock.advance(120)
    fixture.record(*[3.0] * 60)
    assert fixture.limit() >= 40.0

    fixture.clock.advance(179.9)
    assert fixture.limit() >= 40.0
    fixture.clock.advance(0.2)
    assert fixture.limit() <= 6.0 * BUCKET
    fixture.clock.advance(119.9)
    assert fixture.limit() == 60.0


def test_an_idle_time_longer_than_the_window_empties_it() -> None:
    """All slices are emptied in one step."""
    fixture = TimeoutFixture()
    fixture.record(*[3.0] * 100)
    assert fixture.limit() < 10
    fixture.clock.advance(1e6)
    assert fixture.limit() == 60.0
    fixture.record(*[3.0] * 49)
    assert fixture.limit() == 60.0
    fixture.record(3.0)
    assert fixture.limit() < 10


@pytest.mark.parametrize("jump", [300, 301, 359, 3600])
def test_an_idle_time_of_exactly_the_window_empties_every_slice(jump: float) -> None:
    """Wherever the old samples were."""
    fixture = TimeoutFixture()
    for _ in range(5):
        fixture.record(*[3.0] * 20)
        fixture.clock.advance(60)
    fixture.clock.advance(jump - 60)
    fixture.record(3.0)
    histogram = fixture.timeouts._by_size[(100).bit_length()]

    assert histogram._total == sum(histogram._sum) == 1


def test_a_reused_slice_is_empty() -> None:
    """It holds no sample of the turn before."""
    fixture = TimeoutFixture()
    for _ in range(12):
        fixture.record(*[3.0] * 10)
        fixture.clock.advance(60)
    histogram = fixture.timeouts._by_size[(100).bit_length()]
    fixture.limit()

    assert histogram._total == 40
    assert sum(histogram._sum) == 40


def test_sizes_have_their_own_timeouts() -> None:
    """By powers of two: a large batch may take longer."""
    fixture = TimeoutFixture()
    fixture.record(*[3.0] * 50, size=100)
    fixture.record(*[20.0] * 50, size=5000)

    assert fixture.limit(size=100) < 7
    assert fixture.limit(size=127) < 7
    assert fixture.limit(size=64) < 7
    assert fixture.limit(size=128) == 60.0
    assert fixture.limit(size=63) == 60.0
    assert fixture.limit(size=5000) > 39
    assert fixture.limit(size=0) == 60.0


def test_timeouts_raise_the_timeout() -> None:
    """They count as responses with that latency, so that a timeout that is too short grows."""
    fixture = TimeoutFixture()
    fixture.record(*[3.0] * 97)
    limit = fixture.limit()
    for _ in range(2):
        fixture.timeouts.record(100, limit, timed_out=True)
    fixture.record(3.0)

    assert fixture.limit() >= 2 * limit


@pytest.mark.parametrize(("in_a_row", "forgets"), [(2, False), (3, True)])
def test_three_timeouts_in_a_row_reset_the_timeout(in_a_row: int, forgets: bool) -> None:
    """To its maximum, until enough samples are there again."""
    fixture = TimeoutFixture()
    fixture.record(*[3.0] * 1000)
    for _ in range(in_a_row):
        fixture.timeouts.record(100, 6.0, timed_out=True)

    assert (fixture.limit() == 60.0) == forgets
    if forgets:
        fixture.record(*[3.0] * 49)
        assert fixture.limit() == 60.0
        fixture.record(3.0)
        assert fixture.limit() < 7


def test_a_response_restarts_the_count_of_timeouts() -> None:
    """Two timeouts, a response, two timeouts: no reset."""
    fixture = TimeoutFixture()
    fixture.record(*[3.0] * 1000)
    for _ in range(3):
        fixture.timeouts.record(100, 6.0, timed_out=True)
        fixture.timeouts.record(100, 6.0, timed_out=True)
        fixture.record(3.0)

    assert fixture.limit() < 60.0


def test_a_slower_server_is_followed_within_a_few_requests() -> None:
    """The timeout does not cut off every response of a server that becomes ten times slower."""
    fixture = TimeoutFixture()
    fixture.record(*[2.0] * 500)
    lost = 0
    for _ in range(200):
        if fixture.limit() < 20.0:
            fixture.timeouts.record(100, fixture.limit(), timed_out=True)
            lost += 1
        else:
            fixture.record(20.0)

    assert lost == 3
    assert 40.0 <= fixture.limit() <= 40.0 * BUCKET


def test_the_quantile_is_not_computed_for_every_request() -> None:
    """Once in about thirty samples when there are many."""
    fixture = TimeoutFixture()
    fixture.record(*[3.0] * 3200)
    fixture.limit()
    histogram = fixture.timeouts._by_size[(100).bit_length()]
    computed = 0
    original = histogram._quantile

    for _ in range(330):
        fixture.record(3.0)
        before = histogram._since_p99
        fixture.limit()
        computed += histogram._since_p99 < before

    assert original() == pytest.approx(3.0, rel=0.1)
    assert computed == 3


@pytest.mark.parametrize(
    ("fill", "seconds"), [(0.0, 30.0), (0.5, 45.0), (1.0, 60.0), (2.0, 60.0), (-1.0, 30.0)]
)
def test_the_maximum_of_a_profile_depends_on_the_size(fill: float, seconds: float) -> None:
    """It grows from one text to a full batch."""
    assert static_timeout(Timeouts(read=30.0, read_large=60.0), fill) == seconds


# The two timeouts of a stream.


def clocks(idle: float = 60, content: float = 120, first: float = 0) -> StreamTimeouts:
    return StreamTimeouts(idle=idle, content=content, first=first)


def test_each_wait_for_bytes_has_the_whole_idle_timeout() -> None:
    """However many waits there were."""
    made = clocks()
    assert made.read_timeout == 60
    made.bytes_received(50)
    assert made.read_timeout == 60
    made.bytes_received(20)
    assert made.read_timeout == 50


def test_only_content_restarts_the_content_timeout() -> None:
    """The message says which of the two timeouts expired."""
    made = clocks()
    made.bytes_received(59)
    made.bytes_received(59)
    assert made.read_timeout == 2
    assert made.describe() == "only keep-alives came for 120 s, and no content"
    made.content_received()
    assert made.read_timeout == 60
    assert made.describe() == "nothing came for 60 s"


def test_before_the_first_content_the_first_event_timeout_applies() -> None:
    """Never shorter than the idle timeout."""
    made = clocks(first=300)
    assert made.read_timeout == 300
    made.bytes_received(290)
    assert made.read_timeout == 10
    made.content_received()
    assert made.read_timeout == 60
    assert clocks(first=1).read_timeout == 60


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=50), st.floats(0, 300))
def test_the_wait_never_exceeds_either_timeout(waits: list[tuple[float, bool]], first: float) -> None:
    """Whatever happens, a silent server is noticed in time."""
    made = clocks(first=first)
    quiet, started = 0.0, False
    for seconds, has_content in waits:
        made.bytes_received(seconds)
        quiet += seconds
        if has_content:
            made.content_received()
            quiet, started = 0.0, True
        idle, content = (60, 120) if started else (max(60, first), max(120, first))
        assert made.read_timeout == min(idle, content - quiet)


LOADING = Timeouts(read=10, read_large=60, first=300, first_event=300)


@pytest.mark.parametrize(
    ("configured", "keys", "expected"),
    [
        (set(), ("read", "read_large"), 300),
        ({"read"}, ("read", "read_large"), 10),
        ({"read_large"}, ("read", "read_large"), 10),
        ({"chat"}, ("read", "read_large"), 300),
        ({"read", "first"}, ("read", "read_large"), 300),
        ({"first_event"}, ("first_event",), 10),
        ({"connect"}, ("chat",), 300),
    ],
)
def test_a_configured_timeout_bounds_the_first_attempt(
    configured: set[str], keys: tuple[str, ...], expected: float
) -> None:
    """A server may load its model for minutes, but not longer than the user waits."""
    timeouts = evolve(LOADING, configured=frozenset(configured))
    assert first_timeout(timeouts, 10, *keys) == expected


@given(
    configured=st.frozensets(st.sampled_from(["read", "read_large", "chat", "first_event", "first", "idle"])),
    seconds=st.floats(0.1, 1000),
    keys=st.sets(st.sampled_from(["read", "read_large", "chat", "first_event"]), min_size=1),
)
def test_the_first_timeout_is_never_shorter_than_the_others(
    configured: frozenset[str], seconds: float, keys: set[str]
) -> None:
    """It is longer only where the user has set none of the timeouts that it is made of, or has set it."""
    first = first_timeout(evolve(LOADING, configured=configured), seconds, *keys)
    assert first >= seconds
    if configured & keys and "first" not in configured:
        assert first == seconds
    assert first_timeout(Timeouts(configured=configured), seconds, *keys) == seconds
