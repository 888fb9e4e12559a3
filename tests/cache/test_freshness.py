"""Freshness of cache entries at every boundary of their lifetime, on two clocks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.cache.freshness import CacheLifetime, FreshnessRules, is_fresh, is_from_future, jittered_ttl
from llmopt.testing.clock import SimulatedClock

KEY = b"k" * 32
HOUR = 3600.0
RULES = FreshnessRules(jitter=0.0)


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


def lifetime(clock: SimulatedClock, rules: FreshnessRules = RULES) -> CacheLifetime:
    return CacheLifetime(KEY, rules, clock.now, clock.wall)


def after(clock: SimulatedClock, seconds: float, rules: FreshnessRules = RULES) -> CacheLifetime:
    """The lifetime of an entry that was stored this many seconds ago."""
    entry = lifetime(clock, rules)
    entry.stored()
    clock.advance(seconds)
    return entry


def test_the_defaults_are_those_of_the_documentation() -> None:
    """In docs/development/resilience.md."""
    rules = FreshnessRules()
    assert (rules.ttl_s, rules.stale_while_revalidate_s, rules.stale_if_error_s) == (
        HOUR,
        24 * HOUR,
        7 * 24 * HOUR,
    )
    assert (rules.not_found_ttl_s, rules.failure_pause_s, rules.jitter, rules.max_clock_skew_s) == (
        60,
        30,
        0.1,
        60,
    )
    assert rules.max_age_s == 1.1 * HOUR + 7 * 24 * HOUR


@pytest.mark.parametrize(
    ("age", "action", "stale"),
    [
        (0, "serve", False),
        (HOUR - 1, "serve", False),
        (HOUR, "serve_and_refresh", True),
        (25 * HOUR - 1, "serve_and_refresh", True),
        (25 * HOUR, "fetch_or_serve", True),
        (HOUR + 7 * 24 * HOUR - 1, "fetch_or_serve", True),
        (HOUR + 7 * 24 * HOUR, "fetch", False),
        (1e9, "fetch", False),
    ],
)
def test_an_entry_goes_from_fresh_to_stale_to_expired(
    age: float, action: str, stale: bool, clock: SimulatedClock
) -> None:
    decision = after(clock, age).decide()
    assert (decision.action, decision.stale) == (action, stale)
    if action != "fetch":
        assert decision.age == age


def test_without_an_entry_the_decision_is_fetch(clock: SimulatedClock) -> None:
    assert lifetime(clock).decide().action == "fetch"
    assert lifetime(clock).peek().action == "fetch"
    assert not lifetime(clock).has_entry


def test_one_call_refreshes_and_all_others_are_served(clock: SimulatedClock) -> None:
    entry = after(clock, 2 * HOUR)
    assert [entry.decide().action for _ in range(1_000)] == ["serve_and_refresh", *["serve"] * 999]


def test_a_stored_response_ends_the_refresh(clock: SimulatedClock) -> None:
    entry = after(clock, 2 * HOUR)
    entry.decide()
    entry.stored()
    assert not entry.refreshing
    decision = entry.decide()
    assert (decision.action, decision.stale, decision.age) == ("serve", False, 0.0)


def test_a_failed_refresh_pauses_refreshing_for_half_a_minute(clock: SimulatedClock) -> None:
    """In the background and before callers, while there is an entry to serve."""
    for age in (2 * HOUR, 30 * HOUR):
        entry = after(clock, age)
        first = entry.decide().action
        entry.refresh_failed()
        clock.advance(29)
        assert (entry.decide().action, entry.decide().stale) == ("serve", True)
        clock.advance(1)
        assert entry.decide().action == first


def test_a_failure_without_an_entry_is_not_cached(clock: SimulatedClock) -> None:
    entry = lifetime(clock)
    entry.refresh_failed()
    assert entry.decide().action == "fetch"


def test_a_refused_refresh_drops_the_entry(clock: SimulatedClock) -> None:
    """The provider no longer lets the user have it."""
    entry = after(clock, 2 * HOUR)
    entry.refresh_refused()
    assert entry.decide().action == "fetch"
    assert entry.peek().action == "fetch"


def test_not_found_is_cached_for_a_minute(clock: SimulatedClock) -> None:
    """Or until another failure or a response."""
    entry = after(clock, 0)
    entry.not_found()
    clock.advance(59.9)
    assert entry.decide().action == "not_found"
    clock.advance(0.1)
    assert entry.decide().action == "fetch"
    entry.not_found()
    entry.refresh_failed()
    assert entry.decide().action == "fetch"
    entry.not_found()
    entry.stored()
    assert entry.decide().action == "serve"


def test_an_entry_in_frequent_use_is_refreshed_before_it_is_stale(clock: SimulatedClock) -> None:
    """An entry in rare use is not."""
    frequent = lifetime(clock)
    frequent.stored()
    actions = []
    for _ in range(59):
        clock.advance(60)
        actions.append(frequent.decide().action)
    # The refresh is due from the 48th minute on, and one call starts it.
    assert actions == ["serve"] * 47 + ["serve_and_refresh"] + ["serve"] * 11
    rare = after(clock, 0.9 * HOUR)
    assert rare.decide().action == "serve"


@pytest.mark.parametrize(("requests", "action"), [(2, "serve"), (3, "serve_and_refresh")])
def test_frequent_use_is_more_than_three_requests(requests: int, action: str, clock: SimulatedClock) -> None:
    """Counted since the last stored response."""
    entry = lifetime(clock)
    for _ in range(2):
        entry.stored()
        clock.advance(HOUR / 2)
        for _ in range(requests):
            assert entry.decide().action == "serve"
        clock.advance(0.4 * HOUR)
        assert entry.decide().action == action
        entry.abandoned()


@pytest.mark.parametrize("end", ["reset", "refresh_refused", "not_found"])
def test_the_end_of_an_entry_ends_its_refresh(end: str, clock: SimulatedClock) -> None:
    """The next entry can be refreshed again."""
    entry = after(clock, 2 * HOUR)
    entry.decide()
    assert entry.refreshing
    getattr(entry, end)()
    assert not entry.refreshing


def test_a_failed_early_refresh_pauses_refreshing_too(clock: SimulatedClock) -> None:
    entry = lifetime(clock)
    entry.stored()
    for _ in range(10):
        entry.decide()
    clock.advance(0.9 * HOUR)
    assert entry.decide().action == "serve_and_refresh"
    entry.refresh_failed()
    clock.advance(10)
    assert entry.decide().action == "serve"
    clock.advance(20)
    assert entry.decide().action == "serve_and_refresh"
    entry.abandoned()
    assert entry.decide().action == "serve_and_refresh"


def test_reset_drops_the_entry(clock: SimulatedClock) -> None:
    entry = after(clock, 0)
    entry.not_found()
    entry.reset()
    assert entry.decide().action == "fetch"


def test_the_age_of_an_entry_from_disk_comes_from_the_wall_clock(clock: SimulatedClock) -> None:
    """From then on it ages by the monotonic clock."""
    entry = lifetime(clock)
    assert entry.stored(clock.wall() - 1_000)
    clock.advance(500)
    assert entry.decide().age == 1_500


@pytest.mark.row("K03")
@pytest.mark.parametrize("ahead", [60.5, 1e6, math.inf, math.nan])
def test_an_entry_from_the_future_is_rejected(ahead: float, clock: SimulatedClock) -> None:
    """A date up to a minute ahead is accepted: clocks differ."""
    entry = lifetime(clock)
    assert not entry.stored(clock.wall() + ahead)
    assert entry.decide().action == "fetch"
    assert entry.stored(clock.wall() + 59)
    assert entry.decide().age == 0.0


def test_an_entry_beyond_its_maximum_age_is_rejected(clock: SimulatedClock) -> None:
    entry = lifetime(clock)
    assert not entry.stored(clock.wall() - RULES.max_age_s)
    assert entry.stored(clock.wall() - RULES.max_age_s + 1)


@pytest.mark.row("C10")
@pytest.mark.parametrize("jump", [-10 * 365 * 24 * HOUR, -HOUR, HOUR / 2])
def test_a_jump_of_the_wall_clock_leaves_a_fresh_entry_fresh(jump: float, clock: SimulatedClock) -> None:
    """Within a process an entry ages by the monotonic clock."""
    entry = after(clock, 60)
    clock.set_wall(clock.wall() + jump)
    decision = entry.decide()
    assert decision.action == "serve"
    assert not decision.stale
    assert decision.age == max(60, 60 + jump)


@pytest.mark.row("C10")
def test_a_large_jump_ahead_makes_the_entry_stale_but_keeps_it(clock: SimulatedClock) -> None:
    """After ten years it may be old, so a call fetches; if that fails the entry is served."""
    entry = after(clock, 60)
    clock.set_wall(clock.wall() + 10 * 365 * 24 * HOUR)
    decision = entry.decide()
    assert (decision.action, decision.stale, decision.age) == ("fetch_or_serve", True, 60)


def test_peek_at_the_boundary_of_freshness(clock: SimulatedClock) -> None:
    assert after(clock, HOUR).peek().stale
    assert not after(clock, HOUR - 1).peek().stale


def test_peek_starts_no_refresh(clock: SimulatedClock) -> None:
    entry = after(clock, 2 * HOUR)
    assert (entry.peek().action, entry.peek().stale, entry.peek().age) == ("serve", True, 2 * HOUR)
    assert not entry.refreshing


@given(st.binary(max_size=40), st.floats(0, 4e9))
def test_the_time_to_live_varies_by_a_tenth(key: bytes, created: float) -> None:
    """Processes that share an entry compute the same value."""
    ttl = jittered_ttl(1_000.0, 0.1, key, created)
    assert 900 <= ttl <= 1_100
    assert ttl == jittered_ttl(1_000.0, 0.1, bytes(key), created)


def test_the_times_to_live_spread() -> None:
    """So that the entries of one start do not all expire at once."""
    ttls = [jittered_ttl(1_000.0, 0.1, bytes([each]) * 32, 1e9) for each in range(200)]
    assert max(ttls) - min(ttls) > 150
    assert 980 < sum(ttls) / 200 < 1_020


def test_vectors_expire_without_a_stale_phase() -> None:
    created, month = 1e9, 30 * 24 * HOUR
    ttl = jittered_ttl(month, RULES.jitter, KEY, created)
    assert is_fresh(created, month, KEY, created + ttl - 1, RULES)
    assert not is_fresh(created, month, KEY, created + ttl, RULES)
    assert not is_fresh(created, month, KEY, created - 61, RULES)
    assert is_from_future(math.nan, 1e9, 60)
