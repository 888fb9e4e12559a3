"""The rate limiter: order of requests, leases, refusals and headers."""

from __future__ import annotations

import asyncio
import math
import threading

import pytest

from llmopt.errors import ConfigError, CostNeverFits, DeadlineExceeded, QueueFull, RateLimited
from llmopt.policies.clock import Deadline
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.policies.retry_after import parse_rate_limits
from llmopt.testing.clock import SimulatedClock, SimulatedLoop, run_simulated
from llmopt.values.calls import RateLimit, RateLimits


def limiter(
    clock: SimulatedClock, rpm: float | None = 600, tpm: float | None = None, **more: object
) -> RateLimiter:
    return RateLimiter(clock=clock, rpm=rpm, tpm=tpm, **{"initial_window": 0, **more})  # type: ignore[arg-type]


def levels(of: RateLimiter) -> tuple[float, float]:
    """Requests and tokens that may go at once; negative after an underestimate."""
    return of._quota.requests.level, of._quota.tokens.level


def drain(pacer: RateLimiter, tokens: float = 0) -> int:
    count = 0
    while pacer.try_acquire(tokens) is not None:
        count += 1
    return count


def told(*, requests: RateLimit | None = None, tokens: RateLimit | None = None) -> RateLimits:
    return RateLimits(requests=requests, tokens=tokens)


def test_a_burst_is_nine_tenths_of_a_second_of_requests() -> None:
    """And comes back in that time, never more of it."""
    clock = SimulatedClock()
    pacer = limiter(clock)
    assert drain(pacer) == 9
    clock.advance(0.3)
    assert drain(pacer) == 3
    clock.advance(1_000)
    assert drain(pacer) == 9


def test_tokens_hold_five_seconds() -> None:
    """Nine tenths of them."""
    clock = SimulatedClock()
    pacer = limiter(clock, rpm=None, tpm=6_000)
    assert drain(pacer, 45) == 10
    clock.advance(1)
    assert drain(pacer, 10) == 10


def test_without_any_limit_all_go() -> None:
    """Nothing is known, nothing is held back."""
    pacer = limiter(SimulatedClock(), rpm=None)
    assert all(pacer.try_acquire(1e6) for _ in range(1_000))
    assert pacer.rates == (math.inf, math.inf)


@pytest.mark.parametrize("limits", [{"rpm": 0}, {"tpm": -1}, {"rpm": math.nan}, {"tpm": math.inf}])
def test_a_limit_is_a_number_above_zero(limits: dict[str, float]) -> None:
    """A slip in the configuration is told at once."""
    with pytest.raises(ConfigError, match="above 0"):
        limiter(SimulatedClock(), **{"rpm": None, **limits})


def test_first_come_first_served() -> None:
    """Each waits its turn, and knows how long and for what."""

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
def test_a_huge_request_is_not_passed_by_small_ones() -> None:
    """It saves up for what is more than a burst, while those behind it wait."""

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


def test_what_is_saved_up_for_a_huge_request_goes_when_it_goes() -> None:
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


