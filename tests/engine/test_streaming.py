"""Streams in the engine: when slots, circuits and leases are released, and which events are emitted."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
from typing import Any

import pytest

import llmopt
from llmopt.policies.rate_limiter import RateLimiter
from tests.support.faults import (
    FaultServer,
    Script,
    Send,
    Stall,
    Wait,
    answer_openai,
    error_answer,
    serving,
    stream_answer,
)
from tests.support.streams import (
    DONE,
    END,
    MESSAGES,
    MODEL,
    TEXT,
    chunk,
    config,
    error_event,
    event,
    events_of,
    head,
    is_idle,
    stream_script,
    text_of,
    unfinished_stream,
    until,
    word_events,
)

NEVER_ENDING = Script([Send(head()), Send(chunk(b"".join(word_events()))), Stall()])


def standing(client: llmopt.AsyncClient, server: FaultServer) -> dict[str, Any]:
    """The stats of the only endpoint."""
    found: dict[str, Any] = client.stats()["server"][server.base_url]
    return found


async def test_a_stream_holds_its_slot_to_its_end() -> None:
    """The next one waits for it."""
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_concurrency=1)) as client:
        server.play(stream_script(*word_events(), end=[Wait(gate), Send(chunk(DONE) + END)]), answer_openai)
        async with client.stream(MODEL, MESSAGES) as first:
            await anext(first)
            second = asyncio.create_task(text_of(client))
            await until(lambda: standing(client, server)["waiting"] == 1)
            assert standing(client, server)["in_flight"] == 1
            gate.set()
            async for _ in first:
                pass
            assert await second == "Hello world"
        assert is_idle(client)


async def test_a_retried_stream_emits_one_event_for_each_step() -> None:
    """One start, one attempt for each request, its pieces, one end, when the stream ends."""
    emitted: list[Any] = []

    def record(happened: Any) -> None:
        if not happened.name.startswith("pool."):
            emitted.append(happened)

    async with FaultServer() as server, llmopt.AsyncClient(config(server), on_event=record) as client:
        server.play(error_answer(500, "x"), stream_script(*word_events(), DONE))
        async with client.stream(MODEL, MESSAGES) as stream:
            await anext(stream)
            names = [each.name for each in emitted]
            assert names == [
                "call.start",
                "request.start",
                "request.attempt",
                "request.retry",
                "stream.first_chunk",
            ]
            async for _ in stream:
                pass
    names = [each.name for each in emitted]
    assert names[5:] == ["stream.chunk"] * 6 + ["request.attempt", "request.end", "call.end"]
    pieces = [each for each in emitted if each.name == "stream.chunk"]
    assert [each.events for each in pieces] == [1] * 6
    assert [each.size for each in pieces] == [*map(len, word_events()[1:]), len(DONE)]
    attempts = [
        (each.attempt, each.outcome, each.status) for each in emitted if each.name == "request.attempt"
    ]
    assert attempts == [(1, "ServerError", 500), (2, "ok", 200)]
    assert (emitted[-2].outcome, emitted[-2].attempts) == ("ok", 2)


@pytest.mark.parametrize(
    ("play", "outcome"),
    [(NEVER_ENDING, "cancelled"), (unfinished_stream(*word_events()), "StreamInterrupted")],
    ids=["left", "broken"],
)
async def test_the_last_events_report_how_the_stream_ended(play: Script, outcome: str) -> None:
    """Once each."""
    emitted: list[Any] = []
    async with FaultServer() as server, llmopt.AsyncClient(config(server), on_event=emitted.append) as client:
        server.default(play)
        try:
            async with client.stream(MODEL, MESSAGES) as stream:
                async for each in stream:
                    if each.text.startswith("König") and outcome == "cancelled":
                        break
        except llmopt.StreamInterrupted:
            pass
    ends = [(each.name, each.outcome) for each in emitted if hasattr(each, "outcome")]
    assert ends == [("request.attempt", outcome), ("request.end", outcome), ("call.end", outcome)]


async def test_interrupted_streams_open_the_circuit() -> None:
    """Though each of them began well."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(unfinished_stream(*word_events()))
        for _ in range(20):
            with pytest.raises((llmopt.StreamInterrupted, llmopt.CircuitOpen)):
                await events_of(client)
        assert len(server.requests) < 20
        with pytest.raises(llmopt.CircuitOpen):
            await client.chat(MODEL, MESSAGES)


