"""How far one attempt has come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmopt.errors import Sent
from llmopt.values.attempt import AttemptInfo, Phase
from llmopt.wire.request import WireRequest

if TYPE_CHECKING:
    from llmopt.wire.proxies import Proxy

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

    def info(self, *, packed: int | None = None) -> AttemptInfo:
        """The same as a value; ``packed`` bytes of an answer travelled, None where it was not packed."""
        # One instance for the usual case: a value made per request costs a microsecond of sixty.
        if self.phase == "done" and self.reused and not self.queued_s and packed is None:
            return _USUAL
        return AttemptInfo(
            phase=self.phase, reused=self.reused, sent=self.sent, queued_s=self.queued_s, packed=packed
        )
