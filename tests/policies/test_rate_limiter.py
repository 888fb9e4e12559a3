"""The rate limiter: order of requests, leases, refusals and headers."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest

from llmopt.compatible.rate_limits import parse_rate_limits
from llmopt.errors import ConfigError, CostNeverFits, DeadlineExceeded, RateLimited
from llmopt.policies.clock import Deadline
from llmopt.policies.quota import Refusal
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.testing.clock import SimulatedClock, SimulatedLoop, run_simulated
from llmopt.values.calls import RateLimit, RateLimits


def limiter(
    clock: SimulatedClock, rpm: float | None = 600, tpm: float | None = None, **more: object
) -> RateLimiter:
    return RateLimiter(clock=clock, rpm=rpm, tpm=tpm, **{"initial_window": 0, **more})  # type: ignore[arg-type]


def levels(of: RateLimiter) -> tuple[float, float]:
    """The requests and tokens that may be sent at once; negative after an underestimate."""
    return of._quota.requests.level, of._quota.tokens.level


def drain(pacer: RateLimiter, tokens: float = 0) -> int:
    count = 0
    while pacer.try_acquire(tokens) is not None:
        count += 1
    return count


def server_limits(*, requests: RateLimit | None = None, tokens: RateLimit | None = None) -> RateLimits:
    return RateLimits(requests=requests, tokens=tokens)


def test_a_burst_is_nine_tenths_of_a_second_of_requests() -> None:
    """The bucket refills in that time, and never exceeds the burst."""
    clock = SimulatedClock()
    pacer = limiter(clock)
    assert drain(pacer) == 9
    clock.advance(0.3)
    assert drain(pacer) == 3
    clock.advance(1_000)
    assert drain(pacer) == 9


def test_a_burst_is_nine_tenths_of_five_seconds_of_tokens() -> None:
    clock = SimulatedClock()
    pacer = limiter(clock, rpm=None, tpm=6_000)
    assert drain(pacer, 45) == 10
    clock.advance(1)
    assert drain(pacer, 10) == 10


def test_without_a_limit_all_requests_are_sent() -> None:
    pacer = limiter(SimulatedClock(), rpm=None)
    assert all(pacer.try_acquire(1e6) for _ in range(1_000))
    assert pacer.rates == (math.inf, math.inf)


@pytest.mark.parametrize("limits", [{"rpm": 0}, {"tpm": -1}, {"rpm": math.nan}, {"tpm": math.inf}])
def test_a_limit_must_be_above_zero(limits: dict[str, float]) -> None:
    """A mistake in the configuration is reported at once."""
    with pytest.raises(ConfigError, match="above 0"):
        limiter(SimulatedClock(), **{"rpm": None, **limits})


def test_first_come_first_served() -> None:
    """Each lease says how long its request waited, and for which limit."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        drain(pacer)
        order: list[int] = []

        async def one(i: int) -> None:
            lease = await pacer.acquire()
            order.append(i)
            assert lease.waited == pytest.approx((i + 1) / 10)
            assert lease.cause == "requests"

        await asyncio.gather(*(one(i) for i in range(50)))
        assert order == list(range(50))
        assert clock.elapsed == pytest.approx(5)

    run_simulated(main)


@pytest.mark.row("L02")
def test_small_requests_do_not_overtake_a_huge_one() -> None:
    """The limiter saves up tokens beyond a burst, and the small requests wait."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock, rpm=None, tpm=6_000)
        drain(pacer, 45)
        huge = asyncio.create_task(pacer.acquire(3_000))
        await asyncio.sleep(0)
        small = [asyncio.create_task(pacer.acquire(1)) for _ in range(100)]
        lease = await huge
        assert lease.waited == pytest.approx(30)
        assert lease.cause == "tokens"
        assert not any(task.done() for task in small)
        await asyncio.gather(*small)

    run_simulated(main)


def test_tokens_saved_for_a_huge_request_leave_with_it() -> None:
    """A burst stays a burst."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock, rpm=None, tpm=6_000)
        drain(pacer, 45)
        huge = asyncio.create_task(pacer.acquire(5_000))
        await clock.sleep(40)
        huge.cancel()
        await asyncio.gather(huge, return_exceptions=True)
        assert pacer.waiting == 0
        await clock.sleep(1)
        assert drain(pacer, 1) == 450

    run_simulated(main)


