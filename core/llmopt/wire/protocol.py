"""One connection, as aiohttp's protocol with what it does not tell, and with a short way for whole answers.

Bytes are read into memory that is there already instead of into a new object each time. A good answer whose
length its head states is not taken through the parser's stream: the rest of it goes from the socket straight to
its place. Everything else (chunked, packed, an error, of unknown length, to be read while it comes) goes the long way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import ClientPayloadError, StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage

from llmopt.wire.sockets import watch
from llmopt.wire.trip import Trip
from llmopt.wire.whole import Whole

_BUFFER: Final = 256 * 1024
_SWITCHING: Final = 101
_FINAL: Final = 200
_SUCCESS: Final = range(200, 300)
_HEAD_END: Final = b"\r\n\r\n"

Parsed = tuple[RawResponseMessage, StreamReader]
Answer = tuple[RawResponseMessage, StreamReader | bytes]
"""The head of an answer, and its body: whole, or as a stream."""


def scratch() -> memoryview:
    """Memory for all connections of one loop to read into; each takes out at once what it has read."""
    return memoryview(bytearray(64 * 1024))


class Protocol(ResponseHandler, asyncio.BufferedProtocol):
    """A connection that knows whether it was used before and whether its peer has spoken out of turn.

    Attributes:
        served: how many requests it has carried to their end.
        heard: whether a byte came since the present request began.
        broken: how the connection was lost, None while it stands or after a clean end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, room: memoryview | None = None) -> None:
        super().__init__(loop)
        self.served = 0
        self.heard = False
        self.broken: BaseException | None = None
        self._readable: Callable[[], bool] = bool
        self._scratch: Final = scratch() if room is None else room
        self._trip: Trip | None = None
        self._message: RawResponseMessage | None = None
        self._held: list[Parsed] | None = None
        self._whole: Whole | None = None
        self._full: Whole | None = None

    def begin(self, trip: Trip, *, whole: bool) -> None:
        """Make ready for the answer to a new request.

        Args:
            trip: told when the head has come.
            whole: whether the answer is wanted in one piece.
        """
        self.heard = False
        self._trip = trip if whole else None
        # No read time-out: aiohttp's also kills an upload in progress, and the attempt has its own.
        self.set_response_params(
            skip_payload=trip.request.method == "HEAD",
            read_until_eof=True,
            auto_decompress=False,
            read_bufsize=_BUFFER,
        )

    async def answer(self) -> Answer:
        """The head of the answer, interim answers left out, and its body."""
        while True:
            message, payload = await self.read()
            if message.code >= _FINAL or message.code == _SWITCHING:
                return message, payload

    async def drained(self) -> None:
        """Wait until the socket takes more."""
        await self._drain_helper()

    @property
    def sending(self) -> bool:
        """Whether something that was written has not been taken by the socket."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    def usable(self) -> bool:
        """Whether an idle connection may carry another request.

        Bytes that came unasked would be taken for the next answer; those that the loop has not read
        yet are found by asking the socket, which also finds a connection that the server has closed.
        """
        return self.is_connected() and not self.should_close and not self._readable()

    @property
    def should_close(self) -> bool:
        """Whether the connection cannot be kept: unread, broken, or past its answer's end."""
        return super().should_close or self._message is not None or self._overrun()

    def _overrun(self) -> bool:
        """Whether the parser has swallowed the beginning of an answer to no request."""
        if self._parser is None:
            return False
        try:
            return self._parser.feed_eof() is not None
        except Exception:  # noqa: BLE001 - whatever the parser dislikes, it was not nothing
            return True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Learn the socket, to ask it later whether something lies there."""
        super().connection_made(transport)
        opened = transport.get_extra_info("socket")
        if opened is not None:
            self._readable = watch(opened.fileno())

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the size is known better here
        """Where the loop is to put the next bytes."""
        return self._scratch if self._whole is None else self._whole.room

    def buffer_updated(self, nbytes: int) -> None:
        """The loop has put bytes there."""
        if self._whole is None:
            self.data_received(bytes(self._scratch[:nbytes]))
        else:
            self._whole.wrote(nbytes)
            if self._whole.full:
                # Not yet: the loop still holds the room it wrote into, for which its memory would be copied.
                self._full, self._whole = self._whole, None
                self._loop.call_soon(self._hand_over)

    def data_received(self, data: bytes) -> None:
        """Take in what the peer has said."""
        self.heard = True
        self._hand_over()
        if self._whole is not None:
            # uvloop reads into memory of its own.
            self._take_in(self._whole, data)
            return
        trip = self._trip
        end = data.find(_HEAD_END) if trip is not None else -1
        if trip is None or end < 0:
            self._parse(data)
            return
        # To the end of the head and no further, so that what follows need not go through the parser.
        end += len(_HEAD_END)
        held: list[Parsed] = []
        self._held = held
        self._parse(data[:end])
        size = _length(held[0], trip.request.max_body) if len(held) == 1 else 0
        if size and end + size >= len(data):
            self._held = None
            self._take_over(trip, held[0][0], size, memoryview(data)[end:])
        else:
            self._go_on(data[end:])

    def feed_data(self, data: Parsed, size: int = 0) -> None:
        """A head was parsed; kept back until it is known which way its body comes."""
        if self._held is not None:
            self._held.append(data)
            return
        if data[0].code >= _FINAL:
            self._trip = None
        super().feed_data(data, size)

    def _go_on(self, rest: bytes) -> None:
        """The long way. What the parser dislikes right behind a head condemns that head too."""
        if rest:
            self._parse(rest)
        held, self._held = self._held or [], None
        if self._exception is None:
            for each in held:
                self.feed_data(each)

    def _take_over(self, trip: Trip, message: RawResponseMessage, size: int, begun: memoryview) -> None:
        """The short way."""
        self._trip = None
        trip.phase = "read"
        trip.status = message.code
        # What comes later is not for this parser; unasked, it lies where `should_close` sees it.
        self._parser = self._payload = None
        self._message = message
        if len(begun) == size:
            self._pass_on(bytes(begun))
        else:
            self._whole = Whole(size)
            self._whole.put(begun)

    def _take_in(self, whole: Whole, data: bytes) -> None:
        room = whole.left
        whole.put(memoryview(data)[:room])
        if whole.full:
            self._full, self._whole = whole, None
            self._hand_over()
        if len(data) > room:
            self._parse(data[room:])

    def _hand_over(self) -> None:
        """Give out an answer that is complete, if one is."""
        full, self._full = self._full, None
        if full is not None:
            self._pass_on(full.take())

    def _pass_on(self, body: bytes) -> None:
        message, self._message = self._message, None
        super().feed_data((message, body), 0)  # type: ignore[arg-type] # see `Answer`

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        # aiohttp tells nobody of a malformed chunk that comes after the head of its answer was read.
        if self._exception is not None:
            self._break(self._exception)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note how it ended, and end the answer with it."""
        self.broken = exc
        self._hand_over()
        if self._message is not None:
            self._message = self._whole = None
            self.set_exception(ClientPayloadError())
        # aiohttp takes a reset for the regular end of a body that has no length.
        if exc is not None:
            self._break(ClientPayloadError())
        super().connection_lost(exc)

    def abort(self) -> None:
        """Break off, and tell whoever is waiting for more of the answer, of whom aiohttp lets go."""
        self._break(ClientPayloadError())
        super().abort()

    def _break(self, error: BaseException) -> None:
        payload = self._payload
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(error)


def _length(parsed: Parsed, most: int) -> int:
    """How long the body is, if it may come the short way; else 0."""
    message, payload = parsed
    headers = message.headers
    length = headers.get("content-length", "")
    if message.code not in _SUCCESS or message.chunked or message.upgrade or not length.isdecimal():
        return 0
    # Bytes that the parser has had already, as after a head that ends in bare line feeds, it must go on with.
    if "content-encoding" in headers or payload.total_bytes or payload.is_eof():
        return 0
    size = int(length)
    return size if size <= most else 0
