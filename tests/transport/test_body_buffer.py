"""A large answer of known length goes from the socket straight to its place."""

from __future__ import annotations

import asyncio
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from llmopt.transport.pool import ConnectionPool
from tests.transport.helpers import request_to

MEBIBYTE = 2**20
BODY = bytes(range(256)) * (32 * MEBIBYTE // 256)


@contextmanager
def sending(body: bytes, *, closing: bool) -> Iterator[str]:
    """A server that allocates next to nothing to send the same body twice; gives its base URL."""
    last = b"connection: close\r\n\r\n" if closing else b"\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%b" % (len(body), last)

    def serve() -> None:
        connection = None
        for _ in range(2):
            connection = connection or listener.accept()[0]
            while b"canary prompt" not in connection.recv(65_536):
                pass
            connection.sendall(head)
            connection.sendall(body)
            if closing:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize("closing", [False, True])
async def test_it_is_in_memory_once(*, closing: bool) -> None:
    """Neither gathered from pieces nor copied when it is handed out, also when the server closes right behind it."""
    with sending(BODY, closing=closing) as url:
        pool = ConnectionPool()
        try:
            assert (await pool.send(request_to(url, max_body=64 * MEBIBYTE))).body == BODY
            tracemalloc.start()
            try:
                response = await pool.send(request_to(url, max_body=64 * MEBIBYTE))
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        finally:
            await pool.aclose()
            await asyncio.sleep(0)
    assert response.body == BODY
    assert peak < 1.5 * len(BODY)
