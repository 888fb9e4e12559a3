"""Timeouts that share one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.transport.timers import TimeoutScheduler


async def timed(waits: TimeoutScheduler, seconds: float, work: Coroutine[Any, Any, Any]) -> bool:
    """Wait for some work; return whether its timeout ended the wait."""
    try:
        with waits.timeout(seconds):
            await work
    except TimeoutError:
        return True
    return False


def new_scheduler() -> TimeoutScheduler:
    return TimeoutScheduler(asyncio.get_running_loop())


def test_the_timer_ends_a_wait_that_takes_too_long() -> None:
    """The task continues as if it had not been cancelled."""

    async def main(clock: SimulatedClock) -> None:
        waits = new_scheduler()
        for limit in (60.0, 5.0, 300.0):
            started = clock.now()
            assert await timed(waits, limit, asyncio.sleep(1000))
            assert clock.now() - started == pytest.approx(limit)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        waits.close()

    run_simulated(main)


def test_many_waits_need_one_loop_timer() -> None:
    """It is not created again for each wait."""

    async def main(clock: SimulatedClock) -> None:
        waits, made = new_scheduler(), 0
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def counted(*args: Any, **more: Any) -> Any:
            nonlocal made
            made += args[1] == waits._expire_due
            return call_at(*args, **more)

        loop.call_at = counted  # type: ignore[method-assign] # counted
        for _ in range(100):
            assert not await timed(waits, 60.0, asyncio.sleep(1))
        assert made == 2
        assert await timed(waits, 60.0, asyncio.sleep(1000))
        assert clock.elapsed == pytest.approx(160)
        waits.close()

    run_simulated(main)


def test_a_cancellation_by_another_task_passes_through() -> None:
    """Also in the very turn in which the time is up."""

    async def main(clock: SimulatedClock) -> None:
        waits = new_scheduler()
        for after in (1.0, 5.0):
            task = asyncio.create_task(timed(waits, 5.0, asyncio.sleep(1000)))
            asyncio.get_running_loop().call_later(after, task.cancel)
            await asyncio.wait([task])
            assert task.cancelled()
        waits.close()

    run_simulated(main)


def test_a_timer_between_two_waits_does_nothing() -> None:
    async def main(clock: SimulatedClock) -> None:
        waits = new_scheduler()
        assert not await timed(waits, 10.0, asyncio.sleep(1))
        await asyncio.sleep(100)
        assert not await timed(waits, 10.0, asyncio.sleep(9))
        waits.close()
        await asyncio.sleep(100)

    run_simulated(main)


def test_a_result_in_the_same_turn_as_the_timer_wins() -> None:
    """A blocked loop finds both, and the result counts."""

    async def main(clock: SimulatedClock) -> None:
        waits = new_scheduler()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_at(clock.now() + 4.999, future.set_result, None)
        asyncio.get_running_loop().call_at(clock.now() + 1.0, clock.advance, 50.0)
        assert not await timed(waits, 5.0, _waiting(future))
        waits.close()

    run_simulated(main)


async def _waiting(future: asyncio.Future[None]) -> None:
    await future