def test_a_request_above_the_tokens_of_a_minute_fails_at_once() -> None:
    """The tokens of exactly a minute fit."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock, rpm=None, tpm=6_000)
        with pytest.raises(CostNeverFits, match="tpm"):
            await pacer.acquire(6_001)
        assert (await pacer.acquire(6_000)).waited == pytest.approx(55.5)

    run_simulated(main)


@pytest.mark.parametrize("tokens", [math.nan, math.inf])
def test_invalid_token_counts_are_refused(tokens: float) -> None:
    """They would wait for ever."""

    async def main(clock: SimulatedClock) -> None:
        with pytest.raises((ValueError, CostNeverFits)):
            await limiter(clock, tpm=60).acquire(tokens)

    run_simulated(main)


@pytest.mark.parametrize(
    ("firm", "requests", "tokens"),
    [((True, True), 600, 6_000), ((False, False), 1_200, 9_000), ((False, True), 1_200, 6_000)],
)
def test_a_stated_limit_replaces_a_usual_one(firm: tuple[bool, bool], requests: float, tokens: float) -> None:
    """A configured one is never exceeded. A lower limit of the server holds in any case."""
    pacer = limiter(SimulatedClock(), rpm=600, tpm=6_000, firm=firm)
    assert pacer.rates == (10, 100)
    for factor, expected in ((1.0, (requests / 60, tokens / 60)), (0.25, (5.0, 37.5))):
        lease = pacer.try_acquire()
        assert lease is not None
        lease.settle(0)
        stated = RateLimit(limit=1_200 * factor, window_s=60), RateLimit(limit=9_000 * factor, window_s=60)
        lease.observe(server_limits(requests=stated[0], tokens=stated[1]))
        assert pacer.rates == expected


def test_a_usual_limit_refuses_no_request_for_its_size() -> None:
    """The account may allow it."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock, rpm=None, tpm=6_000, firm=(True, False))
        assert (await pacer.acquire(7_000)).waited > 60

    run_simulated(main)


def test_a_deadline_ends_the_wait_without_charge() -> None:
    """The other waiters stay."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        drain(pacer)
        first = asyncio.create_task(pacer.acquire())
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded) as caught:
            await pacer.acquire(deadline=Deadline.after(0.05, clock.now))
        assert caught.value.phase == "limiter"
        assert clock.elapsed == pytest.approx(0.05)
        assert (await first).waited == pytest.approx(0.1)
        assert (await pacer.acquire()).waited == pytest.approx(0.1)

    run_simulated(main)


@pytest.mark.row("C03")
def test_a_grant_to_a_cancelled_waiter_passes_to_the_next() -> None:
    """A grant that was not delivered is returned."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        leases = [pacer.try_acquire() for _ in range(9)]
        first = asyncio.create_task(pacer.acquire())
        second = asyncio.create_task(pacer.acquire())
        await asyncio.sleep(0)
        assert leases[0] is not None
        leases[0].refund()  # grants a lease to the first waiter
        first.cancel()  # before its task runs
        await asyncio.gather(first, return_exceptions=True)
        assert first.cancelled()
        assert (await second).waited == 0
        assert clock.elapsed == 0
        assert levels(pacer)[0] == pytest.approx(0)

    run_simulated(main)


def test_a_thousand_refusals_and_a_day_without_a_response_do_not_overflow() -> None:
    async def main(clock: SimulatedClock) -> None:
        limiter = RateLimiter(clock=clock)
        (await limiter.acquire()).refund()
        held = await limiter.acquire()
        await clock.sleep(86_400)
        (await limiter.acquire()).settle()
        held.settle()
        for _ in range(1_100):
            (await limiter.acquire()).throttled(Refusal())
        assert limiter.pause_left == pytest.approx(30)

    run_simulated(main)


