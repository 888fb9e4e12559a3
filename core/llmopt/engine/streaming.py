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
from llmopt.engine.attempt import CANCELLED, OK, AttemptScope, add_context
from llmopt.engine.endpoint import EndpointGroup
from llmopt.engine.event_reader import EventReader, detect_stream_format
from llmopt.engine.pipeline import Pipeline, deadline_error
from llmopt.engine.request import EncodedRequest, StreamRequest
from llmopt.engine.responses import error_from_verdict, parse_or_raise
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
from llmopt.policies.timeouts import StreamTimeouts
from llmopt.transport.stream import ResponseStream
from llmopt.transport.timers import StreamTimer
from llmopt.values.calls import Settings
from llmopt.values.chat import ChatEvent, ChatReply, ToolCallPart
from llmopt.values.http import Failure, HttpResponse

# A streamed answer under way: read as it is wanted, and ended once, whichever way.

_DRAIN_S: Final = 0.1
Outcome = LLMOptError | Literal["complete", "abandoned"]
"""How a stream ended: as it should, because its reader had enough, or in an error."""
OnChunk = Callable[[int, int, float], None]
"""Told of each piece of an answer: its bytes, the events that it completed, the seconds that were waited for it."""


class LiveStream:
    """One answer, whose head has come.

    Nothing is read ahead: bytes that nobody asks for stay in the socket, whose buffers then fill.

    Args:
        response_stream: the answer.
        reader: makes events of its bytes.
        head: status and headers of the answer.
        idle: how long it may be silent.
        deadline: of the caller's whole call.
        clock: the time.
        on_chunk: told of each piece, None for nobody.

    Attributes:
        reader, head: see there.
        on_end: told once how it ended, at the moment it does, before anything is raised for it. Must not await.
        ended: whether it has.
    """

    def __init__(
        self,
        response_stream: ResponseStream,
        reader: EventReader,
        *,
        head: HttpResponse,
        idle: StreamTimeouts,
        deadline: Deadline,
        clock: Clock,
        on_chunk: OnChunk | None,
    ) -> None:
        self.reader: Final = reader
        self.head: Final = head
        self.on_end: Callable[[Outcome], None] | None = None
        self.ended = False
        self._response: Final = response_stream
        self._idle: Final = idle
        self._deadline: Final = deadline
        self._clock: Final = clock
        self._on_chunk: Final = on_chunk
        self._timer: Final = StreamTimer()
        self._loop: Final = asyncio.get_running_loop()
        self._pid: Final = os.getpid()
        self._first: list[ChatEvent] = []

    @property
    def decoded_sizes(self) -> tuple[int, int] | None:
        """Bytes of the answer so far as they travelled, and as what they stand for; None where it is not packed."""
        return self._response.body_sizes

    async def read_first(self, single_event: ChatEvent | None = None) -> None:
        """Wait for the first event; whoever calls it bounds the time, and closes the stream's response on an error.

        Args:
            single_event: the answer, where it came in one piece.

        Raises:
            LLMOptError: there will be no event.
        """
        if single_event is not None:
            self.reader.record(single_event)
            self._first = [single_event]
            return
        while not (events := self.reader.take()):
            if self.reader.fault is not None:
                raise self.reader.fault
            if not self.reader.pending:
                self.reader.feed(await self._response.read())
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
            self._after_read()
            return events
        try:
            while not (events := self.reader.take()) and not self.reader.finished:
                if self.reader.pending:
                    # Many events with nothing in them: others have their turn as well.
                    await asyncio.sleep(0)
                else:
                    await self._read_chunk()
            if not events and self.reader.fault is not None:
                raise self.reader.fault
        except LLMOptError as error:
            broken = _interrupted(error)
            self._end(broken)
            raise broken from broken.__cause__
        except BaseException:
            self._end("abandoned")
            raise
        self._after_read()
        return events

    def _after_read(self) -> None:
        """Take note of what was just read."""
        if self.reader.new_content:
            self.reader.new_content = False
            self._idle.content_received()
        if self.reader.complete and not self.ended:
            # What is left of the body is its formal end, at best: the reader need not wait for that.
            self._response.drain(_DRAIN_S)
            self._end("complete")

    async def _read_chunk(self) -> None:
        """Wait for the next piece of the body."""
        started = self._clock.now()
        self._timer.start(min(self._idle.read_timeout, self._deadline.remaining()))
        try:
            chunk = await self._response.read()
        except asyncio.CancelledError:
            if not self._timer.uncancel_if_expired():
                raise
            chunk = None
        finally:
            self._timer.stop()
        seconds = self._clock.now() - started
        if chunk is None:
            raise self._timeout_error()
        self._idle.bytes_received(seconds)
        self.reader.feed(chunk)
        if self._on_chunk is not None:
            self._on_chunk(len(chunk), self.reader.pending, seconds)

    def _timeout_error(self) -> LLMOptError:
        if self._deadline.expired():
            return DeadlineExceeded("the deadline passed in the middle of the answer.", phase="read")
        return StreamIdle(f"the stream fell silent: {self._idle.describe()}.", sent="yes")

    @property
    def holds_connection(self) -> bool:
        """Whether it holds anything of this process's."""
        return not self.ended and self._pid == os.getpid()

    async def aclose(self) -> None:
        """Stop, if it is not over: the rest is not wanted."""
        if not self.ended:
            self._end("abandoned")
            await self._response.aclose()

    def close_soon(self) -> None:
        """As `aclose`, soon, from any thread: for a stream that nobody closes.

        The garbage collector may call this in the middle of anything, so nothing is done here that takes a
        lock or looks at anything shared. When the loop is closed there is no later time: what was estimated
        stays settled as it is, a line of that loop has nobody in it, and a circuit helps itself.
        """
        if not self.holds_connection:
            return
        with suppress(RuntimeError):
            if self._loop.is_closed():
                self.ended = True
                self._response.close()
            else:
                self._loop.call_soon_threadsafe(self._end, "abandoned")

    def _end(self, outcome: Outcome) -> None:
        if self.ended:
            return
        self._timer.close()
        if outcome != "complete":
            self._response.close()
        self._settle(outcome)

    def _settle(self, outcome: Outcome) -> None:
        self.ended = True
        if self.on_end is not None:
            self.on_end(outcome)


