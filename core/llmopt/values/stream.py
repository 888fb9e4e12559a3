"""One decoded event of a streamed answer, before anybody has read what is in it."""

from __future__ import annotations

from attrs import field, frozen

from llmopt.values.shown import size


@frozen(kw_only=True)
class ServerEvent:
    """One event of ``text/event-stream``, or one line of ``application/x-ndjson``.

    Attributes:
        event: the event's type: "message" where the server names none, "line" for a line of
            newline-delimited JSON.
        data: the data, its lines joined with a line feed; it may be empty.
        id: the last event id that the server gave, "" when it gave none.
    """

    event: str = "message"
    data: str = field(default="", repr=size)
    id: str = ""
