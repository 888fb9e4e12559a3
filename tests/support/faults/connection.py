"""One accepted connection: it reads requests, and plays replies or scripts, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from tests.support.faults.byte_stream import ConnectionGoneError, Wire
from tests.support.faults.request import MalformedRequestError, Message, Request, RequestReader
from tests.support.faults.response import Answer
from tests.support.faults.script import Close, Playable, Reply, Script, Send, reply_of


class Owner(Protocol):
    """What a connection needs from its server."""

    sleep: Callable[[float], Awaitable[None]]

    def opened(self, connection: Connection) -> Script | None:
        """Record a connection and return its first script."""

    def closed(self, connection: Connection) -> None:
        """Record the end of a connection."""

    def arrived(self, message: Message, connection: Connection) -> Request:
        """Record a request."""

    def malformed(self, problem: MalformedRequestError) -> None:
        """Record bytes that are no request."""

    def choose(self, request: Request) -> Reply:
        """Return the next reply."""

    def default_reply(self, request: Request) -> Reply:
        """Return the reply of the default."""

    def idle_seconds(self) -> float | None:
        """Return the idle seconds after which a connection is closed; None for never."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task that ends with the server at the latest."""

    def failed(self, problem: Exception) -> None:
        """Record an error in a responder or script: a bug in the test."""


class Connection(Wire):
    """A wire that speaks HTTP, and the `Line` that scripts act on. `served` counts its requests."""

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self.number = 0  # its owner numbers it
        self.served = 0
        self._owner = owner
        self._reader = RequestReader(self.buffer)
        self._request: Request | None = None
        self._script: asyncio.Task[None] | None = None
        self._idle: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "gone" if self.gone else "busy" if self.busy else "idle"
        return f"<connection {self.number}: {state}, {self.served} requests, {self.received} bytes received>"

    @property
    def busy(self) -> bool:
        """Whether a script is playing or part of a request has arrived."""
        return self._script is not None or bool(self.buffer) or self._reader.within

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start with the script that the server has for new connections, if any."""
        super().connection_made(transport)
        script = self._owner.opened(self)
        if script is not None:
            if not script.reads_at_once:
                self.stop_reading()
            self._play(script)

    def data_received(self, data: bytes) -> None:
        """Hand bytes to the script that is playing, or serve the requests they complete."""
        super().data_received(data)
        self._stop_idling()
        self._serve()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the script and report the end to the server, once."""
        if self.gone:
            return
        super().connection_lost(exc)
        self._stop_idling()
        if self._script is not None and self._script is not asyncio.current_task():
            self._script.cancel()
        self._owner.closed(self)

    # Requests and replies.

    def _serve(self) -> None:
        # While a script plays the bytes are its own; what it leaves is served when it has ended.
        while self._script is None and not self.ending:
            try:
                message = self._reader.next()
            except MalformedRequestError as problem:
                self._reject(problem)
                return
            if message is None:
                return
            self._arrived(message)
            self._answer()

    def _arrived(self, message: Message) -> None:
        self.served += 1
        self._request = self._owner.arrived(message, self)

    def _answer(self) -> None:
        assert self._request is not None
        try:
            reply = self._owner.choose(self._request)
        except Exception as problem:  # a responder's bug must fail the test, not the event loop
            self._owner.failed(problem)
            self.abort()
            return
        # The way without a task is what serves ten thousand plain requests at little cost.
        if isinstance(reply, Script) or self.full or _closes(reply):
            self._play(_as_script(reply))
        else:
            self.write(bytes(reply))
            self._start_idling()

    def _reject(self, problem: MalformedRequestError) -> None:
        self._owner.malformed(problem)
        self.buffer.clear()
        self._play(_as_script(Answer(400, str(problem).encode(), [("connection", "close")])))

    def _play(self, script: Script) -> None:
        self._script = self._owner.spawn(self._run(script))

    async def _run(self, script: Script) -> None:
        try:
            await script.run(self)
        except ConnectionGoneError:
            pass
        except Exception as problem:  # as above: a bug in the test's own script
            self._owner.failed(problem)
            self.abort()
        self._script = None
        if not self.ending:
            self.resume_reading()
            self._start_idling()
            self._serve()

    # The methods of `Line` that a `Wire` does not have.

    async def sleep(self, seconds: float) -> None:
        """Wait on the server's sleep."""
        await self._owner.sleep(seconds)

    async def read_request(self) -> None:
        """Wait for a request and record it."""
        while (message := self._reader.next()) is None:
            await self.wait()
        self._arrived(message)

    async def respond(self, reply: Playable | None) -> None:
        """Play the reply, or the default's, to the latest request."""
        assert self._request is not None, "Respond needs a request: put ReadRequest before it"
        default = self._owner.default_reply
        await _as_script(reply_of(default if reply is None else reply, self._request)).run(self)

    # What the server may do.

    def drop(self, *, reset: bool = False) -> None:
        """Close at once, without a wait."""
        with contextlib.suppress(ConnectionGoneError):
            self.reset() if reset else self.close()

    # Closing after idleness.

    def _start_idling(self) -> None:
        seconds = self._owner.idle_seconds()
        if seconds is not None and not self.busy:
            self._idle = self._owner.spawn(self._close_idle(seconds))

    async def _close_idle(self, seconds: float) -> None:
        await self._owner.sleep(seconds)
        self._idle = None
        self.drop()

    def _stop_idling(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None


def _closes(reply: Reply) -> bool:
    return isinstance(reply, Answer) and reply.closes


def _as_script(reply: Reply) -> Script:
    if isinstance(reply, Script):
        return reply
    return Script([Send(reply), Close()] if _closes(reply) else [Send(reply)])