def test_more_than_a_minute_allows_never_fits() -> None:
    """That is told at once; a whole minute's worth does fit."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock, rpm=None, tpm=6_000)
        with pytest.raises(CostNeverFits, match="tpm"):
            await pacer.acquire(6_001)
        assert (await pacer.acquire(6_000)).waited == pytest.approx(55.5)

    run_simulated(main)


@pytest.mark.parametrize("tokens", [math.nan, math.inf])
def test_nonsense_tokens(tokens: float) -> None:
    """They would wait for ever."""

    async def main(clock: SimulatedClock) -> None:
        with pytest.raises((ValueError, CostNeverFits)):
            await limiter(clock, tpm=60).acquire(tokens)

    run_simulated(main)


def test_the_line_is_bounded() -> None:
    """By heads and by tokens."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock, tpm=6_000, max_waiting=3, max_waiting_tokens=100)
        drain(pacer, 45)
        waiting = [asyncio.create_task(pacer.acquire(40)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await pacer.acquire(21)
        waiting.append(asyncio.create_task(pacer.acquire(20)))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await pacer.acquire(0)
        await asyncio.gather(*waiting)
        assert pacer.waiting == 0

    run_simulated(main)


def test_a_deadline_ends_the_wait_without_charge() -> None:
    """And only that one's."""

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
def test_a_grant_to_a_cancelled_waiter_goes_on_to_the_next() -> None:
    """Granted and not yet delivered is given back."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        leases = [pacer.try_acquire() for _ in range(9)]
        first = asyncio.create_task(pacer.acquire())
        second = asyncio.create_task(pacer.acquire())
        await asyncio.sleep(0)
        assert leases[0] is not None
        leases[0].refund()  # grants the first
        first.cancel()  # before it runs
        await asyncio.gather(first, return_exceptions=True)
        assert first.cancelled()
        assert (await second).waited == 0
        assert clock.elapsed == 0
        assert levels(pacer)[0] == pytest.approx(0)

    run_simulated(main)


def test_a_thousand_refusals_in_a_row_and_a_day_without_an_answer() -> None:
    """Neither leaves the floats."""

    async def main(clock: SimulatedClock) -> None:
        limiter = RateLimiter(clock=clock)
        (await limiter.acquire()).refund()
        held = await limiter.acquire()
        await clock.sleep(86_400)
        (await limiter.acquire()).settle()
        held.settle()
        for _ in range(1_100):
            (await limiter.acquire()).throttled()
        assert limiter.pause_left == pytest.approx(30)

    run_simulated(main)


@pytest.mark.row("C05")
def test_ten_thousand_cancelled_leave_nothing() -> None:
    """The line is empty, the level intact."""

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


def test_leaving_the_block_settles_to_the_estimate() -> None:
    """And a second word of a lease has no effect."""
    clock = SimulatedClock()
    pacer = limiter(clock, rpm=None, tpm=6_000)
    lease = pacer.try_acquire(100)
    assert lease is not None
    with lease:
        pass
    lease.settle(0)
    lease.refund()
    assert levels(pacer)[1] == pytest.approx(350)


def test_settling_takes_or_gives_the_difference() -> None:
    """Debt is bounded by a burst (L03)."""
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
def test_a_nonsensical_cost_counts_as_estimated(tokens: float) -> None:
    """Usage is what a server says."""
    pacer = limiter(SimulatedClock(), rpm=None, tpm=6_000)
    lease = pacer.try_acquire(100)
    assert lease is not None
    lease.settle(tokens)
    assert levels(pacer)[1] == pytest.approx(350)


def test_a_refund_gives_all_back_and_wakes_the_next() -> None:
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
def test_a_refusal_pauses_everybody() -> None:
    """For as long as the server asks."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        lease = pacer.try_acquire()
        pacer.throttled(1.5, lease)
        assert pacer.pause_left == 1.5
        later = await pacer.acquire()
        assert 1.5 <= later.waited <= 2.5
        assert later.cause == "pause"

    run_simulated(main)


@pytest.mark.row("H06")
def test_without_a_hint_the_pause_doubles() -> None:
    """Half a second, one, two; a success starts over."""
    clock = SimulatedClock()
    pacer = limiter(clock)
    found = []
    for _ in range(4):
        lease = pacer.try_acquire()
        assert lease is not None
        pacer.throttled(None, lease)
        found.append(pacer.pause_left)
        clock.advance(pacer.pause_left)
        clock.advance(5)
    assert found == [0.5, 1.0, 2.0, 4.0]
    lease = pacer.try_acquire()
    assert lease is not None
    lease.settle()
    lease = pacer.try_acquire()
    pacer.throttled(None, lease)
    assert pacer.pause_left == 0.5


def test_refusals_of_what_was_under_way_count_once() -> None:
    """One overload shows in many answers."""
    clock = SimulatedClock()
    pacer = limiter(clock)
    leases = [pacer.try_acquire() for _ in range(5)]
    clock.advance(0.1)
    for lease in leases:
        pacer.throttled(None, lease)
    assert pacer.pause_left == 0.5
    assert pacer.rates[0] >= 3


def test_one_probe_after_a_long_pause() -> None:
    """The others wait for what becomes of it."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        pacer.throttled(3.0, pacer.try_acquire())
        tasks = [asyncio.create_task(pacer.acquire()) for _ in range(3)]
        await clock.sleep(4)
        assert [task.done() for task in tasks] == [True, False, False]
        tasks[0].result().settle()
        await clock.sleep(1)
        assert all(task.done() for task in tasks)
        assert tasks[1].result().cause == "pause"

    run_simulated(main)


def test_a_probe_that_is_not_sent_makes_room_for_another() -> None:
    """A refund is no answer; neither is a probe that never comes back."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        pacer.throttled(3.0, pacer.try_acquire())
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
    """Whoever comes, and whoever waits already."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        drain(pacer)
        waiting = asyncio.create_task(pacer.acquire(deadline=Deadline.after(30, clock.now)))
        patient = asyncio.create_task(pacer.acquire())
        await asyncio.sleep(0)
        pacer.throttled(90)
        with pytest.raises(DeadlineExceeded) as caught:
            await waiting
        assert caught.value.retry_after == pytest.approx(90)
        with pytest.raises(DeadlineExceeded, match="90"):
            await pacer.acquire(deadline=Deadline.after(30, clock.now))
        assert clock.elapsed == 0
        assert 90 <= (await patient).waited <= 91

    run_simulated(main)


def test_a_refused_request_costs_no_tokens_unless_they_count() -> None:
    """The request itself does."""
    for counted, left in ((False, 450), (True, 350)):
        pacer = limiter(SimulatedClock(), tpm=6_000)
        lease = pacer.try_acquire(100)
        limits = told(requests=RateLimit(remaining=0))
        pacer.throttled(0.1, lease, limits=limits, tokens_counted=counted)
        assert levels(pacer)[1] == pytest.approx(left)
        pacer.throttled(50, lease)
        assert pacer.pause_left == pytest.approx(0.1)


# Headers


def test_a_limit_is_learned_from_headers() -> None:
    """Where none is configured it is taken; where one is, the lower counts."""
    for rpm, rate in ((None, 2.0), (600, 2.0), (60, 1.0)):
        pacer = limiter(SimulatedClock(), rpm=rpm)
        lease = pacer.try_acquire()
        assert lease is not None
        limits = told(requests=RateLimit(limit=120, remaining=100))
        assert pacer.observe(limits, lease) is (rpm != 60)
        assert pacer.rates[0] == rate
        assert pacer.observe(limits, lease) is False


def test_the_rest_lowers_the_level_by_what_is_under_way() -> None:
    """What was sent after the answered request is not in its rest; what flowed in since is added."""
    clock = SimulatedClock()
    pacer = limiter(clock)
    first = pacer.try_acquire()
    clock.advance(0.1)
    assert pacer.try_acquire() is not None
    assert first is not None
    pacer.observe(told(requests=RateLimit(limit=600, remaining=5)), first)
    # 5 left, 1 flowed in, 1 is under way, and a tenth of a burst is left to the server.
    assert levels(pacer)[0] <= 4.0 + 1e-6


def test_older_answers_are_ignored() -> None:
    """By the order in which their requests were sent."""
    pacer = limiter(SimulatedClock())
    first, second = pacer.try_acquire(), pacer.try_acquire()
    assert first is not None
    assert second is not None
    pacer.observe(told(requests=RateLimit(limit=300, remaining=3)), second)
    assert pacer.observe(told(requests=RateLimit(limit=60, remaining=0)), first) is False
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
def test_nonsense_changes_nothing(limit: RateLimit) -> None:
    """No stall, no exception."""
    pacer = limiter(SimulatedClock(), tpm=60_000)
    lease = pacer.try_acquire(10)
    assert lease is not None
    pacer.observe(told(requests=limit), lease)
    assert pacer.rates[0] == 10
    assert pacer.try_acquire(10) is not None


@pytest.mark.row("H16")
def test_a_limit_that_falls_to_almost_nothing_is_believed_the_third_time() -> None:
    """And then the next may still try when the server says it is whole again."""
    clock = SimulatedClock()
    pacer = limiter(clock, rpm=None, tpm=60_000)
    for expected in (1_000, 1_000, 1 / 60):
        lease = pacer.try_acquire(100)
        assert lease is not None
        pacer.observe(told(tokens=RateLimit(limit=1, remaining=5_000, reset_s=20)), lease)
        assert pacer.rates[1] == pytest.approx(expected)

    async def main(clock: SimulatedClock) -> None:
        drain(pacer, 1)
        assert (await pacer.acquire(100)).waited <= 60

    run_simulated(main, clock=clock)


# Start, loops, threads


def test_two_requests_go_before_the_first_answer() -> None:
    """Then one more for each answer, and twice as many each second."""
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


def test_a_long_answer_counts_when_it_begins() -> None:
    """Once: neither for the start nor for a probe does its end count again, however it comes."""
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
    second.throttled(3.0)
    assert pacer.try_acquire() is None


def test_a_probes_answer_that_has_begun_is_enough() -> None:
    """The others need not wait for its end."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        pacer.throttled(3.0, pacer.try_acquire())
        tasks = [asyncio.create_task(pacer.acquire()) for _ in range(3)]
        await clock.sleep(4)
        assert [task.done() for task in tasks] == [True, False, False]
        tasks[0].result().accept()
        await clock.sleep(1)
        assert all(task.done() for task in tasks)

    run_simulated(main)


def test_what_a_long_answer_really_cost_is_settled_at_its_end() -> None:
    """Though it was let through long before."""
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
def test_two_loops_share_one_quota_and_one_line() -> None:
    """One loop's waiters do not depend on the other, even when it is gone."""
    clock = SimulatedClock()
    pacer = limiter(clock)
    drain(pacer)
    gone, here = SimulatedLoop(clock), SimulatedLoop(clock)
    lost = gone.create_task(pacer.acquire())
    gone.run_until_complete(asyncio.sleep(0))
    gone.close()

    async def main() -> float:
        return (await pacer.acquire()).waited

    try:
        assert here.run_until_complete(main()) <= 0.3
    finally:
        here.close()
    assert pacer.waiting == 0
    lost._log_destroy_pending = False  # type: ignore[attr-defined]


def test_threads_take_each_lease_once() -> None:
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
    """Time that leaps does not pile up leases, and the wall clock plays no part."""
    clock = SimulatedClock()
    pacer = limiter(clock)
    drain(pacer)
    clock.advance(86_400)
    clock.set_wall(0)
    assert drain(pacer) == 9


def test_reprs_tell_the_state() -> None:
    """For whoever debugs."""
    pacer = limiter(SimulatedClock())
    lease = pacer.try_acquire(5)
    assert "waiting=0" in repr(pacer)
    assert repr(lease) == "Lease(tokens=5, waited=0.000, open=True)"


def test_headers_are_heard_fifty_times_a_second() -> None:
    """Those of a good answer right after another's are not worth reading."""

    async def main(clock: SimulatedClock) -> None:
        limiter = RateLimiter(clock=clock)
        leases = [await limiter.acquire() for _ in range(2)]
        assert leases[0].wants_headers
        leases[0].observe(RateLimits())
        assert not leases[1].wants_headers
        await clock.sleep(0.021)
        assert leases[1].wants_headers

    run_simulated(main)


# What is said, and to whom


def test_errors_say_what_the_matter_is() -> None:
    """In words, with numbers and a phase."""

    async def main(clock: SimulatedClock) -> None:
        for limits, name in (({"rpm": -1}, "rpm"), ({"rpm": None, "tpm": 0}, "tpm")):
            with pytest.raises(
                ConfigError, match=rf"^{name} must be a number above 0, or None for no limit, not"
            ):
                limiter(clock, **limits)  # type: ignore[arg-type] # that is what is refused
        assert limiter(clock, rpm=0.5).rates[0] == pytest.approx(0.5 / 60)
        pacer = limiter(clock, rpm=None, tpm=6_000, max_waiting=1)
        with pytest.raises(
            CostNeverFits, match=r"about 7000 tokens.*a minute; raise tpm, or send less at once"
        ):
            await pacer.acquire(7_000)
        with pytest.raises(ValueError, match="finite number, 0 or more, not nan"):
            await pacer.acquire(math.nan)
        drain(pacer, 45)
        waiting = asyncio.create_task(pacer.acquire(40))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match=r"^1 calls with about 40 tokens wait for the rate limit already"):
            await pacer.acquire(1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        with pytest.raises(DeadlineExceeded) as late:
            await pacer.acquire(450, deadline=Deadline.after(0.1, clock.now))
        assert late.value.message == "the deadline passed while waiting for the rate limit"
        assert (late.value.phase, late.value.retry_after) == ("limiter", None)
        pacer.throttled(50)
        with pytest.raises(DeadlineExceeded) as paused:
            await pacer.acquire(1, deadline=Deadline.after(5, clock.now))
        assert (paused.value.phase, paused.value.retry_after) == ("limiter", 50)
        with pytest.raises(
            RateLimited, match=r"lasts 50 s more, longer than llmopt waits; nothing was sent"
        ) as long:
            await pacer.acquire(1, max_pause=20)
        assert (long.value.retry_after, long.value.sent) == (50, "no")

    run_simulated(main)


def test_the_first_after_a_pause_goes_when_the_server_said() -> None:
    """Whatever the books hold; those behind it wait their time."""

    async def main(clock: SimulatedClock) -> None:
        slow = RateLimiter(clock=clock, rpm=100, tpm=100_000)
        slow.throttled(2.0, slow.try_acquire(50))
        leases = [asyncio.create_task(slow.acquire(50)) for _ in range(2)]
        await clock.sleep(2.0001)
        assert leases[0].done()
        leases[0].result().settle(50)
        assert not leases[1].done()
        await clock.sleep(5)
        assert leases[1].done()

    run_simulated(main)


def test_a_deadline_that_the_rate_can_never_keep_fails_at_once() -> None:
    """And names limit and wait."""

    async def main(clock: SimulatedClock) -> None:
        slow = RateLimiter(clock=clock, rpm=1, initial_window=0)
        slow.try_acquire()
        with pytest.raises(DeadlineExceeded, match="1 requests a minute") as caught:
            await slow.acquire(deadline=Deadline.after(3, clock.now))
        assert clock.elapsed == 0
        assert caught.value.retry_after == pytest.approx(60, rel=0.2)

    run_simulated(main)


@pytest.mark.parametrize("hint", [99_999_999_999.0, 90_000.0])
def test_an_absurd_hint_is_told_and_not_kept_to_for_long(hint: float) -> None:
    """The next caller asks again within a minute or so."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        pacer.throttled(hint, pacer.try_acquire())
        assert pacer.pause_left == pytest.approx(60)

    run_simulated(main)


def test_patience_is_for_a_pause_that_is_longer() -> None:
    """One of just that length is waited for."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        pacer.throttled(5, pacer.try_acquire())
        lease = await pacer.acquire(max_pause=5, deadline=Deadline.after(6, clock.now))
        assert 5 <= lease.waited < 5.5

    run_simulated(main)


@pytest.mark.parametrize(("told", "reset"), [(0.001, None), (0.5, None), (1.0, 1.0)])
def test_nonsense_of_limits_stalls_nobody_for_ever(told: float, reset: float | None) -> None:
    """Less than one a window is no limit; and what is whole again in a second is not waited for by the minute."""
    headers = {"x-ratelimit-limit-requests": str(told), "x-ratelimit-remaining-requests": "0"}
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


def test_who_waits_is_sent_away_when_a_pause_begins_that_is_too_long() -> None:
    """The patient stay."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock)
        drain(pacer)
        hasty = asyncio.create_task(pacer.acquire(max_pause=10))
        patient = asyncio.create_task(pacer.acquire(max_pause=100))
        await asyncio.sleep(0)
        pacer.throttled(20)
        with pytest.raises(RateLimited):
            await hasty
        assert clock.elapsed == 0
        assert (await patient).waited >= 20

    run_simulated(main)


def test_a_lease_that_has_ended_teaches_no_pause() -> None:
    """A second refusal of one request is none."""
    pacer = limiter(SimulatedClock())
    lease = pacer.try_acquire()
    assert lease is not None
    lease.settle()
    assert not lease.open
    assert pacer.throttled(5, lease) is False
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
    lease.throttled(1.0, limits=told(requests=RateLimit(remaining=0)))
    assert not lease.open


def test_tokens_default_to_none() -> None:
    """A list of models costs no tokens."""
    pacer = limiter(SimulatedClock(), rpm=None, tpm=60)
    assert [pacer.try_acquire() is not None for _ in range(100)] == [True] * 100

    async def main(clock: SimulatedClock) -> None:
        assert (await limiter(clock, rpm=None, tpm=60).acquire()).tokens == 0

    run_simulated(main)


def test_what_a_refusal_counts_its_tokens_for() -> None:
    """By default the server does not."""
    pacer = limiter(SimulatedClock(), rpm=None, tpm=6_000)
    pacer.throttled(0.1, pacer.try_acquire(100), limits=told(tokens=RateLimit(remaining=0)))
    assert pacer._quota.tokens.refused_total == 100


def test_an_expired_waiter_at_the_front_does_not_stop_the_line() -> None:
    """The next is granted in the same moment."""

    async def main(clock: SimulatedClock) -> None:
        pacer = limiter(clock, rpm=None, tpm=6_000)
        drain(pacer, 45)
        late = asyncio.create_task(pacer.acquire(400, deadline=Deadline.after(1, clock.now)))
        await asyncio.sleep(0)
        next_one = asyncio.create_task(pacer.acquire(50))
        await asyncio.sleep(0)
        clock.advance(2)  # the loop stood still: the deadline and the room come to light together
        with pytest.raises(DeadlineExceeded, match="while waiting"):
            await late
        assert (await next_one).waited == pytest.approx(2)

    run_simulated(main)
