"""Any httpx transport as a sender: its requests, its responses, and its exceptions."""

from __future__ import annotations

import asyncio
import errno
import gc
import gzip
import itertools
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from llmopt import errors
from llmopt.transport.httpx_transport import HttpxSender
from llmopt.values.http import AttemptInfo
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
    gzip_bomb,
    refused_port,
)
from tests.support.scale import scaled
from tests.transport.custom_transports import URL, ByteStream, mocked, raising
from tests.transport.helpers import (
    HEADERS,
    KEY,
    CancelAtSuspension,
    count_vectors,
    embed_request,
    embed_request_to,
    expect_error,
    open_stream,
    other_tasks,
)


class TestCustomTransports:
    """Requests and responses of a custom transport."""

    async def test_a_mock_transport(self) -> None:
        """It gets a whole httpx request, and its response becomes ours."""
        seen: list[httpx.Request] = []

        def handler(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            return httpx.Response(
                200, json={"data": [1]}, headers=[("X-Id", "1"), ("Link", "a"), ("link", "b")]
            )

        sender = mocked(handler)
        response = await sender.send(embed_request_to(URL, connect_timeout=1, pool_timeout=2, timeout=3))
        assert count_vectors(response) == 1
        assert response.headers["x-id"] == "1"
        assert response.headers["link"] == "a, b"
        (request,) = seen
        assert (request.method, request.url.host) == ("POST", "provider.example")
        assert request.headers["authorization"] == HEADERS["authorization"]
        assert request.headers["accept-encoding"] == "gzip, deflate"
        assert request.headers["content-length"] == str(len(request.content))
        assert request.extensions["timeout"] == {"connect": 1, "pool": 2, "read": 3, "write": 3}
        await sender.aclose()

    async def test_a_mock_transport_with_a_coroutine(self) -> None:
        async def handler(_: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0)
            return httpx.Response(201, content=b"made")

        response = await mocked(handler).send(embed_request_to(URL))
        assert (response.status, response.body) == (201, b"made")

    async def test_an_asgi_application(self) -> None:
        """Inside the process."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            message = await receive()
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"x-path", scope["raw_path"])]}
            )
            await send({"type": "http.response.body", "body": message["body"]})

        sender = HttpxSender(httpx.ASGITransport(app=app))
        response = await sender.send(embed_request_to(URL, body=b"echo"))
        assert (response.body, response.headers["x-path"]) == (b"echo", "/v1/embeddings")
        await sender.aclose()

    async def test_respx(self) -> None:
        """The usual way to test programs that use httpx."""
        respx = pytest.importorskip("respx")
        router = respx.MockRouter(assert_all_called=True)
        router.post(f"{URL}/v1/embeddings").respond(200, json={"data": [1, 2]})
        assert (
            count_vectors(
                await HttpxSender(httpx.MockTransport(router.async_handler)).send(embed_request_to(URL))
            )
            == 2
        )

    async def test_whether_the_request_was_sent_is_unknown(self) -> None:
        """Unless the exception says so."""
        response = await mocked(lambda _: httpx.Response(200)).send(embed_request_to(URL))
        assert response.info == AttemptInfo()
        assert response.info.sent == "maybe"

        def handler(request: httpx.Request) -> httpx.Response:
            request.extensions["attempt_info"] = AttemptInfo(phase="connect", sent="no", queued_s=2.0)
            if request.method == "GET":
                raise httpx.ReadError("canned")
            return httpx.Response(200, extensions={"attempt_info": AttemptInfo(reused=True, sent="yes")})

        telling = mocked(handler)
        assert (await telling.send(embed_request_to(URL))).info == AttemptInfo(reused=True, sent="yes")
        error = await expect_error(telling, embed_request_to(URL, method="GET"), errors.ConnectionLost)
        assert error.sent == "no"

    async def test_the_response_is_closed_on_every_way_out(self) -> None:
        """Read, refused, failed."""
        endings: list[tuple[ByteStream, dict[str, str], type[BaseException] | None]] = [
            (ByteStream(b"a", b"", b"b"), {}, None),
            (ByteStream(), {}, None),
            (ByteStream(b"\x1f no gzip"), {"content-encoding": "gzip"}, errors.InvalidResponse),
            (ByteStream(b"a" * 100), {}, errors.InvalidResponse),
            (ByteStream(b"a", failing=httpx.ReadError("canned")), {}, errors.ConnectionLost),
            (ByteStream(b"a", failing=KeyError("bug")), {}, KeyError),
        ]
        for pieces, headers, kind in endings:
            sender = mocked(lambda _, p=pieces, h=headers: httpx.Response(200, headers=h, stream=p))
            if kind is None:
                assert (await sender.send(embed_request_to(URL, max_body=50))).body == b"".join(
                    pieces._pieces
                )
            else:
                with pytest.raises(kind):
                    await sender.send(embed_request_to(URL, max_body=50))
            assert pieces.closed == 1

    async def test_compressed_responses_are_decoded_by_llmopt(self) -> None:
        """Within the limits of our own pool; httpx alone would decode a bomb to its end."""
        compressed = gzip.compress(b"hello")
        sender = mocked(
            lambda _: httpx.Response(200, headers={"content-encoding": "gzip"}, stream=ByteStream(compressed))
        )
        assert (await sender.send(embed_request_to(URL))).body == b"hello"
        bomb = ByteStream(gzip_bomb(64 * 2**20))
        sender = mocked(lambda _: httpx.Response(200, headers={"content-encoding": "gzip"}, stream=bomb))
        error = await expect_error(sender, embed_request_to(URL, max_body=2**20), errors.InvalidResponse)
        assert (error.reason, error.status, error.sent) == ("too_large", 200, "yes")
        assert bomb.closed == 1

    async def test_error_bodies_are_cut(self) -> None:
        """As by our own pool."""
        sender = mocked(lambda _: httpx.Response(500, stream=ByteStream(*[b"a" * 40_000] * 100)))
        response = await sender.send(embed_request_to(URL))
        assert (response.status, len(response.body)) == (500, 65536)

    async def test_a_body_that_is_no_asynchronous_stream_is_an_error(self) -> None:
        """The error names the mistake in the transport."""
        sender = mocked(lambda _: httpx.Response(200, content=iter([b"a"])))
        error = await expect_error(sender, embed_request_to(URL), errors.ConfigError)
        assert "MockTransport" in str(error)

    @pytest.mark.row("S01")
    @pytest.mark.parametrize("value", [f"{KEY}\r\n", f"{KEY}é", f"{KEY}\udc80"])
    async def test_headers_that_cannot_be_sent_are_not_shown(self, value: str) -> None:
        """httpx's exception would hold the key."""
        own = HttpxSender(httpx.AsyncHTTPTransport())
        async with FaultServer() as server:
            error = await expect_error(
                own, embed_request(server, headers={"authorization": value}), errors.ConfigError
            )
            assert error.__context__ is None
            assert server.requests == []
        await own.aclose()

    async def test_a_closed_sender_sends_nothing(self) -> None:
        """It closes the transport once."""

        class Counting(httpx.AsyncBaseTransport):
            closed = 0

            async def aclose(self) -> None:
                self.closed += 1

        transport = Counting()
        sender = HttpxSender(transport)
        await asyncio.gather(*(sender.aclose() for _ in range(5)))
        assert transport.closed == 1
        await expect_error(sender, embed_request_to(URL), errors.ClientClosed)
        assert repr(sender) == "<HttpxSender over Counting: 0 running>"


# Every exception of a custom transport becomes exactly one error.

CANNED: list[tuple[BaseException, type[errors.LLMOptError], dict[str, Any]]] = [
    (httpx.ConnectTimeout("x"), errors.ConnectFailed, {"cause": "timeout", "sent": "no"}),
    (httpx.ConnectError("x"), errors.ConnectFailed, {"cause": "other", "sent": "no"}),
    (httpx.PoolTimeout("x"), errors.PoolTimeout, {"sent": "no"}),
    (httpx.ReadTimeout("x"), errors.AttemptTimeout, {"sent": "maybe", "timeout": 20.0}),
    (httpx.WriteTimeout("x"), errors.AttemptTimeout, {"sent": "maybe"}),
    (httpx.ReadError("x"), errors.ConnectionLost, {"sent": "maybe", "stale": False}),
    (httpx.WriteError("x"), errors.ConnectionLost, {"sent": "maybe"}),
    (httpx.CloseError("x"), errors.ConnectionLost, {"sent": "maybe"}),
    (
        httpx.RemoteProtocolError("Server disconnected without sending a response."),
        errors.ConnectionLost,
        {"sent": "maybe"},
    ),
    (
        httpx.RemoteProtocolError("peer closed connection without sending complete message body (received 1"),
        errors.InvalidResponse,
        {"reason": "truncated"},
    ),
    (
        httpx.RemoteProtocolError("illegal status line"),
        errors.InvalidResponse,
        {"reason": "http", "sent": "yes"},
    ),
    (httpx.LocalProtocolError(f"Illegal header {KEY}"), errors.ConfigError, {"sent": "no"}),
    (httpx.UnsupportedProtocol("x"), errors.ConfigError, {}),
    (httpx.InvalidURL("x"), errors.ConfigError, {}),
    (httpx.ProxyError("407"), errors.ConnectFailed, {"cause": "proxy", "sent": "no"}),
    (ConnectionResetError(errno.ECONNRESET, "x"), errors.ConnectionLost, {}),
    (TimeoutError(errno.ETIMEDOUT, "x"), errors.ConnectionLost, {}),
    (TimeoutError(), errors.AttemptTimeout, {}),
    (errors.RateLimited("own"), errors.RateLimited, {}),
]


def caused_by(error: httpx.HTTPError, *causes: BaseException) -> httpx.HTTPError:
    """The error with a chain of causes, as anyio and httpcore make it."""
    below: BaseException = error
    for cause in causes:
        below.__cause__ = cause
        below = cause
    return error


CAUSED: list[tuple[BaseException, dict[str, Any]]] = [
    (ConnectionRefusedError(errno.ECONNREFUSED, "x"), {"cause": "refused", "permanent": False}),
    (socket.gaierror(socket.EAI_NONAME, "x"), {"cause": "dns", "permanent": True}),
    (socket.gaierror(socket.EAI_AGAIN, "x"), {"cause": "dns", "permanent": False}),
    (OSError(errno.EMFILE, "x"), {"resource": "descriptors"}),
]


class TestFaults:
    """Every exception of a transport becomes exactly one of ours."""

    @pytest.mark.parametrize(("raised", "kind", "data"), CANNED, ids=lambda value: repr(value)[:60])
    @pytest.mark.parametrize("grouped", [False, True], ids=["bare", "in a group"])
    async def test_each_exception_has_one_error(
        self, raised: BaseException, kind: type[errors.LLMOptError], data: dict[str, Any], grouped: bool
    ) -> None:
        """An exception inside one of anyio's groups counts, too."""
        raised.__traceback__ = None
        if grouped and isinstance(raised, Exception):
            raised = ExceptionGroup("canned", [ExceptionGroup("inner", [raised])])
        error = await expect_error(raising(raised), embed_request_to(URL), kind)
        assert {name: getattr(error, name) for name in data} == data
        assert error.endpoint == URL

    @pytest.mark.parametrize(("cause", "data"), CAUSED, ids=repr)
    @pytest.mark.parametrize("grouped", [False, True], ids=["bare", "in a group"])
    async def test_the_cause_of_a_connect_error_is_read(
        self, cause: BaseException, data: dict[str, Any], grouped: bool
    ) -> None:
        """However deep in the chain."""
        lowest = ExceptionGroup("canned", [cause]) if grouped and isinstance(cause, Exception) else cause
        made = caused_by(httpx.ConnectError("x"), OSError("All connection attempts failed"), lowest)
        error = await expect_error(raising(made), embed_request_to(URL), errors.TransportError)
        assert {name: getattr(error, name) for name in data} == data

    @pytest.mark.parametrize("error", [KeyError("a bug"), AssertionError("of a mock"), MemoryError()])
    async def test_other_exceptions_pass_through(self, error: Exception) -> None:
        """A bug in a transport is not hidden."""
        with pytest.raises(type(error)):
            await raising(error).send(embed_request_to(URL))

    async def test_a_cancellation_passes_through(self) -> None:
        """Once, and the response is closed."""
        pieces = ByteStream(b"a")
        reading = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            reading.set()
            await asyncio.get_running_loop().create_future()
            yield b""

        pieces.__class__.__aiter__, kept = lambda _: endless(), ByteStream.__aiter__  # type: ignore[assignment,method-assign]
        try:
            task = asyncio.create_task(
                mocked(lambda _: httpx.Response(200, stream=pieces)).send(embed_request_to(URL))
            )
            await reading.wait()
            task.cancel()
            await asyncio.wait([task])
        finally:
            ByteStream.__aiter__ = kept  # type: ignore[method-assign]
        assert task.cancelled()
        assert pieces.closed == 1
        assert other_tasks() == set()


# httpx's own transport as a sender, in particular under cancellation.


class TestHttpx:
    """httpx's own transport, over real sockets."""

    @pytest.fixture
    async def sender(self) -> AsyncIterator[HttpxSender]:
        transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=4), trust_env=False)
        sender = HttpxSender(transport)
        yield sender
        await sender.aclose()
        gc.collect()

    async def test_many_requests_over_few_connections(self, server: FaultServer, sender: HttpxSender) -> None:
        answers = await asyncio.gather(*(sender.send(embed_request(server)) for _ in range(50)))
        assert [count_vectors(answer) for answer in answers] == [1] * 50
        assert server.connections <= 4

    @pytest.mark.row("N12")
    async def test_failed_connects(self, server: FaultServer, sender: HttpxSender) -> None:
        """Refused, and a full backlog."""
        with refused_port() as port:
            error = await expect_error(
                sender, embed_request_to(f"http://127.0.0.1:{port}"), errors.ConnectFailed
            )
        assert (error.cause, error.sent) == ("refused", "no")
        with full_backlog() as port:
            request = embed_request_to(f"http://127.0.0.1:{port}", connect_timeout=0.05)
            error = await expect_error(sender, request, errors.ConnectFailed)
        assert error.cause == "timeout"
        server.play(Script([Reset()]))
        await expect_error(sender, embed_request(server), errors.ConnectionLost)

    @pytest.mark.skipif(not can_make_certificates(), reason="neither trustme nor openssl is here")
    @pytest.mark.row("N14")
    async def test_an_unknown_authority_is_permanent(self, sender: HttpxSender) -> None:
        async with FaultServer(tls=good_certificate().server()) as server:
            error = await expect_error(sender, embed_request(server), errors.ConnectFailed)
        assert (error.cause, error.permanent, error.sent) == ("tls", True, "no")

    @pytest.mark.parametrize(
        "fault",
        [f for f in faults_of("N08", "N09", "N10", "N16") if "one 100" != f.name != "103 then 200"],
        ids=str,
    )
    async def test_d4_the_attempt_ends_in_time(
        self, fault: Any, server: FaultServer, sender: HttpxSender
    ) -> None:
        """httpx alone would wait for ever for a server that sends single bytes."""
        fault.inject(server)
        error = await expect_error(sender, embed_request(server, timeout=0.05), errors.AttemptTimeout)
        assert error.sent == "maybe"

    async def test_a_full_httpx_pool_is_a_pool_timeout(
        self, server: FaultServer, sender: HttpxSender
    ) -> None:
        gate = asyncio.Event()
        server.default(Script([Wait(gate), Respond()]))
        tasks = [asyncio.create_task(sender.send(embed_request(server))) for _ in range(4)]
        await server.wait_requests(4)
        error = await expect_error(sender, embed_request(server, pool_timeout=0.01), errors.PoolTimeout)
        assert error.sent == "no"
        server.default(Answer(200, b"{}"))
        gate.set()
        await asyncio.gather(*tasks)

    @pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
    async def test_d1_cancelled_at_every_suspension(self, warm: bool, server: FaultServer) -> None:
        """A cancellation that reaches httpx's pool costs it a slot, so no cancellation may reach it."""
        for number in itertools.count(1):
            transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=1), trust_env=False)
            sender = HttpxSender(transport)
            if warm:
                await sender.send(embed_request(server))
            sweep = CancelAtSuspension(number)
            task = sweep.start(sender.send(embed_request(server)))
            await asyncio.wait([task])
            assert task.cancelled() == sweep.reached
            assert count_vectors(await sender.send(embed_request(server))) == 1
            await sender.aclose()
            if not sweep.reached:
                break
        assert number > 1

    async def test_d1_many_cancellations_leak_no_slot(self, server: FaultServer, sender: HttpxSender) -> None:
        """Hundreds of requests, cancelled at all moments."""
        for turn in range(scaled(10, nightly=30)):
            tasks = [asyncio.create_task(sender.send(embed_request(server, str(n)))) for n in range(20)]
            for _ in range(turn * scaled(3, nightly=1)):
                await asyncio.sleep(0)
            for task in tasks[turn % 3 :: 2]:
                task.cancel()
            await asyncio.wait(tasks)
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(sender.send(embed_request(server, str(n))) for n in range(20)))
        assert [count_vectors(answer) for answer in answers] == [1] * 20

    async def test_an_abandoned_request_ends_without_its_caller(
        self, server: FaultServer, sender: HttpxSender
    ) -> None:
        """At its own read timeout, or with the next bytes of its response."""
        server.play(Script([Stall()]))
        find_fault("N09", "body drips for ever").inject(server)
        for _ in range(2):
            await expect_error(sender, embed_request(server, timeout=0.05), errors.AttemptTimeout)
        await server.wait_all_closed()
        async with asyncio.timeout(5):
            while len(sender._tasks):
                await asyncio.sleep(0)
        assert repr(sender) == "<HttpxSender over AsyncHTTPTransport: 0 running>"

    @pytest.mark.parametrize("streaming", [False, True])
    async def test_a_response_after_its_caller_left_is_closed(self, streaming: bool) -> None:
        """By the task that continued the request."""
        gate, pieces = asyncio.Event(), ByteStream(b"a")

        async def handler(_: httpx.Request) -> httpx.Response:
            await gate.wait()
            return httpx.Response(200, stream=pieces)

        sender = HttpxSender(httpx.MockTransport(handler), isolate=True)
        request = embed_request_to(URL, timeout=0.01)
        with pytest.raises(errors.AttemptTimeout):
            if streaming:
                await open_stream(sender, request).__aenter__()
            else:
                await sender.send(request)
        assert (len(sender._tasks), pieces.closed) == (1, 0)
        gate.set()
        while len(sender._tasks):
            await asyncio.sleep(0)
        assert pieces.closed == 1

    async def test_closing_ends_requests_in_flight(self, server: FaultServer) -> None:
        """No task outlives the sender."""
        sender = HttpxSender(httpx.AsyncHTTPTransport(trust_env=False))
        server.default(Script([Stall()]))
        before = other_tasks()
        tasks = [asyncio.create_task(sender.send(embed_request(server))) for _ in range(3)]
        await server.wait_requests(3)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await sender.aclose()
        assert not {task for task in other_tasks() - before if "faults" not in repr(task)}
