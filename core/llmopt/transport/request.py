"""One request as the wire sends it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from attrs import define, field

from llmopt.errors import Sent
from llmopt.values.http import AttemptInfo, Phase

if TYPE_CHECKING:
    from llmopt.transport.urls import Proxy


def _without_query(url: str) -> str:
    return repr(url.partition("?")[0])


def _names(headers: Mapping[str, str]) -> str:
    return repr(list(headers))


def _size(body: bytes | None) -> str:
    return "None" if body is None else f"<{len(body)} bytes>"


@define(kw_only=True, eq=False)
class WireRequest:
    """What to send, and the bounds within which an answer is wanted. Never changed; freezing it would double its price.

    Attributes:
        method: "GET" or "POST".
        url: absolute, http or https, without user information.
        headers: names and values; ``accept-encoding`` is added by the wire.
        body: the encoded body, None for none.
        unpacked: the body as it was before it was packed, None where it is not. Not sent, but by who sends the
            request once more.
        connect_timeout: seconds for name look-up, TCP and TLS together, None for no bound.
        pool_timeout: seconds to wait for a free connection, None for no bound.
        timeout: seconds for the whole attempt, from the first wait to the last byte of the answer; of a
            stream, to the end of the answer's head. None for no bound.
        idle: seconds without a byte of a stream after which a transport that nobody can interrupt gives up
            by itself; None for a long time. No bound for others: their idle clock is the caller's.
        max_body: most bytes that an answer may have once it is unpacked.
    """

    method: str
    url: str = field(repr=_without_query)
    headers: Mapping[str, str] = field(factory=dict, repr=_names)
    body: bytes | None = field(default=None, repr=_size)
    unpacked: bytes | None = field(default=None, repr=_size)
    connect_timeout: float | None = 10.0
    pool_timeout: float | None = 5.0
    timeout: float | None = 60.0
    idle: float | None = None
    max_body: int = 512 * 2**20


# How far one attempt has come.

_USUAL: Final = AttemptInfo(phase="done", reused=True, sent="yes")


class Trip:
    """Written while an attempt goes on, read when it ends in one way or another.

    Attributes:
        request: what is being sent.
        origin: where it goes.
        proxy: through what, None for straight.
        phase: the last phase entered.
        reused: whether the connection had carried a request before.
        heard: whether any byte of an answer came.
        broken: whether the connection was lost otherwise than by a clean end.
        status: status of the answer, None before its head was read.
        queued_s: seconds spent waiting for a pooled connection.
        closed: whether the pool was closed meanwhile.
    """

    __slots__ = (
        "broken",
        "closed",
        "heard",
        "origin",
        "phase",
        "proxy",
        "queued_s",
        "request",
        "reused",
        "status",
    )

    def __init__(self, request: WireRequest, origin: str, proxy: Proxy | None = None) -> None:
        self.request: Final = request
        self.origin: Final = origin
        self.proxy: Final = proxy
        self.phase: Phase = "pool"
        self.reused = False
        self.heard = False
        self.broken = False
        self.status: int | None = None
        self.queued_s = 0.0
        self.closed = False

    @property
    def connecting(self) -> bool:
        """Whether no connection had come about yet."""
        return self.phase in ("pool", "connect")

    @property
    def sent(self) -> Sent:
        """Whether the request can have left: surely not, possibly, or surely because an answer began."""
        if self.connecting:
            return "no"
        return "maybe" if self.status is None else "yes"

    def info(self, *, compressed_size: int | None = None) -> AttemptInfo:
        """The same as a value. ``compressed_size``: bytes of the body as received, None if not compressed."""
        # One instance for the usual case: a value made per request costs a microsecond of sixty.
        if self.phase == "done" and self.reused and not self.queued_s and compressed_size is None:
            return _USUAL
        return AttemptInfo(
            phase=self.phase,
            reused=self.reused,
            sent=self.sent,
            queued_s=self.queued_s,
            compressed_size=compressed_size,
        )
