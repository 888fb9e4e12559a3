"""Freshness of cache entries: every boundary of their life, on two clocks."""

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


def life(clock: SimulatedClock, rules: FreshnessRules = RULES) -> CacheLifetime:
    return CacheLifetime(KEY, rules, clock.now, clock.wall)


def after(clock: SimulatedClock, seconds: float, rules: FreshnessRules = RULES) -> CacheLifetime:
    """A life whose answer came so long ago."""
    found = life(clock, rules)
    found.stored()
    clock.advance(seconds)
    return found


def test_the_defaults() -> None:
    """docs/development/resilience.md."""
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
    ("age", "act", "stale"),
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
def test_a_life(age: float, act: str, stale: bool, clock: SimulatedClock) -> None:
    """From fresh to gone."""
    decision = after(clock, age).decide()
    assert (decision.action, decision.stale) == (act, stale)
    if act != "fetch":
        assert decision.age == age


def test_nothing_came_yet(clock: SimulatedClock) -> None:
    """Then somebody must ask."""
    assert life(clock).decide().action == "fetch"
    assert life(clock).peek().action == "fetch"
    assert not life(clock).has_entry


def test_one_refreshes_and_all_others_are_given(clock: SimulatedClock) -> None:
    """Single-flight."""
    found = after(clock, 2 * HOUR)
    assert [found.decide().action for _ in range(1_000)] == ["serve_and_refresh", *["serve"] * 999]


def test_an_answer_ends_the_refreshing(clock: SimulatedClock) -> None:
    """It is as good as new."""
    found = after(clock, 2 * HOUR)
    found.decide()
    found.stored()
    assert not found.refreshing
    decision = found.decide()
    assert (decision.action, decision.stale, decision.age) == ("serve", False, 0.0)


def test_after_a_failure_nobody_asks_for_half_a_minute(clock: SimulatedClock) -> None:
    """Neither beside callers nor before them, while there is something to give."""
    for age in (2 * HOUR, 30 * HOUR):
        found = after(clock, age)
        first = found.decide().action
        found.refresh_failed()
        clock.advance(29)
        assert (found.decide().action, found.decide().stale) == ("serve", True)
        clock.advance(1)
        assert found.decide().action == first


def test_after_a_failure_with_nothing_to_give_one_asks(clock: SimulatedClock) -> None:
    """No failure is remembered as an answer."""
    found = life(clock)
    found.refresh_failed()
    assert found.decide().action == "fetch"


def test_a_refusal_ends_it(clock: SimulatedClock) -> None:
    """What the provider says is not ours is not given any more."""
    found = after(clock, 2 * HOUR)
    found.refresh_refused()
    assert found.decide().action == "fetch"
    assert found.peek().action == "fetch"


def test_missing_is_believed_for_a_minute(clock: SimulatedClock) -> None:
    """And no longer; a failure of another kind ends it, as does an answer."""
    found = after(clock, 0)
    found.not_found()
    clock.advance(59.9)
    assert found.decide().action == "not_found"
    clock.advance(0.1)
    assert found.decide().action == "fetch"
    found.not_found()
    found.refresh_failed()
    assert found.decide().action == "fetch"
    found.not_found()
    found.stored()
    assert found.decide().action == "serve"


def test_whoever_asks_often_has_it_refreshed_ahead(clock: SimulatedClock) -> None:
    """Asked every minute, it never goes stale; asked now and then, it is left alone while it is fresh."""
    often = life(clock)
    often.stored()
    acts = []
    for _ in range(59):
        clock.advance(60)
        acts.append(often.decide().action)
    # It is due from the 48th minute on, and one refreshes.
    assert acts == ["serve"] * 47 + ["serve_and_refresh"] + ["serve"] * 11
    rarely = after(clock, 0.9 * HOUR)
    assert rarely.decide().action == "serve"


@pytest.mark.parametrize(("asked", "act"), [(2, "serve"), (3, "serve_and_refresh")])
def test_often_is_more_than_three_times(asked: int, act: str, clock: SimulatedClock) -> None:
    """Counted from the last answer on."""
    found = life(clock)
    for _ in range(2):
        found.stored()
        clock.advance(HOUR / 2)
        for _ in range(asked):
            assert found.decide().action == "serve"
        clock.advance(0.4 * HOUR)
        assert found.decide().action == act
        found.abandoned()


@pytest.mark.parametrize("end", ["reset", "refresh_refused", "not_found"])
def test_what_is_over_is_not_being_refreshed(end: str, clock: SimulatedClock) -> None:
    """The next answer can be refreshed again."""
    found = after(clock, 2 * HOUR)
    found.decide()
    assert found.refreshing
    getattr(found, end)()
    assert not found.refreshing


