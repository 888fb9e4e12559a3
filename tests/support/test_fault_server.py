"""Tests of the fault server: it does what its scripts say, byte for byte, as seen through plain sockets."""

import asyncio
import contextlib
import errno
import functools
import gc
import gzip
import http.client
import io
import itertools
import json
import os
import select
import socket
import ssl
import sys
import zlib
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.faults import (
    ROWS,
    Answer,
    Certificate,
    Close,
    CloseAfter,
    Crossed,
    Drip,
    Fault,
    FaultServer,
    Flaky,
    Framing,
    HalfClose,
    MalformedRequestError,
    ManualClock,
    MaxItems,
    OutageSchedule,
    Playable,
    Poison,
    RateLimited,
    ReadBytes,
    ReadRequest,
    ReadUntil,
    Repeat,
    Request,
    RequestReader,
    Reset,
    Respond,
    Responder,
    Script,
    Send,
    Signal,
    Stall,
    StartTls,
    Step,
    TokenLimit,
    Wait,
    answer_openai,
    bomb,
    can_make_certificates,
    chunked,
    cut,
    embeddings_answer,
    expired_certificate,
    faults_of,
    find_fault,
    flap,
    full_backlog,
    good_certificate,
    refused_port,
    self_signed_certificate,
    serving,
    strange_answer,
    tokens_of,
    truncated_gzip,
    vector_for,
    wrong_host_certificate,
)
from tests.support.faults.client import TIMEOUT_S, Client, connected, exchange, get, post
from tests.support.scale import scaled

FIN, RST = "FIN", "RST"
HELLO = Answer(200, b"hello", [("content-type", "text/plain")])


def request_for(*texts: str, **fields: object) -> Request:
    """The request that a responder gets, without a connection."""
    reader = RequestReader(bytearray(post(*texts, **fields)))
    message = reader.next()
    assert message is not None
    return Request("POST", message.target, message.headers, message.body, connection=1, nth=1, time=0.0)


def answer_of(responder: Playable | None, *texts: str) -> Answer:
    """The answer of a responder to a request for these texts."""
    reply = responder(request_for(*texts)) if callable(responder) else responder
    assert isinstance(reply, Answer)
    return reply


def statuses(responder: Responder, *batches: tuple[str, ...]) -> list[int]:
    """The statuses that a responder answers to requests, one after the other."""
    return [answer_of(responder, *texts).status for texts in batches]


def header_of(answer: Answer, name: str) -> str:
    return next(str(value) for key, value in answer.headers if key == name)


