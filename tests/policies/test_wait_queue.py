"""The wait queue of the rate limiter: order, event loops, timers."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any, cast

import pytest

from llmopt.errors import QueueFull
from llmopt.policies.quota import Lease
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.policies.wait_queue import Waiter, WaitQueue
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.calls import Priority


def lease() -> Lease:
    return Lease(cast("Any", None), 0.0, 0.0, 1, 1.0, 0.0)


def waiter(tokens: float = 1.0) -> Waiter:
    return Waiter(tokens, 5.0, None, math.inf)


def test_a_new_waiter_holds_its_request() -> None:
    """It has no outcome yet."""

    async def main(clock: SimulatedClock) -> None:
        it = Waiter(3.0, 5.0, None, 7.0, "bulk")
        assert it.priority == "bulk"
        assert (it.tokens, it.enqueued_at, it.deadline, it.max_pause) == (3.0, 5.0, None, 7.0)
        assert (it.cause, it.lease, it.deadline_timer) == ("", None, None)
        assert it.loop is asyncio.get_running_loop()

    run_simulated(main)


def test_waiters_keep_their_order() -> None:
    """A waiter leaves once."""

    async def main(clock: SimulatedClock) -> None:
        queue = WaitQueue(clock, lambda: None)
        assert (len(queue), queue.head_costs[0], queue.first()) == (0, 0.0, None)
        first, second, third = (waiter(tokens) for tokens in (1.0, 20.0, 300.0))
        for each in (first, second, third):
            queue.put(each)
        assert (len(queue), queue.head_costs[0]) == (3, 1.0)
        assert queue.all() == [first, second, third]
        assert queue.first() is first
        assert queue.remove(second)
        assert not queue.remove(second)
        assert queue.all() == [first, third]
        second_again = waiter(4.0)
        queue.put(second_again)
        assert queue.all() == [first, third, second_again]
        for each in (first, third, second_again):
            assert queue.head_costs[0] == each.tokens
            assert queue.remove(each)
        assert (len(queue), queue.head_costs[0]) == (0, 0.0)

    run_simulated(main)


def test_a_cancelled_waiter_is_skipped() -> None:
    """It leaves the queue with that."""

    async def main(clock: SimulatedClock) -> None:
        queue = WaitQueue(clock, lambda: None)
        first, second = waiter(1.0), waiter(2.0)
        queue.put(first)
        queue.put(second)
        first.future.cancel()
        assert queue.first() is second
        assert queue.all() == [second]
        assert queue.head_costs[0] == 2.0

    run_simulated(main)


def test_grant_and_reject_remove_the_waiter() -> None:
    async def main(clock: SimulatedClock) -> None:
        queue = WaitQueue(clock, lambda: None)
        first, second = waiter(), waiter()
        queue.put(first)
        queue.put(second)
        given = lease()
        assert queue.grant(first, given) is True
        assert first.lease is given
        assert await first.future is given
        queue.reject(second, QueueFull("no"))
        with pytest.raises(QueueFull):
            await second.future
        assert len(queue) == 0
        # A waiter that left is not rejected again.
        queue.reject(second, QueueFull("no"))

    run_simulated(main)


def test_one_timer_at_the_earliest_moment() -> None:
    """A later moment does not move the timer, an earlier one does; the timer fires once."""

    async def main(clock: SimulatedClock) -> None:
        rings: list[float] = []
        queue = WaitQueue(clock, lambda: rings.append(clock.elapsed))
        queue.put(waiter())
        queue.put(waiter())
        queue.wake_at(5.0)
        queue.wake_at(7.0)
        queue.wake_at(3.0)
        await clock.sleep(10)
        assert rings == [3.0]
        queue.wake_at(12.0)
        queue.wake_at(12.0)
        await clock.sleep(10)
        assert rings == [3.0, 12.0]
        queue.wake_at(1.0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert rings == [3.0, 12.0, 20.0], "a moment that is past is now"

    run_simulated(main)


def test_the_last_waiter_of_a_loop_cancels_the_timer() -> None:
    """The last but one does not."""

    async def main(clock: SimulatedClock) -> None:
        rings: list[float] = []
        queue = WaitQueue(clock, lambda: rings.append(clock.elapsed))
        first, second = waiter(), waiter()
        queue.put(first)
        queue.put(second)
        queue.wake_at(3.0)
        queue.remove(first)
        await clock.sleep(4)
        assert rings == [3.0]
        queue.wake_at(6.0)
        queue.remove(second)
        await clock.sleep(4)
        assert rings == [3.0]
        # A later waiter gets its own timer.
        queue.put(waiter())
        queue.wake_at(10.0)
        await clock.sleep(4)
        assert rings == [3.0, 10.0]

    run_simulated(main)


@pytest.mark.row("C08")
def test_each_loop_is_served_on_its_own_thread() -> None:
    """From a thread without a loop, and from another loop's thread."""
    clock = SimulatedClock()
    queue = WaitQueue(clock, lambda: None)
    ready, done = threading.Event(), threading.Event()
    outcomes: list[Any] = []
    both: list[Waiter] = []

    async def elsewhere() -> None:
        both.extend([waiter(), waiter()])
        for each in both:
            queue.put(each)
        ready.set()
        outcomes.append(await both[0].future)
        try:
            await both[1].future
        except QueueFull as error:
            outcomes.append(type(error))
        done.set()

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()), daemon=True)
    thread.start()
    assert ready.wait(10)
    given = lease()
    assert queue.grant(both[0], given) is True
    queue.reject(both[1], QueueFull("no"))
    assert done.wait(10)
    thread.join(10)
    assert outcomes == [given, QueueFull]


