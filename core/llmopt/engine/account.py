"""What a request tells of itself: counted at its endpoints, and as events where somebody listens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmopt.engine.endpoint import LiveEndpoint
from llmopt.engine.telemetry import Telemetry
from llmopt.errors import Sent
from llmopt.values.calls import Call
from llmopt.values.embeddings import Usage
from llmopt.values.events import (
    JsonParse,
    RequestAttempt,
    RequestEnd,
    RequestStart,
    RequestWait,
    RequestWaiting,
    ResponseCompression,
    StreamChunk,
    WaitCause,
)
from llmopt.values.http import HttpResponse

if TYPE_CHECKING:
    from llmopt.policies.stamina_loop import Retry

OK: Final = "ok"
CANCELLED: Final = "cancelled"


class Account:
    """The account of one request and all its attempts.

    Args:
        call: what is asked for.
        provider: name of the provider entry.
        telemetry: where events leave.

    Attributes:
        on: whether anybody listens; what only an event needs is not worked out otherwise.
        sent: HTTP requests made so far.
    """

    __slots__ = ("_call", "_provider", "_telemetry", "on", "sent")

    def __init__(self, call: Call, provider: str, telemetry: Telemetry) -> None:
        self._call: Final = call
        self._provider: Final = provider
        self._telemetry: Final = telemetry
        self.on: Final = telemetry.on
        self.sent = 0

    def started(self, items: int, tokens: int) -> None:
        """It begins, with so many texts of so many tokens."""
        if self.on:
            self._telemetry.emit(
                RequestStart(
                    provider=self._provider,
                    model=self._call.model,
                    operation=self._call.operation,
                    items=items,
                    tokens=tokens,
                )
            )

    def ended(self, endpoint: LiveEndpoint, outcome: str, seconds: float) -> None:
        """It is over, in `OK`, `CANCELLED` or the exception of that name."""
        if self.on:
            self._telemetry.emit(
                RequestEnd(
                    provider=self._provider,
                    model=self._call.model,
                    endpoint=endpoint.name,
                    operation=self._call.operation,
                    outcome=outcome,
                    attempts=self.sent,
                    seconds=seconds,
                )
            )

    def sending(self, endpoint: LiveEndpoint) -> None:
        """An HTTP request is about to be made."""
        self.sent += 1
        endpoint.counts.requests += 1

    def attempted(
        self,
        endpoint: LiveEndpoint,
        number: int,
        outcome: str,
        response: HttpResponse | None,
        seconds: float,
        *,
        sent: Sent,
        usage: Usage | None = None,
    ) -> None:
        """That request ended in `OK`, `CANCELLED` or the exception of that name."""
        counts = endpoint.counts
        counts.on_the_wire += seconds
        counts.spent(usage)
        if outcome == OK:
            counts.answered += 1
        elif outcome == CANCELLED:
            counts.cancelled += 1
        else:
            counts.errors[outcome] += 1
        if response is not None and response.info.packed is not None:
            self.unpacked(endpoint, response.info.packed, len(response.body))
        if not self.on:
            return
        self._telemetry.emit(
            RequestAttempt(
                provider=self._provider,
                model=self._call.model,
                endpoint=endpoint.name,
                attempt=number,
                outcome=outcome,
                status=response.status if response is not None else None,
                seconds=seconds,
                sent=sent,
                reused=response.info.reused if response is not None else False,
            )
        )

    def unpacked(self, endpoint: LiveEndpoint, received: int, size: int) -> None:
        """Its answer came packed: so many bytes travelled, and stood for so many."""
        endpoint.counts.saved_received += size - received
        if self.on:
            self._telemetry.emit(
                ResponseCompression(
                    provider=self._provider,
                    model=self._call.model,
                    endpoint=endpoint.name,
                    received=received,
                    size=size,
                )
            )

    def read(self, response: HttpResponse, seconds: float) -> None:
        """Its answer became a value, in so long."""
        if self.on and response.body:
            self._telemetry.emit(
                JsonParse(
                    provider=self._provider,
                    model=self._call.model,
                    operation=self._call.operation,
                    size=len(response.body),
                    seconds=seconds,
                )
            )

    def waits(self, endpoint: LiveEndpoint, cause: WaitCause) -> None:
        """It begins to wait."""
        if self.on:
            self._telemetry.emit(
                RequestWaiting(
                    provider=self._provider, model=self._call.model, endpoint=endpoint.name, cause=cause
                )
            )

    def waited(self, endpoint: LiveEndpoint, cause: WaitCause, seconds: float) -> None:
        """It waited before it could be sent."""
        waited = endpoint.counts.waited
        waited[cause] = waited.get(cause, 0.0) + seconds
        if self.on:
            self._telemetry.emit(
                RequestWait(
                    provider=self._provider,
                    model=self._call.model,
                    endpoint=endpoint.name,
                    cause=cause,
                    seconds=seconds,
                )
            )

    def retrying(self, endpoint: LiveEndpoint, retry: Retry) -> None:
        """It will be sent again. A wait for a circuit is told of when it is over, as a wait."""
        if retry.decision.reason != "circuit_open":
            endpoint.counts.retries += 1
            self._telemetry.retry(self._call, self._provider, retry)

    def learned(self, endpoint: LiveEndpoint) -> None:
        """Headers taught a limit, or another one than before."""
        if not self.on:
            return
        for name, limit in zip(("rpm", "tpm"), endpoint.guards.pace(self._call).told, strict=True):
            if limit is not None:
                self._telemetry.limit(self._provider, self._call.model, endpoint.name, name, limit, "headers")

    def piece(self, endpoint: LiveEndpoint, size: int, events: int, seconds: float) -> None:
        """A piece of its stream came, after its first."""
        if self.on:
            self._telemetry.emit(
                StreamChunk(
                    provider=self._provider,
                    model=self._call.model,
                    endpoint=endpoint.name,
                    size=size,
                    events=events,
                    seconds=seconds,
                )
            )
