"""The adaptive concurrency limit and its queue (docs/development/resilience.md, rows C03 and C05)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from llmopt import errors as e
from llmopt.policies.clock import Deadline
from llmopt.policies.concurrency_limit import ConcurrencyLimiter, LoadSignal, Slot, load_signal
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.scale import scaled


def limiter(clock: SimulatedClock | None = None, **bounds: Any) -> ConcurrencyLimiter:
    return ConcurrencyLimiter(clock=clock or SimulatedClock(), **bounds)


def take(concurrency: ConcurrencyLimiter, count: int) -> list[Slot]:
    slots = [concurrency.try_acquire() for _ in range(count)]
    assert all(slot is not None for slot in slots)
    return [slot for slot in slots if slot is not None]


@contextmanager
def held(slot: Slot) -> Iterator[Slot]:
    """Release the slot on every way out, as the engine does."""
    try:
        yield slot
    finally:
        slot.release()


# --- the limit ----------------------------------------------------------------------------------------------


def test_the_limit_starts_at_sixteen() -> None:
    concurrency = limiter()

    assert len(take(concurrency, 16)) == 16
    assert concurrency.try_acquire() is None
    assert repr(concurrency) == "ConcurrencyLimiter(limit=16, in_flight=16, waiting=0)"


@pytest.mark.parametrize(
    ("bounds", "limit"),
    [
        ({"initial": 16, "maximum": 10}, 10),
        ({"initial": 0}, 1),
        ({"initial": 3, "maximum": 0}, 1),
        ({"initial": 400}, 256),
    ],
)
def test_the_limit_starts_within_its_bounds(bounds: dict[str, Any], limit: int) -> None:
    """Never above the size of the connection pool."""
    assert limiter(**bounds).limit == limit


def test_success_adds_one_divided_by_the_limit() -> None:
    """As long as half of the limit is in flight."""
    concurrency = limiter(initial=4)
    for slot in take(concurrency, 4):
        slot.release("success")

    assert concurrency.limit == pytest.approx(4 + 1 / 4 + 1 / 4.25)


def test_an_unused_limit_does_not_grow() -> None:
    """Half of the limit must be in flight, this request included."""
    concurrency = limiter(initial=16)
    for slot in take(concurrency, 7):
        slot.release("success")
    assert concurrency.limit == 16.0

    first, *_ = take(concurrency, 8)
    first.release("success")
    assert concurrency.limit == 16.0625


def test_growth_stops_at_the_maximum() -> None:
    concurrency = limiter(initial=9, maximum=10)
    for _ in range(100):
        for slot in take(concurrency, int(concurrency.limit)):
            slot.release("success")

    assert concurrency.limit == 10


def test_overload_reduces_the_limit_by_a_quarter_once_a_second() -> None:
    """One overload shows in many responses."""
    clock = SimulatedClock()
    concurrency = limiter(clock, initial=16)
    slots = take(concurrency, 16)
    slots[0].release("overload")
    assert concurrency.limit == 12.0
    slots[1].release("overload")
    clock.advance(0.999)
    slots[2].release("overload")
    assert concurrency.limit == 12.0
    clock.advance(0.001)
    slots[3].release("overload")
    assert concurrency.limit == 9.0


def test_the_limit_keeps_its_minimum() -> None:
    """One request."""
    clock = SimulatedClock()
    concurrency = limiter(clock, initial=4)
    for _ in range(20):
        take(concurrency, 1)[0].release("overload")
        clock.advance(1)
    assert concurrency.limit == 1
    assert len(take(concurrency, 1)) == 1
    assert concurrency.try_acquire() is None


def test_neutral_results_change_nothing() -> None:
    """A 4xx, a 429, a cancellation."""
    concurrency = limiter(initial=2)
    for slot in take(concurrency, 2):
        slot.release("neutral")

    assert (concurrency.limit, concurrency.in_flight) == (2.0, 0)


def test_the_limit_is_rounded_down_to_whole_slots() -> None:
    """A limit of 2.5 admits two requests."""
    concurrency = limiter(initial=2.5)

    take(concurrency, 2)
    assert concurrency.try_acquire() is None


@pytest.mark.parametrize(
    ("error", "load"),
    [
        (None, "success"),
        (e.Overloaded("m"), "overload"),
        (e.AttemptTimeout("m"), "overload"),
        (e.ConnectFailed("m", cause="timeout"), "overload"),
        (e.ConnectFailed("m", cause="refused"), "neutral"),
        (e.RateLimited("m"), "neutral"),
        (e.ServerError("m"), "neutral"),
        (e.BadRequest("m"), "neutral"),
        (asyncio.CancelledError(), "neutral"),
    ],
)
def test_load_signal_of_each_outcome(error: BaseException | None, load: LoadSignal) -> None:
    """A 429 concerns the rate limiter, not this limit."""
    assert load_signal(error) == load


# --- slots --------------------------------------------------------------------------------------------------


def test_only_the_first_release_of_a_slot_counts() -> None:
    concurrency = limiter(initial=2)
    (slot,) = take(concurrency, 1)
    assert concurrency.in_flight == 1
    slot.release("success")
    slot.release("overload")
    slot.release()

    assert concurrency.in_flight == 0
    assert concurrency.limit == 2.5


# --- the queue ----------------------------------------------------------------------------------------------


def test_waiters_are_served_in_order() -> None:
    """First come, first served."""

    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=1)
        order: list[int] = []

        async def call(n: int) -> None:
            with held(await concurrency.acquire()):
                order.append(n)
                await asyncio.sleep(1)

        tasks = [asyncio.ensure_future(call(n)) for n in range(5)]
        await asyncio.sleep(0.5)
        assert concurrency.waiting == 4
        assert concurrency.try_acquire() is None
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4]
        assert clock.elapsed == 5.0
        assert (concurrency.in_flight, concurrency.waiting) == (0, 0)

    run_simulated(main)


def test_a_new_request_does_not_overtake_the_queue() -> None:
    """A slot that becomes free belongs to the first waiter."""

    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=1)
        (slot,) = take(concurrency, 1)
        waiter = asyncio.ensure_future(concurrency.acquire())
        await asyncio.sleep(0)
        slot.release()
        assert concurrency.in_flight == 1  # granted already, though the waiter has not run
        assert concurrency.try_acquire() is None
        (await waiter).release()
        assert concurrency.in_flight == 0

    run_simulated(main)


def test_a_growing_limit_admits_several_waiters() -> None:
    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=1)
        slots = take(concurrency, 1)
        waiters = [asyncio.ensure_future(concurrency.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        slots[0].release("success")  # 1 + 1/1 = 2
        await asyncio.sleep(0)
        assert [waiter.done() for waiter in waiters] == [True, True, False]
        waiters[2].cancel()

    run_simulated(main)


def test_a_falling_limit_admits_no_waiter() -> None:
    """Until enough requests have finished."""

    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=4)
        slots = take(concurrency, 4)
        waiter = asyncio.ensure_future(concurrency.acquire())
        await asyncio.sleep(0)
        slots[0].release("overload")  # limit 3, three in flight
        await asyncio.sleep(0)
        assert not waiter.done()
        slots[1].release()
        await asyncio.sleep(0)
        assert waiter.done()

    run_simulated(main)


def test_no_waiter_is_admitted_above_a_limit_that_fell() -> None:
    """Requests in flight must first fall below the new limit."""

    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=8)
        slots = take(concurrency, 8)
        slots.pop().release("overload")  # limit 6, seven in flight
        assert concurrency.try_acquire() is None
        waiter = asyncio.ensure_future(concurrency.acquire())
        clock.advance(1)
        slots.pop().release("overload")  # limit 4.5, six in flight
        slots.pop().release()
        assert (concurrency.in_flight, concurrency.waiting) == (5, 0)
        await asyncio.sleep(0)
        assert concurrency.waiting == 1
        slots.pop().release()
        assert concurrency.in_flight == 4
        slots.pop().release()
        (await waiter).release()
        assert concurrency.in_flight == 3

    run_simulated(main)


def test_a_cancelled_waiter_leaves_the_queue() -> None:
    """From its middle, without an effect on the others."""

    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=1)
        (slot,) = take(concurrency, 1)
        waiters = [asyncio.ensure_future(concurrency.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        waiters[1].cancel()
        await asyncio.sleep(0)
        assert concurrency.waiting == 2
        slot.release()
        (await waiters[0]).release()
        (await waiters[2]).release()
        assert waiters[1].cancelled()
        assert (concurrency.in_flight, concurrency.waiting) == (0, 0)

    run_simulated(main)


@pytest.mark.row("C03")
def test_a_grant_to_a_cancelled_waiter_passes_to_the_next() -> None:
    """Netflix's library lost the slot in this case (concurrency-limits PR #179)."""

    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=1)
        (slot,) = take(concurrency, 1)
        lost, next_one = (asyncio.ensure_future(concurrency.acquire()) for _ in "ab")
        await asyncio.sleep(0)
        slot.release()
        lost.cancel()
        (await next_one).release()
        assert lost.cancelled()
        assert (concurrency.in_flight, concurrency.limit) == (0, 1.0)

    run_simulated(main)


