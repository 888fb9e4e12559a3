"""What one attempt at a request came to."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from llmopt.errors import Sent

Phase = Literal["pool", "connect", "send", "wait", "read", "done"]


@frozen(kw_only=True)
class AttemptInfo:
    """How far one request came on the wire, as the transport reports it.

    Attributes:
        phase: the last phase entered.
        reused: whether the connection had carried a request before.
        sent: whether bytes of the request left this process: "no", "maybe" or "yes".
        queued_s: seconds spent waiting for a pooled connection.
        packed: bytes of the answer's body as it travelled, None where it was not packed.
    """

    phase: Phase = "pool"
    reused: bool = False
    sent: Sent = "maybe"
    queued_s: float = 0.0
    packed: int | None = None


@frozen(kw_only=True)
class Attempt:
    """A line of an error's history: which endpoint, what happened, how long it took in seconds."""

    endpoint: str
    outcome: str
    status: int | None = None
    seconds: float = 0.0
