"""The server's end of one TCP or TLS connection: bytes in, bytes out, and the ways to end it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio.trsock import TransportSocket
from collections.abc import Callable

from tests.support.faults.socket_options import discard, reset_on_close, unsent

FLUSH_POLL = 0.001  # seconds between looks at the send queue; a small answer is gone at the first look


class ConnectionGoneError(Exception):
    """The connection ended while a script was playing; it ends the script, and no test sees it."""


class Wire(asyncio.Protocol):
    """Keeps what arrives in `buffer` (`received` counts it), and writes without a limit.

    One script at most uses it at a time. Whatever it does after the end raises `ConnectionGoneError`.
    """

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.received = 0
        self.gone = False
        self.full = False
        self._waiter: asyncio.Future[None] | None = None  # for bytes, or for room to write
        self._socket: TransportSocket
        self._raw: asyncio.Transport
        self._transport: asyncio.Transport  # the TLS one once there is one, else the raw one

    @property
    def ending(self) -> bool:
        """Whether this connection is over, or about to be."""
        return self.gone or self._raw.is_closing()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport and its socket."""
        assert isinstance(transport, asyncio.Transport)
        self._raw = self._transport = transport
        self._socket = transport.get_extra_info("socket")
        transport.set_write_buffer_limits(high=0)  # so that "room to write" means "all is in the kernel"

    def data_received(self, data: bytes) -> None:
        """Keep bytes."""
        self.received += len(data)
        self.buffer += data
        self._wake()

    def pause_writing(self) -> None:
        """Record that the kernel accepts no more bytes."""
        self.full = True

    def resume_writing(self) -> None:
        """Let the writer continue."""
        self.full = False
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake every waiter; no more bytes will arrive."""
        self.gone = True
        self._wake()

    # Reading.

    async def read(self, enough: Callable[[bytearray], int]) -> bytes:
        """Remove and return the bytes that `enough` counts, once it counts more than 0."""
        while not (count := enough(self.buffer)):
            await self.wait()
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    def stop_reading(self) -> None:
        """Leave arriving bytes in the kernel."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._transport.resume_reading()

    # Writing.

    def write(self, data: bytes) -> None:
        """Write bytes without waiting."""
        self._transport.write(data)

    async def send(self, data: bytes) -> None:
        """Write bytes and wait until the kernel has them."""
        self.check()
        self._transport.write(data)
        while self.full:
            await self.wait()

    async def flush(self) -> None:
        """Wait until nothing written is left here or unsent in the kernel."""
        self.check()
        while self._raw.get_write_buffer_size() or unsent(self._socket):
            await asyncio.sleep(FLUSH_POLL)
            self.check()

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Shake hands; a client that refuses or leaves ends the connection."""
        assert not self.buffer, "bytes were read before StartTls: they belong to the handshake"
        try:
            secured = await asyncio.get_running_loop().start_tls(self._raw, self, context, server_side=True)
            if secured is not None and not self._raw.is_closing():
                secured.set_write_buffer_limits(high=1)  # here 0 would mean "always full"
                self._transport = secured
        except OSError:  # ssl.SSLError is one: the client did not like what it saw, or left
            pass
        finally:
            if self._transport is self._raw:
                self.abort()
                self.connection_lost(
                    None
                )  # the loop reports an end during the handshake only to its TLS protocol
        self.check()

    # Ending.

    def reset(self) -> None:
        """Send RST."""
        self.check()
        reset_on_close(self._socket)
        self.abort()

    def half_close(self) -> None:
        """Send FIN; under TLS without a close_notify before it."""
        self.check()
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:  # ENOTCONN: the client has sent RST, and the event loop does not know it yet
            self.abort()
            raise ConnectionGoneError from None

    def close(self) -> None:
        """Send FIN, even where unread bytes would make a plain close send RST; under TLS, close_notify first."""
        self.check()
        if self._transport is self._raw:
            self.half_close()
            discard(self._socket)
        self._transport.close()

    def abort(self) -> None:
        """Close the socket at once."""
        self._raw.abort()

    # Waiting.

    def check(self) -> None:
        """Raise `ConnectionGoneError` once the connection has ended."""
        if self.ending:
            raise ConnectionGoneError

    async def wait(self) -> None:
        """Wait until bytes have come, or room to write, or the end."""
        self.check()
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
        self.check()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