async def test_a_rate_limit_error_in_a_stream_does_not_count_for_the_circuit() -> None:
    """Only the rate limiter counts it."""
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server), flags={"limiter": False}) as client,
    ):
        server.default(
            stream_script(*word_events(), error_event("later", code="rate_limit_exceeded", status=429))
        )
        for _ in range(12):
            with pytest.raises(llmopt.StreamInterrupted) as caught:
                await events_of(client)
        assert isinstance(caught.value.__cause__, llmopt.LLMOptError)
        circuits = standing(client, server)["breakers"]["m chat"]
        assert "open" not in circuits


async def test_the_first_events_of_streams_close_a_half_open_circuit() -> None:
    """Two first events close it, while the answers go on."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(stream_answer(["x"]))
        await text_of(client)
        endpoint = client._components.engine._groups["server"].endpoints[0]
        pair = endpoint.policies.breakers(_call())
        assert pair is not None
        while (permit := pair.acquire()) is not None:
            permit.failed(llmopt.ServerError("down"))
        pair.model._open_until = 0.0  # its break is over
        server.default(NEVER_ENDING)
        async with client.stream(MODEL, MESSAGES) as first:
            await anext(first)
            async with client.stream(MODEL, MESSAGES) as second:
                await anext(second)
                assert pair.model.state == "closed"
        assert is_idle(client)


def _call() -> llmopt.ChatCall:
    return llmopt.ChatCall(model="m", stream=True)


async def test_a_lease_is_settled_with_the_actual_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As emitted, or as estimated from what was said; whichever way the stream ended."""
    usage = {"prompt_tokens": 900, "completion_tokens": 100, "total_tokens": 1000}
    with_usage = [*word_events(), event(choices=[], usage=usage), DONE]
    long = event(choices=[{"index": 0, "delta": {"content": "x" * 4000}}])
    entry = {"rpm": 60_000, "tpm": 6_000_000}
    async with FaultServer() as server, llmopt.AsyncClient(config(server, **entry)) as client:
        settled: list[float | None] = []
        settle = RateLimiter.settle

        def noted(limiter: RateLimiter, lease: Any, tokens: float | None) -> None:
            settled.append(tokens)
            settle(limiter, lease, tokens)

        monkeypatch.setattr(RateLimiter, "settle", noted)
        server.play(
            stream_script(*with_usage),
            stream_script(long, DONE),
            unfinished_stream(long),
            Script([Send(head()), Send(chunk(long)), Stall()]),
        )
        await events_of(client)
        await events_of(client)
        with pytest.raises(llmopt.StreamInterrupted):
            await events_of(client)
        async with client.stream(MODEL, MESSAGES) as stream:
            await anext(stream)
        assert is_idle(client)
    charged = [tokens for tokens in settled if tokens is not None]
    assert charged[0] == 1000
    assert len(charged) == 4
    assert all(1000 < tokens < 1100 for tokens in charged[1:]), charged


async def test_slow_start_advances_with_each_first_event() -> None:
    """Its slow start goes on with each first event, though no answer has ended; and a canary is back with it."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_concurrency=40)) as client:
        server.default(NEVER_ENDING)
        waited: list[float] = []
        streams = [client.stream(MODEL, MESSAGES) for _ in range(40)]
        loop = asyncio.get_running_loop()

        async def enter(stream: Any) -> None:
            began = loop.time()
            await stream.__aenter__()
            waited.append(loop.time() - began)

        async with asyncio.timeout(10):
            for stream in streams:
                await enter(stream)
        limiter = standing(client, server)["limiters"]["m"]
        assert limiter["waiting"] == 0
        waits = client.stats()["server"][server.base_url]["waited_s"]
        assert waits.get("limiter", 0.0) == 0.0
        for stream in streams:
            await stream.aclose()
        assert is_idle(client)


@pytest.mark.row("C06")
async def test_closing_the_client_ends_its_streams() -> None:
    """The reader is told so; whoever is not reading learns it with the next look."""
    async with FaultServer() as server:
        server.default(NEVER_ENDING)
        client = llmopt.AsyncClient(config(server))
        reading = asyncio.create_task(events_of(client))
        idle = client.stream(MODEL, MESSAGES)
        for _ in range(6):
            await anext(idle)
        await server.wait_requests(2)
        await until(lambda: standing(client, server)["connections"]["in_use"] == 2)
        await asyncio.gather(*(client.aclose() for _ in range(10)))
        with pytest.raises(llmopt.ClientClosed):
            await reading
        with pytest.raises(llmopt.ClientClosed):
            await anext(idle)
        with pytest.raises(llmopt.ClientClosed):
            async with client.stream(MODEL, MESSAGES):
                raise AssertionError
        await server.wait_all_closed()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_stream_closed_by_another_task_raises_in_its_reader() -> None:
    """Its reader gets an error, not a quiet end."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(NEVER_ENDING)
        stream = client.stream(MODEL, MESSAGES)

        async def read() -> None:
            async for _ in stream:
                pass

        reading = asyncio.create_task(read())
        await until(lambda: stream.text == TEXT)
        await stream.aclose()
        with pytest.raises(llmopt.StreamInterrupted, match="closed") as caught:
            await reading
        assert caught.value.text == TEXT
        assert [each async for each in stream] == []
        await server.wait_all_closed()
        assert is_idle(client)