@pytest.mark.row("C05")
def test_ten_thousand_cancelled_waiters_leave_an_empty_queue() -> None:
    """The levels are unchanged."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        drain(pacer)
        tasks = [asyncio.create_task(pacer.acquire()) for _ in range(10_000)]
        await asyncio.sleep(0)
        assert pacer.waiting == 10_000
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert pacer.waiting == 0
        await clock.sleep(10)
        assert drain(pacer) == 9

    run_simulated(main)


def test_leaving_the_block_settles_the_estimate() -> None:
    """A second settlement of a lease has no effect."""
    clock = SimulatedClock()
    pacer = limiter(clock, rpm=None, tpm=6_000)
    lease = pacer.try_acquire(100)
    assert lease is not None
    with lease:
        pass
    lease.settle(0)
    lease.refund()
    assert levels(pacer)[1] == pytest.approx(350)


def test_settling_charges_or_returns_the_difference() -> None:
    """The debt is at most a burst (L03)."""
    clock = SimulatedClock()
    pacer = limiter(clock, rpm=None, tpm=6_000)
    lease = pacer.try_acquire(100)
    assert lease is not None
    lease.settle(40)
    assert levels(pacer)[1] == pytest.approx(410)
    lease = pacer.try_acquire(0)
    assert lease is not None
    lease.settle(1e7)
    assert levels(pacer)[1] == pytest.approx(-450)
    assert pacer.try_acquire(0) is None
    clock.advance(4.6)
    assert pacer.try_acquire(0) is not None


@pytest.mark.parametrize("tokens", [math.nan, -5.0, math.inf])
def test_an_invalid_cost_counts_as_estimated(tokens: float) -> None:
    """The usage comes from a server."""
    pacer = limiter(SimulatedClock(), rpm=None, tpm=6_000)
    lease = pacer.try_acquire(100)
    assert lease is not None
    lease.settle(tokens)
    assert levels(pacer)[1] == pytest.approx(350)


def test_a_refund_returns_everything_and_wakes_the_next() -> None:
    """Nothing was sent."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock, rpm=60, tpm=6_000)
        lease = pacer.try_acquire(450)
        waiting = asyncio.create_task(pacer.acquire(450))
        await clock.sleep(0.2)
        assert lease is not None
        lease.refund()
        assert (await waiting).waited == pytest.approx(0.2)

    run_simulated(main)


# Refusals


@pytest.mark.row("H01")
def test_a_refusal_pauses_all_requests() -> None:
    """For as long as Retry-After says."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        lease = pacer.try_acquire()
        pacer.throttled(lease, Refusal(1.5))
        assert pacer.pause_left == 1.5
        later = await pacer.acquire()
        assert 1.5 <= later.waited <= 2.5
        assert later.cause == "pause"

    run_simulated(main)


@pytest.mark.row("H06")
def test_without_retry_after_the_pause_doubles() -> None:
    """Half a second, one, two; a success resets it."""
    clock = SimulatedClock()
    pacer = limiter(clock)
    pauses = []
    for _ in range(4):
        lease = pacer.try_acquire()
        assert lease is not None
        pacer.throttled(lease, Refusal(None))
        pauses.append(pacer.pause_left)
        clock.advance(pacer.pause_left)
        clock.advance(5)
    assert pauses == [0.5, 1.0, 2.0, 4.0]
    lease = pacer.try_acquire()
    assert lease is not None
    lease.settle()
    lease = pacer.try_acquire()
    pacer.throttled(lease, Refusal(None))
    assert pacer.pause_left == 0.5


def test_refusals_of_requests_in_flight_count_once() -> None:
    """One overload shows in many responses."""
    clock = SimulatedClock()
    pacer = limiter(clock)
    leases = [pacer.try_acquire() for _ in range(5)]
    clock.advance(0.1)
    for lease in leases:
        pacer.throttled(lease, Refusal(None))
    assert pacer.pause_left == 0.5
    assert pacer.rates[0] >= 3


def test_one_probe_is_sent_after_a_long_pause() -> None:
    """The others wait for its response."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        pacer.throttled(pacer.try_acquire(), Refusal(3.0))
        tasks = [asyncio.create_task(pacer.acquire()) for _ in range(3)]
        await clock.sleep(4)
        assert [task.done() for task in tasks] == [True, False, False]
        tasks[0].result().settle()
        await clock.sleep(1)
        assert all(task.done() for task in tasks)
        assert tasks[1].result().cause == "pause"

    run_simulated(main)


