"""The connection pool as an httpx transport, for tests of both.

It reports an `AttemptInfo` of each request, as a transport that wraps the pool may do, so that the adapter to httpx can
be tested with one. It reads the body of a request from the user's httpx stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import httpx

from llmopt import errors
from llmopt.transport import errors as transport_errors
from llmopt.transport.httpx_transport import ATTEMPT_INFO
from llmopt.transport.pool import ConnectionPool
from llmopt.transport.request import TransportRequest
from llmopt.transport.stream import ResponseStream
from llmopt.values.http import AttemptInfo


class PoolTransport(httpx.AsyncBaseTransport):
    """A `ConnectionPool` as an httpx transport: the same pool, with httpx's exceptions.

    Bodies are streamed as received; httpx decompresses them. The timeouts of the request's extensions are used,
    "read" between two chunks; there is no write timeout.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool: Final = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; its body is read completely before."""
        times = request.extensions.get("timeout", {})
        sent = TransportRequest(
            method=request.method,
            # httpx's client has turned the user information into an authorization header already.
            url=str(request.url.copy_with(userinfo=b"")),
            headers={
                name: value
                for name, value in request.headers.items()
                # The pool frames the body itself; two content-lengths that differ allow request smuggling
                # (RFC 9112, 6.3).
                if name not in ("connection", "content-length", "transfer-encoding")
            },
            body=await request.aread() or None,
            connect_timeout=times.get("connect"),
            pool_timeout=times.get("pool"),
            timeout=times.get("read"),
        )
        info = AttemptInfo()
        try:
            stream = await self._pool.open(sent)
            info = stream.info
        except errors.LLMOptError as error:
            info = AttemptInfo(sent=error.sent or "maybe", reused=getattr(error, "stale", False))
            raise _to_httpx_error(error, request) from error
        finally:
            request.extensions = {**request.extensions, ATTEMPT_INFO: info}
        return httpx.Response(
            stream.status,
            # httpx decodes the body by their content-encoding.
            headers=stream.headers,
            stream=_PoolStream(stream, request),
            extensions={"http_version": b"HTTP/1.1", ATTEMPT_INFO: info},
        )

    async def aclose(self) -> None:
        """Close the pool."""
        await self._pool.aclose()


class _PoolStream(httpx.AsyncByteStream):
    """The body of a response that the pool received."""

    def __init__(self, stream: ResponseStream, request: httpx.Request) -> None:
        self._stream: Final = stream
        self._request: Final = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._next():
            yield chunk
        self._stream.close()

    async def aclose(self) -> None:
        self._stream.close()

    async def _next(self) -> bytes:
        seconds = self._request.extensions.get("timeout", {}).get("read")
        try:
            async with asyncio.timeout(seconds):
                return await self._stream.run_step(self._stream.read_raw())
        except TimeoutError:
            error: errors.LLMOptError = transport_errors.attempt_timeout(self._stream.state)
        except errors.LLMOptError as caught:
            error = caught
        raise _to_httpx_error(error, self._request) from error


def _to_httpx_error(error: errors.LLMOptError, request: httpx.Request) -> httpx.TransportError:
    """Return the httpx exception for an error of llmopt, which becomes its cause."""
    kind: type[httpx.TransportError] = httpx.ReadError
    if isinstance(error, errors.ConnectFailed):
        by_cause = {"timeout": httpx.ConnectTimeout, "proxy": httpx.ProxyError}
        kind = by_cause.get(error.cause, httpx.ConnectError)
    elif isinstance(error, errors.PoolTimeout):
        kind = httpx.PoolTimeout
    elif isinstance(error, errors.AttemptTimeout):
        kind = httpx.ReadTimeout
    elif isinstance(error, errors.InvalidResponse):
        kind = httpx.RemoteProtocolError
    elif isinstance(error, errors.ConfigError):
        kind = httpx.LocalProtocolError
    return kind(error.message, request=request)
