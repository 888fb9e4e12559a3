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
    """A circuit changed from ``old`` to ``new``; an open circuit lets no request through for ``break_duration_s`` seconds."""

    name: ClassVar[str] = "breaker.change"

    circuit: str
    old: str
    new: str
    break_duration_s: float = 0.0


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


# What happens at the cache, as it happens; see `llmopt.values.events`.

CacheKind = Literal["catalog", "embeddings"]
"""What is kept."""


@frozen(kw_only=True)
class CacheEvent(Event):
    """The base of what happens at the cache.

    Attributes:
        cache: "catalog" for lists of models, "embeddings" for vectors.
        items: lists, or texts, that it concerns.
    """

    cache: CacheKind
    items: int = 1


@frozen(kw_only=True)
class CacheHit(CacheEvent):
    """Something was had from the cache. ``age`` is in seconds, 0.0 where several were had at once."""

    name: ClassVar[str] = "cache.hit"

    age: float = 0.0


@frozen(kw_only=True)
class CacheMiss(CacheEvent):
    """Something was not in the cache, or too old."""

    name: ClassVar[str] = "cache.miss"


@frozen(kw_only=True)
class CacheStale(CacheEvent):
    """Something older than it should be was given; ``cause`` is "refreshing", or the exception's name."""

    name: ClassVar[str] = "cache.stale"

    age: float
    cause: str


@frozen(kw_only=True)
class CacheRefresh(CacheEvent):
    """Something was asked for anew beside its callers.

    Attributes:
        outcome: "new", "unchanged" or the name of the exception.
        seconds: it took.
    """

    name: ClassVar[str] = "cache.refresh"

    outcome: str
    seconds: float


@frozen(kw_only=True)
class CacheSized(CacheEvent):
    """How much the cache holds: ``items`` entries of ``size`` bytes, of at most ``max_size`` bytes."""

    name: ClassVar[str] = "cache.size"

    size: int
    max_size: int


@frozen(kw_only=True)
class CacheEviction(CacheEvent):
    """``items`` entries had to go for others since this was last told."""

    name: ClassVar[str] = "cache.eviction"


@frozen(kw_only=True)
class CatalogDiscover(Event):
    """A provider's list of models was got, or could not be.

    Attributes:
        outcome: "ok" or the name of the exception.
        source: "cache" or "provider".
        models: number of models.
        seconds: it took.
    """

    name: ClassVar[str] = "catalog.discover"

    outcome: str
    source: Literal["cache", "provider"]
    models: int = 0
    seconds: float = 0.0


@frozen(kw_only=True)
class CatalogBatch(Event):
    """The lists of ``providers`` providers were got, but for those of ``failures`` of them; ``seconds`` it took."""

    name: ClassVar[str] = "catalog.batch"

    providers: int
    failures: int
    seconds: float
