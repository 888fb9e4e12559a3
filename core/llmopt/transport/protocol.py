"""One HTTP/1.1 connection: aiohttp's protocol with stricter checks and a fast path for whole responses.

Bytes are read into an existing buffer instead of a new object each time. A successful response with a content-length
does not go through the parser's stream: the socket writes the rest of its body straight into a `BodyBuffer`. Every
other response (chunked, compressed, an error, of unknown length, to be streamed) goes through aiohttp's parser.

It reads from and writes to sockets, in callbacks of the one event loop that the connection belongs to; a long body is
sent by a task, and the head of the response is awaited. All connections of a connector, which belongs to that loop
too, share one read buffer and one `SocketRegistry`, without a lock: the buffer is used on the loop only. Another
thread may shut the sockets of the registry down, and close them once their loop is closed; in a forked child they are
redirected to /dev/null. Before a connection is used again its socket is polled, without waiting. It sets no timers
and reads no clock.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any, Final

from aiohttp import ClientPayloadError, StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage

from llmopt._platform import readable_check
from llmopt.transport.request import RequestState


class SocketRegistry:
    """The open sockets of a connector, for closing them when the event loop cannot; asyncio owns them.

    The references are strong: the garbage collector would clear a `WeakSet` of an unclosed client before the
    client's finalizer can use it.
    """

    def __init__(self) -> None:
        self._sockets: Final[set[socket.socket]] = set()

    def open(self, address: tuple[Any, ...]) -> socket.socket:
        """Open a socket for an entry of `socket.getaddrinfo`; this is aiohttp's ``socket_factory``."""
        family, kind, protocol, *_ = address
        # asyncio closes sockets without telling this set; removing them here keeps it as small as the pool.
        self._sockets.difference_update([each for each in self._sockets if each.fileno() < 0])
        opened = socket.socket(family, kind, protocol)
        self._sockets.add(opened)
        return opened

    def shutdown_all(self) -> None:
        """Shut down all connections, from any thread: their loop sees the end of each and cleans up."""
        for opened in list(self._sockets):
            with suppress(OSError):
                # Not close: the loop would still poll the descriptor's number, which another file could get
                # at once.
                opened.shutdown(socket.SHUT_RDWR)

    def close_all(self) -> None:
        """Close all sockets of a loop that is closed."""
        for opened in list(self._sockets):
            opened.close()

    def detach_all(self) -> None:
        """Give up a forked child's copies of the parent's connections, without sending a byte.

        Each descriptor is redirected to /dev/null instead of being closed: if the child's copy of the parent's
        event loop still uses its number, that reaches neither the parent nor a file opened later.
        """
        for opened in list(self._sockets):
            if opened.fileno() >= 0:
                _point_at_devnull(opened)


def _point_at_devnull(opened: socket.socket) -> None:
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError:  # no descriptor left for /dev/null: closing this one is the next best
        os.close(opened.detach())
        return
    try:
        os.dup2(null, opened.fileno(), inheritable=False)
    finally:
        os.close(null)


def finish_transport(transport: Any) -> None:
    """Close a transport whose loop is closed, without a ResourceWarning.

    The transport's own methods only schedule the rest of the work, on a loop that never runs again.
    """
    # A TLS transport wraps the socket's transport; only the inner one owns the socket.
    inner = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None) or transport
    with suppress(RuntimeError):  # "Event loop is closed"
        transport.abort()
    with suppress(RuntimeError, AttributeError):  # uvloop closes its transports with the loop
        inner._call_connection_lost(None)  # noqa: SLF001 - there is no public way; without it a ResourceWarning remains


# Bytes read from a socket at once: copying a mebibyte takes half a millisecond of the event loop.
_MAX_READ: Final = 1 << 20


