"""Cancellation of requests in the transport."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from llmopt.errors import LLMOptError
from llmopt.transport.pool import ConnectionPool
from tests.support.faults import (
    Answer,
    FaultServer,
    Framing,
    Respond,
    Script,
    Stall,
    Wait,
    gzipped,
    json_answer,
)
from tests.support.scale import scaled
from tests.transport.helpers import (
    CancelAtSuspension,
    chunks,
    count_vectors,
    embed_request,
    open_pool,
    open_stream,
    other_tasks,
)


@pytest.mark.row("C01")
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("size", [10, 2_000_000], ids=["small", "large"])
async def test_cancelled_at_every_suspension(warm: bool, size: int, server: FaultServer) -> None:
    """The pool is clean after each, and the next request gets its own response."""
    body = json_answer({"data": [random.Random(1).randbytes(size).hex()]})
    for number in itertools.count(1):
        server.play(*[gzipped(body) if number % 2 else body] * 2)
        async with open_pool(pool_size=1) as pool:
            if warm:
                assert count_vectors(await pool.send(embed_request(server, "a" * size))) == 1
            run = CancelAtSuspension(number)
            before = other_tasks()
            task = run.start(pool.send(embed_request(server, "a" * size)))
            await asyncio.wait([task])
            assert task.cancelled() == run.reached
            assert pool.stats().in_use == 0
            server._played.clear()
            assert count_vectors(await pool.send(embed_request(server))) == 1
            ours = {one for one in other_tasks() - before if "FaultServer" not in repr(one)}
            assert not {one for one in ours if "tests/support/faults" not in repr(one)}
        if not run.reached:
            break
    assert number >= 2


@pytest.mark.row("C01")
@pytest.mark.parametrize("action", ["aclose", "stream"])
async def test_other_calls_cancelled_at_every_suspension(action: str, server: FaultServer) -> None:
    """Closing a pool, and reading a stream."""
    for number in itertools.count(1):
        pool = ConnectionPool(pool_size=1)
        assert count_vectors(await pool.send(embed_request(server))) == 1
        server.play(Answer(200, b"a" * 300_000, framing=Framing.CHUNKED))

        async def stream(pool: ConnectionPool = pool) -> None:
            async with open_stream(pool, embed_request(server)) as answer:
                async for _ in chunks(answer):
                    await asyncio.sleep(0)

        run = CancelAtSuspension(number)
        work = pool.aclose() if action == "aclose" else stream()
        task = run.start(work)
        await asyncio.wait([task])
        assert pool.stats().in_use == 0
        server._played.clear()
        if action == "stream":
            assert count_vectors(await pool.send(embed_request(server))) == 1
        await pool.aclose()
        await server.wait_all_closed()
        if not run.reached:
            break
    assert number > 1


async def test_a_cancelled_request_closes_its_connection(server: FaultServer) -> None:
    """Otherwise the next request would read the late response."""
    async with open_pool(pool_size=1) as pool:
        await pool.send(embed_request(server))
        server.play(Script([Stall()]))
        task = asyncio.create_task(pool.send(embed_request(server)))
        await server.wait_requests(2)
        task.cancel()
        await asyncio.wait([task])
        await server.wait_all_closed()
        assert repr(pool) == "<ConnectionPool open: 0 in use, 0 idle, 0 waiting>"


@pytest.mark.row("C02")
async def test_a_cancellation_in_the_same_tick_as_the_timeout(server: FaultServer) -> None:
    """The caller gets the one that happened first."""
    async with open_pool(pool_size=1) as pool:
        server.default(Script([Stall()]))
        for turn in range(20):
            task = asyncio.create_task(pool.send(embed_request(server, timeout=0.005)))
            asyncio.get_running_loop().call_later(0.005, task.cancel)
            await asyncio.wait([task])
            assert task.cancelled() or isinstance(task.exception(), LLMOptError), turn
            assert pool.stats().in_use == 0


@pytest.mark.row("C03")
async def test_a_cancelled_waiter_passes_its_connection_on(server: FaultServer) -> None:
    """A waiter that is cancelled just when it is granted a connection must not keep it from the next."""
    gate = asyncio.Event()
    async with open_pool(pool_size=1) as pool:
        await pool.send(embed_request(server))
        server.play(Script([Wait(gate), Respond()]))
        endless = embed_request(server, pool_timeout=None)
        waiters: list[asyncio.Task[object]] = []
        # The loop has no turn between the release of the connection and this.
        assert pool.try_send(endless, lambda _: waiters[0].cancel()) is not None
        await server.wait_requests(2)
        waiters += [asyncio.create_task(pool.send(endless)) for _ in range(3)]
        while pool.stats().waiting < 3:
            await asyncio.sleep(0)
        gate.set()
        async with asyncio.timeout(5):
            await asyncio.wait(waiters)
        assert [waiter.cancelled() for waiter in waiters] == [True, False, False]
        assert len(server.requests) == 4


@pytest.mark.row("C05")
async def test_cancelled_waiters_leave_the_queue_empty(server: FaultServer) -> None:
    """The request that holds the connection still gets its response."""
    count = scaled(2_000, nightly=10_000)
    gate = asyncio.Event()
    async with open_pool(pool_size=1) as pool:
        server.play(Script([Wait(gate), Respond()]))
        holder = asyncio.create_task(pool.send(embed_request(server)))
        await server.wait_requests(1)
        waiters = [asyncio.create_task(pool.send(embed_request(server))) for _ in range(count)]
        while pool.stats().waiting < count:
            await asyncio.sleep(0)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters)
        assert pool.stats().waiting == 0
        gate.set()
        assert count_vectors(await holder) == 1
    assert len(server.requests) == 1


async def test_many_cancellations_leak_no_slot(server: FaultServer) -> None:
    """D1: hundreds of requests, cancelled at all moments, over ten connections."""
    async with open_pool(pool_size=10) as pool:
        for turn in range(scaled(14, nightly=40)):
            tasks = [asyncio.create_task(pool.send(embed_request(server, str(n)))) for n in range(50)]
            for _ in range(turn % 13):
                await asyncio.sleep(0)
            for task in tasks[turn % 3 :: 2]:
                task.cancel()
            await asyncio.wait(tasks)
        assert pool.stats().in_use == 0
        answers = await asyncio.gather(*(pool.send(embed_request(server, str(n))) for n in range(100)))
        assert [count_vectors(answer) for answer in answers] == [1] * 100
