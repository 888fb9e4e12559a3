"""What makes a stream's bytes undecodable."""

from __future__ import annotations

from typing import Final, Literal

from llmopt.values.stream import ServerEvent

MIB: Final = 1 << 20
"""The most bytes of a line, and of an event's data (RELIABILITY 2.8: SSE line/event <= 1 MiB)."""

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
