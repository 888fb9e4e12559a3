"""Cancellation of a call at every step of the event loop, and of many calls at once."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.configuration import provider_config
from tests.support.faults import (
    Answer,
    FaultServer,
    Framing,
    Request,
    Respond,
    Script,
    Send,
    Stall,
    Wait,
    answer_openai,
    chunked,
    stream_events,
    vector_for,
)
from tests.support.faults.script import Reply
from tests.support.scale import scaled

MODEL = "server/m"
TURNS = 120
"""More turns of the loop than a call over loopback takes from its start to its end."""


config = functools.partial(provider_config, retry_delay=0.001)


def expected(texts: list[str]) -> np.ndarray[Any, Any]:
    return np.array([vector_for(text, 4) for text in texts], dtype=np.float32)


async def embed(client: llmopt.AsyncClient) -> None:
    texts = [f"text {number}" for number in range(70)]
    found = await client.embed(MODEL, texts)
    np.testing.assert_array_equal(found.vectors, expected(texts))


async def embed_iter(client: llmopt.AsyncClient) -> None:
    async with client.embed_iter(MODEL, (f"text {number}" for number in range(70))) as parts:
        async for part in parts:
            np.testing.assert_array_equal(part.vectors[0], expected([f"text {part.start}"])[0])


async def list_models(client: llmopt.AsyncClient) -> None:
    assert len(await client.list_models("server")) > 0


async def batch_list_models(client: llmopt.AsyncClient) -> None:
    assert len((await client.batch_list_models(["server"]))["server"]) > 0  # type: ignore[arg-type] # a Catalog


async def chat(client: llmopt.AsyncClient) -> None:
    assert (await client.chat(MODEL, [{"role": "user", "content": "Hello?"}])).text == "Hello world"


async def stream(client: llmopt.AsyncClient) -> None:
    async with client.stream(MODEL, [{"role": "user", "content": "Hello?"}]) as events:
        async for _ in events:
            # As a reader that does something with each event.
            await asyncio.sleep(0)
    assert events.text == "Hello world"


async def stream_left_early(client: llmopt.AsyncClient) -> None:
    async with client.stream(MODEL, [{"role": "user", "content": "Hello?"}]) as events:
        await anext(events)


CALLS: list[Callable[[llmopt.AsyncClient], Awaitable[None]]] = [
    embed,
    embed_iter,
    list_models,
    batch_list_models,
    chat,
    stream,
    stream_left_early,
]


async def cancelled_after(turns: int, call: Awaitable[None]) -> bool:
    """Cancel a call after a number of turns of the loop; whether it was still running."""
    task = asyncio.ensure_future(call)
    for _ in range(turns):
        await asyncio.sleep(0)
    was_running = task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return was_running
    return False


def at_rest(client: llmopt.AsyncClient) -> bool:
    endpoint = next(iter(next(iter(client.stats().values())).values()))
    connections = endpoint["connections"]
    return (endpoint["in_flight"], endpoint["waiting"], connections["in_use"], connections["waiting"]) == (
        0,
    ) * 4


async def all_at_rest(client: llmopt.AsyncClient) -> None:
    """Nothing is held any more, at the latest when the formal end of a stream has come."""
    for _ in range(20):
        if at_rest(client):
            return
        await asyncio.sleep(0)
    assert at_rest(client)


def answer_slowly(request: Request) -> Reply:
    """Streams event by event, and their end a little later; everything else at once."""
    if not (request.path.endswith("/chat/completions") and request.json().get("stream")):
        return answer_openai(request)
    head = Answer(200, b"", [("content-type", "text/event-stream")], Framing.CHUNKED).head()
    pieces = [chunked(each).removesuffix(END) for each in stream_events(["Hello", " world"])]
    steps = [step for piece in [head, *pieces, END] for step in (Send(piece), Wait(0.0), Wait(0.0))]
    return Script(steps)


END = b"0\r\n\r\n"


@pytest.mark.row("C01")
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_a_call_can_be_cancelled_at_every_loop_iteration(
    call: Callable[[llmopt.AsyncClient], Awaitable[None]], warm: bool
) -> None:
    """The next call succeeds, and nothing is held by a call that is gone."""
    async with FaultServer() as server:
        server.default(answer_slowly)
        running = True
        turns = 0
        while running and turns < TURNS:
            # A list that is kept needs no request; tests/cache sweeps through the cache itself.
            async with llmopt.AsyncClient(config(server), flags={"cache": False}) as client:
                if warm:
                    await call(client)
                running = await cancelled_after(turns, call(client))
                await call(client)
                await all_at_rest(client)
            turns += 1
        assert turns > 3


@pytest.mark.row("C01")
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_a_close_can_be_cancelled_at_every_loop_iteration(warm: bool) -> None:
    """With and without a call under way: nothing stays open, and closing again is fine."""
    async with FaultServer() as server:
        server.default(answer_openai)
        running, turns = True, 0
        while running and turns < TURNS:
            client = llmopt.AsyncClient(config(server))
            if warm:
                await embed(client)
            server.play(Script([Stall()]))
            call = asyncio.create_task(client.embed(MODEL, [f"call {turns}"]))
            await server.wait_for(lambda: not server.unplayed)
            running = await cancelled_after(turns, client.aclose())
            await client.aclose()
            with pytest.raises(llmopt.ClientClosed):
                await call
            await server.wait_all_closed()
            turns += 1
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.row("C02")
async def test_a_call_can_be_cancelled_twice_at_every_loop_iteration() -> None:
    """The second one while the first is being cleaned up after."""
    async with FaultServer() as server:
        server.default(answer_openai)
        for turns in range(0, 40, scaled(2, nightly=1)):
            for between in range(4):
                async with llmopt.AsyncClient(config(server)) as client:
                    task = asyncio.ensure_future(embed(client))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    task.cancel()
                    for _ in range(between):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
                    await embed(client)
                    assert at_rest(client)


@pytest.mark.row("C02")
def test_cancellation_wins_over_a_simultaneous_timeout() -> None:
    """Of the attempt, of the deadline, of a back-off: the caller's wish is what counts."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(
                config(server, timeouts={"read": 2.0}, retry_delay=1.0), clock=clock
            ) as client,
        ):
            server.default(answer_openai)
            await embed(client)
            for deadline in (None, 2.0):
                server.play(Script([Stall()]))
                call = asyncio.create_task(client.embed(MODEL, ["a"], deadline=deadline))
                asyncio.get_running_loop().call_later(2.0, call.cancel)
                outcome = (await asyncio.gather(call, return_exceptions=True))[0]
                assert isinstance(outcome, (asyncio.CancelledError, llmopt.DeadlineExceeded))
                assert deadline or call.cancelled()
                await embed(client)
                assert at_rest(client)

    run_simulated(main)


