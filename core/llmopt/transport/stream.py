"""A streamed response, and the interfaces of what sends requests.

No I/O of its own and no HTTP library: reading and `aclose` await the source, which is an exchange of the pool or of
an httpx transport, perhaps the user's; `close` and `drain` do not wait. It has no lock, and one task may read at a time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol, Self

from llmopt.transport.request import TransportRequest
from llmopt.values.http import AttemptInfo, HttpResponse


class ResponseStream:
    """A response whose body is read while it arrives: an asynchronous iterator of bytes.

    Iterating raises the errors that reading can end in. Nothing is read ahead except what fits into the socket's
    buffer. There is no timeout between chunks: the caller has its own.

    Attributes:
        status: HTTP status.
        headers: lower-case names; values of a repeated header are joined with ", ".
        info: how the request was sent.
        read: returns the next bytes of the body, decoded; b"" at the end, after which the connection is free again.
        read_remaining: returns the rest of the body at once; of an error at most 64 KiB.
    """

    def __init__(self, source: ResponseSource) -> None:
        self._source: Final = source
        self.status: Final = source.status
        self.headers: Final[Mapping[str, str]] = source.headers
        self.info: Final = source.info
        # The methods of the source themselves: a wrapper would cost one more coroutine for each chunk.
        self.read: Final[Callable[[], Awaitable[bytes]]] = source.read
        self.read_remaining: Final[Callable[[], Awaitable[bytes]]] = source.read_remaining

    @property
    def body_sizes(self) -> tuple[int, int] | None:
        """Bytes of the body so far as received, and after decompression; None for an uncompressed body."""
        return self._source.body_sizes

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self.read()
        if not chunk:
            raise StopAsyncIteration
        return chunk

    def close(self) -> None:
        """Stop reading, without waiting. The connection is closed unless the body was read to its end."""
        self._source.close()

    def drain(self, seconds: float) -> None:
        """Discard the rest of the body in the background, without waiting.

        The connection is kept for the next request if the body ends within ``seconds``, else it is closed.
        """
        self._source.drain(seconds)

    async def aclose(self) -> None:
        """Like `close`, and wait until it is done."""
        await self._source.aclose()

    def __repr__(self) -> str:
        return f"<ResponseStream {self.status}>"


class ResponseSource(Protocol):
    """Where a `ResponseStream` reads from: an exchange on a pooled connection, or one over an httpx transport."""

    status: int
    headers: Mapping[str, str]

    @property
    def info(self) -> AttemptInfo:
        """How the request was sent."""

    @property
    def body_sizes(self) -> tuple[int, int] | None:
        """Bytes of the body so far as received, and after decompression; None for an uncompressed body."""

    async def read(self) -> bytes:
        """Return the next bytes of the body, decoded, b"" at its end; an error closes the exchange."""

    async def read_remaining(self) -> bytes:
        """Return the rest of the body; of an error at most 64 KiB."""

    def close(self) -> None:
        """Stop now."""

    def drain(self, seconds: float) -> None:
        """Stop when the body has ended, after ``seconds`` at the latest."""

    async def aclose(self) -> None:
        """Stop, and wait until it is done."""


class RequestSender(Protocol):
    """What the engine sends its requests with: `ConnectionPool`, `HttpxSender`, or a wrapper around one of them."""

    async def send(self, request: TransportRequest) -> HttpResponse:
        """Send a request and return the whole response; raises a `TransportError` or `InvalidResponse`."""

    async def open(self, request: TransportRequest) -> ResponseStream:
        """Send a request and return when the head of the response has arrived; raises like `send`."""

    async def aclose(self) -> None:
        """Close all connections."""
