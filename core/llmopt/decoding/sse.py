"""Server-sent events: bytes in at any split, events out as soon as they are whole.

By the rules of the WHATWG's HTML standard, section 9.2.6 "Interpreting an event stream", with two
additions that servers in the field make necessary:

* a block that the stream ends in counts although no blank line follows it (some servers leave out
  the one behind ``data: [DONE]``);
* a line ``error: {...}`` is an event of type "error" with that data (a field of llama.cpp's before
  September 2025, which the standard would ignore and the error with it).

Text is UTF-8 whatever a header says, and bytes that are none are a fault: never a replacement.
"""

from __future__ import annotations

import codecs
from typing import Final, Literal

from llmopt.values.chat import ServerEvent

# The byte order mark that a stream may begin with, wherever it is cut.

_MARK: Final = codecs.BOM_UTF8


class Beginning:
    """Takes one byte order mark off the beginning of a stream.

    Attributes:
        over: whether the beginning has passed, so that nothing need be taken off any more.
    """

    def __init__(self) -> None:
        self.over = False
        self._held = b""

    def strip(self, piece: bytes) -> bytes:
        """The piece without the mark; empty while it cannot be told yet whether there is one."""
        held = self._held + piece
        if len(held) < len(_MARK) and _MARK.startswith(held):
            self._held = held
            return b""
        self.over = True
        self._held = b""
        return held.removeprefix(_MARK)

    def rest(self) -> bytes:
        """What was held back when the stream ended."""
        self.over = True
        held, self._held = self._held, b""
        return held


# What makes a stream's bytes undecodable.

MIB: Final = 1 << 20
"""The most bytes of a line, and of an event's data (docs/development/resilience.md: SSE line/event <= 1 MiB)."""
Reason = Literal["line", "event", "utf8"]


class StreamFault(ValueError):
    """The bytes of a stream cannot be decoded further.

    Attributes:
        reason: "line" or "event" for one that is too long, "utf8" for bytes that are no UTF-8.
        events: the events of the same piece that came before the fault and are good. A decoder that
            has raised raises again, without events, whatever it is given.
    """

    def __init__(self, message: str, reason: Reason, events: tuple[ServerEvent, ...] = ()) -> None:
        super().__init__(message)
        self.reason: Final[Reason] = reason
        self.events = events


def too_long(what: Literal["line", "event"], most: int) -> StreamFault:
    """The fault of a line or an event above its limit of ``most`` bytes."""
    return StreamFault(f"the stream holds a{'n' * (what == 'event')} {what} of more than {most} bytes.", what)


def as_text(data: bytes | bytearray) -> str:
    """UTF-8 as text, never with a replacement for what is none.

    Raises:
        StreamFault: the bytes are no UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise StreamFault("the stream holds bytes that are not UTF-8.", "utf8") from None


_DATA: Final = b"data: "
_LF: Final = 0x0A


class SSEDecoder:
    """Decodes one stream.

    What is kept between two pieces is the unfinished line and the unfinished event, each bounded.

    Args:
        max_line: most bytes of a line.
        max_event: most bytes of an event's data.
    """

    def __init__(self, *, max_line: int = MIB, max_event: int = MIB) -> None:
        self._max_line: Final = max_line
        self._max_event: Final = max_event
        self._max_simple: Final = min(max_line, max_event)
        self._beginning: Final = Beginning()
        self._after_cr = False
        self._line: Final = bytearray()
        self._data: bytearray | None = None
        self._event = ""
        self._id = ""
        self._fault: StreamFault | None = None

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """The events that a piece of the stream completes.

        Raises:
            StreamFault: a line or an event is too long, or not UTF-8. Its ``events`` are those that
                came before in this piece.
        """
        self._refuse_after_fault()
        events: list[ServerEvent] = []
        try:
            self._read(piece, events)
        except StreamFault as fault:
            self._fail(fault, events)
            raise
        return events

    def end(self) -> list[ServerEvent]:
        """The event that the stream ended in, if it did so without a blank line.

        Raises:
            StreamFault: as `feed` does.
        """
        self._refuse_after_fault()
        events: list[ServerEvent] = []
        try:
            self._finish(events)
        except StreamFault as fault:
            self._fail(fault, events)
            raise
        return events

    def _refuse_after_fault(self) -> None:
        if self._fault is not None:
            raise StreamFault(str(self._fault), self._fault.reason)

    def _fail(self, fault: StreamFault, events: list[ServerEvent]) -> None:
        fault.events = tuple(events)
        self._fault = fault
        self._line.clear()
        self._data = None

    def _read(self, piece: bytes, events: list[ServerEvent]) -> None:
        if not self._beginning.over:
            piece = self._beginning.strip(piece)
        if self._after_cr and piece:
            self._after_cr = False
            piece = piece[1:] if piece[0] == _LF else piece
        if b"\r" in piece:
            # A line ends at the CR already; the LF that may follow in the next piece is its second half.
            self._after_cr = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._line or self._data is not None or self._event:
            piece = self._read_begun(piece, events)
        *blocks, rest = piece.split(b"\n\n")
        for block in blocks:
            # What nearly all events are, in as few steps as can be.
            if block.startswith(_DATA) and b"\n" not in block and len(block) <= self._max_simple:
                events.append(ServerEvent(data=as_text(block[6:]), id=self._id))
            elif block:
                self._read_lines(block.split(b"\n"), events)
                self._dispatch(events)
        if rest:
            *lines, rest = rest.split(b"\n")
            self._read_lines(lines, events)
            self._keep(rest)

    def _read_begun(self, piece: bytes, events: list[ServerEvent]) -> bytes:
        """Read up to the end of the block that an earlier piece began; return what lies behind."""
        start = 0
        while self._line or self._data is not None or self._event:
            stop = piece.find(b"\n", start)
            if stop < 0:
                self._keep(piece[start:])
                return b""
            self._line.extend(piece[start:stop])
            line = bytes(self._line)
            self._line.clear()
            self._read_lines((line,), events)
            start = stop + 1
        return piece[start:]

    def _read_lines(self, lines: list[bytes] | tuple[bytes, ...], events: list[ServerEvent]) -> None:
        for line in lines:
            if len(line) > self._max_line:
                raise too_long("line", self._max_line)
            name, _, value = line.partition(b":")
            if name:
                self._field(name, value.removeprefix(b" "))
            elif not line:
                self._dispatch(events)

    def _field(self, name: bytes, value: bytes) -> None:
        if name == b"data":
            self._add(value)
        elif name == b"event":
            self._event = as_text(value)
        elif name == b"id":
            if b"\0" not in value:
                self._id = as_text(value)
        elif name == b"error":
            self._event = "error"
            self._add(value)

    def _add(self, value: bytes) -> None:
        if self._data is None:
            self._data = bytearray(value)
        else:
            self._data += b"\n"
            self._data += value
        if len(self._data) > self._max_event:
            raise too_long("event", self._max_event)

    def _dispatch(self, events: list[ServerEvent]) -> None:
        data, event = self._data, self._event
        self._data, self._event = None, ""
        # Without a line of data there is no event, whatever other fields the block had.
        if data is not None:
            events.append(ServerEvent(event=event or "message", data=as_text(data), id=self._id))

    def _keep(self, rest: bytes) -> None:
        self._line.extend(rest)
        if len(self._line) > self._max_line:
            raise too_long("line", self._max_line)

    def _finish(self, events: list[ServerEvent]) -> None:
        self._keep(self._beginning.rest())
        line = bytes(self._line)
        self._line.clear()
        if line:
            self._read_lines((line,), events)
        self._dispatch(events)
