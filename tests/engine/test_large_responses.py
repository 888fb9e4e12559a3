"""Large responses are parsed in a thread, so that the event loop stays free."""

from __future__ import annotations

import asyncio
import functools
import json
import threading

import pytest

import llmopt
from llmopt import EmbedCall, HttpResponse, hookimpl
from llmopt.engine.request import compress_body
from llmopt.values.embeddings import EmbeddedRows
from tests.support.configuration import provider_config
from tests.support.faults import Answer, FaultServer

_COUNT = 512


class Watcher:
    """A plugin around the provider's: on which threads, and how, answers are read."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.began = threading.Event()
        self.go_on = threading.Event()

    @hookimpl(tryfirst=True)
    def parse_embeddings(self, call: EmbedCall, response: HttpResponse) -> EmbeddedRows | None:
        self.threads.append(threading.get_ident())
        self.began.set()
        if len(response.body) > 1 << 20:
            # On the loop it would wait for ever for what the loop is to do next.
            assert self.go_on.wait(30)
        return None


def answer(count: int, dimensions: int) -> Answer:
    vector = [number / 7 for number in range(1, dimensions + 1)]
    body = {"data": [{"index": row, "embedding": vector} for row in range(count)], "model": "m"}
    return Answer(200, json.dumps(body).encode(), [("content-type", "application/json")])


config = functools.partial(provider_config, name="s", plugin="openai", api_key="key")


async def test_parsing_a_long_response_does_not_block_other_requests() -> None:
    """It is read in another thread, which here waits until a second request is answered."""
    watcher, events = Watcher(), []
    long, short = answer(_COUNT, 1_024), answer(1, 1_024)
    assert len(long.body) > 8 << 20
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server), plugins=[watcher], on_event=events.append) as client,
    ):
        server.play(long)
        server.default(short)
        waiting = asyncio.create_task(client.embed("s/m", [f"text {row}" for row in range(_COUNT)]))
        await asyncio.to_thread(watcher.began.wait, 30)
        assert (await client.embed("s/m", ["another"])).vectors.shape == (1, 1_024)
        watcher.go_on.set()
        assert (await waiting).vectors.shape == (_COUNT, 1_024)
    here = threading.get_ident()
    assert [thread == here for thread in watcher.threads] == [False, True]
    read = [each for each in events if each.name == "json.parse"]
    assert [each.size for each in read] == [len(short.body), len(long.body)]


async def test_an_invalid_long_response_raises_the_usual_error() -> None:
    """By the same error, with its history."""
    watcher = Watcher()
    watcher.go_on.set()
    broken = Answer(200, answer(_COUNT, 1_024).body[:-100])
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server), plugins=[watcher], flags={"retry": False}) as client,
    ):
        server.default(broken)
        with pytest.raises(llmopt.InvalidResponse) as caught:
            await client.embed("s/m", [f"text {row}" for row in range(_COUNT)])
    assert caught.value.reason == "json"
    assert [attempt.outcome for attempt in caught.value.attempts] == ["InvalidResponse"]
    assert threading.get_ident() not in watcher.threads


async def test_a_call_cancelled_during_parsing_ends_at_once() -> None:
    """And gives everything back."""
    watcher = Watcher()
    async with FaultServer() as server, llmopt.AsyncClient(config(server), plugins=[watcher]) as client:
        server.play(answer(_COUNT, 1_024))
        server.default(answer(1, 4))
        waiting = asyncio.create_task(client.embed("s/m", [f"text {row}" for row in range(_COUNT)]))
        await asyncio.to_thread(watcher.began.wait, 30)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        watcher.go_on.set()
        assert (await client.embed("s/m", ["another"])).vectors.shape == (1, 4)
        (endpoint,) = client.stats()["s"].values()
        assert endpoint["in_flight"] == 0


async def test_a_busy_default_executor_does_not_delay_parsing() -> None:
    """Long answers and long packed bodies have threads of their own."""
    watcher = Watcher()
    watcher.go_on.set()
    release = threading.Event()
    loop = asyncio.get_running_loop()
    jobs = [loop.run_in_executor(None, release.wait, 60) for _ in range(64)]
    texts = [f"text {row}" for row in range(_COUNT)]
    try:
        async with (
            FaultServer() as server,
            llmopt.AsyncClient(config(server), plugins=[watcher]) as client,
        ):
            server.default(answer(_COUNT, 1_024))
            # With the program's executor it would end when its jobs do: never, as they wait for this.
            found = await asyncio.wait_for(client.embed("s/m", texts), 50)
            assert found.vectors.shape == (_COUNT, 1_024)
        assert len(await asyncio.wait_for(compress_body(b"0" * (1 << 20)), 50)) < 1 << 14
    finally:
        release.set()
        await asyncio.gather(*jobs)
