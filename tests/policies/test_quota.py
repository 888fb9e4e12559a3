"""The quota: request and token limits together, slow start, backoff and leases."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest

from llmopt.policies.adaptive_rate import Dimension
from llmopt.policies.quota import INITIAL_WINDOW, Lease, Quota, Refusal, SlowStart
from llmopt.values.calls import RateLimit, RateLimits

NO_OWNER = cast("Any", None)


def quota(rpm: float | None = 600, tpm: float | None = 6_000, initial_window: int = 0) -> Quota:
    return Quota(rpm, tpm, now=0.0, owner=NO_OWNER, initial_window=initial_window)


def levels(it: Quota) -> tuple[float, float]:
    return it.requests.level, it.tokens.level


def take(it: Quota, tokens: float = 0.0, now: float = 0.0) -> Lease:
    assert it.wait_time(now, tokens) == 0
    return it.take(now, tokens)


def server_limits(requests: dict[str, Any] | None = None, tokens: dict[str, Any] | None = None) -> RateLimits:
    return RateLimits(
        requests=None if requests is None else RateLimit(**requests),
        tokens=None if tokens is None else RateLimit(**tokens),
    )


def test_a_quota_starts_with_full_buckets() -> None:
    """Nine tenths of a second of requests and of five seconds of tokens; at least one request."""
    assert levels(quota()) == (9.0, 450.0)
    assert levels(quota(rpm=6, tpm=6)) == (1.0, pytest.approx(0.45))
    assert levels(quota(None, None)) == (math.inf, math.inf)
    assert quota().cause == ""
    assert "Quota(requests=TokenBucket(level=9, rate=10/s)" in repr(quota())


def test_tokens_of_a_minute_fit() -> None:
    """Without a token limit any number fits."""
    assert quota().never_fits(6_000, 1.0) is None
    assert quota().never_fits(6_001, 1.0) == "tpm"
    assert quota(tpm=None).never_fits(1e12, 1.0) is None


def test_the_cause_names_the_limit_with_the_longer_wait() -> None:
    it = quota()
    take(it, 445.0)
    assert it.wait_time(0.0, 10.0) == pytest.approx(0.05)
    assert it.cause == "tokens"
    for _ in range(8):
        it.take(0.0, 0.0)
    assert it.wait_time(0.0, 6.0) == pytest.approx(0.1)
    assert it.cause == "requests"
    assert it.wait_time(0.0, 25.0) == pytest.approx(0.2)
    assert it.cause == "tokens"


def test_slow_start_delays_requests_before_the_buckets_do() -> None:
    """As long as the slow start is not finished."""
    it = quota(initial_window=2)
    first = take(it)
    take(it)
    assert it.wait_time(0.0, 0.0) == pytest.approx(math.log2(3 / 2))
    assert it.cause == "start"
    it.settle(first, None)
    take(it)
    take(it)
    assert it.wait_time(0.0, 0.0) > 0


def test_leases_are_numbered_and_record_the_spent_totals() -> None:
    """Numbers start at 1; the totals include the lease itself."""
    it = quota()
    first, second = take(it, 30.0), take(it, 20.0, now=0.5)
    assert (first.number, first.tokens, first.granted_at) == (1, 30.0, 0.0)
    assert (first.requests_spent, first.tokens_spent) == (1.0, 30.0)
    assert (second.number, second.granted_at) == (2, 0.5)
    assert (second.requests_spent, second.tokens_spent) == (2.0, 50.0)


def test_a_refund_restores_everything() -> None:
    """The buckets, the spent totals, and the place in the slow start."""
    it = quota(initial_window=2)
    lease = take(it, 30.0)
    take(it, 5.0)
    it.refund(lease, 0.0)
    assert levels(it) == (8.0, 445.0)
    assert (it.requests.spent, it.tokens.spent) == (1.0, 5.0)
    assert it.wait_time(0.0, 0.0) == 0
    take(it)
    assert it.wait_time(0.0, 0.0) > 0


@pytest.mark.parametrize(
    ("tokens", "left"),
    [(None, 350), (100, 350), (40, 410), (0, 450), (0.5, 449.5), (math.inf, 350), (math.nan, 350), (-1, 350)],
)
def test_settling_charges_the_actual_tokens(tokens: float | None, left: float) -> None:
    """A value that makes no sense leaves the estimate."""
    it = quota()
    it.settle(take(it, 100.0), tokens)
    assert it.tokens.level == pytest.approx(left)


# Headers


def test_headers_of_one_kind_leave_the_other_limit_unchanged() -> None:
    """`observe` returns whether a limit was learned."""
    it = quota(None, None)
    lease = take(it)
    assert it.observe(0.0, server_limits(requests={"limit": 120}), lease) is True
    assert (it.requests.rate, it.tokens.rate) == (2.0, math.inf)
    assert it.observe(0.0, server_limits(tokens={"limit": 600}), lease) is True
    assert it.tokens.rate == 10.0
    assert it.observe(0.0, server_limits(tokens={"limit": 600}), lease) is False
    assert it.observe(0.0, server_limits(), lease) is False


def test_responses_to_older_requests_are_ignored() -> None:
    """The newest request may report again, as with a refusal after its headers."""
    it = quota()
    first, second = take(it), take(it)
    assert it.observe(0.0, server_limits(requests={"limit": 300}), second)
    assert not it.observe(0.0, server_limits(requests={"limit": 240}), first)
    assert it.requests.rate == 5.0
    assert it.observe(0.0, server_limits(requests={"limit": 240}), second)
    it = quota()
    assert it.observe(0.0, server_limits(requests={"limit": 300}), take(it))


# Refusals


def test_a_refusal_pauses_and_the_cause_names_the_pause() -> None:
    """Then a probe is sent, and all others wait for it."""
    it = quota()
    lease = take(it)
    it.throttled(0.0, lease, Refusal(3.0))
    assert it.wait_time(1.0, 0.0) == 2.0
    assert it.cause == "pause"
    probe = take(it, now=3.5)
    assert it.backoff.probe is probe
    assert it.wait_time(3.5, 0.0) == 3.0
    assert it.cause == "probe"
    it.settle(probe, None)
    assert it.wait_time(4.0, 0.0) == 0


def test_a_refused_request_stays_charged() -> None:
    """One request each time, and none of its tokens."""
    it = quota()
    for _ in range(2):
        it.throttled(0.0, it.take(0.0, 100.0), Refusal(0.1, limits=server_limits(requests={"remaining": 0})))
    assert (it.requests.refused_total, it.tokens.refused_total) == (2.0, 200.0)
    assert it.tokens.level == 450.0


def test_headers_of_a_refusal_teach_a_limit() -> None:
    """As those of a successful response do."""
    it = quota(None, None)
    assert (
        it.throttled(
            0.0, take(it), Refusal(1.0, limits=server_limits(requests={"limit": 120, "remaining": 0}))
        )
        is True
    )
    assert it.requests.max_rate == 2.0


@pytest.mark.parametrize(
    ("limits", "explained"),
    [
        (server_limits(requests={"remaining": 0}), True),
        (server_limits(requests={"remaining": 1.9}), True),
        (server_limits(requests={"remaining": 2}), False),
        (server_limits(tokens={"remaining": 199}), True),
        (server_limits(tokens={"remaining": 200}), False),
        (server_limits(requests={"remaining": 300}, tokens={"remaining": 0}), True),
        (server_limits(requests={"limit": 600}), False),
        (server_limits(), False),
    ],
)
def test_a_remaining_below_two_such_requests_explains_a_refusal(limits: RateLimits, explained: bool) -> None:
    """Then no rate is learned from the refusal: the headers say everything."""
    it = quota()
    it.throttled(0.0, take(it, 100.0), Refusal(0.1, limits=limits))
    assert it._learned.active is not explained


def test_a_remaining_without_a_limit_explains_nothing() -> None:
    """There is no bucket that it could belong to."""
    it = quota(None, None)
    assert it.wait_time(0.0, 1.0) == 0
    for _ in range(20):
        it.take(0.0, 1.0)
    it.throttled(1.0, it.take(1.0, 1.0), Refusal(0.1, limits=server_limits(requests={"remaining": 0})))
    assert it._learned.active


@pytest.mark.parametrize("dimension", ["requests", "tokens"])
def test_a_refusal_that_names_its_limit_teaches_nothing_of_the_other(dimension: Dimension) -> None:
    """Twenty requests of ten tokens in two seconds, then one is refused."""
    it = quota(None, None)
    for step in range(20):
        take(it, 10.0, now=step / 10)
    it.throttled(2.0, it.take(2.0, 10.0), Refusal(0.1, dimension=dimension))
    assert (it.rates[0] < math.inf, it.rates[1] < math.inf) == (
        dimension == "requests",
        dimension == "tokens",
    )


def test_a_refusal_ends_the_slow_start_and_leaves_a_debt() -> None:
    """A tenth of a burst."""
    it = quota(initial_window=2)
    lease = take(it, 100.0)
    it.throttled(0.5, lease, Refusal(2.0))
    assert it.backoff.remaining(0.5) == 2.0
    # One request gives no measurement: the rate is 0.7 of the current limit, with a dip of a tenth.
    assert it.rates == (pytest.approx(6.3), 100.0)
    # The server stated the time: one request may be sent then; those behind it wait.
    assert it.wait_time(2.5, 0.0) == 0
    assert it._learned.wait_time(0.5, (1.0, 0.0)) == pytest.approx(1.63 / 6.3)
    assert it._start.finished


def test_a_stated_bank_that_is_half_full_ends_a_learned_rate() -> None:
    """Headers of a request that was accepted after the refusal; those of the refusal itself change nothing."""
    for remaining, active in ((301, False), (300, True)):
        it = quota(None, None)
        limits = server_limits(requests={"limit": 600, "remaining": remaining})
        for step in range(20):
            take(it, 0.0, now=step / 10)
        it.throttled(2.0, it.take(2.0, 0.0), Refusal(0.1, limits=limits))
        assert it._learned.active
        lease = take(it, 0.0, now=4.0)
        it.settle(lease, None)
        it.observe(4.0, limits, lease)
        assert it._learned.active is active


PLENTY = {"limit": 600, "remaining": 300}
PLENTY_OF_TOKENS = {"limit": 6_000, "remaining": 3_000}


@pytest.mark.parametrize(
    ("limits", "dimension", "believed"),
    [
        (server_limits(PLENTY, PLENTY_OF_TOKENS), "requests", (False, True)),
        (server_limits(PLENTY, PLENTY_OF_TOKENS), "tokens", (True, False)),
        (server_limits(PLENTY, PLENTY_OF_TOKENS), None, (False, False)),
        # Nothing is said of tokens, which may be the limit.
        (server_limits(PLENTY), None, (True, True)),
        (server_limits(PLENTY), "requests", (False, True)),
        (server_limits({"limit": 600}), "requests", (True, True)),
        (server_limits(), "requests", (True, True)),
    ],
)
def test_headers_that_a_refusal_contradicts_are_not_believed(
    limits: RateLimits, dimension: Dimension | None, believed: tuple[bool, bool]
) -> None:
    """Only what remains: the limit still counts, and no later headers refill the bucket or end the learned rate."""
    it = quota(None, None)
    for step in range(20):
        assert it.wait_time(step / 10, 10.0) == 0
        it.take(step / 10, 10.0)
    it.throttled(2.0, it.take(2.0, 10.0), Refusal(0.1, limits, dimension))
    assert (it.requests.believed, it.tokens.believed) == believed
    if limits.requests and not it.requests.believed:
        assert it._learned.plateau[0] < math.inf
        lease = it.take(3.0, 10.0)
        it.settle(lease, 10.0)
        it.observe(3.1, server_limits(PLENTY), lease)
        assert it._learned.plateau[0] < math.inf
        assert it.requests.server_limit == 600
        assert it.requests.capacity == pytest.approx(9.0)


def test_refusals_at_random_contradict_no_headers() -> None:
    """Once they are known to come at any rate, headers are believed again."""
    it, effects = quota(None, None), []
    now = 0.0
    for _ in range(60):
        now += 0.5 + it.wait_time(now + 0.5, 10.0)
        lease = it.take(now, 10.0)
        limits = server_limits(PLENTY, PLENTY_OF_TOKENS)
        if lease.number % 10:
            it.settle(lease, None)
            it.observe(now, limits, lease)
        else:
            it.throttled(now, lease, Refusal(None, limits))
            effects.append(it.requests.believed)
    assert effects[0] is False
    assert effects[-1] is True


def test_one_overload_lowers_the_fair_share_once() -> None:
    """However many requests it refuses."""
    it = quota(60_000, None)
    leases = [take(it) for _ in range(10)]
    limits = server_limits(requests={"limit": 60_000, "remaining": 0})
    it.throttled(0.5, leases[0], Refusal(0.1, limits=limits))
    rate = it.requests.rate
    for lease in leases[1:]:
        it.throttled(0.5, lease, Refusal(0.1, limits=RateLimits(requests=RateLimit(remaining=0))))
    assert it.requests.rate == pytest.approx(0.7 * rate, rel=0.01)


def test_refused_requests_are_no_longer_in_flight() -> None:
    """They do not count as responses."""
    it = quota(None, None, initial_window=2)
    first = take(it)
    take(it)
    it.throttled(0.0, first, Refusal(0.1, limits=server_limits(requests={"limit": 6_000, "remaining": 0})))
    assert (it._start.finished, it._start._window, it._start._in_flight) == (False, 2, 1)


# A lease reports each event once, to its owner.


class LeaseOwner:
    """Records the calls that a lease makes."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def settle(self, lease: Lease, tokens: float | None) -> None:
        self.calls.append(("settle", lease, tokens))
        lease.open = False

    def refund(self, lease: Lease) -> None:
        self.calls.append(("refund", lease))

    def observe(self, limits: RateLimits, lease: Lease) -> bool:
        self.calls.append(("observe", limits, lease))
        return True

    def throttled(self, lease: Lease, refusal: Refusal) -> bool:
        self.calls.append(("throttled", lease, refusal))
        return True


