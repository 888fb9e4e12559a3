"""A transport for tests: a function in this process answers the requests, without a network.

The function is the user's. It is called on the event loop of the request, which it blocks until it returns; with
`llmopt.Client` that is in the client's thread, and with loops in several threads perhaps in several at once. The
transport awaits the request's body, and `asyncio.sleep` before each piece of a stream that has a ``pause``. No state
and no I/O; httpx is imported at first use.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from attrs import field, frozen

from llmopt.values.secret import repr_names, repr_size

if TYPE_CHECKING:
    import httpx


@frozen(kw_only=True)
class SentRequest:
    """A request as the client sent it.

    Attributes:
        method: HTTP method, in capitals.
        url: the whole URL.
        headers: by names in lower case.
        body: the bytes, still compressed if they were sent so.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=repr_names)
    body: bytes = field(default=b"", repr=repr_size)

    @property
    def target(self) -> str:
        """Path and query."""
        rest = self.url.partition("://")[2]
        return "/" + rest.partition("/")[2]

    @property
    def json(self) -> Any:
        """The body as JSON, None when there is none."""
        return msgspec.json.decode(self.body) if self.body else None


@frozen(kw_only=True)
class Reply:
    """A response to give.

    Attributes:
        status: HTTP status.
        body: the bytes.
        headers: added to the content type.
        breaks: how the connection fails instead: "connect" before, "read" or "timeout" after the request
            was sent; "" if it does not fail.
        pieces: the body of a streamed response in pieces; with ``breaks="read"`` the connection fails after them.
        pause: seconds before each piece.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(factory=dict)
    breaks: Literal["", "connect", "read", "timeout"] = ""
    pieces: tuple[bytes, ...] = field(default=(), repr=repr_size)
    pause: float = 0.0


def function_transport(answer: Callable[[SentRequest], Reply]) -> httpx.AsyncBaseTransport:
    """An httpx transport that calls a function for every response."""
    from httpx import ConnectError, MockTransport, ReadError, ReadTimeout, Request, RequestError, Response

    broken: dict[str, type[RequestError]] = {
        "connect": ConnectError,
        "read": ReadError,
        "timeout": ReadTimeout,
    }

    async def stream_pieces(reply: Reply, request: Request) -> AsyncIterator[bytes]:
        for piece in reply.pieces:
            if reply.pause:
                await asyncio.sleep(reply.pause)
            yield piece
        if reply.breaks:
            raise ReadError("the connection breaks in the middle of the stream", request=request)

    async def handle(request: Request) -> Response:
        body = await request.aread()
        sent = SentRequest(
            method=request.method, url=str(request.url), headers=dict(request.headers), body=body
        )
        reply = answer(sent)
        if reply.breaks and not reply.pieces:
            raise broken[reply.breaks](f"the connection fails ({reply.breaks})", request=request)
        headers = {"content-type": "application/json", **reply.headers}
        if reply.pieces:
            return Response(reply.status, headers=headers, content=stream_pieces(reply, request))
        return Response(reply.status, headers=headers, content=reply.body)

    return MockTransport(handle)
