"""Responses that break the rules of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys

import pytest

from llmopt.errors import AttemptTimeout, ConnectionLost, InvalidResponse, LLMOptError
from llmopt.transport.pool import ConnectionPool
from tests.support.faults import (
    Answer,
    Close,
    Fault,
    FaultServer,
    ReadUntil,
    Script,
    Send,
    Signal,
    Stall,
    Wait,
    answer_openai,
    chunked,
    faults_of,
    find_fault,
)
from tests.transport.helpers import asking, assert_silent, failure, texts_of

HTTP = "InvalidResponse http"
RIGHT = "right"
EXPECTED = {
    "N05: length too long, then FIN": "InvalidResponse truncated",
    "N05: length too long, then silence": "AttemptTimeout",
    "N05: length too short": HTTP,
    "N05: length 0": HTTP,
    "N05: length negative": HTTP,
    "N05: length no number": HTTP,
    "N06: another answer in the same segment": RIGHT,
    "N06: an error in the same segment": RIGHT,
    "N06: noise in the same segment": HTTP,
    "N07: two lengths": HTTP,
    "N07: a length and chunks": HTTP,
    "N17: header of 200 KB": HTTP,
    "N17: 10,000 headers": HTTP,
    "N17: NUL in a header": HTTP,
    # In Python's development mode aiohttp is strict.
    "N17: folded header": HTTP if sys.flags.dev_mode else RIGHT,
    "N17: space before the colon": HTTP,
    "N17: no colon": HTTP,
    "N18: HTTP/0.9 text": HTTP,
    "N18: HTTP/2": HTTP,
    "N18: HTTP/2 preface": HTTP,
    "N18: noise": HTTP,
    "N18: empty": "ConnectionLost",
    "N18: half a status line": "ConnectionLost",
    "N18: status that is no number": HTTP,
}


async def outcome(server: FaultServer, pool: ConnectionPool) -> str:
    try:
        response = await pool.send(asking(server, timeout=0.2))
    except LLMOptError as error:
        return described(error)
    right = response.json == answer_json(server)
    return RIGHT if right else "WRONG"


def described(error: LLMOptError) -> str:
    assert_silent(error)
    assert error.sent == ("yes" if isinstance(error, InvalidResponse) else "maybe")
    return f"{type(error).__name__} {getattr(error, 'reason', '')}".strip()


def answer_json(server: FaultServer) -> object:
    return json.loads(answer_openai(server.requests[-1]).body)


# When it comes after the next request has left, an unasked answer cannot be told from the right one, and the
# row "right behind it" leaves that to chance; below, the same is tested with the order made sure of.
FAULTS = [fault for fault in faults_of("N05", "N06", "N07", "N17", "N18") if "right behind" not in fault.name]


@pytest.mark.row("N05", "N06", "N07", "N17", "N18")
@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_the_rules_are_kept_or_the_connection_goes(
    fault: Fault, warm: bool, server: FaultServer, pool: ConnectionPool
) -> None:
    """The outcome is as the table says, and the next request gets its own answer on a connection it may trust."""
    if warm:
        await pool.send(asking(server, "warm"))
    fault.inject(server)
    expected = EXPECTED[str(fault)]
    assert await outcome(server, pool) == expected
    assert await outcome(server, pool) == RIGHT
    kept = str(fault) == "N17: folded header" and expected == RIGHT
    assert server.connections == (1 if kept else 2)
    assert len(server.requests) == 2 + warm


@pytest.mark.row("N06")
@pytest.mark.parametrize(
    "extra",
    [
        b"H",
        b"HTTP/1.1 200 O",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwro",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"x",
    ],
)
@pytest.mark.parametrize("segments", [1, 2])
async def test_even_part_of_an_unasked_answer_ends_a_connection(
    extra: bytes, segments: int, server: FaultServer, pool: ConnectionPool
) -> None:
    """Whether it came with the last answer, or after it while the connection lay idle."""
    sent = asyncio.Event()
    answer = bytes(Answer(200, b'{"data":[1]}'))
    first = [Send(answer + extra)] if segments == 1 else [Send(answer), Send(extra)]
    server.play(Script([*first, Signal(sent), Stall()]))
    # Noise in the same segment spoils the answer itself.
    with contextlib.suppress(InvalidResponse):
        assert texts_of(await pool.send(asking(server))) == 1
    await sent.wait()
    assert await outcome(server, pool) == RIGHT
    assert server.connections == 2


@pytest.mark.row("N06")
async def test_bytes_that_the_loop_has_not_read_yet_are_seen(
    server: FaultServer, pool: ConnectionPool
) -> None:
    """They lie in the socket when the next request takes the connection: the socket is asked."""
    later = asyncio.Event()
    server.play(Script([Send(Answer(200, b'{"data":[1]}')), Wait(later), Send(Answer(200, b'{"data":[2]}'))]))
    assert texts_of(await pool.send(asking(server))) == 1
    # Written by hand, so that this loop has no turn between the write and the next request.
    (connection,) = server._open
    opened = connection._transport.get_extra_info("socket")
    raw = socket.socket(fileno=opened.fileno())
    try:
        raw.send(bytes(Answer(200, b'{"data":["wrong"]}')))
    finally:
        raw.detach()
    assert await outcome(server, pool) == RIGHT
    assert server.connections == 2
    later.set()


@pytest.mark.parametrize(
    "tail",
    [
        b"zz\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX",
        b"-5\r\nhello\r\n",
        b"5 5\r\nhello\r\n",
        b"ffffffffffffffffff\r\n",
    ],
)
@pytest.mark.parametrize("together", [True, False])
async def test_a_malformed_chunk_ends_the_answer_at_once(
    tail: bytes, together: bool, server: FaultServer, pool: ConnectionPool
) -> None:
    """Also when it comes after the head was read, where aiohttp alone waits for ever."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
    if together:
        server.play(Script([Send(head + tail), Stall()]))
        error = await failure(pool, asking(server), InvalidResponse)
    else:
        go = asyncio.Event()
        server.play(Script([Send(head), Wait(go), Send(tail), Stall()]))
        async with pool.open_stream(asking(server)) as stream:
            assert await anext(stream) == b"hello"
            go.set()
            with pytest.raises(InvalidResponse) as caught:
                async for piece in stream:
                    assert piece == b"hello"
            error = caught.value
    assert error.reason == "http"
    assert await outcome(server, pool) == RIGHT


