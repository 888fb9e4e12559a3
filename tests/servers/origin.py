"""An ASGI application with every kind of answer that the tests of real HTTP servers ask for; uvicorn runs it.

`origin.mjs` is the same for node. The other servers pass requests on to this one.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tests.servers.paths import EVENT_PAUSE_S, pattern, vector_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
PIECE = 50_000


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer by the first part of the path."""
    if scope["type"] != "http":
        return
    what, _, rest = scope["path"].removeprefix("/").partition("/")
    await ANSWERS[what](Call(scope, receive, send), rest)


class Call:
    """One request and the ways to answer it."""

    def __init__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive, self.send = receive, send

    async def body(self) -> bytes:
        """The whole body of the request."""
        pieces = []
        while True:
            message = await self._receive()
            pieces.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(pieces)

    async def start(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        """Send the head."""
        await self.send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def piece(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of the body."""
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def whole(self, status: int, data: bytes, *headers: tuple[bytes, bytes]) -> None:
        """Send head and body, with a length."""
        await self.start(status, (b"content-length", str(len(data)).encode()), *headers)
        await self.piece(data, more=False)


async def sized(call: Call, rest: str) -> None:
    await call.whole(200, pattern(int(rest)))


async def echo(call: Call, rest: str) -> None:
    await call.whole(200, await call.body())


async def chunked(call: Call, rest: str) -> None:
    data = pattern(int(rest))
    await call.body()
    await call.start(200)
    for at in range(0, len(data), PIECE):
        await call.piece(data[at : at + PIECE])
    await call.piece(b"", more=False)


async def zipped(call: Call, rest: str) -> None:
    await call.whole(200, gzip.compress(pattern(int(rest)), 1), (b"content-encoding", b"gzip"))


async def status(call: Call, rest: str) -> None:
    number = int(rest)
    await call.body()
    if number in {204, 304}:
        await call.start(number)
        await call.piece(b"", more=False)
    else:
        await call.whole(number, f"status {number}".encode())


async def closing(call: Call, rest: str) -> None:
    await call.whole(200, b"the last", (b"connection", b"close"))


async def early(call: Call, rest: str) -> None:
    # The body is still on its way.
    await call.whole(413, b"too large", (b"connection", b"close"))


async def events(call: Call, rest: str) -> None:
    await call.start(200, (b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no"))
    for number in range(int(rest)):
        await call.piece(f"data: {number}\n\n".encode())
        await asyncio.sleep(EVENT_PAUSE_S)
    await call.piece(b"", more=False)


async def embeddings(call: Call, rest: str) -> None:
    texts = json.loads(await call.body())["input"]
    rows = [{"index": index, "embedding": vector_of(text)} for index, text in enumerate(texts)]
    answer = {"data": rows, "model": "m", "usage": {"prompt_tokens": len(texts), "total_tokens": len(texts)}}
    await call.whole(200, json.dumps(answer).encode(), (b"content-type", b"application/json"))


ANSWERS = {
    "bytes": sized,
    "echo": echo,
    "chunked": chunked,
    "gzip": zipped,
    "status": status,
    "closing": closing,
    "early": early,
    "events": events,
    "v1": embeddings,
}
