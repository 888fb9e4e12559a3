"""One timer for the waits of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.transport.timers import StreamTimer


async def timed(timer: StreamTimer, seconds: float, work: Coroutine[Any, Any, Any]) -> bool:
    """Wait for some work; return whether the timer ended the wait."""
    timer.start(seconds)
    try:
        await work
    except asyncio.CancelledError:
        if not timer.uncancel_if_expired():
            raise
        return True
    finally:
        timer.stop()
    return False


def test_the_timer_ends_a_wait_that_takes_too_long() -> None:
    """The task continues as if it had not been cancelled."""

    async def main(clock: SimulatedClock) -> None:
        timer = StreamTimer()
        for limit in (60.0, 5.0, 300.0):
            started = clock.now()
            assert await timed(timer, limit, asyncio.sleep(1000))
            assert clock.now() - started == pytest.approx(limit)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        timer.close()

    run_simulated(main)


def test_many_waits_need_one_loop_timer() -> None:
    """It is not created again for each wait."""

    async def main(clock: SimulatedClock) -> None:
        timer, made = StreamTimer(), 0
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def counted(*args: Any, **more: Any) -> Any:
            nonlocal made
            made += args[1] == timer._due
            return call_at(*args, **more)

        loop.call_at = counted  # type: ignore[method-assign] # counted
        for _ in range(100):
            assert not await timed(timer, 60.0, asyncio.sleep(1))
        assert made == 2
        assert await timed(timer, 60.0, asyncio.sleep(1000))
        assert clock.elapsed == pytest.approx(160)
        timer.close()

    run_simulated(main)


def test_a_cancellation_by_another_task_passes_through() -> None:
    """Also in the very turn in which the time is up."""

    async def main(clock: SimulatedClock) -> None:
        timer = StreamTimer()
        for after in (1.0, 5.0):
            task = asyncio.create_task(timed(timer, 5.0, asyncio.sleep(1000)))
            asyncio.get_running_loop().call_later(after, task.cancel)
            await asyncio.wait([task])
            assert task.cancelled()
        timer.close()

    run_simulated(main)


def test_a_timer_between_two_waits_does_nothing() -> None:
    async def main(clock: SimulatedClock) -> None:
        timer = StreamTimer()
        assert not await timed(timer, 10.0, asyncio.sleep(1))
        await asyncio.sleep(100)
        assert not await timed(timer, 10.0, asyncio.sleep(9))
        timer.close()
        await asyncio.sleep(100)

    run_simulated(main)


def test_a_result_in_the_same_turn_as_the_timer_wins() -> None:
    """A blocked loop finds both, and the result counts."""

    async def main(clock: SimulatedClock) -> None:
        timer = StreamTimer()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_at(clock.now() + 4.999, future.set_result, None)
        asyncio.get_running_loop().call_at(clock.now() + 1.0, clock.advance, 50.0)
        assert not await timed(timer, 5.0, _waiting(future))
        timer.close()

    run_simulated(main)


async def _waiting(future: asyncio.Future[None]) -> None:
    await future
