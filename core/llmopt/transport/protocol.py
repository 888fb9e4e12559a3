"""One connection: the bytes between a socket and the HTTP/1.1 of `llmopt.transport.http1`.

Bytes are read into a buffer that all connections of a loop share, or straight into the body of the response. What
arrives is handed on at once, in callbacks of the event loop; nothing here is awaited and there is no task. A body that
the socket does not accept at once is sent in pieces, as it accepts more.

It reads from and writes to sockets, in callbacks of the one event loop that the connection belongs to. All connections of
a connector, which belongs to that loop too, share one read buffer and one `SocketRegistry`, without a lock: the buffer is
used on the loop only. Another thread may shut the sockets of the registry down, and close them once their loop is closed;
in a forked child they are redirected to /dev/null. Before a connection is used again its socket is polled, without
waiting. It sets no timers and reads no clock.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol, cast

from llmopt._platform import readable_check
from llmopt.transport.http1 import MalformedResponse, ResponseParser, TruncatedResponse
from llmopt.transport.urls import Route


class SocketRegistry:
    """The open sockets of a connector, for closing them when the event loop cannot; asyncio owns them.

    The references are strong: the garbage collector would clear a `WeakSet` of an unclosed client before the
    client's finalizer can use it.
    """

    def __init__(self) -> None:
        self._sockets: Final[set[socket.socket]] = set()

    def open(self, address: tuple[Any, ...]) -> socket.socket:
        """Open a socket for an entry of `socket.getaddrinfo`; this is aiohappyeyeballs' ``socket_factory``."""
        family, kind, protocol, *_ = address
        # asyncio closes sockets without telling this set; removing them here keeps it as small as the pool.
        self._sockets.difference_update([each for each in self._sockets if each.fileno() < 0])
        opened = socket.socket(family, kind, protocol)
        self._sockets.add(opened)
        return opened

    @property
    def any_open(self) -> bool:
        """Whether a socket is not closed yet."""
        return any(each.fileno() >= 0 for each in self._sockets)

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


READ_BUFFER_SIZE: Final = 64 * 1024
_MAX_WRITE: Final = 256 * 1024


class Receiver(Protocol):
    """What a connection hands a response to."""

    def receive(self, parser: ResponseParser) -> None:
        """More of the response has arrived: its head, or a part of its body, or its end."""

    def lost(self, error: BaseException | None) -> None:
        """The response ends here: the bytes are wrong, the connection broke, or (None) the server has closed it."""