def new_lease(owner: LeaseOwner) -> Lease:
    return Lease(owner, 70.0, 5.0, 3, 8.0, 90.0)


def test_a_new_lease_holds_its_values() -> None:
    """It has not been settled."""
    lease = new_lease(LeaseOwner())
    assert (lease.tokens, lease.granted_at, lease.number) == (70.0, 5.0, 3)
    assert (lease.requests_spent, lease.tokens_spent) == (8.0, 90.0)
    assert (lease.waited, lease.cause, lease.open) == (0.0, "", True)
    assert repr(lease) == "Lease(tokens=70, waited=0.000, open=True)"


def test_leaving_the_block_settles_the_estimate_once() -> None:
    """Also after an exception; not if the lease was settled before."""
    owner = LeaseOwner()
    with new_lease(owner) as lease:
        pass
    assert owner.calls == [("settle", lease, None)]
    with pytest.raises(KeyError), new_lease(owner):
        raise KeyError
    assert len(owner.calls) == 2
    with new_lease(owner) as lease:
        lease.settle(5)
    assert owner.calls[2:] == [("settle", lease, 5)]


def test_every_report_reaches_the_owner() -> None:
    """With all its arguments."""
    owner, limits = LeaseOwner(), RateLimits()
    lease = new_lease(owner)
    lease.settle()
    lease.refund()
    assert lease.observe(limits) is True
    assert lease.throttled(Refusal(2.5, limits=limits, dimension="tokens")) is True
    assert lease.throttled(Refusal()) is True
    assert owner.calls == [
        ("settle", lease, None),
        ("refund", lease),
        ("observe", limits, lease),
        ("throttled", lease, Refusal(2.5, limits, "tokens")),
        ("throttled", lease, Refusal()),
    ]


