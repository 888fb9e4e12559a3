"""A body on its way out."""

from __future__ import annotations

import asyncio
from typing import Final

from llmopt.wire.protocol import Protocol

_AT_ONCE: Final = 64 * 1024
_PIECE: Final = 256 * 1024


class Upload:
    """The head and the body of one request, handed to a connection.

    A body that one or two writes carry is written at once; a longer one waits in here, piece by piece, and not
    a second time in the socket's buffer, while the answer is already listened for: a server may refuse it early.
    """

    def __init__(self, protocol: Protocol) -> None:
        self._protocol: Final = protocol
        self._task: asyncio.Task[None] | None = None

    def start(self, head: bytes, body: bytes | None, loop: asyncio.AbstractEventLoop) -> None:
        """Send, or begin to.

        Raises:
            OSError: the connection is gone.
        """
        transport = self._protocol.transport
        if transport is None:
            raise ConnectionResetError("the connection is gone")
        if body is None or len(body) <= _AT_ONCE:
            transport.write(head if body is None else head + body)
            return
        transport.write(head)
        if len(body) <= _PIECE:
            transport.write(body)
            return
        self._task = loop.create_task(self._pieces(body))

    async def _pieces(self, body: bytes) -> None:
        view = memoryview(body)
        for start in range(0, len(view), _PIECE):
            transport = self._protocol.transport
            if transport is None:
                return
            transport.write(view[start : start + _PIECE])
            await self._protocol.drained()

    @property
    def going(self) -> bool:
        """Whether part of the body has not been handed to the socket."""
        if self._task is not None and not self._task.done():
            return True
        transport = self._protocol.transport
        return transport is not None and transport.get_write_buffer_size() > 0

    def stop(self) -> None:
        """End it; what it failed of is known from the connection."""
        task = self._task
        if task is None:
            return
        task.cancel()
        if task.done() and not task.cancelled():
            task.exception()
