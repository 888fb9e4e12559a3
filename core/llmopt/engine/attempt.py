"""One attempt of a request: what it acquires, how it is settled, and what is recorded about it.

`AttemptScope` holds slot, lease and permit and reports the result to the policies. `RequestRecorder` counts, and emits
the events. `add_context` completes the error of an attempt.

No I/O but lines in the log, no awaiting and no clock: durations are passed in. It changes the policies and counters
that all requests of the endpoint share, and calls the plugin's hook `rate_limits` and the user's listener.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Self

from llmopt.engine.endpoint import LiveEndpoint
from llmopt.engine.endpoint_policies import SET_ASIDE_S
from llmopt.engine.responses import SLOW, hide_keys, may_be_item_error, request_id
from llmopt.engine.telemetry import Telemetry
from llmopt.errors import (
    Attempt,
    AttemptTimeout,
    ConnectFailed,
    DeadlineExceeded,
    InvalidResponse,
    LLMOptError,
    Overloaded,
    PoolTimeout,
    ProviderError,
    RateLimited,
    RequestTimeout,
    Sent,
    StreamIdle,
)
from llmopt.policies.circuit_breaker import counts_as_timeout
from llmopt.policies.concurrency_limit import Slot, load_signal
from llmopt.policies.loop_lag import explains_timeout
from llmopt.policies.quota import Lease
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.policies.retry_after import exceeded_by, parse_retry_after, reset_wait
from llmopt.values.calls import Call, RateLimits, Settings
from llmopt.values.embeddings import Usage
from llmopt.values.events import (
    JsonParse,
    LimitLearned,
    RequestAttempt,
    RequestEnd,
    RequestStart,
    RequestWait,
    RequestWaiting,
    ResponseCompression,
    StreamChunk,
    StreamUnknown,
    WaitCause,
)
from llmopt.values.http import HttpResponse

if TYPE_CHECKING:
    from llmopt.policies.circuit_breaker import Permit
    from llmopt.policies.retry_loop import Retry
_REQUEST_TIMEOUT: Final = 408
_LOOP_WAS_LATE: Final = (
    "The event loop was {:.1f} s late meanwhile: something blocks it, or the machine is too busy."
)
Used = tuple[int, int]
"""Tokens of a response: all of them, and those of the reply."""
_NO_SLOT: Final = Slot(lambda _: None)


class AttemptScope:
    """What one attempt has acquired from the policies: concurrency slot, rate-limit lease, circuit breaker permit.

    Leaving its ``with`` block releases what is left of them, neutrally where the attempt said nothing about the server.
    A stream detaches the scope from the block and releases it at its end. No method awaits, so that a
    cancellation cannot leave anything acquired.

    Args:
        endpoint: receives the request.
        call: what is asked for.
        tokens: estimated tokens of the request; adaptive timeouts are learned by them.
        suspect: see `Request.suspect`.

    Attributes:
        timeout: seconds that the attempt may take.
        slot: of the concurrency limiter; a slot of no limiter until it is set.
        lease: of the rate limiter; one that has ended until it is set.
        reply_lease: of the limiter of the tokens of replies, likewise.
        cost_stated: whether the plugin has stated the cost in tokens, so that the usage in the response does not correct it.
        permit: of the circuit breakers, None before it is acquired and where they are switched off.
    """

    def __init__(self, endpoint: LiveEndpoint, call: Call, tokens: int, *, suspect: bool = False) -> None:
        self.endpoint: Final = endpoint
        self.call: Final = call
        self.tokens: Final = tokens
        self.timeout = 0.0
        self.slot = _NO_SLOT
        self.lease: Lease = endpoint.policies.no_lease
        self.permit: Permit | None = None
        self.reply_lease = self.lease
        self.cost_stated = False
        self._release_on_exit = True
        self._suspect: Final = suspect
        self._timeouts_count = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._release_on_exit:
            self.release()

    def detach(self) -> None:
        """Let the ``with`` block release nothing: the stream that goes on calls `release`."""
        self._release_on_exit = False

    def release(self) -> None:
        """Release what was not released yet."""
        if self.permit is not None:
            self.permit.neutral()
        self.lease.__exit__()
        self.reply_lease.__exit__()
        self.slot.release()

    def begin(self, permit: Permit | None, timeout: float) -> None:
        """The circuit breakers admit the attempt; it may take ``timeout`` seconds from now."""
        self.permit, self.timeout = permit, timeout
        # A server that loads its model for the first request is slow, but neither broken nor overloaded.
        self.endpoint.policies.loop_lag().watch()
        first = self.endpoint.config.timeouts.first
        self._timeouts_count = self.endpoint.policies.has_answered or first is None or timeout < first

    def succeeded(
        self, response: HttpResponse, settings: Settings, seconds: float, used: Used | None
    ) -> bool:
        """Record a complete response.

        Args:
            response: with the headers that may state rate limits.
            settings: of the attempt.
            seconds: from sending to the end of the response.
            used: tokens as the response reports them, None if it does not.

        Returns:
            Whether the headers stated a limit that was unknown or different before.
        """
        self.endpoint.policies.record_latency(self.call, self.tokens, seconds)
        self.completed(used)
        # After the lease is settled: what the headers say is left is compared with what the limiter has counted.
        if not self.lease.wants_headers:
            return False
        return self._observe(self.endpoint.hooks.rate_limits(response, settings))

    def completed(self, used: Used | None) -> None:
        """Settle everything for a complete response; ``used`` is its cost, None to keep the estimate."""
        self.slot.release("success" if self.endpoint.config.flags.concurrency else "neutral")
        if self.permit is not None:
            self.permit.success()
        if self.cost_stated or self.reply_lease.open:
            self._settle(used)
        else:
            self.lease.settle(None if used is None else used[0])
        self._release_on_exit = False

    def _settle(self, used: Used | None) -> None:
        tokens, reply = (None, None) if used is None or self.cost_stated else used
        if self.reply_lease.open:
            self.reply_lease.settle(reply)
            tokens = None if tokens is None or reply is None else tokens - reply
        self.lease.settle(tokens)

    def _observe(self, limits: RateLimits) -> bool:
        if limits.output_tokens is not None and (limiter := self._reply_limiter()) is not None:
            # The first response that states the limit had no lease for its reply.
            lease = self.reply_lease if self.reply_lease.number else limiter.try_acquire()
            if lease is not None:
                lease.observe(RateLimits(tokens=limits.output_tokens))
        return self.lease.observe(limits)

    def _reply_limiter(self) -> RateLimiter | None:
        return self.endpoint.policies.reply_limiter(self.call, create=True)

    def failed(
        self, error: LLMOptError, settings: Settings, seconds: float, response: HttpResponse | None
    ) -> bool:
        """Record a failed attempt.

        Returns:
            Whether the headers of the response stated a limit that was unknown or different before.
        """
        policies = self.endpoint.policies
        policies.block_credential(error, self.call.model)
        timed_out = isinstance(error, AttemptTimeout)
        # A text that the server cannot process, or takes long for, says nothing about the server's health.
        of_text = self._suspect and (may_be_item_error(error) or isinstance(error, SLOW))
        if self._loop_was_late(error, seconds):
            error.local = True
        if timed_out and not error.local:
            policies.record_timeout(self.call, self.tokens, self.timeout)
        elif response is not None:
            policies.record_latency(self.call, self.tokens, seconds)
        if not error.local and (self._timeouts_count or not timed_out):
            adaptive = self.endpoint.config.flags.concurrency and not (of_text and timed_out)
            self.slot.release(load_signal(error) if adaptive else "neutral")
            if self.permit is not None and not of_text:
                self.permit.failed(self._breaker_error(error, seconds))
        limits = None if response is None else self.endpoint.hooks.rate_limits(response, settings)
        return self._settle_lease(error, limits)

    def stream_started(self, response: HttpResponse, settings: Settings, seconds: float) -> bool:
        """Record the first event of a stream.

        Returns:
            As `succeeded`.
        """
        self.endpoint.policies.record_latency(self.call, self.tokens, seconds)
        breakers = self.endpoint.policies.breakers(self.call)
        if self.permit is not None and breakers is not None and breakers.half_open:
            # A half-open circuit must not stay so until the end of a long stream.
            self.permit.success()
        # The requests that the limiter holds back until it has seen a first response need not wait for its end.
        self.lease.accept()
        self.reply_lease.accept()
        return self.lease.wants_headers and self._observe(self.endpoint.hooks.rate_limits(response, settings))

    def stream_abandoned(self, used: Used) -> None:
        """Settle a stream that its reader closed; ``used`` is its cost until then."""
        self._settle(used)

    def stream_failed(self, error: LLMOptError, settings: Settings, used: Used) -> None:
        """Record a stream that broke off; ``used`` is its cost until then."""
        if not isinstance(error, RateLimited):
            self._settle(used)
        self.failed(error, settings, 0.0, None)

    def _loop_was_late(self, error: LLMOptError, seconds: float) -> bool:
        """Whether a late event loop may have caused the timeout. The error then says so."""
        limit = self._expired_limit(error, seconds)
        if limit is None:
            return False
        late = self.endpoint.policies.loop_lag().seconds(seconds or limit)
        if not explains_timeout(late, limit):
            return False
        error.args = (f"{error.message} {_LOOP_WAS_LATE.format(late)}",)
        return True

    def _expired_limit(self, error: LLMOptError, seconds: float) -> float | None:
        """The seconds whose passing alone is the failure, None for a failure of another kind."""
        timeouts = self.endpoint.config.timeouts
        if isinstance(error, AttemptTimeout):
            return self.timeout
        if isinstance(error, ConnectFailed):
            return timeouts.connect if error.cause == "timeout" else None
        if isinstance(error, StreamIdle):
            return timeouts.idle
        if isinstance(error, PoolTimeout):
            return timeouts.pool
        # With status 408 the server says that it has waited for the request.
        waited_for_us = isinstance(error, RequestTimeout) and error.status == _REQUEST_TIMEOUT
        return seconds if waited_for_us or isinstance(error, DeadlineExceeded) else None

    def _breaker_error(self, error: LLMOptError, seconds: float) -> LLMOptError:
        """The error for the circuit breakers: a deadline that left enough time counts as a timeout."""
        if isinstance(error, DeadlineExceeded) and counts_as_timeout(seconds, self.timeout):
            return AttemptTimeout(error.message)
        return error

    def _settle_lease(self, error: LLMOptError, limits: RateLimits | None) -> bool:
        if error.sent == "no":
            self.lease.refund()
            self.reply_lease.refund()
            return False
        if isinstance(error, RateLimited):
            return self._throttled(error, limits or RateLimits())
        # A request that is refused for good costs no tokens; for any other failure the estimate stands.
        self._settle((0, 0) if isinstance(error, ProviderError) and not error.retryable else None)
        return limits is not None and self._observe(limits)

    def _throttled(self, error: RateLimited, limits: RateLimits) -> bool:
        error.exceeded = error.exceeded or exceeded_by(limits, self.tokens)
        error.retry_after = error.retry_after or reset_wait(limits, error.exceeded)
        if error.exceeded == "output_tokens" and (limiter := self._reply_limiter()) is not None:
            self.lease.refund()
            lease = self.reply_lease if self.reply_lease.open else None
            replies = RateLimits(tokens=limits.output_tokens)
            return limiter.throttled(error.retry_after, lease, limits=replies, dimension="tokens")
        self.reply_lease.refund()
        # Without its dimension: refusals that name requests and tokens by turns would lift each other's learned rate.
        return self.lease.throttled(error.retry_after, limits=limits)


def add_context(
    error: LLMOptError,
    endpoint: LiveEndpoint,
    call: Call,
    response: HttpResponse | None,
    seconds: float,
    settings: Settings,
) -> Attempt:
    """Add to an error what only the engine knows about it: provider, model, endpoint, request id, retry-after.

    Keys in its message are removed.

    Returns:
        The entry for the error's history of attempts.
    """
    error.provider = error.provider or endpoint.config.provider
    error.model = error.model or call.model or None
    error.endpoint = error.endpoint or endpoint.name
    if response is not None:
        error.request_id = error.request_id or request_id(response.headers, settings)
        if isinstance(error, (ProviderError, InvalidResponse)):
            # A header is more exact than what a plugin reads from the text of an error.
            header = parse_retry_after(response.headers, response.received)
            error.retry_after = header if header is not None else error.retry_after
            if error.retry_after is not None and isinstance(error, (RateLimited, Overloaded)):
                error.args = (f"{error.message}; the server asks to wait {error.retry_after:g} s",)
    hide_keys(error, settings)
    return Attempt(
        endpoint=endpoint.name,
        outcome=type(error).__name__,
        status=response.status if response is not None else None,
        seconds=seconds,
        message=error.message,
    )


def should_retry(response: HttpResponse | None) -> bool | None:
    """The server's ``x-should-retry`` header, None where there is none."""
    if response is None:
        return None
    return {"true": True, "false": False}.get(response.headers.get("x-should-retry", "").strip().lower())


