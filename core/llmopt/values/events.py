"""The events that ``on_event`` receives: calls, requests, retries, waits, limits, circuits, connections, streams, cache.

Each kind is a class with a fixed ``name``; `Event` is the union of them, which a comparison of ``name`` narrows. Events
contain no API key and no text of the user. They are made only for a listener, or for a line in the log.

Values only: no I/O, no clock and no shared state, because times and durations are passed in and an event never changes.
`llmopt.engine.telemetry` makes the events and calls the listener.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

from attrs import field, frozen

from llmopt.errors import Sent
from llmopt.values.calls import Operation
from llmopt.values.embeddings import Usage


@frozen(kw_only=True)
class BaseEvent:
    """What all events have.

    Attributes:
        provider: name of the provider entry, "" for an event that concerns several.
        model: model of the call, "" if none is concerned.
        endpoint: origin of the endpoint; before one of several is chosen, that of the first.
        call_id: the same for all events of one call of the user's, 16 hexadecimal digits; "" outside of calls.
        request_key: the same for all events of one request, which begins with the id of its call; "" outside of
            requests. The provider's own id of a request is called request id.
        attempt: number of the attempt, 1 for the first; 0 outside of attempts.
    """

    provider: str = ""
    model: str = ""
    endpoint: str = ""
    call_id: str = ""
    request_key: str = ""
    attempt: int = 0


# Calls of the user's. One call may make no request, because all is cached, or many.


@frozen(kw_only=True)
class CallStart(BaseEvent):
    """Emitted when a call begins. `CallEnd` follows.

    Attributes:
        operation: what is asked for.
        items: number of texts, of messages or of providers; 0 if it is not known yet.
        stream: whether the result is returned in parts.
    """

    name: ClassVar[Literal["call.start"]] = "call.start"

    operation: Operation
    items: int = 0
    stream: bool = False


@frozen(kw_only=True)
class CallEnd(BaseEvent):
    """Emitted when a call has ended. A request that another call has joined may end later.

    Attributes:
        operation: what was asked for.
        outcome: "ok", "cancelled" or the name of the exception; "cancelled" also if the reader has left a stream.
        items: number of texts, of replies, of models or of providers in the result. A reply that broke off counts.
        failures: how many of these have an error in place of a result.
        requests: HTTP requests that it sent.
        seconds: since its start.
        usage: the tokens as the responses report them, None if they do not.
        response_model: the model as the response names it, "" if it does not.
        finish_reason: of a chat, in the server's word; None without one.
        response_id: the server's id of the reply, "" if there is none.
    """

    name: ClassVar[Literal["call.end"]] = "call.end"

    operation: Operation
    outcome: str
    items: int = 0
    failures: int = 0
    requests: int = 0
    seconds: float = 0.0
    usage: Usage | None = None
    response_model: str = ""
    finish_reason: str | None = None
    response_id: str = ""


# Requests. One request may take several attempts, and each attempt is one HTTP request.

WaitCause = Literal["limiter", "breaker", "concurrency", "pool"]
"""What a request waits for: the rate limiter, an open circuit, a slot of the concurrency limit, a connection."""


@frozen(kw_only=True)
class RequestStart(BaseEvent):
    """Emitted when a request begins, before any wait.

    Attributes:
        operation: what is requested.
        items: number of texts, 0 if the request has none.
        tokens: estimated tokens.
    """

    name: ClassVar[Literal["request.start"]] = "request.start"

    operation: Operation
    items: int = 0
    tokens: int = 0


@frozen(kw_only=True)
class RequestEnd(BaseEvent):
    """Emitted when a request has ended, after its last attempt.

    Attributes:
        operation: what was requested.
        outcome: "ok" or the name of the exception.
        attempts: number of attempts. A compressed request that is sent again uncompressed counts as one.
        seconds: since its start, waits included.
    """

    name: ClassVar[Literal["request.end"]] = "request.end"

    operation: Operation
    outcome: str
    attempts: int
    seconds: float


@frozen(kw_only=True)
class RequestAttempt(BaseEvent):
    """Emitted when an attempt has ended.

    Attributes:
        outcome: "ok" or the name of the exception.
        status: HTTP status, None without a response.
        seconds: from sending to the end of the response.
        sent: whether the request left this process: "no", "maybe" or "yes".
        reused: whether the connection had carried a request before.
    """

    name: ClassVar[Literal["request.attempt"]] = "request.attempt"

    outcome: str
    status: int | None = None
    seconds: float = 0.0
    sent: Sent = "no"
    reused: bool = False


@frozen(kw_only=True)
class RequestRetry(BaseEvent):
    """Emitted when a retry is scheduled; ``attempt`` is the number of the attempt to come.

    Attributes:
        delay: seconds until then.
        cause: name of the exception of the failed attempt.
    """

    name: ClassVar[Literal["request.retry"]] = "request.retry"

    delay: float
    cause: str


@frozen(kw_only=True)
class RequestWaiting(BaseEvent):
    """Emitted when a request begins to wait for its ``cause``. `RequestWait` follows."""

    name: ClassVar[Literal["request.waiting"]] = "request.waiting"

    cause: WaitCause


@frozen(kw_only=True)
class RequestWait(BaseEvent):
    """Emitted when a request has waited.

    Attributes:
        cause: what it waited for.
        seconds: how long.
        outcome: "ok", "cancelled", or the name of the exception that ended the wait.
        limits: the limits in force: "rpm" and "tpm" of the rate limiter, "concurrency" in requests at once.
    """

    name: ClassVar[Literal["request.wait"]] = "request.wait"

    cause: WaitCause
    seconds: float
    outcome: str = "ok"
    limits: Mapping[str, float] = field(factory=dict)


@frozen(kw_only=True)
class JsonParse(BaseEvent):
    """Emitted when a response was parsed into values.

    Attributes:
        operation: what was requested.
        size: bytes of the body, after decompression.
        seconds: how long parsing took.
    """

    name: ClassVar[Literal["json.parse"]] = "json.parse"

    operation: Operation
    size: int
    seconds: float


# Batches, limits and circuits.


@frozen(kw_only=True)
class BatchSplit(BaseEvent):
    """Emitted when a failed batch of ``items`` texts is split, to be sent again in parts; ``cause`` is the exception."""

    name: ClassVar[Literal["batch.split"]] = "batch.split"

    items: int
    cause: str


LimitSource = Literal["stated", "observed", "headers", "server"]
"""Where a limit was learned: from the text of an error, from an error without numbers, from response headers, or from
the endpoint where a server publishes its limits."""


@frozen(kw_only=True)
class LimitLearned(BaseEvent):
    """Emitted when a limit became known or changed.

    Attributes:
        limit: "max_items", "max_item_tokens", "max_tokens", "max_bytes" (of one request), "rpm" or "tpm".
        value: the limit: items, tokens, bytes, or requests or tokens per minute.
        source: where it was learned.
    """

    name: ClassVar[Literal["limit.learned"]] = "limit.learned"

    limit: str
    value: float
    source: LimitSource


@frozen(kw_only=True)
class SharedDegraded(BaseEvent):
    """Emitted when the store of shared limits does not answer (``degraded``), and when it answers again.

    ``cause`` is the exception of the last failure, and ``seconds`` how long it did not answer, 0 if ``degraded``.
    """

    name: ClassVar[Literal["shared.degraded"]] = "shared.degraded"

    degraded: bool
    cause: str
    seconds: float = 0.0


@frozen(kw_only=True)
class BreakerChanged(BaseEvent):
    """Emitted when a circuit breaker changed its state.

    Several entries may share the circuit of an endpoint: ``provider`` is then that of the request that changed it.

    Attributes:
        circuit: name of the circuit.
        old: the state before: "closed", "open" or "half_open".
        new: the state after.
        break_duration_s: seconds for which an open circuit lets no request through; 0 in the other states.
        cause: name of the exception that opened it, "" in the other states.
        message: what that exception says.
    """

    name: ClassVar[Literal["breaker.change"]] = "breaker.change"

    circuit: str
    old: str
    new: str
    break_duration_s: float = 0.0
    cause: str = ""
    message: str = ""


@frozen(kw_only=True)
class EndpointSetAside(BaseEvent):
    """Emitted when one of several endpoints lacks a model (404), or its key may not use it (403).

    For a while the other endpoints are asked for that model.

    Attributes:
        index: position of the endpoint in the entry, because several may have one origin and differ in the key.
        operation: what was requested.
        cause: name of the exception.
        seconds: for how long the others are asked.
        message: what the exception says.
    """

    name: ClassVar[Literal["endpoint.set_aside"]] = "endpoint.set_aside"

    index: int
    operation: Operation
    cause: str
    seconds: float
    message: str = ""


@frozen(kw_only=True)
class CredentialRefused(BaseEvent):
    """Emitted when a server refused a key, or its quota is used up. For a while nothing is sent with that key.

    Attributes:
        cause: name of the exception.
        message: what it says.
    """

    name: ClassVar[Literal["credential.refused"]] = "credential.refused"

    cause: str
    message: str = ""


@frozen(kw_only=True)
class KeysRefused(BaseEvent):
    """Emitted when an endpoint refused optional keys of a request body. Later requests to it go without them."""

    name: ClassVar[Literal["keys.refused"]] = "keys.refused"

    keys: tuple[str, ...]


# Connections, streams and compression.


@frozen(kw_only=True)
class PoolCheckout(BaseEvent):
    """Emitted when a request got a connection from the pool.

    Attributes:
        seconds: how long it waited, connecting included.
        reused: whether the connection was open before.
    """

    name: ClassVar[Literal["pool.checkout"]] = "pool.checkout"

    seconds: float
    reused: bool


@frozen(kw_only=True)
class PoolReuse(BaseEvent):
    """Emitted when an open connection, which carried ``served`` requests before, is used for another one."""

    name: ClassVar[Literal["pool.reuse"]] = "pool.reuse"

    served: int


@frozen(kw_only=True)
class PoolSize(BaseEvent):
    """Emitted when the number of connections to an endpoint has changed.

    Attributes:
        open: all connections, those being opened included.
        in_use: connections that carry a request or are being opened.
        waiting: requests that wait for a connection.
    """

    name: ClassVar[Literal["pool.size"]] = "pool.size"

    open: int
    in_use: int
    waiting: int


@frozen(kw_only=True)
class StreamFirstChunk(BaseEvent):
    """Emitted when the first event of a stream was received, ``seconds`` after the request was sent."""

    name: ClassVar[Literal["stream.first_chunk"]] = "stream.first_chunk"

    seconds: float


@frozen(kw_only=True)
class StreamChunk(BaseEvent):
    """Emitted for each chunk of a streamed response after the first event.

    Attributes:
        size: bytes of the chunk.
        events: server-sent events that it completed.
        seconds: how long it was waited for.
    """

    name: ClassVar[Literal["stream.chunk"]] = "stream.chunk"

    size: int
    events: int
    seconds: float


@frozen(kw_only=True)
class StreamUnknown(BaseEvent):
    """Emitted for each event of a stream whose type llmopt does not know; it adds nothing to the reply.

    ``kind`` is the type as the server names it, "unnamed" if it does not.
    """

    name: ClassVar[Literal["stream.unknown"]] = "stream.unknown"

    kind: str


@frozen(kw_only=True)
class RequestCompression(BaseEvent):
    """Emitted when a body of ``size`` bytes was compressed to ``sent``; all attempts send the same compressed body."""

    name: ClassVar[Literal["request.compression"]] = "request.compression"

    size: int
    sent: int

    @property
    def ratio(self) -> float:
        """Size before compression divided by size after compression."""
        return self.size / self.sent if self.sent else 1.0


@frozen(kw_only=True)
class CompressionRefused(BaseEvent):
    """Emitted when an endpoint refused a compressed request (HTTP ``status``); later ones go uncompressed."""

    name: ClassVar[Literal["compression.refused"]] = "compression.refused"

    status: int


@frozen(kw_only=True)
class ResponseCompression(BaseEvent):
    """Emitted when a response body was decompressed from ``received`` bytes to ``size`` bytes."""

    name: ClassVar[Literal["response.compression"]] = "response.compression"

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
class CacheEvent(BaseEvent):
    """The base class of cache events.

    Attributes:
        cache: "catalog" for lists of models, "embeddings" for vectors.
        items: number of lists or texts that the event concerns.
    """

    cache: CacheKind
    items: int = 1


@frozen(kw_only=True)
class CacheHit(CacheEvent):
    """Emitted when something was returned from the cache, ``age`` seconds after it was stored; 0.0 for vectors."""

    name: ClassVar[Literal["cache.hit"]] = "cache.hit"

    age: float = 0.0


@frozen(kw_only=True)
class CacheMiss(CacheEvent):
    """Emitted when something is not in the cache, or too old to be returned without a request."""

    name: ClassVar[Literal["cache.miss"]] = "cache.miss"


@frozen(kw_only=True)
class CacheStale(CacheEvent):
    """Emitted when something was returned from the cache after its time to live.

    Attributes:
        age: seconds since it was stored.
        cause: "refreshing" if a refresh runs in the background, "offline" if the caller allowed no request, or the
            name of the exception that made a refresh impossible.
    """

    name: ClassVar[Literal["cache.stale"]] = "cache.stale"

    age: float
    cause: str


@frozen(kw_only=True)
class CacheRefresh(CacheEvent):
    """Emitted when a background refresh has ended.

    Attributes:
        outcome: "new", "unchanged" or the name of the exception.
        seconds: how long it took.
    """

    name: ClassVar[Literal["cache.refresh"]] = "cache.refresh"

    outcome: str
    seconds: float


@frozen(kw_only=True)
class CacheSized(CacheEvent):
    """Emitted after something was stored, at most every 10 seconds.

    ``items`` is the number of entries, ``size`` their bytes, and ``max_size`` the limit of these.
    """

    name: ClassVar[Literal["cache.size"]] = "cache.size"

    size: int
    max_size: int


@frozen(kw_only=True)
class CacheEviction(CacheEvent):
    """Emitted with `CacheSized` when ``items`` entries were evicted to make room since the last such event."""

    name: ClassVar[Literal["cache.eviction"]] = "cache.eviction"


@frozen(kw_only=True)
class CatalogDiscover(BaseEvent):
    """Emitted when a provider's list of models was returned, or could not be.

    Attributes:
        outcome: "ok" or the name of the exception.
        source: "cache", "provider", or "plugin" for a provider without a list, whose models its plugin knows.
        models: number of models.
        dropped: number of entries of the list that could not be read and are missing.
        seconds: how long the request took; 0.0 from the cache.
    """

    name: ClassVar[Literal["catalog.discover"]] = "catalog.discover"

    outcome: str
    source: Literal["cache", "provider", "plugin"]
    models: int = 0
    dropped: int = 0
    seconds: float = 0.0


@frozen(kw_only=True)
class CatalogBatch(BaseEvent):
    """Emitted when ``batch_list_models`` has ended.

    Attributes:
        providers: number of providers.
        failures: number of providers whose result is an error.
        seconds: how long it took.
    """

    name: ClassVar[Literal["catalog.batch"]] = "catalog.batch"

    providers: int
    failures: int
    seconds: float


_OfCalls = CallStart | CallEnd | CatalogDiscover | CatalogBatch | BatchSplit | JsonParse
_OfRequests = RequestStart | RequestEnd | RequestAttempt | RequestRetry | RequestWaiting | RequestWait
_OfLimits = (
    LimitLearned | SharedDegraded | BreakerChanged | EndpointSetAside | CredentialRefused | KeysRefused
)
_OfConnections = PoolCheckout | PoolReuse | PoolSize | StreamFirstChunk | StreamChunk | StreamUnknown
_OfCompression = RequestCompression | CompressionRefused | ResponseCompression
_OfCaches = CacheHit | CacheMiss | CacheStale | CacheRefresh | CacheSized | CacheEviction
Event = _OfCalls | _OfRequests | _OfLimits | _OfConnections | _OfCompression | _OfCaches
"""Any event. The comparison of its ``name`` tells a type checker which one it is."""

OnEvent = Callable[[Event], None]
"""A listener. It is called on the event loop, so it must return quickly and not block. `llmopt.Client` calls it in the
client's thread; where loops in several threads use one client, it may run in several threads at once."""
