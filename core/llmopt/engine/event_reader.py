"""From the bytes of a streamed answer to chat events. No I/O, no time."""

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
"""What one event of the stream adds, or the failure that it carries."""


class EventReader:
    """Reads one answer, as far as its bytes have come.

    Args:
        decoder: cuts the bytes into events.
        parse: reads one event.
        make_error: the error that a failure is.
        end: what makes the answer complete, see `llmopt.values.profile.Profile`.
        max_events: most events that are parsed together.

    Attributes:
        complete: whether the answer has come to its end as it should; nothing counts after that.
        fault: why nothing more can be read, None while nothing is wrong. What came before it is good.
        new_content: whether something that adds to the answer came since this was last set to False.
        usage: the last usage that was told.
        characters: of what the model wrote so far.
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
        """Whether there is nothing more to take, now or later."""
        return self.complete or self.fault is not None

    @property
    def pending(self) -> int:
        """Events of the stream that have come and were not parsed yet; at 0 only more bytes help."""
        return len(self._pending)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body in; b"" says that it has ended."""
        try:
            if data:
                self._pending.extend(self._decoder.feed(data))
            else:
                self._body_ended = True
                self._pending.extend(self._decoder.end())
        except StreamDecodeError as fault:
            self._pending.extend(fault.events)
            self._decode_fault = fault

    def take(self) -> list[ChatEvent]:
        """What the next events of the stream add, at most ``max_events`` of them.

        [] when these add nothing, when more bytes are needed, and when none will help.
        """
        events: list[ChatEvent] = []
        if self.finished:
            return events
        waiting, left = self._pending, self._max_events
        try:
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
        if not (events or waiting or self.finished):
            self._check_end()
        return events

    def record(self, event: ChatEvent) -> None:
        """Take note of an event."""
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
            self.fault = InvalidResponse("the answer ended before its end.", reason="truncated", sent="yes")


# Whether the answer to a request for a stream is one.

_UNINFORMATIVE_TYPES: Final = ("", "text/plain", "application/octet-stream")
"""Content types that say nothing: what proxies and plain frameworks make of a stream, and of anything else."""
_NOT_A_STREAM: Final = (b"{", b"[", b"<")
"""How JSON and web pages begin, and no stream of events does."""
_MAX_BYTES: Final = 64 << 20


@frozen(kw_only=True)
class StreamFormat:
    """What an answer is.

    Attributes:
        decoder: of its stream, None for an answer in one piece.
        first_bytes: bytes of the stream that were read to find out; None when there was no need.
        body: of an answer in one piece.
    """

    decoder: Decoder | None = None
    first_bytes: bytes | None = field(default=None, repr=False)
    body: bytes = field(default=b"", repr=repr_size)


async def detect_stream_format(response: ResponseStream) -> StreamFormat:
    """The form of an answer: by status and content type, by its first bytes where these say nothing.

    Raises:
        InvalidResponse: an answer in one piece is larger than any can be.
        LLMOptError: as reading does.
    """
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not 200 <= response.status < 300:
        return StreamFormat(body=await response.read_remaining())
    if kind not in _UNINFORMATIVE_TYPES:
        decoder = decoder_for(kind)
        return (
            StreamFormat(decoder=decoder)
            if decoder is not None
            else StreamFormat(body=await response.read_remaining())
        )
    first = await response.read()
    if first.lstrip()[:1] in _NOT_A_STREAM:
        return StreamFormat(body=await _rest(response, first))
    return StreamFormat(decoder=SSEDecoder(), first_bytes=first)


async def _rest(response: ResponseStream, first: bytes) -> bytes:
    pieces, size = [first], len(first)
    while piece := await response.read():
        pieces.append(piece)
        size += len(piece)
        if size > _MAX_BYTES:
            raise InvalidResponse(
                f"the answer is larger than {_MAX_BYTES} bytes, which no chat is.",
                reason="too_large",
                sent="yes",
            )
    return b"".join(pieces)