class HttpProtocol(asyncio.BufferedProtocol):
    """A connection, which knows how often it was used, and what it is used for now.

    Args:
        route: where it leads.
        read_buffer: for bytes of all connections of the loop; each copies at once what it has read.
        on_lost: called with the connection when it has ended.

    Attributes:
        route: where it leads.
        transport: asyncio's transport.
        receiver: gets the response; None while the connection is idle.
        served: number of requests it has completed.
        response_started: whether a byte was received since the current request began.
        idle_until: the time of the loop's clock at which an idle connection is closed.
    """

    def __init__(
        self, route: Route, read_buffer: memoryview, on_lost: Callable[[HttpProtocol], None]
    ) -> None:
        self.route: Final = route
        self.transport: Any = None
        self.receiver: Receiver | None = None
        self.served = 0
        self.response_started = False
        self.idle_until = 0.0
        # A view: asyncio's TLS would write into copies of the slices of a bytearray.
        self._read_buffer: Final = read_buffer
        self._received: Final = cast("bytearray", read_buffer.obj)
        self._on_lost: Final = on_lost
        self._parser: Final = ResponseParser()
        self._unsent = memoryview(b"")
        self._write_paused = False

    def send(
        self, receiver: Receiver, method: str, first: memoryview, later: bytes | None, max_whole: int = 0
    ) -> None:
        """Send a request; its response is handed to ``receiver``.

        Args:
            receiver: of the response. Not called before this has returned.
            method: of the request.
            first: the bytes to send first, with the head.
            later: a long body, which is sent while the response is already awaited: a server may reject the request
                early.
            max_whole: see `ResponseParser.start`.
        """
        self.receiver = receiver
        self.response_started = False
        self._parser.start(method, max_whole=max_whole)
        self.transport.write(first)
        if later is not None:
            self._unsent = memoryview(later)
            self._write_unsent()

    @property
    def has_unsent_data(self) -> bool:
        """Whether the socket has not yet accepted all data of the request."""
        return bool(self._unsent) or self.transport.get_write_buffer_size() > 0

    def reusable(self) -> bool:
        """Whether an idle connection may carry another request.

        Unsolicited bytes would be read as the next response. Those that the loop has not read yet are found by
        polling the socket, which also finds a connection that the server has closed.
        """
        # The system call comes last: it is the more expensive of the two.
        return not self.transport.is_closing() and not self._has_data()

    def abort(self) -> None:
        """Close now, without waiting until the peer has read what is still to be sent."""
        self.receiver = None
        self._unsent = memoryview(b"")
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Get the transport, and the socket for polling it later."""
        self.transport = transport
        self._has_data = readable_check(transport.get_extra_info("socket").fileno())

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the hint is not needed
        """Return the memory for the next bytes."""
        body = self._parser.buffer
        return self._read_buffer if body is None else body.free_space

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes that the loop has written into the memory."""
        parser, receiver = self._parser, self.receiver
        if receiver is None:
            # Nobody has asked for them; they must not become the response to the next request.
            self.abort()
            return
        self.response_started = True
        try:
            if parser.buffer is None:
                parser.feed(self._received, nbytes)
            else:
                parser.advance(nbytes)
        except MalformedResponse as error:
            self._end(error)
            return
        if parser.status:
            receiver.receive(parser)

    def eof_received(self) -> None:
        """End the response, which may be complete only now; then asyncio closes the connection."""
        receiver, parser = self.receiver, self._parser
        if receiver is None or not parser.status:
            self._end(None)
            return
        try:
            parser.feed_eof()
            receiver.receive(parser)
        except TruncatedResponse as error:
            self._end(error)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell how the connection has ended."""
        if exc is None:
            self.eof_received()
        else:
            # A failed read leaves a traceback whose frame holds the view that it read into, and with it the body.
            exc.__traceback__ = None
            # Not after a lack of memory, which reading on would meet again.
            if isinstance(exc, OSError):
                self._read_rest()
            self._end(exc)
        self._on_lost(self)

    def _read_rest(self) -> None:
        """Read what a server sent before it refused the rest of a long request by a reset (RFC 9112, 9.6).

        asyncio gives a connection up when a write fails, whatever is still to be read. Under TLS it is too late here.
        """
        if self.transport.get_extra_info("sslcontext") is None:
            with suppress(OSError, MemoryError), self.transport.get_extra_info("socket").dup() as again:
                while self.receiver is not None and (count := again.recv_into(self.get_buffer(-1))):
                    self.buffer_updated(count)

    def pause_writing(self) -> None:
        """Called by asyncio when the socket does not accept more."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """Called by asyncio when the socket accepts more."""
        self._write_paused = False
        self._write_unsent()

    def _write_unsent(self) -> None:
        """Send a long body in pieces, so that it is not copied a second time into the transport's buffer."""
        while self._unsent and not self._write_paused:
            piece, self._unsent = self._unsent[:_MAX_WRITE], self._unsent[_MAX_WRITE:]
            self.transport.write(piece)
        if not self._unsent:
            # An empty view of the body would keep that in memory.
            self._unsent = memoryview(b"")

    def _end(self, error: BaseException | None) -> None:
        receiver, self.receiver = self.receiver, None
        # Frees the body that was begun, without the garbage collector.
        self._parser.start("GET")
        if receiver is not None:
            receiver.lost(error)
