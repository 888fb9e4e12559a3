"""A body on its way out."""

from __future__ import annotations

import asyncio
from typing import Final

from llmopt.wire.protocol import Protocol

_AT_ONCE: Final = 64 * 1024
_PIECE: Final = 256 * 1024


def at_once(transport: asyncio.Transport, head: bytes, body: bytes | None) -> bool:
    """Write head and body, if one or two writes carry them; whether that is so."""
    if body is None or len(body) <= _AT_ONCE:
        transport.write(head if body is None else head + body)
        return True
    if len(body) <= _PIECE:
        transport.write(head)
        transport.write(body)
        return True
    return False


class Upload:
    """A long body, handed to a connection piece by piece.

    It waits in here and not a second time in the socket's buffer, while the answer is already listened for: a server
    may refuse it early.
    """

    def __init__(self, protocol: Protocol, body: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self._protocol: Final = protocol
        self._task: Final = loop.create_task(self._pieces(body))

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
        """Whether part of the body has not been handed to the transport."""
        return not self._task.done()

    def stop(self) -> None:
        """End it; what it failed of is known from the connection."""
        self._task.cancel()
        if self._task.done() and not self._task.cancelled():
            self._task.exception()