@pytest.mark.row("C03")
def test_a_waiter_being_cancelled_is_not_granted_a_slot() -> None:
    """Its task is cancelled but has not run yet."""

    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=1)
        (slot,) = take(concurrency, 1)
        cancelled, next_one = (asyncio.ensure_future(concurrency.acquire()) for _ in "ab")
        await asyncio.sleep(0)
        cancelled.cancel()
        slot.release()
        assert concurrency.in_flight == 1
        (await next_one).release()
        assert (concurrency.in_flight, concurrency.waiting) == (0, 0)

    run_simulated(main)


def test_the_deadline_ends_the_wait() -> None:
    """The error names the wait as the reason."""

    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=1)
        (slot,) = take(concurrency, 1)
        with pytest.raises(e.DeadlineExceeded, match="waiting for a free slot") as caught:
            await concurrency.acquire(Deadline.after(3, clock.now))
        assert caught.value.phase == "concurrency"
        assert clock.elapsed == pytest.approx(3)
        assert (concurrency.in_flight, concurrency.waiting) == (1, 0)
        slot.release()
        assert concurrency.in_flight == 0

    run_simulated(main)


def test_an_unused_deadline_leaves_no_timer() -> None:
    """The slot was granted in time, or at once, or without a deadline."""

    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=1)
        (await concurrency.acquire(Deadline.after(5, clock.now))).release()
        for left in (5, None):
            (slot,) = take(concurrency, 1)
            waiter = asyncio.ensure_future(concurrency.acquire(Deadline.after(left, clock.now)))
            await asyncio.sleep(0)
            slot.release()
            (await waiter).release()
        await asyncio.sleep(10)
        assert (concurrency.in_flight, concurrency.waiting) == (0, 0)

    run_simulated(main)


