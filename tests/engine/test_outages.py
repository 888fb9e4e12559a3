"""Outages, flaky servers and dead endpoints, in simulated time over real sockets."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

import llmopt
from llmopt.policies.retry import BUDGET_CAPACITY, TRANSIENT_COST
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import BreakerChanged, PoolCheckout, RequestAttempt
from tests.support.configuration import provider_config
from tests.support.faults import (
    Answer,
    Close,
    FaultServer,
    Flaky,
    OutageSchedule,
    Request,
    Reset,
    Respond,
    Script,
    Stall,
    Wait,
    answer_openai,
    cut,
    flap,
    refused_port,
    rewritten,
)
from tests.support.faults.script import Playable, Reply
from tests.support.scale import scaled

MODEL = "server/m"
CALLS = scaled(500, nightly=3_000)
UNAVAILABLE = bytes(Answer(503, b'{"error":{"message":"down"}}', [("content-type", "application/json")]))


config = provider_config


async def one(client: llmopt.AsyncClient, number: int, **options: Any) -> str:
    try:
        await client.embed(MODEL, [f"text {number}"], **options)
    except llmopt.LLMOptError as error:
        return type(error).__name__
    return "ok"


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def at_rest(client: llmopt.AsyncClient) -> bool:
    held = [
        (endpoint["in_flight"], endpoint["waiting"], *endpoint_connections(endpoint))
        for endpoints in client.stats().values()
        for endpoint in endpoints.values()
    ]
    return all(not any(each) for each in held)


def endpoint_connections(endpoint: Any) -> tuple[int, int]:
    return endpoint["connections"]["in_use"], endpoint["connections"]["waiting"]


@pytest.mark.row("H09")
def test_an_outage_costs_few_attempts() -> None:
    """Extra requests stay within the budget, and all is well within ten seconds of the server's return."""
    per_second = scaled(30, nightly=100)
    start_s = scaled(4, nightly=10)
    outage_s = scaled(20, nightly=60)
    end_s = start_s + outage_s
    events: list[Any] = []

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, max_retries=2), clock=clock, on_event=events.append) as client,
        ):
            outage = OutageSchedule([(start_s, end_s)], clock=clock.now)
            server.default(outage)
            started: list[tuple[float, asyncio.Task[str]]] = []
            for number in range((end_s + 15) * per_second):
                started.append((clock.elapsed, asyncio.create_task(one(client, number))))
                await clock.sleep(1 / per_second)
            outcomes = [(at, await task) for at, task in started]
            first = server.requests[0].time
            during = [request for request in server.requests if start_s <= request.time - first < end_s]
            assert all(outcome == "ok" for at, outcome in outcomes if at < start_s - 1 or at > end_s + 10)
            # 600 calls (6,000 at night) were made meanwhile. Sent were those until the circuit opened,
            # their retries, and probes.
            assert len(during) < scaled(60, nightly=150)
            assert at_rest(client)

    run_simulated(main)
    extra = [event for event in events if isinstance(event, RequestAttempt) and event.attempt > 1]
    assert len(extra) <= BUDGET_CAPACITY / TRANSIENT_COST
    half_open = [e for e in events if isinstance(e, BreakerChanged) and e.new == "half_open"]
    # Breaks of 5 to 8 s, a fifth more or less: one probe after each.
    assert scaled(2, nightly=5) <= len(half_open) <= scaled(6, nightly=15)


