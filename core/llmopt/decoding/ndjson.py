"""Decoder for newline-delimited JSON streams, and the choice of a decoder by content type.

No I/O: bytes in, events out.
"""

from __future__ import annotations

from typing import Final

from llmopt.decoding.sse import (
    MAX_LINE_BYTES,
    ByteOrderMarkFilter,
    SSEDecoder,
    StreamDecodeError,
    decode_utf8,
    too_long_error,
)
from llmopt.values.chat import ServerEvent


class NDJSONDecoder:
    """Decodes one stream into an event of type "line" for each line that is not blank.

    Lines end with LF or CR LF. The last line counts without a line feed, too.

    Args:
        max_line: maximum size of a line in bytes.
    """

    def __init__(self, *, max_line: int = MAX_LINE_BYTES) -> None:
        self._max_line: Final = max_line
        self._byte_order_mark: Final = ByteOrderMarkFilter()
        self._line: Final = bytearray()
        self._error: StreamDecodeError | None = None

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """Decode a chunk of the stream and return the lines that it completes.

        Raises:
            StreamDecodeError: a line is too long, or not UTF-8. Its ``events`` are those that came before it
                in this chunk.
        """
        if not self._byte_order_mark.done:
            chunk = self._byte_order_mark.strip(chunk)
        events: list[ServerEvent] = []
        self._feed(chunk, events)
        return events

    def end(self) -> list[ServerEvent]:
        """Return the last line, if the stream ended without a line feed after it.

        Raises:
            StreamDecodeError: like `feed`.
        """
        events: list[ServerEvent] = []
        # A line feed completes the last line, so that it needs no path of its own.
        self._feed(self._byte_order_mark.flush() + b"\n", events)
        return events

    def _feed(self, chunk: bytes, events: list[ServerEvent]) -> None:
        if self._error is not None:
            raise StreamDecodeError(str(self._error), self._error.reason)
        try:
            self._read(chunk, events)
        except StreamDecodeError as error:
            error.events = tuple(events)
            self._error = error
            self._line.clear()
            raise

    def _read(self, chunk: bytes, events: list[ServerEvent]) -> None:
        first, *others = chunk.split(b"\n")
        self._buffer_line(first)
        for following in others:
            line = bytes(self._line)
            self._line.clear()
            # A blank line only keeps the connection alive.
            if line.strip():
                events.append(ServerEvent(event="line", data=decode_utf8(line.removesuffix(b"\r"))))
            self._buffer_line(following)

    def _buffer_line(self, part: bytes) -> None:
        self._line.extend(part)
        if len(self._line) > self._max_line:
            raise too_long_error("line", self._max_line)


Decoder = SSEDecoder | NDJSONDecoder
_SSE_TYPES: Final = frozenset({"text/event-stream", ""})
_NDJSON_TYPES: Final = frozenset(
    {
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonlines",
        "application/jsonlines",
    }
)


def decoder_for(content_type: str) -> Decoder | None:
    """Return a new decoder for a response with this ``content-type``, None if it is not a stream.

    Parameters such as ``charset`` are ignored: both formats are always UTF-8. Without a content type the response
    is decoded as server-sent events.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in _NDJSON_TYPES:
        return NDJSONDecoder()
    return SSEDecoder() if media_type in _SSE_TYPES else None