def test_an_unsent_probe_makes_room_for_another() -> None:
    """A refund is no response; a probe without a response expires."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        pacer.throttled(pacer.try_acquire(), Refusal(3.0))
        tasks = [asyncio.create_task(pacer.acquire()) for _ in range(3)]
        await clock.sleep(3.01)
        assert tasks[0].done()
        await clock.sleep(0.5)
        tasks[0].result().refund()
        await clock.sleep(0.5)
        assert [task.done() for task in tasks] == [True, True, False]
        await clock.sleep(3.1)
        assert tasks[2].done()

    run_simulated(main)


def test_a_deadline_before_the_end_of_a_pause_fails_at_once() -> None:
    """For new requests and for those already waiting."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        sent = pacer.try_acquire()
        drain(pacer)
        waiting = asyncio.create_task(pacer.acquire(deadline=Deadline.after(30, clock.now)))
        patient = asyncio.create_task(pacer.acquire())
        await asyncio.sleep(0)
        pacer.throttled(sent, Refusal(90))
        with pytest.raises(DeadlineExceeded) as caught:
            await waiting
        assert caught.value.retry_after == pytest.approx(90)
        with pytest.raises(DeadlineExceeded, match="90"):
            await pacer.acquire(deadline=Deadline.after(30, clock.now))
        assert clock.elapsed == 0
        assert 90 <= (await patient).waited <= 91

    run_simulated(main)


def test_a_refused_request_costs_no_tokens() -> None:
    """It still costs a request, and its lease has ended."""
    pacer = limiter(SimulatedClock(), tpm=6_000)
    lease = pacer.try_acquire(100)
    pacer.throttled(lease, Refusal(0.1, limits=server_limits(requests=RateLimit(remaining=0))))
    assert levels(pacer)[1] == pytest.approx(450)
    pacer.throttled(lease, Refusal(50))
    assert pacer.pause_left == pytest.approx(0.1)


# Headers


def test_a_limit_is_learned_from_headers() -> None:
    """The lower of the learned and the configured limit applies."""
    for rpm, rate in ((None, 2.0), (600, 2.0), (60, 1.0)):
        pacer = limiter(SimulatedClock(), rpm=rpm)
        lease = pacer.try_acquire()
        assert lease is not None
        limits = server_limits(requests=RateLimit(limit=120, remaining=100))
        assert pacer.observe(limits, lease) is (rpm != 60)
        assert pacer.rates[0] == rate
        assert pacer.observe(limits, lease) is False


def test_remaining_lowers_the_level_less_requests_in_flight() -> None:
    """Requests sent after the answered one are not in its remaining; what flowed in since is added."""
    clock = SimulatedClock()
    pacer = limiter(clock)
    first = pacer.try_acquire()
    clock.advance(0.1)
    assert pacer.try_acquire() is not None
    assert first is not None
    pacer.observe(server_limits(requests=RateLimit(limit=600, remaining=5)), first)
    # 5 remain, 1 flowed in, 1 is in flight, and a tenth of a burst is left to the server.
    assert levels(pacer)[0] <= 4.0 + 1e-6


