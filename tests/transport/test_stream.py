"""Streamed responses, over both transports."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import zlib
from collections.abc import AsyncIterator

import httpx
import pytest

from llmopt.errors import AttemptTimeout, ConnectFailed, ConnectionLost, InvalidResponse, LLMOptError
from llmopt.transport.httpx_transport import HttpxSender
from llmopt.transport.pool import ConnectionPool
from llmopt.transport.stream import ResponseStream
from tests.support.faults import (
    Answer,
    Close,
    FaultServer,
    Framing,
    Repeat,
    Reset,
    Script,
    Send,
    Stall,
    Step,
    Wait,
    chunked,
    cut,
    error_answer,
    flood,
    gzip_bomb,
    refused_port,
    stream_answer,
    stream_events,
)
from tests.support.pool_transport import PoolTransport
from tests.transport.helpers import Sender, chunks, embed_request, embed_request_to, open_pool, open_stream

WORDS = ["one ", "two ", "three"]


@pytest.fixture(params=["pool", "httpx", "pool behind httpx"])
async def sender(request: pytest.FixtureRequest) -> AsyncIterator[Sender]:
    async with open_pool(pool_size=1) as pool:
        transport: Sender = pool
        if request.param == "httpx":
            transport = HttpxSender(httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=1)))
        elif request.param == "pool behind httpx":
            transport = HttpxSender(PoolTransport(pool))
        yield transport
        await transport.aclose()


async def test_a_stream_arrives_piece_by_piece(server: FaultServer, sender: Sender) -> None:
    """Each event is read before the next is sent."""
    head = Answer(200, b"", [("content-type", "text/event-stream")], Framing.CHUNKED).head()
    events, gates = stream_events(WORDS), [asyncio.Event() for _ in stream_events(WORDS)]
    steps = [Send(head)]
    for event, gate in zip(events, gates, strict=True):
        steps += [Send(b"%x\r\n%b\r\n" % (len(event), event)), Wait(gate)]  # type: ignore[list-item]
    server.play(Script([*steps, Send(b"0\r\n\r\n")]))
    async with open_stream(sender, embed_request(server)) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream"
        for event, gate in zip(events, gates, strict=True):
            assert await stream.read() == event
            gate.set()
        assert [piece async for piece in chunks(stream)] == []


async def test_a_stream_read_to_its_end_keeps_the_connection(server: FaultServer, sender: Sender) -> None:
    """A compressed stream does, too."""
    body = b"".join(stream_events(WORDS))
    server.play(
        stream_answer(WORDS),
        Answer(200, gzip.compress(body), [("content-encoding", "gzip")], Framing.CHUNKED),
    )
    for _ in range(2):
        async with open_stream(sender, embed_request(server)) as stream:
            assert b"".join([piece async for piece in chunks(stream)]) == body
    assert (await sender.send(embed_request(server))).status == 200
    assert server.connections == 1


async def test_compressed_pieces_are_decoded_as_they_arrive(server: FaultServer, sender: Sender) -> None:
    """If the server flushes its compressor at the end of each event."""
    compressor, gate = zlib.compressobj(wbits=31), asyncio.Event()
    first = compressor.compress(b"data: 1\n\n") + compressor.flush(zlib.Z_SYNC_FLUSH)
    second = compressor.compress(b"data: 2\n\n") + compressor.flush()
    head = Answer(200, b"", [("content-encoding", "gzip")], Framing.EOF)
    server.play(Script([Send(head), Send(first), Wait(gate), Send(second), Close()]))
    async with open_stream(sender, embed_request(server)) as stream:
        assert await stream.read() == b"data: 1\n\n"
        gate.set()
        assert [piece async for piece in chunks(stream)] == [b"data: 2\n\n"]


@pytest.mark.row("E11")
@pytest.mark.parametrize("how", ["break", "raise", "aclose", "unread"])
async def test_leaving_early_closes_the_connection(how: str, server: FaultServer, sender: Sender) -> None:
    """Twenty streams over one connection each; then the next request gets its response."""
    server.default(Script([Send(Answer(200, b"data: 1\n\n" * 10, framing=Framing.EOF)), Stall()]))
    for _ in range(20):
        with pytest.raises(KeyError) if how == "raise" else contextlib.nullcontext():
            async with open_stream(sender, embed_request(server)) as stream:
                if how == "unread":
                    continue
                async for _piece in chunks(stream):
                    if how == "raise":
                        raise KeyError
                    break
                if how == "aclose":
                    await stream.aclose()
                    await stream.aclose()
        await server.wait_all_closed()
    gc.collect()
    server.default(stream_answer(WORDS))
    async with open_stream(sender, embed_request(server)) as stream:
        assert b"".join([piece async for piece in chunks(stream)]).endswith(b"data: [DONE]\n\n")


@pytest.mark.row("E12")
async def test_error_statuses_are_streams_too(server: FaultServer, sender: Sender) -> None:
    """A hundred 429 responses do not close the only connection."""
    server.default(error_answer(429, "Later.", headers=[("retry-after", "1")]))
    for turn in range(100):
        async with open_stream(sender, embed_request(server)) as stream:
            assert stream.status == 429
            assert stream.headers["retry-after"] == "1"
            if turn % 2:
                assert b"Later." in b"".join([piece async for piece in chunks(stream)])
    assert len(server.requests) == 100


async def test_the_attempt_timeout_ends_with_the_head(server: FaultServer, sender: Sender) -> None:
    """The transport does not limit how long a stream may be silent."""
    answer = Answer(200, b"1", framing=Framing.EOF)
    server.play(Script([Stall()]), Script([Send(answer), Wait(0.15), Send(b"2"), Close()]))
    with pytest.raises(AttemptTimeout) as caught:
        async with open_stream(sender, embed_request(server, timeout=0.1)):
            pass
    assert caught.value.sent == "maybe"
    async with open_stream(sender, embed_request(server, timeout=0.1)) as stream:
        assert await stream.read() == b"1"
        assert await stream.read() == b"2"


@pytest.mark.row("E10")
@pytest.mark.parametrize(
    ("end", "framing", "expected"),
    [
        (Reset(), Framing.CHUNKED, ConnectionLost),
        (Reset(), Framing.EOF, ConnectionLost),
        (Close(), Framing.CHUNKED, InvalidResponse),
        (Close(), Framing.LENGTH, InvalidResponse),
    ],
    ids=str,
)
async def test_a_truncated_stream_gives_its_bytes_first(
    end: Close | Reset, framing: Framing, expected: type[Exception], server: FaultServer, sender: Sender
) -> None:
    """The error is raised after the bytes that arrived."""
    answer = stream_answer(WORDS, framing=framing)
    server.play(cut(len(bytes(answer)) - 30, end, answer))
    received = b""
    with pytest.raises(expected) as caught:
        async with open_stream(sender, embed_request(server)) as stream:
            async for piece in chunks(stream):
                received += piece
    assert received
    if isinstance(caught.value, InvalidResponse):
        assert caught.value.reason == "truncated"


async def test_a_stream_has_the_limits_of_any_response(server: FaultServer, sender: Sender) -> None:
    """In size, of what is received and of what it decompresses to."""
    bomb = Answer(200, gzip_bomb(64 * 2**20), [("content-encoding", "gzip")], Framing.CHUNKED)
    server.play(bomb, Answer(200, b"a" * 1000))
    for maximum in (2**24, 999):
        with pytest.raises(InvalidResponse) as caught:
            async with open_stream(sender, embed_request(server, max_body=maximum)) as stream:
                async for _ in chunks(stream):
                    pass
        assert caught.value.reason == "too_large"


async def test_a_stream_that_does_not_begin_raises_on_entering(sender: Sender) -> None:
    with refused_port() as port, pytest.raises(ConnectFailed) as caught:
        async with open_stream(sender, embed_request_to(f"http://127.0.0.1:{port}")):
            raise AssertionError
    assert (caught.value.cause, caught.value.sent) == ("refused", "no")


async def test_a_slow_reader_stops_the_server(server: FaultServer) -> None:
    """Unread bytes do not accumulate."""
    server.play(flood(2**30, framing=Framing.EOF))
    async with open_pool() as pool, open_stream(pool, embed_request(server, max_body=2**31)) as stream:
        await stream.read()
        for _ in range(2000):
            await asyncio.sleep(0)
        read = len(await stream.read())
        assert read < 4 * 2**20


async def test_a_cancelled_reader_closes_the_stream(server: FaultServer, pool: ConnectionPool) -> None:
    """The cancellation is delivered."""
    server.play(Script([Send(Answer(200, b"1", framing=Framing.EOF)), Stall()]))

    async def read() -> None:
        async with open_stream(pool, embed_request(server)) as stream:
            async for _ in chunks(stream):
                reading.set()

    reading = asyncio.Event()
    task = asyncio.create_task(read())
    await reading.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await server.wait_all_closed()
    assert pool.stats().in_use == 0


# Closing a stream before the formal end of its body.

EVENTS = b"".join(stream_events(WORDS))


async def stream_read_to_its_last_event(sender: Sender, server: FaultServer) -> ResponseStream:
    """A stream that is read except for the formal end of its body."""
    stream = await sender.open(embed_request(server))
    received = b""
    while not received.startswith(EVENTS):
        received += await stream.read()
    return stream


def unended(*steps: Step) -> Script:
    head = Answer(200, b"", [("content-type", "text/event-stream")], Framing.CHUNKED).head()
    return Script([Send(head), Send(chunked(EVENTS).removesuffix(b"0\r\n\r\n")), *steps])


async def test_drain_keeps_the_connection_when_the_end_comes_soon(
    server: FaultServer, sender: Sender
) -> None:
    """The connection carries the next request."""
    gate = asyncio.Event()
    server.play(unended(Wait(gate), Send(b"0\r\n\r\n")))
    (await stream_read_to_its_last_event(sender, server)).drain(5.0)
    gate.set()
    assert (await sender.send(embed_request(server))).status == 200
    assert server.connections == 1


async def test_drain_frees_the_connection_at_once_when_the_end_is_there(
    server: FaultServer, pool: ConnectionPool
) -> None:
    """Without a turn of the loop."""
    server.play(stream_answer(WORDS))
    stream = await pool.open(embed_request(server))
    assert await stream.read() == EVENTS
    stream.drain(5.0)
    assert (pool.stats().in_use, pool.stats().idle) == (0, 1)


@pytest.mark.parametrize(
    "after",
    [[Stall()], [Repeat([Send(chunked(b"x" * 1000).removesuffix(b"0\r\n\r\n"))])]],
    ids=["silence", "a flood"],
)
async def test_drain_closes_the_connection_after_its_timeout(
    after: list[Step], server: FaultServer, sender: Sender
) -> None:
    server.play(unended(*after))
    (await stream_read_to_its_last_event(sender, server)).drain(0.05)
    await server.wait_all_closed()
    assert (await sender.send(embed_request(server))).status == 200


async def test_a_pool_closes_during_a_drain(server: FaultServer) -> None:
    """Without a wait, and nothing stays open."""
    server.play(unended(Stall()))
    async with open_pool() as pool:
        (await stream_read_to_its_last_event(pool, server)).drain(60.0)
        assert pool.stats().in_use == 1
        await pool.aclose()
    await server.wait_all_closed()


async def test_a_stream_closed_during_a_read_raises_in_its_reader(
    server: FaultServer, pool: ConnectionPool
) -> None:
    server.play(unended(Stall()))
    stream = await stream_read_to_its_last_event(pool, server)
    reading = asyncio.ensure_future(stream.read())
    await asyncio.sleep(0)
    stream.close()
    with pytest.raises(LLMOptError):
        await reading
    assert pool.stats().in_use == 0
