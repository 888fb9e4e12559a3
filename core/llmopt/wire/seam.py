"""The seam to httpx: any httpx transport as a wire, and our pool as an httpx transport.

The only file of the core that imports httpx.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import httpx

from llmopt import errors
from llmopt.values.attempt import AttemptInfo
from llmopt.values.http import HttpResponse
from llmopt.wire import endings
from llmopt.wire.body import ACCEPT_ENCODING
from llmopt.wire.origin import origin_of
from llmopt.wire.owned import Owned
from llmopt.wire.request import WireRequest
from llmopt.wire.stream import WireStream
from llmopt.wire.trip import Trip
from llmopt.wire.visit import INFO, Visit

if TYPE_CHECKING:
    from llmopt.wire.exchange import Exchange
    from llmopt.wire.pool import ConnectionPool

_LONGEST_READ: Final = 600.0
_ENDINGS: Final[tuple[tuple[type[BaseException], Callable[[Trip], errors.LLMOptError]], ...]] = (
    # The first that fits: narrow ones stand before those they belong to.
    (httpx.UnsupportedProtocol, endings.unsendable),
    (httpx.LocalProtocolError, endings.unsendable),
    (httpx.InvalidURL, endings.unsendable),
    (httpx.ConnectTimeout, endings.connect_timeout),
    (httpx.PoolTimeout, endings.pool_timeout),
    (httpx.TimeoutException, endings.attempt_timeout),
    (httpx.ProxyError, endings.proxy_failed),
    (httpx.TransportError, endings.lost),
    (OSError, endings.lost),
)


class TransportWire:
    """Sends requests over somebody else's httpx transport; the same face as `ConnectionPool`.

    Args:
        transport: whose ``handle_async_request`` is called; `aclose` closes it.
        isolate: whether a request goes on in a task of its own when its caller is cancelled. httpx's own
            pool loses a slot for ever with each cancellation that meets it at the wrong moment, so for it,
            and for None, that is the rule; say True for a transport that wraps it.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, *, isolate: bool | None = None) -> None:
        self._transport: Final = transport
        own = isinstance(transport, httpx.AsyncHTTPTransport)
        self._isolate: Final = own if isolate is None else isolate
        self._owned: Final = Owned()
        self._closed = False

    async def send(self, request: WireRequest) -> HttpResponse:
        """Send a request and read the whole answer; raises as `ConnectionPool.send` does.

        Exceptions of the transport that are neither httpx's nor the system's pass as they are.
        """
        visit = self._visit(request)
        return await visit.guard(visit.whole(), request.timeout)

    async def open(self, request: WireRequest) -> WireStream:
        """Send a request, and read the answer while it comes; as `ConnectionPool.open`."""
        visit = self._visit(request)
        await visit.guard(visit.open(), request.timeout)
        visit.read_slowly((request.idle or _LONGEST_READ) if self._isolate else None)
        return WireStream(visit)

    @asynccontextmanager
    async def open_stream(self, request: WireRequest) -> AsyncIterator[WireStream]:
        """`open` for ``async with``; as `ConnectionPool.open_stream`."""
        stream = await self.open(request)
        try:
            yield stream
        finally:
            await stream.aclose()

    async def aclose(self) -> None:
        """End what is still going on and close the transport."""
        if self._closed:
            return
        self._closed = True
        await self._owned.end()
        await self._transport.aclose()

    def _visit(self, request: WireRequest) -> Visit:
        if self._closed:
            raise endings.closed()
        # A task that nobody cancels must come to an end by itself.
        read = _LONGEST_READ if self._isolate and request.timeout is None else request.timeout
        trip = Trip(request, origin_of(request.url))
        try:
            sending = _request(request, read)
        except (httpx.InvalidURL, UnicodeError):
            sending = None
        if sending is None:
            raise endings.placed(endings.unsendable(trip), trip)
        return Visit(self._transport, sending, trip, _translate, self._owned, isolate=self._isolate)

    def __repr__(self) -> str:
        return f"<TransportWire over {type(self._transport).__name__}: {len(self._owned)} under way>"


