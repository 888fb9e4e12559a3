"""One request and its answer on one connection."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterator, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, EofStream

from llmopt.errors import ConnectionLost, LLMOptError
from llmopt.transport import errors as transport_errors
from llmopt.transport.body import Reader
from llmopt.transport.connector import Connector
from llmopt.transport.protocol import HttpProtocol, Upload, at_once
from llmopt.transport.request import Trip, WireRequest
from llmopt.transport.urls import Target
from llmopt.values.http import AttemptInfo, HttpResponse

if TYPE_CHECKING:
    from aiohttp import StreamReader
    from aiohttp.connector import Connection
    from multidict import CIMultiDictProxy


# The one place that turns the exceptions of aiohttp and of the system into llmopt's errors.
#
# Those of aiohttp are never chained: they hold the request with its headers.


def translate(error: BaseException, trip: Trip) -> LLMOptError | None:
    """The error of llmopt for whatever ended an attempt, or None for what is not to be translated.

    A cancellation is the caller's and passes, unless it is how aiohttp says that the pool was closed.
    """
    if isinstance(error, LLMOptError):
        return transport_errors.placed(error, trip)
    if trip.closed and _ours(error):
        return transport_errors.placed(transport_errors.closed(), trip)
    fault = _fault(error, trip)
    return None if fault is None else transport_errors.placed(fault, trip)


def _ours(error: BaseException) -> bool:
    """Whether closing the pool can have brought it about: a cancellation that nobody asked of this task."""
    if not isinstance(error, asyncio.CancelledError):
        return isinstance(error, Exception)
    task = asyncio.current_task()
    return task is not None and not task.cancelling()


def _fault(error: BaseException, trip: Trip) -> LLMOptError | None:
    # One with a number is the system's: the peer's machine does not react.
    if isinstance(error, TimeoutError) and error.errno is None:
        return transport_errors.attempt_timeout(trip)
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return transport_errors.unsendable(trip)
    return _unconnected(error, trip) if trip.connecting else _broken(error, trip)


def _broken(error: BaseException, trip: Trip) -> LLMOptError | None:
    if isinstance(error, HttpProcessingError):
        return transport_errors.malformed(trip)
    if isinstance(error, aiohttp.ClientPayloadError) and not trip.broken:
        return transport_errors.truncated(trip)
    # RuntimeError is what aiohttp reports when it reads from a connection that is gone.
    if isinstance(error, (aiohttp.ClientError, OSError, EofStream, RuntimeError)):
        return transport_errors.lost(trip)
    return None


def _unconnected(error: BaseException, trip: Trip) -> LLMOptError | None:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return transport_errors.proxy_refused(trip, error.status, error.message)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        found = error.certificate_error
        return transport_errors.connect_failed(found if isinstance(found, OSError) else None, trip)
    if isinstance(error, aiohttp.ClientConnectorError):
        return transport_errors.connect_failed(error.os_error, trip)
    if isinstance(error, aiohttp.ClientOSError) or not isinstance(error, OSError):
        known = isinstance(error, (aiohttp.ClientError, HttpProcessingError, RuntimeError))
        return transport_errors.connect_failed(None, trip) if known else None
    return transport_errors.connect_failed(error, trip)


# The headers of an answer as plugins see them: lower-case names, repeated ones joined.


class FoldedHeaders(Mapping[str, str]):
    """Worked out when they are first looked at: nobody looks at those of most good answers.

    Args:
        raw: as the parser gives them.
    """

    __slots__ = ("_folded", "_raw")

    def __init__(self, raw: CIMultiDictProxy[str]) -> None:
        self._raw: Final = raw
        self._folded: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, str]:
        if self._folded is None:
            self._folded = _fold(self._raw)
        return self._folded


def _fold(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    folded: dict[str, str] = {}
    for name, value in headers.items():
        key = _lower(name)
        if not value.isascii():
            # Bytes that are not UTF-8 are lone surrogates here, which nobody could print or store.
            value = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # noqa: PLW2901 - mended in place
        folded[key] = f"{folded[key]}, {value}" if key in folded else value
    return folded


@lru_cache(maxsize=256)
def _lower(name: str) -> str:
    # A server sends the same names each time; those that are kept also compare by identity.
    return sys.intern(name.lower())


T = TypeVar("T")
_PROXY_AUTHENTICATION: Final = 407


class Exchange(Reader):
    """From leasing a connection to giving it back or breaking it off.

    Whoever opens it ends it, on every way out, with `end`; that is synchronous, so that no cancellation
    can come between.

    Attributes:
        raw_headers: of the answer, as they came.
    """

    def __init__(self, connector: Connector, target: Target, request: WireRequest) -> None:
        super().__init__(Trip(request, target.origin, target.proxy))
        self.raw_headers: tuple[tuple[bytes, bytes], ...] = ()
        self._connector: Final = connector
        self._target: Final = target
        self._connection: Connection | None = None
        self._protocol: HttpProtocol | None = None
        self._upload: Upload | None = None
        self._payload: StreamReader | bytes = EMPTY_PAYLOAD
        self._complete = False

    async def open(self, *, whole: bool = False) -> None:
        """Send the request and read the head of the answer, and with ``whole`` all of it where that is shorter."""
        trip, request, connector = self.trip, self.trip.request, self._connector
        self._connection = connection = await connector.lease(trip, self._target)
        self._protocol = protocol = cast("HttpProtocol", connection.protocol)
        trip.reused = protocol.served > 0
        protocol.begin(trip, whole=whole)
        trip.phase = "send"
        # Not by a name of its own: the head holds the key, and tracebacks show what a frame has names for.
        self._write(protocol, connector.heads.of(self._target, request), request.body)
        trip.phase = "wait"
        message, self._payload = await protocol.answer()
        trip.phase = "read"
        self.status = trip.status = message.code
        self.headers = FoldedHeaders(message.headers)
        self.raw_headers = message.raw_headers
        if self.status == _PROXY_AUTHENTICATION and trip.proxy is not None and not self._target.tunnelled:
            raise transport_errors.proxy_refused(trip, self.status, message.reason)

    def _write(self, protocol: HttpProtocol, head: bytes, body: bytes | None) -> None:
        transport = protocol.transport
        if transport is None:
            raise ConnectionResetError("the connection is gone")
        if not at_once(transport, head, body) and body is not None:
            transport.write(head)
            self._upload = Upload(protocol, body, self._connector.loop)

    async def head(self) -> None:
        """`open` within the attempt's time-out."""
        with self._connector.watchdog.watch(self.trip.request.timeout):
            await self.open()

    async def whole(self) -> HttpResponse:
        """The whole answer within the attempt's time-out. Whoever awaits it calls `fail` if it fails."""
        with self._connector.watchdog.watch(self.trip.request.timeout):
            await self.open(whole=True)
            body = self._payload
            if isinstance(body, bytes):
                self._complete = True
            else:
                body = await self.body()
        self.end()
        return HttpResponse(
            status=self.status,
            headers=self.headers,
            body=body,
            info=self.trip.info(compressed_size=self.packed),
        )

    async def raw(self) -> bytes:
        """The next bytes of the body as they came, b"" at its end."""
        data = await self._stream.readany()
        if not data:
            self._complete = True
        return data

    @property
    def _stream(self) -> StreamReader:
        return cast("StreamReader", self._payload)

    @property
    def info(self) -> AttemptInfo:
        """How far it is."""
        return self.trip.info()

    async def piece(self) -> bytes:
        """The next bytes of the body, unpacked; b"" at its end, which gives the connection back.

        As `guard` around `chunk`, with fewer coroutines for each of a stream's many pieces.
        """
        unpacker = self._unpacker = self._unpacker or self._unpack()
        try:
            if unpacker.plain:
                data = await self._stream.readany()
                unpacker.pass_on(data)
                self._complete = not data
            else:
                data = await self.chunk()
        except BaseException as error:
            fault = self.fail(error)
            if fault is None:
                raise
        else:
            if not data:
                self.end()
            return data
        raise fault

    async def rest(self) -> bytes:
        """What remains of the body, of an error's at most 64 KiB; ends the exchange."""
        body = await self.guard(self.body())
        self.end()
        return body

    async def guard(self, step: Coroutine[Any, Any, T]) -> T:
        """Take a step of this exchange; if it fails, end the exchange and raise llmopt's error for it."""
        try:
            return await step
        except BaseException as error:
            fault = self.fail(error)
            if fault is None:
                raise
        # Outside of the clause, so that no error of aiohttp's, which hold headers, hangs on it as context.
        raise fault

    def end(self) -> None:
        """Give the connection back if the whole answer was read and good, else break it off."""
        connection, self._connection = self._connection, None
        protocol, upload = self._protocol, self._upload
        if connection is None or protocol is None:
            return
        if self._complete and not protocol.sending and not (upload is not None and upload.going):
            self.trip.phase = "done"
            protocol.served += 1
            connection.release()
            return
        if not self._connector.closed:
            if upload is not None:
                upload.stop()
            # Not close: that waits for the peer to take what is still to be sent.
            protocol.abort()
        connection.close()
        self._connector.tell_size()

    def drain(self, seconds: float) -> None:
        """End when the answer has ended, at the latest in so many seconds; what comes by then is not wanted.

        Most servers end an answer a moment after its last event. Whoever read that event need not wait
        for it, and the connection is too good to be thrown away.
        """
        if self._stream.is_eof():
            self._complete = True
            self.end()
        if self._connection is None:
            return
        loop, leaving = self._connector.loop, self._connector.leaving
        leaving.add(self.end)

        def over(*, complete: bool) -> None:
            timer.cancel()
            leaving.discard(self.end)
            self._complete = self._complete or complete
            self.end()

        def ended() -> None:
            # Not at once: the parser calls this, and giving a connection back asks the parser how it stands.
            loop.call_soon(partial(over, complete=True))

        timer = loop.call_later(seconds, partial(over, complete=False))
        self._stream.on_eof(ended)

    async def aclose(self) -> None:
        """As `end`."""
        self.end()

    def fail(self, error: BaseException) -> LLMOptError | None:
        """End after an error, and say what it means; None for what is not to be translated."""
        self._complete = False
        trip, protocol = self.trip, self._protocol
        if protocol is not None:
            trip.heard, trip.broken = protocol.heard, protocol.broken is not None
        trip.closed = self._connector.closed
        self.end()
        fault = translate(error, trip)
        if isinstance(fault, ConnectionLost) and fault.stale:
            # The server has given up kept connections; whoever tries again shall not meet the next of them.
            self._connector.drop_idle(self._connector.key_of(self._target))
        return fault

    def _bounded(self, max_body: int) -> bool:
        declared = self.headers.get("content-length", "")
        if not declared.isdecimal() or int(declared) > max_body:
            return False
        # The parser holds the body to this length, so there is no reason to stop the socket either.
        self._stream.set_read_chunk_size(int(declared) + 1)
        return True