def test_older_responses_are_ignored() -> None:
    """By the order in which their requests were sent."""
    pacer = limiter(SimulatedClock())
    first, second = pacer.try_acquire(), pacer.try_acquire()
    assert first is not None
    assert second is not None
    pacer.observe(server_limits(requests=RateLimit(limit=300, remaining=3)), second)
    assert pacer.observe(server_limits(requests=RateLimit(limit=60, remaining=0)), first) is False
    assert pacer.rates[0] <= 5.0
    assert pacer.rates[0] > 1.0


@pytest.mark.row("H16")
@pytest.mark.parametrize(
    "limit",
    [
        RateLimit(limit=-1, remaining=-1, reset_s=-1),
        RateLimit(limit=math.nan, remaining=math.nan, reset_s=math.nan),
        RateLimit(limit=1e30, remaining=1e30, reset_s=1e30),
        RateLimit(limit=600, window_s=0),
        RateLimit(limit=1, remaining=599),
        RateLimit(),
    ],
)
def test_invalid_headers_change_nothing(limit: RateLimit) -> None:
    """No stall, no exception."""
    pacer = limiter(SimulatedClock(), tpm=60_000)
    lease = pacer.try_acquire(10)
    assert lease is not None
    pacer.observe(server_limits(requests=limit), lease)
    assert pacer.rates[0] == 10
    assert pacer.try_acquire(10) is not None


@pytest.mark.row("H16")
def test_a_limit_near_zero_applies_from_the_third_response() -> None:
    """Then the next request may still be sent when the server's reset time is over."""
    clock = SimulatedClock()
    pacer = limiter(clock, rpm=None, tpm=60_000)
    for expected in (1_000, 1_000, 1 / 60):
        lease = pacer.try_acquire(100)
        assert lease is not None
        pacer.observe(server_limits(tokens=RateLimit(limit=1, remaining=5_000, reset_s=20)), lease)
        assert pacer.rates[1] == pytest.approx(expected)

    async def main(clock: SimulatedClock) -> None:
        drain(pacer, 1)
        assert (await pacer.acquire(100)).waited <= 60

    run_simulated(main, clock=clock)


# Start, loops, threads


def test_two_requests_are_sent_before_the_first_response() -> None:
    """Then one more for each response, and twice as many each second."""
    clock = SimulatedClock()
    pacer = RateLimiter(clock=clock)
    first, second = pacer.try_acquire(), pacer.try_acquire()
    assert first is not None
    assert second is not None
    assert pacer.try_acquire() is None
    first.settle()
    assert drain(pacer) == 2
    clock.advance(1)
    assert drain(pacer) == 3
    for _ in range(70):
        second.open, second.accepted = True, False
        second.settle()
    assert drain_up_to(pacer, 500) == 500


def test_a_streamed_response_counts_when_it_begins() -> None:
    """Its end does not count again, neither for the slow start nor for a probe."""
    clock = SimulatedClock()
    pacer = RateLimiter(clock=clock)
    first, second = pacer.try_acquire(), pacer.try_acquire()
    assert first is not None
    assert second is not None
    first.accept()
    first.accept()
    assert drain(pacer) == 2
    first.settle(10)
    assert drain(pacer) == 0
    second.accept()
    assert drain(pacer) == 2
    second.throttled(Refusal(3.0))
    assert pacer.try_acquire() is None


