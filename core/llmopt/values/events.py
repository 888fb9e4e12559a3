"""The events that ``on_event`` receives: requests, retries, waits, limits, circuits, connections, streams and the cache.

Each kind is a class with a fixed ``name``. Events contain no API key and no text of the user. They are made only if the
client has a listener.

Values only: no I/O, no clock and no shared state, because times and durations are passed in and an event never changes.
`llmopt.engine.telemetry` makes the events and calls the listener.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from attrs import frozen

from llmopt.errors import Sent
from llmopt.values.calls import Operation


@frozen(kw_only=True)
class Event:
    """The base class of all events.

    Attributes:
        provider: name of the provider entry, "" for an event that concerns several.
        model: model of the call, "" if none is concerned.
        endpoint: origin of the endpoint, "" if none is chosen or concerned.
    """

    name: ClassVar[str] = ""

    provider: str
    model: str = ""
    endpoint: str = ""


OnEvent = Callable[[Event], None]
"""A listener. It is called on the event loop, so it must return quickly and not block. `llmopt.Client` calls it in the
client's thread; where loops in several threads use one client, it may run in several threads at once."""

# Requests. One request may take several attempts, and each attempt is one HTTP request.

WaitCause = Literal["limiter", "breaker", "concurrency", "pool"]
"""What a request waits for: the rate limiter, an open circuit, a slot of the concurrency limit, a connection."""


@frozen(kw_only=True)
class RequestStart(Event):
    """Emitted when a request begins, before any wait.

    Attributes:
        operation: what is requested.
        items: number of texts, 0 if the request has none.
        tokens: estimated tokens.
    """

    name: ClassVar[str] = "request.start"

    operation: Operation
    items: int = 0
    tokens: int = 0


@frozen(kw_only=True)
class RequestEnd(Event):
    """Emitted when a request has ended, after its last attempt.

    Attributes:
        operation: what was requested.
        outcome: "ok" or the name of the exception.
        attempts: number of attempts. A compressed request that is sent again uncompressed counts as one.
        seconds: since its start, waits included.
    """

    name: ClassVar[str] = "request.end"

    operation: Operation
    outcome: str
    attempts: int
    seconds: float


