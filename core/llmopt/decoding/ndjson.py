"""Decoder for newline-delimited JSON streams, and the choice of a decoder by content type or by the first bytes.

No I/O and no clock: bytes in, events out. A decoder keeps the unfinished line of its one stream, without a lock.
"""

from __future__ import annotations

import codecs
import re
from typing import Final, Literal

import msgspec

from llmopt.decoding.sse import SSEDecoder, StreamDecoder, decode_utf8
from llmopt.values.chat import ServerEvent
from llmopt.values.profile import MAX_EVENT_BYTES


class NDJSONDecoder(StreamDecoder):
    """Decodes one stream into an event of type "line" for each line that is not blank.

    Lines end with LF or CR LF. The last line counts without a line feed, too.
    """

    def _read(self, chunk: bytes, events: list[ServerEvent]) -> None:
        first, *others = chunk.split(b"\n")
        self._buffer_line(first)
        for following in others:
            line = self._take_line()
            # A blank line only keeps the connection alive.
            if line.strip():
                events.append(ServerEvent(event="line", data=decode_utf8(line.removesuffix(b"\r"))))
            self._buffer_line(following)

    def _finish(self, chunk: bytes, events: list[ServerEvent]) -> None:
        # A line feed completes the last line, so that it needs no path of its own.
        self._read(chunk + b"\n", events)


Format = Literal["sse", "lines", "whole"]
"""How a body is written: server-sent events, newline-delimited JSON, or anything that is not a stream."""
_NDJSON_TYPE: Final = re.compile(r"application/(?:x-)?(?:ndjson|jsonl|jsonlines)")


def declared_format(content_type: str) -> Format:
    """What a response with this ``content-type`` is said to be.

    Parameters such as ``charset`` are ignored: both formats are always UTF-8. Without a content type it is
    server-sent events. Of a header that is sent twice, the first value counts.
    """
    media_type = re.split("[;,]", content_type)[0].strip().lower()
    if _NDJSON_TYPE.fullmatch(media_type):
        return "lines"
    return "sse" if media_type in ("text/event-stream", "") else "whole"


def decoder_of(body_format: Format, max_bytes: int = MAX_EVENT_BYTES) -> StreamDecoder | None:
    """Return a new decoder for a body of this format, None if it is not a stream."""
    if body_format == "lines":
        return NDJSONDecoder(max_bytes)
    return SSEDecoder(max_bytes) if body_format == "sse" else None


_SSE_START: Final = re.compile(rb"(?:data|event|id|retry|error)?:")
_SSE_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b"error:")


def detect_format(content_type: str, start: bytes, *, ended: bool) -> Format | None:
    """How a body is written, by its first bytes; by its content type only where they do not tell.

    Servers and proxies give streams any content type, and answers that are not streamed that of a stream.

    Args:
        content_type: of the response.
        start: the body so far.
        ended: whether this is the whole body.

    Returns:
        None if more bytes are needed; never if the body has ended.
    """
    text = start.removeprefix(codecs.BOM_UTF8).lstrip()
    may_become_sse = any(field.startswith(text) for field in _SSE_FIELDS if field != text)
    if not ended and (may_become_sse or codecs.BOM_UTF8.startswith(start)):
        return None
    if not text or _SSE_START.match(text):
        return "sse"
    declared = declared_format(content_type) if content_type else "whole"
    if text.startswith((b"{", b"[")):
        if declared == "lines" and not ended:
            return "lines"
        return "lines" if ended and _has_json_lines(text) else "whole"
    return "whole" if text.startswith(b"<") else declared


def _has_json_lines(text: bytes) -> bool:
    """Whether the first line is JSON by itself, and another follows."""
    first, _, rest = text.partition(b"\n")
    if not rest.lstrip().startswith((b"{", b"[")):
        return False
    try:
        msgspec.json.decode(first, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True
