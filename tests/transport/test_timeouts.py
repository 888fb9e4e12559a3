"""Timeouts of the transport: slow servers, uploads, connecting."""

from __future__ import annotations

import asyncio

import pytest

from llmopt.errors import AttemptTimeout
from llmopt.transport.pool import ConnectionPool
from tests.support.faults import Fault, FaultServer, Respond, Script, Stall, Wait, faults_of, json_answer
from tests.transport.helpers import asking, failure, other_tasks, pooled, texts_of

SLOW = [
    fault
    for fault in faults_of("N08", "N09", "N10", "N11", "N16")
    if fault.name not in ("one 100", "103 then 200")
]


@pytest.mark.row("N08", "N09", "N10", "N11", "N16")
@pytest.mark.parametrize("fault", SLOW, ids=str)
@pytest.mark.parametrize("text", ["a", "a" * 10_000_000], ids=["small", "10 MB"])
async def test_the_attempt_ends_in_time(fault: Fault, text: str) -> None:
    """Whatever the server does or leaves undone; the slot is free again and the next request succeeds."""
    async with FaultServer(receive_buffer=4096) as server, pooled(pool_size=1) as pool:
        fault.inject(server)
        error = await failure(pool, asking(server, text, timeout=0.05), AttemptTimeout)
        assert (error.timeout, error.sent, error.endpoint) == (0.05, "maybe", server.base_url)
        assert "within 0.05 s" in str(error)
        assert repr(pool) == "<ConnectionPool open: 0 in use, 0 idle, 0 waiting>"
        server._played.clear()  # an upload that was cut off has not taken its reply
        server.play(json_answer({"data": [1]}))
        assert texts_of(await pool.send(asking(server))) == 1


@pytest.mark.row("N16")
async def test_a_kept_connection_whose_peer_went_dead(server: FaultServer, pool: ConnectionPool) -> None:
    """One attempt is lost, the next goes over a fresh connection."""
    await pool.send(asking(server))
    server.play(Script([Stall(reading=False)]))
    await failure(pool, asking(server, timeout=0.05), AttemptTimeout)
    assert texts_of(await pool.send(asking(server))) == 1
    assert server.connections == 2


async def test_the_time_out_covers_the_wait_for_a_connection(server: FaultServer) -> None:
    """Then nothing was sent."""
    async with pooled(pool_size=1) as pool:
        server.play(Script([Stall()]))
        holder = asyncio.create_task(pool.send(asking(server)))
        await server.wait_requests(1)
        error = await failure(pool, asking(server, timeout=0.01, pool_timeout=None), AttemptTimeout)
        assert error.sent == "no"
        assert "waiting for a free connection" in str(error)
        holder.cancel()
        await asyncio.wait([holder])


async def test_without_a_time_out_an_attempt_waits(server: FaultServer, pool: ConnectionPool) -> None:
    """None means no bound."""
    gate = asyncio.Event()
    server.play(Script([Wait(gate), Respond()]))
    request = asking(server, timeout=None, connect_timeout=None, pool_timeout=None)
    task = asyncio.create_task(pool.send(request))
    await server.wait_requests(1)
    gate.set()
    assert texts_of(await task) == 1


async def test_a_time_out_of_zero_is_at_once(server: FaultServer, pool: ConnectionPool) -> None:
    """And leaves nothing behind."""
    await failure(pool, asking(server, timeout=0), AttemptTimeout)
    assert texts_of(await pool.send(asking(server))) == 1


async def test_the_callers_own_time_out_stays_the_callers(server: FaultServer, pool: ConnectionPool) -> None:
    """A deadline around the call is no `AttemptTimeout`."""
    server.play(Script([Stall()]))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await pool.send(asking(server))
    assert pool.stats().in_use == 0


async def test_nothing_is_left_running(server: FaultServer, pool: ConnectionPool) -> None:
    """No task of ours outlives a timeout in an upload."""
    before = other_tasks()
    server.default_on_accept(Script([Stall(reading=False)]))
    await failure(pool, asking(server, timeout=0.05, body=b"a" * 30_000_000), AttemptTimeout)
    await asyncio.sleep(0)
    mine = {task for task in other_tasks() - before if "Connection._run" not in repr(task)}
    assert mine == set()