async def test_trailers_and_odd_chunks_are_fine(server: FaultServer, pool: ConnectionPool) -> None:
    """What HTTP allows is taken, and the connection is kept."""
    body = b'{"data":[1]}'
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    server.play(
        head + chunked(body, 1),
        head + b"c;name=value\r\n" + body + b"\r\n0\r\nx-trailer: 1\r\n\r\n",
        b"HTTP/1.1 200\r\ncontent-length: 12\r\n\r\n" + body,
    )
    for _ in range(3):
        assert texts_of(await pool.send(asking(server))) == 1
    assert server.connections == 1


async def test_http_1_0_closes(server: FaultServer, pool: ConnectionPool) -> None:
    """It knows no kept connections."""
    server.play(b'HTTP/1.0 200 OK\r\ncontent-length: 12\r\n\r\n{"data":[1]}')
    assert texts_of(await pool.send(asking(server))) == 1
    assert pool.stats().idle == 0


@pytest.mark.row("N10")
@pytest.mark.parametrize("name", ["one 100", "103 then 200"])
async def test_interim_answers_are_passed_over(name: str, server: FaultServer, pool: ConnectionPool) -> None:
    """One or several, the connection is kept."""
    find_fault("N10", name).inject(server)
    assert await outcome(server, pool) == RIGHT
    assert await outcome(server, pool) == RIGHT
    assert server.connections == 1


async def test_a_switch_of_protocols_is_an_answer_without_body(
    server: FaultServer, pool: ConnectionPool
) -> None:
    """Nobody asked for one, so the connection is of no further use."""
    server.play(
        Script(
            [
                Send(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
                Send(b"x"),
                Stall(),
            ]
        )
    )
    response = await pool.send(asking(server))
    assert (response.status, response.body) == (101, b"")
    assert await outcome(server, pool) == RIGHT
    assert server.connections == 2


async def test_an_early_answer_ends_the_upload(pool: ConnectionPool) -> None:
    """A server that refuses a large body without reading it is understood, and its connection not kept."""
    async with FaultServer(receive_buffer=1024) as server:
        server.default_on_accept(Script([ReadUntil(), Send(Answer(413, b"too large")), Stall(reading=False)]))
        response = await pool.send(asking(server, body=b"a" * 30_000_000))
        assert (response.status, response.body) == (413, b"too large")
        assert pool.stats().idle == 0
        assert pool.stats().in_use == 0


@pytest.mark.row("N18")
async def test_errors_say_which_server_and_what_to_check(server: FaultServer, pool: ConnectionPool) -> None:
    """In plain words."""
    server.play(Script([Send(b"SSH-2.0-OpenSSH_9.2\r\n"), Close()]), Script([Close()]))
    error = await failure(pool, asking(server), InvalidResponse)
    assert str(error).startswith(f"{server.base_url} did not answer with valid HTTP")
    assert "check the port" in str(error)
    lost = await failure(pool, asking(server), ConnectionLost)
    assert str(lost) == f"{server.base_url} closed the connection without a response."


@pytest.mark.row("N05")
async def test_a_length_too_long_waits_no_longer_than_the_attempt(
    server: FaultServer, pool: ConnectionPool
) -> None:
    """Silence in the middle of a body."""
    find_fault("N05", "length too long, then silence").inject(server)
    error = await failure(pool, asking(server, timeout=0.05), AttemptTimeout)
    assert "reading the response" in str(error)


@pytest.mark.parametrize("method", ["POST", "HEAD"])
@pytest.mark.parametrize("status", [200, 204, 304])
async def test_answers_that_have_no_body(
    method: str, status: int, server: FaultServer, pool: ConnectionPool
) -> None:
    """Whatever their headers say of one, and the connection is kept."""
    headers = b"content-length: 0\r\n" if (method, status) == ("POST", 200) else b"content-length: 500\r\n"
    server.default(b"HTTP/1.1 %d Odd\r\ncontent-encoding: gzip\r\n%b\r\n" % (status, headers))
    for _ in range(3):
        response = await pool.send(asking(server, method=method))
        assert (response.status, response.body) == (status, b"")
    assert server.connections == 1


async def test_headers_are_text_that_can_be_written(server: FaultServer, pool: ConnectionPool) -> None:
    """Also where their bytes are not UTF-8."""
    server.play(Answer(200, b"{}", [("x-odd", b"caf\xe9"), ("x-good", "café".encode())]))
    response = await pool.send(asking(server))
    assert response.headers["x-good"] == "café"
    response.headers["x-odd"].encode()
