"""One request and its answer over somebody else's httpx transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import evolve

from llmopt.errors import ConfigError, InvalidResponse, LLMOptError
from llmopt.values.attempt import AttemptInfo
from llmopt.values.http import HttpResponse
from llmopt.wire.owned import Owned
from llmopt.wire.reader import Reader
from llmopt.wire.trip import Trip

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

INFO: Final = "attempt_info"
"""The key of the `AttemptInfo` in the extensions of a request and of its answer."""


class Visit(Reader):
    """From handing a request to a foreign transport to closing its answer.

    Args:
        transport: the transport.
        sending: the request as it takes it.
        trip: the request as we know it.
        translate: the error of llmopt for an exception that comes out of the transport, None for what
            is to pass.
        owned: keeper of the tasks that must go on.
        isolate: whether each step runs in such a task.

    Attributes:
        info: what the transport says of the attempt, if it does.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        sending: httpx.Request,
        trip: Trip,
        translate: Callable[[BaseException, Trip], LLMOptError | None],
        owned: Owned,
        *,
        isolate: bool,
    ) -> None:
        super().__init__(trip)
        # Who knows how far it is, behind a foreign transport.
        self.info = AttemptInfo()
        trip.phase = "send"
        self._transport: Final = transport
        self._sending: Final = sending
        self._translate: Final = translate
        self._owned: Final = owned
        self._isolate: Final = isolate
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._busy = False
        self._left = False

    async def open(self) -> None:
        """Send the request and take the head of the answer."""
        try:
            self._response = response = await self._transport.handle_async_request(self._sending)
        finally:
            self._learn(self._sending.extensions)
        self._learn(response.extensions)
        stream = response.stream
        if not hasattr(stream, "__aiter__"):
            raise ConfigError(
                f"{type(self._transport).__name__} answers with a body that is not an asynchronous stream."
            )
        self._pieces = aiter(stream)
        self.trip.phase = "read"
        self.status = self.trip.status = response.status_code
        self.headers = dict(response.headers)

    def read_slowly(self, seconds: float | None) -> None:
        """Allow so long between two pieces of the body, None for ever: transports look when they begin it."""
        self._sending.extensions["timeout"]["read"] = seconds

    async def raw(self) -> bytes:
        """The next bytes of the body as they came, b"" at its end."""
        while self._pieces is not None and not self._left:
            piece = await anext(self._pieces, None)
            if piece is None:
                break
            if piece:
                return piece
        return b""

    async def whole(self) -> HttpResponse:
        """The whole answer."""
        await self.open()
        body = await self.body()
        await self._end()
        info = self.info if self.packed is None else evolve(self.info, packed=self.packed)
        return HttpResponse(status=self.status, headers=self.headers, body=body, info=info)

    async def guard(self, step: Coroutine[Any, Any, T], seconds: float | None) -> T:
        """Take a step within a time; if it fails, leave, and raise llmopt's error for it."""
        try:
            async with asyncio.timeout(seconds):
                return await (self._owned.run(self._isolated(step)) if self._isolate else step)
        except (Exception, asyncio.CancelledError) as error:
            fault = self._translate(error, self.trip)
            await self.aclose()
            if fault is None:
                raise
        if self.info.sent != "maybe" and not isinstance(fault, InvalidResponse):
            fault.sent = self.info.sent
        raise fault

    async def piece(self) -> bytes:
        """The next bytes of the body, unpacked, b"" at its end."""
        return await self.guard(self.chunk(), None)

    async def rest(self) -> bytes:
        """What remains of the body, of an error's at most 64 KiB."""
        body = await self.guard(self.body(), None)
        await self.aclose()
        return body

    async def aclose(self) -> None:
        """Close the answer, at once or when the step under way has ended."""
        self._left = True
        if not self._busy and self._response is not None:
            await self._owned.run(self._end())

    def end(self) -> None:
        """As `aclose`, without waiting."""
        self._left = True
        if not self._busy and self._response is not None:
            self._owned.start(self._end())

    def drain(self, seconds: float) -> None:
        """Read what is left, for so many seconds, and close. Does not wait."""
        if self._response is not None:
            self._owned.start(self._drained(seconds))

    async def _drained(self, seconds: float) -> None:
        # Closing it unread would cost many a transport the connection.
        with suppress(Exception):
            async with asyncio.timeout(seconds):
                while await self.raw():
                    pass
        await self._end()

    async def _isolated(self, step: Coroutine[Any, Any, T]) -> T:
        if self._left:
            step.close()
            raise asyncio.CancelledError
        self._busy = True
        try:
            return await step
        finally:
            self._busy = False
            if self._left:
                await self._end()

    async def _end(self) -> None:
        response, self._response = self._response, None
        pieces, self._pieces = self._pieces, None
        # The answer is read or given up; a transport that fails in closing it has nothing to add.
        with suppress(Exception):
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()
        with suppress(Exception):
            if response is not None:
                await response.aclose()

    def _learn(self, extensions: Mapping[str, Any]) -> None:
        info = extensions.get(INFO)
        if isinstance(info, AttemptInfo):
            self.info = info
            self.trip.reused = info.reused
