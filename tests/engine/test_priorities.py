"""Priorities and the bound of waiting calls, through the whole client in simulated time.

The provider is a function behind an httpx transport. It takes 0.2 s for each request, and notes what it was sent.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

import llmopt
from llmopt.errors import ConfigError, QueueFull
from llmopt.policies.wait_queue import MAX_WAITING_CALLS, WaitingCalls
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.scale import scaled

MODEL = "server/m"
LATENCY_S = 0.2
QUESTION = [{"role": "user", "content": "interactive"}]
BOUND = scaled(200, nightly=MAX_WAITING_CALLS)


class Provider:
    """Answers embeddings, chats and streams; `sent` has the first letter of each request's text."""

    def __init__(self, clock: SimulatedClock) -> None:
        self.clock = clock
        self.sent = ""

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        text = body["messages"][0]["content"] if "messages" in body else body["input"][0]
        self.sent += text[0]
        await self.clock.sleep(LATENCY_S)
        if "messages" not in body:
            data = [{"index": at, "embedding": [0.1, 0.2]} for at in range(len(body["input"]))]
            return httpx.Response(200, json={"model": "m", "data": data})
        choice = {"index": 0, "finish_reason": "stop"}
        if body.get("stream"):
            event = json.dumps({"choices": [{**choice, "delta": {"content": "ok"}}]})
            events = f"data: {event}\n\ndata: [DONE]\n\n"
            return httpx.Response(200, text=events, headers={"content-type": "text/event-stream"})
        return httpx.Response(
            200, json={"choices": [{**choice, "message": {"role": "assistant", "content": "ok"}}]}
        )


def client_of(
    provider: Callable[[httpx.Request], Coroutine[None, None, httpx.Response]],
    clock: SimulatedClock,
    **entry: Any,
) -> llmopt.AsyncClient:
    server = {"plugin": "local", "base_url": "https://server.example/v1", "api_key": "key-of-tests", **entry}
    return llmopt.AsyncClient(
        {"providers": {"server": server}},
        transport=httpx.MockTransport(provider),
        cache=False,
        clock=clock,
    )


async def endless() -> AsyncIterator[str]:
    """Texts of a large job."""
    number = 0
    while True:
        yield f"bulk {number}"
        number += 1


async def job(client: llmopt.AsyncClient, **options: Any) -> None:
    async with client.embed_iter(MODEL, endless(), **options) as parts:
        async for _ in parts:
            pass


async def ask(client: llmopt.AsyncClient, number: int, **options: Any) -> None:
    """An interactive call of one of the three kinds."""
    if number % 3 == 0:
        await client.embed(MODEL, [f"interactive {number}"], **options)
    elif number % 3 == 1:
        await client.chat(MODEL, QUESTION, **options)
    else:
        async with client.stream(MODEL, QUESTION, **options) as reply:
            async for _ in reply:
                pass


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [({}, 0.0, 0.5), ({"priority": "interactive"}, 5.0, 10.0)],
    ids=["by default", "no priorities"],
)
def test_calls_overtake_a_job_at_the_rate_limit(options: dict[str, Any], least: float, most: float) -> None:
    """`embed_iter` is bulk by default. An interactive call waits for one request of the job, not for all in its window."""

    async def main(clock: SimulatedClock) -> None:
        provider = Provider(clock)
        async with client_of(provider, clock, rpm=600, max_concurrency=64, max_batch_size=1) as client:
            running = asyncio.create_task(job(client, **options))
            await clock.sleep(15)
            waits = []
            for number in range(6):
                started = clock.now()
                await ask(client, number)
                waits.append(clock.now() - started)
                await clock.sleep(0.7)
            assert least <= min(waits)
            assert max(waits) <= most
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    run_simulated(main)