class ParsedResponse:
    """An answer as the standard library parses it, which knows nothing of the fault server."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.response = http.client.HTTPResponse(self)  # type: ignore[arg-type]  # it only calls makefile
        self.response.begin()
        self.body = self.response.read()
        self.response.close()

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


# Framing.

NAMES = st.from_regex(r"x-[a-z]{1,10}", fullmatch=True)
VALUES = st.from_regex(r"([!-~]([ -~]{0,20}[!-~])?)?", fullmatch=True)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=5)


@given(
    body=st.binary(max_size=300),
    headers=HEADERS,
    framing=st.sampled_from([Framing.LENGTH, Framing.CHUNKED, Framing.EOF]),
    chunk=st.integers(1, 64),
    status=st.sampled_from([200, 400, 429, 503, 599]),
)
def test_the_standard_library_reads_every_answer(
    body: bytes, headers: list[tuple[str, str]], framing: Framing, chunk: int, status: int
) -> None:
    """Any body in any framing."""
    answer = Answer(status, body, headers, framing, chunk=chunk)
    seen = ParsedResponse(bytes(answer))
    assert (status, body) == (seen.response.status, seen.body)
    assert headers == [pair for pair in seen.response.getheaders() if pair[0].startswith("x-")]


@given(
    bodies=st.lists(st.tuples(st.binary(max_size=100), st.integers(0, 40)), min_size=1, max_size=4),
    headers=HEADERS,
    splits=st.lists(st.integers(0, 2000), max_size=8),
)
def test_requests_are_read_however_they_are_split(
    bodies: list[tuple[bytes, int]], headers: list[tuple[str, str]], splits: list[int]
) -> None:
    """Pipelined requests, by length or chunked (size > 0), are read whole wherever the stream is split."""
    stream = b"".join(_request(body, headers, chunk) for body, chunk in bodies)
    reader = RequestReader(bytearray())
    seen = []
    cuts = sorted({0, len(stream), *(split % (len(stream) + 1) for split in splits)})
    for start, end in itertools.pairwise(cuts):
        reader.buffer += stream[start:end]
        while message := reader.next():
            seen.append(message)
    assert [body for body, _ in bodies] == [message.body for message in seen]
    assert all(list(message.headers[:-1]) == headers for message in seen)
    assert not reader.buffer
    assert not reader.within


def _request(body: bytes, headers: list[tuple[str, str]], chunk: int) -> bytes:
    framing = ("transfer-encoding", "chunked") if chunk else ("content-length", str(len(body)))
    lines = [f"{name}: {value}" for name, value in [*headers, framing]]
    return "\r\n".join(["POST /a?b=c HTTP/1.1", *lines, "", ""]).encode() + (
        chunked(body, chunk) if chunk else body
    )


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nspace : a\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: +1\r\n\r\n",
        b"GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nz\r\n",
        b"GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"a" * ((1 << 20) + 1),
    ],
)
def test_a_malformed_request_raises(data: bytes) -> None:
    """At once, when no further bytes can make it valid."""
    with pytest.raises(MalformedRequestError):
        RequestReader(bytearray(data)).next()


# Plain service.


async def test_the_default_answers_are_a_providers() -> None:
    """Without a script an embeddings request gets its vectors, and the connection stays open."""
    async with FaultServer() as server, connected(server) as client:
        for text in ("a", "b"):
            expected = bytes(embeddings_answer(request_for(text)))
            await client.send(post(text))
            assert expected == await client.exactly(len(expected))
        assert server.open_connections == 1


async def test_requests_are_recorded() -> None:
    """With their content, their connection, their number on it, and their time."""
    clock = ManualClock(100.0)
    async with FaultServer(clock=clock) as server:
        server.default(HELLO)
        async with connected(server) as client, connected(server) as other:
            await client.send(
                b"PUT /a/b?c=d&e= HTTP/1.1\r\nHost: x\r\nX-Y: 1\r\nx-y: 2\r\nContent-Length: 2\r\n\r\n{}"
            )
            await client.exactly(len(bytes(HELLO)))
            clock.advance(5)
            await client.send(get("/second"))
            await client.exactly(len(bytes(HELLO)))
            await other.send(get("/third"))
            await server.wait_requests(3)
        first, second, third = server.requests
    assert (first.method, first.path, first.query) == ("PUT", "/a/b", {"c": "d", "e": ""})
    assert (first.header("host"), first.header("z"), first.header_values("X-Y")) == ("x", None, ["1", "2"])
    assert first.json() == {}
    assert [(r.connection, r.nth, r.time) for r in server.requests] == [
        (1, 1, 100.0),
        (1, 2, 105.0),
        (2, 1, 105.0),
    ]
    assert (second.body, third.path) == (b"", "/third")


async def test_a_gzipped_request_body_is_decoded() -> None:
    """By `json()`."""
    body = gzip.compress(b'{"a":1}')
    async with FaultServer() as server, connected(server) as client:
        await client.send(
            b"POST / HTTP/1.1\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        await server.wait_requests(1)
        assert server.requests[0].json() == {"a": 1}


async def test_replies_are_played_in_order_before_the_default() -> None:
    """Each reply, in any of its forms, answers one request."""
    async with FaultServer() as server, connected(server) as client:
        server.default(b"default")
        server.play(
            b"bytes", HELLO, lambda request: request.path.encode(), Script([Send(b"scr"), Send(b"ipt")])
        )
        assert server.unplayed == 4
        for expected in (b"bytes", bytes(HELLO), b"/path", b"script", b"default"):
            await client.send(get("/path"))
            assert expected == await client.exactly(len(expected))
        assert server.unplayed == 0


async def test_pipelined_requests_wait_for_the_script_before_them() -> None:
    """A connection plays one script at a time."""
    event = asyncio.Event()
    async with FaultServer() as server, connected(server) as client:
        server.play(Script([Wait(event), Send(b"one")]), b"two")
        await client.send(get() + get())
        await server.wait_requests(1)
        assert not client.has_something
        event.set()
        assert await client.exactly(6) == b"onetwo"


async def test_a_malformed_request_is_answered_and_recorded() -> None:
    """The client gets 400 and FIN, and the test can read what was wrong."""
    async with FaultServer() as server:
        data, end = await exchange(server, b"nonsense\r\n\r\n")
        assert data.startswith(b"HTTP/1.1 400 ")
        assert end == FIN
        assert server.malformed_requests == ["not a request line: 'nonsense'"]


EACH = scaled(200, nightly=1_000)


async def test_thousands_of_requests_on_ten_connections() -> None:
    """Each gets its own vector."""

    async def ask(client: Client, name: int) -> None:
        texts = [f"{name} {n}" for n in range(EACH)]
        expected = b"".join(bytes(embeddings_answer(request_for(text))) for text in texts)
        sending = asyncio.create_task(client.send(b"".join(map(post, texts))))
        seen = bytearray()
        while len(seen) < len(expected):
            seen += await client.some()
        await sending
        assert seen == expected

    async with FaultServer() as server, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server)) for _ in range(10)]
        await asyncio.gather(*(ask(client, name) for name, client in enumerate(clients)))
        assert (len(server.requests), server.connections) == (10 * EACH, 10)


async def test_a_bug_in_a_responder_fails_the_test() -> None:
    """The connection ends, and closing the server raises the responder's exception."""

    async with failing_server() as server:
        server.play(broken, Script([Respond(broken)]))
        assert await exchange(server, get()) == (b"", FIN)
        assert await exchange(server, get()) == (b"", FIN)


def broken(request: Request) -> Answer:
    raise KeyError("a bug")


@contextlib.asynccontextmanager
async def failing_server() -> AsyncIterator[FaultServer]:
    """Run a server that must raise a `KeyError` for each reply played, when it is closed."""
    with pytest.raises(ExceptionGroup) as caught:
        async with FaultServer() as server:
            yield server
    assert {KeyError} == {type(problem) for problem in caught.value.exceptions}
    assert len(caught.value.exceptions) == len(server.requests)


# Ends.


@pytest.mark.parametrize("framing", [Framing.LENGTH, Framing.CHUNKED, Framing.EOF])
@pytest.mark.parametrize(("step", "end"), [(Reset(), RST), (Close(), FIN)])
async def test_cut_at_every_offset(framing: Framing, step: Step, end: str) -> None:
    """N01 to N04: exactly that number of bytes arrives, then exactly that end."""
    good = functools.partial(embeddings_answer, framing=framing)
    whole = bytes(good(request_for("a")))
    async with FaultServer() as server:
        for offset in range(len(whole) + 1):
            server.play(cut(offset, step, good))
            assert (whole[:offset], end) == await exchange(server, post("a"))