async def test_a_stream_closed_before_its_response_raises() -> None:
    """While the request is under way."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(Script([Wait(0.05), Send(head()), Send(chunk(word_events()[0])), Stall()]))
        stream = client.stream(MODEL, MESSAGES)
        entering = asyncio.create_task(stream.__aenter__())
        await server.wait_requests(1)
        await stream.aclose()
        with pytest.raises(llmopt.StreamInterrupted, match="closed"):
            await entering
        await server.wait_all_closed()
        assert is_idle(client)


async def test_a_stream_refuses_a_second_reader() -> None:
    """A second one is refused, and does no harm."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(NEVER_ENDING)
        async with client.stream(MODEL, MESSAGES) as stream:
            for _ in word_events():
                await anext(stream)
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task"):
                await anext(stream)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            with pytest.raises(llmopt.StreamInterrupted, match="cancelled"):
                await anext(stream)
        assert is_idle(client)


async def test_a_failed_stream_raises_again() -> None:
    """Reading on raises the same error."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(unfinished_stream(*word_events()))
        stream = client.stream(MODEL, MESSAGES)
        for _ in range(3):
            with pytest.raises(llmopt.StreamInterrupted) as caught:
                async for _ in stream:
                    pass
            assert caught.value.text == TEXT
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.text, again.partial.text, again.provider, again.model) == (TEXT, TEXT, "server", "m")
    assert len(server.requests) == 1


async def test_an_exhausted_stream_stays_exhausted() -> None:
    """It stays at its end."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        stream = client.stream(MODEL, MESSAGES)
        assert len([each async for each in stream]) == 5
        assert [each async for each in stream] == []
        await stream.aclose()
        await stream.aclose()
        assert stream.text == "Hello world"


@pytest.mark.row("C07")
def test_a_stream_dropped_after_its_loop_was_closed_warns() -> None:
    """Nothing is scheduled on it, and the next run works."""
    with serving() as thread:
        thread.server.default(NEVER_ENDING)
        client = llmopt.AsyncClient(config(thread.server))
        kept: list[Any] = []

        async def leave() -> None:
            stream = client.stream(MODEL, MESSAGES)
            await anext(stream)
            kept.append(stream)

        asyncio.run(leave())
        with pytest.warns(ResourceWarning, match="unclosed <ChatStream"):
            kept.clear()
        thread.server.default(answer_openai)

        async def again() -> str:
            async with client:
                return await text_of(client)

        assert asyncio.run(again()) == "Hello world"
        gc.collect()


@pytest.mark.row("C07")
def test_a_stream_dropped_in_another_thread_is_released_by_its_loop() -> None:
    """Its own loop releases the connection."""
    with serving() as thread:
        thread.server.default(NEVER_ENDING)
        held: list[Any] = []

        async def main() -> None:
            async with llmopt.AsyncClient(config(thread.server)) as client:
                stream = client.stream(MODEL, MESSAGES)
                await anext(stream)
                held.append(stream)
                del stream
                dropping = threading.Thread(target=held.clear)
                dropping.start()
                dropping.join()
                await until(lambda: is_idle(client))

        with pytest.warns(ResourceWarning, match="unclosed <ChatStream"):
            asyncio.run(main())


@pytest.mark.row("C08")
def test_streams_work_on_two_loops_at_once() -> None:
    """One client, streams in two threads, each on its own connections."""
    with serving() as thread:
        thread.server.default(answer_openai)
        client = llmopt.AsyncClient(config(thread.server))
        got: list[str] = []

        async def many() -> None:
            got.extend(await asyncio.gather(*(text_of(client) for _ in range(50))))

        threads = [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(2)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert got == ["Hello world"] * 100
        asyncio.run(client.aclose())