# The number of requests in flight before the first response.


def send(start: SlowStart, count: int, now: float = 0.0) -> None:
    for _ in range(count):
        start.sent(now)


def test_slow_start_sends_two_requests_first() -> None:
    """The third waits until one of them has been in flight for as long as the doubling takes."""
    start = SlowStart()
    assert (INITIAL_WINDOW, start.finished) == (2, False)
    assert start.wait_time(100.0) == 0
    start.sent(100.0)
    assert start.wait_time(100.0) == 0
    start.sent(100.0)
    assert start.wait_time(100.0) == pytest.approx(math.log2(3 / 2))


def test_an_initial_window_of_zero_disables_slow_start() -> None:
    assert SlowStart(0).finished
    assert not SlowStart(1).finished


def test_slow_start_doubles_each_second() -> None:
    """Counted from the first request; the third is sent when there is room for a whole request."""
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


def test_slow_start_ends_after_a_minute() -> None:
    """A day of doubling does not overflow."""
    start = SlowStart(2)
    send(start, 1_000)
    for second in range(100_000):
        wait = start.wait_time(float(second))
    assert wait == 0


def test_time_counts_only_while_a_request_waits() -> None:
    """A process that was stopped for a minute has one doubling."""
    start = SlowStart(2)
    send(start, 2)
    assert start.wait_time(60.0) == 0
    send(start, 2, now=60.0)
    assert start.wait_time(60.0) > 0