async def test_reset_comes_after_a_large_answer() -> None:
    """The server sends RST after the client has all bytes, even where the kernel's buffers are too small."""
    whole = os.urandom(20_000_000)
    async with FaultServer() as server:
        server.play(Script([Send(whole), Reset()]))
        data, end = await exchange(server, get())
        assert (len(whole), RST) == (len(data), end)
        assert whole == data


async def test_reset_at_once_does_not_wait() -> None:
    """RST may also drop what is still in the send queue."""
    async with FaultServer() as server, connected(server) as client:
        server.play(Script([Repeat([Send(b"x" * 65536)], times=2), Reset(at_once=True)]))
        await client.send(get())
        await server.wait_all_closed()
        assert (await client.everything())[1] == RST


@pytest.mark.parametrize("framing", [Framing.EOF, Framing.AS_GIVEN])
async def test_an_answer_with_connection_close_closes(framing: Framing) -> None:
    """By its framing, or by its own header."""
    answer = Answer(200, b"body", [("Connection", "Close")] if framing is Framing.AS_GIVEN else [], framing)
    async with FaultServer() as server:
        server.play(answer)
        assert (bytes(answer), FIN) == await exchange(server, get() + get())


async def test_close_sends_fin_with_unread_bytes() -> None:
    """A plain close of the socket would send RST here."""
    async with FaultServer() as server:
        server.on_accept(Script([ReadUntil(), Send(HELLO), Close()]))
        request = b"POST / HTTP/1.1\r\ncontent-length: 100000\r\n\r\n" + b"x" * 100_000
        assert (bytes(HELLO), FIN) == await exchange(server, request)


async def test_drop_idle_sends_fin_with_unread_bytes() -> None:
    """The bytes are still in the kernel, because the event loop had no turn."""
    async with FaultServer() as server, connected(server) as client:
        await server.wait_connections(1)
        client.sock.send(get())
        assert server.drop_idle() == 1
        assert await client.everything() == (b"", FIN)
        assert server.requests == []


async def test_the_server_reads_after_a_half_close() -> None:
    """The client gets FIN, and its later bytes still arrive."""
    async with FaultServer() as server, connected(server) as client:
        server.play(Script([HalfClose(), ReadRequest()]))
        await client.send(get("/one"))
        assert await client.everything() == (b"", FIN)
        await client.send(get("/two"))
        await server.wait_requests(2)
        assert [request.path for request in server.requests] == ["/one", "/two"]


async def test_a_script_ends_when_the_client_leaves() -> None:
    """Nothing is raised, and the connection is closed."""
    async with FaultServer() as server:
        server.play(Script([Repeat([Send(b"x" * 1000)])]))
        async with connected(server) as client:
            await client.send(get())
            await client.some()
        await server.wait_all_closed()


# Pace.


async def test_drip_sends_bytes_at_intervals() -> None:
    """The same number of bytes in each interval of the server's own sleep."""
    clock = ManualClock()
    async with FaultServer(sleep=clock.sleep) as server, connected(server) as client:
        server.play(Script([Drip(b"abcde", every=0.2, size=2), Send(b"!")]))
        await client.send(get())
        for expected in (b"ab", b"cd", b"e"):
            await clock.wait_sleepers()
            assert expected == await client.exactly(len(expected))
            clock.advance(0.1)
            assert not client.has_something
            clock.advance(0.1)
        assert await client.exactly(1) == b"!"


async def test_a_script_waits_for_the_test_and_signals_it() -> None:
    reached, go = asyncio.Event(), asyncio.Event()
    async with FaultServer() as server, connected(server) as client:
        server.play(Script([Signal(reached), Wait(go), Wait(0.0), Send(b"done")]))
        await client.send(get())
        await reached.wait()
        assert not client.has_something
        go.set()
        assert await client.exactly(4) == b"done"


async def test_never_reading_closes_the_window() -> None:
    """N08, N11: the client's send blocks long before its whole body is sent, and nothing was read."""
    async with FaultServer(receive_buffer=4096) as server:
        find_fault("N11", "window closes").inject(server)
        async with connected(server) as client:
            await server.wait_connections(1)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            with pytest.raises(BlockingIOError):
                send_at_once(client, 10_000_000)
        assert server.requests == []


def send_at_once(client: Client, count: int) -> None:
    """Send without waiting for room in the buffer."""
    while count > 0:
        count -= client.sock.send(b"x" * 65536)


async def test_a_dead_peer_neither_reads_nor_writes() -> None:
    """N16: after the first request the connection stays open and silent until the server closes."""
    async with FaultServer() as server, connected(server) as client:
        server.play(Script([Stall(reading=False)]))
        await client.send(get())
        await server.wait_requests(1)
        await client.send(get())
        await server.stop()
        assert (await client.everything())[0] == b""
        assert len(server.requests) == 1


async def test_idle_connections_are_closed_on_time() -> None:
    """N15: the idle time counts from the last answer."""
    clock = ManualClock()
    async with FaultServer(sleep=clock.sleep, idle_close=lambda: 5.0) as server, connected(server) as client:
        server.default(HELLO)
        for _ in range(3):
            await client.send(get())
            await client.exactly(len(bytes(HELLO)))
            await clock.wait_sleepers()
            clock.advance(4.99)
        clock.advance(0.01)
        assert await client.everything() == (b"", FIN)