def test_a_waiter_of_a_closed_loop_is_not_granted() -> None:
    """The caller of `grant` gets False."""
    clock = SimulatedClock()
    queue = WaitQueue(clock, lambda: None)
    closed_loop = asyncio.new_event_loop()
    both: list[Waiter] = []

    async def join() -> None:
        both.extend([waiter(), waiter()])
        for each in both:
            queue.put(each)

    closed_loop.run_until_complete(join())
    closed_loop.close()
    queue.wake_at(1.0)
    assert queue.grant(both[0], lease()) is False
    queue.reject(both[1], QueueFull("no"))
    assert len(queue) == 0


def test_a_late_outcome_is_dropped() -> None:
    """The waiter was cancelled in the same moment."""

    async def main(clock: SimulatedClock) -> None:
        queue = WaitQueue(clock, lambda: None)
        first, second = waiter(), waiter()
        queue.put(first)
        queue.put(second)
        first.future.cancel()
        second.future.cancel()
        assert queue.grant(first, lease()) is True
        queue.reject(second, QueueFull("no"))
        assert first.future.cancelled()
        assert second.future.cancelled()

    run_simulated(main)


def test_an_interactive_request_of_another_thread_goes_first() -> None:
    """The queue is that of the quota, not of an event loop."""
    clock = SimulatedClock()
    limiter = RateLimiter(clock=clock, rpm=60, initial_window=0)
    leases = [limiter.try_acquire() for _ in range(2)]
    assert leases[0] is not None
    order: list[str] = []
    threads = []
    for priority in ("bulk", "interactive"):
        joined = threading.Event()

        async def wait(priority: Priority = priority, joined: threading.Event = joined) -> None:
            waiting = asyncio.create_task(limiter.acquire(priority=priority))
            await asyncio.sleep(0)
            joined.set()
            (await waiting).refund()
            order.append(priority)

        threads.append(threading.Thread(target=asyncio.run, args=(wait(),), daemon=True))
        threads[-1].start()
        assert joined.wait(10)
    assert limiter.waiting == 2
    clock.advance(1)
    leases[0].refund()
    for thread in threads:
        thread.join(10)
    assert order == ["interactive", "bulk"]
