"""A response that is read while it arrives, and the interface of what sends requests.

No HTTP library. Reading awaits the bytes that the subclass gets from the network, or from the user's httpx transport;
`close` and `drain` do not wait. Bodies are decompressed on the event loop, also large ones, which delays other calls
there. A `ResponseStream` belongs to one request and has no lock: one task may read at a time. It reads no clock.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any, Final, Protocol, TypeVar

from llmopt.transport.body import ContentDecoder
from llmopt.transport.request import RequestState, TransportRequest
from llmopt.values.http import AttemptInfo, HttpResponse

_T = TypeVar("_T")
_SUCCESS: Final = range(200, 300)
_UNKNOWN: Final = AttemptInfo()


class ResponseStream:
    """A response whose body is read in chunks or as a whole; the base of the exchanges, which know the transport.

    Nothing is read ahead except what fits into the socket's buffer. There is no timeout between chunks: the caller has
    its own. The caller must close the stream.

    Attributes:
        state: how far the attempt has got.
        status: HTTP status, 0 before the head of the response was read.
        headers: headers of the response, with lower-case names; values of a repeated header are joined with ", ".
        info: how the request was sent, as far as that is known.
    """

    def __init__(self, state: RequestState) -> None:
        self.state: Final = state
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.info = _UNKNOWN
        self._decoder: ContentDecoder | None = None

    async def read(self) -> bytes:
        """Return the next bytes of the body, decoded; b"" at its end, after which the connection is free again."""
        return await self.run_step(self.read_decoded())

    async def read_remaining(self) -> bytes:
        """Return the rest of the body, of an error at most 64 KiB, and close."""
        body = await self.run_step(self.read_body())
        await self.aclose()
        return body

    def close(self) -> None:
        """Stop reading, without waiting. The connection is closed unless the body was read to its end."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Like `close`, and wait until it is done."""
        self.close()

    def drain(self, seconds: float) -> None:
        """Discard the rest of the body in the background, without waiting.

        The connection is kept for the next request if the body ends within ``seconds``, else it is closed.
        """
        raise NotImplementedError

    async def run_step(self, step: Coroutine[Any, Any, _T]) -> _T:
        """Await a step of this exchange; if it fails, close the exchange and raise llmopt's error for it."""
        raise NotImplementedError

    async def read_raw(self) -> bytes:
        """Return the next bytes of the body as received, b"" at its end."""
        raise NotImplementedError

    async def read_decoded(self) -> bytes:
        """Return the next bytes of the body, decoded, b"" at its end."""
        decoder = self._decoder = self._decoder or self._new_decoder()
        while not decoder.stopped:
            data = await self.read_raw()
            if not data:
                decoder.finish()
                break
            if chunk := decoder.decode(data):
                return chunk
        return b""

    async def read_body(self) -> bytes:
        """Return the whole body, decoded."""
        self._decoder = self._new_decoder()
        chunks = []
        while chunk := await self.read_decoded():
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    @property
    def compressed_size(self) -> int | None:
        """Bytes received of a compressed body, None for an uncompressed one."""
        return None if self._decoder is None else self._decoder.compressed_size

    @property
    def body_sizes(self) -> tuple[int, int] | None:
        """Bytes of the body so far as received, and after decompression; None for an uncompressed body."""
        decoder = self._decoder
        if decoder is None or decoder.compressed_size is None:
            return None
        return decoder.compressed_size, decoder.decoded_size

    def _new_decoder(self) -> ContentDecoder:
        return new_decoder(self.status, self.headers, self.state.request)


def new_decoder(status: int, headers: Mapping[str, str], request: TransportRequest) -> ContentDecoder:
    """Return the decoder for the body of a response: that of an error may be cut or damaged."""
    return ContentDecoder(headers.get("content-encoding"), request.max_body, truncate=status not in _SUCCESS)


class RequestSender(Protocol):
    """What the engine sends its requests with: `ConnectionPool`, `HttpxSender`, or a wrapper around one of them."""

    async def send(self, request: TransportRequest) -> HttpResponse:
        """Send a request and return the whole response; raises a `TransportError` or `InvalidResponse`."""

    async def open(self, request: TransportRequest) -> ResponseStream:
        """Send a request and return when the head of the response has arrived; raises like `send`."""

    async def aclose(self) -> None:
        """Close all connections."""
