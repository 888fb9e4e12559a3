"""The sockets a connector has opened, and ways to let go of them when its event loop cannot help."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final


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
