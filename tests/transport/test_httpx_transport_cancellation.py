"""httpx's own transport as a sender, under cancellation above all."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from llmopt import errors
from llmopt.transport.httpx_transport import HttpxSender
from tests.support.faults import (
    Answer,
    FaultServer,
    Reset,
    Respond,
    Script,
    Stall,
    Wait,
    can_make_certificates,
    faults_of,
    find_fault,
    full_backlog,
    good_certificate,
    refused_port,
)
from tests.transport.custom_transports import URL, Pieces
from tests.transport.helpers import (
    Suspensions,
    asking,
    failure,
    other_tasks,
    request_to,
    texts_of,
)


class TestHttpx:
    """httpx's own transport, over real sockets."""

    @pytest.fixture
    async def sender(self) -> AsyncIterator[HttpxSender]:
        transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=4), trust_env=False)
        sender = HttpxSender(transport)
        yield sender
        await sender.aclose()
        gc.collect()

    async def test_it_works(self, server: FaultServer, sender: HttpxSender) -> None:
        """Many requests over few connections."""
        answers = await asyncio.gather(*(sender.send(asking(server)) for _ in range(50)))
        assert [texts_of(answer) for answer in answers] == [1] * 50
        assert server.connections <= 4

    async def test_n12(self, server: FaultServer, sender: HttpxSender) -> None:
        """Refused, and a backlog that is full."""
        with refused_port() as port:
            error = await failure(sender, request_to(f"http://127.0.0.1:{port}"), errors.ConnectFailed)
        assert (error.cause, error.sent) == ("refused", "no")
        with full_backlog() as port:
            request = request_to(f"http://127.0.0.1:{port}", connect_timeout=0.05)
            error = await failure(sender, request, errors.ConnectFailed)
        assert error.cause == "timeout"
        server.play(Script([Reset()]))
        await failure(sender, asking(server), errors.ConnectionLost)

    @pytest.mark.skipif(not can_make_certificates(), reason="neither trustme nor openssl is here")
    async def test_n14(self, sender: HttpxSender) -> None:
        """An unknown authority is for good."""
        async with FaultServer(tls=good_certificate().server()) as server:
            error = await failure(sender, asking(server), errors.ConnectFailed)
        assert (error.cause, error.permanent, error.sent) == ("tls", True, "no")

    @pytest.mark.parametrize(
        "fault",
        [f for f in faults_of("N08", "N09", "N10", "N16") if "one 100" != f.name != "103 then 200"],
        ids=str,
    )
    async def test_d4_the_attempt_ends_in_time(
        self, fault: Any, server: FaultServer, sender: HttpxSender
    ) -> None:
        """httpx alone would wait for ever for a server that drips."""
        fault.inject(server)
        error = await failure(sender, asking(server, timeout=0.05), errors.AttemptTimeout)
        assert error.sent == "maybe"

    async def test_pool_timeout(self, server: FaultServer, sender: HttpxSender) -> None:
        """Its own pool is full."""
        gate = asyncio.Event()
        server.default(Script([Wait(gate), Respond()]))
        tasks = [asyncio.create_task(sender.send(asking(server))) for _ in range(4)]
        await server.wait_requests(4)
        error = await failure(sender, asking(server, pool_timeout=0.01), errors.PoolTimeout)
        assert error.sent == "no"
        server.default(Answer(200, b"{}"))
        gate.set()
        await asyncio.gather(*tasks)

    @pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
    async def test_d1_cancelled_at_every_suspension(self, warm: bool, server: FaultServer) -> None:
        """Its pool loses a slot for ever when a cancellation reaches it: none does."""
        for number in itertools.count(1):
            transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=1), trust_env=False)
            sender = HttpxSender(transport)
            if warm:
                await sender.send(asking(server))
            sweep = Suspensions(number)
            task = sweep.start(sender.send(asking(server)))
            await asyncio.wait([task])
            assert task.cancelled() == sweep.reached
            assert texts_of(await sender.send(asking(server))) == 1
            await sender.aclose()
            if not sweep.reached:
                break
        assert number > 1

    async def test_d1_a_storm_of_cancellations_costs_no_slot(
        self, server: FaultServer, sender: HttpxSender
    ) -> None:
        """Six hundred requests, cancelled at all moments."""
        for turn in range(30):
            tasks = [asyncio.create_task(sender.send(asking(server, str(n)))) for n in range(20)]
            for _ in range(turn):
                await asyncio.sleep(0)
            for task in tasks[turn % 3 :: 2]:
                task.cancel()
            await asyncio.wait(tasks)
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(sender.send(asking(server, str(n))) for n in range(20)))
        assert [texts_of(answer) for answer in answers] == [1] * 20

    async def test_an_abandoned_request_ends_by_itself(
        self, server: FaultServer, sender: HttpxSender
    ) -> None:
        """At its own read time-out, or with the next piece of its answer."""
        server.play(Script([Stall()]))
        find_fault("N09", "body drips for ever").inject(server)
        for _ in range(2):
            await failure(sender, asking(server, timeout=0.05), errors.AttemptTimeout)
        await server.wait_all_closed()
        async with asyncio.timeout(5):
            while len(sender._tasks):
                await asyncio.sleep(0)
        assert repr(sender) == "<HttpxSender over AsyncHTTPTransport: 0 running>"

    @pytest.mark.parametrize("streaming", [False, True])
    async def test_an_answer_to_nobody_is_closed(self, streaming: bool) -> None:
        """It comes when its caller has gone; the task that went on for it closes it."""
        gate, pieces = asyncio.Event(), Pieces(b"a")

        async def handler(_: httpx.Request) -> httpx.Response:
            await gate.wait()
            return httpx.Response(200, stream=pieces)

        sender = HttpxSender(httpx.MockTransport(handler), isolate=True)
        request = request_to(URL, timeout=0.01)
        with pytest.raises(errors.AttemptTimeout):
            if streaming:
                await sender.open_stream(request).__aenter__()
            else:
                await sender.send(request)
        assert (len(sender._tasks), pieces.closed) == (1, 0)
        gate.set()
        while len(sender._tasks):
            await asyncio.sleep(0)
        assert pieces.closed == 1

    async def test_closing_ends_what_is_under_way(self, server: FaultServer) -> None:
        """No task outlives the sender."""
        sender = HttpxSender(httpx.AsyncHTTPTransport(trust_env=False))
        server.default(Script([Stall()]))
        before = other_tasks()
        tasks = [asyncio.create_task(sender.send(asking(server))) for _ in range(3)]
        await server.wait_requests(3)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await sender.aclose()
        assert not {task for task in other_tasks() - before if "faults" not in repr(task)}