def test_refreshing_ahead_that_fails_waits_too(clock: SimulatedClock) -> None:
    """Half a minute, as ever."""
    found = life(clock)
    found.stored()
    for _ in range(10):
        found.decide()
    clock.advance(0.9 * HOUR)
    assert found.decide().action == "serve_and_refresh"
    found.refresh_failed()
    clock.advance(10)
    assert found.decide().action == "serve"
    clock.advance(20)
    assert found.decide().action == "serve_and_refresh"
    found.abandoned()
    assert found.decide().action == "serve_and_refresh"


def test_forgotten(clock: SimulatedClock) -> None:
    """As if there had been nothing."""
    found = after(clock, 0)
    found.not_found()
    found.reset()
    assert found.decide().action == "fetch"


def test_out_of_a_store_only_the_calendar_tells_the_age(clock: SimulatedClock) -> None:
    """It goes on ageing by the other clock."""
    found = life(clock)
    assert found.stored(clock.wall() - 1_000)
    clock.advance(500)
    assert found.decide().age == 1_500


@pytest.mark.row("K03")
@pytest.mark.parametrize("ahead", [60.5, 1e6, math.inf, math.nan])
def test_from_the_future(ahead: float, clock: SimulatedClock) -> None:
    """More than a minute ahead is no date; a little is a clock that is a little wrong."""
    found = life(clock)
    assert not found.stored(clock.wall() + ahead)
    assert found.decide().action == "fetch"
    assert found.stored(clock.wall() + 59)
    assert found.decide().age == 0.0


def test_too_old_to_be_of_use(clock: SimulatedClock) -> None:
    """It is not even taken in."""
    found = life(clock)
    assert not found.stored(clock.wall() - RULES.max_age_s)
    assert found.stored(clock.wall() - RULES.max_age_s + 1)


@pytest.mark.row("C10")
@pytest.mark.parametrize("jump", [-10 * 365 * 24 * HOUR, -HOUR, HOUR / 2])
def test_a_jump_of_the_calendar_leaves_what_is_fresh_fresh(jump: float, clock: SimulatedClock) -> None:
    """In this process an answer ages by the clock that nobody can set; set back, it is as old as it was."""
    found = after(clock, 60)
    clock.set_wall(clock.wall() + jump)
    decision = found.decide()
    assert decision.action == "serve"
    assert not decision.stale
    assert decision.age == max(60, 60 + jump)


@pytest.mark.row("C10")
def test_a_jump_ahead_has_it_asked_anew_and_loses_nothing(clock: SimulatedClock) -> None:
    """Ten years ahead: it may be old, so one asks; but where nobody answers it is still there."""
    found = after(clock, 60)
    clock.set_wall(clock.wall() + 10 * 365 * 24 * HOUR)
    decision = found.decide()
    assert (decision.action, decision.stale, decision.age) == ("fetch_or_serve", True, 60)


def test_peeking_at_the_boundary(clock: SimulatedClock) -> None:
    """Stale from the moment on at which it is not fresh."""
    assert after(clock, HOUR).peek().stale
    assert not after(clock, HOUR - 1).peek().stale


def test_peeking_asks_for_nothing(clock: SimulatedClock) -> None:
    """Whatever its age; it only says whether it is stale."""
    found = after(clock, 2 * HOUR)
    assert (found.peek().action, found.peek().stale, found.peek().age) == ("serve", True, 2 * HOUR)
    assert not found.refreshing


@given(st.binary(max_size=40), st.floats(0, 4e9))
def test_time_to_live_varies_by_a_tenth_and_is_the_same_everywhere(key: bytes, created: float) -> None:
    """Processes that share an entry agree on it."""
    found = jittered_ttl(1_000.0, 0.1, key, created)
    assert 900 <= found <= 1_100
    assert found == jittered_ttl(1_000.0, 0.1, bytes(key), created)


def test_time_to_live_spreads() -> None:
    """So that not all entries of a start-up run out at once."""
    found = [jittered_ttl(1_000.0, 0.1, bytes([each]) * 32, 1e9) for each in range(200)]
    assert max(found) - min(found) > 150
    assert 980 < sum(found) / 200 < 1_020


def test_vectors_do_not_go_stale() -> None:
    """They are good, and then they are not."""
    created, month = 1e9, 30 * 24 * HOUR
    lived = jittered_ttl(month, RULES.jitter, KEY, created)
    assert is_fresh(created, month, KEY, created + lived - 1, RULES)
    assert not is_fresh(created, month, KEY, created + lived, RULES)
    assert not is_fresh(created, month, KEY, created - 61, RULES)
    assert is_from_future(math.nan, 1e9, 60)
