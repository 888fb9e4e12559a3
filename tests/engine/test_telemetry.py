"""Events of connections and limits, and their cost without a listener."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import Any

import pytest

import llmopt
from llmopt.engine.telemetry import Telemetry
from llmopt.testing import FakeProvider
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.transport.connector import Connector
from llmopt.transport.pool import ConnectionPool
from llmopt.values.events import Event, LimitLearned, PoolCheckout, PoolReuse, PoolSize
from tests.support.configuration import provider_config
from tests.support.emulators import TEIEmulator
from tests.support.faults import (
    Answer,
    FaultServer,
    MaxItems,
    Respond,
    Script,
    Stall,
    TokenLimit,
    Wait,
    answer_openai,
)
from tests.transport.helpers import embed_request

MODEL = "server/m"


config = functools.partial(provider_config, retry_delay=0.001)


def of(kind: type[Event], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


async def test_each_checkout_reports_its_duration_and_connection() -> None:
    """One event for each request, in order: the first makes a connection, the others use it."""
    events: list[Event] = []
    async with FaultServer() as server, llmopt.AsyncClient(config(server), on_event=events.append) as client:
        server.default(answer_openai)
        for number in range(3):
            await client.embed(MODEL, [f"text {number}"])
        origin = server.base_url
    taken = of(PoolCheckout, events)
    assert [event.reused for event in taken] == [False, True, True]
    assert all(event.seconds >= 0 for event in taken)
    assert {(event.provider, event.endpoint) for event in taken} == {("server", origin)}
    assert [event.served for event in of(PoolReuse, events)] == [1, 2]
    assert [(event.open, event.in_use) for event in of(PoolSize, events)] == [(1, 1)]


async def test_pool_size_events_follow_each_change() -> None:
    """Up with each connection that is made, down when one is given up."""
    events: list[Event] = []
    gate = asyncio.Event()
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(
            config(server, timeouts={"read": 0.2, "first": 60}), on_event=events.append
        ) as client,
    ):
        server.default(answer_openai)
        server.play(*[Script([Wait(gate), Respond(answer_openai)])] * 3)
        calls = [asyncio.create_task(client.embed(MODEL, [f"text {number}"])) for number in range(3)]
        await server.wait_requests(3)
        assert [event.open for event in of(PoolSize, events)][-1] == 3
        gate.set()
        await asyncio.gather(*calls)
        before = len(of(PoolSize, events))
        server.play(Script([Stall()]))
        await client.embed(MODEL, ["a call whose first connection is given up"])
    # What was broken off is no longer counted; the others were kept.
    assert of(PoolSize, events)[before].open == 2


def test_a_wait_for_a_connection_is_part_of_its_checkout() -> None:
    """Two requests, one connection: the second one's checkout lasts as long as the first one's answer."""

    async def main(clock: SimulatedClock) -> None:
        events: list[Event] = []
        trace = Telemetry(events.append).pool_trace("server", "http://x")
        pool = ConnectionPool(pool_size=1, trace=trace)
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.default(answer_openai)
            server.play(Script([Wait(3.0), Respond(answer_openai)]))
            await asyncio.gather(*(pool.send(embed_request(server)) for _ in range(2)))
            await pool.aclose()
        assert [round(event.seconds) for event in of(PoolCheckout, events)] == [0, 3]
        assert [(event.open, event.waiting) for event in of(PoolSize, events)] == [(1, 1)]

    run_simulated(main)


def test_without_a_listener_a_pool_is_not_traced() -> None:
    """It looks at no clock, counts nothing, and makes no event."""
    assert Telemetry(None).pool_trace("server", "http://x") is None


async def test_without_a_listener_the_connector_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told how long a connection was waited for."""

    def never(*_: object) -> None:
        raise AssertionError("somebody measures")

    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        with monkeypatch.context() as patched:
            patched.setattr(Connector, "waiting", property(never))
            assert (await client.embed(MODEL, ["a"])).vectors.shape == (1, 4)


async def test_learned_batch_limits_are_events() -> None:
    """Found by halving, or stated by the server; each once."""
    events: list[Event] = []
    texts = [f"text {number}" for number in range(200)]
    async with FaultServer() as server:
        server.default(MaxItems(64, state_limit=False))
        entry = {"base_url": server.base_url, "api_key": "test-key"}
        async with llmopt.AsyncClient({"providers": {"openai": entry}}, on_event=events.append) as client:
            await client.embed("openai/m", texts)
        found = of(LimitLearned, events)
        assert [(event.limit, event.value, event.source) for event in found] == [
            ("max_items", 100, "observed"),
            ("max_items", 50, "observed"),
        ]
        events.clear()
        server.default(TokenLimit(100, per="request"))
        async with llmopt.AsyncClient({"providers": {"openai": entry}}, on_event=events.append) as client:
            await client.embed("openai/n", texts)
    stated = [event for event in of(LimitLearned, events) if event.source == "stated"]
    assert [(event.limit, event.value) for event in stated] == [("max_tokens", 95)]


