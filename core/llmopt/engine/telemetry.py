"""Telling what happens. Nothing is made when nobody listens, and no listener's fault becomes a call's."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from llmopt.values.embeddings import Usage
from llmopt.values.events import (
    BreakerChanged,
    CompressionRefused,
    Event,
    LimitLearned,
    LimitSource,
    OnEvent,
    PoolCheckout,
    PoolReuse,
    PoolSize,
    RequestCompression,
    RequestRetry,
    WaitCause,
)

if TYPE_CHECKING:
    from llmopt.policies.circuit_breaker import CircuitTransition
    from llmopt.policies.retry_loop import Retry
    from llmopt.values.calls import Call
_log: Final = logging.getLogger("llmopt")


def _log_line(level: int, message: str, *values: object) -> None:
    """A line in the log. A handler of the user's that raises is no fault of the call's."""
    with suppress(Exception):
        _log.log(level, message, *values)


class Telemetry:
    """The one place where events leave.

    Attributes:
        enabled: whether anybody listens; look before making an event.
    """

    def __init__(self, on_event: OnEvent | None) -> None:
        self._on_event: Final = on_event
        self.enabled: Final = on_event is not None

    def emit(self, event: Event) -> None:
        """Give an event to the listener. One that raises is logged and otherwise ignored."""
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001 - a listener's fault is never a call's
            with suppress(Exception):
                _log.exception("the listener on_event raised on %s", event.name)

    def retry_scheduled(self, call: Call, provider: str, retry: Retry) -> None:
        """A request will be made again: an event, and one line in the log."""
        endpoint, cause = retry.error.endpoint or "", type(retry.error).__name__
        _log_line(
            logging.INFO,
            "retry %d of %s/%s at %s in %.2f s after %s",
            retry.attempt - 1,
            provider,
            call.model,
            endpoint,
            retry.delay,
            cause,
        )
        if self.enabled:
            self.emit(
                RequestRetry(
                    provider=provider,
                    model=call.model,
                    endpoint=endpoint,
                    attempt=retry.attempt,
                    delay=retry.delay,
                    cause=cause,
                )
            )

    def limit_learned(
        self, provider: str, model: str, endpoint: str, limit: str, value: float, source: LimitSource
    ) -> None:
        """A limit became known."""
        if self.enabled:
            self.emit(
                LimitLearned(
                    provider=provider,
                    model=model,
                    endpoint=endpoint,
                    limit=limit,
                    value=value,
                    source=source,
                )
            )

    def request_compressed(self, provider: str, model: str, endpoint: str, size: int, sent: int) -> None:
        """A request body of ``size`` bytes was compressed to ``sent`` bytes."""
        if self.enabled:
            self.emit(
                RequestCompression(provider=provider, model=model, endpoint=endpoint, size=size, sent=sent)
            )

    def compression_refused(self, provider: str, endpoint: str, status: int) -> None:
        """An endpoint does not accept compressed requests: an event, and one line in the log."""
        _log_line(
            logging.INFO,
            "%s refuses compressed requests (HTTP %d): they are sent without compression",
            endpoint,
            status,
        )
        if self.enabled:
            self.emit(CompressionRefused(provider=provider, endpoint=endpoint, status=status))

    def breaker_changed(self, change: CircuitTransition) -> None:
        """A circuit changed."""
        _log_line(
            logging.WARNING,
            "circuit %s: %s -> %s (%.1f s)",
            change.name,
            change.old,
            change.new,
            change.break_duration_s,
        )
        if self.enabled:
            self.emit(
                BreakerChanged(
                    provider="",
                    circuit=change.name,
                    old=change.old,
                    new=change.new,
                    break_duration_s=change.break_duration_s,
                )
            )

    def pool_trace(self, provider: str, endpoint: str) -> PoolTelemetry | None:
        """For an endpoint's pool, None when nobody listens."""
        return PoolTelemetry(self, provider, endpoint) if self.enabled else None


class PoolTelemetry:
    """What one endpoint's pool tells, as events."""

    def __init__(self, telemetry: Telemetry, provider: str, endpoint: str) -> None:
        self._telemetry: Final = telemetry
        self._provider: Final = provider
        self._endpoint: Final = endpoint

    def connection_acquired(self, waited_s: float, served: int) -> None:
        """See `llmopt.transport.connector.PoolTrace`."""
        self._telemetry.emit(
            PoolCheckout(
                provider=self._provider, endpoint=self._endpoint, seconds=waited_s, reused=served > 0
            )
        )
        if served:
            self._telemetry.emit(PoolReuse(provider=self._provider, endpoint=self._endpoint, served=served))

    def size_changed(self, connections: int, in_use: int, waiting: int) -> None:
        """See `llmopt.transport.connector.PoolTrace`."""
        self._telemetry.emit(
            PoolSize(
                provider=self._provider,
                endpoint=self._endpoint,
                open=connections,
                in_use=in_use,
                waiting=waiting,
            )
        )


# Counters of one endpoint, for operators.


class EndpointMetrics:
    """What was done at one endpoint since its client was made.

    Attributes:
        requests: HTTP requests made, retries included.
        succeeded: those that brought what was asked for.
        errors: the others, by the name of the exception they ended in.
        cancelled: those that were given up before either.
        retries: requests that were made again.
        input_tokens: tokens sent, as answers report them.
        output_tokens: tokens received, likewise.
        waited: seconds that requests waited before they were sent, by cause.
        compressed: requests that went out packed.
        compression_refused: those that were sent again as they are, because that may be why they were refused.
        saved_sent: bytes that packing requests has saved.
        saved_received: bytes that packed answers have saved.
        on_the_wire: seconds from sending to the end of the answer, of all requests together.
    """

    __slots__ = (
        "cancelled",
        "compressed",
        "compression_refused",
        "errors",
        "input_tokens",
        "on_the_wire",
        "output_tokens",
        "requests",
        "retries",
        "saved_received",
        "saved_sent",
        "succeeded",
        "waited",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.succeeded = 0
        self.errors: Counter[str] = Counter()
        self.cancelled = 0
        self.retries = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.waited: dict[WaitCause, float] = {}
        self.compressed = 0
        self.compression_refused = 0
        self.saved_sent = 0
        self.saved_received = 0
        self.on_the_wire = 0.0

    def add_usage(self, usage: Usage | None) -> None:
        """An answer reports this use."""
        if usage is not None:
            self.input_tokens += usage.prompt_tokens
            self.output_tokens += usage.completion_tokens

    def stats(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "requests": self.requests,
            "succeeded": self.succeeded,
            "errors": dict(self.errors),
            "cancelled": self.cancelled,
            "retries": self.retries,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "waited_s": dict(self.waited),
            "on_the_wire_s": self.on_the_wire,
            "compression": {
                "compressed": self.compressed,
                "refused": self.compression_refused,
                "saved_sent": self.saved_sent,
                "saved_received": self.saved_received,
            },
        }
