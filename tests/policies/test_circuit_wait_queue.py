"""The wait queue of requests whose circuit is open."""

from __future__ import annotations

import asyncio
import threading

import pytest

from llmopt.policies.circuit_breaker import CircuitWaitQueue
from llmopt.testing.clock import SimulatedClock, run_simulated


def test_it_is_over_when_it_is_said_so() -> None:
    """For all at once, however long they would have waited."""

    async def main(clock: SimulatedClock) -> None:
        recess = CircuitWaitQueue(clock)
        waiting = [asyncio.create_task(recess.wait(seconds)) for seconds in (10, 20, 30)]
        await clock.sleep(5)
        assert repr(recess) == "CircuitWaitQueue(3 waiting)"
        recess.notify_all()
        await asyncio.gather(*waiting)
        assert clock.elapsed == 5
        assert len(recess) == 0

    run_simulated(main)


def test_it_ends_by_itself() -> None:
    """Each one's own time."""

    async def main(clock: SimulatedClock) -> None:
        recess = CircuitWaitQueue(clock)
        first, second = (asyncio.create_task(recess.wait(seconds)) for seconds in (1, 2))
        await first
        assert (clock.elapsed, len(recess)) == (1, 1)
        await second
        assert (clock.elapsed, len(recess)) == (2, 0)
        recess.notify_all()

    run_simulated(main)


def test_one_who_is_cancelled_leaves() -> None:
    """And the others stay."""

    async def main(clock: SimulatedClock) -> None:
        recess = CircuitWaitQueue(clock)
        first, second = (asyncio.create_task(recess.wait(100)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (first.cancelled(), len(recess)) == (True, 1)
        recess.notify_all()
        await second

    run_simulated(main)


@pytest.mark.row("C08")
def test_those_on_another_loop_are_woken_there() -> None:
    """From any thread; a loop that is gone is nobody's."""
    clock = SimulatedClock()
    recess = CircuitWaitQueue(clock)
    gone = asyncio.new_event_loop()
    lost = gone.create_task(recess.wait(1e6))
    gone.run_until_complete(asyncio.sleep(0))
    gone.close()
    ready, woken = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        task = asyncio.create_task(recess.wait(1e6))
        await asyncio.sleep(0)
        ready.set()
        await task
        woken.set()

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()), daemon=True)
    thread.start()
    assert ready.wait(10)
    recess.notify_all()
    assert woken.wait(10)
    thread.join(10)
    lost._log_destroy_pending = False  # type: ignore[attr-defined]
