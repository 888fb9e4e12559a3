"""A streamed answer under way: read as it is wanted, and ended once, whichever way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal

from llmopt.engine.event_reader import EventReader
from llmopt.engine.watch import Watch
from llmopt.errors import DeadlineExceeded, LLMOptError, LocalRejection, StreamIdle, StreamInterrupted
from llmopt.policies.clock import Clock
from llmopt.policies.deadline import Deadline
from llmopt.policies.idle import IdleClocks
from llmopt.values.chat import ChatEvent
from llmopt.values.http import HttpResponse
from llmopt.wire.stream import WireStream

_DRAIN_S: Final = 0.1

Outcome = LLMOptError | Literal["complete", "left"]
"""How a stream ended: as it should, because its reader had enough, or in an error."""

OnPiece = Callable[[int, int, float], None]
"""Told of each piece of an answer: its bytes, the events that it completed, the seconds that were waited for it."""


class LiveStream:
    """One answer, whose head has come.

    Nothing is read ahead: bytes that nobody asks for stay in the socket, whose buffers then fill.

    Args:
        wire: the answer.
        reader: makes events of its bytes.
        head: status and headers of the answer.
        idle: how long it may be silent.
        deadline: of the caller's whole call.
        clock: the time.
        on_piece: told of each piece, None for nobody.

    Attributes:
        reader, head: see there.
        on_end: told once how it ended, at the moment it does, before anything is raised for it. Must not await.
        ended: whether it has.
    """

    def __init__(
        self,
        wire: WireStream,
        reader: EventReader,
        *,
        head: HttpResponse,
        idle: IdleClocks,
        deadline: Deadline,
        clock: Clock,
        on_piece: OnPiece | None,
    ) -> None:
        self.reader: Final = reader
        self.head: Final = head
        self.on_end: Callable[[Outcome], None] | None = None
        self.ended = False
        self._wire: Final = wire
        self._idle: Final = idle
        self._deadline: Final = deadline
        self._clock: Final = clock
        self._on_piece: Final = on_piece
        self._watch: Final = Watch()
        self._loop: Final = asyncio.get_running_loop()
        self._pid: Final = os.getpid()
        self._first: list[ChatEvent] = []

    @property
    def unpacked(self) -> tuple[int, int] | None:
        """Bytes of the answer so far as they travelled, and as what they stand for; None where it is not packed."""
        return self._wire.unpacked

    async def begin(self, whole: ChatEvent | None = None) -> None:
        """Wait for the first event; whoever calls it bounds the time, and ends the stream's wire on an error.

        Args:
            whole: the answer, where it came in one piece.

        Raises:
            LLMOptError: there will be no event.
        """
        if whole is not None:
            self.reader.note(whole)
            self._first = [whole]
            return
        while not (events := self.reader.take()):
            if self.reader.fault is not None:
                raise self.reader.fault
            if not self.reader.pending:
                self.reader.feed(await self._wire.read())
        self._first = events

    async def read(self) -> list[ChatEvent]:
        """The next events, as soon as there are some; [] once the answer is complete.

        Raises:
            StreamInterrupted: it broke off; ``__cause__`` is what an answer in one piece would have raised.
            StreamIdle: nothing came for too long.
            DeadlineExceeded, ClientClosed: so it was decided on this side.
        """
        if self._first:
            events, self._first = self._first, []
            self._note()
            return events
        try:
            while not (events := self.reader.take()) and not self.reader.over:
                if self.reader.pending:
                    # Many events with nothing in them: others have their turn as well.
                    await asyncio.sleep(0)
                else:
                    await self._more()
            if not events and self.reader.fault is not None:
                raise self.reader.fault
        except LLMOptError as error:
            broken = _broken(error)
            self._end(broken)
            raise broken from broken.__cause__
        except BaseException:
            self._end("left")
            raise
        self._note()
        return events

    def _note(self) -> None:
        """Take note of what was just read."""
        if self.reader.spoke:
            self.reader.spoke = False
            self._idle.spoke()
        if self.reader.complete and not self.ended:
            # What is left of the body is its formal end, at best: the reader need not wait for that.
            self._wire.drain(_DRAIN_S)
            self._end("complete")

    async def _more(self) -> None:
        """Wait for the next piece of the body."""
        started = self._clock.now()
        self._watch.begin(min(self._idle.bound, self._deadline.remaining()))
        try:
            piece = await self._wire.read()
        except asyncio.CancelledError:
            if not self._watch.broke_off():
                raise
            piece = None
        finally:
            self._watch.end()
        seconds = self._clock.now() - started
        if piece is None:
            raise self._late()
        self._idle.waited(seconds)
        self.reader.feed(piece)
        if self._on_piece is not None:
            self._on_piece(len(piece), self.reader.pending, seconds)

    def _late(self) -> LLMOptError:
        if self._deadline.expired():
            return DeadlineExceeded("the deadline passed in the middle of the answer.", phase="read")
        return StreamIdle(f"the stream fell silent: {self._idle.ran_out()}.", sent="yes")

    @property
    def held(self) -> bool:
        """Whether it holds anything of this process's."""
        return not self.ended and self._pid == os.getpid()

    async def aclose(self) -> None:
        """Stop, if it is not over: the rest is not wanted."""
        if not self.ended:
            self._end("left")
            await self._wire.aclose()

    def abandon(self) -> None:
        """As `aclose`, soon, from any thread: for a stream that nobody closes.

        The garbage collector may call this in the middle of anything, so nothing is done here that takes a
        lock or looks at anything shared. When the loop is closed there is no later time: what was estimated
        stays settled as it is, a line of that loop has nobody in it, and a circuit helps itself.
        """
        if not self.held:
            return
        with suppress(RuntimeError):
            if self._loop.is_closed():
                self.ended = True
                self._wire.end()
            else:
                self._loop.call_soon_threadsafe(self._end, "left")

    def _end(self, outcome: Outcome) -> None:
        if self.ended:
            return
        self._watch.close()
        if outcome != "complete":
            self._wire.end()
        self._settle(outcome)

    def _settle(self, outcome: Outcome) -> None:
        self.ended = True
        if self.on_end is not None:
            self.on_end(outcome)


def _broken(cause: LLMOptError) -> LLMOptError:
    if isinstance(cause, (LocalRejection, StreamIdle)):
        return cause
    error = StreamInterrupted(f"the stream broke off: {cause.message}", sent="yes")
    error.__cause__ = cause
    return error
