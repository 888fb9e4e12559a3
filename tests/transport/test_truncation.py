"""A good response cut after every byte, by RST and by FIN, in every framing."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from io import BytesIO

import pytest

from llmopt.errors import ConnectionLost, InvalidResponse, LLMOptError
from llmopt.transport.pool import ConnectionPool
from tests.support.faults import Answer, Close, FaultServer, Framing, Reset, Step, cut, gzipped
from tests.support.faults.request import Request
from tests.support.faults.script import Reply, Script
from tests.support.faults.tls import good_certificate
from tests.support.scale import scaled
from tests.transport.helpers import HEADERS, assert_no_secrets, embed_request, open_pool

BODY = b'{"data":"' + bytes(97 + number % 26 for number in range(scaled(400, nightly=1900))) + b'"}'
AT_ONCE = 16
WHOLE = "whole"


async def outcomes(server: FaultServer, pool: ConnectionPool, answer: Answer, end: Step) -> list[str]:
    """The outcome of the response when it is cut after 0, 1, 2, ... all of its bytes."""

    def reply(request: Request) -> Reply:
        return cut(int(request.header("x-offset") or 0), end, answer)(request)

    server.default(reply)
    offsets = iter(range(len(bytes(answer)) + 1))
    results: dict[int, str] = {}

    async def worker() -> None:
        for offset in offsets:
            results[offset] = await outcome(server, pool, offset)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return [results[offset] for offset in sorted(results)]


async def outcome(server: FaultServer, pool: ConnectionPool, offset: int) -> str:
    try:
        response = await pool.send(embed_request(server, headers={**HEADERS, "x-offset": str(offset)}))
    except LLMOptError as error:
        assert_no_secrets(error)
        reason = error.reason if isinstance(error, InvalidResponse) else ""
        return f"{type(error).__name__} {reason}".strip()
    assert BODY.startswith(response.body)
    return WHOLE if response.body == BODY else f"cut to {len(response.body)}"


@pytest.mark.row("N01")
@pytest.mark.parametrize("framing", [Framing.LENGTH, Framing.CHUNKED])
async def test_reset_at_every_byte(framing: Framing, server: FaultServer) -> None:
    """All bytes or an error, never a part."""
    answer = Answer(200, BODY, framing=framing, chunk=100)
    async with open_pool(pool_size=AT_ONCE) as pool:
        results = await outcomes(server, pool, answer, Reset())
        assert results == ["ConnectionLost"] * len(bytes(answer)) + [WHOLE]
        assert pool.stats().reused == 0
    await server.wait_all_closed()
    assert len(server.requests) == len(bytes(answer)) + 1


@pytest.mark.row("N01")
async def test_reset_at_every_byte_of_a_body_without_length(server: FaultServer) -> None:
    """A reset is no regular end, so even the last byte does not complete the body."""
    answer = Answer(200, BODY, framing=Framing.EOF)
    async with open_pool(pool_size=AT_ONCE) as pool:
        results = await outcomes(server, pool, answer, Reset())
    assert results == ["ConnectionLost"] * (len(bytes(answer)) + 1)


@pytest.mark.row("N02", "N03")
@pytest.mark.parametrize("framing", [Framing.LENGTH, Framing.CHUNKED])
async def test_fin_at_every_byte(framing: Framing, server: FaultServer) -> None:
    """In the head the connection is lost, in the body the response is truncated."""
    answer = Answer(200, BODY, framing=framing, chunk=100)
    head = len(answer.head())
    async with open_pool(pool_size=AT_ONCE) as pool:
        results = await outcomes(server, pool, answer, Close())
    in_body = len(bytes(answer)) - head
    assert results == ["ConnectionLost"] * head + ["InvalidResponse truncated"] * in_body + [WHOLE]


@pytest.mark.row("N04")
async def test_fin_at_every_byte_of_a_body_without_length(server: FaultServer) -> None:
    """The transport cannot see the truncation: it returns the bytes, and only their JSON is incomplete."""
    answer = Answer(200, BODY, framing=Framing.EOF)
    head = len(answer.head())
    async with open_pool(pool_size=AT_ONCE) as pool:
        results = await outcomes(server, pool, answer, Close())
        assert pool.stats().reused == 0
    assert Counter(results[:head]) == {"ConnectionLost": head}
    assert results[head:] == [f"cut to {length}" for length in range(len(BODY))] + [WHOLE]


@pytest.mark.row("N02")
async def test_fin_at_every_byte_of_a_compressed_body(server: FaultServer) -> None:
    """Also without a length: gzip marks its own end."""
    answer = gzipped(Answer(200, BODY, framing=Framing.EOF))
    head = len(answer.head())
    async with open_pool(pool_size=AT_ONCE) as pool:
        results = await outcomes(server, pool, answer, Close())
    # An empty body is valid in every encoding.
    assert results[head] == "cut to 0"
    assert set(results[head + 1 : -1]) == {"InvalidResponse decompression"}
    assert results[-1] == WHOLE


async def test_a_lost_connection_never_counts_as_unsent(server: FaultServer, pool: ConnectionPool) -> None:
    """The server may have processed the request."""
    server.play(Script([Reset()]), cut(20, Close(), Answer(200, BODY)), cut(200, Reset(), Answer(200, BODY)))
    for _ in range(3):
        with pytest.raises(ConnectionLost) as caught:
            await pool.send(embed_request(server))
        assert (caught.value.sent, caught.value.stale) == ("maybe", False)
        assert caught.value.endpoint == server.base_url


@pytest.mark.row("N24")
@pytest.mark.parametrize("end", [Reset(), Close()])
@pytest.mark.parametrize("secured", [False, True])
async def test_a_broken_connection_frees_its_body_at_once(end: Step, secured: bool) -> None:
    """Without the garbage collector, which on Python 3.13 reports memory that it frees together with a view of it."""
    certificate = good_certificate() if secured else None
    answer = Answer(200, BODY)
    reply = cut(len(bytes(answer)) - 5, end, answer)
    async with (
        FaultServer(tls=certificate and certificate.server()) as server,
        open_pool(tls=certificate and certificate.client()) as pool,
    ):
        server.default(reply)
        before = bodies()
        gc.disable()
        try:
            for _ in range(3):
                with pytest.raises((ConnectionLost, InvalidResponse)):
                    await pool.send(embed_request(server))
            # The loop drops a transport in the turn after it was closed.
            for _ in range(3):
                await asyncio.sleep(0)
            assert bodies() <= before
        finally:
            gc.enable()


def bodies() -> set[int]:
    """The buffers of bodies that are in memory."""
    return {id(each) for each in gc.get_objects() if type(each) is BytesIO}