@pytest.mark.parametrize("reset", [False, True])
async def test_the_keep_alive_race(reset: bool) -> None:
    """N15: the server closes an idle connection in the moment in which the client sends on it."""
    async with FaultServer() as server, connected(server) as client, connected(server) as busy:
        server.play(HELLO, Script([Stall()]))
        await client.send(get())
        await client.exactly(len(bytes(HELLO)))
        await busy.send(get())
        await server.wait_requests(2)
        assert server.drop_idle(reset=reset) == 1
        with contextlib.suppress(ConnectionResetError):
            client.sock.send(get())
        assert (await client.everything())[0] == b""
        await server.wait_for(lambda: server.open_connections == 1)
        assert len(server.requests) == 2


async def test_close_after_n_requests() -> None:
    """N15: the n-th answer of each connection is its last."""
    async with FaultServer() as server:
        server.default(CloseAfter(2, lambda request: HELLO))
        for _ in range(2):
            assert (bytes(HELLO) * 2, FIN) == await exchange(server, get() * 3)


# Life of the server.


async def test_a_server_stops_and_restarts_on_its_port() -> None:
    """N20: two hundred requests in flight are cut, connects are refused, then all is as before."""
    async with FaultServer() as server, contextlib.AsyncExitStack() as stack:
        server.default(Script([Stall()]))
        clients = [await stack.enter_async_context(connected(server)) for _ in range(200)]
        for client in clients:
            await client.send(get())
        await server.wait_requests(200)
        port = server.port
        await server.stop()
        assert {(b"", FIN)} == {await client.everything() for client in clients}
        assert (server.up, server.open_connections) == (False, 0)
        with pytest.raises(ConnectionRefusedError):
            await exchange(server, get())
        await server.start()
        assert port == server.port
        server.default(Script([Send(b"back"), Close()]))
        assert await exchange(server, get()) == (b"back", FIN)


async def test_stop_with_resets() -> None:
    """A server may also stop with RST."""
    async with FaultServer() as server, connected(server) as client:
        server.play(Script([Stall()]))
        await client.send(get())
        await server.wait_requests(1)
        await server.stop(reset=True)
        assert await client.everything() == (b"", RST)


async def test_flapping_keeps_its_schedule() -> None:
    """N21: up for a while, down for a while, and up at the end."""
    clock = ManualClock()
    async with FaultServer() as server:
        flapping = asyncio.create_task(flap(server, 2, up=1.0, down=3.0, sleep=clock.sleep))
        for _ in range(2):
            await clock.wait_sleepers()
            clock.advance(1.0)
            await server.wait_for(lambda: not server.up)
            await clock.wait_sleepers()
            clock.advance(3.0)
            await server.wait_for(lambda: server.up)
        await flapping


async def test_a_black_hole_for_every_connection() -> None:
    """N22: the default for connections applies until it is removed."""
    async with FaultServer() as server, connected(server):
        await server.wait_connections(1)
        server.default_on_accept(Script([Send(b"hole"), Close()]))
        for _ in range(2):
            assert await exchange(server, b"") == (b"hole", FIN)
        server.default_on_accept(None)
        server.default(Script([Send(b"whole"), Close()]))
        assert await exchange(server, get()) == (b"whole", FIN)


async def test_closing_leaves_no_task_and_no_descriptor() -> None:
    """Stalled scripts, half requests and open connections end with the server."""
    descriptors, tasks = open_descriptors(), asyncio.all_tasks()
    async with FaultServer(idle_close=60.0) as server, contextlib.AsyncExitStack() as stack:
        server.play(Script([Stall()]), Script([Stall(reading=False)]), Script([Wait(60.0)]), b"answer")
        server.on_accept(*[Script([])] * 5, Script([ReadBytes(10)]))
        for data in (get(), get(), get(), get(), b"GET / HT", b"abc"):
            client = await stack.enter_async_context(connected(server))
            await client.send(data)
        await server.wait_requests(4)
    gc.collect()
    assert (descriptors, tasks) == (open_descriptors(), asyncio.all_tasks())
    assert (
        repr(server) == "<FaultServer closed: down, 4 requests on 6 connections, 0 open, 0 replies to play>"
    )


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_being_accepted_ends_too(turns: int) -> None:
    """However far the event loop is with accepting it."""
    async with FaultServer() as server:
        descriptors, tasks = open_descriptors(), asyncio.all_tasks()
        async with connected(server) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            await server.stop()
            assert open_descriptors() <= {*descriptors, str(client.sock.fileno())}
            assert asyncio.all_tasks() == tasks


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/dev/fd").iterdir()}


async def test_a_wait_that_times_out_shows_the_state() -> None:
    async with FaultServer() as server:
        with pytest.raises(
            TimeoutError, match=r"<FaultServer http://127.0.0.1:\d+: up, 0 requests on 0 connections"
        ):
            await server.wait_for(lambda: False, timeout=0.001)


def test_a_refused_port() -> None:
    """N12: no process listens."""
    with refused_port() as port, socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a backlog is full")
def test_a_full_backlog() -> None:
    """N12: a connect is neither accepted nor refused."""
    with full_backlog() as port, socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex(("127.0.0.1", port)) == errno.EINPROGRESS
        assert select.select([], [client], [], 0)[1] == []


def test_a_server_in_a_thread() -> None:
    """A test without an event loop plays replies, sends requests, and calls into the server's loop."""
    with serving() as thread:
        thread.server.play(b"one", Script([Stall()]))
        with socket.create_connection(("127.0.0.1", thread.server.port), TIMEOUT_S) as client:
            client.sendall(get())
            assert client.recv(100) == b"one"
            client.sendall(get())
            thread.run(thread.server.wait_requests(2))
            thread.run(thread.server.stop())
            assert client.recv(100) == b""
        assert thread.call(thread.server.drop_idle) == 0


