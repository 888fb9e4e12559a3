"""The token bucket: refill, withdrawals, and corrections by headers.

Numbers are worked out by hand for a limit of 10 a second whose bucket holds a second: 9, as a tenth is
left to the server.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from llmopt.policies.token_bucket import TokenBucket
from llmopt.values.calls import RateLimit


def bucket(per_second: float | None = 10.0, **more: Any) -> TokenBucket:
    return TokenBucket(per_second, **{"burst_s": 1.0, "smallest": 1.0, "now": 0.0, **more})


def observe(
    it: TokenBucket, now: float, *, sent_at: float | None = None, mark: float | None = None, **told: Any
) -> None:
    it.observe(
        now, RateLimit(**told), now if sent_at is None else sent_at, it.spent if mark is None else mark
    )


def test_it_starts_full() -> None:
    """Of nine tenths of a burst, never of less than the smallest; without a limit of anything."""
    it = bucket()
    assert (it.level, it.capacity, it.rate, it.max_rate) == (9.0, 9.0, 10.0, 10.0)
    assert (it.reserved, it.spent, it.refused_total) == (0.0, 0.0, 0.0)
    assert bucket(0.5).capacity == 1.0
    assert bucket(1.0, burst_s=5.0, smallest=0.0).capacity == 4.5
    free = bucket(None)
    assert (free.level, free.rate, free.max_rate) == (math.inf,) * 3
    assert free.wait_time(0.0, 1e12) == 0
    assert repr(it) == "TokenBucket(level=9, rate=10/s)"


def test_it_says_how_long_to_wait() -> None:
    """For what is missing, at the rate."""
    it = bucket()
    it.take(9.0)
    assert it.wait_time(0.0, 1.0) == pytest.approx(0.1)
    assert it.wait_time(0.0, 5.0) == pytest.approx(0.5)
    assert it.wait_time(0.05, 1.0) == pytest.approx(0.05)
    assert it.wait_time(0.1, 1.0) == 0
    assert it.spent == 9.0
    it.take(1.0)
    assert it.spent == 10.0


def test_a_rounding_is_no_reason_to_wait() -> None:
    """A millionth, and no more."""
    it = bucket()
    it.take(9.0 - 1.0 + 5e-7)
    assert it.wait_time(0.0, 1.0) == 0
    it.take(1e-5)
    assert 0 < it.wait_time(0.0, 1.0) < 1e-5


def test_time_does_not_run_backwards() -> None:
    """Nothing flows out."""
    it = bucket(now=100.0)
    it.take(9.0)
    it.wait_time(50.0, 0.0)
    assert it.level == 0
    it.wait_time(100.1, 0.0)
    assert it.level == pytest.approx(1.0)


def test_more_than_a_burst_is_saved_up_for_who_needs_it() -> None:
    """And goes with him."""
    it = bucket()
    it.take(9.0)
    it.reserve(30.0)
    assert it.wait_time(0.0, 30.0) == pytest.approx(3.0)
    assert it.wait_time(3.0, 30.0) == 0
    assert it.level == pytest.approx(30.0)
    it.reserve(0.0)
    assert it.level == 9.0
    it.reserve(20.0)
    it.wait_time(100.0, 0.0)
    assert it.level == 20.0


def test_what_is_given_back_never_overfills_it() -> None:
    """Nor what a request cost less than it was taken for."""
    it = bucket()
    it.take(4.0)
    it.refund(3.0)
    assert it.level == 8.0
    it.refund(3.0)
    assert it.level == 9.0
    it.reserve(12.0)
    it.refund(10.0)
    assert it.level == 12.0


def test_what_a_request_cost_more_is_a_debt_of_one_burst_at_most() -> None:
    """Counted as ours, like all that was taken."""
    it = bucket()
    it.take(5.0)
    it.correct(2.0)
    assert it.level == 2.0
    it.correct(-1.5)
    assert it.level == 3.5
    it.correct(100.0)
    assert it.level == -9.0
    assert it._corrected == 100.5


def test_owing_and_freezing() -> None:
    """A part of a burst at least, and nothing flows in before a moment."""
    it = bucket(burst_s=5.0)
    it.set_debt(0.1)
    assert it.level == -5.0
    it.correct(30.0)
    level = it.level
    it.set_debt(0.1)
    assert it.level == level
    it.hold_until(10.0)
    it.wait_time(10.0, 0.0)
    assert it.level == level
    it.hold_until(5.0)
    it.wait_time(11.0, 0.0)
    assert it.level == level + 10.0
    free = bucket(None)
    free.set_debt(0.1)
    assert free.level == math.inf


def test_a_learned_rate_holds_until_it_is_lifted() -> None:
    """What flowed in before stays, as far as it fits."""
    it = bucket()
    it.take(9.0)
    it.set_learned_rate(0.3, 2.0)
    assert (it.rate, it.capacity) == (2.0, 1.8)
    assert it.level == pytest.approx(1.8)
    it.set_learned_rate(0.4, 50.0)
    assert it.rate == 10.0
    it.set_learned_rate(0.4, math.inf)
    assert (it.rate, it.capacity) == (10.0, 9.0)


# Headers


def test_a_limit_is_heard_with_its_window() -> None:
    """A minute if it is not told; never above what is configured; only with both numbers."""
    for given, expected in (
        ({"limit": 120}, 2.0),
        ({"limit": 120, "window_s": 1}, 10.0),
        ({"limit": 5, "window_s": 1}, 5.0),
        ({"limit": 0}, 10.0),
        ({"limit": 120, "window_s": 0}, 10.0),
        ({"limit": 120, "window_s": 86_401}, 10.0),
        ({"limit": 1_000_000_001}, 10.0),
        ({"limit": -120}, 10.0),
        ({"remaining": 5}, 10.0),
    ):
        it = bucket()
        observe(it, 1.0, **given)
        assert it.max_rate == expected, given
    free = bucket(None)
    observe(free, 1.0, limit=86_400, window_s=86_400)
    assert (free.max_rate, free.rate, free.level) == (1.0, 1.0, 1.0)


def test_a_limit_that_falls_to_less_than_a_tenth_is_believed_the_third_time_in_a_row() -> None:
    """Anything else starts the count over."""
    it = bucket()
    for expected in (10.0, 10.0, 0.5):
        observe(it, 1.0, limit=30)
        assert it.max_rate == expected
    it = bucket()
    for limit in (30, 30, 600, 30, 30):
        observe(it, 1.0, limit=limit)
    assert it.max_rate == 10.0
    observe(it, 1.0, limit=30)
    assert it.max_rate == 0.5
    it = bucket()
    observe(it, 1.0, limit=60)
    assert it.max_rate == 1.0, "a tenth is no fall"
    free = bucket(None)
    observe(free, 1.0, limit=6)
    assert free.max_rate == 0.1, "nothing was known before"


def test_the_rest_with_what_is_under_way_and_what_flowed_in() -> None:
    """6.2 left when ours was the third; two more are under way and a tenth of a second has passed."""
    it = bucket(now=7.0)
    it.take(3.0)
    it.take(2.0)
    observe(it, 7.1, sent_at=7.0, mark=3.0, limit=600, remaining=6.2)
    # 6.2 - 2 + 1, and a tenth of the burst less, where the copy believed 5.
    assert it.level == pytest.approx(4.2)
    # What was taken back meanwhile is not under way.
    it = bucket()
    it.take(3.0)
    observe(it, 0.0, mark=5.0, limit=600, remaining=4.9)
    assert it.level == pytest.approx(3.9)


def test_alone_the_copy_is_drawn_up_by_small_steps() -> None:
    """A fiftieth of the way, never above what is safe or fits."""
    it = bucket()
    it.take(8.0)
    observe(it, 0.0, limit=600, remaining=6)
    # The copy has 1, safe are 6 - 1.
    assert it.level == pytest.approx(1.0 + 0.02 * (5.0 - 1.0))
    it = bucket()
    it.take(8.0)
    observe(it, 0.0, limit=600, remaining=9.9)
    assert it.level == pytest.approx(1.0 + 0.02 * (8.9 - 1.0))
    it = bucket()
    it.take(5.0)
    observe(it, 0.0, limit=600, remaining=4.5)
    assert it.level == pytest.approx(3.5)


def test_a_server_with_a_deeper_bucket_draws_nothing_up() -> None:
    """Its rest says how deep it is, not how much may go at once."""
    it = bucket()
    it.take(8.0)
    observe(it, 0.0, limit=600, remaining=500)
    assert it.level == pytest.approx(1.0)


def test_in_company_more_is_left_and_nothing_is_drawn_up() -> None:
    """0.15 of a burst."""
    it = bucket()
    it.share.uncontended = False
    it.take(2.0)
    observe(it, 0.0, limit=600, remaining=5)
    assert not it.share.uncontended
    assert it.level == pytest.approx(5.0 - 1.5)


def test_the_rest_may_be_a_debt_of_one_burst_at_most() -> None:
    """More would be taken for an outage."""
    it = bucket()
    mark = it.spent
    for _ in range(30):
        it.take(1.0)
    observe(it, 0.0, sent_at=0.0, mark=mark, limit=600, remaining=0)
    assert it.level == -9.0


def test_what_the_server_refused_or_charged_is_told_to_the_share() -> None:
    """Ours is what was taken, less what was refused, and what it cost besides."""
    it = bucket()
    it.take(3.0)
    it.correct(1.0)
    it.refused_total = 2.0
    observe(it, 0.0, limit=600, remaining=8)
    assert it.share._last is not None
    assert (it.share._last.spent, it.share._last.remaining) == (2.0, 8.0)
    assert it.share._last.expected_remaining == pytest.approx(8.0)


@pytest.mark.parametrize("remaining", [-1.0, math.nan, 1e9 + 1, None])
def test_a_rest_that_makes_no_sense_is_no_rest(remaining: float | None) -> None:
    """The copy stays as it is."""
    it = bucket()
    it.take(4.0)
    observe(it, 0.0, limit=600, remaining=remaining)
    assert it.level == 5.0
    assert it.share._last is None


def test_a_rest_of_nothing_and_of_a_billion_make_sense() -> None:
    """The edges."""
    for remaining in (0.0, 1e9):
        it = bucket()
        observe(it, 0.0, limit=600, remaining=remaining)
        assert it.share._last is not None


def test_without_a_known_limit_a_rest_is_not_looked_at() -> None:
    """There is nothing to hold it against."""
    it = bucket(None)
    observe(it, 0.0, remaining=3)
    assert it.level == math.inf
    assert it.share._last is None


# Being whole again


def wait_when_empty(**told: Any) -> float:
    it = bucket(0.01)
    it.take(0.5)
    observe(it, 0.0, limit=0.6, remaining=0, **told)
    return it.wait_time(0.0, 1.0)


def test_when_the_server_says_it_is_whole_again_the_next_may_try() -> None:
    """Whatever the copy believes; not before a burst's time has passed."""
    assert wait_when_empty(reset_s=20) == pytest.approx(20)
    assert wait_when_empty(reset_s=0.2) == pytest.approx(1.0)
    # Without a reset it is the window; one that makes no sense is none.
    assert wait_when_empty() == pytest.approx(60)
    assert wait_when_empty(reset_s=90_000) == pytest.approx(60)


