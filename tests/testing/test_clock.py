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


def test_an_hour_takes_no_time_and_is_exact() -> None:
    """Sleeps, timers and the loop agree on it."""

    async def main(clock: SimulatedClock) -> list[float]:
        await asyncio.sleep(3_600)
        await clock.sleep(0.1)
        assert asyncio.get_running_loop().time() == clock.now()
        return [clock.elapsed]

    assert run_simulated(main) == [3_600.1]


def test_many_tasks_wake_in_order() -> None:
    """Each at its own moment."""

    async def main(clock: SimulatedClock) -> list[tuple[int, float]]:
        seen: list[tuple[int, float]] = []

        async def one(i: int) -> None:
            await asyncio.sleep(100 - i)
            seen.append((i, clock.elapsed))

        await asyncio.gather(*(one(i) for i in range(100)))
        return seen

    assert run_simulated(main) == [(i, 100.0 - i) for i in range(99, -1, -1)]


def test_time_outs_are_simulated() -> None:
    """``asyncio.timeout`` and ``wait_for`` go by the loop's time."""

    async def main(clock: SimulatedClock) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.sleep(100)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().create_future(), 12)
        assert clock.elapsed == 42

    run_simulated(main)


def test_timers_can_be_cancelled() -> None:
    """Without time passing for them."""

    async def main(clock: SimulatedClock) -> None:
        rung: list[str] = []
        clock.call_later(5, rung.append, "never").cancel()
        clock.call_later(2, rung.append, "once")
        await clock.sleep(10)
        assert rung == ["once"]

    run_simulated(main)


def test_what_will_never_end_is_told() -> None:
    """By the name of who waits."""

    async def stuck(clock: SimulatedClock) -> None:
        await asyncio.get_running_loop().create_future()

    async def endless(clock: SimulatedClock) -> None:
        while True:
            await clock.sleep(1)

    with pytest.raises(SimulationStalledError, match="stuck"):
        run_simulated(stuck)
    with pytest.raises(SimulationOverrunError, match="endless"):
        run_simulated(endless, limit=100)


def test_time_stands_still_for_threads() -> None:
    """A timer does not overtake the work of a thread."""

    async def main(clock: SimulatedClock) -> float:
        go = threading.Event()
        asyncio.get_running_loop().call_later(0, go.set)
        async with asyncio.timeout(0.5):
            await asyncio.to_thread(go.wait, 10)
        return clock.elapsed

    assert run_simulated(main) == 0


def test_a_server_in_the_same_loop_serves() -> None:
    """Bytes between two sockets of the process arrive before time moves on."""

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


def test_a_clock_can_be_driven_by_hand() -> None:
    """Forward only; the wall clock either way."""
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
    """As it does in real time."""

    async def main(clock: SimulatedClock) -> list[float]:
        rung: list[float] = []
        clock.call_later(1, lambda: rung.append(clock.elapsed))
        clock.advance(5)
        await asyncio.sleep(0.1)
        return rung

    assert run_simulated(main) == [5.0]


def test_runs_go_on_where_another_ended() -> None:
    """On the same clock."""
    clock = SimulatedClock()

    async def main(clock: SimulatedClock) -> float:
        await clock.sleep(7)
        return clock.now()

    assert [run_simulated(main, clock=clock) for _ in range(2)] == [7.0, 14.0]


def test_two_timers_closer_than_a_rounding_both_come() -> None:
    """The second is not taken for the first, over and over."""

    async def main(clock: SimulatedClock) -> int:
        await clock.sleep(1_000.3)
        for seconds in (1e-9, 2e-9, 1e-8, 3e-10, 1.8e-155, 1e-7):
            await asyncio.gather(clock.sleep(seconds), clock.sleep(seconds * 1.5))
        return 1

    assert run_simulated(main) == 1
