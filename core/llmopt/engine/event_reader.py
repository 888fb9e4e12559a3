"""Turns the bytes of a streamed response into chat events, and finds out whether a response is a stream at all.

`EventReader` does no I/O and knows no time. `detect_stream_format` reads from the connection: the first chunk of a
stream, or the whole body of a response that is not a stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Literal

from attrs import field, frozen

from llmopt.decoding.ndjson import Decoder, decoder_for
from llmopt.decoding.sse import SSEDecoder, StreamDecodeError
from llmopt.errors import InvalidResponse, LLMOptError
from llmopt.transport.stream import ResponseStream
from llmopt.values.chat import ChatEvent, ServerEvent
from llmopt.values.embeddings import Usage
from llmopt.values.http import Failure
from llmopt.values.secret import repr_size

ParseEvent = Callable[[ServerEvent], tuple[ChatEvent, ...] | Failure]
"""Turns one event of the server into chat events, or into the failure that it carries."""


class EventReader:
    """Turns the bytes of one response into events, as far as they were received.

    Args:
        decoder: splits the bytes into events of the server.
        parse: parses one of them.
        make_error: the exception for a failure.
        end: what completes the response, see `llmopt.values.profile.Profile`.
        max_events: maximum number of events that are parsed at once.

    Attributes:
        complete: whether the response has ended properly; everything after that is ignored.
        fault: why nothing more can be read, None if nothing is wrong. Events before it are valid.
        new_content: whether an event had content since this was last set to False.
        usage: the usage that was reported last.
        characters: number of characters that the model wrote so far.
    """

    def __init__(
        self,
        decoder: Decoder,
        parse: ParseEvent,
        make_error: Callable[[Failure], LLMOptError],
        *,
        end: Literal["done", "finish"],
        max_events: int,
    ) -> None:
        self._decoder: Final = decoder
        self._parse: Final = parse
        self._make_error: Final = make_error
        self._end: Final = end
        self._max_events: Final = max_events
        self._pending: Final[deque[ServerEvent]] = deque()
        self._decode_fault: StreamDecodeError | None = None
        self._has_finish_reason = False
        self._body_ended = False
        self.complete = False
        self.fault: LLMOptError | None = None
        self.new_content = False
        self.usage: Usage | None = None
        self.characters = 0

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
                result = self._parse(waiting.popleft())
                if isinstance(result, Failure):
                    raise self._make_error(result)
                for event in result:
                    events.append(event)
                    self.record(event)
        except LLMOptError as error:
            self.fault = error
        # The events before the end or a fault are returned first.
        if not (events or waiting or self.finished):
            self._check_end()
        return events

    def record(self, event: ChatEvent) -> None:
        """Update the attributes by an event."""
        if event.adds:
            self.new_content = True
            self.characters += len(event.text) + len(event.reasoning) + len(event.refusal)
            for part in event.tool_calls:
                self.characters += len(part.name) + len(part.arguments)
            self._has_finish_reason = self._has_finish_reason or event.finish_reason is not None
        self.usage = event.usage or self.usage
        self.complete = self.complete or event.last

    def _check_end(self) -> None:
        if self._decode_fault is not None:
            reason = "utf8" if self._decode_fault.reason == "utf8" else "too_large"
            self.fault = InvalidResponse(str(self._decode_fault), reason=reason, sent="yes")
        elif self._body_ended and self._has_finish_reason and self._end == "finish":
            self.complete = True
        elif self._body_ended:
            self.fault = InvalidResponse(
                "the response ended before it was complete.", reason="truncated", sent="yes"
            )


_UNINFORMATIVE_TYPES: Final = ("", "text/plain", "application/octet-stream")
"""Content types that proxies and simple frameworks give to streams and to anything else."""
_NOT_A_STREAM: Final = (b"{", b"[", b"<")
"""First characters of JSON and HTML, with which no stream of events begins."""
_MAX_BYTES: Final = 64 << 20


@frozen(kw_only=True)
class StreamFormat:
    """What the response to a request for a stream is.

    Attributes:
        decoder: for its stream, None if the response is not streamed.
        first_bytes: bytes of the stream that were read to detect the format, None if none were.
        body: of a response that is not streamed.
    """

    decoder: Decoder | None = None
    first_bytes: bytes | None = field(default=None, repr=False)
    body: bytes = field(default=b"", repr=repr_size)


async def detect_stream_format(response: ResponseStream) -> StreamFormat:
    """The format of a response: by status and content type, or by its first bytes if these do not tell.

    Raises:
        InvalidResponse: a response that is not streamed is too large.
        LLMOptError: reading failed.
    """
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    # The body of an error is never streamed, whatever its content type says.
    if not 200 <= response.status < 300:
        return StreamFormat(body=await response.read_remaining())
    if kind not in _UNINFORMATIVE_TYPES:
        decoder = decoder_for(kind)
        if decoder is not None:
            return StreamFormat(decoder=decoder)
        return StreamFormat(body=await response.read_remaining())
    first = await response.read()
    if first.lstrip()[:1] in _NOT_A_STREAM:
        return StreamFormat(body=await _read_body(response, first))
    return StreamFormat(decoder=SSEDecoder(), first_bytes=first)


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
