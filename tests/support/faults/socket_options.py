"""Operations on the kernel's socket."""

from __future__ import annotations

import socket
import struct
import sys
from asyncio.trsock import TransportSocket

if sys.platform == "linux":
    import fcntl

SIOCOUTQNSD = 0x894B  # Linux: how many bytes of the send queue were not sent yet
DISCARD_READS, DISCARD_SIZE = 1024, 65536


def unsent(sock: TransportSocket) -> int:
    """Count the bytes written but not sent; on loopback, sent bytes have arrived. 0 where the kernel does not report it."""
    if sys.platform != "linux":
        return 0
    return int.from_bytes(fcntl.ioctl(sock.fileno(), SIOCOUTQNSD, bytes(4)), sys.byteorder)


def reset_on_close(sock: TransportSocket) -> None:
    """Make the close of this socket send RST: that is what lingering for 0 seconds means."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def discard(sock: TransportSocket) -> None:
    """Read and drop the received bytes: closing a socket that holds unread bytes sends RST, even after a FIN."""
    with sock.dup() as copy:
        for _ in range(DISCARD_READS):
            try:
                if not copy.recv(DISCARD_SIZE):
                    return
            except OSError:  # BlockingIOError: no bytes are left; ConnectionResetError: the peer has gone
                return
