"""The token bucket: refill, withdrawals, and corrections by headers.

The numbers are calculated by hand for a limit of 10 a second. The bucket holds 9, a second's worth less the tenth
that is left to the server.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from llmopt.policies.token_bucket import QuotaSample, TokenBucket
from llmopt.values.calls import RateLimit


def bucket(per_second: float | None = 10.0, **more: Any) -> TokenBucket:
    return TokenBucket(per_second, **{"burst_s": 1.0, "smallest": 1.0, "now": 0.0, **more})


def observe(
    it: TokenBucket, now: float, *, sent_at: float | None = None, mark: float | None = None, **limit: Any
) -> None:
    sent, spent = now if sent_at is None else sent_at, it.spent if mark is None else mark
    it.observe(now, RateLimit(**limit), sent, spent, 1.0)


def alone(it: TokenBucket) -> TokenBucket:
    """The bucket of a client that has seen for a while that nobody else uses the limit."""
    it.share._last = QuotaSample(sent_at=0.0, remaining=9.0, spent=it.spent)
    it.share._depth_s, it.share._inflow, it.share._own = 1.0, 50.0, 50.0
    it.share.cost = 1.0
    return it


def test_a_bucket_starts_full() -> None:
    """Nine tenths of a burst, at least the minimum; without a limit infinitely many."""
    it = bucket()
    assert (it.level, it.capacity, it.rate, it.max_rate) == (9.0, 9.0, 10.0, 10.0)
    assert (it.reserved, it.spent, it.refused_total) == (0.0, 0.0, 0.0)
    assert bucket(0.5).capacity == 1.0
    assert bucket(1.0, burst_s=5.0, smallest=0.0).capacity == 4.5
    free = bucket(None)
    assert (free.level, free.rate, free.max_rate) == (math.inf,) * 3
    assert free.wait_time(0.0, 1e12) == 0
    assert repr(it) == "TokenBucket(level=9, rate=10/s)"


def test_wait_is_the_missing_tokens_divided_by_the_rate() -> None:
    it = bucket()
    it.take(9.0)
    assert it.wait_time(0.0, 1.0) == pytest.approx(0.1)
    assert it.wait_time(0.0, 5.0) == pytest.approx(0.5)
    assert it.wait_time(0.05, 1.0) == pytest.approx(0.05)
    assert it.wait_time(0.1, 1.0) == 0
    assert it.spent == 9.0
    it.take(1.0)
    assert it.spent == 10.0


def test_a_rounding_error_is_no_reason_to_wait() -> None:
    """Of a millionth at most."""
    it = bucket()
    it.take(9.0 - 1.0 + 5e-7)
    assert it.wait_time(0.0, 1.0) == 0
    it.take(1e-5)
    assert 0 < it.wait_time(0.0, 1.0) < 1e-5


def test_a_clock_that_runs_backwards_changes_nothing() -> None:
    it = bucket(now=100.0)
    it.take(9.0)
    it.wait_time(50.0, 0.0)
    assert it.level == 0
    it.wait_time(100.1, 0.0)
    assert it.level == pytest.approx(1.0)


def test_more_than_a_burst_is_saved_up_for_a_large_request() -> None:
    """The saved tokens leave with that request."""
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


def test_refunds_never_overfill_the_bucket() -> None:
    """Nor does the difference of a request that cost less than estimated."""
    it = bucket()
    it.take(4.0)
    it.refund(3.0)
    assert it.level == 8.0
    it.refund(3.0)
    assert it.level == 9.0
    it.reserve(12.0)
    it.refund(10.0)
    assert it.level == 12.0


def test_an_underestimate_is_a_debt_of_at_most_one_burst() -> None:
    """It counts as spent by us."""
    it = bucket()
    it.take(5.0)
    it.correct(2.0)
    assert it.level == 2.0
    it.correct(-1.5)
    assert it.level == 3.5
    it.correct(100.0)
    assert it.level == -9.0
    assert it._corrected == 100.5


# Headers


def test_a_limit_is_learned_with_its_window() -> None:
    """A minute by default; never above the configured limit; only with both numbers."""
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


def test_a_limit_below_a_tenth_applies_from_the_third_time_in_a_row() -> None:
    """Any other limit restarts the count."""
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


def test_remaining_is_corrected_by_requests_in_flight_and_refill() -> None:
    """6.2 remained when ours was the third; two more are in flight and a tenth of a second has passed."""
    it = alone(bucket(now=7.0))
    it.take(3.0)
    it.take(2.0)
    observe(it, 7.1, sent_at=7.0, mark=3.0, limit=600, remaining=6.2)
    # 6.2 - 2 + 1, and a tenth of the burst less; the level before was 5.
    assert it.level == pytest.approx(4.2)
    # A request refunded meanwhile is not in flight.
    it = alone(bucket())
    it.take(3.0)
    observe(it, 0.0, mark=5.0, limit=600, remaining=4.9)
    assert it.level == pytest.approx(3.9)


def test_an_uncontended_level_rises_in_small_steps() -> None:
    """A fiftieth of the difference, never above the safe level."""
    it = alone(bucket())
    it.take(8.0)
    observe(it, 0.0, limit=600, remaining=6)
    # The level is 1, and 6 - 1 are safe.
    assert it.level == pytest.approx(1.0 + 0.02 * (5.0 - 1.0))
    it = alone(bucket())
    it.take(5.0)
    observe(it, 0.0, limit=600, remaining=4.5)
    assert it.level == pytest.approx(3.5)


def test_a_bank_may_be_spent_as_a_burst_while_nobody_else_draws_on_it() -> None:
    """What remains, less a tenth of a burst or the cost of a request, until five seconds after the last headers."""
    it = alone(bucket())
    it.take(8.0)
    for number in range(300):
        observe(it, 0.01 * number, limit=600, remaining=500)
    assert it.capacity == pytest.approx(499.0)
    assert it.level == pytest.approx(499.0, rel=0.01)
    it.share.cost, it.share._inflow, it.share._own = 20.0, 500.0, 500.0
    observe(it, 3.0, limit=600, remaining=500)
    assert it.level < 482.0
    assert it.wait_time(7.99, 480.0) == 0
    assert it.wait_time(8.0, 480.0) > 0
    assert (it.level, it.capacity) == (9.0, 9.0)


@pytest.mark.parametrize("state", ["configured", "contended", "few requests"])
def test_a_bank_is_not_for_everybody(state: str) -> None:
    """A lower limit of the user holds, and so do the shares of others."""
    it = alone(bucket(10.0 if state == "configured" else 20.0))
    it.take(8.0)
    if state == "contended":
        it.share._others = 50.0
    if state == "few requests":
        it.share._depth_s = 0.2
    for number in range(1, 100):
        observe(it, 0.01 * number, limit=1_200, remaining=5 if state == "few requests" else 500)
    assert it._bank == 0.0
    assert it.capacity <= 20.0
    assert it.level <= it.capacity


def test_a_configured_limit_that_equals_the_servers_allows_the_bank() -> None:
    it = alone(bucket(10.0))
    observe(it, 0.01, limit=600, remaining=500)
    assert it.capacity == pytest.approx(499.0)


def test_under_contention_the_bucket_holds_a_quarter_of_a_second() -> None:
    """A burst of each client would empty the server's bucket. The share keeps what else must remain."""
    it = alone(bucket(100.0))
    it.share._others = it.share._inflow
    observe(it, 1.0, limit=6_000, remaining=50)
    assert not it.share.uncontended
    assert it.capacity == pytest.approx(100 * it.share.factor * 0.25)
    assert it.level == it.capacity
    # No debt, which a small share would take long to pay back: what is in flight is more than what remains.
    mark = it.spent
    it.take(5.0)
    it.refund(5.0)
    observe(it, 1.0, mark=mark, limit=6_000, remaining=2)
    assert it.level == 0.0
    small = alone(bucket(4.0))
    small.share._others, small.share._depth_s = small.share._inflow, 5.0
    observe(small, 1.0, limit=240, remaining=4)
    assert small.capacity == 1.0


