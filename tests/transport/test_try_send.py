"""Requests that are sent without awaiting anything, over an idle connection."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from llmopt.errors import (
    AttemptTimeout,
    ClientClosed,
    ConnectionLost,
    InvalidResponse,
    LLMOptError,
)
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.transport.pool import ConnectionPool
from llmopt.transport.request import TransportRequest
from llmopt.values.http import HttpResponse
from tests.support.faults import (
    Answer,
    Close,
    FaultServer,
    Framing,
    Reset,
    Respond,
    Script,
    Send,
    Stall,
    Wait,
    answer_openai,
    cut,
    error_answer,
    gzipped,
)
from tests.transport.helpers import HEADERS, assert_no_secrets, count_vectors, embed_request, open_pool

Outcome = HttpResponse | LLMOptError


async def outcome(pool: ConnectionPool, request: TransportRequest) -> Outcome:
    """What `try_send` hands to its callback, which it must call later, once, and from the loop."""
    outcomes: list[Outcome] = []
    done = asyncio.Event()

    def on_done(result: Outcome) -> None:
        assert asyncio.get_running_loop() is not None
        outcomes.append(result)
        done.set()

    assert pool.try_send(request, on_done) is not None
    assert outcomes == []
    await done.wait()
    await asyncio.sleep(0)
    (result,) = outcomes
    if isinstance(result, LLMOptError):
        assert_no_secrets(result)
    return result


async def test_without_an_idle_connection_nothing_is_sent(server: FaultServer, pool: ConnectionPool) -> None:
    """And nothing has changed: not before the first request, nor to another host, nor while it is in use."""
    never = [].append
    assert pool.try_send(embed_request(server), never) is None
    await pool.send(embed_request(server))
    async with FaultServer() as other:
        assert pool.try_send(embed_request(other), never) is None
    before = pool.stats()
    for bad in ({"x": "a\nb"}, {"a b": "c"}):
        assert pool.try_send(embed_request(server, headers=bad), never) is None
    assert pool.try_send(TransportRequest(method="GET", url="ftp://a"), never) is None
    assert pool.stats() == before
    assert (await outcome(pool, embed_request(server))).info.reused  # type: ignore[union-attr] # the response
    assert len(server.requests) == 2


async def test_a_response_has_what_that_of_send_has(server: FaultServer, pool: ConnectionPool) -> None:
    """Small, large, in chunks, compressed, an error, without a body."""
    body = b"b" * 300_000
    for answer in (
        answer_openai,
        Answer(200, body),
        Answer(200, body, framing=Framing.CHUNKED),
        gzipped(Answer(200, body)),
        error_answer(429, "Later."),
        Answer(204),
    ):
        server.play(answer, answer)
        expected = await pool.send(embed_request(server))
        result = await outcome(pool, embed_request(server))
        assert isinstance(result, HttpResponse)
        assert (result.status, result.body, dict(result.headers)) == (
            expected.status,
            expected.body,
            dict(expected.headers),
        )
        assert pool.stats().in_use == 0
    assert server.connections == 1


@pytest.mark.parametrize(
    ("end", "kind", "stale"),
    [
        (Script([Reset()]), ConnectionLost, True),
        (Script([Close()]), ConnectionLost, True),
        (Script([Send(b"H"), Reset()]), ConnectionLost, False),
        (Script([Send(b"SSH-2.0\r\n"), Stall()]), InvalidResponse, False),
        (cut(90, Close(), Answer(200, b"x" * 100)), InvalidResponse, False),
        (Script([Stall()]), AttemptTimeout, False),
    ],
    ids=["reset", "closed", "reset in the response", "no HTTP", "truncated", "silence"],
)
async def test_an_error_is_that_of_send(
    end: Script, kind: type[LLMOptError], stale: bool, server: FaultServer, pool: ConnectionPool
) -> None:
    """In kind, words and fields."""
    results: list[LLMOptError] = []
    for send in (pool.send, outcome):
        await pool.send(embed_request(server))
        server.play(end)
        request = embed_request(server, timeout=0.05 if kind is AttemptTimeout else 5)
        if send is outcome:
            result = await outcome(pool, request)
            assert isinstance(result, kind)
        else:
            with pytest.raises(kind) as caught:
                await pool.send(request)
            result = caught.value
        results.append(result)
        assert (pool.stats().in_use, pool.stats().idle) == (0, 0)
    first, second = results
    assert (str(first), first.sent, first.endpoint) == (str(second), second.sent, second.endpoint)
    assert all(getattr(each, "stale", False) == stale for each in results)


async def test_an_aborted_request_is_never_told_of(server: FaultServer, pool: ConnectionPool) -> None:
    """At every turn of the loop after it was sent, also after its end; the next request gets its own response."""
    for turns in itertools.count():
        await pool.send(embed_request(server))
        results: list[object] = []
        sending = pool.try_send(embed_request(server), results.append)
        assert sending is not None
        for _ in range(turns):
            await asyncio.sleep(0)
        told = len(results)
        sending.abort()
        sending.abort()
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(results) == told
        assert pool.stats().in_use == 0
        assert count_vectors(await pool.send(embed_request(server))) == 1
        if told:
            break
    assert turns >= 2


async def test_who_waits_is_served_first(server: FaultServer) -> None:
    """A request cannot overtake those that wait for a connection."""
    gate = asyncio.Event()
    async with open_pool(pool_size=1) as pool:
        await pool.send(embed_request(server))
        server.play(Script([Wait(gate), Respond()]))
        tried: list[object] = []

        def at_end(_: object) -> None:
            # The connection is idle again at this moment, but the waiter has the place.
            tried.append(pool.try_send(embed_request(server), tried.append))

        assert pool.try_send(embed_request(server), at_end) is not None
        waiter = asyncio.create_task(pool.send(embed_request(server)))
        await server.wait_requests(2)
        gate.set()
        assert count_vectors(await waiter) == 1
        assert tried == [None]


async def test_a_callback_may_send_the_next_request(server: FaultServer, pool: ConnectionPool) -> None:
    """Over the connection that has just become free."""
    await pool.send(embed_request(server))
    done = asyncio.Event()
    left = 10

    def again(_: object) -> None:
        nonlocal left
        left -= 1
        if left:
            assert pool.try_send(embed_request(server, headers={**HEADERS}), again) is not None
        else:
            done.set()

    again(None)
    await done.wait()
    assert (server.connections, len(server.requests)) == (1, 10)


async def test_closing_the_pool_ends_the_request(server: FaultServer) -> None:
    pool = ConnectionPool()
    await pool.send(embed_request(server))
    server.play(Script([Stall()]))
    ended = asyncio.create_task(outcome(pool, embed_request(server)))
    await asyncio.sleep(0)
    await pool.aclose()
    assert isinstance(await ended, ClientClosed)
    assert pool.try_send(embed_request(server), [].append) is None


def test_its_timeout_is_that_of_the_request() -> None:
    """In simulated time, on the timer that all attempts of the loop share."""

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            pool = ConnectionPool(keepalive=10_000)
            server.default(answer_openai)
            await pool.send(embed_request(server))
            server.play(Script([Stall()]))
            started = clock.now()
            error = await outcome(pool, embed_request(server, timeout=7.0))
            assert isinstance(error, AttemptTimeout)
            assert clock.now() - started == pytest.approx(7.0)
            await pool.aclose()

    run_simulated(main)
