"""N15: kept connections that the server closes just now."""

from __future__ import annotations

import asyncio

import pytest

from llmopt.errors import ConnectionLost
from llmopt.transport.pool import ConnectionPool
from llmopt.transport.request import TransportRequest
from tests.support.faults import CloseAfter, Fault, FaultServer, Reset, Script, Send, faults_of
from tests.transport.helpers import asking, failure, pooled, texts_of


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_an_end_that_has_arrived_is_seen_in_time(
    reset: bool, server: FaultServer, pool: ConnectionPool
) -> None:
    """The socket is asked before it is used again: no error at all, also where the loop has not run since."""
    for _ in range(50):
        assert texts_of(await pool.send(asking(server))) == 1
        assert server.drop_idle(reset=reset) == 1
        if reset:
            await server.wait_all_closed()
    assert pool.stats().created == 50


@pytest.mark.parametrize("fault", [f for f in faults_of("N15") if "without" in f.name], ids=str)
async def test_an_end_instead_of_an_answer_is_stale_on_a_kept_connection_only(
    fault: Fault, server: FaultServer, pool: ConnectionPool
) -> None:
    """Then another try on a fresh connection costs nothing; on a fresh one it is a fault like others."""
    fault.inject(server)
    error = await failure(pool, asking(server), ConnectionLost)
    assert (error.stale, error.sent) == (False, "maybe")
    await pool.send(asking(server))
    fault.inject(server)
    error = await failure(pool, asking(server), ConnectionLost)
    assert (error.stale, error.sent) == (True, "maybe")
    assert texts_of(await pool.send(asking(server))) == 1


async def test_after_a_stale_one_comes_a_fresh_one(server: FaultServer, pool: ConnectionPool) -> None:
    """A server that gave up one kept connection gave up others: none of them is tried."""
    async with FaultServer() as other:
        await pool.send(asking(other))
        await asyncio.gather(*(pool.send(asking(server)) for _ in range(4)))
        assert pool.stats().idle == 5
        server.play(Script([Reset()]))
        assert (await failure(pool, asking(server), ConnectionLost)).stale
        assert pool.stats().idle == 1
        response = await pool.send(asking(server))
        assert not response.info.reused
        assert (await pool.send(asking(other))).info.reused


async def test_after_the_first_byte_it_is_not_stale(server: FaultServer, pool: ConnectionPool) -> None:
    """Then the server has certainly taken the request."""
    await pool.send(asking(server))
    server.play(Script([Send(b"H"), Reset()]))
    error = await failure(pool, asking(server), ConnectionLost)
    assert not error.stale


async def test_nothing_is_sent_twice_behind_ones_back(server: FaultServer, pool: ConnectionPool) -> None:
    """A GET on a stale connection neither: who counts the attempts must know of all."""
    get = TransportRequest(method="GET", url=f"{server.base_url}/v1/models")
    await pool.send(get)
    server.play(Script([Reset()]))
    await failure(pool, get, ConnectionLost)
    assert len(server.requests) == 2


async def test_ten_thousand_calls_meet_no_error_but_stale_ones() -> None:
    """A server that closes each connection after five answers, right then."""
    async with FaultServer() as server, pooled(pool_size=16) as pool:
        server.default(CloseAfter(5))
        stale = 0

        async def worker(count: int) -> None:
            nonlocal stale
            for _ in range(count):
                while True:
                    try:
                        assert texts_of(await pool.send(asking(server))) == 1
                        break
                    except ConnectionLost as error:
                        if not error.stale:
                            raise
                        stale += 1

        await asyncio.gather(*(worker(625) for _ in range(16)))
        assert len(server.requests) == 10_000
        assert stale < 1000