def test_under_contention_a_bucket_of_few_requests_keeps_the_margin() -> None:
    """Its share does not depend on what remains."""
    it = bucket()
    observe(it, 0.0, limit=600, remaining=5)
    it.throttled(0.0)
    observe(it, 0.5, limit=600, remaining=2)
    assert not it.share.uncontended
    assert it.level == pytest.approx(1.0)


def test_the_first_headers_leave_nothing_at_once_unless_they_show_a_bank() -> None:
    """Others that began at the same moment have sent as much, and their answers are still on the way."""
    for remaining, level in ((8, 0.0), (29, 0.0), (31, 2.5 * (1 + 0.1 / 10))):
        it = bucket()
        observe(it, 0.0, limit=600, remaining=remaining, reset_s=3.5)
        assert it.level == pytest.approx(level)


def test_the_reset_time_tells_how_much_a_full_bucket_holds() -> None:
    """Whole seconds may be rounded up, and no bucket holds more than the limit of a window."""
    for reset, full in ((2.5, 30.0), (2.0, 15.0), (0.0, 5.0), (1_000.5, 600.0), (None, 0.0), (-1.0, 0.0)):
        it = bucket()
        observe(it, 0.0, limit=600, remaining=5, reset_s=reset)
        assert it.share._last is not None
        assert it.share._last.full == pytest.approx(full), reset