def test_when_it_is_whole_what_is_needed_is_there_once() -> None:
    """At that very moment, and the next one waits again."""
    it = bucket(0.01)
    it.take(1.0)
    it.reserve(1.0)
    observe(it, 0.0, limit=0.6, remaining=0, reset_s=20)
    assert it.wait_time(19.9, 1.0) == pytest.approx(0.1)
    assert it.wait_time(20.0, 1.0) == 0
    it.take(1.0)
    assert it.wait_time(20.0, 1.0) > 40


def test_in_company_a_reset_is_not_ours() -> None:
    """Only the window is."""
    it = bucket(0.01)
    it.take(0.5)
    observe(it, 0.0, limit=0.6, remaining=0, reset_s=20)
    it.share.uncontended = False
    observe(it, 0.0, limit=0.6, remaining=0, reset_s=20)
    assert it.wait_time(0.0, 1.0) == pytest.approx(60)
    observe(it, 0.0, limit=864, window_s=86_400, remaining=0, reset_s=20)
    # Nothing is believed of a day's window but that it is one: the copy is there sooner.
    assert it.wait_time(0.0, 1.0) < 200


def test_a_refusal_that_is_explained_is_the_shares() -> None:
    """Two of them are company, and the rate is less for it."""
    it = bucket()
    it.throttled(0.0)
    assert it.rate == 10.0
    it.throttled(0.0)
    assert it.rate == pytest.approx(7.0)
    assert it.capacity == pytest.approx(6.3)


def test_looking_at_the_time_takes_nothing() -> None:
    """Learning, observing and refusals let the time pass first."""
    for act in (
        lambda it: it.set_learned_rate(0.4, 10.0),
        lambda it: it.throttled(0.4),
        lambda it: observe(it, 0.4),
    ):
        it = bucket()
        it.take(9.0)
        act(it)
        assert it.level == pytest.approx(4.0)
