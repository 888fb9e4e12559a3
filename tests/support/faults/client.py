"""A plain TCP client that shows what a server really sends, without an HTTP library."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
from collections.abc import AsyncIterator
from typing import Literal

from tests.support.faults.ports import HOST
from tests.support.faults.server import FaultServer

End = Literal["FIN", "RST"]
TIMEOUT_S = 10.0  # only a broken test waits that long


class Client:
    """Sends bytes, returns received bytes, and reports how the other side ended the connection."""

    def __init__(self, port: int) -> None:
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self._port = port
        self._loop = asyncio.get_running_loop()

    async def connect(self) -> None:
        """Connect, or raise the error of the kernel."""
        await self._loop.sock_connect(self.sock, (HOST, self._port))

    async def send(self, data: bytes) -> None:
        """Send everything."""
        await self._loop.sock_sendall(self.sock, data)

    async def some(self) -> bytes:
        """Return the bytes of one receive; no bytes mean FIN."""
        async with asyncio.timeout(TIMEOUT_S):
            return await self._loop.sock_recv(self.sock, 1 << 20)

    async def exactly(self, count: int) -> bytes:
        """Return exactly `count` bytes; more bytes, or an earlier end, are an error."""
        data = bytearray()
        while len(data) < count:
            piece = await self.some()
            assert piece, f"FIN after {bytes(data)!r}"
            data += piece
        assert len(data) == count, f"more than {count} bytes: {bytes(data)!r}"
        return bytes(data)

    async def everything(self) -> tuple[bytes, End]:
        """Return all bytes until the end, and the kind of end."""
        data = bytearray()
        while True:
            try:
                piece = await self.some()
            except ConnectionResetError:
                return bytes(data), "RST"
            if not piece:
                return bytes(data), "FIN"
            data += piece

    @property
    def has_something(self) -> bool:
        """Whether bytes or an end have arrived."""
        return bool(select.select([self.sock], [], [], 0)[0])


@contextlib.asynccontextmanager
async def connected(server: FaultServer) -> AsyncIterator[Client]:
    """Connect a client to a server until the block ends."""
    client = Client(server.port)
    with client.sock:
        await client.connect()
        yield client


async def exchange(server: FaultServer, data: bytes) -> tuple[bytes, End]:
    """Send bytes on a new connection and give everything that comes back."""
    async with connected(server) as client:
        await client.send(data)
        return await client.everything()


def get(path: str = "/") -> bytes:
    """Write a GET request."""
    return f"GET {path} HTTP/1.1\r\nhost: test\r\n\r\n".encode()


def post(*texts: str, **fields: object) -> bytes:
    """Write an embeddings request for these texts."""
    body = json.dumps({"model": "m", "input": texts, **fields}).encode()
    return b"POST /v1/embeddings HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