@pytest.mark.row("C03")
def test_a_grant_before_the_deadline_in_the_same_tick_stands() -> None:
    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=1)
        (slot,) = take(concurrency, 1)
        clock_call = clock.call_later(3, slot.release)  # due in the same tick, and first
        waiter = asyncio.ensure_future(concurrency.acquire(Deadline.after(3, clock.now)))
        await asyncio.sleep(3)
        await asyncio.sleep(0)
        clock_call.cancel()
        outcome = (await asyncio.gather(waiter, return_exceptions=True))[0]
        if isinstance(outcome, Slot):
            outcome.release()
        assert (concurrency.in_flight, concurrency.waiting) == (0, 0)

    run_simulated(main)


def test_an_expired_waiter_is_dropped_without_a_slot() -> None:
    """Its timer has not fired yet, because the loop was busy while the deadline passed."""

    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=1)
        (slot,) = take(concurrency, 1)
        late = asyncio.ensure_future(concurrency.acquire(Deadline.after(1, clock.now)))
        patient = asyncio.ensure_future(concurrency.acquire())
        await asyncio.sleep(0)
        clock.advance(2)
        slot.release()
        (await patient).release()
        with pytest.raises(e.DeadlineExceeded):
            await late
        assert (concurrency.in_flight, concurrency.waiting) == (0, 0)

    run_simulated(main)