def test_a_bug_in_a_responder_fails_a_sync_test_too() -> None:
    """The thread raises the exception at the end."""
    with pytest.raises(ExceptionGroup), serving() as thread:
        thread.server.play(broken)
        with socket.create_connection(("127.0.0.1", thread.server.port), TIMEOUT_S) as client:
            client.sendall(get())
            assert client.recv(100) == b""


# TLS.


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    if not can_make_certificates():
        pytest.skip("neither trustme nor the openssl command is here")
    return good_certificate()


async def over_tls(server: FaultServer, context: ssl.SSLContext, data: bytes = b"") -> bytes:
    """Send data over TLS and read until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    try:
        writer.write(data)
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_tls_requests_are_served(certificate: Certificate) -> None:
    """With a valid certificate nothing else differs."""
    whole = os.urandom(3_000_000)
    async with FaultServer(tls=certificate.server()) as server:
        assert server.base_url.startswith("https://")
        server.play(HELLO, Script([Send(whole), Close()]))
        assert bytes(HELLO) + whole == await over_tls(server, certificate.client(), get() * 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (expired_certificate, "certificate has expired"),
        (wrong_host_certificate, "IP address mismatch"),
        (self_signed_certificate, "self.signed certificate"),
    ],
)
async def test_invalid_certificates_are_refused(
    make: Callable[[], Certificate], words: str, certificate: Certificate
) -> None:
    """N14: each for its own reason; the server gets a connection and no request."""
    bad = make()
    async with FaultServer() as server:
        server.on_accept(Script([StartTls(bad.server())]))
        with pytest.raises(ssl.SSLCertVerificationError, match=words):
            await over_tls(server, bad.client(), get())
        await server.wait_all_closed()
        assert (server.connections, server.requests) == (1, [])


async def test_a_tls_answer_is_reset_or_truncated(certificate: Certificate) -> None:
    """RST, and FIN without a close_notify, both after the exact bytes."""
    async with FaultServer(tls=certificate.server()) as server:
        server.play(Script([Send(b"abc"), Reset()]), Script([Send(b"abc"), HalfClose()]))
        with pytest.raises(ConnectionResetError):
            await over_tls(server, certificate.client(), get())
        assert await over_tls(server, certificate.client(), get()) == b"abc"


@pytest.mark.parametrize(
    "fault", [each for each in faults_of("N14") if each.name != "handshake stalls"], ids=str
)
async def test_failed_handshakes(fault: Fault, certificate: Certificate) -> None:
    """N14: plain HTTP, FIN or RST in place of a ServerHello."""
    async with FaultServer() as server:
        fault.inject(server)
        with pytest.raises(OSError):  # noqa: PT011 - ssl.SSLError or ConnectionResetError
            await over_tls(server, certificate.client())


async def test_a_stalled_handshake(certificate: Certificate) -> None:
    """N14: the server sends nothing until it closes."""
    async with FaultServer() as server:
        find_fault("N14", "handshake stalls").inject(server)
        trying = asyncio.create_task(over_tls(server, certificate.client()))
        await server.wait_connections(1)
        assert not trying.done()
        await server.stop()
        with pytest.raises(OSError):  # noqa: PT011 - as above
            await trying


async def test_a_server_stops_during_a_handshake(certificate: Certificate) -> None:
    """A client that connects and sends nothing does not delay it."""
    async with FaultServer(tls=certificate.server()) as server, connected(server) as client:
        await server.wait_connections(1)
        await server.stop()
        assert (await client.everything())[0] == b""


async def test_a_proxy_tunnel(certificate: Certificate) -> None:
    """N19: after CONNECT the same connection uses TLS and serves requests."""
    async with FaultServer() as server, connected(server) as client:
        server.play(
            Script([Send(b"HTTP/1.1 200 OK\r\n\r\n"), StartTls(certificate.server())]),
            Script([Send(b"in"), Close()]),
        )
        await client.send(b"CONNECT api.example:443 HTTP/1.1\r\n\r\n")
        await client.exactly(19)
        reader, writer = await asyncio.open_connection(
            sock=client.sock.dup(), ssl=certificate.client(), server_hostname="127.0.0.1"
        )
        writer.write(get("/inner"))
        assert await reader.read() == b"in"
        writer.close()
        await writer.wait_closed()
        assert [request.target for request in server.requests] == ["api.example:443", "/inner"]


# The fault matrix.


def test_every_row_is_there() -> None:
    """Each row of 3.1 to 3.3 that is one reply or one connection has a fault, and no two share a name."""
    needs_more = {"N01", "N02", "N03", "N04", "N13", "N20", "N21", "N22", "N23", "H09", "H10", "P10", "P12"}
    sizes = {"N": 23, "H": 19, "P": 13}
    rows = {f"{letter}{number:02}" for letter, size in sizes.items() for number in range(1, size + 1)}
    assert rows - needs_more == {fault.row for fault in ROWS}
    assert len(ROWS) == len({str(fault) for fault in ROWS})


@pytest.mark.parametrize("fault", ROWS, ids=str)
async def test_every_row_can_be_played(fault: Fault) -> None:
    """One request meets each fault, and the server answers the next request."""
    async with FaultServer() as server:
        fault.inject(server)
        async with connected(server) as client:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                await client.send(post("a", "b"))
            await (server.wait_requests(1) if fault.reply else server.wait_connections(1))
            assert server.unplayed == 0
        expected = bytes(embeddings_answer(request_for("c")))
        async with connected(server) as client:
            await client.send(post("c"))
            assert expected == await client.exactly(len(expected))


def closing(request: Request) -> Answer:
    """Answer correctly and close, so that the client can read everything."""
    return answer_openai(request).plus(("connection", "close"))


async def played(fault: Fault) -> tuple[bytes, str]:
    """Everything that a client receives that requests the vector of "a", and then a last answer."""
    async with FaultServer() as server:
        fault.inject(server)
        server.default(closing)
        return await exchange(server, post("a") + post("last"))


GOOD = embeddings_answer(request_for("a"))
LAST = bytes(closing(request_for("last")))


@pytest.mark.parametrize(("name", "offset"), [("length too long, then FIN", 10), ("length too short", -10)])
async def test_wrong_lengths(name: str, offset: int) -> None:
    """N05: the body is complete, its length is wrong."""
    data, end = await played(find_fault("N05", name))
    assert f"content-length: {len(GOOD.body) + offset}\r\n".encode() in data
    assert data.removesuffix(LAST).endswith(GOOD.body)
    assert end == FIN


async def test_unsolicited_bytes_come_in_the_same_segment() -> None:
    """N06: one receive gets the answer and another valid answer behind it."""
    async with FaultServer() as server, connected(server) as client:
        find_fault("N06", "another answer in the same segment").inject(server)
        await client.send(post("a"))
        good, stranger = (await client.some()).split(GOOD.body)
        assert good + GOOD.body == bytes(GOOD)
        (item,) = json.loads(ParsedResponse(stranger).body)["data"]
        assert item["embedding"] == vector_for("not a").tolist()


async def test_unsolicited_bytes_come_in_the_next_segment() -> None:
    """N06: the client may have released the connection by then."""
    strange = bytes(strange_answer(request_for("a")))
    async with FaultServer() as server, connected(server) as client:
        find_fault("N06", "another answer right behind it").inject(server)
        await client.send(post("a"))
        assert await client.exactly(len(bytes(GOOD)) + len(strange)) == bytes(GOOD) + strange


async def test_conflicting_framing() -> None:
    """N07: two lengths that differ; a length and chunks."""
    length = len(GOOD.body)
    data, _ = await played(find_fault("N07", "two lengths"))
    assert f"content-length: {length}\r\ncontent-length: {length + 1}\r\n".encode() in data
    data, _ = await played(find_fault("N07", "a length and chunks"))
    assert f"content-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n".encode() in data


@pytest.mark.parametrize(
    ("name", "interim"), [("one 100", b"HTTP/1.1 100 "), ("103 then 200", b"HTTP/1.1 103 ")]
)
async def test_an_interim_answer(name: str, interim: bytes) -> None:
    """N10: one interim answer, then the real one."""
    data, _ = await played(find_fault("N10", name))
    first, real = data.split(b"\r\n\r\n", 1)
    assert first.startswith(interim)
    assert real == bytes(closing(request_for("a")))


async def test_interim_answers_without_end() -> None:
    """N10: interim answers as fast as the client reads, and never a real one."""
    async with FaultServer() as server, connected(server) as client:
        find_fault("N10", "103 for ever at full speed").inject(server)
        await client.send(get())
        seen = bytearray()
        while len(seen) < 1_000_000:
            seen += await client.some()
        whole = seen[: seen.rindex(b"\r\n\r\n")].split(b"\r\n\r\n")
        assert all(answer.startswith(b"HTTP/1.1 103 ") for answer in whole)


async def test_accept_then_reset() -> None:
    """N12: RST before a byte was sent."""
    async with FaultServer() as server:
        find_fault("N12", "accept then RST").inject(server)
        async with connected(server) as client:
            assert await client.everything() == (b"", RST)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("header of 200 KB", b"x-large: " + b"a" * 200_000),
        ("10,000 headers", b"x-0: a"),
        ("10,000 headers", b"x-9999: a"),
        ("NUL in a header", b"x-odd: a\0b"),
        ("folded header", b"x-odd: a\r\n b"),
        ("space before the colon", b"x-odd : a"),
        ("no colon", b"x-odd"),
    ],
    ids=str,
)
async def test_header_storms(name: str, line: bytes) -> None:
    """N17: very large, very many and unusual headers arrive as written."""
    data, _ = await played(find_fault("N17", name))
    assert b"\r\n" + line + b"\r\n" in data
    assert data.removesuffix(LAST).endswith(GOOD.body)


async def test_a_flood_is_sent_for_as_long_as_it_is_read() -> None:
    """H19: gigabytes are not held in memory, and the client may close at any time."""
    async with FaultServer() as server, connected(server) as client:
        find_fault("H19", "2 GiB with a length").inject(server)
        await client.send(get())
        seen = 0
        while seen < 50_000_000:
            seen += len(await client.some())


def test_a_bomb_expands_a_thousandfold() -> None:
    """H18: small on the wire, large in memory."""
    body = bomb(64 << 20).body
    assert len(body) * 900 < 64 << 20
    assert len(gzip.decompress(body)) == 64 << 20


def test_a_truncated_gzip_has_no_end() -> None:
    """H18: the text is complete, the trailer is missing."""
    decompressor = zlib.decompressobj(31)
    assert decompressor.decompress(truncated_gzip(HELLO).body) == b"hello"
    assert not decompressor.eof


def test_twenty_encodings() -> None:
    """H18: the body has each encoding that the header names."""
    answer = answer_of(find_fault("H18", "20 encodings").reply, "a")
    names = header_of(answer, "content-encoding").split(", ")
    assert functools.reduce(lambda body, _: gzip.decompress(body), names, answer.body) == GOOD.body
    assert len(names) == 20


@pytest.mark.parametrize("value", ["١٢", " 3 ", "9" * 1_000_000], ids=["Arabic", "spaces", "a megabyte"])
def test_header_texts_are_sent_unchanged(value: str) -> None:
    """H02: nothing is checked, trimmed or shortened."""
    lines = [
        b"retry-after: " + value.encode() + b"\r\n" in bytes(answer_of(f.reply)) for f in faults_of("H02")
    ]
    assert lines.count(True) == 1


def test_an_unknown_fault_raises() -> None:
    """A misspelt row must not make an empty test."""
    with pytest.raises(LookupError, match="no faults of"):
        faults_of("X")
    with pytest.raises(LookupError, match="N12 has no 'nothing', but"):
        find_fault("N12", "nothing")


def rows_of(row: str, name: str) -> list[tuple[int, object]]:
    """The index and vector of each item that a fault makes of the texts "a" and "b"."""
    payload = json.loads(answer_of(find_fault(row, name).reply, "a", "b").body)
    return [(item["index"], item["embedding"]) for item in payload["data"]]


def test_payload_faults_do_what_their_names_say() -> None:
    """P01, P02, P04, P06: a sample."""
    a, b = vector_for("a").tolist(), vector_for("b").tolist()
    assert rows_of("P01", "one item missing") == [(1, b)]
    assert rows_of("P02", "reversed") == [(1, b), (0, a)]
    assert rows_of("P04", "null in a list") == [(0, [None, *a[1:]]), (1, b)]
    assert b'"embedding":[1e999,' in answer_of(find_fault("P04", "1e999 in a list").reply, "a").body
    swapped = str(rows_of("P06", "big-endian")[0][1])
    assert np.array_equal(np.frombuffer(b64decode(swapped), ">f4"), vector_for("a"))


# The provider.


@given(text=st.text(), other=st.text(), dimensions=st.integers(1, 64))
def test_vectors_identify_their_text(text: str, other: str, dimensions: int) -> None:
    """Each time the same, finite, not zero, exact in decimals, and different for another text."""
    vector = vector_for(text, dimensions)
    assert np.array_equal(vector, vector_for(text, dimensions))
    assert vector.dtype == np.float32
    assert vector.shape == (dimensions,)
    assert np.all(vector != 0)
    assert np.all(np.abs(vector) <= 1)
    assert np.array_equal(vector, np.array(json.loads(json.dumps(vector.tolist())), np.float32))
    if dimensions >= 8 and text != other:
        assert not np.array_equal(vector, vector_for(other, dimensions))


@given(texts=st.lists(st.text(), min_size=1, max_size=4), encoding=st.sampled_from(["float", "base64"]))
def test_embeddings_are_right_in_every_encoding(texts: list[str], encoding: str) -> None:
    """The default answer holds the vector of each text at its index, in the requested form and size."""
    request = request_for(*texts, dimensions=5, encoding_format=encoding)
    payload = json.loads(embeddings_answer(request).body)
    for index, (text, item) in enumerate(zip(texts, payload["data"], strict=True)):
        given = item["embedding"]
        row = np.frombuffer(b64decode(given), "<f4") if encoding == "base64" else np.array(given, np.float32)
        assert np.array_equal(row, vector_for(text, 5))
        assert item["index"] == index
    assert payload["usage"]["total_tokens"] == sum(map(tokens_of, texts))


async def test_catalogue_chat_and_unknown_paths() -> None:
    """The default provider has a model and a chat reply, and knows no other path."""
    chat = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b"
    async with FaultServer() as server, connected(server) as client:
        await client.send(get("/v1/models"))
        assert (
            json.loads(ParsedResponse(await client.some()).body)["data"][0]["id"] == "text-embedding-3-small"
        )
        for body, words in ((b'{"stream":true}', b"data: [DONE]"), (b"{}", b'"content":"Hello world"')):
            await client.send(chat % (len(body), body))
            assert words in await client.some()
        await client.send(get("/nowhere"))
        assert (await client.some()).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, b"maximum length 2,"),
        (413, b"maximum length 2,"),
        (422, b"batch size 3 > maximum allowed batch size 2"),
    ],
)
def test_too_many_items(status: int, words: bytes) -> None:
    """The limit is enforced, and stated or not, in the words that belong to the status."""
    stated, silent = MaxItems(2, status=status), MaxItems(2, status=status, state_limit=False)
    assert statuses(stated, ("a",), ("a", "b"), ("a", "b", "c")) == [200, 200, status]
    assert words in answer_of(stated, "a", "b", "c").body
    assert b"2" not in answer_of(silent, "a", "b", "c").body
    assert (stated.refused, silent.refused) == (2, 1)


def test_too_many_tokens() -> None:
    """Per item or per request, counted as the server counts."""
    four, nine = "a" * 16, "b" * 36
    per_item, per_request = TokenLimit(8), TokenLimit(8, per="request")
    assert statuses(per_item, (four,), (nine,), (four, four, four)) == [200, 400, 200]
    assert statuses(per_request, (four, four), (four, four, four)) == [200, 400]
    assert b"maximum context length is 8 tokens" in answer_of(per_item, nine).body
    assert b"Requested 9 tokens, max 8 tokens per request" in answer_of(per_request, nine).body


@pytest.mark.parametrize("status", [400, 500])
def test_poison_fails_only_batches_with_its_text(status: int) -> None:
    """At any position."""
    poison = Poison("bad", "worse", status=status)
    assert statuses(poison, ("a",), ("a", "bad"), ("worse",), ("bad!",)) == [200, status, status, 200]
    assert poison.refused == 2


def test_flaky_uses_its_own_seed() -> None:
    """The same seed fails the same requests; the share is close to the probability."""
    one, two = Flaky(0.3, seed=7), Flaky(0.3, seed=7)
    seen = statuses(one, *[("a",)] * 1000)
    assert seen == statuses(two, *[("a",)] * 1000)
    assert set(seen) == {200, 500}
    assert 250 < one.failed < 350


def test_outages_keep_their_schedule() -> None:
    """From the start of each outage until just before its end."""
    clock = ManualClock(50.0)
    schedule = OutageSchedule([(1, 2), (3, 4)], clock=clock)
    seen = []
    for _ in range(9):
        seen += statuses(schedule, ("a",))
        clock.advance(0.5)
    assert seen == [200, 200, 503, 503, 200, 200, 503, 503, 200]


async def test_crossed_answers() -> None:
    """P10: each of two concurrent requests gets the other's vectors."""
    async with FaultServer() as server, connected(server) as one, connected(server) as two:
        server.default(Crossed())
        await one.send(post("a"))
        await server.wait_requests(1)
        await two.send(post("b"))
        assert await two.some() == bytes(embeddings_answer(request_for("a")))
        assert await one.some() == bytes(embeddings_answer(request_for("b")))


