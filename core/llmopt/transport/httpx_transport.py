"""The seam to httpx: any httpx transport as a wire, and our pool as an httpx transport.

The only file of the core that imports httpx.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
from attrs import evolve

from llmopt import errors
from llmopt.errors import ConfigError, InvalidResponse, LLMOptError
from llmopt.policies.tasks import TaskSet
from llmopt.transport import errors as transport_errors
from llmopt.transport.body import ACCEPT_ENCODING, Reader
from llmopt.transport.request import Trip, WireRequest
from llmopt.transport.stream import WireStream
from llmopt.transport.urls import origin_of
from llmopt.values.http import AttemptInfo, HttpResponse

if TYPE_CHECKING:
    from llmopt.transport.exchange import Exchange
    from llmopt.transport.pool import ConnectionPool


T = TypeVar("T")


# One request and its answer over somebody else's httpx transport.

INFO: Final = "attempt_info"
"""The key of the `AttemptInfo` in the extensions of a request and of its answer."""


class Visit(Reader):
    """From handing a request to a foreign transport to closing its answer.

    Args:
        transport: the transport.
        sending: the request as it takes it.
        trip: the request as we know it.
        translate: the error of llmopt for an exception that comes out of the transport, None for what
            is to pass.
        tasks: the steps that go on when the caller is cancelled.
        isolate: whether each step runs in such a task.

    Attributes:
        info: what the transport says of the attempt, if it does.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        sending: httpx.Request,
        trip: Trip,
        translate: Callable[[BaseException, Trip], LLMOptError | None],
        tasks: TaskSet,
        *,
        isolate: bool,
    ) -> None:
        super().__init__(trip)
        # Who knows how far it is, behind a foreign transport.
        self.info = AttemptInfo()
        trip.phase = "send"
        self._transport: Final = transport
        self._sending: Final = sending
        self._translate: Final = translate
        self._tasks: Final = tasks
        self._isolate: Final = isolate
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._busy = False
        self._left = False

    async def open(self) -> None:
        """Send the request and take the head of the answer."""
        try:
            self._response = response = await self._transport.handle_async_request(self._sending)
        finally:
            self._learn(self._sending.extensions)
        self._learn(response.extensions)
        stream = response.stream
        if not hasattr(stream, "__aiter__"):
            raise ConfigError(
                f"{type(self._transport).__name__} answers with a body that is not an asynchronous stream."
            )
        self._pieces = aiter(stream)
        self.trip.phase = "read"
        self.status = self.trip.status = response.status_code
        self.headers = dict(response.headers)

    def read_slowly(self, seconds: float | None) -> None:
        """Allow so long between two pieces of the body, None for ever: transports look when they begin it."""
        self._sending.extensions["timeout"]["read"] = seconds

    async def raw(self) -> bytes:
        """The next bytes of the body as they came, b"" at its end."""
        while self._pieces is not None and not self._left:
            piece = await anext(self._pieces, None)
            if piece is None:
                break
            if piece:
                return piece
        return b""

    async def whole(self) -> HttpResponse:
        """The whole answer."""
        await self.open()
        body = await self.body()
        await self._end()
        info = self.info if self.packed is None else evolve(self.info, compressed_size=self.packed)
        return HttpResponse(status=self.status, headers=self.headers, body=body, info=info)

    async def guard(self, step: Coroutine[Any, Any, T], seconds: float | None) -> T:
        """Take a step within a time; if it fails, leave, and raise llmopt's error for it."""
        try:
            async with asyncio.timeout(seconds):
                return await (self._tasks.run(self._isolated(step)) if self._isolate else step)
        except (Exception, asyncio.CancelledError) as error:
            fault = self._translate(error, self.trip)
            await self.aclose()
            if fault is None:
                raise
        if self.info.sent != "maybe" and not isinstance(fault, InvalidResponse):
            fault.sent = self.info.sent
        raise fault

    async def piece(self) -> bytes:
        """The next bytes of the body, unpacked, b"" at its end."""
        return await self.guard(self.chunk(), None)

    async def rest(self) -> bytes:
        """What remains of the body, of an error's at most 64 KiB."""
        body = await self.guard(self.body(), None)
        await self.aclose()
        return body

    async def aclose(self) -> None:
        """Close the answer, at once or when the step under way has ended."""
        self._left = True
        if not self._busy and self._response is not None:
            await self._tasks.run(self._end())

    def end(self) -> None:
        """As `aclose`, without waiting."""
        self._left = True
        if not self._busy and self._response is not None:
            self._tasks.start(self._end())

    def drain(self, seconds: float) -> None:
        """Read what is left, for so many seconds, and close. Does not wait."""
        if self._response is not None:
            self._tasks.start(self._drained(seconds))

    async def _drained(self, seconds: float) -> None:
        # Closing it unread would cost many a transport the connection.
        with suppress(Exception):
            async with asyncio.timeout(seconds):
                while await self.raw():
                    pass
        await self._end()

    async def _isolated(self, step: Coroutine[Any, Any, T]) -> T:
        if self._left:
            step.close()
            raise asyncio.CancelledError
        self._busy = True
        try:
            return await step
        finally:
            self._busy = False
            if self._left:
                await self._end()

    async def _end(self) -> None:
        response, self._response = self._response, None
        pieces, self._pieces = self._pieces, None
        # The answer is read or given up; a transport that fails in closing it has nothing to add.
        with suppress(Exception):
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()
        with suppress(Exception):
            if response is not None:
                await response.aclose()

    def _learn(self, extensions: Mapping[str, Any]) -> None:
        info = extensions.get(INFO)
        if isinstance(info, AttemptInfo):
            self.info = info
            self.trip.reused = info.reused


