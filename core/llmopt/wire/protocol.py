"""One connection, as aiohttp's protocol with what it does not tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import ClientPayloadError, StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage

from llmopt.wire.sockets import watch

_BUFFER: Final = 256 * 1024
_SWITCHING: Final = 101
_FINAL: Final = 200


class Protocol(ResponseHandler):
    """A connection that knows whether it was used before and whether its peer has spoken out of turn.

    Attributes:
        served: how many requests it has carried to their end.
        heard: whether a byte came since the present request began.
        broken: how the connection was lost, None while it stands or after a clean end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.served = 0
        self.heard = False
        self.broken: BaseException | None = None
        self._readable: Callable[[], bool] = bool

    def begin(self, method: str) -> None:
        """Make ready for the answer to a new request."""
        self.heard = False
        # No read time-out: aiohttp's also kills an upload in progress, and the attempt has its own.
        self.set_response_params(
            skip_payload=method == "HEAD", read_until_eof=True, auto_decompress=False, read_bufsize=_BUFFER
        )

    async def answer(self) -> tuple[RawResponseMessage, StreamReader]:
        """The head of the answer, interim answers left out, and its body."""
        while True:
            message, payload = await self.read()
            if message.code >= _FINAL or message.code == _SWITCHING:
                return message, payload

    def usable(self) -> bool:
        """Whether an idle connection may carry another request.

        Bytes that came unasked would be taken for the next answer; those that the loop has not read
        yet are found by asking the socket, which also finds a connection that the server has closed.
        """
        return self.is_connected() and not self.should_close and not self._readable()

    @property
    def should_close(self) -> bool:
        """Whether the connection cannot be kept: unread, broken, or past its answer's end."""
        return super().should_close or self._overrun()

    def _overrun(self) -> bool:
        """Whether the parser has swallowed the beginning of an answer to no request."""
        if self._parser is None:
            return False
        try:
            return self._parser.feed_eof() is not None
        except Exception:  # noqa: BLE001 - whatever the parser dislikes, it was not nothing
            return True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Learn the socket, to ask it later whether something lies there."""
        super().connection_made(transport)
        opened = transport.get_extra_info("socket")
        if opened is not None:
            self._readable = watch(opened.fileno())

    def data_received(self, data: bytes) -> None:
        """Note that the peer has spoken."""
        self.heard = True
        super().data_received(data)
        # aiohttp tells nobody of a malformed chunk that comes after the head of its answer was read.
        if self._exception is not None:
            self._break(self._exception)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note how it ended, and end the answer with it."""
        self.broken = exc
        # aiohttp takes a reset for the regular end of a body that has no length.
        if exc is not None:
            self._break(ClientPayloadError())
        super().connection_lost(exc)

    def abort(self) -> None:
        """Break off, and tell whoever is waiting for more of the answer, of whom aiohttp lets go."""
        self._break(ClientPayloadError())
        super().abort()

    def _break(self, error: BaseException) -> None:
        payload = self._payload
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(error)