def _interrupted(cause: LLMOptError) -> LLMOptError:
    if isinstance(cause, (LocalRejection, StreamIdle)):
        return cause
    error = StreamInterrupted(f"the stream broke off: {cause.message}", sent="yes")
    error.__cause__ = cause
    return error


_CHARACTERS_PER_TOKEN: Final = 4


class StreamPipeline(Pipeline[LiveStream]):
    """One request for a stream, and all its attempts up to the first event.

    Args:
        group: the endpoints of the provider.
        request: what to send, of a `ChatCall` with ``stream``.
        clock: the time.
        telemetry: told of what happens.
    """

    def __init__(
        self, group: EndpointGroup, request: StreamRequest, clock: Clock, telemetry: Telemetry
    ) -> None:
        super().__init__(group, request, clock, telemetry)
        self._stream_request: Final = request
        self._started_at = clock.now()
        self._head: HttpResponse | None = None

    async def run(self) -> LiveStream:
        """The stream, with its first event read.

        Raises:
            LLMOptError: there is none; with provider, model, endpoint, request id and all attempts filled in.
        """
        self._started_at = self._clock.now()
        self._recorder.request_started(self._request.items, self._request.tokens)
        outcome = CANCELLED
        try:
            stream = await self._run_attempts()
            outcome = OK
        except LLMOptError as error:
            outcome = type(error).__name__
            raise
        else:
            return stream
        finally:
            if outcome != OK:
                self._request_ended(outcome)

    async def _in_process(self) -> LiveStream:
        endpoint = self._endpoint
        if self._request.deadline.expired():
            raise deadline_error("before it began", "queue")
        settings = await endpoint.settings()
        scope = AttemptScope(endpoint, self._call, 0)
        scope.begin(None, math.inf)
        return await self._send(1, scope, self._build_request(endpoint, settings), settings)

    async def _send(
        self, number: int, scope: AttemptScope, encoded: EncodedRequest, settings: Settings
    ) -> LiveStream:
        self._tried = (*self._tried, scope.endpoint.config.index)
        self._recorder.attempt_started(scope.endpoint)
        self._head = None
        started = self._clock.now()
        try:
            stream = await self._open(scope, encoded, settings)
        except LLMOptError as error:
            self._record_failure(number, scope, settings, error, self._head, self._clock.now() - started)
            raise
        seconds = self._clock.now() - started
        if scope.stream_started(stream.head, settings, seconds):
            self._recorder.limits_learned(scope.endpoint)
        scope.detach()
        self._group.record_latency(scope.endpoint, seconds)
        stream.on_end = partial(self._stream_ended, stream, number, scope, settings, started)
        return stream

    async def _open(self, scope: AttemptScope, encoded: EncodedRequest, settings: Settings) -> LiveStream:
        """Send, and wait for the first event."""
        endpoint, deadline = scope.endpoint, self._request.deadline
        left = scope.timeout if math.isfinite(scope.timeout) else None
        started = self._clock.now()
        try:
            async with asyncio.timeout(deadline.remaining() if deadline.bounded else None):
                idle = None if left is None else max(left, endpoint.config.timeouts.idle)
                response_stream = await endpoint.transport.open(
                    self._transport_request(endpoint, encoded, left, idle)
                )
                try:
                    if left is not None:
                        left = max(0.0, left - (self._clock.now() - started))
                    return await self._first_event(response_stream, scope, settings, left)
                except BaseException:
                    response_stream.close()
                    raise
        except TimeoutError:
            raise deadline_error("while waiting for the response", "send", sent="maybe") from None

    async def _first_event(
        self, response_stream: ResponseStream, scope: AttemptScope, settings: Settings, left: float | None
    ) -> LiveStream:
        try:
            async with asyncio.timeout(left):
                return await self._start_stream(response_stream, scope, settings)
        except TimeoutError:
            if self._request.deadline.expired():
                raise
        raise AttemptTimeout(
            f"{scope.endpoint.name} sent no first event within {scope.timeout:g} s.",
            timeout=scope.timeout,
            sent="maybe",
        )

    async def _start_stream(
        self, response_stream: ResponseStream, scope: AttemptScope, settings: Settings
    ) -> LiveStream:
        self._head = head = HttpResponse(
            status=response_stream.status, headers=response_stream.headers, info=response_stream.info
        )
        stream_format = await detect_stream_format(response_stream)
        reader = self._reader(stream_format.decoder or SSEDecoder(), scope, settings)
        single_event: ChatEvent | None = None
        if stream_format.decoder is None:
            # An error, or a server that does not stream whatever it is asked.
            response = HttpResponse(
                status=head.status, headers=head.headers, body=stream_format.body, info=head.info
            )
            reply: ChatReply = parse_or_raise(
                scope.endpoint.hooks, self._call, response, settings, self._stream_request.parse
            )
            single_event = as_event(reply)
        elif stream_format.first_bytes is not None:
            reader.feed(stream_format.first_bytes)
        stream = LiveStream(
            response_stream,
            reader,
            head=head,
            idle=self._idle_timeouts(scope),
            deadline=self._request.deadline,
            clock=self._clock,
            on_chunk=partial(self._recorder.stream_chunk, scope.endpoint) if self._recorder.enabled else None,
        )
        await stream.read_first(single_event)
        return stream

    def _reader(self, decoder: Decoder, scope: AttemptScope, settings: Settings) -> EventReader:
        endpoint, call = scope.endpoint, self._stream_request.call

        def judged(failure: Failure) -> LLMOptError:
            return error_from_verdict(
                endpoint.hooks.classify_error(failure, settings), failure, call, settings
            )

        return EventReader(
            decoder,
            endpoint.hooks.stream_parser(call, settings),
            judged,
            end=endpoint.config.stream_end,
            max_events=self._stream_request.buffer_size,
        )

    def _idle_timeouts(self, scope: AttemptScope) -> StreamTimeouts:
        timeouts = scope.endpoint.config.timeouts
        return StreamTimeouts(idle=timeouts.idle, content=timeouts.idle_content, first=scope.timeout)

    def _stream_ended(
        self,
        stream: LiveStream,
        number: int,
        scope: AttemptScope,
        settings: Settings,
        started: float,
        outcome: Outcome,
    ) -> None:
        """The stream is over: settle what it cost, tell what it was like, and give everything back."""
        seconds = self._clock.now() - started
        tokens = self._tokens_used(stream.reader)
        name = OK if outcome == "complete" else CANCELLED
        if isinstance(outcome, LLMOptError):
            name = type(outcome).__name__
            self._stream_broke(stream.head, scope, settings, outcome, seconds, tokens)
        elif outcome == "complete":
            scope.completed(tokens)
        else:
            scope.stream_abandoned(tokens)
        scope.release()
        if stream.decoded_sizes is not None:
            self._recorder.response_decoded(scope.endpoint, *stream.decoded_sizes)
        usage = stream.reader.usage
        self._recorder.attempt_ended(
            scope.endpoint, number, name, stream.head, seconds, sent="yes", usage=usage
        )
        self._request_ended(name)

    def _stream_broke(
        self,
        head: HttpResponse,
        scope: AttemptScope,
        settings: Settings,
        error: LLMOptError,
        seconds: float,
        tokens: int,
    ) -> None:
        # What it broke off for says more of the server than that it broke off.
        cause = error.__cause__ if isinstance(error.__cause__, LLMOptError) else error
        add_context(cause, scope.endpoint, self._call, head, seconds)
        error.retry_after = cause.retry_after
        self._add_to_history(error, scope.endpoint, head, seconds)
        error.attempts = self._history
        scope.stream_failed(cause, settings, tokens)

    def _tokens_used(self, reader: EventReader) -> int:
        """Tokens so far: as the server says, else as estimated from what was said."""
        if reader.usage is not None and reader.usage.total_tokens:
            return reader.usage.total_tokens
        return self._stream_request.prompt_tokens + reader.characters // _CHARACTERS_PER_TOKEN

    def _request_ended(self, outcome: str) -> None:
        self._recorder.request_ended(self._endpoint, outcome, self._clock.now() - self._started_at)


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
