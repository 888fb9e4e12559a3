"""Custom transports for the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx

from llmopt.transport.httpx_transport import HttpxSender

URL = "http://provider.example"
Handler = Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]


class ByteStream(httpx.AsyncByteStream):
    """A body that records whether it was closed."""

    def __init__(self, *pieces: bytes, failing: Exception | None = None) -> None:
        self.closed = 0
        self._pieces = pieces
        self._failing = failing

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        if self._failing is not None:
            raise self._failing

    async def aclose(self) -> None:
        self.closed += 1


def mocked(handler: Any) -> HttpxSender:
    return HttpxSender(httpx.MockTransport(handler))


def raising(error: BaseException) -> HttpxSender:
    def handler(_: httpx.Request) -> httpx.Response:
        raise error

    return mocked(handler)