# The quota.


def test_requests_per_minute() -> None:
    """A full bucket admits its burst, then refuses with the correct time to wait."""
    clock = ManualClock()
    limited = RateLimited(rpm=120, burst=2.0, clock=clock)
    assert statuses(limited, *[("a",)] * 5) == [200, 200, 200, 200, 429]
    refusal = answer_of(limited, "a")
    assert header_of(refusal, "retry-after-ms") == "500"
    assert header_of(refusal, "retry-after") == "1"
    assert header_of(refusal, "x-ratelimit-remaining-requests") == "0"
    assert header_of(refusal, "x-ratelimit-reset-requests") == "2s"
    clock.advance(0.499)
    assert statuses(limited, ("a",)) == [429]
    clock.advance(0.001)
    assert statuses(limited, ("a",)) == [200]


def test_tokens_per_minute() -> None:
    """Both buckets must have enough, and a refused request pays neither."""
    limited = RateLimited(rpm=60, tpm=600, clock=ManualClock())
    five_hundred, one_hundred = "a" * 2000, "a" * 400
    assert statuses(limited, (five_hundred,), (five_hundred,), (one_hundred,)) == [200, 429, 200]
    assert [(grant.time, grant.tokens) for grant in limited.grants] == [(0.0, 500), (0.0, 100)]
    assert limited.refusals == [0.0]
    error = json.loads(answer_of(limited, one_hundred).body)["error"]
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    assert "Limit 600, Used 600, Requested 100. Please try again in 10s." in error["message"]
    assert b"Request too large for" in answer_of(limited, "a" * 4000).body