def five_ways_to_fail(seed: int) -> Playable:
    """A server error, an overload, a reset, half an answer, and one that is no JSON: each as it comes."""
    dice = random.Random(seed)
    broken = rewritten(lambda body: body[: len(body) // 2])
    ways: list[Playable] = [
        Answer(500, b"{}"),
        UNAVAILABLE,
        Script([Reset()]),
        cut(150, Close(), answer_openai),  # type: ignore[arg-type] # it answers with an Answer
        broken,
    ]

    def reply(request: Request) -> Reply:
        way = dice.choice(ways)
        return way if isinstance(way, (bytes, Answer, Script)) else way(request)

    return reply


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_five_percent_of_transient_faults_are_retried(seed: int) -> None:
    """Under 1 % of calls fail, 1.2 requests for each at most, 90 % on kept connections, which come at once."""
    events: list[Any] = []

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, max_retries=3), clock=clock, on_event=events.append) as client,
        ):
            server.default(Flaky(0.05, seed, failing=five_ways_to_fail(seed)))
            outcomes: list[str] = []
            numbers = iter(range(CALLS))

            async def worker() -> None:
                for number in numbers:
                    outcomes.append(await one(client, number))

            await asyncio.gather(*(worker() for _ in range(10)))
            assert outcomes.count("ok") > 0.99 * len(outcomes)
            assert len(server.requests) <= 1.2 * len(outcomes)
            connections = client.stats()["server"][server.base_url]["connections"]
            assert connections["reused"] >= 0.9 * len(server.requests)
            # Nothing is left behind: no request, no task, no connection that is not kept.
            assert at_rest(client)
            assert connections["in_use"] == 0
            assert server.open_connections == connections["idle"]

    run_simulated(main)
    checkouts = [event.seconds for event in events if isinstance(event, PoolCheckout)]
    assert len(checkouts) > CALLS
    assert percentile(checkouts, 0.99) < 0.1


@pytest.mark.row("N12")
def test_five_failed_connections_open_the_circuit() -> None:
    """The circuit of the origin: no request is sent for any of its models."""

    async def main(clock: SimulatedClock) -> None:
        events: list[Any] = []
        with refused_port() as port:
            entry = {"plugin": "local", "base_url": f"http://127.0.0.1:{port}", "max_retries": 0}
            async with llmopt.AsyncClient(
                {"providers": {"server": entry}}, clock=clock, on_event=events.append
            ) as client:
                outcomes = [await one(client, number) for number in range(8)]
                assert outcomes == ["ConnectFailed"] * 5 + ["CircuitOpen"] * 3
                with pytest.raises(llmopt.CircuitOpen):
                    await client.embed("server/another", ["a"])
                with pytest.raises(llmopt.CircuitOpen):
                    await client.list_models("server")
        assert [event.new for event in events if isinstance(event, BreakerChanged)] == ["open"]

    run_simulated(main)


@pytest.mark.row("N20")
@pytest.mark.parametrize("when_open", ["wait", "fail"])
def test_a_server_restarts_with_two_hundred_requests_in_flight(when_open: str) -> None:
    """It is back after 3 s. Who waits gets the answer; who does not is told at once what is the matter."""
    events: list[Any] = []

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(
                config(server, max_retries=3, max_concurrency=200, pool_size=200),
                clock=clock,
                on_event=events.append,
                flags={"concurrency": False, "limiter": False},
            ) as client,
        ):
            server.default(answer_openai)
            assert await one(client, 0) == "ok"
            server.default(Script([Wait(1.0), Respond(answer_openai)]))
            calls = [
                asyncio.create_task(one(client, number, when_open=when_open)) for number in range(1, 201)
            ]
            await server.wait_requests(201)
            await server.stop(reset=True)
            died = clock.elapsed
            await clock.sleep(3)
            server.default(answer_openai)
            await server.start()
            outcomes = Counter([await call for call in calls])
            if when_open == "wait":
                assert outcomes == {"ok": 200}
            else:
                assert set(outcomes) <= {"ok", "ConnectionLost", "ConnectFailed", "CircuitOpen"}
            good = 0
            while good < 2:  # as many as close a circuit
                good += await one(client, 1_000 + int(clock.elapsed * 10)) == "ok"
                await clock.sleep(0.1)
            assert clock.elapsed - died < 13
            assert at_rest(client)

    run_simulated(main)
    if when_open == "fail":
        attempts = Counter(event.attempt > 1 for event in events if isinstance(event, RequestAttempt))
        assert attempts[True] <= BUDGET_CAPACITY / TRANSIENT_COST + 5
    changes = [event.new for event in events if isinstance(event, BreakerChanged)]
    assert changes[0] == "open"
    assert changes[-1] == "closed"