class PoolTransport(httpx.AsyncBaseTransport):
    """A `ConnectionPool` for programs that speak httpx: the same pool, and httpx's exceptions.

    Bodies of answers are streamed as they come, packed if they are; httpx unpacks them. The time-outs of
    the request's extensions hold, "read" between two pieces; there is none for writing.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool: Final = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the whole of its body is read before."""
        times = request.extensions.get("timeout", {})
        wire = WireRequest(
            method=request.method,
            url=str(request.url.copy_with(userinfo=b"")),
            headers={
                name: value
                for name, value in request.headers.items()
                if name not in ("connection", "content-length", "transfer-encoding")
            },
            body=await request.aread() or None,
            connect_timeout=times.get("connect"),
            pool_timeout=times.get("pool"),
            timeout=times.get("read"),
        )
        exchange = None
        try:
            exchange = self._pool.exchange(wire)
            await exchange.guard(exchange.head())
        except errors.LLMOptError as error:
            raise _as_httpx(error, request) from error
        finally:
            info = AttemptInfo(sent="no") if exchange is None else exchange.trip.info()
            request.extensions = {**request.extensions, INFO: info}
        return httpx.Response(
            exchange.status,
            headers=exchange.raw_headers,
            stream=_PoolStream(exchange, request),
            extensions={"http_version": b"HTTP/1.1", INFO: info},
        )

    async def aclose(self) -> None:
        """Close the pool."""
        await self._pool.aclose()


class _PoolStream(httpx.AsyncByteStream):
    """The body of an answer that came over our pool."""

    def __init__(self, exchange: Exchange, request: httpx.Request) -> None:
        self._exchange: Final = exchange
        self._request: Final = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._next():
            yield piece
        self._exchange.end()

    async def aclose(self) -> None:
        self._exchange.end()

    async def _next(self) -> bytes:
        seconds = self._request.extensions.get("timeout", {}).get("read")
        try:
            async with asyncio.timeout(seconds):
                return await self._exchange.guard(self._exchange.raw())
        except TimeoutError:
            error: errors.LLMOptError = endings.attempt_timeout(self._exchange.trip)
        except errors.LLMOptError as caught:
            error = caught
        raise _as_httpx(error, self._request) from error


def _request(request: WireRequest, read: float | None) -> httpx.Request:
    own = {"accept": "*/*", "accept-encoding": ACCEPT_ENCODING, "user-agent": "llmopt"}
    given = {name.lower() for name in request.headers}
    times = {"connect": request.connect_timeout, "pool": request.pool_timeout, "read": read, "write": read}
    return httpx.Request(
        request.method,
        request.url,
        headers={**{name: value for name, value in own.items() if name not in given}, **request.headers},
        content=request.body,
        extensions={"timeout": times},
    )


def _translate(error: BaseException, trip: Trip) -> errors.LLMOptError | None:
    """The error of llmopt for an exception that came out of a transport, None for what passes."""
    error = next(_leaves(error))
    for known in (error, error.__cause__):
        if isinstance(known, errors.LLMOptError):
            return endings.placed(known, trip)
    fault = _fault(error, trip)
    return None if fault is None else endings.placed(fault, trip)


def _fault(error: BaseException, trip: Trip) -> errors.LLMOptError | None:
    if isinstance(error, httpx.ConnectError):
        return endings.connect_failed(_system_error(error), trip)
    if isinstance(error, httpx.RemoteProtocolError):
        return _protocol_fault(str(error), trip)
    if isinstance(error, TimeoutError) and error.errno is None:
        return endings.attempt_timeout(trip)
    return next((ending(trip) for kind, ending in _ENDINGS if isinstance(error, kind)), None)


def _protocol_fault(text: str, trip: Trip) -> errors.LLMOptError:
    # httpx tells these apart by its text alone.
    if "disconnected" in text:
        return endings.lost(trip)
    if "incomplete" in text or "without sending complete" in text:
        return endings.truncated(trip)
    return endings.malformed(trip)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """An exception, or those in a group of them: httpx lets some of anyio's groups through."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _system_error(error: BaseException) -> OSError | None:
    """What the system said, below the exceptions that were made of it."""
    below = error.__cause__ or error.__context__
    for leaf in () if below is None else _leaves(below):
        found = leaf if isinstance(leaf, OSError) and leaf.errno is not None else _system_error(leaf)
        if found is not None:
            return found
    return None


def _as_httpx(error: errors.LLMOptError, request: httpx.Request) -> httpx.TransportError:
    """The exception of httpx for an error of ours, which stays its cause."""
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
