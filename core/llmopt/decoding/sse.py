"""Decoder for server-sent events: feed it bytes split anywhere, and it returns the events that are complete.

It follows the WHATWG's HTML standard, section 9.2.6 "Interpreting an event stream", with two
additions that real servers make necessary:

* a block at the end of the stream counts although no blank line follows it (some servers omit the one
  after ``data: [DONE]``);
* a line ``error: {...}`` is an event of type "error" with that data (llama.cpp sent it before September
  2025; by the standard it would be ignored, and the error with it).

Text is always UTF-8, whatever a header says. Invalid bytes are an error and are never replaced.

No I/O and no clock: bytes in, events out. A decoder keeps the unfinished event, the last id, the ignored lines and the
first error of its one stream; it has no lock.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Final, Literal

from llmopt.values.chat import ServerEvent
from llmopt.values.profile import MAX_EVENT_BYTES

_DATA: Final = b"data: "
_FIELDS: Final = frozenset({b"data", b"event", b"id", b"error"})
_MAX_IGNORED: Final = 65_536
_LF: Final = 0x0A
Reason = Literal["line", "event", "utf8"]


class StreamDecodeError(ValueError):
    """The bytes of a stream cannot be decoded further.

    Attributes:
        reason: "line" or "event" for one that is too long, "utf8" for bytes that are not UTF-8.
        events: the valid events that came before the error in the same chunk. A decoder that has raised this
            error raises it again, without events, for all further input.
    """

    def __init__(self, message: str, reason: Reason, events: tuple[ServerEvent, ...] = ()) -> None:
        super().__init__(message)
        self.reason: Final[Reason] = reason
        self.events = events


class StreamDecoder:
    """Decodes one stream: what its kinds have in common.

    Between two chunks it keeps the unfinished line, limited in size. After an error it decodes nothing more.

    Args:
        max_bytes: maximum size of a line, and of the data of an event.

    Attributes:
        ignored: the first 64 KiB of lines that belong to no event, from the first one on that begins like JSON: some
            servers report errors so (Gemini, without ``data:``).
    """

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self.ignored = b""
        self._max_bytes: Final = max_bytes
        # The first bytes, until it is known whether they are a byte order mark; None once the stream has begun.
        self._start: bytes | None = b""
        self._line: Final = bytearray()
        self._error: StreamDecodeError | None = None

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """Decode a chunk of the stream and return the events that it completes.

        Raises:
            StreamDecodeError: a line or an event is too long, or not UTF-8. Its ``events`` are those that
                came before it in this chunk.
        """
        if self._start is not None:
            chunk = self._start + chunk
            if len(chunk) < len(codecs.BOM_UTF8) and codecs.BOM_UTF8.startswith(chunk):
                self._start, chunk = chunk, b""
            else:
                self._start, chunk = None, chunk.removeprefix(codecs.BOM_UTF8)
        return self._decode(self._read, chunk)

    def end(self) -> list[ServerEvent]:
        """Return the last event, if the stream ended without the line feeds after it.

        Raises:
            StreamDecodeError: like `feed`.
        """
        return self._decode(self._finish, self._start or b"")

    def _decode(self, read: Callable[[bytes, list[ServerEvent]], None], chunk: bytes) -> list[ServerEvent]:
        if self._error is not None:
            raise StreamDecodeError(str(self._error), self._error.reason)
        events: list[ServerEvent] = []
        try:
            read(chunk, events)
        except StreamDecodeError as error:
            error.events = tuple(events)
            self._error = error
            self._line.clear()
            raise
        return events

    def _read(self, chunk: bytes, events: list[ServerEvent]) -> None:
        raise NotImplementedError

    def _finish(self, chunk: bytes, events: list[ServerEvent]) -> None:
        """Read what is left; ``chunk`` was held back at the beginning of the stream."""
        raise NotImplementedError

    def _buffer_line(self, part: bytes) -> None:
        self._line.extend(part)
        if len(self._line) > self._max_bytes:
            raise too_long_error("line", self._max_bytes)

    def _take_line(self) -> bytes:
        line = bytes(self._line)
        self._line.clear()
        return line


class SSEDecoder(StreamDecoder):
    """Decodes one stream of server-sent events.

    Between two chunks it also keeps the unfinished event.
    """

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        super().__init__(max_bytes)
        self._after_cr = False
        self._data: bytearray | None = None
        self._event = ""
        self._id = ""

    def _read(self, chunk: bytes, events: list[ServerEvent]) -> None:
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk[1:] if chunk[0] == _LF else chunk
        if b"\r" in chunk:
            # A CR already ends the line; an LF at the start of the next chunk belongs to it.
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._line or self._data is not None or self._event:
            chunk = self._continue_block(chunk, events)
        # One split in C finds all complete events of a chunk.
        *blocks, rest = chunk.split(b"\n\n")
        for block in blocks:
            # Fast path: nearly all events are a single line of data.
            if block.startswith(_DATA) and b"\n" not in block and len(block) <= self._max_bytes:
                events.append(ServerEvent(data=decode_utf8(block[6:]), id=self._id))
            elif block:
                self._read_lines(block.split(b"\n"), events)
                self._dispatch(events)
        if rest:
            *lines, rest = rest.split(b"\n")
            self._read_lines(lines, events)
            self._buffer_line(rest)

    def _continue_block(self, chunk: bytes, events: list[ServerEvent]) -> bytes:
        """Read to the end of the block that an earlier chunk began; return the bytes after it."""
        start = 0
        while self._line or self._data is not None or self._event:
            stop = chunk.find(b"\n", start)
            if stop < 0:
                self._buffer_line(chunk[start:])
                return b""
            self._line.extend(chunk[start:stop])
            self._read_lines((self._take_line(),), events)
            start = stop + 1
        return chunk[start:]

    def _read_lines(self, lines: list[bytes] | tuple[bytes, ...], events: list[ServerEvent]) -> None:
        for line in lines:
            if len(line) > self._max_bytes:
                raise too_long_error("line", self._max_bytes)
            name, _, value = line.partition(b":")
            if not line:
                self._dispatch(events)
            elif name in _FIELDS:
                self._field(name, value.removeprefix(b" "))
            elif self.ignored or line.startswith((b"{", b"[")):
                self.ignored = (self.ignored + line + b"\n")[:_MAX_IGNORED]

    def _field(self, name: bytes, value: bytes) -> None:
        if name == b"data":
            self._add_data(value)
        elif name == b"event":
            self._event = decode_utf8(value)
        elif name == b"id":
            # The standard says so: an id with NULL is ignored.
            if b"\0" not in value:
                self._id = decode_utf8(value)
        else:
            self._event = "error"
            self._add_data(value)

    def _add_data(self, value: bytes) -> None:
        if self._data is None:
            self._data = bytearray(value)
        else:
            self._data += b"\n"
            self._data += value
        # Checked for each line, so that an endless event is refused before it fills the memory.
        if len(self._data) > self._max_bytes:
            raise too_long_error("event", self._max_bytes)

    def _dispatch(self, events: list[ServerEvent]) -> None:
        data, event = self._data, self._event
        self._data, self._event = None, ""
        # A block without a data line is no event, whatever other fields it has.
        if data is not None:
            events.append(ServerEvent(event=event or "message", data=decode_utf8(data), id=self._id))

    def _finish(self, chunk: bytes, events: list[ServerEvent]) -> None:
        self._buffer_line(chunk)
        if line := self._take_line():
            self._read_lines((line,), events)
        self._dispatch(events)


def too_long_error(what: Literal["line", "event"], max_bytes: int) -> StreamDecodeError:
    """The error for a line or an event larger than ``max_bytes``."""
    article = "an" if what == "event" else "a"
    return StreamDecodeError(
        f"the stream contains {article} {what} of more than {max_bytes} bytes; max_event_bytes sets this limit.",
        what,
    )


def decode_utf8(data: bytes | bytearray) -> str:
    """Decode UTF-8 without replacement characters.

    Raises:
        StreamDecodeError: the bytes are not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise StreamDecodeError("the stream contains bytes that are not UTF-8.", "utf8") from None