def test_requests_that_a_new_start_knows_nothing_of_are_not_counted() -> None:
    """They were sent before it."""
    start = SlowStart(2)
    start.completed(answered=False)
    send(start, 2)
    assert start.wait_time(0.0) > 0


def test_a_wait_is_at_least_a_millisecond() -> None:
    """A rounding error must not make a waiter spin."""
    start = SlowStart(2)
    send(start, 2)
    just_before = math.log2(3 / 2) - 1e-6
    assert start.wait_time(just_before) == pytest.approx(1e-3)


def test_each_response_makes_room_for_two() -> None:
    """For the place of the answered request, and for one more."""
    start = SlowStart(2)
    send(start, 2)
    start.completed(answered=True)
    send(start, 2)
    assert start.wait_time(0.0) > 0
    assert (start.finished, start._window, start._in_flight) == (False, 3, 3)


def test_an_unsent_request_makes_room_for_one() -> None:
    """It taught nothing."""
    start = SlowStart(2)
    send(start, 2)
    start.completed(answered=False)
    assert start.wait_time(0.0) == 0
    send(start, 1)
    assert start.wait_time(0.0) > 0
    assert (start.finished, start._window, start._in_flight) == (False, 2, 2)


def test_slow_start_ends_at_a_window_of_sixty_four() -> None:
    """The initial window of two, and sixty-two responses."""
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


