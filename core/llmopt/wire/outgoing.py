"""A request as aiohttp sends it."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from aiohttp import ClientRequest, hdrs
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from multidict import CIMultiDict

from llmopt.wire.body import ACCEPT_ENCODING
from llmopt.wire.target import Target
from llmopt.wire.trip import Trip

_PIECE: Final = 256 * 1024


class Outgoing(ClientRequest):
    """One request on its way; ``trip`` says how far it has come."""

    DEFAULT_HEADERS: ClassVar[dict[Any, str]] = {  # type: ignore[misc] # aiohttp's is the same without ClassVar
        hdrs.ACCEPT: "*/*",
        hdrs.ACCEPT_ENCODING: ACCEPT_ENCODING,
        hdrs.USER_AGENT: "llmopt",
    }

    trip: Trip

    @property
    def uploading(self) -> bool:
        """Whether part of the body has not been handed to the socket."""
        return self._writer is not None and not self._writer.done()

    def stop(self) -> None:
        """End the upload; what it failed of is known from the connection."""
        writer = self._writer
        self.terminate()
        if writer is not None and writer.done() and not writer.cancelled():
            writer.exception()


class _Bytes(Payload):
    """A body of bytes. aiohttp's own warns of those over a mebibyte, as every batch of texts can be."""

    _default_content_type = "application/json"

    def __init__(self, value: bytes) -> None:
        super().__init__(value)
        self._size = len(value)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Piece by piece, so that a long body waits in here and not a second time in the socket's buffer."""
        value = self._value
        if len(value) <= _PIECE:
            await writer.write(value)
            return
        view = memoryview(value)
        for start in range(0, len(view), _PIECE):
            await writer.write(view[start : start + _PIECE])


def outgoing(trip: Trip, target: Target, loop: Any) -> Outgoing:
    """The aiohttp request for a trip.

    Raises:
        ValueError: the method or a header cannot be sent.
    """
    request, proxy = trip.request, target.proxy
    headers = request.headers
    if not (all(map(str.isascii, headers)) and all(map(str.isascii, headers.values()))):
        # aiohttp would send UTF-8, and leave out what has none.
        raise ValueError("a header is not ASCII")
    proxy_headers = None
    if proxy is not None and proxy.authorization is not None:
        credentials = {"proxy-authorization": proxy.authorization}
        if target.tunnelled:
            # A fresh one each time: aiohttp adds to it after it has hashed it.
            proxy_headers = CIMultiDict(credentials)
        else:
            headers = {**headers, **credentials}
    made = Outgoing(
        request.method,
        target.url,
        headers=headers,
        data=None if request.body is None else _Bytes(request.body),
        loop=loop,
        proxy=None if proxy is None else target.proxy_url,
        proxy_headers=proxy_headers,
    )
    made.trip = trip
    return made
