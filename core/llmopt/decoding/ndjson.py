"""Newline-delimited JSON: bytes in at any split, lines out as soon as they are whole."""

from __future__ import annotations

from typing import Final

from llmopt.decoding.sse import MIB, Beginning, SSEDecoder, StreamFault, as_text, too_long
from llmopt.values.chat import ServerEvent


class NDJSONDecoder:
    """Decodes one stream into an event of type "line" for each line that is not blank.

    Lines end with LF; a CR before it is left out. A line that the stream ends in counts.

    Args:
        max_line: most bytes of a line.
    """

    def __init__(self, *, max_line: int = MIB) -> None:
        self._max_line: Final = max_line
        self._beginning: Final = Beginning()
        self._line: Final = bytearray()
        self._fault: StreamFault | None = None

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """The lines that a piece of the stream completes.

        Raises:
            StreamFault: a line is too long, or not UTF-8. Its ``events`` are those that came before in
                this piece.
        """
        if not self._beginning.over:
            piece = self._beginning.strip(piece)
        events: list[ServerEvent] = []
        self._guarded(piece, events)
        return events

    def end(self) -> list[ServerEvent]:
        """The line that the stream ended in, if it did so without a line feed.

        Raises:
            StreamFault: as `feed` does.
        """
        events: list[ServerEvent] = []
        self._guarded(self._beginning.rest() + b"\n", events)
        return events

    def _guarded(self, piece: bytes, events: list[ServerEvent]) -> None:
        if self._fault is not None:
            raise StreamFault(str(self._fault), self._fault.reason)
        try:
            self._read(piece, events)
        except StreamFault as fault:
            fault.events = tuple(events)
            self._fault = fault
            self._line.clear()
            raise

    def _read(self, piece: bytes, events: list[ServerEvent]) -> None:
        first, *others = piece.split(b"\n")
        self._keep(first)
        for following in others:
            line = bytes(self._line)
            self._line.clear()
            # A blank line is a sign of life and no more.
            if line.strip():
                events.append(ServerEvent(event="line", data=as_text(line.removesuffix(b"\r"))))
            self._keep(following)

    def _keep(self, part: bytes) -> None:
        self._line.extend(part)
        if len(self._line) > self._max_line:
            raise too_long("line", self._max_line)


# How a stream is cut into events, by its content type.

Decoder = SSEDecoder | NDJSONDecoder
_EVENTS: Final = frozenset({"text/event-stream", ""})
_LINES: Final = frozenset(
    {
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonlines",
        "application/jsonlines",
    }
)


def decoder_for(content_type: str) -> Decoder | None:
    """A new decoder for an answer with this ``content-type``; None for one that is no stream.

    Parameters such as ``charset`` do not matter: both forms are UTF-8 always. No content type at all
    is taken for server-sent events.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in _LINES:
        return NDJSONDecoder()
    return SSEDecoder() if kind in _EVENTS else None
