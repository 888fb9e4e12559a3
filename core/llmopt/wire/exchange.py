"""One request and its answer on one connection."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from aiohttp.streams import EMPTY_PAYLOAD

from llmopt.errors import LLMOptError
from llmopt.wire import faults
from llmopt.wire.body import Unpacker
from llmopt.wire.connector import Connector
from llmopt.wire.outgoing import Outgoing, outgoing
from llmopt.wire.protocol import Protocol
from llmopt.wire.request import WireRequest
from llmopt.wire.target import Target
from llmopt.wire.trip import Trip

if TYPE_CHECKING:
    from aiohttp import StreamReader
    from aiohttp.connector import Connection
    from multidict import CIMultiDictProxy

T = TypeVar("T")

_SUCCESS: Final = range(200, 300)
_PROXY_AUTHENTICATION: Final = 407


class Exchange:
    """From leasing a connection to giving it back or breaking it off.

    Whoever opens it ends it, on every way out, with `end`; that is synchronous, so that no cancellation
    can come between.

    Attributes:
        trip: how far it has come.
        status: status of the answer, 0 before its head was read.
        headers: of the answer, with lower-case names.
    """

    def __init__(self, connector: Connector, target: Target, request: WireRequest) -> None:
        self.trip: Final = Trip(request, target.origin, target.proxy)
        self.status = 0
        self.headers: dict[str, str] = {}
        self._connector: Final = connector
        self._target: Final = target
        self._outgoing: Outgoing | None = None
        self._connection: Connection | None = None
        self._protocol: Protocol | None = None
        self._payload: StreamReader = EMPTY_PAYLOAD
        self._unpacker: Unpacker | None = None
        self._complete = False

    async def open(self) -> None:
        """Send the request and read the head of the answer."""
        trip, request = self.trip, self.trip.request
        self._outgoing = sending = outgoing(trip, self._target, self._connector.loop)
        self._connection = connection = await self._connector.lease(sending)
        self._protocol = protocol = cast(Protocol, connection.protocol)
        trip.reused = protocol.served > 0
        protocol.begin(request.method)
        trip.phase = "send"
        await sending.send(connection)
        trip.phase = "wait"
        message, self._payload = await protocol.answer()
        trip.phase = "read"
        self.status = trip.status = message.code
        self.headers = _folded(message.headers)
        if self.status == _PROXY_AUTHENTICATION and trip.proxy is not None and not self._target.tunnelled:
            raise faults.proxy_refused(trip, self.status, message.reason)

    async def raw(self) -> bytes:
        """The next bytes of the body as they came, b"" at its end."""
        data = await self._payload.readany()
        if not data:
            self._complete = True
        return data

    async def chunk(self) -> bytes:
        """The next bytes of the body, unpacked, b"" at its end."""
        unpacker = self._unpacker = self._unpacker or self._unpack()
        while not unpacker.stopped:
            data = await self.raw()
            if not data:
                unpacker.finish()
                break
            if piece := unpacker.feed(data):
                return piece
        return b""

    async def body(self) -> bytes:
        """The whole body, unpacked."""
        unpacker = self._unpacker = self._unpack()
        declared = self.headers.get("content-length", "")
        if unpacker.plain and declared.isdecimal() and int(declared) <= unpacker.max_body:
            # The parser holds it to its length: nothing to count, and no reason to stop the socket.
            self._payload.set_read_chunk_size(int(declared) + 1)
            read = self.raw
        else:
            read = self.chunk
        pieces = []
        while piece := await read():
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

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
        if connection is None or self._protocol is None or self._outgoing is None:
            return
        if self._complete and not self._outgoing.uploading:
            self.trip.phase = "done"
            self._protocol.served += 1
            connection.release()
            return
        if not self._connector.closed:
            self._outgoing.stop()
            # Not close: that waits for the peer to take what is still to be sent.
            self._protocol.abort()
        connection.close()

    def fail(self, error: BaseException) -> LLMOptError | None:
        """End after an error, and say what it means; None for what is not to be translated."""
        self._complete = False
        trip, protocol = self.trip, self._protocol
        if protocol is not None:
            trip.heard, trip.broken = protocol.heard, protocol.broken is not None
        trip.closed = self._connector.closed
        self.end()
        return faults.translate(error, trip)

    def _unpack(self) -> Unpacker:
        return Unpacker(
            self.headers.get("content-encoding"),
            self.trip.request.max_body,
            cut=self.status not in _SUCCESS,
        )


def _folded(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    folded: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        folded[key] = f"{folded[key]}, {value}" if key in folded else value
    return folded