def test_a_silent_quota() -> None:
    """Headers and Retry-After can be left out."""
    limited = RateLimited(rpm=1, clock=ManualClock(), headers=False, hint=False)
    answers = [answer_of(limited, "a"), answer_of(limited, "a")]
    assert [answer.status for answer in answers] == [200, 429]
    assert not any(b"ratelimit-" in bytes(answer) or b"retry-after" in bytes(answer) for answer in answers)


@given(
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 30)), min_size=1, max_size=60),
    burst=st.sampled_from([1.0, 5.0, 60.0]),
)
def test_grants_fit_the_limit_in_every_window(steps: list[tuple[float, int]], burst: float) -> None:
    """In any window at most the rate times its length plus the burst is granted."""
    clock = ManualClock()
    limited = RateLimited(rpm=60, tpm=600, burst=burst, clock=clock)
    for pause, tokens in steps:
        clock.advance(pause)
        limited(request_for("a" * 4 * tokens))
    for first, last in itertools.combinations_with_replacement(range(len(limited.grants)), 2):
        window = limited.grants[first : last + 1]
        seconds = window[-1].time - window[0].time + burst
        assert len(window) <= seconds * 1 + 1e-6
        assert sum(grant.tokens for grant in window) <= seconds * 10 + 1e-6


def test_durations_have_go_format() -> None:
    """As OpenAI's reset headers write them."""
    limited = RateLimited(rpm=1, tpm=100_000, burst=3600, clock=ManualClock())
    answers = [answer_of(limited, "a") for _ in range(60)]
    assert header_of(answers[0], "x-ratelimit-reset-tokens") == "1ms"
    resets = [header_of(answers[n], "x-ratelimit-reset-requests") for n in (0, 1, 59)]
    assert resets == ["1m0s", "2m0s", "1h0m0s"]


# Time.


async def test_the_manual_clock_wakes_in_order() -> None:
    """Sleepers wake in their order, and cancelled ones not at all."""
    clock = ManualClock()
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    async with asyncio.TaskGroup() as group:
        for seconds in (3.0, 1.0, 2.0, 0.0):
            group.create_task(sleeper(seconds))
        lost = group.create_task(sleeper(1.0))
        await clock.wait_sleepers(4)
        lost.cancel()
        clock.advance(2.5)
        assert clock.sleeping == 1
        clock.advance(0.5)
    assert (woken, clock()) == ([0.0, 1.0, 2.0, 3.0], 3.0)
    assert repr(clock) == "ManualClock(now=3.0, sleeping=0)"
