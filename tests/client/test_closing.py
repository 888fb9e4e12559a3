"""Closing a client while its calls wait for something."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.configuration import provider_config
from tests.support.faults import Answer, FaultServer, Script, Stall, answer_openai, retry_after, serving
from tests.support.scale import scaled

MODEL = "server/m"
DOWN = Answer(500, b'{"error": {"message": "down"}}', [("content-type", "application/json")])
Scene = Callable[[llmopt.AsyncClient, FaultServer, SimulatedClock], Awaitable[list[asyncio.Task[Any]]]]


config = functools.partial(provider_config, max_concurrency=1, max_retries=5)


def embedding(client: llmopt.AsyncClient, number: int = 0, **options: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(client.embed(MODEL, [f"text {number}"], **options))


async def in_flight(client: llmopt.AsyncClient, server: FaultServer, _: SimulatedClock) -> list[Any]:
    server.default(Script([Stall()]))
    call = embedding(client)
    await server.wait_requests(2)
    return [call]


async def for_a_slot(client: llmopt.AsyncClient, server: FaultServer, clock: SimulatedClock) -> list[Any]:
    calls = await in_flight(client, server, clock)
    calls += [embedding(client, number) for number in range(1, 5)]
    await clock.sleep(0.1)
    return calls


async def for_the_limiter(
    client: llmopt.AsyncClient, server: FaultServer, clock: SimulatedClock
) -> list[Any]:
    server.play(retry_after("60"))
    calls = [embedding(client)]
    await server.wait_requests(2)
    calls += [embedding(client, number) for number in range(1, 5)]
    await clock.sleep(1)
    return calls


async def to_try_again(client: llmopt.AsyncClient, server: FaultServer, clock: SimulatedClock) -> list[Any]:
    server.default(DOWN)
    call = embedding(client)
    await server.wait_requests(2)
    await clock.sleep(0.5)
    return [call]


async def for_a_circuit(client: llmopt.AsyncClient, server: FaultServer, clock: SimulatedClock) -> list[Any]:
    server.default(DOWN)
    outcome: object = None
    while not isinstance(outcome, llmopt.CircuitOpen):
        outcome = (await asyncio.gather(embedding(client), return_exceptions=True))[0]
    calls = [embedding(client, number, when_open="wait") for number in range(5)]
    await clock.sleep(0.5)
    return calls


async def of_models(client: llmopt.AsyncClient, server: FaultServer, _: SimulatedClock) -> list[Any]:
    server.default(Script([Stall()]))
    call = asyncio.create_task(client.list_models("server"))
    await server.wait_requests(2)
    return [call]


async def of_a_chat(client: llmopt.AsyncClient, server: FaultServer, _: SimulatedClock) -> list[Any]:
    server.default(Script([Stall()]))
    call = asyncio.create_task(client.chat(MODEL, [{"role": "user", "content": "hello"}]))
    await server.wait_requests(2)
    return [call]


async def of_parts(client: llmopt.AsyncClient, server: FaultServer, _: SimulatedClock) -> list[Any]:
    server.default(Script([Stall()]))

    async def consume() -> int:
        async with client.embed_iter(MODEL, (f"text {number}" for number in range(200))) as parts:
            return len([part async for part in parts])

    call = asyncio.create_task(consume())
    await server.wait_requests(2)
    return [call]


SCENES: list[Scene] = [
    in_flight,
    for_a_slot,
    for_the_limiter,
    to_try_again,
    for_a_circuit,
    of_models,
    of_a_chat,
    of_parts,
]


@pytest.mark.row("C06")
@pytest.mark.parametrize("coalesce", [True, False], ids=["coalesced", "alone"])
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_closing_fails_waiting_calls_at_once(scene: Scene, coalesce: bool) -> None:
    """ClientClosed, in no time; no connection and no task is left."""

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.default(answer_openai)
            client = llmopt.AsyncClient(config(server), clock=clock, flags={"coalesce": coalesce})
            await client.embed(MODEL, ["warm"])
            calls = await scene(client, server, clock)
            closing = clock.elapsed
            await client.aclose()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {llmopt.ClientClosed}
            assert clock.elapsed - closing < 0.05
            await server.wait_all_closed()
            with pytest.raises(llmopt.ClientClosed):
                await client.embed(MODEL, ["afterwards"])
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_simulated(main)


@pytest.mark.row("C06")
async def test_a_client_can_be_closed_by_one_of_its_calls() -> None:
    """From within the consumer of its parts: it closes, and its own call ends like all others."""
    async with FaultServer() as server:
        server.default(answer_openai)
        client = llmopt.AsyncClient(config(server))
        with pytest.raises(llmopt.ClientClosed):
            async with client.embed_iter(MODEL, (f"text {number}" for number in range(5_000))) as parts:
                async for _ in parts:
                    await client.aclose()
        await server.wait_all_closed()


CALLS: dict[str, Callable[[llmopt.Client], Any]] = {
    "embed": lambda client: client.embed(MODEL, [f"text {number}" for number in range(40)]),
    "embed_iter": lambda client: list(client.embed_iter(MODEL, ["a", "b", "c"])),
    "list_models": lambda client: client.list_models("server"),
    "batch_list_models": lambda client: client.batch_list_models(["server"]),
    "chat": lambda client: client.chat(MODEL, [{"role": "user", "content": "hello"}]),
}


def outcome_of(call: Callable[[llmopt.Client], Any], client: llmopt.Client) -> str:
    try:
        found = call(client)
    except llmopt.LLMOptError as error:
        return type(error).__name__
    if isinstance(found, dict):
        return next((type(e).__name__ for e in found.values() if isinstance(e, llmopt.LLMOptError)), "ok")
    return "ok"


@pytest.mark.row("C01", "C06")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_sync_client_can_be_closed_at_any_loop_iteration(
    call: Callable[[llmopt.Client], Any],
) -> None:
    """From another thread, cold and warm: the call ends with a result or with ClientClosed, and never hangs."""
    seen: set[str] = set()
    with serving() as thread:
        thread.server.default(answer_openai)
        for warm in (False, True):
            for turns in range(0, 60, scaled(6, nightly=2)):
                client = llmopt.Client(config(thread.server, max_concurrency=4))
                if warm:
                    call(client)
                running = client._running_thread().loop
                now = threading.Event()

                def count(left: int, loop: Any = running, now: threading.Event = now) -> None:
                    loop.call_soon(count, left - 1) if left else now.set()

                outcomes: list[str] = []
                caller = threading.Thread(target=lambda c=client, o=outcomes: o.append(outcome_of(call, c)))
                running.call_soon_threadsafe(count, turns)
                caller.start()
                assert now.wait(10)
                client.close()
                caller.join(10)
                assert not caller.is_alive()
                seen.update(outcomes)
                with pytest.raises(llmopt.ClientClosed):
                    client.embed(MODEL, ["afterwards"])
        thread.run(thread.server.wait_all_closed())
    assert seen <= {"ok", "ClientClosed"}
    assert "ClientClosed" in seen