@pytest.mark.row("N21")
def test_a_flapping_server_costs_few_extra_requests() -> None:
    """A second up, a second down, again and again: what comes through costs little more than itself."""
    periods = scaled(10, nightly=30)

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, max_retries=2), clock=clock) as client,
        ):
            server.default(Script([Wait(0.05), Respond(answer_openai)]))
            weather = asyncio.create_task(flap(server, periods, reset=True, sleep=clock.sleep))
            outcomes: list[str] = []
            numbers = itertools.count()

            async def worker() -> None:
                while not weather.done():
                    outcomes.append(await one(client, next(numbers)))
                    await clock.sleep(0.05)

            await asyncio.gather(*(worker() for _ in range(5)))
            good = outcomes.count("ok")
            assert good > periods
            assert len(server.requests) <= 1.35 * good
            assert at_rest(client)

    run_simulated(main)


@pytest.mark.row("N22")
def test_a_black_holed_endpoint_is_ejected() -> None:
    """Once it is ejected, the slowest of a hundred calls takes what it took before."""
    dice = random.Random(3)

    def slow(_: Request) -> Script:
        return Script([Wait(dice.uniform(0.08, 0.12)), Respond(answer_openai)])

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as first,
            FaultServer(sleep=clock.sleep, clock=clock.now) as second,
            FaultServer(sleep=clock.sleep, clock=clock.now) as dead,
            llmopt.AsyncClient(config(first, second, dead), clock=clock) as client,
        ):
            for server in (first, second, dead):
                server.default(slow)

            async def timed(number: int) -> float:
                started = clock.elapsed
                assert await one(client, number) == "ok"
                return clock.elapsed - started

            async def calls(start: int, seconds: int) -> list[float]:
                tasks = []
                for number in range(start, start + 25 * seconds):
                    tasks.append(asyncio.create_task(timed(number)))
                    await clock.sleep(0.04)
                return [await task for task in tasks]

            before = await calls(0, scaled(8, nightly=30))
            dead.default(Script([Stall()]))
            meanwhile = await calls(10_000, scaled(16, nightly=30))
            # Long enough that the probes of the dead endpoint, one in five to ten seconds, are well below one in a hundred.
            after = await calls(20_000, scaled(30, nightly=60))
            assert percentile(after, 0.99) <= 1.5 * percentile(before, 0.99)
            # Until then some had to wait for the attempt's timeout, and came through elsewhere.
            assert max(meanwhile) > 1

    run_simulated(main)


def test_one_timeout_does_not_divert_traffic() -> None:
    """An endpoint that hung once and answers again has its half of the requests."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as steady,
            FaultServer(sleep=clock.sleep, clock=clock.now) as hung,
        ):
            slow = Script([Wait(0.1), Respond(answer_openai)])
            for server in (steady, hung):
                server.default(slow)
            entry = config(steady, hung, timeouts={"read": 20})
            async with llmopt.AsyncClient(entry, clock=clock, flags={"adaptive_timeouts": False}) as client:
                assert {await one(client, number) for number in range(20)} == {"ok"}
                hung.play(Script([Stall()]))
                numbers = itertools.count(1_000)
                while hung.unplayed:
                    assert await one(client, next(numbers)) == "ok"
                assert clock.elapsed > 20
                before = len(hung.requests)
                for number in range(2_000, 2_100):
                    assert await one(client, number) == "ok"
                assert 30 <= len(hung.requests) - before <= 70

    run_simulated(main)


def test_a_retry_prefers_another_endpoint() -> None:
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


def test_waiting_for_an_open_circuit_sends_only_probes() -> None:
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
