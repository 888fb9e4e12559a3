"""From the bytes of a streamed answer to chat events. No I/O, no time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Literal

from attrs import field, frozen

from llmopt.decoding.ndjson import Decoder, decoder_for
from llmopt.decoding.sse import SSEDecoder, StreamFault
from llmopt.errors import InvalidResponse, LLMOptError
from llmopt.transport.stream import WireStream
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
        judge: the error that a failure is.
        end: what makes the answer complete, see `llmopt.values.profile.Profile`.
        at_once: most events that are parsed together.

    Attributes:
        complete: whether the answer has come to its end as it should; nothing counts after that.
        fault: why nothing more can be read, None while nothing is wrong. What came before it is good.
        spoke: whether something that adds to the answer came since this was last set to False.
        usage: the last usage that was told.
        characters: of what the model wrote so far.
    """

    def __init__(
        self,
        decoder: Decoder,
        parse: ParseEvent,
        judge: Callable[[Failure], LLMOptError],
        *,
        end: Literal["done", "finish"],
        at_once: int,
    ) -> None:
        self._decoder: Final = decoder
        self._parse: Final = parse
        self._judge: Final = judge
        self._end: Final = end
        self._at_once: Final = at_once
        self._waiting: Final[deque[ServerEvent]] = deque()
        self._undecodable: StreamFault | None = None
        self._finished = False
        self._ended = False
        self.complete = False
        self.fault: LLMOptError | None = None
        self.spoke = False
        self.usage: Usage | None = None
        self.characters = 0

    @property
    def over(self) -> bool:
        """Whether there is nothing more to take, now or later."""
        return self.complete or self.fault is not None

    @property
    def pending(self) -> int:
        """Events of the stream that have come and were not parsed yet; at 0 only more bytes help."""
        return len(self._waiting)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body in; b"" says that it has ended."""
        try:
            if data:
                self._waiting.extend(self._decoder.feed(data))
            else:
                self._ended = True
                self._waiting.extend(self._decoder.end())
        except StreamFault as fault:
            self._waiting.extend(fault.events)
            self._undecodable = fault

    def take(self) -> list[ChatEvent]:
        """What the next events of the stream add, at most ``at_once`` of them.

        [] when these add nothing, when more bytes are needed, and when none will help.
        """
        found: list[ChatEvent] = []
        if self.over:
            return found
        waiting, left = self._waiting, self._at_once
        try:
            while waiting and left and not self.complete:
                left -= 1
                got = self._parse(waiting.popleft())
                if isinstance(got, Failure):
                    raise self._judge(got)
                for event in got:
                    found.append(event)
                    self.note(event)
        except LLMOptError as error:
            self.fault = error
        if not (found or waiting or self.over):
            self._look_for_the_end()
        return found

    def note(self, event: ChatEvent) -> None:
        """Take note of an event."""
        if event.adds:
            self.spoke = True
            self.characters += len(event.text) + len(event.reasoning) + len(event.refusal)
            for part in event.tool_calls:
                self.characters += len(part.name) + len(part.arguments)
            self._finished = self._finished or event.finish_reason is not None
        self.usage = event.usage or self.usage
        self.complete = self.complete or event.last

    def _look_for_the_end(self) -> None:
        if self._undecodable is not None:
            reason = "utf8" if self._undecodable.reason == "utf8" else "too_large"
            self.fault = InvalidResponse(str(self._undecodable), reason=reason, sent="yes")
        elif self._ended and self._finished and self._end == "finish":
            self.complete = True
        elif self._ended:
            self.fault = InvalidResponse("the answer ended before its end.", reason="truncated", sent="yes")


# Whether the answer to a request for a stream is one.

_SILENT: Final = ("", "text/plain", "application/octet-stream")
"""Content types that say nothing: what proxies and plain frameworks make of a stream, and of anything else."""
_WHOLE: Final = (b"{", b"[", b"<")
"""How JSON and web pages begin, and no stream of events does."""
_MOST_BYTES: Final = 64 << 20


@frozen(kw_only=True)
class AnswerForm:
    """What an answer is.

    Attributes:
        decoder: of its stream, None for an answer in one piece.
        first: bytes of the stream that were read to find out; None when there was no need.
        body: of an answer in one piece.
    """

    decoder: Decoder | None = None
    first: bytes | None = field(default=None, repr=False)
    body: bytes = field(default=b"", repr=repr_size)


async def form_of(wire: WireStream) -> AnswerForm:
    """The form of an answer: by status and content type, by its first bytes where these say nothing.

    Raises:
        InvalidResponse: an answer in one piece is larger than any can be.
        LLMOptError: as reading does.
    """
    kind = wire.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not 200 <= wire.status < 300:
        return AnswerForm(body=await wire.rest())
    if kind not in _SILENT:
        decoder = decoder_for(kind)
        return AnswerForm(decoder=decoder) if decoder is not None else AnswerForm(body=await wire.rest())
    first = await wire.read()
    if first.lstrip()[:1] in _WHOLE:
        return AnswerForm(body=await _rest(wire, first))
    return AnswerForm(decoder=SSEDecoder(), first=first)


async def _rest(wire: WireStream, first: bytes) -> bytes:
    pieces, size = [first], len(first)
    while piece := await wire.read():
        pieces.append(piece)
        size += len(piece)
        if size > _MOST_BYTES:
            raise InvalidResponse(
                f"the answer is larger than {_MOST_BYTES} bytes, which no chat is.",
                reason="too_large",
                sent="yes",
            )
    return b"".join(pieces)
