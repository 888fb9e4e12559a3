"""A request whose answer is a stream: the same pipeline, whose attempts end with a first event.

Up to there a failure is like that of any other request: judged by status or by the event that tells it,
and tried again where that is worth it. From then on nothing is repeated. What the attempt holds (slot,
lease, permit, connection) goes over to the stream and is given back at its end, whichever that is.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, Literal

from llmopt.decoding.ndjson import Decoder
from llmopt.decoding.sse import SSEDecoder
from llmopt.engine.attempt import CANCELLED, OK, Held, explain
from llmopt.engine.endpoint import Fleet
from llmopt.engine.event_reader import EventReader, form_of
from llmopt.engine.pipeline import Pipeline, late
from llmopt.engine.request import Prepared, StreamRequest
from llmopt.engine.responses import error_of, judge
from llmopt.engine.telemetry import Telemetry
from llmopt.errors import (
    AttemptTimeout,
    DeadlineExceeded,
    LLMOptError,
    LocalRejection,
    StreamIdle,
    StreamInterrupted,
)
from llmopt.policies.clock import Clock, Deadline
from llmopt.policies.timeouts import IdleClocks
from llmopt.transport.stream import WireStream
from llmopt.transport.timers import Watch
from llmopt.values.calls import Settings
from llmopt.values.chat import ChatEvent, ChatReply, ToolCallPart
from llmopt.values.http import Failure, HttpResponse

# A streamed answer under way: read as it is wanted, and ended once, whichever way.

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


_CHARACTERS_PER_TOKEN: Final = 4


class StreamPipeline(Pipeline[LiveStream]):
    """One request for a stream, and all its attempts up to the first event.

    Args:
        fleet: the endpoints of the provider.
        request: what to send, of a `ChatCall` with ``stream``.
        clock: the time.
        telemetry: told of what happens.
    """

    def __init__(self, fleet: Fleet, request: StreamRequest, clock: Clock, telemetry: Telemetry) -> None:
        super().__init__(fleet, request, clock, telemetry)
        self._asked: Final = request
        self._began = clock.now()
        self._head: HttpResponse | None = None

    async def run(self) -> LiveStream:
        """The stream, with its first event read.

        Raises:
            LLMOptError: there is none; with provider, model, endpoint, request id and all attempts filled in.
        """
        self._began = self._clock.now()
        self._account.started(self._request.items, self._request.tokens)
        outcome = CANCELLED
        try:
            stream = await self._attempts()
            outcome = OK
        except LLMOptError as error:
            outcome = type(error).__name__
            raise
        else:
            return stream
        finally:
            if outcome != OK:
                self._over(outcome)

    async def _in_process(self) -> LiveStream:
        endpoint = self._endpoint
        self._check_deadline("before it began")
        settings = await endpoint.settings()
        held = Held(endpoint, self._call, 0)
        held.admitted(None, math.inf)
        return await self._send(1, held, self._prepare(endpoint, settings), settings)

    async def _send(self, number: int, held: Held, prepared: Prepared, settings: Settings) -> LiveStream:
        self._tried = (*self._tried, held.endpoint.config.index)
        self._account.sending(held.endpoint)
        self._head = None
        started = self._clock.now()
        try:
            stream = await self._open(held, prepared, settings)
        except LLMOptError as error:
            self._failed(number, held, settings, error, self._head, self._clock.now() - started)
            raise
        seconds = self._clock.now() - started
        if held.began(stream.head, settings, seconds):
            self._account.learned(held.endpoint)
        held.keep()
        self._fleet.took(held.endpoint, seconds)
        stream.on_end = partial(self._ended, stream, number, held, settings, started)
        return stream

    async def _open(self, held: Held, prepared: Prepared, settings: Settings) -> LiveStream:
        """Send, and wait for the first event."""
        endpoint, deadline = held.endpoint, self._request.deadline
        left = held.timeout if math.isfinite(held.timeout) else None
        started = self._clock.now()
        try:
            async with asyncio.timeout(deadline.remaining() if deadline.bounded else None):
                idle = None if left is None else max(left, endpoint.config.timeouts.idle)
                wire = await endpoint.wire.open(self._wire_request(endpoint, prepared, left, idle))
                try:
                    if left is not None:
                        left = max(0.0, left - (self._clock.now() - started))
                    return await self._first_event(wire, held, settings, left)
                except BaseException:
                    wire.end()
                    raise
        except TimeoutError:
            raise late("while waiting for the answer", "send", sent="maybe") from None

    async def _first_event(
        self, wire: WireStream, held: Held, settings: Settings, left: float | None
    ) -> LiveStream:
        try:
            async with asyncio.timeout(left):
                return await self._begun(wire, held, settings)
        except TimeoutError:
            if self._request.deadline.expired():
                raise
        raise AttemptTimeout(
            f"{held.endpoint.name} sent no first event within {held.timeout:g} s.",
            timeout=held.timeout,
            sent="maybe",
        )

    async def _begun(self, wire: WireStream, held: Held, settings: Settings) -> LiveStream:
        self._head = head = HttpResponse(status=wire.status, headers=wire.headers, info=wire.info)
        form = await form_of(wire)
        reader = self._reader(form.decoder or SSEDecoder(), held, settings)
        whole: ChatEvent | None = None
        if form.decoder is None:
            # An error, or a server that does not stream whatever it is asked.
            response = HttpResponse(status=head.status, headers=head.headers, body=form.body, info=head.info)
            reply: ChatReply = judge(held.endpoint.hooks, self._call, response, settings, self._asked.parse)
            whole = as_event(reply)
        elif form.first is not None:
            reader.feed(form.first)
        stream = LiveStream(
            wire,
            reader,
            head=head,
            idle=self._clocks(held),
            deadline=self._request.deadline,
            clock=self._clock,
            on_piece=partial(self._account.piece, held.endpoint) if self._account.on else None,
        )
        await stream.begin(whole)
        return stream

    def _reader(self, decoder: Decoder, held: Held, settings: Settings) -> EventReader:
        endpoint, call = held.endpoint, self._asked.call

        def judged(failure: Failure) -> LLMOptError:
            return error_of(endpoint.hooks.classify_error(failure, settings), failure, call, settings)

        return EventReader(
            decoder,
            endpoint.hooks.stream_parser(call, settings),
            judged,
            end=endpoint.config.stream_end,
            at_once=self._asked.buffer_size,
        )

    def _clocks(self, held: Held) -> IdleClocks:
        timeouts = held.endpoint.config.timeouts
        return IdleClocks(idle=timeouts.idle, content=timeouts.idle_content, first=held.timeout)

    def _ended(
        self,
        stream: LiveStream,
        number: int,
        held: Held,
        settings: Settings,
        started: float,
        outcome: Outcome,
    ) -> None:
        """The stream is over: settle what it cost, tell what it was like, and give everything back."""
        seconds = self._clock.now() - started
        tokens = self._spent(stream.reader)
        name = OK if outcome == "complete" else CANCELLED
        if isinstance(outcome, LLMOptError):
            name = type(outcome).__name__
            self._broke(stream.head, held, settings, outcome, seconds, tokens)
        elif outcome == "complete":
            held.completed(tokens)
        else:
            held.left(tokens)
        held.release()
        if stream.unpacked is not None:
            self._account.unpacked(held.endpoint, *stream.unpacked)
        usage = stream.reader.usage
        self._account.attempted(held.endpoint, number, name, stream.head, seconds, sent="yes", usage=usage)
        self._over(name)

    def _broke(
        self,
        head: HttpResponse,
        held: Held,
        settings: Settings,
        error: LLMOptError,
        seconds: float,
        tokens: int,
    ) -> None:
        # What it broke off for says more of the server than that it broke off.
        cause = error.__cause__ if isinstance(error.__cause__, LLMOptError) else error
        explain(cause, held.endpoint, self._call, head, seconds)
        error.retry_after = cause.retry_after
        self._note(error, held.endpoint, head, seconds)
        error.attempts = self._history
        held.broke(cause, settings, tokens)

    def _spent(self, reader: EventReader) -> int:
        """Tokens so far: as the server says, else as estimated from what was said."""
        if reader.usage is not None and reader.usage.total_tokens:
            return reader.usage.total_tokens
        return self._asked.prompt_tokens + reader.characters // _CHARACTERS_PER_TOKEN

    def _over(self, outcome: str) -> None:
        self._account.ended(self._endpoint, outcome, self._clock.now() - self._began)


def as_event(reply: ChatReply) -> ChatEvent:
    """A whole answer as the one event of a stream."""
    return ChatEvent(
        text=reply.text,
        reasoning=reply.reasoning,
        refusal=reply.refusal,
        tool_calls=tuple(
            ToolCallPart(index=index, id=call.id, name=call.name, arguments=call.arguments)
            for index, call in enumerate(reply.tool_calls)
        ),
        finish_reason=reply.finish_reason,
        usage=reply.usage,
        model=reply.model,
        id=reply.id,
        last=True,
        raw=reply.raw,
    )
