"""Ports to which no client can connect."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator

HOST = "127.0.0.1"
SYN_SENT = 2  # Linux's number of that TCP state, the first byte of TCP_INFO
ROOM = 8  # connections after which a backlog of 0 is surely full


@contextlib.contextmanager
def refused_port() -> Iterator[int]:
    """Hold a port on which every connect is refused; no other process can get the port meanwhile."""
    with socket.socket() as held:
        held.bind((HOST, 0))
        yield held.getsockname()[1]


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """Hold a port whose queue of unaccepted connections is full: a connect there waits and gets no answer.

    Raises:
        OSError: this system's backlog cannot be filled (only on Linux it is known when the backlog is full).
    """
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind((HOST, 0))
        listener.listen(0)
        _fill(held, listener.getsockname())
        yield listener.getsockname()[1]


def _fill(held: contextlib.ExitStack, address: tuple[str, int]) -> None:
    for _ in range(ROOM):
        waiting = held.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(address)
        # On loopback the handshake is over before connect returns, unless the SYN was dropped.
        if sys.platform == "linux" and waiting.getsockopt(socket.SOL_TCP, socket.TCP_INFO, 1)[0] == SYN_SENT:
            return
    raise OSError("the backlog does not fill up")
