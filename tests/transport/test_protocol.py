"""Responses that break the rules of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any, cast

import pytest

from llmopt.errors import AttemptTimeout, ConnectionLost, InvalidResponse, LLMOptError
from llmopt.transport.http1 import ResponseParser
from llmopt.transport.pool import ConnectionPool
from llmopt.transport.protocol import HttpProtocol
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
from tests.transport.helpers import (
    assert_no_secrets,
    chunks,
    count_vectors,
    embed_request,
    expect_error,
    open_stream,
)

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
    "N17: folded header": RIGHT,
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
        response = await pool.send(embed_request(server, timeout=0.2))
    except LLMOptError as error:
        return described(error)
    right = response.json == answer_json(server)
    return RIGHT if right else "WRONG"


def described(error: LLMOptError) -> str:
    assert_no_secrets(error)
    assert error.sent == ("yes" if isinstance(error, InvalidResponse) else "maybe")
    return f"{type(error).__name__} {getattr(error, 'reason', '')}".strip()


def answer_json(server: FaultServer) -> object:
    return json.loads(answer_openai(server.requests[-1]).body)


# An unsolicited response that arrives after the next request was sent looks like the right one, and the
# row "right behind it" leaves the order to chance; a test below fixes the order.
FAULTS = [fault for fault in faults_of("N05", "N06", "N07", "N17", "N18") if "right behind" not in fault.name]


@pytest.mark.row("N05", "N06", "N07", "N17", "N18")
@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_an_invalid_response_closes_the_connection(
    fault: Fault, warm: bool, server: FaultServer, pool: ConnectionPool
) -> None:
    """The outcome is in the table, and the next request gets its own response on another connection."""
    if warm:
        await pool.send(embed_request(server, "warm"))
    fault.inject(server)
    expected = EXPECTED[str(fault)]
    assert await outcome(server, pool) == expected
    assert await outcome(server, pool) == RIGHT
    kept = str(fault) == "N17: folded header"
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
async def test_unsolicited_bytes_close_a_kept_connection(
    extra: bytes, segments: int, server: FaultServer, pool: ConnectionPool
) -> None:
    """Bytes that arrived with the last response, or after it on the idle connection."""
    sent = asyncio.Event()
    answer = bytes(Answer(200, b'{"data":[1]}'))
    first = [Send(answer + extra)] if segments == 1 else [Send(answer), Send(extra)]
    server.play(Script([*first, Signal(sent), Stall()]))
    # Extra bytes in the same segment invalidate the response itself.
    with contextlib.suppress(InvalidResponse):
        assert count_vectors(await pool.send(embed_request(server))) == 1
    await sent.wait()
    assert await outcome(server, pool) == RIGHT
    assert server.connections == 2


@pytest.mark.row("N06")
async def test_unsolicited_bytes_still_in_the_socket_are_seen(
    server: FaultServer, pool: ConnectionPool
) -> None:
    """The loop has not read them when the next request takes the connection: the socket is checked."""
    later = asyncio.Event()
    server.play(Script([Send(Answer(200, b'{"data":[1]}')), Wait(later), Send(Answer(200, b'{"data":[2]}'))]))
    assert count_vectors(await pool.send(embed_request(server))) == 1
    # Written directly, so that this loop has no turn between the write and the next request.
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
@pytest.mark.parametrize("one_segment", [True, False])
async def test_a_malformed_chunk_ends_the_response_at_once(
    tail: bytes, one_segment: bool, server: FaultServer, pool: ConnectionPool
) -> None:
    """Also after the head was read."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
    if one_segment:
        server.play(Script([Send(head + tail), Stall()]))
        error = await expect_error(pool, embed_request(server), InvalidResponse)
    else:
        go = asyncio.Event()
        server.play(Script([Send(head), Wait(go), Send(tail), Stall()]))
        async with open_stream(pool, embed_request(server)) as stream:
            assert await stream.read() == b"hello"
            go.set()
            with pytest.raises(InvalidResponse) as caught:
                async for piece in chunks(stream):
                    assert piece == b"hello"
            error = caught.value
    assert error.reason == "http"
    assert await outcome(server, pool) == RIGHT


async def test_trailers_and_unusual_chunks_are_accepted(server: FaultServer, pool: ConnectionPool) -> None:
    """HTTP allows them; the connection is kept."""
    body = b'{"data":[1]}'
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    server.play(
        head + chunked(body, 1),
        head + b"c;name=value\r\n" + body + b"\r\n0\r\nx-trailer: 1\r\n\r\n",
        b"HTTP/1.1 200\r\ncontent-length: 12\r\n\r\n" + body,
    )
    for _ in range(3):
        assert count_vectors(await pool.send(embed_request(server))) == 1
    assert server.connections == 1


async def test_http_1_0_closes_the_connection(server: FaultServer, pool: ConnectionPool) -> None:
    """HTTP/1.0 has no kept connections."""
    server.play(b'HTTP/1.0 200 OK\r\ncontent-length: 12\r\n\r\n{"data":[1]}')
    assert count_vectors(await pool.send(embed_request(server))) == 1
    assert pool.stats().idle == 0


