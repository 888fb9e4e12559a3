"""Requests for a stream: the pipeline up to the first event, then the stream itself.

A failure before the first event is that of any other request: it is classified by status, or by the event that carries
it, and retried if that is worth it. After the first event nothing is sent again. The stream then holds what
the attempt has acquired (slot, lease, permit, connection) and releases it when it ends, in whichever way.

`llmopt.operations.chat_stream` uses these of a `LiveStream`: ``read``, ``aclose``, ``close_soon``, ``ended``,
``holds_connection`` and ``request_id``. `StreamPipeline` uses the others.

The network is accessed through the transport of the endpoint, which may be the user's: `StreamPipeline` awaits the
token provider, the head and the first event, `LiveStream.read` each next chunk, on the loop that opened the stream;
`close_soon` alone may be called from any thread. Waits are measured by the monotonic clock that is passed in, and
limited by timers of the event loop. After the last event the transport may read on for 0.1 s, for which nobody waits.
All hooks of the plugin run on the event loop: they build the request, read the events, or a reply that was not
streamed, however large, and classify errors. The start and the end of a stream change the policies and counters that
all requests of the endpoint share. Attempts, chunks, unknown events and the end are reported to the user's listener.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, cast

from llmopt import errors
from llmopt.decoding.sse import SSEDecoder
from llmopt.engine.attempt import AttemptScope, Used
from llmopt.engine.event_reader import EventReader, detect_stream_format
from llmopt.engine.pipeline import LaneAttempt, Pipeline
from llmopt.engine.request import StreamRequest
from llmopt.engine.responses import error_from_verdict, parse_or_raise, request_id
from llmopt.engine.telemetry import CANCELLED, OK
from llmopt.policies.clock import Deadline
from llmopt.policies.timeouts import StreamTimeouts
from llmopt.transport.stream import ResponseStream
from llmopt.transport.timers import TimeoutScheduler
from llmopt.values.chat import ChatEvent, ChatReply, EventDecoder, ToolCallPart
from llmopt.values.events import StreamFirstChunk
from llmopt.values.http import Failure, HttpResponse
from llmopt.values.redaction import redact, secrets_of
from llmopt.values.resources import as_llmopt_error

_DRAIN_S: Final = 0.1
_MAX_PINGS: Final = 1_000
"""Events of unknown types before the first known one that are kept."""
Outcome = errors.LLMOptError | str
"""How a stream ended: with its last event, because its reader closed it, or with an error."""
OnChunk = Callable[[int, int, float], None]
"""Called with each chunk of the body: bytes, events that it completed, seconds of waiting for it."""


class LiveStream:
    """A streamed response, after its headers.

    Nothing is read ahead: what is not asked for stays in the socket's buffers, and the server has to wait (backpressure).

    Args:
        response: the body, and the connection.
        reader: turns its bytes into events.
        head: status and headers.
        timeouts: how long it may be silent.
        deadline: of the whole call; it brings the clock.
        on_chunk: called with each chunk, None for no call.

    Attributes:
        response, reader, head: as passed to the constructor.
        on_end: each is called once when the stream ends, before an error is raised. Must not await.
        ended: whether the stream has ended.
        request_id: the provider's id of the request, None if there is none.
    """

    def __init__(
        self,
        response: ResponseStream,
        reader: EventReader,
        *,
        head: HttpResponse,
        timeouts: StreamTimeouts,
        deadline: Deadline,
        on_chunk: OnChunk | None,
    ) -> None:
        self.reader: Final = reader
        self.head: Final = head
        self.on_end: Final[list[Callable[[Outcome], None]]] = []
        self.ended = False
        self.request_id: str | None = None
        self.response: Final = response
        self._timeouts: Final = timeouts
        self._deadline: Final = deadline
        self._on_chunk: Final = on_chunk
        self._loop: Final = asyncio.get_running_loop()
        self._waits: Final = TimeoutScheduler(self._loop)
        self._pid: Final = os.getpid()
        self._first: list[ChatEvent] = []

    async def read_first(self, single_event: ChatEvent | None = None) -> None:
        """Wait for the first event. The caller limits the time, and closes the response if this raises.

        Args:
            single_event: the whole reply, if the server did not stream it.

        Raises:
            LLMOptError: the stream failed before its first event.
        """
        if single_event is not None:
            self.reader.accept(single_event)
            self._first = [single_event]
            return
        # Events of an unknown type do not begin a reply: a failure after them may still be retried.
        while True:
            events = self.reader.take()
            # A server that only pings must not fill the memory before the timeout.
            self._first = [*self._first[-_MAX_PINGS:], *events]
            if not all(event.unknown for event in events):
                return
            if self.reader.fault is not None:
                raise self.reader.fault
            if not (events or self.reader.pending):
                self.reader.feed(await self.response.read())

    async def read(self) -> list[ChatEvent]:
        """The next events, as soon as there are some; [] when the reply is complete.

        Raises:
            StreamInterrupted: the stream broke off; ``__cause__`` is what a response that is not streamed would raise.
            StreamIdle: nothing was received for too long.
            DeadlineExceeded, ClientClosed: the deadline passed, or the client was closed.
        """
        if self._first:
            events, self._first = self._first, []
            self._after_read()
            return events
        try:
            while not (events := self.reader.take()) and not self.reader.finished:
                if self.reader.pending:
                    # Many events without content: let other tasks of the event loop run.
                    await asyncio.sleep(0)
                else:
                    await self._read_chunk()
            if not events and self.reader.fault is not None:
                raise self.reader.fault
        except BaseException as caught:
            if isinstance(caught, Exception) and (error := as_llmopt_error(caught)) is not None:
                failure = _interrupted(error)
                self._end(failure)
                raise failure from failure.__cause__
            # A cancelled read may have lost a chunk, so that the stream cannot go on.
            self._end(CANCELLED)
            raise
        self._after_read()
        return events

    def _after_read(self) -> None:
        """Restart the timeouts after content, and end the stream after the last event."""
        if self.reader.new_content:
            self.reader.new_content = False
            self._timeouts.content_received()
        if self.reader.complete and not self.ended:
            # At best the end of the body is left, which the caller need not wait for.
            self.response.drain(_DRAIN_S)
            self._end(OK)

    async def _read_chunk(self) -> None:
        """Wait for the next chunk of the body."""
        started, chunk = self._deadline.now(), None
        limit = min(self._timeouts.read_timeout, self._deadline.remaining())
        with suppress(TimeoutError), self._waits.timeout(limit):
            chunk = await self.response.read()
        seconds = self._deadline.now() - started
        if chunk is None:
            raise self._timeout_error()
        self._timeouts.bytes_received(seconds)
        self.reader.feed(chunk)
        if self._on_chunk is not None:
            self._on_chunk(len(chunk), self.reader.pending, seconds)

    def _timeout_error(self) -> errors.LLMOptError:
        if self._deadline.expired():
            return errors.DeadlineExceeded("the deadline passed in the middle of the response.", phase="read")
        return errors.StreamIdle(f"the stream stopped: {self._timeouts.describe()}.", sent="yes")

    @property
    def holds_connection(self) -> bool:
        """Whether it holds a connection of this process: a fork does not close its parent's."""
        return not self.ended and self._pid == os.getpid()

    async def aclose(self) -> None:
        """End the stream, if it has not ended."""
        if not self.ended:
            self._end(CANCELLED)
            await self.response.aclose()

    def close_soon(self) -> None:
        """As `aclose`, a little later and from any thread: for a stream that was not closed before it is deleted.

        The garbage collector may call this at any point, so it takes no lock, and changes nothing that a running loop
        shares. If the event loop is closed, it closes only the connection, in the calling thread, and the pool of that
        loop may tell the listener: nobody waits for a slot of that loop, the lease stays settled as estimated, and a
        circuit breaker gives up a probe that does not report.
        """
        if not self.holds_connection:
            return
        with suppress(RuntimeError):
            if self._loop.is_closed():
                self.ended = True
                self.response.close()
            else:
                self._loop.call_soon_threadsafe(self._end, CANCELLED)

    def _end(self, outcome: Outcome) -> None:
        if self.ended:
            return
        self._waits.close()
        if outcome != OK:
            self.response.close()
        self.ended = True
        for ended in self.on_end:
            ended(outcome)