def test_the_beginning_of_a_probes_response_ends_the_pause() -> None:
    """The others need not wait for its end."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        pacer.throttled(pacer.try_acquire(), Refusal(3.0))
        tasks = [asyncio.create_task(pacer.acquire()) for _ in range(3)]
        await clock.sleep(4)
        assert [task.done() for task in tasks] == [True, False, False]
        tasks[0].result().accept()
        await clock.sleep(1)
        assert all(task.done() for task in tasks)

    run_simulated(main)


def test_a_streamed_response_is_settled_at_its_end() -> None:
    clock = SimulatedClock()
    pacer = limiter(clock, rpm=None, tpm=6_000)
    lease = pacer.try_acquire(400)
    assert lease is not None
    lease.accept()
    assert lease.open
    assert drain(pacer, 50) == 1
    lease.settle(100)
    assert drain(pacer, 50) == 6


def drain_up_to(pacer: RateLimiter, count: int) -> int:
    return sum(pacer.try_acquire() is not None for _ in range(count))


@pytest.mark.row("C08")
def test_two_loops_share_one_quota_and_one_queue() -> None:
    """The waiters of one loop do not depend on the other loop, even when that is closed."""
    clock = SimulatedClock()
    pacer = limiter(clock)
    drain(pacer)
    closed_loop, here = SimulatedLoop(clock), SimulatedLoop(clock)
    lost = closed_loop.create_task(pacer.acquire())
    closed_loop.run_until_complete(asyncio.sleep(0))
    closed_loop.close()

    async def main() -> float:
        return (await pacer.acquire()).waited

    try:
        assert here.run_until_complete(main()) <= 0.3
    finally:
        here.close()
    assert pacer.waiting == 0
    lost._log_destroy_pending = False  # type: ignore[attr-defined]


def test_threads_get_each_lease_once() -> None:
    """The mutex holds."""
    pacer = limiter(SimulatedClock(), rpm=60_000)
    taken: list[int] = []

    def work() -> None:
        taken.append(drain(pacer))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 900


@pytest.mark.row("C10")
def test_a_suspended_machine_gets_one_burst() -> None:
    """A jump of the clock does not accumulate leases, and the wall clock is not used."""
    clock = SimulatedClock()
    pacer = limiter(clock)
    drain(pacer)
    clock.advance(86_400)
    clock.set_wall(0)
    assert drain(pacer) == 9


def test_reprs_show_the_state() -> None:
    pacer = limiter(SimulatedClock())
    lease = pacer.try_acquire(5)
    assert "waiting=0" in repr(pacer)
    assert repr(lease) == "Lease(tokens=5, waited=0.000, open=True)"


def test_headers_are_read_fifty_times_a_second() -> None:
    """Those of a successful response right after another are not worth parsing."""

    async def main(clock: SimulatedClock) -> None:
        limiter = RateLimiter(clock=clock)
        leases = [await limiter.acquire() for _ in range(2)]
        assert leases[0].wants_headers
        leases[0].observe(RateLimits())
        assert not leases[1].wants_headers
        await clock.sleep(0.021)
        assert leases[1].wants_headers

    run_simulated(main)


# Errors and representations


def test_errors_explain_the_refusal() -> None:
    """In words, with numbers and a phase."""

    async def main(clock: SimulatedClock) -> None:
        for limits, name in (({"rpm": -1}, "rpm"), ({"rpm": None, "tpm": 0}, "tpm")):
            with pytest.raises(
                ConfigError, match=rf"^{name} must be a number above 0, or None for no limit, not"
            ):
                limiter(clock, **limits)  # type: ignore[arg-type] # that is what is refused
        assert limiter(clock, rpm=0.5).rates[0] == pytest.approx(0.5 / 60)
        pacer = limiter(clock, rpm=None, tpm=6_000)
        with pytest.raises(
            CostNeverFits, match=r"about 7000 tokens.*a minute; raise tpm, or send less at once"
        ):
            await pacer.acquire(7_000)
        with pytest.raises(ValueError, match="finite number, 0 or more, not nan"):
            await pacer.acquire(math.nan)
        sent = pacer.try_acquire(45)
        drain(pacer, 45)
        with pytest.raises(DeadlineExceeded) as late:
            await pacer.acquire(450, deadline=Deadline.after(0.1, clock.now))
        assert late.value.message == "the deadline passed while waiting for the rate limit"
        assert (late.value.phase, late.value.retry_after) == ("limiter", None)
        pacer.throttled(sent, Refusal(50))
        with pytest.raises(DeadlineExceeded) as paused:
            await pacer.acquire(1, deadline=Deadline.after(5, clock.now))
        assert (paused.value.phase, paused.value.retry_after) == ("limiter", 50)
        with pytest.raises(
            RateLimited, match=r"lasts 50 s more, longer than llmopt waits; nothing was sent"
        ) as long:
            await pacer.acquire(1, max_pause=20)
        assert (long.value.retry_after, long.value.sent) == (50, "no")

    run_simulated(main)


def test_the_first_request_after_a_pause_is_sent_when_the_server_said() -> None:
    """Whatever the buckets hold; the requests behind it wait for their tokens."""

    async def main(clock: SimulatedClock) -> None:
        slow = RateLimiter(clock=clock, rpm=100, tpm=100_000)
        slow.throttled(slow.try_acquire(50), Refusal(2.0))
        leases = [asyncio.create_task(slow.acquire(50)) for _ in range(2)]
        await clock.sleep(2.0001)
        assert leases[0].done()
        leases[0].result().settle(50)
        assert not leases[1].done()
        await clock.sleep(5)
        assert leases[1].done()

    run_simulated(main)


def test_a_deadline_before_the_rate_allows_the_request_fails_at_once() -> None:
    """The error names the limit and the wait."""

    async def main(clock: SimulatedClock) -> None:
        slow = RateLimiter(clock=clock, rpm=1, initial_window=0)
        slow.try_acquire()
        with pytest.raises(DeadlineExceeded, match="1 requests a minute") as caught:
            await slow.acquire(deadline=Deadline.after(3, clock.now))
        assert clock.elapsed == 0
        assert caught.value.retry_after == pytest.approx(60, rel=0.2)

    run_simulated(main)


@pytest.mark.parametrize("retry_after", [99_999_999_999.0, 90_000.0])
def test_an_absurd_retry_after_is_reported_but_soon_retried(retry_after: float) -> None:
    """The next caller sends a request within about a minute."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        pacer.throttled(pacer.try_acquire(), Refusal(retry_after))
        assert pacer.pause_left == pytest.approx(60)

    run_simulated(main)


