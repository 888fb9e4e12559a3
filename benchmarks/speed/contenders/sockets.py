"""Sockets and nothing else: a request that was written beforehand, and as many bytes read as an answer has.

Shows what the server can give, so that everybody sees that it does not hold the others back.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from benchmarks.speed.contenders.base import KEY, MODEL, Client, Setting
from benchmarks.speed.texts import texts as some_texts


class Sockets(Client):
    """Is driven by `flood` instead of by asyncio."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        where = urlsplit(setting.base_url)
        body = _body(some_texts(10**9, setting.batch))
        head = (
            f"POST {where.path}/embeddings HTTP/1.1\r\nhost: {where.netloc}\r\nauthorization: Bearer {KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        address = (where.hostname or "", where.port or 80)
        self._sockets = [socket.create_connection(address) for _ in range(setting.in_flight)]
        self._buffer = bytearray(1 << 20)
        self._length = self._learn()

    def flood(self, count: int) -> None:
        """So many requests, ``in_flight`` of them at once."""
        rounds, width = divmod(count, len(self._sockets))
        for _ in range(rounds):
            self._round(len(self._sockets))
        if width:
            self._round(width)

    def _round(self, width: int) -> None:
        for each in self._sockets[:width]:
            each.sendall(self._request)
        for each in self._sockets[:width]:
            missing = self._length
            while missing:
                missing -= each.recv_into(self._buffer)

    def _learn(self) -> int:
        """How long an answer is."""
        self._sockets[0].sendall(self._request)
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._sockets[0].recv(1 << 16)
        end = got.index(b"\r\n\r\n") + 4
        whole = end + int(got[:end].lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        missing = whole - len(got)
        while missing:
            missing -= self._sockets[0].recv_into(self._buffer)
        return whole

    async def close(self) -> None:
        for each in self._sockets:
            each.close()


def _body(texts: Sequence[str]) -> bytes:
    import json

    body: dict[str, Any] = {"model": MODEL, "input": list(texts), "encoding_format": "base64"}
    return json.dumps(body).encode()
