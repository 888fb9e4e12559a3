"""Simulated time: exact, repeatable, and honest about what will never end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from llmopt.testing.clock import (
    SimulatedClock,
    SimulationOverrunError,
    SimulationStalledError,
    run_simulated,
)


def test_a_simulated_hour_takes_no_real_time_and_is_exact() -> None:
    """For sleeps, timers and loop.time()."""

    async def main(clock: SimulatedClock) -> list[float]:
        await asyncio.sleep(3_600)
        await clock.sleep(0.1)
        assert asyncio.get_running_loop().time() == clock.now()
        return [clock.elapsed]

    assert run_simulated(main) == [3_600.1]


def test_many_tasks_wake_in_order() -> None:
    """Each at its own time."""

    async def main(clock: SimulatedClock) -> list[tuple[int, float]]:
        seen: list[tuple[int, float]] = []

        async def one(i: int) -> None:
            await asyncio.sleep(100 - i)
            seen.append((i, clock.elapsed))

        await asyncio.gather(*(one(i) for i in range(100)))
        return seen

    assert run_simulated(main) == [(i, 100.0 - i) for i in range(99, -1, -1)]


def test_timeouts_are_simulated() -> None:
    """``asyncio.timeout`` and ``wait_for`` use the loop's time."""

    async def main(clock: SimulatedClock) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.sleep(100)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().create_future(), 12)
        assert clock.elapsed == 42

    run_simulated(main)


def test_timers_can_be_cancelled() -> None:
    """No time passes for a cancelled timer."""

    async def main(clock: SimulatedClock) -> None:
        rung: list[str] = []
        clock.call_later(5, rung.append, "never").cancel()
        clock.call_later(2, rung.append, "once")
        await clock.sleep(10)
        assert rung == ["once"]

    run_simulated(main)


def test_a_deadlock_is_an_error_that_names_the_waiting_task() -> None:

    async def stuck(clock: SimulatedClock) -> None:
        await asyncio.get_running_loop().create_future()

    async def endless(clock: SimulatedClock) -> None:
        while True:
            await clock.sleep(1)

    with pytest.raises(SimulationStalledError, match="stuck"):
        run_simulated(stuck)
    with pytest.raises(SimulationOverrunError, match="endless"):
        run_simulated(endless, limit=100)


def test_time_does_not_advance_while_a_thread_works() -> None:
    """A timer does not fire before the thread's result."""

    async def main(clock: SimulatedClock) -> float:
        go = threading.Event()
        asyncio.get_running_loop().call_later(0, go.set)
        async with asyncio.timeout(0.5):
            await asyncio.to_thread(go.wait, 10)
        return clock.elapsed

    assert run_simulated(main) == 0


def test_a_server_in_the_same_loop_works() -> None:
    """Bytes between two sockets of the process arrive before time advances."""

    async def main(clock: SimulatedClock) -> bytes:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            await asyncio.sleep(30)
            writer.write(b"pong\n")
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"ping\n")
            async with asyncio.timeout(31):
                answer = await reader.readline()
            writer.close()
            await writer.wait_closed()
        assert clock.elapsed == 30
        return answer

    assert run_simulated(main) == b"pong\n"


def test_a_clock_can_be_advanced_manually() -> None:
    """Only forwards; the wall clock in both directions."""
    clock = SimulatedClock(start=10, epoch=1_000)
    assert (clock.now(), clock.wall(), clock.elapsed) == (10, 1_000, 0)
    clock.advance(5)
    clock.advance_to(12)
    assert (clock.now(), clock.wall(), clock.elapsed) == (15, 1_005, 5)
    clock.set_wall(0)
    clock.advance(1)
    assert (clock.now(), clock.wall()) == (16, 1)
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)
    assert repr(clock) == "SimulatedClock(elapsed=6)"


def test_code_that_blocks_the_loop_makes_timers_late() -> None:
    """As in real time."""

    async def main(clock: SimulatedClock) -> list[float]:
        rung: list[float] = []
        clock.call_later(1, lambda: rung.append(clock.elapsed))
        clock.advance(5)
        await asyncio.sleep(0.1)
        return rung

    assert run_simulated(main) == [5.0]


def test_a_second_run_continues_on_the_same_clock() -> None:
    clock = SimulatedClock()

    async def main(clock: SimulatedClock) -> float:
        await clock.sleep(7)
        return clock.now()

    assert [run_simulated(main, clock=clock) for _ in range(2)] == [7.0, 14.0]


def test_two_timers_closer_than_a_rounding_error_both_fire() -> None:
    """The loop must not repeat the first forever."""

    async def main(clock: SimulatedClock) -> int:
        await clock.sleep(1_000.3)
        for seconds in (1e-9, 2e-9, 1e-8, 3e-10, 1.8e-155, 1e-7):
            await asyncio.gather(clock.sleep(seconds), clock.sleep(seconds * 1.5))
        return 1

    assert run_simulated(main) == 1