CALLS = scaled(1_000, nightly=10_000)


@pytest.mark.row("C04")
async def test_thousands_of_calls_on_ten_connections() -> None:
    """All succeed, each with its own rows; never more connections than allowed."""
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server, pool_size=10, max_concurrency=10)) as client,
    ):
        server.default(answer_openai)

        async def one(number: int) -> bool:
            found = await client.embed(MODEL, [f"text {number}"])
            return bool(np.array_equal(found.vectors, expected([f"text {number}"])))

        good = await asyncio.gather(*map(one, range(CALLS)))
        assert all(good)
        assert at_rest(client)
        assert server.connections == 10
        assert len(server.requests) == CALLS


@pytest.mark.row("C05")
async def test_thousands_of_waiters_are_cancelled() -> None:
    """The lines are empty, and the next call succeeds."""
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server, pool_size=4)) as client:
        server.default(answer_openai)
        server.play(*[Script([Wait(gate), Respond(answer_openai)])] * 4)
        calls = [
            asyncio.create_task(client.embed(MODEL, [f"text {number}"]))
            for number in range(scaled(1_000, nightly=3_000))
        ]
        await server.wait_requests(4)
        for call in calls:
            call.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        gate.set()
        assert (await client.embed(MODEL, ["afterwards"])).vectors.shape == (1, 4)
        assert at_rest(client)


@pytest.mark.row("C06")
async def test_a_client_can_be_closed_concurrently_and_during_a_call() -> None:
    """Many at once, during a call, and a call afterwards."""
    gate = asyncio.Event()
    async with FaultServer() as server:
        server.default(Script([Wait(gate), Respond(answer_openai)]))
        client = llmopt.AsyncClient(config(server))
        call = asyncio.create_task(client.embed(MODEL, ["a"]))
        await server.wait_requests(1)
        await asyncio.gather(*(client.aclose() for _ in range(10)))
        with pytest.raises(llmopt.ClientClosed):
            await call
        with pytest.raises(llmopt.ClientClosed):
            await client.embed(MODEL, ["a"])
        gate.set()
    assert asyncio.all_tasks() == {asyncio.current_task()}
