"""One request and its answer on one connection."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from aiohttp.streams import EMPTY_PAYLOAD

from llmopt.errors import ConnectionLost, LLMOptError
from llmopt.values.attempt import AttemptInfo
from llmopt.values.http import HttpResponse
from llmopt.wire import endings, faults
from llmopt.wire.connector import Connector
from llmopt.wire.folded import FoldedHeaders
from llmopt.wire.protocol import Protocol
from llmopt.wire.reader import Reader
from llmopt.wire.request import WireRequest
from llmopt.wire.target import Target
from llmopt.wire.trip import Trip
from llmopt.wire.upload import Upload, at_once

if TYPE_CHECKING:
    from aiohttp import StreamReader
    from aiohttp.connector import Connection

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
        self._protocol: Protocol | None = None
        self._upload: Upload | None = None
        self._payload: StreamReader | bytes = EMPTY_PAYLOAD
        self._complete = False

    async def open(self, *, whole: bool = False) -> None:
        """Send the request and read the head of the answer, and with ``whole`` all of it where that is shorter."""
        trip, request, connector = self.trip, self.trip.request, self._connector
        self._connection = connection = await connector.lease(trip, self._target)
        self._protocol = protocol = cast("Protocol", connection.protocol)
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
            raise endings.proxy_refused(trip, self.status, message.reason)

    def _write(self, protocol: Protocol, head: bytes, body: bytes | None) -> None:
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
            status=self.status, headers=self.headers, body=body, info=self.trip.info(packed=self.packed)
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
        fault = faults.translate(error, trip)
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