_LONGEST_READ: Final = 600.0
_ENDINGS: Final[tuple[tuple[type[BaseException], Callable[[Trip], errors.LLMOptError]], ...]] = (
    # The first that fits: narrow ones stand before those they belong to.
    (httpx.UnsupportedProtocol, transport_errors.unsendable),
    (httpx.LocalProtocolError, transport_errors.unsendable),
    (httpx.InvalidURL, transport_errors.unsendable),
    (httpx.ConnectTimeout, transport_errors.connect_timeout),
    (httpx.PoolTimeout, transport_errors.pool_timeout),
    (httpx.TimeoutException, transport_errors.attempt_timeout),
    (httpx.ProxyError, transport_errors.proxy_failed),
    (httpx.TransportError, transport_errors.lost),
    (OSError, transport_errors.lost),
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
        self._tasks: Final = TaskSet()
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
        await self._tasks.aclose()
        await self._transport.aclose()

    def _visit(self, request: WireRequest) -> Visit:
        if self._closed:
            raise transport_errors.closed()
        # A task that nobody cancels must come to an end by itself.
        read = _LONGEST_READ if self._isolate and request.timeout is None else request.timeout
        trip = Trip(request, origin_of(request.url))
        try:
            sending = _request(request, read)
        except (httpx.InvalidURL, UnicodeError):
            sending = None
        if sending is None:
            raise transport_errors.placed(transport_errors.unsendable(trip), trip)
        return Visit(self._transport, sending, trip, _translate, self._tasks, isolate=self._isolate)

    def __repr__(self) -> str:
        return f"<TransportWire over {type(self._transport).__name__}: {len(self._tasks)} under way>"


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
            error: errors.LLMOptError = transport_errors.attempt_timeout(self._exchange.trip)
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
            return transport_errors.placed(known, trip)
    fault = _fault(error, trip)
    return None if fault is None else transport_errors.placed(fault, trip)


def _fault(error: BaseException, trip: Trip) -> errors.LLMOptError | None:
    if isinstance(error, httpx.ConnectError):
        return transport_errors.connect_failed(_system_error(error), trip)
    if isinstance(error, httpx.RemoteProtocolError):
        return _protocol_fault(str(error), trip)
    if isinstance(error, TimeoutError) and error.errno is None:
        return transport_errors.attempt_timeout(trip)
    return next((ending(trip) for kind, ending in _ENDINGS if isinstance(error, kind)), None)


def _protocol_fault(text: str, trip: Trip) -> errors.LLMOptError:
    # httpx tells these apart by its text alone.
    if "disconnected" in text:
        return transport_errors.lost(trip)
    if "incomplete" in text or "without sending complete" in text:
        return transport_errors.truncated(trip)
    return transport_errors.malformed(trip)


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
