"""The wait queue of requests whose circuit is open."""

from __future__ import annotations

import asyncio
import threading

import pytest

from llmopt.policies.circuit_breaker import CircuitWaitQueue
from llmopt.testing.clock import SimulatedClock, run_simulated


def test_notify_all_wakes_every_waiter() -> None:
    """However long each would have waited."""

    async def main(clock: SimulatedClock) -> None:
        queue = CircuitWaitQueue(clock)
        waiting = [asyncio.create_task(queue.wait(seconds)) for seconds in (10, 20, 30)]
        await clock.sleep(5)
        assert repr(queue) == "CircuitWaitQueue(3 waiting)"
        queue.notify_all()
        await asyncio.gather(*waiting)
        assert clock.elapsed == 5
        assert len(queue) == 0

    run_simulated(main)


def test_each_waiter_wakes_after_its_own_time() -> None:
    async def main(clock: SimulatedClock) -> None:
        queue = CircuitWaitQueue(clock)
        first, second = (asyncio.create_task(queue.wait(seconds)) for seconds in (1, 2))
        await first
        assert (clock.elapsed, len(queue)) == (1, 1)
        await second
        assert (clock.elapsed, len(queue)) == (2, 0)
        queue.notify_all()

    run_simulated(main)


def test_a_cancelled_waiter_leaves_the_queue() -> None:
    """The others stay."""

    async def main(clock: SimulatedClock) -> None:
        queue = CircuitWaitQueue(clock)
        first, second = (asyncio.create_task(queue.wait(100)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (first.cancelled(), len(queue)) == (True, 1)
        queue.notify_all()
        await second

    run_simulated(main)


@pytest.mark.row("C08")
def test_waiters_on_another_loop_are_woken_on_that_loop() -> None:
    """From any thread; waiters of a closed loop are skipped."""
    clock = SimulatedClock()
    queue = CircuitWaitQueue(clock)
    closed_loop = asyncio.new_event_loop()
    lost = closed_loop.create_task(queue.wait(1e6))
    closed_loop.run_until_complete(asyncio.sleep(0))
    closed_loop.close()
    ready, woken = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        task = asyncio.create_task(queue.wait(1e6))
        await asyncio.sleep(0)
        ready.set()
        await task
        woken.set()

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()), daemon=True)
    thread.start()
    assert ready.wait(10)
    queue.notify_all()
    assert woken.wait(10)
    thread.join(10)
    lost._log_destroy_pending = False  # type: ignore[attr-defined]