def test_a_finished_slow_start_stays_finished() -> None:
    start = SlowStart(2)
    start.finished = True
    start.completed(answered=True)
    assert start.finished


# --- Requests that count as several


def test_a_request_may_count_as_several() -> None:
    """It takes and gives back what it counts, and a refusal counts it as refused."""
    it = quota(rpm=600, tpm=None)
    before = it.requests.level
    lease = it.take(0.0, 0.0, 5.0)
    assert it.requests.level == before - 5.0
    assert it.wait_time(0.0, 0.0, 5.0) == pytest.approx((5.0 - it.requests.level) / 10.0)
    it.refund(lease, 0.0)
    assert (it.requests.level, it.requests.spent) == (before, 0.0)
    it.throttled(0.0, it.take(0.0, 0.0, 5.0), Refusal(None, dimension="requests"))
    assert it.requests.refused_total == 5.0


def test_it_waits_until_more_than_a_burst_is_saved_up() -> None:
    """50 of 600 a minute are five seconds' worth, and the bucket holds one."""
    it = quota(rpm=600, tpm=None)
    it.reserve(0.0, 50.0)
    wait = it.wait_time(0.0, 0.0, 50.0)
    assert wait == pytest.approx((50.0 - it.requests.level) / 10.0)
    assert it.wait_time(wait, 0.0, 50.0) == 0


def test_more_than_the_limit_of_a_minute_never_fits() -> None:
    assert quota(rpm=600).never_fits(0.0, 600.0) is None
    assert quota(rpm=600).never_fits(0.0, 601.0) == "rpm"
    assert quota(rpm=None).never_fits(0.0, 1e12) is None
    # One request always may, however rare.
    assert quota(rpm=0.5).never_fits(0.0, 1.0) is None
