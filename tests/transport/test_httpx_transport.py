"""Any httpx transport as a sender: what it is given and gives."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import httpx
import pytest

from llmopt import errors
from llmopt.transport.httpx_transport import HttpxSender
from llmopt.values.http import AttemptInfo
from tests.support.faults import (
    FaultServer,
    gzip_bomb,
)
from tests.transport.custom_transports import URL, Pieces, mocked
from tests.transport.helpers import (
    HEADERS,
    KEY,
    asking,
    failure,
    request_to,
    texts_of,
)


class TestForeign:
    """What a foreign transport is given and gives."""

    async def test_a_mock(self) -> None:
        """It sees a whole httpx request, and its answer becomes ours."""
        seen: list[httpx.Request] = []

        def handler(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            return httpx.Response(
                200, json={"data": [1]}, headers=[("X-Id", "1"), ("Link", "a"), ("link", "b")]
            )

        sender = mocked(handler)
        response = await sender.send(request_to(URL, connect_timeout=1, pool_timeout=2, timeout=3))
        assert texts_of(response) == 1
        assert response.headers["x-id"] == "1"
        assert response.headers["link"] == "a, b"
        (request,) = seen
        assert (request.method, request.url.host) == ("POST", "provider.example")
        assert request.headers["authorization"] == HEADERS["authorization"]
        assert request.headers["accept-encoding"] == "gzip, deflate"
        assert request.headers["content-length"] == str(len(request.content))
        assert request.extensions["timeout"] == {"connect": 1, "pool": 2, "read": 3, "write": 3}
        await sender.aclose()

    async def test_an_asynchronous_handler(self) -> None:
        """Mock handlers may be coroutines."""

        async def handler(_: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0)
            return httpx.Response(201, content=b"made")

        response = await mocked(handler).send(request_to(URL))
        assert (response.status, response.body) == (201, b"made")

    async def test_an_application(self) -> None:
        """An ASGI program inside the process."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            message = await receive()
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"x-path", scope["raw_path"])]}
            )
            await send({"type": "http.response.body", "body": message["body"]})

        sender = HttpxSender(httpx.ASGITransport(app=app))
        response = await sender.send(request_to(URL, body=b"echo"))
        assert (response.body, response.headers["x-path"]) == (b"echo", "/v1/embeddings")
        await sender.aclose()

    async def test_respx(self) -> None:
        """The usual way to test programs that use httpx."""
        respx = pytest.importorskip("respx")
        router = respx.MockRouter(assert_all_called=True)
        router.post(f"{URL}/v1/embeddings").respond(200, json={"data": [1, 2]})
        assert (
            texts_of(await HttpxSender(httpx.MockTransport(router.async_handler)).send(request_to(URL))) == 2
        )

    async def test_how_far_it_came_is_unknown(self) -> None:
        """Unless it says so itself."""
        response = await mocked(lambda _: httpx.Response(200)).send(request_to(URL))
        assert response.info == AttemptInfo()
        assert response.info.sent == "maybe"

        def handler(request: httpx.Request) -> httpx.Response:
            request.extensions["attempt_info"] = AttemptInfo(phase="connect", sent="no", queued_s=2.0)
            if request.method == "GET":
                raise httpx.ReadError("canned")
            return httpx.Response(200, extensions={"attempt_info": AttemptInfo(reused=True, sent="yes")})

        telling = mocked(handler)
        assert (await telling.send(request_to(URL))).info == AttemptInfo(reused=True, sent="yes")
        error = await failure(telling, request_to(URL, method="GET"), errors.ConnectionLost)
        assert error.sent == "no"

    async def test_the_answer_is_closed_on_every_way_out(self) -> None:
        """Read, refused, failed."""
        endings: list[tuple[Pieces, dict[str, str], type[BaseException] | None]] = [
            (Pieces(b"a", b"", b"b"), {}, None),
            (Pieces(), {}, None),
            (Pieces(b"no gzip"), {"content-encoding": "gzip"}, errors.InvalidResponse),
            (Pieces(b"a" * 100), {}, errors.InvalidResponse),
            (Pieces(b"a", failing=httpx.ReadError("canned")), {}, errors.ConnectionLost),
            (Pieces(b"a", failing=KeyError("bug")), {}, KeyError),
        ]
        for pieces, headers, kind in endings:
            sender = mocked(lambda _, p=pieces, h=headers: httpx.Response(200, headers=h, stream=p))
            if kind is None:
                assert (await sender.send(request_to(URL, max_body=50))).body == b"".join(pieces._pieces)
            else:
                with pytest.raises(kind):
                    await sender.send(request_to(URL, max_body=50))
            assert pieces.closed == 1

    async def test_packed_answers_are_unpacked_here(self) -> None:
        """Bounded as on our own sender; httpx alone would unpack a bomb to its end."""
        packed = gzip.compress(b"hello")
        sender = mocked(
            lambda _: httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Pieces(packed))
        )
        assert (await sender.send(request_to(URL))).body == b"hello"
        bomb = Pieces(gzip_bomb(64 * 2**20))
        sender = mocked(lambda _: httpx.Response(200, headers={"content-encoding": "gzip"}, stream=bomb))
        error = await failure(sender, request_to(URL), errors.InvalidResponse)
        assert (error.reason, error.status, error.sent) == ("decompression", 200, "yes")
        assert bomb.closed == 1

    async def test_error_bodies_are_cut(self) -> None:
        """As on our own sender."""
        sender = mocked(lambda _: httpx.Response(500, stream=Pieces(*[b"a" * 40_000] * 100)))
        response = await sender.send(request_to(URL))
        assert (response.status, len(response.body)) == (500, 65536)

    async def test_a_body_that_is_no_asynchronous_stream(self) -> None:
        """A mistake in the transport, said as one."""
        sender = mocked(lambda _: httpx.Response(200, content=iter([b"a"])))
        error = await failure(sender, request_to(URL), errors.ConfigError)
        assert "MockTransport" in str(error)

    @pytest.mark.parametrize("value", [f"{KEY}\r\n", f"{KEY}é", f"{KEY}\udc80"])
    async def test_s01_headers_that_cannot_be_sent(self, value: str) -> None:
        """httpx's exception would hold the key."""
        own = HttpxSender(httpx.AsyncHTTPTransport())
        async with FaultServer() as server:
            error = await failure(own, asking(server, headers={"authorization": value}), errors.ConfigError)
            assert error.__context__ is None
            assert server.requests == []
        await own.aclose()

    async def test_closed(self) -> None:
        """It sends nothing more, and closes the transport once."""

        class Counting(httpx.AsyncBaseTransport):
            closed = 0

            async def aclose(self) -> None:
                self.closed += 1

        transport = Counting()
        sender = HttpxSender(transport)
        await asyncio.gather(*(sender.aclose() for _ in range(5)))
        assert transport.closed == 1
        await failure(sender, request_to(URL), errors.ClientClosed)
        assert repr(sender) == "<HttpxSender over Counting: 0 running>"
