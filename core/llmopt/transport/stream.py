"""An answer that is read while it comes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol, Self

from llmopt.transport.request import WireRequest
from llmopt.values.http import AttemptInfo, HttpResponse


class Carrier(Protocol):
    """Whatever carries an answer: an exchange on a connection of ours, or a visit to somebody else's transport."""

    status: int
    headers: Mapping[str, str]

    @property
    def info(self) -> AttemptInfo:
        """How the request travelled."""
        ...

    @property
    def unpacked(self) -> tuple[int, int] | None:
        """Bytes of the body so far as they travelled, and as what they stand for; None where it is not packed."""
        ...

    async def piece(self) -> bytes:
        """The next bytes of the body, unpacked, b"" at its end; a failure ends the exchange."""
        ...

    async def rest(self) -> bytes:
        """What remains of the body, of an error's at most 64 KiB."""
        ...

    def end(self) -> None:
        """Stop now."""

    def drain(self, seconds: float) -> None:
        """Stop when the answer has ended, at the latest in so many seconds."""

    async def aclose(self) -> None:
        """Stop, and wait until it is done."""


class WireStream:
    """The head of an answer, and its body piece by piece as an asynchronous iterator of bytes.

    Iterating raises the errors that reading can end in. Nothing is read ahead but what the socket's
    buffer holds. There is no time-out between pieces: idle clocks are the caller's.

    Attributes:
        status: HTTP status.
        headers: lower-case names; values of a repeated header are joined with ", ".
        info: how the request travelled.
        read: the next bytes of the body, unpacked; b"" at its end, which gives the connection back.
        rest: what remains of the body at once, of an error's at most 64 KiB.
    """

    def __init__(self, carrier: Carrier) -> None:
        self._carrier: Final = carrier
        self.status: Final = carrier.status
        self.headers: Final[Mapping[str, str]] = carrier.headers
        self.info: Final = carrier.info
        # The carrier's own: a wrapper would cost a coroutine for each piece.
        self.read: Final[Callable[[], Awaitable[bytes]]] = carrier.piece
        self.rest: Final[Callable[[], Awaitable[bytes]]] = carrier.rest

    @property
    def unpacked(self) -> tuple[int, int] | None:
        """Bytes of the body so far as they travelled, and as what they stand for; None where it is not packed."""
        return self._carrier.unpacked

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = await self.read()
        if not piece:
            raise StopAsyncIteration
        return piece

    def end(self) -> None:
        """Stop reading, without waiting. The connection is closed unless the answer was read to its end."""
        self._carrier.end()

    def drain(self, seconds: float) -> None:
        """Stop reading: nothing more is wanted. Does not wait.

        The connection is kept for the next request if the answer ends within so many seconds, else closed.
        """
        self._carrier.drain(seconds)

    async def aclose(self) -> None:
        """As `end`, and wait until it is done."""
        await self._carrier.aclose()

    def __repr__(self) -> str:
        return f"<WireStream {self.status}>"


class Wire(Protocol):
    """Carries a request out and its answer back."""

    async def send(self, request: WireRequest) -> HttpResponse:
        """The whole answer, or a `TransportError` or `InvalidResponse`."""
        ...

    async def open(self, request: WireRequest) -> WireStream:
        """The head of the answer and a way to its body; raises as `send`."""
        ...

    async def aclose(self) -> None:
        """Let every connection go."""
        ...