def test_only_a_pause_above_the_maximum_wait_fails() -> None:
    """A pause of exactly that length is waited for."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        pacer.throttled(pacer.try_acquire(), Refusal(5))
        lease = await pacer.acquire(max_pause=5, deadline=Deadline.after(6, clock.now))
        assert 5 <= lease.waited < 5.5

    run_simulated(main)


@pytest.mark.parametrize(("limit", "reset"), [(0.001, None), (0.5, None), (1.0, 1.0)])
def test_invalid_limits_do_not_stall_requests_for_ever(limit: float, reset: float | None) -> None:
    """Less than one a window is no limit, and with a reset of a second no request waits for a minute."""
    headers = {"x-ratelimit-limit-requests": str(limit), "x-ratelimit-remaining-requests": "0"}
    if reset is not None:
        headers["x-ratelimit-reset-requests"] = f"{reset:g}s"

    async def main(clock: SimulatedClock) -> None:
        pacer = RateLimiter(clock=clock)
        for _ in range(5):
            with await pacer.acquire() as lease:
                await clock.sleep(0.05)
                lease.settle()
                lease.observe(parse_rate_limits(headers, clock.wall()))
        assert clock.elapsed < 60

    run_simulated(main)


def test_waiters_fail_when_a_pause_begins_that_exceeds_their_maximum_wait() -> None:
    """Waiters with a longer maximum wait stay."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        sent = pacer.try_acquire()
        drain(pacer)
        hasty = asyncio.create_task(pacer.acquire(max_pause=10))
        patient = asyncio.create_task(pacer.acquire(max_pause=100))
        await asyncio.sleep(0)
        pacer.throttled(sent, Refusal(20))
        with pytest.raises(RateLimited):
            await hasty
        assert clock.elapsed == 0
        assert (await patient).waited >= 20

    run_simulated(main)


