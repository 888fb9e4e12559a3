"""Our pool as a transport for programs that use httpx."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import httpx
import pytest

from llmopt import errors
from llmopt.transport.httpx_transport import HttpxSender
from llmopt.transport.pool import ConnectionPool
from tests.support.faults import (
    Answer,
    FaultServer,
    Framing,
    Reset,
    Script,
    Stall,
    answer_openai,
    find_fault,
    full_backlog,
    gzipped,
    refused_port,
)
from tests.support.pool_transport import PoolTransport
from tests.transport.helpers import (
    HEADERS,
    embed_request,
    embed_request_to,
    expect_error,
    open_pool,
)


class TestPoolTransport:
    """Our pool under httpx."""

    @pytest.fixture
    async def client(self, pool: ConnectionPool) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(transport=PoolTransport(pool), timeout=5) as client:
            yield client

    async def test_an_httpx_client_works_over_the_pool(
        self, server: FaultServer, client: httpx.AsyncClient, pool: ConnectionPool
    ) -> None:
        """With bodies, headers, encodings and kept connections."""
        server.default(lambda request: gzipped(answer_openai(request)))
        url = f"{server.base_url}/v1/embeddings"
        responses = [await client.post(url, json={"input": ["a"]}, headers=HEADERS) for _ in range(3)]
        assert [len(response.json()["data"]) for response in responses] == [1, 1, 1]
        response = responses[-1]
        assert server.connections == 1
        assert response.http_version == "HTTP/1.1"
        assert response.extensions["attempt_info"].reused
        assert response.request.extensions["attempt_info"].sent == "yes"
        assert pool.stats().reused == 2

    async def test_request_and_response_bodies_are_streamed(
        self, server: FaultServer, client: httpx.AsyncClient
    ) -> None:
        """The request's body is read before it is sent, the response arrives in pieces."""

        async def pieces() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"

        server.default(lambda request: Answer(200, request.body * 500_000, framing=Framing.CHUNKED))
        async with client.stream("POST", server.base_url, content=pieces()) as response:
            pieces = [piece async for piece in response.aiter_bytes()]
        assert b"".join(pieces) == b"ab" * 500_000
        assert len(pieces) > 1
        assert server.requests[0].header("content-length") == "2"
        assert server.requests[0].header("transfer-encoding") is None

    async def test_leaving_a_stream_closes_its_connection(
        self, server: FaultServer, client: httpx.AsyncClient, pool: ConnectionPool
    ) -> None:
        """No task and no slot is leaked."""
        server.play(Answer(200, b"a" * 10_000_000))
        async with client.stream("GET", server.base_url) as response:
            async for _ in response.aiter_bytes():
                break
        assert pool.stats().in_use == 0
        gc.collect()

    async def test_exceptions_become_httpx_exceptions(
        self, server: FaultServer, client: httpx.AsyncClient
    ) -> None:
        """With ours as their cause."""
        with refused_port() as port, pytest.raises(httpx.ConnectError) as caught:
            await client.get(f"http://127.0.0.1:{port}")
        assert isinstance(caught.value.__cause__, errors.ConnectFailed)
        assert caught.value.request.extensions["attempt_info"].sent == "no"
        server.play(Script([Reset()]), b"SSH-2.0\r\n", Script([Stall()]))
        for kind in (httpx.ReadError, httpx.RemoteProtocolError):
            with pytest.raises(kind):
                await client.get(server.base_url)
        with pytest.raises(httpx.ReadTimeout):
            await client.get(server.base_url, timeout=0.05)
        with full_backlog() as port, pytest.raises(httpx.ConnectTimeout):
            await client.get(f"http://127.0.0.1:{port}", timeout=httpx.Timeout(5, connect=0.05))
        with pytest.raises(httpx.LocalProtocolError):
            await client.get("http://127.0.0.1:99999")

    async def test_a_pool_timeout_differs_from_a_connect_timeout(self, server: FaultServer) -> None:
        async with open_pool(pool_size=1) as pool, httpx.AsyncClient(transport=PoolTransport(pool)) as client:
            server.play(Script([Stall()]))
            holder = asyncio.create_task(client.get(server.base_url))
            await server.wait_requests(1)
            with pytest.raises(httpx.PoolTimeout):
                await client.get(server.base_url, timeout=httpx.Timeout(5, pool=0.01))
            holder.cancel()
            await asyncio.wait([holder])

    async def test_a_silent_body_is_a_read_timeout(
        self, server: FaultServer, client: httpx.AsyncClient
    ) -> None:
        """Between two pieces, as httpx defines it."""
        find_fault("N05", "length too long, then silence").inject(server)
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"{server.base_url}/v1/embeddings", json={"input": ["a"]}, timeout=0.1)

    async def test_our_sender_over_our_transport_loses_no_information(
        self, server: FaultServer, pool: ConnectionPool
    ) -> None:
        sender = HttpxSender(PoolTransport(pool))
        await sender.send(embed_request(server))
        answer = await sender.send(embed_request(server))
        assert (answer.info.reused, answer.info.sent) == (True, "yes")
        server.play(Script([Reset()]))
        error = await expect_error(sender, embed_request(server), errors.ConnectionLost)
        assert (error.stale, error.sent) == (True, "maybe")
        with refused_port() as port:
            refused = await expect_error(
                sender, embed_request_to(f"http://127.0.0.1:{port}"), errors.ConnectFailed
            )
        assert (refused.cause, refused.sent) == ("refused", "no")
        await sender.aclose()
