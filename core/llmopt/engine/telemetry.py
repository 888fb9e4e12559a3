"""Telemetry of one client: events for the application's listener and for the log, counters per endpoint.

Events are the classes of `llmopt.values.events`. One is made only if the listener or the log takes it, and an exception
that a listener or a log handler raises never reaches a call. Nothing here awaits.

A `Scope` has the fields that all events of one call or request share. While events are taken, a context variable holds
the scope that runs, for events of the connection pool, circuit breakers and caches, which know neither call nor
request; a task that is started meanwhile inherits it.

The only I/O are the records of `llmopt.log`. The user's listener is called directly, on the event loop of the request,
so a slow one delays the other calls there. No clock: durations are passed in. All calls of an endpoint
share its counters, without a lock: a count that two threads add at once may be lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final, ParamSpec, cast

from attrs import asdict, define, evolve, field

from llmopt import log
from llmopt.values.events import BreakerChanged, Event, OnEvent, PoolCheckout, PoolReuse, PoolSize, WaitCause

_P = ParamSpec("_P")
OK: Final = "ok"
CANCELLED: Final = "cancelled"


class Telemetry:
    """The one place from which events leave the engine.

    Attributes:
        on_event: the listener, None without one.
        on_limits_changed: called with provider and model when something was learned of their rate limits. Not for the
            application: it is where that is saved.
    """

    def __init__(self, on_event: OnEvent | None) -> None:
        self.on_event: Final = on_event
        self.on_limits_changed: Callable[[str, str], None] = lambda *_: None
        self._failed: Final[set[str]] = set()  # names of events on which the listener raised

    def wants(self, kind: object) -> bool:
        """Whether the listener or the log takes events of this class."""
        return self.on_event is not None or log.wants(kind)

    def emit(self, kind: Callable[_P, Event], /, *args: _P.args, **fields: _P.kwargs) -> None:
        """Make an event of this kind and pass it to the log and the listener; do nothing if neither wants it.

        What the current scope knows is added. An exception of the listener is logged and otherwise ignored.
        """
        if not self.wants(kind):
            return
        scope = current_scope.get()
        known = {} if scope is None else scope.fields()
        # Not inside the try: a wrong field is an error of llmopt, not of the listener.
        self.publish(cast("Callable[..., Event]", kind)(*args, **{**known, **fields}))

    def publish(self, event: Event) -> None:
        """Pass an event on as it is."""
        log.write(event)
        if self.on_event is not None:
            try:
                self.on_event(event)
            except Exception:  # noqa: BLE001 - a faulty listener must not fail the call
                # Once for each kind: a call has a dozen events, and the listener may raise on all of them.
                level = log.DEBUG if event.name in self._failed else log.WARNING
                self._failed.add(event.name)
                message = f"the listener on_event raised on {event.name}"
                log.REQUEST.write(level, "listener.failed", message, {"exc_info": True})

    def breaker_changed(self, change: BreakerChanged) -> None:
        """A circuit breaker changed its state, in the current scope."""
        scope = current_scope.get()
        known = {} if scope is None else scope.fields()
        # Several entries may share the circuit.
        provider = change.provider or known.get("provider", "")
        own = {"provider": provider, "model": change.model, "endpoint": change.endpoint}
        self.publish(evolve(change, **{**known, **own}))

    def pool_trace(self, provider: str, endpoint: str) -> PoolEvents | None:
        """The callbacks for an endpoint's connection pool, None without a listener."""
        return None if self.on_event is None else PoolEvents(self, provider, endpoint)


class Scope:
    """What the events of one call, or of one request, have in common."""

    __slots__ = ()

    telemetry: Telemetry

    def fields(self) -> dict[str, Any]:
        """The common fields of its events."""
        raise NotImplementedError

    def emit(self, kind: Callable[_P, Event], /, *args: _P.args, **fields: _P.kwargs) -> None:
        """As `Telemetry.emit`, for an event of this scope."""
        if self.telemetry.wants(kind):
            with self.bound():
                self.telemetry.emit(kind, *args, **fields)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Make this the scope of all events in the block. Not for a generator, whose caller would share it."""
        token = current_scope.set(self)
        try:
            yield
        finally:
            # Another context closes a coroutine that was never finished: there is nothing to restore.
            with suppress(ValueError):
                current_scope.reset(token)


current_scope: Final[ContextVar[Scope | None]] = ContextVar("llmopt_scope", default=None)


@define(eq=False)
class PoolEvents:
    """Turns the callbacks of a connection pool into events; see `llmopt.transport.connector.PoolTrace`."""

    _telemetry: Telemetry
    _provider: str
    _endpoint: str

    def connection_acquired(self, waited_s: float, served: int) -> None:
        """A request got a connection after ``waited_s``, which has carried ``served`` requests before."""
        provider, endpoint, emit = self._provider, self._endpoint, self._telemetry.emit
        emit(PoolCheckout, provider=provider, endpoint=endpoint, seconds=waited_s, reused=served > 0)
        if served:
            emit(PoolReuse, provider=provider, endpoint=endpoint, served=served)

    def size_changed(self, connections: int, in_use: int, waiting: int) -> None:
        """The number of open connections has changed; ``waiting`` requests wait for one."""
        provider, endpoint = self._provider, self._endpoint
        # Of no call: what was opened for one closes long after it.
        self._telemetry.publish(
            PoolSize(provider=provider, endpoint=endpoint, open=connections, in_use=in_use, waiting=waiting)
        )


@define(eq=False)
class CompressionMetrics:
    """Counters of compressed bodies.

    Attributes:
        compressed: requests sent with a compressed body.
        refused: those that were sent again because the server may not accept compression.
        saved_sent: bytes saved by compressed requests.
        saved_received: bytes saved by compressed responses.
    """

    compressed: int = 0
    refused: int = 0
    saved_sent: int = 0
    saved_received: int = 0


@define(eq=False)
class EndpointMetrics:
    """Counters of one endpoint since its client was created.

    Attributes:
        requests: HTTP requests sent, retries included.
        lane: those of them that were sent without a coroutine, as first attempts that had nothing to wait for.
        succeeded: requests that returned a result.
        errors: failed requests, by the name of the exception.
        cancelled: requests whose caller gave up.
        retries: requests that were sent again.
        input_tokens: tokens sent, as responses report them.
        output_tokens: tokens received, as responses report them.
        unknown_events: events of streams whose type llmopt does not know.
        waited_s: seconds that requests waited before they were sent, by cause.
        on_the_wire_s: seconds from sending to the end of the response, summed over all requests.
        compression: counters of compressed bodies.
    """

    requests: int = 0
    lane: int = 0
    succeeded: int = 0
    errors: Counter[str] = field(factory=Counter)
    cancelled: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unknown_events: int = 0
    waited_s: dict[WaitCause, float] = field(factory=dict)
    on_the_wire_s: float = 0.0
    compression: CompressionMetrics = field(factory=CompressionMetrics)

    def stats(self) -> dict[str, Any]:
        """All counters as plain values."""
        # Copied first, each in one step: the loop's thread of `llmopt.Client` may add a kind of error meanwhile.
        return asdict(evolve(self, errors=Counter(dict(self.errors)), waited_s=dict(self.waited_s)))