@frozen(kw_only=True)
class RequestAttempt(Event):
    """Emitted when an attempt has ended.

    Attributes:
        attempt: its number, 1 for the first.
        outcome: "ok" or the name of the exception.
        status: HTTP status, None without a response.
        seconds: from sending to the end of the response.
        sent: whether the request left this process: "no", "maybe" or "yes".
        reused: whether the connection had carried a request before.
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
    """Emitted when a retry is scheduled.

    Attributes:
        attempt: number of the attempt to come.
        delay: seconds until then.
        cause: name of the exception of the failed attempt.
    """

    name: ClassVar[str] = "request.retry"

    attempt: int
    delay: float
    cause: str


@frozen(kw_only=True)
class RequestWaiting(Event):
    """Emitted when a request begins to wait. `RequestWait` follows, unless the caller gives up.

    Attributes:
        cause: what it waits for.
    """

    name: ClassVar[str] = "request.waiting"

    cause: WaitCause


@frozen(kw_only=True)
class RequestWait(Event):
    """Emitted when a request has waited.

    Attributes:
        cause: what it waited for.
        seconds: how long.
    """

    name: ClassVar[str] = "request.wait"

    cause: WaitCause
    seconds: float


@frozen(kw_only=True)
class JsonParse(Event):
    """Emitted when a response was parsed into values.

    Attributes:
        operation: what was requested.
        size: bytes of the body, after decompression.
        seconds: how long parsing took.
    """

    name: ClassVar[str] = "json.parse"

    operation: Operation
    size: int
    seconds: float


# Batches, limits and circuits.


@frozen(kw_only=True)
class BatchSplit(Event):
    """Emitted when a failed batch is split, to be sent again in parts.

    Attributes:
        items: number of texts in the batch.
        cause: name of the exception.
    """

    name: ClassVar[str] = "batch.split"

    items: int
    cause: str


LimitSource = Literal["stated", "observed", "headers", "server"]
"""Where a limit was learned: from the text of an error, from an error without numbers, from response headers, or from
the endpoint where a server publishes its limits."""


@frozen(kw_only=True)
class LimitLearned(Event):
    """Emitted when a limit became known or changed.

    Attributes:
        limit: "max_items", "max_item_tokens", "max_tokens", "max_bytes" (of one request), "rpm" or "tpm".
        value: the limit: items, tokens, bytes, or requests or tokens per minute.
        source: where it was learned.
    """

    name: ClassVar[str] = "limit.learned"

    limit: str
    value: float
    source: LimitSource


@frozen(kw_only=True)
class SharedDegraded(Event):
    """Emitted when the store of shared limits does not answer any more, and when it answers again.

    Attributes:
        degraded: whether each process keeps to its own part of the limits from now on; False when the store is back.
        cause: name of the exception of the last failure.
        seconds: how long it did not answer, 0 if ``degraded``.
    """

    name: ClassVar[str] = "shared.degraded"

    degraded: bool
    cause: str
    seconds: float = 0.0


@frozen(kw_only=True)
class BreakerChanged(Event):
    """Emitted when a circuit breaker changed its state. ``provider`` is "" if several entries share the endpoint.

    Attributes:
        circuit: name of the circuit.
        old: the state before: "closed", "open" or "half_open".
        new: the state after.
        break_duration_s: seconds for which an open circuit lets no request through; 0 in the other states.
        cause: name of the exception that opened it, "" in the other states.
    """

    name: ClassVar[str] = "breaker.change"

    circuit: str
    old: str
    new: str
    break_duration_s: float = 0.0
    cause: str = ""


@frozen(kw_only=True)
class EndpointSetAside(Event):
    """Emitted when one of several endpoints lacks a model (404), or its key may not use it (403).

    For a while the other endpoints are asked for that model.

    Attributes:
        index: position of the endpoint in the entry, because several may have one origin and differ in the key.
        operation: what was requested.
        cause: name of the exception.
        seconds: for how long the others are asked.
    """

    name: ClassVar[str] = "endpoint.set_aside"

    index: int
    operation: Operation
    cause: str
    seconds: float


# Connections, streams and compression.


@frozen(kw_only=True)
class PoolCheckout(Event):
    """Emitted when a request got a connection from the pool.

    Attributes:
        seconds: how long it waited, connecting included.
        reused: whether the connection was open before.
    """

    name: ClassVar[str] = "pool.checkout"

    seconds: float
    reused: bool


@frozen(kw_only=True)
class PoolReuse(Event):
    """Emitted when an open connection is used for another request.

    Attributes:
        served: number of requests that it carried before.
    """

    name: ClassVar[str] = "pool.reuse"

    served: int


@frozen(kw_only=True)
class PoolSize(Event):
    """Emitted when the number of connections to an endpoint has changed.

    Attributes:
        open: all connections, those being opened included.
        in_use: connections that carry a request or are being opened.
        waiting: requests that wait for a connection.
    """

    name: ClassVar[str] = "pool.size"

    open: int
    in_use: int
    waiting: int


@frozen(kw_only=True)
class StreamChunk(Event):
    """Emitted for each chunk of a streamed response after the first event.

    Attributes:
        size: bytes of the chunk.
        events: server-sent events that it completed.
        seconds: how long it was waited for.
    """

    name: ClassVar[str] = "stream.chunk"

    size: int
    events: int
    seconds: float


@frozen(kw_only=True)
class StreamUnknown(Event):
    """Emitted for each event of a stream whose type llmopt does not know; it adds nothing to the reply.

    Attributes:
        kind: the type as the server names it, "unnamed" if it does not.
    """

    name: ClassVar[str] = "stream.unknown"

    kind: str


@frozen(kw_only=True)
class RequestCompression(Event):
    """Emitted when a request body was compressed; all attempts send the same compressed body.

    Attributes:
        size: bytes before compression.
        sent: bytes after compression.
    """

    name: ClassVar[str] = "request.compression"

    size: int
    sent: int

    @property
    def ratio(self) -> float:
        """Size before compression divided by size after compression."""
        return self.size / self.sent if self.sent else 1.0


@frozen(kw_only=True)
class CompressionRefused(Event):
    """Emitted when an endpoint refused a compressed request and accepted the same request uncompressed.

    Later requests to this endpoint are not compressed.

    Attributes:
        status: HTTP status of the refusal.
    """

    name: ClassVar[str] = "compression.refused"

    status: int


@frozen(kw_only=True)
class ResponseCompression(Event):
    """Emitted when a response body was decompressed.

    Attributes:
        received: bytes as received.
        size: bytes after decompression.
    """

    name: ClassVar[str] = "response.compression"

    received: int
    size: int

    @property
    def ratio(self) -> float:
        """Size after decompression divided by the size received."""
        return self.size / self.received if self.received else 1.0


# The cache, and lists of models.

CacheKind = Literal["catalog", "embeddings"]
"""What is cached: lists of models, or vectors."""


@frozen(kw_only=True)
class CacheEvent(Event):
    """The base class of cache events.

    Attributes:
        cache: "catalog" for lists of models, "embeddings" for vectors.
        items: number of lists or texts that the event concerns.
    """

    cache: CacheKind
    items: int = 1


@frozen(kw_only=True)
class CacheHit(CacheEvent):
    """Emitted when something was returned from the cache.

    Attributes:
        age: seconds since it was stored; 0.0 for vectors.
    """

    name: ClassVar[str] = "cache.hit"

    age: float = 0.0


@frozen(kw_only=True)
class CacheMiss(CacheEvent):
    """Emitted when something is not in the cache, or too old to be returned without a request."""

    name: ClassVar[str] = "cache.miss"


@frozen(kw_only=True)
class CacheStale(CacheEvent):
    """Emitted when something was returned from the cache after its time to live.

    Attributes:
        age: seconds since it was stored.
        cause: "refreshing" if a refresh runs in the background, "offline" if the caller allowed no request, or the
            name of the exception that made a refresh impossible.
    """

    name: ClassVar[str] = "cache.stale"

    age: float
    cause: str


@frozen(kw_only=True)
class CacheRefresh(CacheEvent):
    """Emitted when a background refresh has ended.

    Attributes:
        outcome: "new", "unchanged" or the name of the exception.
        seconds: how long it took.
    """

    name: ClassVar[str] = "cache.refresh"

    outcome: str
    seconds: float


@frozen(kw_only=True)
class CacheSized(CacheEvent):
    """Emitted after something was stored, at most every 10 seconds; ``items`` is the number of entries.

    Attributes:
        size: bytes of all entries.
        max_size: limit of ``size`` in bytes.
    """

    name: ClassVar[str] = "cache.size"

    size: int
    max_size: int


@frozen(kw_only=True)
class CacheEviction(CacheEvent):
    """Emitted with `CacheSized` when ``items`` entries were evicted to make room since the last such event."""

    name: ClassVar[str] = "cache.eviction"


@frozen(kw_only=True)
class CatalogDiscover(Event):
    """Emitted when a provider's list of models was returned, or could not be.

    Attributes:
        outcome: "ok" or the name of the exception.
        source: "cache" or "provider".
        models: number of models.
        dropped: number of entries of the list that could not be read and are missing.
        seconds: how long the request took; 0.0 from the cache.
    """

    name: ClassVar[str] = "catalog.discover"

    outcome: str
    source: Literal["cache", "provider"]
    models: int = 0
    dropped: int = 0
    seconds: float = 0.0


@frozen(kw_only=True)
class CatalogBatch(Event):
    """Emitted when ``batch_list_models`` has ended.

    Attributes:
        providers: number of providers.
        failures: number of providers whose result is an error.
        seconds: how long it took.
    """

    name: ClassVar[str] = "catalog.batch"

    providers: int
    failures: int
    seconds: float