def test_a_remaining_may_cause_a_debt_of_at_most_one_burst() -> None:
    """More would look like an outage."""
    it = bucket()
    mark = it.spent
    for _ in range(30):
        it.take(1.0)
    alone(it)
    observe(it, 0.0, sent_at=0.0, mark=mark, limit=600, remaining=0)
    assert it.level == -9.0


def test_refused_and_charged_tokens_reach_the_fair_share() -> None:
    """Our use is what was spent, less what was refused, plus what it cost beyond the estimate."""
    it = bucket()
    it.take(3.0)
    it.correct(1.0)
    it.refused_total = 2.0
    observe(it, 0.0, limit=600, remaining=8)
    assert it.share._last is not None
    assert (it.share._last.spent, it.share._last.remaining, it.share._last.cost) == (2.0, 8.0, 1.0)


@pytest.mark.parametrize("remaining", [-1.0, math.nan, 1e9 + 1, None])
def test_an_invalid_remaining_is_ignored(remaining: float | None) -> None:
    """The level stays."""
    it = bucket()
    it.take(4.0)
    observe(it, 0.0, limit=600, remaining=remaining)
    assert it.level == 5.0
    assert it.share._last is None


def test_a_remaining_of_zero_and_of_a_billion_are_valid() -> None:
    for remaining in (0.0, 1e9):
        it = bucket()
        observe(it, 0.0, limit=600, remaining=remaining)
        assert it.share._last is not None


def test_without_a_known_limit_remaining_is_ignored() -> None:
    """There is nothing to compare it with."""
    it = bucket(None)
    observe(it, 0.0, remaining=3)
    assert it.level == math.inf
    assert it.share._last is None


# The server's reset time


def wait_when_empty(**limit: Any) -> float:
    it = bucket(0.01)
    it.take(0.5)
    observe(it, 0.0, limit=0.6, remaining=0, **limit)
    return it.wait_time(0.0, 1.0)


def test_after_the_servers_reset_the_next_request_may_be_sent() -> None:
    """Whatever our level is; not before a burst's time has passed."""
    assert wait_when_empty(reset_s=20) == pytest.approx(20)
    assert wait_when_empty(reset_s=0.2) == pytest.approx(1.0)
    # Without a reset the window counts; an invalid reset is ignored.
    assert wait_when_empty() == pytest.approx(60)
    assert wait_when_empty(reset_s=90_000) == pytest.approx(60)


def test_the_reset_admits_one_request() -> None:
    """The next request waits again."""
    it = bucket(0.01)
    it.take(1.0)
    it.reserve(1.0)
    observe(it, 0.0, limit=0.6, remaining=0, reset_s=20)
    assert it.wait_time(19.9, 1.0) == pytest.approx(0.1)
    assert it.wait_time(20.0, 1.0) == 0
    it.take(1.0)
    assert it.wait_time(20.0, 1.0) > 40


def test_under_contention_only_the_window_counts_as_reset() -> None:
    it = bucket(0.01)
    it.take(0.5)
    observe(it, 0.0, limit=0.6, remaining=0, reset_s=20)
    it.share.uncontended = False
    observe(it, 0.0, limit=0.6, remaining=0, reset_s=20)
    assert it.wait_time(0.0, 1.0) == pytest.approx(60)
    observe(it, 0.0, limit=864, window_s=86_400, remaining=0, reset_s=20)
    # A window of a day is valid, but the bucket has the tokens sooner.
    assert it.wait_time(0.0, 1.0) < 200


def test_an_explained_refusal_counts_for_the_fair_share() -> None:
    """Where what remains says nothing, it lowers the rate from the next response on."""
    it = bucket()
    observe(it, 0.0, limit=600, remaining=0)
    it.throttled(0.0)
    observe(it, 0.0, limit=600, remaining=0)
    assert it.rate == pytest.approx(7.0, rel=1e-3)
    assert it.capacity == pytest.approx(7.0 * 0.25, rel=1e-3)


def test_refilling_withdraws_nothing() -> None:
    """Observing and refusals refill the bucket first."""
    for act in (
        lambda it: it.throttled(0.4),
        lambda it: observe(it, 0.4),
    ):
        it = bucket()
        it.take(9.0)
        act(it)
        assert it.level == pytest.approx(4.0)