@pytest.mark.row("N10")
@pytest.mark.parametrize("name", ["one 100", "103 then 200"])
async def test_interim_responses_are_skipped(name: str, server: FaultServer, pool: ConnectionPool) -> None:
    """One or several; the connection is kept."""
    find_fault("N10", name).inject(server)
    assert await outcome(server, pool) == RIGHT
    assert await outcome(server, pool) == RIGHT
    assert server.connections == 1


async def test_switching_protocols_is_a_response_without_body(
    server: FaultServer, pool: ConnectionPool
) -> None:
    """The request did not ask for a switch, so the connection is closed."""
    server.play(
        Script(
            [
                Send(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
                Send(b"x"),
                Stall(),
            ]
        )
    )
    response = await pool.send(embed_request(server))
    assert (response.status, response.body) == (101, b"")
    assert await outcome(server, pool) == RIGHT
    assert server.connections == 2


async def test_an_early_response_ends_the_upload(pool: ConnectionPool) -> None:
    """The server refuses a large body without reading it; its connection is not kept."""
    async with FaultServer(receive_buffer=1024) as server:
        server.default_on_accept(Script([ReadUntil(), Send(Answer(413, b"too large")), Stall(reading=False)]))
        response = await pool.send(embed_request(server, body=b"a" * 30_000_000))
        assert (response.status, response.body) == (413, b"too large")
        assert pool.stats().idle == 0
        assert pool.stats().in_use == 0


@pytest.mark.row("N18")
async def test_errors_name_the_server_and_what_to_check(server: FaultServer, pool: ConnectionPool) -> None:
    server.play(Script([Send(b"SSH-2.0-OpenSSH_9.2\r\n"), Close()]), Script([Close()]))
    error = await expect_error(pool, embed_request(server), InvalidResponse)
    assert str(error).startswith(f"{server.base_url} did not answer with valid HTTP")
    assert "check the port" in str(error)
    lost = await expect_error(pool, embed_request(server), ConnectionLost)
    assert str(lost) == f"{server.base_url} closed the connection without a response."


@pytest.mark.row("N05")
async def test_a_content_length_too_long_ends_at_the_attempt_timeout(
    server: FaultServer, pool: ConnectionPool
) -> None:
    find_fault("N05", "length too long, then silence").inject(server)
    error = await expect_error(pool, embed_request(server, timeout=0.05), AttemptTimeout)
    assert "reading the response" in str(error)


@pytest.mark.parametrize("method", ["POST", "HEAD"])
@pytest.mark.parametrize("status", [200, 204, 304])
async def test_responses_without_body(
    method: str, status: int, server: FaultServer, pool: ConnectionPool
) -> None:
    """Whatever their headers say; the connection is kept."""
    headers = b"content-length: 0\r\n" if (method, status) == ("POST", 200) else b"content-length: 500\r\n"
    server.default(b"HTTP/1.1 %d Odd\r\ncontent-encoding: gzip\r\n%b\r\n" % (status, headers))
    for _ in range(3):
        response = await pool.send(embed_request(server, method=method))
        assert (response.status, response.body) == (status, b"")
    assert server.connections == 1


async def test_headers_are_valid_text(server: FaultServer, pool: ConnectionPool) -> None:
    """Also where their bytes are not UTF-8."""
    server.play(Answer(200, b"{}", [("x-odd", b"caf\xe9"), ("x-good", "café".encode())]))
    response = await pool.send(embed_request(server))
    assert response.headers["x-good"] == "café"
    response.headers["x-odd"].encode()


@pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])
def test_an_answer_is_read_although_the_rest_of_the_request_cannot_be_written(loop_name: str) -> None:
    """A server that refuses a long request answers, and resets the connection: it has not read all of it."""
    factory = (
        asyncio.new_event_loop if loop_name == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    )
    found: list[object] = []

    class Recorder:
        def receive(self, parser: ResponseParser) -> None:
            found.append((parser.status, parser.body))
            protocol.abort()

        def lost(self, error: BaseException | None) -> None:
            found.append(error)

    protocol = HttpProtocol(cast("Any", None), memoryview(bytearray(1_000)), lambda _: None)

    async def run(listener: socket.socket) -> None:
        await asyncio.get_running_loop().create_connection(lambda: protocol, *listener.getsockname())
        peer, _ = listener.accept()
        protocol.send(Recorder(), "POST", memoryview(b"POST / HTTP/1.1\r\n\r\n"), None, 1_000)
        with peer:
            # It closes with bytes that it has not read, which is a reset.
            peer.recv(1)
            peer.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge")
        # The loop reads nothing before this fails.
        protocol.transport.write(b"the rest")
        while not found:
            await asyncio.sleep(0)

    with socket.create_server(("127.0.0.1", 0)) as listener, asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run(listener))
    assert found == [(413, b"large")]
