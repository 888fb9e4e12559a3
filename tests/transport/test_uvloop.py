"""uvloop: the same behaviour, one test for each thing that uses sockets."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llmopt.errors import AttemptTimeout, ConnectFailed, ConnectionLost, InvalidResponse
from llmopt.transport.pool import ConnectionPool
from tests.support.faults import (
    Answer,
    FaultServer,
    Framing,
    ServerThread,
    Stall,
    can_make_certificates,
    find_fault,
    good_certificate,
    refused_port,
    serving,
)
from tests.support.faults.script import Reset, Script
from tests.transport.helpers import (
    CancelAtSuspension,
    count_vectors,
    embed_request,
    embed_request_to,
    expect_error,
    open_pool,
)
from tests.transport.test_proxy import tunnel

uvloop = pytest.importorskip("uvloop")

Test = Callable[[ServerThread, ConnectionPool], Coroutine[Any, Any, None]]


def on_uvloop(test: Test) -> None:
    """Run a test on uvloop, with the server on another loop."""
    with serving() as thread:

        async def run() -> None:
            async with open_pool(pool_size=4) as pool:
                await test(thread, pool)

        uvloop.run(run())
        thread.run(thread.server.wait_all_closed())
        gc.collect()


def test_requests_and_reuse() -> None:
    """Small and large, in parallel."""

    async def test(thread: ServerThread, pool: ConnectionPool) -> None:
        thread.server.default(lambda request: Answer(200, request.body))
        bodies = [bytes([n]) * size for n, size in enumerate((0, 1, 70_000, 3_000_000) * 5)]
        requests = [embed_request(thread.server, body=body, pool_timeout=None) for body in bodies]
        answers = await asyncio.gather(*map(pool.send, requests))
        assert [answer.body for answer in answers] == bodies
        assert pool.stats().created == 4

    on_uvloop(test)


def test_faults() -> None:
    """Refused, reset, timed out, unsolicited bytes, closed while kept."""

    async def test(thread: ServerThread, pool: ConnectionPool) -> None:
        server = thread.server
        with refused_port() as port:
            error = await expect_error(pool, embed_request_to(f"http://127.0.0.1:{port}"), ConnectFailed)
        assert error.cause == "refused"
        server.play(Script([Reset()]))
        await expect_error(pool, embed_request(server), ConnectionLost)
        server.play(Script([Stall()]))
        await expect_error(pool, embed_request(server, timeout=0.05), AttemptTimeout)
        find_fault("N06", "another answer in the same segment").inject(server)
        for _ in range(2):
            assert count_vectors(await pool.send(embed_request(server))) == 1
        assert pool.stats().reused == 0
        for _ in range(20):
            assert count_vectors(await pool.send(embed_request(server))) == 1
            await asyncio.to_thread(thread.call, server.drop_idle)
        find_fault("N05", "length too long, then FIN").inject(server)
        assert (await expect_error(pool, embed_request(server), InvalidResponse)).reason == "truncated"

    on_uvloop(test)


def test_cancelled_at_every_suspension() -> None:
    """The pool is clean after each."""

    async def test(thread: ServerThread, pool: ConnectionPool) -> None:
        for number in itertools.count(1):
            sweep = CancelAtSuspension(number)
            task = sweep.start(pool.send(embed_request(thread.server)))
            await asyncio.wait([task])
            assert pool.stats().in_use == 0
            assert count_vectors(await pool.send(embed_request(thread.server))) == 1
            if not sweep.reached:
                break

    on_uvloop(test)


@pytest.mark.row("C08")
def test_one_run_after_the_other() -> None:
    """And an asyncio run after those, without a warning."""
    with serving() as thread:
        pool = ConnectionPool()

        async def use() -> None:
            assert count_vectors(await pool.send(embed_request(thread.server))) == 1

        uvloop.run(use())
        uvloop.run(use())
        asyncio.run(use())
        gc.collect()
        uvloop.run(pool.aclose())
        gc.collect()
        thread.run(thread.server.wait_all_closed())


@pytest.mark.skipif(not can_make_certificates(), reason="neither trustme nor openssl is here")
def test_tls() -> None:
    """Over two runs."""
    certificate = good_certificate()
    with serving(FaultServer(tls=certificate.server())) as thread:
        pool = ConnectionPool(tls=certificate.client())

        async def use() -> None:
            for _ in range(2):
                assert count_vectors(await pool.send(embed_request(thread.server))) == 1
            body = bytes(range(256)) * 10_000
            thread.server.play(Answer(200, body), Answer(200, body, framing=Framing.CHUNKED))
            for _ in range(2):
                assert (await pool.send(embed_request(thread.server))).body == body

        uvloop.run(use())
        uvloop.run(use())
        uvloop.run(pool.aclose())
        gc.collect()
        thread.run(thread.server.wait_all_closed())


@pytest.mark.skipif(not can_make_certificates(), reason="neither trustme nor openssl is here")
@pytest.mark.parametrize("secured", [False, True], ids=["plain proxy", "TLS in TLS"])
def test_a_tunnel_through_a_proxy(secured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and large bodies, over one tunnel."""
    certificate = good_certificate()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with serving(FaultServer(tls=certificate.server())) as thread:
        thread.server.default(lambda request: Answer(200, request.body))
        proxy = tunnel(thread.server, certificate.server() if secured else None)
        port, heads = thread.run(proxy.__aenter__())
        monkeypatch.setenv("ALL_PROXY", f"{'https' if secured else 'http'}://127.0.0.1:{port}")

        async def run() -> None:
            async with open_pool(tls=certificate.client()) as pool:
                for size in (10, 3_000_000):
                    body = b"b" * size
                    assert (await pool.send(embed_request(thread.server, body=body))).body == body
                await pool.aclose()

        uvloop.run(run())
        thread.run(proxy.__aexit__(None, None, None))
        assert len(heads) == 1