# Recording one request: counters of its endpoints, and events if there is a listener.

OK: Final = "ok"
CANCELLED: Final = "cancelled"


class RequestRecorder:
    """Records one request and all its attempts.

    An outcome is `OK`, `CANCELLED` or the name of an exception class.

    Args:
        call: the call that the request is for.
        provider: name of the provider entry.
        telemetry: gets the events.
        on_send: called before each attempt.

    Attributes:
        enabled: whether there is a listener; what only an event needs is not computed otherwise.
        sent: HTTP requests sent so far.
    """

    __slots__ = ("_call", "_emit", "_model", "_on_send", "_provider", "_telemetry", "enabled", "sent")

    def __init__(self, call: Call, provider: str, telemetry: Telemetry, on_send: Callable[[], None]) -> None:
        self._call: Final = call
        self._model: Final = call.model
        self._provider: Final = provider
        self._telemetry: Final = telemetry
        self._emit: Final = telemetry.emit
        self._on_send: Final = on_send
        self.enabled: Final = telemetry.enabled
        self.sent = 0

    def request_started(self, items: int, tokens: int) -> None:
        """The request begins, with ``items`` texts and ``tokens`` estimated tokens."""
        operation = self._call.operation
        self._emit(
            RequestStart,
            provider=self._provider,
            model=self._model,
            operation=operation,
            items=items,
            tokens=tokens,
        )

    def request_ended(self, endpoint: LiveEndpoint, outcome: str, seconds: float) -> None:
        """The request is over, after all its attempts."""
        self._emit(
            RequestEnd,
            provider=self._provider,
            model=self._model,
            endpoint=endpoint.name,
            operation=self._call.operation,
            outcome=outcome,
            attempts=self.sent,
            seconds=seconds,
        )

    def attempt_started(self, endpoint: LiveEndpoint) -> None:
        """An HTTP request is about to be sent."""
        self.sent += 1
        self._on_send()
        endpoint.metrics.requests += 1

    def attempt_ended(
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
        """The HTTP request is over."""
        metrics = endpoint.metrics
        metrics.on_the_wire_s += seconds
        if usage is not None:
            metrics.input_tokens += usage.prompt_tokens
            metrics.output_tokens += usage.completion_tokens
        if outcome == OK:
            metrics.succeeded += 1
        elif outcome == CANCELLED:
            metrics.cancelled += 1
        else:
            metrics.errors[outcome] += 1
        if response is not None and response.info.compressed_size is not None:
            self.response_decoded(endpoint, response.info.compressed_size, len(response.body))
        if self.enabled:
            self._emit(
                RequestAttempt,
                provider=self._provider,
                model=self._model,
                endpoint=endpoint.name,
                attempt=number,
                outcome=outcome,
                status=response.status if response is not None else None,
                seconds=seconds,
                sent=sent,
                reused=response.info.reused if response is not None else False,
            )

    def response_decoded(self, endpoint: LiveEndpoint, received: int, size: int) -> None:
        """The response was compressed: ``received`` bytes were decoded to ``size`` bytes."""
        endpoint.metrics.compression.saved_received += size - received
        provider, model, name = self._provider, self._model, endpoint.name
        self._emit(
            ResponseCompression, provider=provider, model=model, endpoint=name, received=received, size=size
        )

    def response_parsed(self, response: HttpResponse, seconds: float) -> None:
        """The response was parsed in ``seconds``."""
        provider, model, operation, size = (
            self._provider,
            self._model,
            self._call.operation,
            len(response.body),
        )
        if size:
            self._emit(
                JsonParse, provider=provider, model=model, operation=operation, size=size, seconds=seconds
            )

    def wait_started(self, endpoint: LiveEndpoint, cause: WaitCause) -> None:
        """The request begins to wait before it can be sent."""
        self._emit(
            RequestWaiting, provider=self._provider, model=self._model, endpoint=endpoint.name, cause=cause
        )

    def wait_ended(self, endpoint: LiveEndpoint, cause: WaitCause, seconds: float) -> None:
        """The request has waited so long."""
        waited = endpoint.metrics.waited_s
        waited[cause] = waited.get(cause, 0.0) + seconds
        provider, model, name = self._provider, self._model, endpoint.name
        self._emit(RequestWait, provider=provider, model=model, endpoint=name, cause=cause, seconds=seconds)

    def retry_scheduled(self, endpoint: LiveEndpoint, retry: Retry) -> None:
        """The request will be sent again. A wait for an open circuit is recorded as a wait, not as a retry."""
        if retry.decision.reason != "circuit_open":
            endpoint.metrics.retries += 1
            self._telemetry.retry_scheduled(self._provider, self._model, retry)

    def endpoint_set_aside(self, endpoint: LiveEndpoint, error: LLMOptError) -> None:
        """The endpoint does not serve the model: others are asked for a while."""
        self._telemetry.endpoint_set_aside(endpoint.config, self._call, error, SET_ASIDE_S)

    def keys_refused(self, endpoint: LiveEndpoint, keys: Sequence[str]) -> None:
        """The endpoint refused keys of the request body: it gets no more of them."""
        self._telemetry.keys_refused(endpoint.name, keys)

    def limits_changed(self) -> None:
        """Something was learned of the rate limits, from headers or from a 429."""
        self._telemetry.on_limits_changed(self._provider, self._model)

    def limits_learned(self, endpoint: LiveEndpoint) -> None:
        """Response headers stated a rate limit that was unknown or different before."""
        self.limits_changed()
        if not self.enabled:
            return
        limits = endpoint.policies.rate_limiter(self._call).server_limits
        for name, value in zip(("rpm", "tpm"), limits, strict=True):
            if value is not None:
                self._emit(
                    LimitLearned,
                    provider=self._provider,
                    model=self._model,
                    endpoint=endpoint.name,
                    limit=name,
                    value=value,
                    source="headers",
                )

    def stream_chunk(self, endpoint: LiveEndpoint, size: int, events: int, seconds: float) -> None:
        """A chunk of a streamed response was received, after the first."""
        self._emit(
            StreamChunk,
            provider=self._provider,
            model=self._model,
            endpoint=endpoint.name,
            size=size,
            events=events,
            seconds=seconds,
        )

    def unknown_event(self, endpoint: LiveEndpoint, kind: str) -> None:
        """An event of a stream has a type that llmopt does not know."""
        endpoint.metrics.unknown_events += 1
        self._emit(
            StreamUnknown, provider=self._provider, model=self._model, endpoint=endpoint.name, kind=kind
        )
