"""What happened, as it happens: the values that ``on_event`` gets.

Each kind is a class, its ``name`` is the same for ever. Events hold no key and no text. Nothing is
made when nobody listens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from attrs import frozen

from llmopt.errors import Sent
from llmopt.values.calls import Operation

WaitCause = Literal["limiter", "breaker", "concurrency", "pool"]
"""What a request waited for."""


@frozen(kw_only=True)
class Event:
    """The base of all events.

    Attributes:
        provider: name of the provider entry.
        model: model of the call, "" where none is concerned.
        endpoint: origin of the endpoint, "" before one is chosen.
    """

    name: ClassVar[str] = ""

    provider: str
    model: str = ""
    endpoint: str = ""


@frozen(kw_only=True)
class RequestStart(Event):
    """A request begins. ``items`` texts of about ``tokens`` tokens."""

    name: ClassVar[str] = "request.start"

    operation: Operation
    items: int = 0
    tokens: int = 0


@frozen(kw_only=True)
class RequestEnd(Event):
    """A request is over, after all its attempts.

    Attributes:
        outcome: "ok" or the name of the exception.
        attempts: HTTP requests made; a packed one that is sent again as it was is one with that.
        seconds: from its start, waits included.
    """

    name: ClassVar[str] = "request.end"

    operation: Operation
    outcome: str
    attempts: int
    seconds: float


@frozen(kw_only=True)
class RequestAttempt(Event):
    """One HTTP request was made.

    Attributes:
        attempt: 1 for the first.
        outcome: "ok" or the name of the exception.
        status: HTTP status, None without an answer.
        seconds: on the wire.
        sent: whether it left this process.
        reused: whether it travelled on a kept connection.
    """

    name: ClassVar[str] = "request.attempt"

    attempt: int
    outcome: str
    status: int | None = None
    seconds: float = 0.0
    sent: Sent = "no"
    reused: bool = False


@frozen(kw_only=True)
class RequestRetry(Event):
    """A request will be made again in ``delay`` seconds; ``attempt`` is the number it will have."""

    name: ClassVar[str] = "request.retry"

    attempt: int
    delay: float
    cause: str


@frozen(kw_only=True)
class RequestWaiting(Event):
    """A request begins to wait for something; `RequestWait` tells when that is over, unless it is given up."""

    name: ClassVar[str] = "request.waiting"

    cause: WaitCause


@frozen(kw_only=True)
class RequestWait(Event):
    """A request waited ``seconds`` for something before it could be sent."""

    name: ClassVar[str] = "request.wait"

    cause: WaitCause
    seconds: float


@frozen(kw_only=True)
class BatchSplit(Event):
    """A batch of ``items`` texts is sent again in parts, because of ``cause``."""

    name: ClassVar[str] = "batch.split"

    items: int
    cause: str


LimitSource = Literal["stated", "observed", "headers", "server"]
"""Who says so: a refusal's text, its mere fact, the headers of answers, the server when asked."""


@frozen(kw_only=True)
class LimitLearned(Event):
    """A limit became known: ``limit`` is "max_items", "max_tokens", "rpm" or the like."""

    name: ClassVar[str] = "limit.learned"

    limit: str
    value: float
    source: LimitSource


@frozen(kw_only=True)
class BreakerChanged(Event):
    """A circuit changed from ``old`` to ``new``; while open it rests ``rest_s`` seconds."""

    name: ClassVar[str] = "breaker.change"

    circuit: str
    old: str
    new: str
    rest_s: float = 0.0


@frozen(kw_only=True)
class PoolCheckout(Event):
    """A request got its connection, ``seconds`` after it asked: a kept one, or one that was made for it."""

    name: ClassVar[str] = "pool.checkout"

    seconds: float
    reused: bool


@frozen(kw_only=True)
class StreamChunk(Event):
    """A piece of a stream came, after its first: ``size`` bytes, which completed ``events`` of the server's events.

    ``seconds`` were waited for it.
    """

    name: ClassVar[str] = "stream.chunk"

    size: int
    events: int
    seconds: float


@frozen(kw_only=True)
class PoolReuse(Event):
    """A kept connection carries one more request; it has carried ``served`` before."""

    name: ClassVar[str] = "pool.reuse"

    served: int


@frozen(kw_only=True)
class PoolSize(Event):
    """The number of an endpoint's connections is not what it was.

    Attributes:
        open: connections in all, those under way included.
        in_use: those that carry a request or are being made.
        waiting: requests that wait for one.
    """

    name: ClassVar[str] = "pool.size"

    open: int
    in_use: int
    waiting: int


@frozen(kw_only=True)
class RequestCompression(Event):
    """The body of a request, ``size`` bytes, was packed into ``sent`` bytes, which all its attempts send."""

    name: ClassVar[str] = "request.compression"

    size: int
    sent: int

    @property
    def ratio(self) -> float:
        """How many times smaller it is than it was."""
        return self.size / self.sent if self.sent else 1.0


@frozen(kw_only=True)
class CompressionRefused(Event):
    """An endpoint refused a packed request with this status and took it unpacked: it gets no more packed ones."""

    name: ClassVar[str] = "compression.refused"

    status: int


@frozen(kw_only=True)
class ResponseCompression(Event):
    """An answer came packed: ``received`` bytes on the wire stood for ``size`` bytes."""

    name: ClassVar[str] = "response.compression"

    received: int
    size: int

    @property
    def ratio(self) -> float:
        """How many times larger it is than what travelled."""
        return self.size / self.received if self.received else 1.0


@frozen(kw_only=True)
class JsonParse(Event):
    """An answer of ``size`` bytes was read into values, in ``seconds``."""

    name: ClassVar[str] = "json.parse"

    operation: Operation
    size: int
    seconds: float


OnEvent = Callable[[Event], None]
"""A listener. It is called on the event loop, and must be quick."""
