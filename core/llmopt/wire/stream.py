"""An answer that is read while it comes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Self

from llmopt.values.attempt import AttemptInfo


class WireStream:
    """The head of an answer, and its body piece by piece as an asynchronous iterator of bytes.

    Iterating raises the errors that reading can end in. Nothing is read ahead but what the socket's
    buffer holds. There is no time-out between pieces: idle clocks are the caller's.

    Attributes:
        status: HTTP status.
        headers: lower-case names; values of a repeated header are joined with ", ".
        info: how the request travelled.
    """

    def __init__(
        self,
        *,
        status: int,
        headers: Mapping[str, str],
        info: AttemptInfo,
        read: Callable[[], Awaitable[bytes]],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        self.status = status
        self.headers = headers
        self.info = info
        self._read = read
        self._close = close

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._read()
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Stop reading. The connection is closed unless the answer was read to its end."""
        await self._close()

    def __repr__(self) -> str:
        return f"<WireStream {self.status}>"
