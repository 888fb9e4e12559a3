"""Circuit breakers in a whole client: which failures count, which requests wait, and when they resume."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import BreakerChanged, Event, RequestAttempt, RequestRetry, RequestWait
from tests.support.configuration import provider_config
from tests.support.faults import Answer, FaultServer, Respond, Script, Stall, Wait, answer_openai

MODEL = "server/m"
DOWN = Answer(500, b'{"error": {"message": "down"}}', [("content-type", "application/json")])


config = functools.partial(provider_config, max_retries=0)


def of(kind: type[Event], events: list[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


async def one(client: llmopt.AsyncClient, number: int, **options: Any) -> str:
    try:
        await client.embed(MODEL, [f"text {number}"], **options)
    except llmopt.LLMOptError as error:
        return type(error).__name__
    return "ok"


async def open_circuit(client: llmopt.AsyncClient, server: FaultServer) -> None:
    """Let it fail until nobody asks any more."""
    server.default(DOWN)
    for number in range(40):
        if await one(client, -number - 1) == "CircuitOpen":
            return
    raise AssertionError("the circuit stays closed")


@pytest.mark.row("H10")
def test_the_circuit_opens_above_half_and_not_below() -> None:
    """Of the calls of half a minute."""
    for failing, expected in ((4, False), (6, True)):

        async def main(clock: SimulatedClock, failing: int = failing) -> bool:
            events: list[Any] = []
            async with (
                FaultServer(sleep=clock.sleep, clock=clock.now) as server,
                llmopt.AsyncClient(config(server), clock=clock, on_event=events.append) as client,
            ):
                server.default(answer_openai)
                for number in range(60):
                    # Good ones first in each ten, so that the share is reached from below.
                    if number % 10 >= 10 - failing:
                        server.play(DOWN)
                    await one(client, number)
                    await clock.sleep(0.1)
            return bool(of(BreakerChanged, events))

        assert run_simulated(main) is expected


def test_a_wait_for_an_open_circuit_is_reported_as_a_wait() -> None:
    """One event with its seconds, and no retry: nothing was sent, nothing is repeated."""
    events: list[Any] = []

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server), clock=clock, on_event=events.append) as client,
        ):
            await open_circuit(client, server)
            events.clear()
            server.default(answer_openai)
            started = clock.elapsed
            assert await one(client, 1, when_open="wait") == "ok"
            seconds = clock.elapsed - started
            assert 4 <= seconds <= 6
        (waited,) = of(RequestWait, events)
        assert (waited.cause, waited.provider, waited.model) == ("breaker", "server", "m")
        assert waited.seconds == pytest.approx(seconds, abs=0.01)
        assert of(RequestRetry, events) == []
        assert [event.attempt for event in of(RequestAttempt, events)] == [1]

    run_simulated(main)


def test_calls_waiting_behind_a_probe_start_when_it_succeeds() -> None:
    """Not half a second later: the two probes in a row, and then all, at the moment each ends."""
    events: list[Any] = []

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server), clock=clock, on_event=events.append) as client,
        ):
            await open_circuit(client, server)
            before = len(server.requests)
            server.default(Script([Wait(0.13), Respond(answer_openai)]))
            calls = [asyncio.create_task(one(client, number, when_open="wait")) for number in range(50)]
            assert [await call for call in calls] == ["ok"] * 50
            sent = [request.time for request in server.requests[before:]]
        assert len(sent) == 50
        first, second, *others = (moment - sent[0] for moment in sent)
        assert (first, second) == (0, pytest.approx(0.13, abs=0.01))
        # The limiter's slow start is what spreads these, if anything does; nobody looks at a clock.
        assert others[0] == pytest.approx(0.26, abs=0.01)
        assert [change.new for change in of(BreakerChanged, events)] == ["open", "half_open", "closed"]

    run_simulated(main)


def test_a_failed_probe_leaves_the_others_waiting() -> None:
    """Until the end of the new rest, not until the failed probe's place would have been given up."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, timeouts={"read": 60}), clock=clock) as client,
        ):
            await open_circuit(client, server)
            server.play(Script([Wait(1.0), Respond(DOWN)]))
            server.default(answer_openai)
            before = len(server.requests)
            started = clock.elapsed
            calls = [asyncio.create_task(one(client, number, when_open="wait")) for number in range(20)]
            assert [await call for call in calls] == ["ok"] * 20
            # Two rests of at most 6 and 9.6 s, and the second between them that the probe took.
            assert clock.elapsed - started < 17
            assert len(server.requests) - before == 21

    run_simulated(main)