async def test_server_limits_are_reported_once() -> None:
    """TEI's /info, asked before the first batch."""
    events: list[Event] = []
    async with (
        TEIEmulator(max_client_batch_size=8) as server,
        llmopt.AsyncClient(
            {"providers": {"p": {"plugin": "local", "base_url": server.base_url, "flavour": "tei"}}},
            on_event=events.append,
        ) as client,
    ):
        await client.embed("p/bge", ["a"])
        await client.embed("p/bge", ["b"])
    told = [(event.limit, event.value) for event in of(LimitLearned, events) if event.source == "server"]
    assert ("max_items", 8) in told
    assert len(told) == len(set(told))


@pytest.mark.row("C17")
async def test_a_listener_that_raises_does_not_affect_calls(caplog: pytest.LogCaptureFixture) -> None:
    """C17: it is logged once for each kind of event, and everything goes on."""

    def broken(event: Event) -> None:
        raise RuntimeError(f"exporter down at {event.name}")

    async with FaultServer() as server, llmopt.AsyncClient(config(server), on_event=broken) as client:
        server.default(answer_openai)
        for text in ("a", "b"):
            assert (await client.embed(MODEL, [text])).vectors.shape == (1, 4)
    warnings = [each.message for each in caplog.records if "on_event raised" in each.message]
    assert "the listener on_event raised on request.start" in warnings
    assert len(set(warnings)) == len(warnings)
    assert "exporter down at request.start" in caplog.text


# What an operator reads of a client: counters and gauges as plain values.

DOWN = bytes(Answer(503, b'{"error":{"message":"down"}}', [("content-type", "application/json")]))
NO_KEY = bytes(Answer(401, b'{"error":{"message":"who?"}}', [("content-type", "application/json")]))


def only(client: llmopt.AsyncClient | llmopt.Client) -> dict[str, Any]:
    ((provider, endpoints),) = client.stats().items()
    ((endpoint, found),) = endpoints.items()
    assert provider
    assert endpoint
    counters: dict[str, Any] = found
    return counters


def test_counters_report_requests_and_reasons_for_waiting() -> None:
    """Requests, retries, errors by name, tokens, and seconds by cause."""

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            entry = {"plugin": "local", "base_url": server.base_url, "max_retries": 1, "rpm": 60}
            async with llmopt.AsyncClient({"providers": {"server": entry}}, clock=clock) as client:
                server.default(answer_openai)
                server.play(DOWN)
                for number in range(4):
                    await client.embed("server/m", [f"text {number}"])
                server.play(NO_KEY)
                with pytest.raises(llmopt.AuthError):
                    await client.embed("server/m", ["refused"])
                found = only(client)
                assert found["requests"] == len(server.requests) == 6
                assert found["succeeded"] == 4
                assert found["errors"] == {"Overloaded": 1, "AuthError": 1}
                assert found["retries"] == 1
                assert found["input_tokens"] > 0
                assert found["waited_s"]["limiter"] > 3
                assert found["in_flight"] == found["waiting"] == 0
                assert found["breakers"]["m embeddings"] == {"origin": "closed", "model": "closed"}
                json.dumps(client.stats())

    run_simulated(main)


def test_in_process_requests_are_counted() -> None:
    """A user of the embedded model sees what it did."""
    with llmopt.Client({"providers": {"local": {}}}) as client:
        client.embed("local/default", ["one", "two"])
        found = only(client)
        assert (found["requests"], found["succeeded"]) == (1, 1)


def test_a_fake_counts_chats_and_their_tokens() -> None:
    """Chats, streamed or not, are requests like any other."""
    with FakeProvider() as fake, llmopt.Client(fake.config, transport=fake.transport) as client:
        client.chat("fake/fake-chat", [{"role": "user", "content": "hello"}])
        with client.stream("fake/fake-chat", [{"role": "user", "content": "hello"}]) as stream:
            list(stream)
        found = only(client)
        assert (found["requests"], found["succeeded"], found["errors"]) == (2, 2, {})
        assert found["output_tokens"] > 0
