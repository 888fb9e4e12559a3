"""One connection, as aiohttp's protocol with what it does not tell, and with a short way for whole answers.

Bytes are read into memory that is there already instead of into a new object each time. A good answer whose
length its head states is not taken through the parser's stream: the rest of it goes from the socket straight to
its place. Everything else (chunked, packed, an error, of unknown length, to be read while it comes) goes the long way.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any, Final

from aiohttp import ClientPayloadError, StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage

from llmopt.transport.request import Trip

# The sockets a connector has opened, and ways to let go of them when its event loop cannot help.


class Sockets:
    """A register of sockets: asyncio owns them, this only knows those that are open.

    Not a weak one: of a client that nobody closed, the garbage collector empties it before anybody could
    hang up.
    """

    def __init__(self) -> None:
        self._opened: Final[set[socket.socket]] = set()

    def open(self, address: tuple[Any, ...]) -> socket.socket:
        """A new socket for an entry of `socket.getaddrinfo`; aiohttp's ``socket_factory``."""
        family, kind, protocol, *_ = address
        self._opened.difference_update([known for known in self._opened if known.fileno() < 0])
        opened = socket.socket(family, kind, protocol)
        self._opened.add(opened)
        return opened

    def shut_down(self) -> None:
        """End all connections from any thread: their loop sees the end of each and cleans up itself."""
        for opened in list(self._opened):
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close all, for a loop that is closed."""
        for opened in list(self._opened):
            opened.close()

    def disown(self) -> None:
        """Give up a forked child's share of the parent's connections, without a byte on the wire.

        Each descriptor is pointed at /dev/null instead of being closed: whatever the child's copy of the
        parent's event loop still does with its number hits neither the parent nor a file opened later.
        """
        for opened in list(self._opened):
            if opened.fileno() >= 0:
                _replace(opened)


def _replace(opened: socket.socket) -> None:
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # no descriptor left: then a plain close of this one is the next best
        os.close(opened.detach())
        return
    try:
        os.dup2(null, opened.fileno(), inheritable=False)
    finally:
        os.close(null)


def watch(descriptor: int) -> Callable[[], bool]:
    """A test of whether something can be read there now; costs one system call."""
    if not hasattr(select, "poll"):  # Windows, where select takes any number
        return lambda: bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return lambda: bool(poll.poll(0))


def finish(transport: Any) -> None:
    """Finish a transport whose loop is closed: free its socket, tell its protocol, warn of nothing.

    The transport's own methods only schedule the rest of the work, on a loop that never runs again.
    """
    carrier = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None) or transport
    with suppress(RuntimeError):  # "Event loop is closed"
        transport.abort()
    with suppress(RuntimeError, AttributeError):  # uvloop has closed its own with the loop
        carrier._call_connection_lost(None)  # noqa: SLF001 - the only way; absent, a ResourceWarning remains


# The body of an answer whose length is known, filled by the socket itself: no piece is copied twice.

_READ_SIZE: Final = 1 << 20
"""Half a millisecond of the event loop."""


class Whole:
    """Room for so many bytes.

    Args:
        size: length of the body, above 0.
    """

    __slots__ = ("_at", "_file", "_size", "_view")

    def __init__(self, size: int) -> None:
        # A file in memory, for what it hands out at the end is its own memory as bytes, not a copy.
        self._file: Final = BytesIO(bytes(size))
        self._view: Final = self._file.getbuffer()
        self._size: Final = size
        self._at = 0

    @property
    def room(self) -> memoryview:
        """Where the next bytes go: some of it, for the kernel fills whatever it is given as long as more comes."""
        return self._view[self._at : self._at + _READ_SIZE]

    @property
    def left(self) -> int:
        """How many bytes are still to come."""
        return self._size - self._at

    @property
    def full(self) -> bool:
        """Whether all bytes are there."""
        return self._at == self._size

    def put(self, data: bytes | memoryview) -> None:
        """Bytes that came elsewhere; no more than there is room for."""
        self._view[self._at : self._at + len(data)] = data
        self._at += len(data)

    def wrote(self, count: int) -> None:
        """So many bytes were written into `room`."""
        self._at += count

    def take(self) -> bytes:
        """The body. The room must not be written to any more."""
        self._view.release()
        return self._file.getvalue()


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


class HttpProtocol(ResponseHandler, asyncio.BufferedProtocol):
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


# A body on its way out.

_WRITE_SIZE: Final = 64 * 1024
_PIECE: Final = 256 * 1024


def at_once(transport: asyncio.Transport, head: bytes, body: bytes | None) -> bool:
    """Write head and body, if one or two writes carry them; whether that is so."""
    if body is None or len(body) <= _WRITE_SIZE:
        transport.write(head if body is None else head + body)
        return True
    if len(body) <= _PIECE:
        transport.write(head)
        transport.write(body)
        return True
    return False


class Upload:
    """A long body, handed to a connection piece by piece.

    It waits in here and not a second time in the socket's buffer, while the answer is already listened for: a server
    may refuse it early.
    """

    def __init__(self, protocol: HttpProtocol, body: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self._protocol: Final = protocol
        self._task: Final = loop.create_task(self._pieces(body))

    async def _pieces(self, body: bytes) -> None:
        view = memoryview(body)
        for start in range(0, len(view), _PIECE):
            transport = self._protocol.transport
            if transport is None:
                return
            transport.write(view[start : start + _PIECE])
            await self._protocol.drained()

    @property
    def going(self) -> bool:
        """Whether part of the body has not been handed to the transport."""
        return not self._task.done()

    def stop(self) -> None:
        """End it; what it failed of is known from the connection."""
        self._task.cancel()
        if self._task.done() and not self._task.cancelled():
            self._task.exception()