def test_a_cancelled_probe_is_replaced_at_once() -> None:
    """For the next who waits."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, timeouts={"read": 60}), clock=clock) as client,
        ):
            await open_circuit(client, server)
            before = len(server.requests)
            server.default(Script([Stall()]))
            probe = asyncio.create_task(one(client, 1, when_open="wait"))
            while len(server.requests) == before:
                await clock.sleep(0.1)
            waiting = asyncio.create_task(one(client, 2, when_open="wait"))
            await clock.sleep(1)
            server.default(answer_openai)
            cancelled_at = clock.elapsed
            probe.cancel()
            assert await waiting == "ok"
            assert clock.elapsed - cancelled_at < 0.05

    run_simulated(main)


def test_closing_the_client_ends_waits_for_a_circuit() -> None:
    """At once, whether or not others ask the same."""

    async def main(clock: SimulatedClock) -> None:
        for coalesce in (True, False):
            async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
                client = llmopt.AsyncClient(config(server), clock=clock, flags={"coalesce": coalesce})
                await open_circuit(client, server)
                call = asyncio.create_task(one(client, 1, when_open="wait"))
                await clock.sleep(0.5)
                closing = clock.elapsed
                await client.aclose()
                assert await call == "ClientClosed"
                assert clock.elapsed - closing < 0.05

    run_simulated(main)


def test_a_wait_beyond_the_deadline_fails_at_once() -> None:
    """It fails at once and says how long it would have been."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server), clock=clock) as client,
        ):
            await open_circuit(client, server)
            started = clock.elapsed
            assert await one(client, 1, when_open="wait", deadline=2) == "DeadlineExceeded"
            assert clock.elapsed == started

    run_simulated(main)


def test_only_long_deadlines_that_pass_count_as_failures() -> None:
    """Deadlines that pass after ten seconds say that the server hangs; those of a second say nothing."""
    for deadline, opens in ((1.0, False), (11.0, True)):

        async def main(clock: SimulatedClock, deadline: float = deadline) -> bool:
            events: list[Any] = []
            async with (
                FaultServer(sleep=clock.sleep, clock=clock.now) as server,
                llmopt.AsyncClient(
                    config(server, timeouts={"read": 60}, max_concurrency=20),
                    clock=clock,
                    on_event=events.append,
                    flags={"limiter": False},  # its slow start would send some of them late
                ) as client,
            ):
                server.default(answer_openai)
                await one(client, 0)
                server.default(Script([Stall()]))
                calls = [one(client, number, deadline=deadline) for number in range(1, 21)]
                assert set(await asyncio.gather(*calls)) == {"DeadlineExceeded"}
            return bool(of(BreakerChanged, events))

        assert run_simulated(main) is opens


def test_a_deadline_during_a_request_reports_it_as_sent() -> None:
    """Perhaps: the server may have worked on it."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server), clock=clock) as client,
        ):
            server.default(Script([Stall()]))
            with pytest.raises(llmopt.DeadlineExceeded) as caught:
                await client.embed(MODEL, ["a"], deadline=2)
            assert caught.value.sent == "maybe"

    run_simulated(main)


@pytest.mark.row("C11")
def test_a_blocked_event_loop_does_not_open_the_circuit() -> None:
    """Twenty requests are answered while the caller blocks the loop past their timeouts: no circuit opens."""
    events: list[Any] = []

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(
                config(server, timeouts={"read": 2.0}, max_concurrency=20),
                clock=clock,
                on_event=events.append,
                flags={"limiter": False},
            ) as client,
        ):
            server.default(answer_openai)
            await one(client, 0)
            server.default(Script([Wait(1.0), Respond(answer_openai)]))
            calls = [asyncio.create_task(one(client, number)) for number in range(1, 21)]
            await server.wait_requests(21)
            clock.advance(5)  # the caller computes something, or the machine was suspended
            outcomes = {await call for call in calls}
            assert outcomes <= {"ok", "AttemptTimeout"}
            server.default(answer_openai)
            assert await one(client, 100) == "ok"
            stats = client.stats()["server"][server.base_url]
            assert stats["concurrency"] == 20
        assert of(BreakerChanged, events) == []

    run_simulated(main)
