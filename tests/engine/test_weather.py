"""Outages, flaky servers and dead endpoints, in simulated time over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.faults import Answer, FaultServer, Flaky, OutageSchedule, Script, Stall, answer_openai

MODEL = "server/m"
UNAVAILABLE = bytes(Answer(503, b'{"error":{"message":"down"}}', [("content-type", "application/json")]))


def config(*servers: FaultServer, **more: Any) -> dict[str, Any]:
    endpoints = [{"base_url": server.base_url} for server in servers]
    return {"providers": {"server": {"plugin": "local", "endpoints": endpoints, **more}}}


async def one(client: llmopt.AsyncClient, number: int, **options: Any) -> str:
    try:
        await client.embed(MODEL, [f"text {number}"], **options)
    except llmopt.LLMOptError as error:
        return type(error).__name__
    return "ok"


def test_h09_an_outage_of_a_minute_at_a_hundred_requests_a_second() -> None:
    """Extra requests stay within the budget, and all is well within ten seconds of the server's return."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, max_retries=2), clock=clock) as client,
        ):
            outage = OutageSchedule([(10, 70)], clock=clock.now)
            server.default(outage)
            started: list[tuple[float, asyncio.Task[str]]] = []
            for number in range(10_000):
                started.append((clock.elapsed, asyncio.create_task(one(client, number))))
                await clock.sleep(0.01)
            outcomes = [(at, await task) for at, task in started]
            start = server.requests[0].time
            during = [request for request in server.requests if 10 <= request.time - start < 70]
            assert all(outcome == "ok" for at, outcome in outcomes if at < 9 or at > 80)
            # 6,000 calls were made meanwhile: those until the circuit opened, their retries, and probes.
            assert len(during) < 150

    run_simulated(main)


def test_five_percent_of_transient_faults() -> None:
    """Under 1 % of calls fail, at most 1.2 requests for each, at least 90 % on kept connections."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, max_retries=3), clock=clock) as client,
        ):
            server.default(Flaky(0.05, seed=7))
            outcomes = [await one(client, number) for number in range(2_000)]
            assert outcomes.count("ok") >= 0.99 * len(outcomes)
            assert len(server.requests) <= 1.2 * len(outcomes)
            assert server.connections <= 0.1 * len(server.requests)

    run_simulated(main)


def test_n22_one_of_three_endpoints_is_black_holed() -> None:
    """Once it is given a rest, calls take what they took before."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as one_server,
            FaultServer(sleep=clock.sleep, clock=clock.now) as two,
            FaultServer(sleep=clock.sleep, clock=clock.now) as dead,
        ):
            for server in (one_server, two):
                server.default(answer_openai)
            dead.default(Script([Stall()]))
            servers = (one_server, two, dead)
            async with llmopt.AsyncClient(config(*servers, timeouts={"read": 2.0}), clock=clock) as client:
                # The engines are warm: the long time-out of a first request is not what is tested.
                for server in servers:
                    server.play(answer_openai)
                for number in range(30):
                    assert await one(client, number) == "ok"
                for number in range(300):
                    assert await one(client, number + 100) == "ok"
                before = clock.elapsed
                for number in range(200):
                    assert await one(client, number + 1_000) == "ok"
                # Two hundred calls, of which at most a probe now and then meets the black hole.
                assert clock.elapsed - before < 20

    run_simulated(main)


def test_a_retry_goes_elsewhere_first() -> None:
    """The endpoint that just failed is the last to be asked."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as bad,
            FaultServer(sleep=clock.sleep, clock=clock.now) as good,
        ):
            bad.default(UNAVAILABLE)
            good.default(answer_openai)
            async with llmopt.AsyncClient(config(bad, good, max_retries=1), clock=clock) as client:
                outcomes = [await one(client, number) for number in range(50)]
            assert set(outcomes) == {"ok"}

    run_simulated(main)


def test_waiting_for_an_open_circuit_costs_nothing() -> None:
    """With when_open="wait" every call succeeds after the outage, without attempts in it but probes."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, max_retries=1), clock=clock) as client,
        ):
            server.default(answer_openai)
            assert await one(client, 0) == "ok"
            server.default(OutageSchedule([(0, 60)], clock=clock.now))
            failed = [await one(client, number) for number in range(1, 30)]
            assert "CircuitOpen" in failed
            before = len(server.requests)
            waiting = [
                asyncio.create_task(one(client, 100 + number, when_open="wait")) for number in range(200)
            ]
            outcomes = await asyncio.gather(*waiting)
            assert set(outcomes) == {"ok"}
            assert len(server.requests) - before < 200 + 50

    run_simulated(main)