class BodyBuffer:
    """The body of a response of known length, written by the socket itself: nothing is copied twice.

    Args:
        size: length of the body, above 0.
    """

    __slots__ = ("_filled", "_memory", "_size")

    def __init__(self, size: int) -> None:
        # BytesIO, because its getvalue() returns its own memory as bytes, not a copy. No memoryview of it is kept
        # between two reads: getvalue() would copy, and the garbage collector of Python 3.13 reports a BufferError
        # for a BytesIO that it frees together with a view of it.
        self._memory: Final = BytesIO(bytes(size))
        self._size: Final = size
        self._filled = 0

    @property
    def free_space(self) -> memoryview:
        """Where the next bytes go; limited, because the kernel fills as much as it is given while more arrives."""
        return self._memory.getbuffer()[self._filled : self._filled + _MAX_READ]

    @property
    def remaining(self) -> int:
        """Bytes that are still missing; 0 when the body is complete."""
        return self._size - self._filled

    def append(self, data: bytes | memoryview) -> None:
        """Copy bytes that were read elsewhere; at most `remaining`."""
        self._memory.getbuffer()[self._filled : self._filled + len(data)] = data
        self._filled += len(data)

    def advance(self, count: int) -> None:
        """Count bytes that were written into `free_space`."""
        self._filled += count

    def getvalue(self) -> bytes:
        """Return the body; without a copy if no `free_space` is in use any more."""
        return self._memory.getvalue()


_READ_BUFFER_SIZE: Final = 256 * 1024
# 101 ends the HTTP exchange (RFC 9110, 15.2.2), unlike the other 1xx, after which a final response follows.
_SWITCHING_PROTOCOLS: Final = 101
_MIN_FINAL_STATUS: Final = 200
_SUCCESS: Final = range(200, 300)
_HEAD_END: Final = b"\r\n\r\n"
ParsedHead = tuple[RawResponseMessage, StreamReader]
ResponseHead = tuple[RawResponseMessage, StreamReader | bytes]
"""The head of a response, and its body: whole or as a stream."""


def new_read_buffer() -> memoryview:
    """The buffer that all connections of one loop read into; each copies at once what it has read."""
    return memoryview(bytearray(64 * 1024))