@pytest.mark.row("C03")
def test_a_waiter_both_expired_and_cancelled_is_cancelled() -> None:
    """No slot is leaked, and no error goes unread."""

    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=1)
        (slot,) = take(concurrency, 1)
        waiter = asyncio.ensure_future(concurrency.acquire(Deadline.after(1, clock.now)))
        await asyncio.sleep(0)
        clock.advance(2)
        slot.release()
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert waiter.cancelled()
        assert (concurrency.in_flight, concurrency.waiting) == (0, 0)

    run_simulated(main)


def test_a_closed_coroutine_leaves_the_queue() -> None:
    """As when a loop shuts down during the wait."""

    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=1)
        (slot,) = take(concurrency, 1)
        waiting: Coroutine[Any, Any, Slot] = concurrency.acquire()
        waiting.send(None)
        assert concurrency.waiting == 1
        waiting.close()
        assert concurrency.waiting == 0
        slot.release()
        assert concurrency.in_flight == 0

    run_simulated(main)


@pytest.mark.row("C05")
def test_ten_thousand_cancelled_waiters_leave_an_empty_queue() -> None:
    """In the worst order for a search."""

    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=1)
        (slot,) = take(concurrency, 1)
        waiters = [asyncio.ensure_future(concurrency.acquire()) for _ in range(10_000)]
        await asyncio.sleep(0)
        assert concurrency.waiting == 10_000
        for waiter in reversed(waiters):
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        assert concurrency.waiting == 0
        slot.release()
        assert concurrency.in_flight == 0

    run_simulated(main)


# --- random schedules ---------------------------------------------------------------------------------------


def schedule(seed: int) -> None:
    """One random schedule: arrivals, cancellations, deadlines and results, in every order of the loop's ticks."""
    rng = random.Random(seed)

    async def main(clock: SimulatedClock) -> None:
        concurrency = limiter(clock, initial=rng.randint(1, 3), maximum=4)
        most = 0

        async def call() -> None:
            nonlocal most
            left = rng.choice([None, None, 0, 1, 2])
            with held(await concurrency.acquire(Deadline.after(left, clock.now))) as slot:
                most = max(most, concurrency.in_flight)
                for _ in range(rng.randint(0, 3)):
                    await asyncio.sleep(rng.choice([0, 0, 1]))
                slot.release(rng.choice(["success", "overload", "neutral"]))

        tasks: list[asyncio.Task[None]] = []
        for _ in range(rng.randint(3, 12)):
            action = rng.random()
            if action < 0.55 or not tasks:
                tasks.append(asyncio.ensure_future(call()))
            elif action < 0.85:
                rng.choice(tasks).cancel()
            else:
                await asyncio.sleep(rng.choice([0, 0, 1]))
        for _ in range(rng.randint(0, 2)):
            await asyncio.sleep(0)
            rng.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled():
                assert task.exception() is None or isinstance(task.exception(), e.DeadlineExceeded)
        assert most <= 4
        assert (concurrency.in_flight, concurrency.waiting) == (0, 0), seed
        # No slot was lost: the whole limit can be acquired again.
        take(concurrency, int(concurrency.limit))

    run_simulated(main)


@pytest.mark.row("C03")
@pytest.mark.parametrize("block", range(scaled(1, nightly=10)))
def test_no_slot_is_lost_in_random_schedules(block: int) -> None:
    """Every order of a grant, a cancellation and a deadline."""
    for seed in range(block * 1000, block * 1000 + 1000):
        schedule(seed)


if __name__ == "__main__":  # the long run: 100,000 schedules
    started = time.perf_counter()
    for long_seed in range(100_000):
        schedule(long_seed)
    print(f"100,000 schedules in {time.perf_counter() - started:.0f} s, no slot lost")
