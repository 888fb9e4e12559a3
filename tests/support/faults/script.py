"""Scripts: what a connection does, step by step.

Each step is a value with one method, `run`, which acts on a `Line`: the small interface that a connection offers to steps.
A script ends early, without an error, when the client leaves.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from typing import Protocol

from attrs import field, frozen

from tests.support.faults.request import Request
from tests.support.faults.response import Answer


class Line(Protocol):
    """A connection as a step sees it."""

    async def send(self, data: bytes) -> None:
        """Write bytes as one piece and wait until the socket has taken them."""

    async def flush(self) -> None:
        """Wait until the kernel has sent everything that was written."""

    async def sleep(self, seconds: float) -> None:
        """Wait on the server's own sleep."""

    async def read(self, enough: Callable[[bytearray], int]) -> bytes:
        """Take as many received bytes as `enough` says, once it says a number above 0."""

    async def read_request(self) -> None:
        """Wait for the next request, which becomes the one that `respond` answers."""

    async def respond(self, reply: Playable | None) -> None:
        """Answer the latest request with a reply, or as the server's default would."""

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Make a TLS connection of this one, as the server side."""

    def stop_reading(self) -> None:
        """Leave arriving bytes in the kernel, whose window then fills up."""

    def reset(self) -> None:
        """Send RST."""

    def half_close(self) -> None:
        """Send FIN and go on reading."""

    def close(self) -> None:
        """Send FIN and close the connection."""


class Step(Protocol):
    """One thing that a connection does."""

    async def run(self, line: Line, /) -> None:
        """Do it, or wait for it."""


def _steps(given: Iterable[Step]) -> tuple[Step, ...]:
    return tuple(given)


@frozen
class Script:
    """Steps in their order. After the last one the connection, if still open, serves requests as usual."""

    steps: tuple[Step, ...] = field(converter=_steps)

    async def run(self, line: Line) -> None:
        """Play all steps."""
        for step in self.steps:
            await step.run(line)

    @property
    def reads_at_once(self) -> bool:
        """Whether the connection may read from the socket before the first step."""
        first = self.steps[0] if self.steps else None
        return not (isinstance(first, StartTls) or (isinstance(first, Stall) and not first.reading))


Reply = bytes | Answer | Script
Responder = Callable[[Request], Reply]
Playable = Reply | Responder


@frozen
class Send:
    """Write these bytes in one piece: one segment, if the network allows."""

    data: bytes | Answer = field(repr=lambda data: f"{len(bytes(data))} bytes")

    async def run(self, line: Line) -> None:
        await line.send(bytes(self.data))


@frozen
class Drip:
    """Write bytes slowly: `size` at a time, `every` seconds."""

    data: bytes | Answer
    every: float
    size: int = 1

    async def run(self, line: Line) -> None:
        data = bytes(self.data)
        for start in range(0, len(data), self.size):
            await line.send(data[start : start + self.size])
            await line.sleep(self.every)


@frozen
class Wait:
    """Wait for an event, or for seconds on the server's sleep."""

    until: asyncio.Event | float

    async def run(self, line: Line) -> None:
        if isinstance(self.until, asyncio.Event):
            await self.until.wait()
        else:
            await line.sleep(self.until)


@frozen
class Signal:
    """Set an event, so that a test knows which steps are done."""

    event: asyncio.Event

    async def run(self, line: Line) -> None:
        self.event.set()


@frozen
class Repeat:
    """Play steps again and again; without a number of times, until the connection ends."""

    steps: tuple[Step, ...] = field(converter=_steps)
    times: int | None = None

    async def run(self, line: Line) -> None:
        played = 0
        while self.times is None or played < self.times:
            for step in self.steps:
                await step.run(line)
            await asyncio.sleep(0)  # a step need not wait for anything, and others must have their turn
            played += 1


@frozen
class ReadBytes:
    """Wait for a number of bytes and drop them."""

    count: int

    async def run(self, line: Line) -> None:
        await line.read(lambda buffer: self.count if len(buffer) >= self.count else 0)


@frozen
class ReadUntil:
    """Wait for a mark, such as the end of a header, and drop everything up to its end."""

    mark: bytes = b"\r\n\r\n"

    async def run(self, line: Line) -> None:
        await line.read(lambda buffer: buffer.find(self.mark) + len(self.mark) if self.mark in buffer else 0)


@frozen
class ReadRequest:
    """Wait for a whole request; it is recorded, and `Respond` answers it."""

    async def run(self, line: Line) -> None:
        await line.read_request()


@frozen
class Respond:
    """Answer the latest request: with this reply, or as the server's default does. Decided at this moment."""

    reply: Playable | None = None

    async def run(self, line: Line) -> None:
        await line.respond(self.reply)


@frozen
class StartTls:
    """Shake hands as a TLS server. As the first step of a connection nothing is read before it."""

    context: ssl.SSLContext

    async def run(self, line: Line) -> None:
        await line.start_tls(self.context)


@frozen
class Stall:
    """Do nothing until the client leaves; without reading, like a dead peer, until the server closes."""

    reading: bool = True

    async def run(self, line: Line) -> None:
        if not self.reading:
            line.stop_reading()
        await asyncio.get_running_loop().create_future()


@frozen
class HalfClose:
    """Send FIN after everything written, and go on reading. Under TLS this is a truncation: no close_notify."""

    async def run(self, line: Line) -> None:
        await line.flush()
        line.half_close()


@frozen
class Close:
    """Send FIN after everything written, and end the connection."""

    async def run(self, line: Line) -> None:
        await line.flush()
        line.close()


@frozen
class Reset:
    """Send RST: after everything written has left, or `at_once`."""

    at_once: bool = False

    async def run(self, line: Line) -> None:
        if not self.at_once:
            await line.flush()
        line.reset()


def reply_of(playable: Playable, request: Request) -> Reply:
    """Return the reply to a request: `playable` itself, or the reply that it returns as a function."""
    return playable if isinstance(playable, (bytes, Answer, Script)) else playable(request)


def cut(offset: int, end: Step, answer: Answer | Callable[[Request], Answer]) -> Responder:
    """Return a responder that sends the first `offset` bytes of an answer, then plays the end: `Reset()`, `Close()`."""

    def respond(request: Request) -> Script:
        whole = bytes(answer(request) if callable(answer) else answer)
        return Script([Send(whole[:offset]), end])

    return respond