class HttpProtocol(ResponseHandler, asyncio.BufferedProtocol):
    """A connection that knows how often it was used, and whether the server sent data without a request.

    Attributes:
        served: number of requests it has completed.
        response_started: whether a byte was received since the current request began.
        lost_error: the error the connection was lost with, None while it is open or after a clean end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, read_buffer: memoryview | None = None) -> None:
        super().__init__(loop)
        self.served = 0
        self.response_started = False
        self.lost_error: BaseException | None = None
        # `bool` returns False: without a socket there is nothing to poll.
        self._has_data: Callable[[], object] = bool
        self._read_buffer: Final = new_read_buffer() if read_buffer is None else read_buffer
        self._buffered_state: RequestState | None = None
        self._message: RawResponseMessage | None = None
        self._held_heads: list[ParsedHead] | None = None
        self._body: BodyBuffer | None = None
        self._full_body: BodyBuffer | None = None

    def start_request(self, state: RequestState, *, buffered: bool) -> None:
        """Prepare for the response to a new request.

        Args:
            state: updated when the head has been read.
            buffered: whether the caller wants the whole body at once.
        """
        self.response_started = False
        self._buffered_state = state if buffered else None
        # No read timeout: aiohttp's also kills an upload in progress, and the attempt has its own timeout.
        self.set_response_params(
            # A response to HEAD has the content-length of a body that does not come (RFC 9110, 9.3.2).
            skip_payload=state.request.method == "HEAD",
            read_until_eof=True,
            # `ContentDecoder` decompresses instead, with limits for the size and for the ratio.
            auto_decompress=False,
            read_bufsize=_READ_BUFFER_SIZE,
        )

    async def read_head(self) -> ResponseHead:
        """Return the head of the response and its body; interim responses (1xx) are skipped."""
        while True:
            message, payload = await self.read()
            if message.code >= _MIN_FINAL_STATUS or message.code == _SWITCHING_PROTOCOLS:
                return message, payload

    async def wait_drained(self) -> None:
        """Wait until the socket accepts more data."""
        await self._drain_helper()

    @property
    def has_unsent_data(self) -> bool:
        """Whether the socket has not yet accepted all data that was written."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    def reusable(self) -> bool:
        """Whether an idle connection may carry another request.

        Unsolicited bytes would be read as the next response. Those that the loop has not read yet are found by
        polling the socket, which also finds a connection that the server has closed.
        """
        # The system call comes last: it is the most expensive of the three. See aiohttp#13656.
        return self.is_connected() and not self.should_close and not self._has_data()

    @property
    def should_close(self) -> bool:
        """Whether the connection cannot be kept: unread data, an error, or data after the response's end."""
        return super().should_close or self._message is not None or self._has_unsolicited_data()

    def _has_unsolicited_data(self) -> bool:
        """Whether the parser has consumed the beginning of a response that no request asked for."""
        if self._parser is None:
            return False
        try:
            return self._parser.feed_eof() is not None
        except Exception:  # noqa: BLE001 - any parser error means that there was data
            return True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Get the socket, for polling it later."""
        super().connection_made(transport)
        opened = transport.get_extra_info("socket")
        if opened is not None:
            self._has_data = readable_check(opened.fileno())

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the hint is not needed
        """Return the buffer for the next bytes."""
        return self._read_buffer if self._body is None else self._body.free_space

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes that the loop has written into the buffer."""
        if self._body is None:
            # A copy, because the next read of any connection of this loop overwrites the shared buffer.
            self.data_received(bytes(self._read_buffer[:nbytes]))
        else:
            self._body.advance(nbytes)
            if not self._body.remaining:
                # Later: the loop still holds the memoryview, and BytesIO would copy its memory because of it.
                self._full_body, self._body = self._body, None
                self._loop.call_soon(self._deliver_full_body)

    def data_received(self, data: bytes) -> None:
        """Process received bytes."""
        self.response_started = True
        self._deliver_full_body()
        if self._body is not None:
            # uvloop does not call get_buffer; it reads into its own memory.
            self._fill_body(self._body, data)
            return
        state = self._buffered_state
        end = data.find(_HEAD_END) if state is not None else -1
        if state is None or end < 0:
            self._parse(data)
            return
        # The parser gets the head only, so that the body need not go through it.
        end += len(_HEAD_END)
        heads: list[ParsedHead] = []
        self._held_heads = heads
        self._parse(data[:end])
        size = _bufferable_length(heads[0], state.request.max_body) if len(heads) == 1 else 0
        # More bytes than the stated length belong to no request: the parser keeps them, see `should_close`.
        if size and end + size >= len(data):
            self._held_heads = None
            self._start_buffered_body(state, heads[0][0], size, memoryview(data)[end:])
        else:
            self._continue_streaming(data[end:])

    def feed_data(self, data: ParsedHead, size: int = 0) -> None:
        """A head was parsed; hold it back until it is known how its body will be read."""
        if self._held_heads is not None:
            self._held_heads.append(data)
            return
        if data[0].code >= _MIN_FINAL_STATUS:
            self._buffered_state = None
        super().feed_data(data, size)

    def _continue_streaming(self, rest: bytes) -> None:
        """Read the body through the parser. If the parser fails right after a head, that head is rejected too."""
        if rest:
            self._parse(rest)
        heads, self._held_heads = self._held_heads or [], None
        if self._exception is None:
            for each in heads:
                self.feed_data(each)

    def _start_buffered_body(
        self, state: RequestState, message: RawResponseMessage, size: int, start: memoryview
    ) -> None:
        """Read the body without the parser; ``start`` was received together with the head."""
        self._buffered_state = None
        state.phase = "read"
        state.status = message.code
        # The parser must not see the body. Later unsolicited bytes stay where `should_close` looks.
        self._parser = self._payload = None
        self._message = message
        if len(start) == size:
            self._deliver(bytes(start))
        else:
            self._body = BodyBuffer(size)
            self._body.append(start)

    def _fill_body(self, body: BodyBuffer, data: bytes) -> None:
        missing = body.remaining
        body.append(memoryview(data)[:missing])
        if not body.remaining:
            self._full_body, self._body = body, None
            self._deliver_full_body()
        # Bytes after the body belong to no request: the parser keeps them, and `should_close` then sees them.
        if len(data) > missing:
            self._parse(data[missing:])

    def _deliver_full_body(self) -> None:
        """Deliver a buffered response, if one is complete."""
        full, self._full_body = self._full_body, None
        if full is not None:
            self._deliver(full.getvalue())

    def _deliver(self, body: bytes) -> None:
        message, self._message = self._message, None
        super().feed_data((message, body), 0)  # type: ignore[arg-type] # see `ResponseHead`

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        # aiohttp does not report a malformed chunk once the head of its response was read.
        if self._exception is not None:
            self._fail_body(self._exception)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Record how the connection ended, and fail the response that it interrupts."""
        if exc is not None:
            # A failed read leaves a traceback whose frame holds the view that it read into, and with it the body.
            exc.__traceback__ = None
        self.lost_error = exc
        self._deliver_full_body()
        if self._message is not None:
            # The buffered body is incomplete: its reader must get an error, never a short body.
            self._message = self._body = None
            self.set_exception(ClientPayloadError())
        # aiohttp treats a reset as the regular end of a body without a length.
        if exc is not None:
            self._fail_body(ClientPayloadError())
        super().connection_lost(exc)

    def abort(self) -> None:
        """Abort, and wake the reader of the body, which aiohttp would leave waiting."""
        self._fail_body(ClientPayloadError())
        super().abort()

    def _fail_body(self, error: BaseException) -> None:
        payload = self._payload
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(error)


def _bufferable_length(parsed: ParsedHead, max_body: int) -> int:
    """The length of the body if it can be read without the parser, else 0."""
    message, payload = parsed
    headers = message.headers
    length = headers.get("content-length", "")
    # Bodies of errors are cut at 64 KiB, which the fast path cannot do.
    if message.code not in _SUCCESS or message.chunked or message.upgrade or not length.isdecimal():
        return 0
    # The parser must continue with a body that it has begun, as after a head that ends in bare line feeds.
    if "content-encoding" in headers or payload.total_bytes or payload.is_eof():
        return 0
    size = int(length)
    return size if size <= max_body else 0


# Up to this size, copying the body behind the head is cheaper than a second system call.
_MAX_JOINED_WRITE: Final = 64 * 1024
_MAX_WRITE: Final = 256 * 1024


async def _write_chunks(protocol: HttpProtocol, body: bytes) -> None:
    """Send a long body in chunks, so that it is not copied a second time into the transport's buffer."""
    view = memoryview(body)
    for start in range(0, len(view), _MAX_WRITE):
        transport = protocol.transport
        if transport is None:
            return
        transport.write(view[start : start + _MAX_WRITE])
        await protocol.wait_drained()


def _ignore_failure(upload: asyncio.Task[None]) -> None:
    # The connection tells the reason. asyncio would log an exception that nobody has looked at.
    if not upload.cancelled():
        upload.exception()


def send_request(
    protocol: HttpProtocol, head: memoryview, body: bytes | None, loop: asyncio.AbstractEventLoop
) -> asyncio.Task[None] | None:
    """Send head and body: at once if one or two writes are enough.

    A longer body is sent by a task, which is returned, while the response is already awaited: a server may reject the
    request early.
    """
    transport = protocol.transport
    if transport is None:
        raise ConnectionResetError("the connection is gone")
    if body is None or len(body) <= _MAX_JOINED_WRITE:
        transport.write(head if body is None else b"".join((head, body)))
        return None
    transport.write(head)
    if len(body) > _MAX_WRITE:
        upload = loop.create_task(_write_chunks(protocol, body))
        upload.add_done_callback(_ignore_failure)
        return upload
    transport.write(body)
    return None