def test_a_second_refusal_of_one_lease_is_ignored() -> None:
    pacer = limiter(SimulatedClock())
    lease = pacer.try_acquire()
    assert lease is not None
    lease.settle()
    assert not lease.open
    assert pacer.throttled(lease, Refusal(5)) is False
    assert pacer.pause_left == 0
    lease = pacer.try_acquire()
    assert lease is not None
    lease.refund()
    assert not lease.open
    level = levels(pacer)[0]
    lease.refund()
    assert levels(pacer)[0] == level
    lease = pacer.try_acquire()
    assert lease is not None
    lease.throttled(Refusal(1.0, limits=server_limits(requests=RateLimit(remaining=0))))
    assert not lease.open


def test_tokens_default_to_zero() -> None:
    """A list of models costs no tokens."""
    pacer = limiter(SimulatedClock(), rpm=None, tpm=60)
    assert [pacer.try_acquire() is not None for _ in range(100)] == [True] * 100

    async def main(clock: SimulatedClock) -> None:
        assert (await limiter(clock, rpm=None, tpm=60).acquire()).tokens == 0

    run_simulated(main)


def test_refused_tokens_are_charged_only_if_counted() -> None:
    """By default the server does not count them."""
    pacer = limiter(SimulatedClock(), rpm=None, tpm=6_000)
    pacer.throttled(pacer.try_acquire(100), Refusal(0.1, limits=server_limits(tokens=RateLimit(remaining=0))))
    assert pacer._quota.tokens.refused_total == 100


def test_an_expired_waiter_at_the_front_does_not_stop_the_queue() -> None:
    """The next waiter is granted in the same moment."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock, rpm=None, tpm=6_000)
        drain(pacer, 45)
        late = asyncio.create_task(pacer.acquire(400, deadline=Deadline.after(1, clock.now)))
        await asyncio.sleep(0)
        next_one = asyncio.create_task(pacer.acquire(50))
        await asyncio.sleep(0)
        clock.advance(2)  # the loop was blocked: the deadline and the room are seen in the same tick
        with pytest.raises(DeadlineExceeded, match="while waiting"):
            await late
        assert (await next_one).waited == pytest.approx(2)

    run_simulated(main)


def test_capacity_for_one_more_request() -> None:
    """There is some until the burst is spent, and again a tenth of a second later; not while others wait."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        for _ in range(9):
            assert pacer.has_capacity
            assert pacer.try_acquire() is not None
        assert not pacer.has_capacity
        await clock.sleep(0.1)
        assert pacer.has_capacity
        tokens = limiter(clock, rpm=None, tpm=6_000)
        huge = asyncio.create_task(tokens.acquire(3_000))
        await asyncio.sleep(0)
        assert tokens.waiting == 1
        assert not tokens.has_capacity
        huge.cancel()

    run_simulated(main)


class CountingClock(SimulatedClock):
    """It remembers its timers."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: list[asyncio.TimerHandle] = []

    def call_later(self, *args: Any) -> Any:
        timer = asyncio.get_running_loop().call_later(*args)
        self.timers.append(timer)
        return timer

    @property
    def pending(self) -> int:
        """Timers that will still fire."""
        return sum(not timer.cancelled() and timer.when() > self.now() for timer in self.timers)


def test_no_timer_is_left_when_nothing_waits() -> None:
    """A waiter's deadline of an hour ends with its wait."""

    async def main(clock: Any) -> None:
        pacer = limiter(clock)
        drain(pacer)
        await pacer.acquire(deadline=Deadline.after(3_600, clock.now))
        cancelled = asyncio.create_task(pacer.acquire(deadline=Deadline.after(3_600, clock.now)))
        await asyncio.sleep(0)
        assert clock.pending == 2
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert clock.pending == 0

    run_simulated(main, clock=CountingClock())


def test_a_late_loop_grants_nothing_after_the_deadline() -> None:
    """The timer for the next request fires before that of the deadline, but both are overdue by then."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        drain(pacer)
        late = asyncio.create_task(pacer.acquire(deadline=Deadline.after(0.15, clock.now)))
        await asyncio.sleep(0)
        clock.advance(1.0)
        with pytest.raises(DeadlineExceeded) as raised:
            await late
        assert raised.value.retry_after is None
        assert drain(pacer) == 9

    run_simulated(main)
