"""Helpers of the stream tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

import llmopt
from tests.support.faults import Answer, Close, FaultServer, Framing, Script, Send, Step, Wait, stream_events

MODEL = "server/m"
MESSAGES = [{"role": "user", "content": "Hello?"}]
WORDS = ["Es ", "war ", "einmal ", "ein ", "König."]
TEXT = "".join(WORDS)
DONE = b"data: [DONE]\n\n"
SHORT_TIMEOUTS = {
    "connect": 2,
    "read": 2,
    "pool": 2,
    "chat": 2,
    "first": 2,
    "first_event": 2,
    "idle": 2,
    "idle_content": 4,
}


def config(server: FaultServer, timeouts: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    """A configuration with one entry ``server`` and short timeouts."""
    entry = {
        "plugin": "local",
        "base_url": server.base_url,
        "retry_delay": 0.001,
        "timeouts": {**SHORT_TIMEOUTS, **(timeouts or {})},
        **more,
    }
    return {"providers": {"server": entry}}


def head(kind: str = "text/event-stream", framing: Framing = Framing.CHUNKED) -> bytes:
    """The head of a stream."""
    return Answer(200, b"", [("content-type", kind)], framing).head()


def chunk(data: bytes) -> bytes:
    """Data as an HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


END = b"0\r\n\r\n"


def stream_script(
    *pieces: bytes, end: Iterable[Step] = (Send(END),), kind: str = "text/event-stream"
) -> Script:
    """A stream of these pieces; the client reads each before the server sends the next."""
    steps: list[Step] = [Send(head(kind))]
    for piece in pieces:
        # The client runs on the same loop: two turns let it read the piece.
        steps += [Send(chunk(piece)), Wait(0.0), Wait(0.0)]
    return Script([*steps, *end])


def word_events(words: Iterable[str] = WORDS) -> list[bytes]:
    """The events of a reply without its end: the role and the words."""
    return stream_events(words, done=False)


def event(**value: Any) -> bytes:
    """One server-sent event with this JSON value."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def error_event(message: str = "it broke", **more: Any) -> bytes:
    """An error in a stream."""
    return event(error={"message": message, "type": "server_error", **more})


def unfinished_stream(*pieces: bytes) -> Script:
    """A stream whose body ends correctly after these pieces, though its last event is missing."""
    return stream_script(*pieces, end=(Send(END), Close()))


async def events_of(client: llmopt.AsyncClient, **options: Any) -> list[llmopt.ChatEvent]:
    """All events of a stream."""
    async with client.stream(MODEL, MESSAGES, **options) as stream:
        return [event async for event in stream]


async def text_of(client: llmopt.AsyncClient, **options: Any) -> str:
    """The text of a stream."""
    return "".join(event.text for event in await events_of(client, **options))


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until a condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def is_idle(client: llmopt.AsyncClient) -> bool:
    """Whether the client holds nothing: no slot, no connection in use, and no waiting request."""
    endpoint = next(iter(next(iter(client.stats().values())).values()))
    connections = endpoint["connections"]
    held = (endpoint["in_flight"], endpoint["waiting"], connections["in_use"], connections["waiting"])
    return held == (0, 0, 0, 0)
