"""Telemetry of one client: events for the application's listener, lines in the log, counters per endpoint.

Events are the classes of `llmopt.values.events`. None is made without a listener, and an exception that a listener or a
log handler raises never reaches a call. Nothing here awaits.

The only I/O are log records. The user's listener is called directly, on the event loop of the request, so a slow one
delays the other calls there. Log handlers run there too. No clock: durations are passed in. All calls of an endpoint
share its counters, without a lock: a count that two threads add at once may be lost.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, ParamSpec

from attrs import asdict, define, evolve, field

from llmopt.values.events import (
    BreakerChanged,
    CompressionRefused,
    EndpointSetAside,
    Event,
    OnEvent,
    PoolCheckout,
    PoolReuse,
    PoolSize,
    RequestRetry,
    WaitCause,
)

if TYPE_CHECKING:
    from llmopt.config.resolve import Endpoint
    from llmopt.errors import LLMOptError
    from llmopt.policies.circuit_breaker import CircuitTransition
    from llmopt.policies.retry_loop import Retry
    from llmopt.values.calls import Call
_P = ParamSpec("_P")
_log: Final = logging.getLogger("llmopt")


class Telemetry:
    """The one place from which events and log lines leave the engine.

    Attributes:
        enabled: whether there is a listener. Callers on the path of every request ask before they compute an event's fields.
        on_limits_changed: called with provider and model when something was learned of their rate limits. Not for the
            application: it is where that is saved.
    """

    def __init__(self, on_event: OnEvent | None) -> None:
        self.on_limits_changed: Callable[[str, str], None] = lambda *_: None
        self._on_event: Final = on_event
        self.enabled: Final = on_event is not None

    def emit(self, kind: Callable[_P, Event], /, *args: _P.args, **fields: _P.kwargs) -> None:
        """Make an event of this kind and pass it to the listener; do nothing if there is none.

        An exception of the listener is logged and otherwise ignored.
        """
        if self._on_event is None:
            return
        # Not inside the try: a wrong field is an error of llmopt, not of the listener.
        event = kind(*args, **fields)
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001 - a faulty listener must not fail the call
            with suppress(Exception):
                _log.exception("the listener on_event raised on %s", event.name)

    def retry_scheduled(self, provider: str, model: str, retry: Retry) -> None:
        """A request will be sent again after a delay."""
        endpoint, cause, delay = retry.error.endpoint or "", type(retry.error).__name__, retry.delay
        _write(
            logging.INFO,
            "retry %d of %s/%s at %s in %.2f s after %s",
            *(retry.attempt - 1, provider, model, endpoint, delay, cause),
        )
        self.emit(
            RequestRetry,
            provider=provider,
            model=model,
            endpoint=endpoint,
            attempt=retry.attempt,
            delay=delay,
            cause=cause,
        )

    def compression_refused(self, provider: str, endpoint: str, status: int) -> None:
        """An endpoint does not accept compressed request bodies."""
        _write(
            logging.INFO, "%s refuses compressed requests (HTTP %d): they go uncompressed", endpoint, status
        )
        self.emit(CompressionRefused, provider=provider, endpoint=endpoint, status=status)

    def keys_refused(self, endpoint: str, keys: Sequence[str]) -> None:
        """An endpoint does not accept optional keys of request bodies."""
        _write(logging.INFO, "%s refuses %s: requests go without", endpoint, ", ".join(keys))

    def endpoint_set_aside(self, endpoint: Endpoint, call: Call, error: LLMOptError, seconds: float) -> None:
        """One of several endpoints does not serve a model; the others are asked instead for ``seconds``."""
        _write(
            logging.WARNING,
            "%s (%s) does not serve %s of %r: other endpoints are asked for %.0f s; %s: %s",
            *(
                endpoint.origin,
                endpoint.path,
                call.operation,
                call.model,
                seconds,
                type(error).__name__,
                error,
            ),
        )
        self.emit(
            EndpointSetAside,
            provider=endpoint.provider,
            model=call.model,
            endpoint=endpoint.origin,
            index=endpoint.index,
            operation=call.operation,
            cause=type(error).__name__,
            seconds=seconds,
        )

    def breaker_changed(self, change: CircuitTransition) -> None:
        """A circuit breaker changed its state."""
        old, new, seconds = change.old, change.new, change.break_duration_s
        cause = "" if change.cause is None else type(change.cause).__name__
        after = f", after {cause}: {change.cause}" if cause else ""
        _write(logging.WARNING, "circuit %s: %s -> %s (%.1f s)%s", change.name, old, new, seconds, after)
        self.emit(
            BreakerChanged,
            provider=change.provider,
            model=change.model,
            endpoint=change.endpoint,
            circuit=change.name,
            old=old,
            new=new,
            break_duration_s=seconds,
            cause=cause,
        )

    def pool_trace(self, provider: str, endpoint: str) -> PoolEvents | None:
        """The callbacks for an endpoint's connection pool, None without a listener."""
        return PoolEvents(self, provider, endpoint) if self.enabled else None


def _write(level: int, message: str, *values: object) -> None:
    """Write a line to the log; an exception of a log handler is ignored."""
    with suppress(Exception):
        _log.log(level, message, *values)


class PoolEvents:
    """Turns the callbacks of a connection pool into events; see `llmopt.transport.connector.PoolTrace`."""

    def __init__(self, telemetry: Telemetry, provider: str, endpoint: str) -> None:
        self._emit: Final = telemetry.emit
        self._provider: Final = provider
        self._endpoint: Final = endpoint

    def connection_acquired(self, waited_s: float, served: int) -> None:
        """A request got a connection after ``waited_s``, which has carried ``served`` requests before."""
        provider, endpoint = self._provider, self._endpoint
        self._emit(PoolCheckout, provider=provider, endpoint=endpoint, seconds=waited_s, reused=served > 0)
        if served:
            self._emit(PoolReuse, provider=provider, endpoint=endpoint, served=served)

    def size_changed(self, connections: int, in_use: int, waiting: int) -> None:
        """The number of open connections has changed; ``waiting`` requests wait for one."""
        provider, endpoint = self._provider, self._endpoint
        self._emit(
            PoolSize, provider=provider, endpoint=endpoint, open=connections, in_use=in_use, waiting=waiting
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