@pytest.mark.parametrize(
    "limits", [{"rpm": 600, "max_concurrency": 16}, {"max_concurrency": 2}], ids=["rate", "places"]
)
def test_a_flood_of_calls_leaves_bulk_a_tenth(limits: dict[str, int]) -> None:
    """As the provider counts, where the rate limit is short, and where the places in flight are."""

    async def main(clock: SimulatedClock) -> None:
        provider = Provider(clock)
        async with client_of(provider, clock, max_batch_size=1, **limits) as client:
            tasks = [asyncio.create_task(job(client))]
            tasks += [asyncio.create_task(ask(client, number)) for number in range(600)]
            await clock.sleep(5)
            before = len(provider.sent)
            await clock.sleep(30)
            counts = Counter(provider.sent[before:])
            assert counts["i"] >= 200
            assert counts["b"] / (counts["i"] + counts["b"]) == pytest.approx(0.1, abs=0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run_simulated(main)


def test_a_call_that_joins_a_request_of_bulk_waits_with_it() -> None:
    """The text is sent once, and paid once, whatever the priorities of its callers."""

    async def main(clock: SimulatedClock) -> None:
        provider = Provider(clock)
        async with client_of(provider, clock, rpm=60, max_batch_size=1) as client:
            calls = [client.embed(MODEL, [f"bulk {number}"], priority="bulk") for number in range(6)]
            tasks = [asyncio.create_task(call) for call in calls]
            await clock.sleep(0.1)
            joined, own = await asyncio.gather(
                client.embed(MODEL, ["bulk 5"]), client.embed(MODEL, ["interactive"])
            )
            results = await asyncio.gather(*tasks)
            assert Counter(provider.sent) == {"b": 6, "i": 1}
            assert provider.sent.index("i") < 5
            assert (joined.usage.requests, own.usage.requests) == (0, 1)
            assert joined.vectors.tolist() == results[5].vectors.tolist()

    run_simulated(main)


def test_a_priority_is_one_of_two_words() -> None:
    """For every method, before anything is sent."""

    async def main(clock: SimulatedClock) -> None:
        provider = Provider(clock)
        async with client_of(provider, clock) as client:
            for number in range(3):
                with pytest.raises(
                    ConfigError, match=r"^priority must be 'interactive' or 'bulk', not 'high'"
                ):
                    await ask(client, number, priority="high")
            with pytest.raises(ConfigError, match="priority"):
                client.embed_iter(MODEL, ["text"], priority=None)  # type: ignore[arg-type] # that is refused
        assert provider.sent == ""

    run_simulated(main)


@asynccontextmanager
async def cancelled(tasks: list[asyncio.Task[Any]]) -> AsyncIterator[None]:
    """Cancel the tasks at the end of the block."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def all_waiting(
    client: llmopt.AsyncClient, calls: int, text: str = "text", **options: Any
) -> list[asyncio.Task[Any]]:
    tasks: list[asyncio.Task[Any]] = [
        asyncio.create_task(client.embed(MODEL, [f"{text} {number}"], **options)) for number in range(calls)
    ]
    await asyncio.sleep(0.01)
    return tasks


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real bound at night only: ten thousand calls take seconds."""
    monkeypatch.setattr(
        "llmopt.engine.endpoint_policies.WaitingCalls", functools.partial(WaitingCalls, max_calls=BOUND)
    )


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize(
    "entry",
    [{}, {"rpm": 6_000}, {"flags": {"limiter": False}}],
    ids=["places", "rate limit", "no rate limiter"],
)
def test_calls_above_the_bound_are_refused(entry: dict[str, Any]) -> None:
    """At once, with one error, and nothing of them is sent. A call of several batches is refused as a whole."""

    async def main(clock: SimulatedClock) -> None:
        provider = Provider(clock)
        async with client_of(provider, clock, max_concurrency=8, max_batch_size=1, **entry) as client:
            calls = BOUND + 100
            tasks = await all_waiting(client, calls)
            async with cancelled(tasks):
                refused = [task for task in tasks if task.done()]
                assert len(refused) == calls - BOUND - len(provider.sent)
                error = refused[0].exception()
                assert isinstance(error, QueueFull)
                assert error.message.startswith(f"{BOUND:,} calls with about")
                assert (error.provider, error.model, error.sent, error.attempts) == ("server", "m", "no", ())
                sent = len(provider.sent)
                with pytest.raises(QueueFull) as caught:
                    await client.embed(MODEL, ["a", "b", "c"])
                assert caught.value.message == error.message
                result = await client.embed(MODEL, ["a", "b", "c"], errors="return")
                assert [type(each) for each in result.errors.values()] == [QueueFull] * 3
                for number in (1, 2):
                    with pytest.raises(QueueFull):
                        await ask(client, number, priority="bulk")
                assert len(provider.sent) == sent
            assert (await client.embed(MODEL, ["a", "b"])).vectors.shape == (2, 2), "the queue is empty again"

    run_simulated(main)


@pytest.mark.usefixtures("bound")
def test_as_many_calls_as_the_bound_are_all_served() -> None:
    """A place becomes free as soon as a call is sent."""

    async def main(clock: SimulatedClock) -> None:
        provider = Provider(clock)
        async with client_of(provider, clock, max_concurrency=8, max_batch_size=1) as client:
            tasks = await all_waiting(client, BOUND)
            await clock.sleep(1.5 * LATENCY_S)
            free = len(provider.sent)
            assert free > 0
            tasks += await all_waiting(client, free + 20, "later")
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert Counter(map(type, results)) == {llmopt.Embeddings: BOUND + free, QueueFull: 20}
            assert len(provider.sent) == BOUND + free

    run_simulated(main)


@pytest.mark.usefixtures("bound")
def test_a_retry_is_not_refused_by_a_full_queue() -> None:
    """Its request was sent already."""

    async def main(clock: SimulatedClock) -> None:
        provider = Provider(clock)

        async def fail_once(request: httpx.Request) -> httpx.Response:
            response = await provider(request)
            return httpx.Response(500, text="broken") if len(provider.sent) == 1 else response

        async with client_of(fail_once, clock, max_concurrency=1, max_batch_size=1) as client:
            first = asyncio.create_task(client.embed(MODEL, ["first"]))
            await asyncio.sleep(0.01)
            tasks = await all_waiting(client, BOUND, priority="bulk")
            async with cancelled(tasks):
                # The queue stays full until the retry has been served.
                while not first.done():
                    tasks += await all_waiting(client, 2, f"more {len(tasks)}", priority="bulk")
                assert isinstance(tasks[-1].exception(), QueueFull)
                assert (await first).vectors.shape == (1, 2)
                assert provider.sent[0] == "f"
                assert provider.sent.count("f") == 2

    run_simulated(main)


@pytest.mark.usefixtures("bound")
def test_large_calls_are_not_too_many() -> None:
    """The requests that wait for their own call do not count, because its window bounds them."""

    async def main(clock: SimulatedClock) -> None:
        provider = Provider(clock)
        async with client_of(provider, clock, max_concurrency=64, max_batch_size=1) as client:
            texts = [[f"{call} {text}" for text in range(70)] for call in range(BOUND // 60 + 2)]
            tasks = [asyncio.create_task(client.embed(MODEL, each)) for each in texts]
            async with cancelled(tasks):
                await asyncio.sleep(0.01)
                (endpoint,) = client.stats()["server"].values()
                assert endpoint["waiting"] > BOUND
                await asyncio.sleep(5 * LATENCY_S)
                assert not any(task.done() and task.exception() for task in tasks)

    run_simulated(main)


@pytest.mark.usefixtures("bound")
def test_calls_that_wait_for_a_circuit_count() -> None:
    """With ``when_open="wait"``; the others fail, because the circuit is open."""

    async def main(clock: SimulatedClock) -> None:
        down = True

        async def answer(request: httpx.Request) -> httpx.Response:
            return httpx.Response(500, text="broken") if down else await Provider(clock)(request)

        async with client_of(answer, clock, max_retries=0) as client:
            for number in range(20):
                with pytest.raises(llmopt.LLMOptError):
                    await client.embed(MODEL, [f"text {number}"])
            tasks = [
                asyncio.create_task(client.embed(MODEL, [f"{number}"], when_open="wait"))
                for number in range(BOUND + 5)
            ]
            await asyncio.sleep(0.01)
            assert [type(task.exception()) for task in tasks if task.done()] == [QueueFull] * 5
            down = False
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert Counter(map(type, results)) == {llmopt.Embeddings: BOUND, QueueFull: 5}

    run_simulated(main)
