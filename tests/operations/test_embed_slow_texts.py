"""Batches that take too long: they are retried in halves, and one slow text costs itself alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import BreakerChanged, Event
from tests.support.configuration import provider_config
from tests.support.faults import (
    FaultServer,
    Request,
    Respond,
    Script,
    Stall,
    Wait,
    answer_openai,
    error_answer,
)
from tests.support.faults.script import Reply
from tests.support.scale import scaled

MODEL = "server/m"
TEXTS = [f"text {number}" for number in range(32)]
STALL = Script([Stall()])


def config(*servers: FaultServer, **entry: Any) -> dict[str, Any]:
    return provider_config(
        *servers, **{"timeouts": {"read": 2.0}, "retry_delay": 0.2, "max_retries": 3, **entry}
    )


def slow_for(*texts: str, reply: Reply = STALL) -> Callable[[Request], Reply]:
    """A server that hangs, or answers so, for requests with one of these texts."""

    def respond(request: Request) -> Reply:
        return answer_openai(request) if set(texts).isdisjoint(request.json()["input"]) else reply

    return respond


def sizes(server: FaultServer) -> list[int]:
    return [len(request.json()["input"]) for request in server.requests]


WAYS = {
    "no answer": STALL,
    "504 of a gateway": error_answer(504, "upstream request timeout"),
    "408": error_answer(408, "request timeout"),
    "524 of a gateway": error_answer(524, "a timeout occurred"),
}


@pytest.mark.row("B04")
@settings(max_examples=scaled(12, nightly=150), deadline=None)
@given(
    slow=st.sets(st.integers(0, 31), min_size=1, max_size=2),
    way=st.sampled_from(sorted(WAYS)),
    retries=st.sampled_from([0, 1, 3]),
    warm=st.booleans(),
)
def test_slow_texts_cost_themselves_alone(slow: set[int], way: str, retries: int, warm: bool) -> None:
    """Wherever they are; no circuit opens, and the error says what it was."""

    async def main(clock: SimulatedClock) -> None:
        events: list[Event] = []
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.default(slow_for(*(TEXTS[at] for at in slow), reply=WAYS[way]))
            keys = config(server, max_retries=retries)
            async with llmopt.AsyncClient(keys, clock=clock, on_event=events.append, cache=False) as client:
                if warm:
                    await client.embed(MODEL, ["warm"])
                result = await client.embed(MODEL, TEXTS, errors="return")
            if retries == 0 and min(slow) < 16 <= max(slow):
                # Without retries there is one search level, and nothing of it succeeded.
                return
            assert set(result.errors) == slow
            kind = llmopt.AttemptTimeout if way == "no answer" else llmopt.RequestTimeout
            assert all(isinstance(error, kind) for error in result.errors.values())
            assert len(server.requests) <= 1 + warm + len(slow) * 10
        assert not any(isinstance(event, BreakerChanged) for event in events)

    run_simulated(main)


@pytest.mark.row("B05")
def test_texts_that_are_slow_in_sum_all_arrive() -> None:
    """0.1 s a text with a timeout of 2 s: batches of 32 are too large, and the next ones are smaller."""

    def steady(request: Request) -> Reply:
        return Script([Wait(0.1 * len(request.json()["input"])), Respond(answer_openai)])

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.default(steady)
            keys = config(server, max_concurrency=2)
            async with llmopt.AsyncClient(keys, clock=clock, cache=False) as client:
                await client.embed(MODEL, ["warm"])
                texts = [f"text {number}" for number in range(160)]
                assert (await client.embed(MODEL, texts)).errors == {}
            assert sizes(server)[:3] == [1, 32, 32]
            assert max(sizes(server)[5:]) <= 16

    run_simulated(main)


@pytest.mark.row("B05")
def test_a_server_that_hangs_once() -> None:
    """The retry waits as retries do, and is in halves."""

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            async with llmopt.AsyncClient(config(server), clock=clock, cache=False) as client:
                await client.embed(MODEL, ["warm"])
                server.play(STALL)
                started = clock.elapsed
                assert (await client.embed(MODEL, TEXTS)).errors == {}
                assert 2.2 <= clock.elapsed - started <= 2.6
            assert sizes(server) == [1, 32, 16, 16]

    run_simulated(main)


@pytest.mark.row("B05")
@pytest.mark.parametrize(("retries", "levels"), [(0, 1), (1, 2), (2, 2), (3, 3)])
def test_a_server_that_hangs_for_ever(retries: int, levels: int) -> None:
    """Every level is a retry; up to two there is one level more than retries."""

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.default(STALL)
            keys = config(
                server, max_retries=retries, timeouts={"read": 2.0, "first": 2.0}, flags={"breaker": False}
            )
            async with llmopt.AsyncClient(keys, clock=clock, cache=False) as client:
                with pytest.raises(llmopt.AttemptTimeout):
                    await client.embed(MODEL, TEXTS)
            assert sizes(server) == [32 >> level for level in range(levels + 1) for _ in range(1 << level)]

    run_simulated(main)


@pytest.mark.row("B05")
def test_an_outage_is_waited_for() -> None:
    """With ``when_open="wait"`` a job outlives a server that hangs for five minutes, however few the retries are."""

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            keys = config(server, max_retries=1, max_batch_size=4)
            async with llmopt.AsyncClient(keys, clock=clock, cache=False) as client:
                await client.embed(MODEL, ["warm"])
                server.default(STALL)
                texts = [f"text {number}" for number in range(80)]
                job = asyncio.create_task(client.embed(MODEL, texts, when_open="wait"))
                await clock.sleep(300.0)
                assert not job.done()
                server.default(answer_openai)
                assert (await job).errors == {}

    run_simulated(main)


@pytest.mark.row("B04")
def test_a_deadline_bounds_the_search() -> None:
    """The caller's time is never exceeded."""

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.default(slow_for(TEXTS[5]))
            async with llmopt.AsyncClient(config(server), clock=clock, cache=False) as client:
                await client.embed(MODEL, ["warm"])
                started = clock.elapsed
                result = await client.embed(MODEL, TEXTS, deadline=5.0, errors="return")
                assert clock.elapsed - started <= 5.1
        assert 5 in result.errors
        assert len(result.errors) < 32

    run_simulated(main)


@pytest.mark.row("B05")
def test_another_endpoint_gets_the_whole_batch() -> None:
    """What hangs may be the endpoint: it is asked in one request elsewhere, before anything is split."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as dead,
            FaultServer(sleep=clock.sleep, clock=clock.now) as good,
        ):
            dead.default(STALL)
            keys = config(dead, good, flags={"balance": False}, timeouts={"read": 2.0, "first": 2.0})
            async with llmopt.AsyncClient(keys, clock=clock, cache=False) as client:
                assert (await client.embed(MODEL, TEXTS)).errors == {}
            assert (sizes(dead), sizes(good)) == ([32], [32])

    run_simulated(main)
