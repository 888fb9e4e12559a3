"""Streams over custom transports: httpx's own, and one without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import llmopt
from llmopt.testing import installed
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.faults import (
    FaultServer,
    Script,
    Send,
    Stall,
    answer_openai,
    error_answer,
    stream_answer,
    stream_events,
)
from tests.support.streams import (
    DONE,
    MESSAGES,
    MODEL,
    TEXT,
    WORDS,
    chunk,
    config,
    events_of,
    head,
    stream_script,
    text_of,
    unfinished_stream,
    until,
    word_events,
)


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as made:
        yield made


@pytest.fixture
async def client(server: FaultServer) -> AsyncIterator[llmopt.AsyncClient]:
    """Over httpx's own transport, with one connection: a slot that is lost is noticed at once."""
    transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=1))
    async with llmopt.AsyncClient(config(server, max_concurrency=4), transport=transport) as made:
        yield made


async def test_a_complete_stream_is_read(server: FaultServer, client: llmopt.AsyncClient) -> None:
    """And the same connection for the next one."""
    server.default(stream_answer(WORDS))
    for _ in range(5):
        assert await text_of(client) == TEXT
    assert server.connections == 1


@pytest.mark.row("E07")
async def test_a_stream_without_its_final_event_is_an_error(
    server: FaultServer, client: llmopt.AsyncClient
) -> None:
    """The reader does not wait for it; the next request gets its connection."""
    server.play(stream_script(b"".join(stream_events(WORDS)), end=[Stall()]), answer_openai)
    assert await text_of(client) == TEXT
    assert await text_of(client) == "Hello world"


@pytest.mark.row("E10")
async def test_a_connection_that_breaks_interrupts_the_stream(
    server: FaultServer, client: llmopt.AsyncClient
) -> None:
    """With the events received before."""
    server.play(unfinished_stream(*word_events()))
    with pytest.raises(llmopt.StreamInterrupted) as caught:
        await events_of(client)
    assert caught.value.text == TEXT


@pytest.mark.row("E06")
async def test_a_silent_stream_times_out(server: FaultServer) -> None:
    """The clocks are ours."""
    times = {"first": 0.05, "first_event": 0.05, "idle": 0.1}
    transport = httpx.AsyncHTTPTransport()
    async with llmopt.AsyncClient(config(server, times), transport=transport) as client:
        server.default(Script([Send(head()), Send(chunk(word_events()[1])), Stall()]))
        with pytest.raises(llmopt.StreamIdle):
            await events_of(client)
        await server.wait_all_closed()


@pytest.mark.row("E11")
async def test_leaving_the_block_early_closes_the_stream(
    server: FaultServer, client: llmopt.AsyncClient
) -> None:
    """Many times over the only connection."""
    server.default(Script([Send(head()), Send(chunk(b"".join(word_events()))), Stall()]))
    for _ in range(20):
        async with client.stream(MODEL, MESSAGES) as stream:
            await anext(stream)
    server.default(answer_openai)
    assert await text_of(client) == "Hello world"
    await until(lambda: server.open_connections <= 1)


@pytest.mark.row("C01")
async def test_cancelled_at_any_turn(server: FaultServer, client: llmopt.AsyncClient) -> None:
    """httpx's pool, which loses a slot to a cancellation at the wrong moment, is never cancelled."""
    server.default(lambda request: stream_script(*word_events(), DONE))
    for turns in range(60):
        task = asyncio.create_task(text_of(client))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await text_of(client) == TEXT, turns


@pytest.mark.row("E12")
async def test_an_error_status_raises_before_the_first_event(
    server: FaultServer, client: llmopt.AsyncClient
) -> None:
    """A hundred over one connection."""
    server.default(error_answer(400, "no"))
    for _ in range(100):
        with pytest.raises(llmopt.BadRequest):
            await events_of(client)
    assert server.connections == 1


async def test_a_stream_without_a_network_raises_connect_failed() -> None:
    """A mock transport, as tests of applications use it."""

    def answer(request: httpx.Request) -> httpx.Response:
        async def body() -> AsyncIterator[bytes]:
            for each in stream_events(WORDS):
                yield each

        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body())

    entry: Any = {"providers": {"server": {"plugin": "local", "base_url": "http://127.0.0.1:9/v1"}}}
    async with llmopt.AsyncClient(entry, transport=httpx.MockTransport(answer)) as client:
        assert await text_of(client) == TEXT
        async with client.stream(MODEL, MESSAGES) as stream:
            await anext(stream)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_in_process_engine_streams() -> None:
    """Without queues, circuits and timeouts, and left early like any other."""

    def answer(request: httpx.Request) -> httpx.Response:
        async def body() -> AsyncIterator[bytes]:
            for each in stream_events(WORDS):
                yield each

        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body())

    plugin = SimpleNamespace(
        provider_profile=llmopt.hookimpl(lambda: llmopt.Profile(in_process=True, key_required=False)),
        open_transport=llmopt.hookimpl(lambda: httpx.MockTransport(answer)),
    )
    with installed("inside", plugin):
        async with llmopt.AsyncClient() as client:
            async with client.stream("inside/m", MESSAGES) as stream:
                assert "".join([each.text async for each in stream]) == TEXT
            async with client.stream("inside/m", MESSAGES) as stream:
                await anext(stream)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (TimeoutError(), llmopt.AttemptTimeout),
        (MemoryError(), llmopt.OutOfResources),
        (httpx.Response(429), llmopt.RateLimited),
        (httpx.Response(503), llmopt.Overloaded),
    ],
    ids=lambda each: type(each).__name__,
)
def test_an_in_process_engine_fails_as_any_other(
    failure: Exception | httpx.Response, expected: type[llmopt.LLMOptError]
) -> None:
    """With the attempt in the error, though no policy applies to it: its timeout is infinite."""

    def answer(request: httpx.Request) -> httpx.Response:
        if isinstance(failure, Exception):
            raise failure
        return failure

    async def main(clock: SimulatedClock) -> None:
        plugin = SimpleNamespace(
            provider_profile=llmopt.hookimpl(lambda: llmopt.Profile(in_process=True, key_required=False)),
            open_transport=llmopt.hookimpl(lambda: httpx.MockTransport(answer)),
        )
        with installed("inside", plugin):
            async with llmopt.AsyncClient() as client:
                with pytest.raises(expected) as caught:
                    await client.embed("inside/m", ["one"])
        assert [each.outcome for each in caught.value.attempts] == [expected.__name__]

    run_simulated(main)


async def test_an_in_process_engine_without_chat_is_a_clear_error() -> None:
    """Says so, before anything is loaded."""
    async with llmopt.AsyncClient() as client:
        with pytest.raises(llmopt.InvalidInput, match="has no chat, only a list of models and embeddings"):
            async with client.stream("local/default", MESSAGES):
                raise AssertionError
        with pytest.raises(llmopt.InvalidInput, match="has no chat, only a list of models and embeddings"):
            await client.chat("local/default", MESSAGES)