def _interrupted(cause: errors.LLMOptError) -> errors.LLMOptError:
    """The error to raise for a stream that broke off with this one."""
    if isinstance(cause, (errors.LocalRejection, errors.StreamIdle)):
        return cause
    error = errors.StreamInterrupted(f"the stream broke off: {cause.message}", sent="yes")
    error.__cause__ = cause
    return error


_CHARACTERS_PER_TOKEN: Final = 4
"""For the text of a stream whose server reports no usage."""


class StreamPipeline(Pipeline[LiveStream]):
    """One request for a stream, and all its attempts up to the first event.

    Args:
        first: the first attempt, not begun, of a `StreamRequest`.
    """

    @property
    def _request(self) -> StreamRequest:
        return cast("StreamRequest", self._steps.request)

    def _end(self, outcome: str) -> None:
        # A request that has become a stream ends with the stream.
        if outcome != OK:
            super()._end(outcome)

    def _complete(self, _: object, scope: AttemptScope, value: LiveStream) -> LiveStream:
        steps = self._steps
        seconds = steps.received()
        steps.emit(StreamFirstChunk, seconds=seconds)
        steps.stream_started(scope, value.head)
        value.request_id = request_id(value.head.headers, scope.settings)
        value.on_end.append(partial(self._stream_ended, value, scope))
        return value

    async def _receive(self, attempt: LaneAttempt[LiveStream], scope: AttemptScope) -> LiveStream:
        """Send the request, and wait for the first event."""
        deadline, timeout = self._request.deadline, scope.timeout
        due = deadline.now() + deadline.clamp(timeout)
        if timeout != math.inf:
            scope.encoded.idle_timeout = max(timeout, scope.endpoint.config.timeouts.idle)
        response_body = await scope.endpoint.open(scope.encoded)
        try:
            async with asyncio.timeout(None if due == math.inf else due - deadline.now()):
                return await self._start_stream(attempt, response_body, scope)
        except BaseException as error:
            # Also when cancelled: nobody else knows of this connection yet.
            response_body.close()
            if not isinstance(error, TimeoutError):
                raise
        # The steps know whether it was the deadline that passed.
        raise errors.AttemptTimeout(
            f"{scope.endpoint.name} sent no first event within {timeout:g} s.", timeout=timeout, sent="maybe"
        )

    async def _start_stream(
        self, attempt: LaneAttempt[LiveStream], response_body: ResponseStream, scope: AttemptScope
    ) -> LiveStream:
        attempt.response = head = HttpResponse(
            status=response_body.status, headers=response_body.headers, info=response_body.info
        )
        config, timeouts = scope.endpoint.config, scope.endpoint.config.timeouts
        recorder = self._steps
        decode = partial(scope.endpoint.hooks.decode_stream, settings=scope.settings)
        decoder, body = await detect_stream_format(response_body, config.max_event_bytes, decode)
        reader = self._reader(decoder or SSEDecoder(), scope)
        single_event: ChatEvent | None = None
        if decoder is None:
            # An error, or a server that ignores ``stream``.
            response = HttpResponse(status=head.status, headers=head.headers, body=body, info=head.info)
            single_event = as_event(
                parse_or_raise(
                    scope.endpoint.hooks, self._request.call, response, scope.settings, self._request.parse
                )
            )
        else:
            reader.feed(body)
        stream = LiveStream(
            response_body,
            reader,
            head=head,
            timeouts=StreamTimeouts(idle=timeouts.idle, content=timeouts.idle_content, first=scope.timeout),
            deadline=self._request.deadline,
            on_chunk=recorder.stream_chunk if recorder.recording else None,
        )
        await stream.read_first(single_event)
        return stream

    def _reader(self, decoder: EventDecoder, scope: AttemptScope) -> EventReader:
        endpoint, call, settings = scope.endpoint, self._request.call, scope.settings

        def make_error(failure: Failure) -> errors.LLMOptError:
            return error_from_verdict(
                endpoint.hooks.classify_error(failure, settings), failure, call, settings
            )

        def on_unknown(kind: str) -> None:
            self._steps.unknown_event(redact(kind, secrets=secrets_of(settings)))

        return EventReader(
            decoder,
            endpoint.hooks.stream_parser(call, settings),
            make_error,
            end=endpoint.config.stream_end,
            max_events=self._request.buffer_size,
            on_unknown=on_unknown,
        )

    def _stream_ended(self, stream: LiveStream, scope: AttemptScope, outcome: Outcome) -> None:
        """Report the end of the stream to the policies, release what it holds, and record it."""
        recorder, seconds = self._steps, self._steps.received()
        used = self._used(stream.reader)
        name = type(outcome).__name__ if isinstance(outcome, errors.LLMOptError) else outcome
        if isinstance(outcome, errors.LLMOptError):
            self._stream_broke(stream.head, scope, outcome, seconds, used)
        elif outcome == OK:
            scope.completed(used)
        else:
            scope.settle(used)
        scope.release()
        if (sizes := stream.response.body_sizes) is not None:
            recorder.response_decoded(*sizes)
        usage = stream.reader.reply.usage
        recorder.attempt_ended(name, stream.head, seconds, sent="yes", usage=usage)
        super()._end(name)

    def _stream_broke(
        self, head: HttpResponse, scope: AttemptScope, error: errors.LLMOptError, seconds: float, used: Used
    ) -> None:
        steps = self._steps
        # The cause, such as a lost connection, says more about the server than that a stream was interrupted.
        cause = error.__cause__ if isinstance(error.__cause__, errors.LLMOptError) else error
        scope.explain(cause, head, seconds)
        error.retry_after = cause.retry_after
        steps.history += (scope.explain(error, head, seconds),)
        error.attempts = steps.history
        with steps.bound():
            scope.stream_failed(cause, used)
        error.local = cause.local

    def _used(self, reader: EventReader) -> Used:
        """Tokens used so far, as the server reports them or estimated from the text."""
        usage, reply = reader.reply.usage, reader.characters // _CHARACTERS_PER_TOKEN
        if usage is None or not usage.total_tokens:
            return self._request.tokens - self._request.output_tokens + reply, reply
        # Some servers report the prompt in the first event, and what they wrote in the last one.
        unreported = 0 if reader.complete else max(0, reply - usage.completion_tokens)
        return usage.total_tokens + unreported, usage.completion_tokens + unreported


_OF_BOTH: Final = (
    *("text", "reasoning", "refusal", "finish_reason", "usage", "model", "id", "provider_data", "raw"),
)
"""What a reply and an event have in common, but for the tool calls."""


def as_event(reply: ChatReply) -> ChatEvent:
    """A whole reply as the only event of a stream."""
    parts = tuple(
        ToolCallPart(
            index=index,
            id=call.id,
            name=call.name,
            arguments=call.arguments,
            provider_data=call.provider_data,
        )
        for index, call in enumerate(reply.tool_calls)
    )
    return ChatEvent(**{name: getattr(reply, name) for name in _OF_BOTH}, tool_calls=parts, last=True)
