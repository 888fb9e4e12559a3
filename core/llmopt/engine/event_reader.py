"""Turns the bytes of a streamed response into chat events, and finds out whether a response is a stream at all.

`EventReader` does no I/O and knows no time; it keeps the reply so far of its one stream, without a lock. The functions
that it is given run foreign code: ``parse`` calls the plugin's hook `parse_stream_event`, ``make_error`` its
hook `classify_error`, and ``on_unknown`` the user's listener. `detect_stream_format` awaits the connection, without a
timeout of its own: the first bytes of a stream, or the whole body of a response that is not a stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from attrs import define, evolve, field

from llmopt.decoding.accumulator import HalfJoiner, ReplyAccumulator
from llmopt.decoding.ndjson import decoder_of, detect_format
from llmopt.decoding.sse import StreamDecodeError
from llmopt.errors import InvalidResponse, LLMOptError, PluginContractError
from llmopt.transport.stream import ResponseStream
from llmopt.values.chat import ChatEvent, EventDecoder, ServerEvent
from llmopt.values.http import Failure
from llmopt.values.lenient_json import corrected_json, single_halves
from llmopt.values.profile import StreamEnd
from llmopt.values.redaction import place_of

ParseEvent = Callable[[ServerEvent], tuple[ChatEvent, ...] | Failure]
"""Turns one event of the server into chat events, or into the failure that it carries."""


@define(eq=False)
class EventReader:
    """Turns the bytes of one response into events, as far as they were received.

    Args:
        decoder: splits the bytes into events of the server.
        parse: parses one of them.
        make_error: the exception for a failure.
        end: what completes the response, see `llmopt.values.profile.Profile`.
        max_events: maximum number of events that are parsed at once.
        on_unknown: called with the type of each event that the parser does not know.

    Attributes:
        reply: everything so far.
        complete: whether the response has ended properly; everything after that is ignored.
        fault: why nothing more can be read, None if nothing is wrong. Events before it are valid.
        failure: the failure that an event carried, from which ``fault`` was made.
        new_content: whether an event had content since this was last set to False.
        characters: number of characters that the model wrote so far.
    """

    _decoder: EventDecoder
    _parse: ParseEvent
    _make_error: Callable[[Failure], LLMOptError]
    _end: StreamEnd = field(kw_only=True)
    _max_events: int = field(kw_only=True)
    _on_unknown: Callable[[str], object] = field(default=bool, kw_only=True)
    _pending: deque[ServerEvent] = field(factory=deque, init=False)
    _decode_fault: StreamDecodeError | LLMOptError | None = field(default=None, init=False)
    _halves: HalfJoiner = field(factory=HalfJoiner, init=False)
    _content_last: bool = field(default=False, init=False)
    _body_ended: bool = field(default=False, init=False)
    reply: ReplyAccumulator = field(factory=ReplyAccumulator, init=False)
    complete: bool = field(default=False, init=False)
    fault: LLMOptError | None = field(default=None, init=False)
    failure: Failure | None = field(default=None, init=False)
    new_content: bool = field(default=False, init=False)
    characters: int = field(default=0, init=False)

    @property
    def finished(self) -> bool:
        """Whether `take` returns nothing any more."""
        return self.complete or self.fault is not None

    @property
    def pending(self) -> int:
        """Number of received events that were not parsed yet; at 0 more bytes are needed."""
        return len(self._pending)

    def feed(self, data: bytes) -> None:
        """Add the next bytes of the body; b"" at its end."""
        try:
            if data:
                self._pending.extend(self._decoder.feed(data))
            else:
                self._body_ended = True
                self._pending.extend(self._decoder.end())
        except StreamDecodeError as fault:
            # The events before the fault are valid, and the caller gets them first.
            self._pending.extend(fault.events)
            self._decode_fault = fault
        except LLMOptError as fault:
            self._decode_fault = fault
        except Exception as error:  # noqa: BLE001 - raised after the events before it
            where = f"{type(error).__name__}{place_of(error, (__file__,))}"
            self._decode_fault = PluginContractError(f"the decoder of hook decode_stream raised {where}.")

    def take(self) -> list[ChatEvent]:
        """Parse the next ``max_events`` events of the server at most.

        Returns:
            Chat events; [] if there is no content in these, if more bytes are needed, and after the end.
        """
        events: list[ChatEvent] = []
        if self.finished:
            return events
        waiting, left = self._pending, self._max_events
        try:
            # At most ``max_events``: a large chunk must not keep the event loop from other tasks.
            while waiting and left and not self.complete:
                left -= 1
                received = waiting.popleft()
                replaced: Sequence[int] = ()
                try:
                    result = self._parse(received)
                except InvalidResponse as error:
                    result, replaced = self._parse_corrected(received, error)
                if isinstance(result, Failure):
                    self.failure = result
                    raise self._make_error(result)
                if replaced or self._halves.held:
                    result = self._halves.join(result, replaced)
                for event in result:
                    added = self._add(self._increment(event) if event.whole else event)
                    if event.last:
                        self._end_reached()
                    events.append(added)
        except LLMOptError as error:
            self.fault = error
        # The events before the end or a fault are returned first.
        if not (events or waiting or self.finished):
            self._check_end()
        return events

    def _parse_corrected(
        self, event: ServerEvent, error: InvalidResponse
    ) -> tuple[tuple[ChatEvent, ...] | Failure, Sequence[int]]:
        """Parse an event again that is not quite JSON; with the halves of surrogate pairs that were replaced in it."""
        data = event.data.encode("utf-8", "replace")
        corrected = corrected_json(data)
        if corrected == data:
            raise error
        return self._parse(evolve(event, data=corrected.decode())), single_halves(data)

    def accept(self, reply: ChatEvent) -> None:
        """Take the only event of a reply that was not streamed. It is complete whatever it lacks."""
        self._add(reply)
        self.complete = True

    def _add(self, event: ChatEvent) -> ChatEvent:
        """Add an event to the reply, and return it with what follows from earlier ones."""
        self.reply.add(event)
        if event.adds:
            self.new_content = self._content_last = True
            self.characters += len(event.text) + len(event.reasoning) + len(event.refusal)
            if event.tool_calls:
                self.characters += sum(len(part.name) + len(part.arguments) for part in event.tool_calls)
        elif event.unknown:
            self._content_last = False
            self._on_unknown(event.unknown)
        if event.usage is None and event.finish_reason is None:
            return event
        return self._completed(event)

    def _completed(self, event: ChatEvent) -> ChatEvent:
        """The event with what follows from those before it: counts that they told, and "tool_calls" in place of "stop"."""
        usage = None if event.usage is None else self.reply.usage_so_far
        reason = None if event.finish_reason is None else self.reply.finish_reason
        if usage is event.usage and reason == event.finish_reason:
            return event
        return evolve(event, usage=usage, finish_reason=reason)

    def _increment(self, event: ChatEvent) -> ChatEvent:
        """What the whole reply so far adds to the parts before it.

        Some servers send each event so, and some end a stream of parts with the whole message.
        """
        received = self.reply
        return evolve(
            event,
            whole=False,
            text=_rest(event.text, received.text),
            reasoning=_rest(event.reasoning, received.reasoning),
            refusal=_rest(event.refusal, received.refusal),
            tool_calls=() if received.tool_calls else event.tool_calls,
        )

    def _end_reached(self) -> None:
        """The provider's own end: it ends a reply that has a finish reason, and at some servers any reply."""
        lenient = self._end == "any" and self._content_last and not getattr(self._decoder, "ignored", b"")
        if self.reply.stated_reason is None and not lenient:
            raise self._truncated("without a finish reason")
        self.complete = True

    def _truncated(self, how: str) -> LLMOptError:
        """The error for an end that came too early: what the server says of it between its events, if it does."""
        if ignored := getattr(self._decoder, "ignored", b""):
            with suppress(LLMOptError):
                data = ignored.decode("utf-8", "replace")
                if isinstance(failure := self._parse(ServerEvent(data=data)), Failure):
                    self.failure = failure
                    return self._make_error(failure)
        return InvalidResponse(f"the response ended {how}.", reason="truncated", sent="yes")

    def _check_end(self) -> None:
        if isinstance(self._decode_fault, StreamDecodeError):
            reason = "utf8" if self._decode_fault.reason == "utf8" else "too_large"
            self.fault = InvalidResponse(str(self._decode_fault), reason=reason, sent="yes")
        elif self._decode_fault is not None:
            self.fault = self._decode_fault
        elif self._body_ended and self.reply.stated_reason is not None and self._end != "done":
            self.complete = True
        elif self._body_ended:
            self.fault = self._truncated("before it was complete")


