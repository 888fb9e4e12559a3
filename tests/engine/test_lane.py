"""The lane: first attempts that have nothing to wait for, run by callbacks; with it and without it all is the same."""

from __future__ import annotations

import asyncio
import functools
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest
from attrs import asdict

import llmopt
from tests.support.configuration import provider_config
from tests.support.faults import Answer, FaultServer, Respond, Script, Wait, answer_openai, vector_for

MODEL = "server/m"
MESSAGES = [{"role": "user", "content": "Grüße?"}]
DOWN = Answer(500, b'{"error": {"message": "down"}}', [("content-type", "application/json")])
TIMES = {"seconds", "call_id", "request_key", "endpoint", "delay"}
"""Fields of events that differ from run to run."""

config = functools.partial(provider_config, retry_delay=0.001, max_batch_size=8)


def counted(client: llmopt.AsyncClient, name: str) -> int:
    return sum(endpoint[name] for group in client.stats().values() for endpoint in group.values())


async def call_everything(client: llmopt.AsyncClient, name: str) -> None:
    """All operations but streams, a call of several batches, and characters beyond ASCII."""
    await client.embed(MODEL, [f"{name} ä", f"{name} 漢字"])
    await client.embed(MODEL, [f"{name} {number}" for number in range(20)], deadline=60.0)
    await client.chat(MODEL, MESSAGES)
    await client.list_models("server", cached="refresh")


async def test_nearly_all_first_attempts_are_run_by_the_lane() -> None:
    """With two endpoints, a listener and a cache; without, of course, the first ones over a new connection."""
    found: list[Any] = []
    async with FaultServer() as one, FaultServer() as two:
        one.default(answer_openai)
        two.default(answer_openai)
        async with llmopt.AsyncClient(config(one, two), on_event=found.append, cache="memory") as client:
            for number in range(4):
                await call_everything(client, f"warm {number}")
            sent, lane = counted(client, "requests"), counted(client, "lane")
            for number in range(10):
                await call_everything(client, f"counted {number}")
            sent, lane = counted(client, "requests") - sent, counted(client, "lane") - lane
    assert sent == 10 * (1 + 3 + 1 + 1)
    assert lane >= 0.95 * sent
    assert one.requests
    assert two.requests


@pytest.mark.parametrize("failures", [0, 1, 2])
async def test_the_events_are_the_same_without_the_lane(failures: int) -> None:
    """In the same order and with the same ids, also when the first attempt fails, or all do."""
    runs = []
    for lane in (True, False):
        found: list[Any] = []
        async with FaultServer() as server:
            server.default(answer_openai)
            flags = {"lane": lane}
            async with llmopt.AsyncClient(config(server), on_event=found.append, flags=flags) as client:
                await client.embed(MODEL, ["warm"])
                found.clear()
                server.play(*[DOWN] * failures)
                try:
                    await client.embed(MODEL, ["one"])
                except llmopt.ServerError as error:
                    assert [each.outcome for each in error.attempts] == ["ServerError"] * 2
                await client.chat(MODEL, MESSAGES)
                assert (counted(client, "lane") > 0) == lane
        assert len({each.request_key for each in found if each.name == "request.attempt"}) == 2
        runs.append(
            [
                (each.name, {key: value for key, value in asdict(each).items() if key not in TIMES})
                for each in found
            ]
        )
    assert runs[0] == runs[1]


async def test_the_listener_sees_the_context_of_the_caller() -> None:
    """Also in the callback of the connection."""
    user: ContextVar[str] = ContextVar("user", default="nobody")
    seen: list[tuple[str, str]] = []
    async with FaultServer() as server:
        server.default(answer_openai)

        def listen(event: Any) -> None:
            seen.append((event.name, user.get()))

        async with llmopt.AsyncClient(config(server), on_event=listen) as client:
            await client.embed(MODEL, ["warm"])
            seen.clear()
            user.set("somebody")
            await client.embed(MODEL, ["a"])
    attempts = [who for name, who in seen if name in {"request.attempt", "request.end"}]
    assert attempts == ["somebody"] * 2


async def test_the_last_caller_that_leaves_gives_the_request_up() -> None:
    """Its connection is closed, its place is free, and a call that comes later asks again."""
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        await client.embed(MODEL, ["warm"])
        server.play(Script([Wait(gate), Respond(answer_openai)]))
        calls = [asyncio.create_task(client.embed(MODEL, ["a"])) for _ in range(3)]
        await server.wait_requests(2)
        assert counted(client, "lane") == 1
        for call in calls[:2]:
            call.cancel()
        await asyncio.gather(*calls[:2], return_exceptions=True)
        assert counted(client, "in_flight") == 1
        calls[2].cancel()
        await asyncio.gather(calls[2], return_exceptions=True)
        assert (counted(client, "in_flight"), counted(client, "cancelled")) == (0, 1)
        await server.wait_all_closed()
        gate.set()
        assert (await client.embed(MODEL, ["a"])).vectors.shape == (1, 4)


@pytest.mark.parametrize("coalesce", [True, False])
async def test_a_close_ends_what_the_lane_has_sent(coalesce: bool) -> None:
    """With ClientClosed, whether calls are shared or not."""
    gate = asyncio.Event()
    async with FaultServer() as server:
        server.default(answer_openai)
        client = llmopt.AsyncClient(config(server), flags={"coalesce": coalesce})
        await client.embed(MODEL, ["warm"])
        server.play(Script([Wait(gate), Respond(answer_openai)]))
        call = asyncio.create_task(client.embed(MODEL, ["a"]))
        await server.wait_requests(2)
        assert counted(client, "lane") == 1
        await client.aclose()
        with pytest.raises(llmopt.ClientClosed):
            await call
        gate.set()


async def test_a_deadline_ends_what_the_lane_has_sent() -> None:
    """As that of any call."""
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        await client.embed(MODEL, ["warm"])
        server.play(Script([Wait(gate), Respond(answer_openai)]))
        with pytest.raises(llmopt.DeadlineExceeded):
            await client.embed(MODEL, ["a"], deadline=0.05)
        assert counted(client, "lane") == 1
        gate.set()
        assert np.array_equal((await client.embed(MODEL, ["a"])).vectors[0], vector_for("a", 4))
