"""A request whose answer is a stream: the same pipeline, whose attempts end with a first event.

Up to there a failure is like that of any other request: judged by status or by the event that tells it,
and tried again where that is worth it. From then on nothing is repeated. What the attempt holds (slot,
lease, permit, connection) goes over to the stream and is given back at its end, whichever that is.
"""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import Final

from llmopt.decoding.framing import Decoder
from llmopt.decoding.sse import SSEDecoder
from llmopt.engine.account import CANCELLED, OK
from llmopt.engine.answer_form import form_of
from llmopt.engine.attempt import Held, explain
from llmopt.engine.event_reader import EventReader
from llmopt.engine.fleet import Fleet
from llmopt.engine.live_stream import LiveStream, Outcome
from llmopt.engine.outcome import error_of, judge
from llmopt.engine.pipeline import Pipeline, late
from llmopt.engine.prepare import Prepared
from llmopt.engine.request import StreamRequest
from llmopt.engine.telemetry import Telemetry
from llmopt.errors import AttemptTimeout, LLMOptError
from llmopt.policies.clock import Clock
from llmopt.policies.idle import IdleClocks
from llmopt.values.chat import ChatEvent, ChatReply, ToolCallPart
from llmopt.values.failure import Failure
from llmopt.values.http import HttpResponse
from llmopt.values.settings import Settings
from llmopt.wire.stream import WireStream

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