def _rest(whole: str, received: str) -> str:
    if whole.startswith(received):
        return whole[len(received) :]
    if not whole.strip() or whole.strip() == received.strip():
        return ""
    raise InvalidResponse(
        "a whole message in the stream does not begin with the parts before it.", reason="type", sent="yes"
    )


_MAX_BYTES: Final = 64 << 20


async def detect_stream_format(
    response: ResponseStream,
    max_event_bytes: int,
    decode: Callable[[str], EventDecoder | None] = lambda _: None,
) -> tuple[EventDecoder | None, bytes]:
    """The decoder for a response, by its status, then the plugin's, then by first bytes and content type; None for no stream.

    Args:
        response: read until its format is clear, and to its end if it is not streamed.
        max_event_bytes: for the decoder.
        decode: the plugin's decoder for a content type.

    Returns:
        Also the bytes that were read: the whole body of a response that is not streamed.

    Raises:
        InvalidResponse: a response that is not streamed is too large.
        LLMOptError: reading failed.
    """
    # The body of an error is never streamed, whatever its content type says.
    if not 200 <= response.status < 300:
        return None, await response.read_remaining()
    content_type, start, ended = response.headers.get("content-type", ""), b"", False
    if (decoder := decode(content_type)) is not None:
        return decoder, await response.read()
    while (body_format := detect_format(content_type, start, ended=ended)) is None:
        chunk = await response.read()
        # Only blanks: some servers send them until the model is ready.
        start = start + chunk if start.strip() else chunk
        ended = not chunk
    if body_format == "whole":
        start = await _read_body(response, start)
        body_format = detect_format(content_type, start, ended=True) or "whole"
    return decoder_of(body_format, max_event_bytes), start


async def _read_body(response: ResponseStream, first: bytes) -> bytes:
    chunks, size = [first], len(first)
    while chunk := await response.read():
        chunks.append(chunk)
        size += len(chunk)
        if size > _MAX_BYTES:
            raise InvalidResponse(
                f"the response is larger than {_MAX_BYTES} bytes, the limit for a chat reply.",
                reason="too_large",
                sent="yes",
            )
    return b"".join(chunks)
