"""Timeouts of the transport: slow servers, uploads, connects."""

from __future__ import annotations

import asyncio

import pytest

from llmopt.errors import AttemptTimeout
from llmopt.transport.pool import ConnectionPool
from tests.support.faults import Fault, FaultServer, Respond, Script, Stall, Wait, faults_of, json_answer
from tests.transport.helpers import count_vectors, embed_request, expect_error, open_pool, other_tasks

SLOW = [
    fault
    for fault in faults_of("N08", "N09", "N10", "N11", "N16")
    if fault.name not in ("one 100", "103 then 200")
]


@pytest.mark.row("N08", "N09", "N10", "N11", "N16")
@pytest.mark.parametrize("fault", SLOW, ids=str)
@pytest.mark.parametrize("text", ["a", "a" * 10_000_000], ids=["small", "10 MB"])
async def test_the_attempt_timeout_ends_every_stall(fault: Fault, text: str) -> None:
    """Whatever the server does or does not do; the slot is free again and the next request succeeds."""
    async with FaultServer(receive_buffer=4096) as server, open_pool(pool_size=1) as pool:
        fault.inject(server)
        error = await expect_error(pool, embed_request(server, text, timeout=0.05), AttemptTimeout)
        assert (error.timeout, error.sent, error.endpoint) == (0.05, "maybe", server.base_url)
        assert "within 0.05 s" in str(error)
        assert repr(pool) == "<ConnectionPool open: 0 in use, 0 idle, 0 waiting>"
        server._played.clear()  # an upload that was cut off has not used its reply
        server.play(json_answer({"data": [1]}))
        assert count_vectors(await pool.send(embed_request(server))) == 1


@pytest.mark.row("N16")
async def test_a_kept_connection_with_a_dead_peer(server: FaultServer, pool: ConnectionPool) -> None:
    """One attempt is lost, the next uses a new connection."""
    await pool.send(embed_request(server))
    server.play(Script([Stall(reading=False)]))
    await expect_error(pool, embed_request(server, timeout=0.05), AttemptTimeout)
    assert count_vectors(await pool.send(embed_request(server))) == 1
    assert server.connections == 2


async def test_the_attempt_timeout_covers_the_wait_for_a_connection(server: FaultServer) -> None:
    """Then nothing was sent."""
    async with open_pool(pool_size=1) as pool:
        server.play(Script([Stall()]))
        holder = asyncio.create_task(pool.send(embed_request(server)))
        await server.wait_requests(1)
        error = await expect_error(
            pool, embed_request(server, timeout=0.01, pool_timeout=None), AttemptTimeout
        )
        assert error.sent == "no"
        assert "waiting for a free connection" in str(error)
        holder.cancel()
        await asyncio.wait([holder])


async def test_without_a_timeout_an_attempt_waits(server: FaultServer, pool: ConnectionPool) -> None:
    """None means no timeout."""
    gate = asyncio.Event()
    server.play(Script([Wait(gate), Respond()]))
    request = embed_request(server, timeout=None, connect_timeout=None, pool_timeout=None)
    task = asyncio.create_task(pool.send(request))
    await server.wait_requests(1)
    gate.set()
    assert count_vectors(await task) == 1


async def test_a_timeout_of_zero_expires_at_once(server: FaultServer, pool: ConnectionPool) -> None:
    """Nothing stays open."""
    await expect_error(pool, embed_request(server, timeout=0), AttemptTimeout)
    assert count_vectors(await pool.send(embed_request(server))) == 1


async def test_the_callers_own_timeout_is_no_attempt_timeout(
    server: FaultServer, pool: ConnectionPool
) -> None:
    server.play(Script([Stall()]))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await pool.send(embed_request(server))
    assert pool.stats().in_use == 0


async def test_no_task_outlives_a_timeout(server: FaultServer, pool: ConnectionPool) -> None:
    """In an upload."""
    before = other_tasks()
    server.default_on_accept(Script([Stall(reading=False)]))
    await expect_error(pool, embed_request(server, timeout=0.05, body=b"a" * 30_000_000), AttemptTimeout)
    await asyncio.sleep(0)
    mine = {task for task in other_tasks() - before if "Connection._run" not in repr(task)}
    assert mine == set()
